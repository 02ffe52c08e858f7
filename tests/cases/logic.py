"""Rows for comparison and logic."""

from __future__ import annotations

import numpy as np

from tests.op_cases import Case, fixed

NAN = float("nan")
COMPARISONS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")

CASES: list[Case] = [
    *(Case(name, [fixed([[1.0, 2.0, NAN]]), fixed([[1.0], [3.0]])]) for name in COMPARISONS),
    *(Case(name, [fixed([1, 2, 3], "int64"), fixed(2, "int64")], name="int") for name in COMPARISONS),
    Case("Equal", [fixed([True, False]), fixed([True, True])], name="bool"),
    Case("Equal", [fixed(np.array(["a", "b"], object)), fixed(np.array(["a", "c"], object))], name="string"),
    *(Case(name, [fixed([[True, False]]), fixed([[True], [False]])]) for name in ("And", "Or", "Xor")),
    Case("Not", [fixed([True, False])]),
]
