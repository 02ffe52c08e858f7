"""Rows for the convolutions."""

from __future__ import annotations

from tests.op_cases import Case, normal

CASES: list[Case] = [
    Case("Conv", [normal(2, 3, 5, 6), normal(4, 3, 3, 3)]),
    Case("Conv", [normal(2, 3, 5, 6), normal(4, 3, 3, 2), normal(4)], dict(pads=[1, 0, 1, 2]), name="bias-pads"),
    Case("Conv", [normal(2, 4, 7, 6), normal(6, 2, 3, 3), normal(6)],
         dict(group=2, strides=[2, 3], dilations=[2, 1], pads=[1, 2, 2, 1]), name="group"),
]
