"""Resizing of images by interpolation."""
