"""Causal convolutions, each with a streaming twin that computes the same thing one position at a time."""
