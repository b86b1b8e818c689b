"""Trains a network with several attentions, and compares what comes out."""
