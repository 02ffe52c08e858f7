"""Rows for the mathematical functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, away, const, fixed, held, normal, positive

SPECIAL = [-7.0, -1.0, -0.0, 0.0, 1e-300, 0.3, 1.0, 6.5, 30.0, float("inf"), -float("inf"), float("nan")]


def exact_erf(x: Array) -> Array:
    """The error function of the C library: the reference computes it in single precision."""
    return np.asarray([math.erf(v) for v in x.ravel().tolist()], x.dtype).reshape(x.shape)


def angle(y: Array, x: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(np.arctan(y / x))


ERF: dict[str, Any] = {"reference": False, "expected": exact_erf}
EVERYWHERE = [
    Case(name, [normal(3, 4)]) for name in
    ("Exp", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh")
]
ON_DOMAIN = [
    Case("Sqrt", [positive(3, 4)]),
    Case("Log", [positive(3, 4)]),
    Case("Reciprocal", [away(3, 4, gap=0.5)]),
    Case("Asin", [positive(3, 4, low=-0.9, high=0.9)]),
    Case("Acos", [positive(3, 4, low=-0.9, high=0.9)]),
    Case("Atanh", [positive(3, 4, low=-0.9, high=0.9)]),
    Case("Acosh", [positive(3, 4, low=1.3, high=3.0)]),
    Case("OneMinusSquare", [normal(3, 4)], expected=lambda x: 1 - x * x),
]
ANGLES = [
    Case("AtanOfQuotient", [away(3, 4, gap=0.5), away(3, 4, gap=0.5)], expected=angle),
    Case("AtanOfQuotient", [normal(3, 1), away(4, gap=0.5)], expected=angle, name="broadcast"),
    Case("AtanOfQuotient", [fixed([1.0, -2.0, 0.0, 0.0]), fixed([0.0, 0.0, 3.0, 0.0])], name="axes", smooth=False,
         expected=angle, note="a pole of the quotient"),
]
EDGES = [
    Case(name, [fixed(SPECIAL)], name="edges", smooth=False, note="poles, infinities and NaN")
    for name in ("Sqrt", "Exp", "Log", "Reciprocal", "Sin", "Atan", "Asinh", "Acosh", "Atanh")
]
POWERS = [
    *(Case("Pow", [away(3, 4, gap=0.5), const(p)], name=f"constant-{p}") for p in (0.0, 1.0, 2.0, 3.0, -1.0, -2.0, 4.0)),
    *(Case("Pow", [positive(3, 4), const(p)], name=f"constant-{p}") for p in (0.5, -0.5, 1.5, 2.7)),
    Case("Pow", [positive(3, 4), normal(3, 4)]),
    Case("Pow", [positive(3, 1), normal(4)], name="broadcast"),
    Case("Pow", [positive(3), held(fixed([2, 3, -1], "int64"))], name="int-exponent"),
    Case("Pow", [away(3, gap=0.5), const([2.0, 3.0, 0.0])], name="constant-vector"),
    Case("Pow", [fixed([2, 3], "int32"), fixed([3, 2], "int32")], name="int"),
    Case("Pow", [fixed([2, 3], "int64"), fixed([0.5, 2.0], "float32")], name="int-float"),
    Case("Pow", [normal(0, 3), const(3.0)], name="empty"),
]
DTYPES = [
    Case("Erf", [normal(3, 4)], **ERF),
    Case("Erf", [normal(2, 3, dtype="float32")], name="float32", **ERF),
    Case("Erf", [normal(2, 3, dtype="float16")], name="float16", **ERF),
    Case("Erf", [normal()], name="rank0", **ERF),
    Case("Erf", [normal(0, 2)], name="empty", **ERF),
    Case("Erf", [fixed(np.linspace(-7, 7, 20_001))], name="blocks", smooth=False, note="several blocks", **ERF),
    Case("Erf", [fixed(SPECIAL)], name="edges", smooth=False, note="infinities and NaN", **ERF),
    Case("Exp", [normal(3, dtype="float16")], name="half"),
    Case("Reciprocal", [away(3, dtype="float32")], name="float32"),
]

CASES: list[Case] = [*EVERYWHERE, *ON_DOMAIN, *ANGLES, *EDGES, *POWERS, *DTYPES]
