"""Quantization: reals as integers or narrow floats with a scale and a zero point, and products of those."""
