"""Rows for softmax and its relatives."""

from __future__ import annotations

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, distinct, fixed, normal

LARGE = [[1e4, 1e4 - 1, -1e4], [-float("inf"), 0.0, 1.0], [300.0, 300.0, 300.0]]



def exact_log_softmax(x: Array) -> Array:
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


CASES: list[Case] = [
    *(Case(name, [normal(3, 4)]) for name in ("Softmax", "LogSoftmax")),
    *(Case(name, [normal(2, 3, 4)], {"axis": 1}, name="axis1") for name in ("Softmax", "LogSoftmax", "Hardmax")),
    *(Case(name, [normal(2, 3, 4)], {"axis": -3}, name="axis-3") for name in ("Softmax", "LogSoftmax", "Hardmax")),
    Case("Softmax", [fixed(LARGE)], name="large", smooth=False, note="infinite and far apart"),
    Case("LogSoftmax", [fixed(LARGE)], name="large", expected=exact_log_softmax, smooth=False,
         note="infinite and far apart; the reference takes the logarithm of the softmax"),
    *(Case(name, [normal(3)], name="vector") for name in ("Softmax", "LogSoftmax")),
    *(Case(name, [normal(0, 3)], name="empty") for name in ("Softmax", "LogSoftmax", "Hardmax")),
    *(Case(name, [normal(3, 4, dtype="float16")], name="half") for name in ("Softmax", "LogSoftmax")),
    *(Case(name, [normal(3, 4, dtype="float32")], name="float32") for name in ("Softmax", "LogSoftmax")),
    Case("Hardmax", [distinct(3, 4)]),
    Case("Hardmax", [fixed([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])], name="ties"),
]
