"""Transforms: every one takes a Model and returns a Model."""
