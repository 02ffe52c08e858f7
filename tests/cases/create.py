"""Rows for the create operators."""

from __future__ import annotations

import numpy as np

from tests.op_cases import Case, const, fixed

CASES: list[Case] = [
    Case("ConstantOfShape", [const([2, 3], "int64")]),
    Case("ConstantOfShape", [fixed([2, 0], "int64")], {"value": np.array([7], np.int32)}, name="run-time"),
    Case("ConstantOfShape", [const([], "int64")], {"value": np.array([1.5])}, name="scalar"),
]
