"""Checks datasets, and makes smaller copies of them."""
