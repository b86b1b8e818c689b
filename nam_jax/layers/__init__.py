"""Layers that the modules and networks are made of."""
