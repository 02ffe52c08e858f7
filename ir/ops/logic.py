"""The logic operators."""
