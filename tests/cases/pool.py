"""Rows for the pool operators."""

from __future__ import annotations

from tests.op_cases import Case, distinct, normal

CASES: list[Case] = [
    Case("MaxPool", [distinct(2, 3, 6, 5)], dict(kernel_shape=[2, 3], strides=[2, 1])),
    Case("AveragePool", [normal(2, 3, 6, 5)], dict(kernel_shape=[2, 3], strides=[2, 1], pads=[1, 1, 0, 1])),
    Case("GlobalAveragePool", [normal(2, 3, 4, 5)]),
    Case("GlobalMaxPool", [distinct(2, 3, 4, 5)]),
]
