"""Looks at what a trained network does with images."""
