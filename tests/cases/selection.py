"""Rows for the operators that derivatives are made with."""

from __future__ import annotations

import numpy as np

from tests.op_cases import Case, fixed, normal

CASES = [
    Case("StopGradient", (normal(2, 3),), expected=lambda x: x),
    Case("Surrogate", (normal(2, 3), normal(2, 3)), expected=lambda x, smooth: x, smooth=False,
         note="the derivative is by definition not that of the value"),
    Case("After", (normal(2, 3), normal(4), normal()), expected=lambda x, *events: x),
    Case("After", (normal(), normal(0, 2)), expected=lambda x, *events: x, name="rank0-empty"),
    Case("After", (normal(0, 3), fixed([3, 4])), expected=lambda x, *events: x, name="empty-integers"),
    Case("MaskedMul", (normal(2, 3), normal(2, 3)), expected=np.multiply),
    Case("MaskedMul", (normal(2, 1), normal(3)), expected=np.multiply, name="broadcast"),
    Case("MaskedMul", (normal(), normal()), expected=np.multiply, name="rank0"),
    Case("MaskedMul", (fixed(0.0), fixed(np.nan)), expected=lambda a, b: np.array(0.0), smooth=False, name="rank0-nan",
         note="the second operand is no number"),
    Case("MaskedMul", (normal(0, 3), normal(3)), expected=np.multiply, name="empty"),
    Case("MaskedMul", (fixed([0.0, 2.0, 0.0, -1.0]), fixed([np.nan, 3.0, np.inf, np.nan])), smooth=False, name="nan",
         expected=lambda a, b: np.array([0.0, 6.0, 0.0, np.nan]), note="the second operand is no number"),
]
