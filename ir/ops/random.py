"""The random operators."""
