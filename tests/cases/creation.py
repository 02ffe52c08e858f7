"""Rows for the create operators."""

from __future__ import annotations

import numpy as np

from tests.op_cases import Case, const, fixed, held

CASES: list[Case] = [
    Case("ConstantOfShape", [const([2, 3], "int64")]),
    Case("ConstantOfShape", [fixed([2, 0], "int64")], {"value": np.array([7], np.int32)}, name="run-time"),
    Case("ConstantOfShape", [const([], "int64")], {"value": np.array([1.5])}, name="scalar"),
    Case("Range", [const(2, "int64"), const(9, "int64"), const(3, "int64")], name="integers"),
    Case("Range", [fixed(5, "int64"), fixed(-2, "int64"), fixed(-2, "int64")], name="run-time-backwards"),
    Case("Range", [fixed(0.5), held(fixed(2.05)), fixed(0.3)], name="floats"),
    Case("Range", [fixed(0.5), held(fixed(0.5)), fixed(0.3)], name="nothing"),
    Case("Range", [fixed(0.5, "float32"), fixed(2.05, "float32"), const(0.3, "float32")], name="float32"),
]
