"""The index operators."""
