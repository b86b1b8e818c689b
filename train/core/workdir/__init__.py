"""The directory of a run: its files, its checkpoints and its lock."""
