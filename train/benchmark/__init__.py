"""Measures training steps and the loader."""
