"""Normalization of batches, layers, instances, groups and channels."""
