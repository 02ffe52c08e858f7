"""Rows for the classification losses."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from tests.op_cases import Case, In, fixed, normal, positive

LABELS = fixed([2, 0, 1, 2], "int64")
MAPS = fixed([[[0, 2], [1, 1]], [[2, 2], [0, 1]]], "int64")
WITH_IGNORED = fixed([2, 7, 1, 0], "int64")
NLL, SCE = "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"


def rows(op: str, name: str, inputs: list[In], **attributes: Any) -> list[Case]:
    return [Case(op, inputs, {**attributes, "reduction": r}, name=f"{name}-{r}") for r in ("mean", "sum", "none")]


CASES: list[Case] = [
    case
    for op in (NLL, SCE)
    for case in itertools.chain(
        rows(op, "plain", [normal(4, 3), LABELS]),
        rows(op, "weighted", [normal(4, 3), LABELS, positive(3)]),
        rows(op, "maps", [normal(2, 3, 2, 2), MAPS, positive(3)]),
        rows(op, "ignored", [normal(4, 3), WITH_IGNORED], ignore_index=7),
        rows(op, "ignored-weighted", [normal(2, 3, 2, 2), MAPS, positive(3)], ignore_index=2),
        rows(op, "int32", [normal(4, 3), fixed([2, 0, 1, 2], "int32")]),
        rows(op, "float32", [normal(4, 3, dtype="float32"), LABELS]),
    )
] + [
    Case(SCE, [normal(4, 3), LABELS, positive(3)], {"reduction": r}, outputs=2, name=f"log-prob-{r}")
    for r in ("mean", "none")
] + [
    Case(SCE, [fixed([[1e4, 0.0, -1e4], [0.0, 1e4, 1e4]]), fixed([1, 0], "int64")], name="far-apart", smooth=False,
         expected=lambda scores, labels: np.array(1e4 + math.log(2) / 2), note="rounding of large numbers"),
]
