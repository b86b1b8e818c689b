"""Pages of a run or of a comparison."""
