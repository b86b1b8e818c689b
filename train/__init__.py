"""The trainer: python -m train.<command>."""
