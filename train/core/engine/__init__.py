"""Training and evaluation: from a config to the programs that the devices run."""
