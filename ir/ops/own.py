"""The own operators."""
