"""Rows for the normalizations."""

from __future__ import annotations

from tests.op_cases import Case, normal, positive

CASES: list[Case] = [
    Case("BatchNormalization", [normal(3, 2, 4, 3), normal(2), normal(2), normal(2), positive(2)]),
    Case("BatchNormalization", [normal(3, 2, 4), normal(2), normal(2), normal(2), positive(2)],
         dict(training_mode=1, epsilon=2.0**-10, momentum=0.75), outputs=3, name="training"),
    Case("BatchNormalization", [normal(5, 2), normal(2), normal(2), normal(2), positive(2)],
         dict(training_mode=1), name="training-rank2"),
    Case("LayerNormalization", [normal(3, 2, 4), normal(4), normal(4)]),
    Case("LayerNormalization", [normal(3, 2, 4), normal(2, 1)], dict(axis=1), name="axis"),
    Case("RMSNormalization", [normal(3, 2, 4), normal(2, 1)], dict(axis=1)),
]
