"""Attention: scorers with one signature, cached keys and masks."""
