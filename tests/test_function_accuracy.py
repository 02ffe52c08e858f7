"""Elementwise kernels against the C library, to a few units in the last place."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from flowgrad.ir.graph import Array
from flowgrad.ir.ops.registry import opdef

POINTS = np.concatenate([np.linspace(-7, 7, 60_001), np.geomspace(1e-300, 6, 5_000), -np.geomspace(1e-300, 6, 5_000)])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


FUNCTIONS: dict[str, Callable[[float], float]] = {
    "Erf": math.erf,
    "Sigmoid": sigmoid,
    "Elu": lambda x: x if x > 0 else math.expm1(x),
    "Softplus": lambda x: max(x, 0) + math.log1p(math.exp(-abs(x))),
    "Swish": lambda x: x * sigmoid(x),
    "Tanh": math.tanh,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 8e-16), ("float32", 4.5e-7)])
def test_the_relative_error_is_a_few_units_in_the_last_place(name: str, dtype: str, bound: float) -> None:
    x = POINTS.astype(dtype)
    x = x[np.abs(x) >= np.finfo(dtype).tiny]
    with np.errstate(all="ignore"):
        got = opdef(name).kernel(x).astype(np.float64)
    expected: Array = np.asarray([FUNCTIONS[name](v) for v in x.astype(np.float64).tolist()])
    assert np.max(np.abs(got - expected) / np.abs(expected)) < bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf_is_odd_and_never_leaves_its_range(dtype: str) -> None:
    x = POINTS.astype(dtype)
    y = opdef("Erf").kernel(x)
    assert np.array_equal(-y, opdef("Erf").kernel(-x))
    assert np.max(np.abs(y)) == 1
