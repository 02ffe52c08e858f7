"""Rows for the activation functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, away, distinct, fixed, normal

EDGE = [-800.0, -50.0, -1.0, -1e-9, -0.0, 0.0, 1.0, 50.0, 800.0, float("nan")]


def logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def edge(op: str, **attributes: Any) -> Case:
    return Case(op, [fixed(EDGE)], attributes, name="edges", smooth=False, note="kinks and large arguments")


def exact_softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def exact_elu(x: Array, alpha: float = 1.0) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def exact_celu(x: Array, alpha: float = 1.0) -> Array:
    return np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0) / alpha)


def exact_hard_swish(x: Array) -> Array:
    """With 1 / 6 in double precision."""
    return np.asarray(x * np.clip(x / 6 + 0.5, 0, 1))


def exact_mish(x: Array) -> Array:
    return np.asarray(x * np.tanh(exact_softplus(x)))


def exact_gelu(x: Array, approximate: str = "none") -> Array:
    """In double precision, where the reference has single-precision constants; the tail by erfc."""
    if approximate == "tanh":
        return np.asarray(x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray([v / 2 * math.erfc(-v / math.sqrt(2)) for v in x.ravel().tolist()], x.dtype).reshape(x.shape)


LINEAR_PIECES = [
    Case("Relu", [away(3, 4)]),
    edge("Relu"),
    Case("Relu", [normal(2, 0)], name="empty"),
    Case("Relu", [fixed([-3, 2], "int32")], name="int"),
    Case("Relu", [normal(3, dtype="float16")], name="half"),
    Case("LeakyRelu", [away(3, 4)]),
    Case("LeakyRelu", [away(3, 4)], {"alpha": 2.5}, name="steep"),
    Case("LeakyRelu", [away(3, 4)], {"alpha": -0.5}, name="falling"),
    Case("LeakyRelu", [away(3, 4)], {"alpha": 0.0}, name="flat"),
    edge("LeakyRelu"),
    Case("PRelu", [away(2, 3, 4), away(3, 1)]),
    Case("PRelu", [away(2, 3), away()], name="scalar"),
    Case("ThresholdedRelu", [distinct(3, 4)]),
    Case("ThresholdedRelu", [distinct(3, 4)], {"alpha": 0.25}, name="low"),
    edge("ThresholdedRelu"),
    Case("HardSigmoid", [distinct(3, 4)]),
    Case("HardSigmoid", [fixed([-4.0, -0.3, 0.1, 4.0])], {"alpha": 0.5, "beta": 0.625}, name="steep"),
    edge("HardSigmoid"),
    Case("HardSwish", [fixed([-4.0, -2.9, 0.1, 1.0, 2.9, 4.0])], expected=exact_hard_swish),
    Case("HardSwish", [fixed(EDGE)], name="edges", expected=exact_hard_swish, smooth=False, note="kinks"),
    Case("Shrink", [fixed([-2.0, -1.3, -0.2, 0.3, 1.7, 2.5])], {"lambd": 1.5, "bias": 1.5}),
    Case("Shrink", [fixed([-2.0, -1.3, -0.2, 0.3, 1.7, 2.5])], name="default"),
    Case("Shrink", [fixed([-2, 1, 3], "int32")], {"lambd": 1.5, "bias": 1.0}, name="int"),
]

SMOOTH = [
    Case("Sigmoid", [normal(3, 4)]),
    edge("Sigmoid"),
    Case("Sigmoid", [normal()], name="rank0"),
    Case("Logistic", [fixed([-700.0, -40.0, -1.5, 0.0, 2.0, 40.0])], expected=logistic),
    Case("Logistic", [normal()], expected=logistic, name="rank0"),
    Case("Sigmoid", [normal(3, dtype="float32")], name="float32"),
    Case("Tanh", [normal(3, 4)]),
    edge("Tanh"),
    Case("Elu", [away(3, 4)]),
    Case("Elu", [away(3, 4)], {"alpha": 2.5}, name="alpha"),
    Case("Elu", [fixed(EDGE)], name="edges", expected=exact_elu, smooth=False, note="the reference cancels near 0"),
    Case("Celu", [away(3, 4)], {"alpha": 1.75}),
    Case("Celu", [fixed(EDGE)], name="edges", expected=exact_celu, smooth=False, note="the reference cancels near 0"),
    Case("Selu", [away(3, 4)]),
    Case("Selu", [away(3, 4)], {"alpha": 0.75, "gamma": 2.0}, name="attributes"),
    Case("Softplus", [normal(3, 4)]),
    Case("Softplus", [fixed(EDGE)], name="edges", expected=exact_softplus, smooth=False,
         note="the reference overflows"),
    Case("Softplus", [normal(3, dtype="float16")], name="half"),
    Case("Mish", [normal(3, 4)]),
    Case("Mish", [fixed(EDGE)], name="edges", expected=exact_mish, smooth=False, note="the reference overflows"),
    Case("Swish", [normal(3, 4)]),
    Case("Swish", [normal(3, 4)], {"alpha": 1.75}, name="alpha"),
    edge("Swish"),
    Case("SwiGLU", [normal(3, 4), normal(3, 4)], {"alpha": 1.25}),
    Case("Softsign", [away(3, 4)]),
    edge("Softsign"),
    Case("Gelu", [normal(3, 4)], expected=exact_gelu),
    Case("Gelu", [fixed(EDGE)], name="edges", expected=exact_gelu, smooth=False, note="large arguments"),
    Case("Gelu", [normal(3, dtype="float32")], name="float32"),
    Case("Gelu", [normal(3, 4)], {"approximate": "tanh"}, name="tanh", expected=exact_gelu),
    Case("Gelu", [fixed(EDGE)], {"approximate": "tanh"}, name="tanh-edges", expected=exact_gelu, smooth=False,
         note="large arguments"),
]

CASES: list[Case] = [*LINEAR_PIECES, *SMOOTH]
