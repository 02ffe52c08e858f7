"""Rows for the elementwise operators."""

from __future__ import annotations

import numpy as np

from tests.op_cases import Case, away, const, distinct, fixed, normal

NAN, INF = float("nan"), float("inf")

ARITHMETIC = [
    Case("Add", [normal(3, 4), normal(3, 4)]),
    Case("Add", [normal(2, 1, 4), normal(3, 1)], name="broadcast-both"),
    Case("Add", [normal(), normal(2, 3)], name="rank0"),
    Case("Add", [normal(0, 3), normal(3)], name="empty"),
    Case("Add", [fixed([1, 2], "int64"), const([3, 4])], name="int"),
    Case("Add", [normal(3, dtype="float16"), normal(3, dtype="float16")], name="half"),
    Case("Sub", [normal(3, 4), normal(4)]),
    Case("Sub", [normal(4), normal(3, 4)], name="broadcast-first"),
    Case("Mul", [normal(3, 4), normal(3, 1)]),
    Case("Mul", [normal(1), normal(2, 3)], name="broadcast-first"),
    Case("Mul", [normal(2, 0), normal(1)], name="empty"),
    Case("Div", [normal(3, 4), away(4)]),
    Case("Div", [normal(), away(2, 3)], name="rank0"),
    Case("Div", [normal(3), const([2.0, 4.0, 0.5])], name="constant"),
    Case("Div", [fixed([7, -7, 7, -7, 6], "int32"), fixed([2, 2, -2, -2, -3], "int32")], name="int-truncates",
         reference=False, expected=lambda a, b: np.trunc(a / b).astype(np.int32)),
    Case("Div", [fixed([7, 250], "uint8"), fixed([2, 3], "uint8")], name="uint"),
    Case("Mod", [fixed([7, -7, 7, -7], "int64"), fixed([3, 3, -3, -3], "int64")], name="int"),
    Case("Mod", [fixed([7, -7, 7, -7], "int64"), fixed([3, 3, -3, -3], "int64")], {"fmod": 1}, name="int-fmod"),
    Case("Mod", [fixed([5.5, -5.5, 3.2]), fixed([2.0, 2.0, -1.5])], {"fmod": 1}, name="float"),
    Case("Mod", [fixed([5.5, -5.5, 3.2]), fixed([2.0, 2.0, -1.5])], name="float-floored"),
    Case("Neg", [normal(3, 4)]),
    Case("Abs", [away(3, 4)]),
    Case("Abs", [fixed([-3, 2], "int8")], name="int"),
    Case("Sum", [normal(2, 3), normal(3), normal(2, 1)]),
    Case("Sum", [normal(3), normal(1), normal(2, 3)], name="grows"),
    Case("Sum", [normal(2, 3)], name="one"),
    Case("Mean", [normal(2, 3), normal(3), normal(2, 1)]),
    Case("Mean", [normal(2, 3)], name="one"),
]

EXTREMA = [
    Case("Max", [distinct(3, 4), fixed(np.linspace(-1.01, 1.02, 12).reshape(3, 4))]),
    Case("Max", [distinct(2, 3), fixed([[0.05]]), fixed([0.07, -0.11, 0.2])], name="three-broadcast"),
    Case("Max", [normal(3)], name="one"),
    Case("Max", [fixed([1.0, 2.0]), fixed([1.0, NAN])], name="tie-nan", smooth=False, note="a tie and a NaN"),
    Case("Max", [fixed([1, 5], "int32"), fixed([3, 3], "int32")], name="int"),
    Case("Min", [distinct(3, 4), fixed(np.linspace(-1.01, 1.02, 12).reshape(3, 4))]),
    Case("Min", [distinct(2, 3), fixed([[0.05]]), fixed([0.07, -0.11, 0.2])], name="three-broadcast"),
    Case("Min", [fixed([1, 5], "uint8"), fixed([3, 3], "uint8")], name="int"),
    Case("Clip", [distinct(3, 4), const(-0.3), const(0.4)]),
    Case("Clip", [distinct(3, 4), fixed(-0.3), fixed(0.4)], name="bounds-fed"),
    Case("Clip", [distinct(3, 4), fixed(0.4), fixed(-0.3)], name="bounds-crossed"),
    Case("Clip", [distinct(3, 4), None, const(0.4)], name="upper"),
    Case("Clip", [distinct(3, 4), fixed(0.4)], name="lower"),
    Case("Clip", [distinct(3, 4)], name="free"),
    Case("Clip", [fixed([-5, 5, 100], "int8"), const(-2, "int8"), const(7, "int8")], name="int"),
]

SELECTION = [
    Case("Where", [fixed([[True, False, True]]), normal(2, 3), normal(2, 1)]),
    Case("Where", [fixed([[True], [False]]), normal(), normal(3)], name="grows"),
    Case("Where", [fixed([True, False]), fixed([1, 2], "int64"), const([3, 4])], name="int"),
    Case("Where", [fixed(np.zeros((0, 3), bool)), normal(3), normal(1)], name="empty"),
    Case("Identity", [normal(3, 4)]),
    Case("Identity", [fixed(np.array(["a", "b"], object))], name="string"),
]

SPECIAL = [-2.5, -1.5, -0.5, -0.0, 0.0, 0.5, 1.5, 2.5, INF, -INF, NAN]

PIECEWISE_CONSTANT = [
    *(Case(name, [fixed(SPECIAL)]) for name in ("Floor", "Ceil", "Round", "Sign", "IsNaN", "IsInf")),
    Case("Sign", [fixed([-3, 0, 3], "int8")], name="int"),
    Case("IsInf", [fixed(SPECIAL)], {"detect_negative": 0}, name="positive"),
    Case("IsInf", [fixed(SPECIAL)], {"detect_positive": 0}, name="negative"),
    Case("IsInf", [fixed(SPECIAL)], {"detect_positive": 0, "detect_negative": 0}, name="neither"),
]

BITS = [
    Case("BitShift", [fixed([1, 200, 7], "uint8"), fixed([1, 2, 9], "uint8")], {"direction": "LEFT"}, name="left"),
    Case("BitShift", [fixed([1, 200, 7], "uint8"), fixed([1, 2, 9], "uint8")], {"direction": "RIGHT"}, name="right"),
    *(Case(name, [fixed([[5, -3]], "int32"), fixed([[6], [12]], "int32")])
      for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    Case("BitwiseNot", [fixed([5, 0, 255], "uint8")]),
]

CASES: list[Case] = [*ARITHMETIC, *EXTREMA, *SELECTION, *PIECEWISE_CONSTANT, *BITS]
