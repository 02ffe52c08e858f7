"""Rows for the operators on caches."""

from __future__ import annotations

import numpy as np

from tests.op_cases import Case, const, fixed, normal

CASES: list[Case] = [
    Case("TensorScatter", [normal(2, 3, 4, 2), normal(2, 3, 2, 2), const([1, 2], "int64")]),
    Case("TensorScatter", [normal(2, 4, 3), normal(2, 3, 3), fixed([3, 6], "int64")], {"mode": "circular"}, name="circular"),
    Case("TensorScatter", [normal(2, 4, 3), normal(2, 4, 3)], {"axis": 1}, name="from-the-first"),
    Case("TensorScatter", [normal(2, 2, 5), normal(2, 2, 1), fixed([4, 0], "int64")], {"axis": 2}, name="last-axis"),
    Case("TensorScatter", [normal(2, 4), normal(2, 2), const([2, 1], "int64")], {"axis": -1}, name="rows"),
    Case("TensorScatter", [normal(2, 3, 2), normal(2, 0, 2), fixed([3, 1], "int64")], name="nothing"),
    Case("TensorScatter", [normal(0, 3, 2), normal(0, 2, 2), const(np.zeros(0), "int64")], name="no-samples"),
]
