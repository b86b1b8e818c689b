"""What a run tells of itself: rows, TensorBoard events, log lines, traces."""
