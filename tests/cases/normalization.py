"""Rows for the normalizations. What onnx.reference computes in float32, or wrongly, is written out here in NumPy.

(Its LRN walks over the batch in place of the channels, its LpNormalization of order 1 sums without absolute values,
and its function bodies compute in float32 whatever comes in.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, away, fixed, normal, positive


def _group_norm(x: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float = 1e-5, **_: Any) -> Array:
    y = np.empty_like(x)
    for image, result in zip(x, y, strict=True):
        for part, goal in zip(np.split(image, num_groups), np.split(result, num_groups), strict=True):
            goal[...] = (part - part.mean()) / np.sqrt(part.var() + epsilon)
    tail = (1,) * (x.ndim - 2)
    return np.asarray(y * scale.reshape(-1, *tail) + bias.reshape(-1, *tail))


def _lrn(x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Array:
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        near = x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1]
        y[:, c] = x[:, c] / (bias + alpha / size * np.sum(near**2, axis=1)) ** beta
    return y


def _mean_variance(x: Array, *, axes: Sequence[int] = (0, 2, 3)) -> Array:
    along = tuple(axes)
    return np.asarray((x - x.mean(along, keepdims=True)) / (x.std(along, keepdims=True) + 1e-9))


CASES: list[Case] = [
    Case("BatchNormalization", [normal(3, 2, 4, 3), normal(2), normal(2), normal(2), positive(2)]),
    Case("BatchNormalization", [normal(3, 2, 4), normal(2), normal(2), normal(2), positive(2)],
         dict(training_mode=1, epsilon=2.0**-10, momentum=0.75), outputs=3, name="training"),
    Case("BatchNormalization", [normal(5, 2), normal(2), normal(2), normal(2), positive(2)],
         dict(training_mode=1), name="training-rank2"),
    Case("LayerNormalization", [normal(3, 2, 4), normal(4), normal(4)]),
    Case("LayerNormalization", [normal(3, 2, 4), normal(2, 1)], dict(axis=1), name="axis"),
    Case("LayerNormalization", [normal(2, 3, 4), normal(), normal(1, 4)], dict(axis=-2), name="narrow-scale"),
    Case("LayerNormalization", [normal(3, 8, dtype="float32"), normal(8, dtype="float32")], outputs=3, name="statistics"),
    Case("RMSNormalization", [normal(3, 2, 4), normal(2, 1)], dict(axis=1)),
    Case("RMSNormalization", [normal(3, 2, 4), normal(4)], name="last"),
    Case("InstanceNormalization", [normal(2, 3, 4, 2), normal(3), normal(3)]),
    Case("InstanceNormalization", [normal(2, 3, 4), normal(3), normal(3)], dict(epsilon=2.0**-6), name="line"),
    Case("GroupNormalization", [normal(2, 4, 3, 2), normal(4), normal(4)], dict(num_groups=2), expected=_group_norm),
    Case("GroupNormalization", [normal(2, 4), normal(4), normal(4)], dict(num_groups=2), name="rank2",
         expected=_group_norm),
    Case("LRN", [normal(2, 5, 3, 2)], dict(size=3, alpha=0.5, beta=0.75, bias=1.5), expected=_lrn),
    Case("LRN", [normal(2, 5, 3)], dict(size=4, alpha=0.5, beta=0.5), name="even", expected=_lrn),
    Case("LRN", [normal(2, 3, 2, 2)], dict(size=9), name="wide", expected=_lrn),
    Case("MeanVarianceNormalization", [normal(2, 3, 2, 4)], expected=_mean_variance),
    Case("MeanVarianceNormalization", [normal(2, 3, 4)], dict(axes=[0, -1]), name="axes", expected=_mean_variance),
    Case("LpNormalization", [normal(2, 3, 4)]),
    Case("LpNormalization", [away(2, 3, 4)], dict(axis=1, p=1), name="l1",
         expected=lambda x, **_: x / np.abs(x).sum(1, keepdims=True)),
    Case("LpNormalization", [fixed([[0.0, 0.0], [3.0, 4.0]])], name="zero", smooth=False,
         expected=lambda x, **_: np.array([[0.0, 0.0], [0.6, 0.8]]), note="the norm has a kink at zero"),
]
