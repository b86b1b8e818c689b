"""Devices and processes, and what programs cost on them."""
