"""Where images come from, a file for every kind."""
