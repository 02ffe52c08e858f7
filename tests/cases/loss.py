"""Rows for the classification losses."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, In, fixed, normal, positive

LABELS = fixed([2, 0, 1, 2], "int64")
MAPS = fixed([[[0, 2], [1, 1]], [[2, 2], [0, 1]]], "int64")
WITH_IGNORED = fixed([2, 7, 1, 0], "int64")
NLL, SCE, SOFT = "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss", "SoftmaxCrossEntropy"


def cross_entropy(logits: Array, target: Array) -> Array:
    """log(sum(exp(logits))) - sum(target logits), by extended precision."""
    wide = logits.astype(np.longdouble)
    return np.asarray(np.log(np.exp(wide).sum(-1)) - (target * wide).sum(-1), logits.dtype)


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
] + [
    Case(SOFT, [normal(4, 3), positive(4, 3)], expected=cross_entropy),
    Case(SOFT, [normal(2, 2, 3), fixed([[[0.0, 1.0, 0.0], [0.2, 0.3, 0.5]], [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]])],
         expected=cross_entropy, name="shares"),
    Case(SOFT, [normal(3), fixed([0.25, 0.5, 0.25])], expected=cross_entropy, name="vector"),
    Case(SOFT, [normal(0, 3), positive(0, 3)], expected=cross_entropy, name="empty"),
    Case(SOFT, [normal(4, 3, dtype="float32"), positive(4, 3, dtype="float32")], expected=cross_entropy, name="float32"),
    Case(SOFT, [fixed([[-math.inf, 0.0, 0.0], [1e4, 0.0, -1e4]]), fixed([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])],
         expected=lambda logits, target: np.array([math.log(2), 2e4]), name="far-apart", smooth=False,
         note="an infinite logit, and rounding of large numbers"),
]
