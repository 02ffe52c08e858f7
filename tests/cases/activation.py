"""Rows for the activation functions."""

from __future__ import annotations

from tests.op_cases import Case, away, fixed, normal

EDGE = [-800.0, -50.0, -1.0, -0.0, 0.0, 1.0, 50.0, 800.0, float("inf"), -float("inf"), float("nan")]

CASES: list[Case] = [
    Case("Relu", [away(3, 4)]),
    Case("Relu", [fixed(EDGE)], name="edges", smooth=False, note="kink and infinities"),
    Case("Sigmoid", [normal(3, 4)]),
    Case("Sigmoid", [fixed(EDGE)], name="edges", smooth=False, note="infinities"),
    Case("Tanh", [normal(3, 4)]),
]
