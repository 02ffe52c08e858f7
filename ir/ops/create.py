"""The create operators."""
