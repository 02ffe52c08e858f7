"""Exact derivatives of ONNX models as graphs."""

from flowgrad import _checkout as _checkout
