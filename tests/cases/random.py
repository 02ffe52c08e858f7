"""Rows for the random operators: types, bounds and, with a seed, values that repeat."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, const, fixed, held, normal, positive

TRUE, FALSE = const(True), const(False)


def kept(data: Array, *rest: Array, **attributes: Any) -> tuple[Array, Array]:
    return data, np.ones(data.shape, bool)


def none_left(data: Array, *rest: Array, **attributes: Any) -> tuple[Array, Array]:
    return np.zeros_like(data), np.zeros(data.shape, bool)


INFERENCE: dict[str, Any] = {"outputs": 2, "expected": kept}
RANDOM: dict[str, Any] = {"reference": False}

CASES: list[Case] = [
    Case("Dropout", [normal(3, 4)], name="no-mode", **INFERENCE),
    Case("Dropout", [normal(3, 4), const(0.3), FALSE], name="inference", **INFERENCE),
    Case("Dropout", [normal(3, 4), held(fixed(0.3)), fixed(False)], name="inference-fed", **INFERENCE),
    Case("Dropout", [normal(3, 4), fixed(0.3)], name="inference-ratio-asked", **INFERENCE),
    Case("Dropout", [normal(3, 4), const(0.0), TRUE], name="ratio-0", **INFERENCE),
    Case("Dropout", [normal(3, 4), const(1.0), TRUE], name="ratio-1", outputs=2, expected=none_left),
    Case("Dropout", [normal(3, 4), const(0.3), TRUE], {"seed": 3}, name="training", outputs=2, **RANDOM),
    Case("Dropout", [normal(3, 4), None, TRUE], {"seed": 3}, name="default-ratio", **RANDOM),
    Case("Dropout", [normal(3, 4), held(fixed(0.3)), fixed(True)], {"seed": 4}, name="training-fed", **RANDOM),
    Case("Dropout", [normal(3, 4), fixed(0.3), TRUE], {"seed": 4}, name="ratio-asked", refuses=True, **RANDOM),
    Case("Dropout", [normal(3, 4, dtype="float16"), const(0.3, "float32"), TRUE], name="half", **RANDOM),
    Case("RandomNormal", [], {"shape": (2, 3), "seed": 1.0}, **RANDOM),
    Case("RandomNormal", [], {"shape": (2, 3), "dtype": 11, "mean": 3.0, "scale": 0.0}, name="sure",
         expected=lambda **a: np.full((2, 3), 3.0)),
    Case("RandomUniform", [], {"shape": (), "dtype": 16}, **RANDOM),
    Case("RandomUniform", [], {"shape": (2,), "low": 3.0, "high": 3.0}, name="sure",
         expected=lambda **a: np.full(2, 3.0, np.float32)),
    Case("RandomNormalLike", [normal(2, 3)], **RANDOM),
    Case("RandomNormalLike", [normal(2, 0)], {"dtype": 1}, name="dtype", **RANDOM),
    Case("RandomUniformLike", [normal(2, 3)], **RANDOM),
    Case("RandomUniformLike", [fixed([1, 2], "int64")], {"dtype": 10}, name="dtype", **RANDOM),
    Case("Bernoulli", [positive(2, 3, low=0.1, high=0.9)], **RANDOM),
    Case("Bernoulli", [fixed([0.0, 1.0])], {"dtype": 9}, name="sure",
         expected=lambda x, dtype: np.array([False, True])),
    Case("Multinomial", [normal(2, 3)], {"sample_size": 5}, **RANDOM),
    Case("Multinomial", [fixed([[-np.inf, 0.0, -np.inf], [4.0, -np.inf, -np.inf]])], {"sample_size": 3, "dtype": 7},
         name="sure", expected=lambda x, sample_size, dtype: np.array([[1] * 3, [0] * 3])),
]
