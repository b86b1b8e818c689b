"""What the host makes of an image before the device has it."""
