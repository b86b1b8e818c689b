"""The trainer: python -m train.<command>."""

import time

# When the command began, of time.monotonic().
BEGIN = time.monotonic()
