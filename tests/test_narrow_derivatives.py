"""Derivatives in 16 bits and at large arguments: against the same derivative in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.types import DType, Type, dtype_of
from flowgrad.passes.differentiate import adjoint, tangent

EPSILON = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
DTYPES = [dtype_of(name) for name in EPSILON]


def derivatives(op: str, dtype: DType, x: Array, bar: Array, attributes: dict[str, Any]) -> tuple[Array, Array]:
    """Return x_bar for y_bar = ``bar`` and y_dot for x_dot = ``bar``, in float64, of ``op`` along axis 1."""
    graph = Graph("narrow")
    b = Builder(graph)
    value = graph.add_input("x", Type(dtype, x.shape))
    given = [b.ints([1])] if op.startswith("Reduce") else []
    y = b.add(op, [value, *given], attributes)
    y_bar, x_dot = graph.add_input("y_bar", y.type), graph.add_input("x_dot", value.type)
    (x_bar,) = adjoint(graph, [(y, y_bar)], [value])
    (y_dot,) = tangent(graph, [(value, x_dot)], [y])
    assert x_bar is not None and y_dot is not None
    graph.add_output(x_bar, "x_bar")
    graph.add_output(y_dot, "y_dot")
    feeds = {"x": x, "x_dot": bar, "y_bar": bar[:, :1] if given else bar}
    found = evaluate(graph, {name: array.astype(dtype.numpy) for name, array in feeds.items()})
    return found["x_bar"].astype(np.float64), found["y_dot"].astype(np.float64)


def assert_near(got: Array, expected: Any, rtol: float, atol: float = 1e-7) -> None:
    np.testing.assert_allclose(got, np.asarray(expected), rtol=rtol, atol=atol)


def shares_of(x: Array) -> Array:
    """Return the softmax of the rows, zeros where a row is -inf as a whole."""
    top = x.max(axis=1, keepdims=True)
    e = np.exp(x - np.where(np.isfinite(top), top, 0))
    return np.asarray(e / np.maximum(e.sum(axis=1, keepdims=True), 1))


ROWS = {
    "small": [[0.5, -0.25, 1.5, 0.0]],
    "large": [[1000.0, 1000.0, 992.0, -1000.0], [-1000.0, -1000.0, -1016.0, -1008.0]],
    "far": [[0.03125, -8.0, -12.0, -6.5]],
    "masked": [[1.0, -np.inf, 2.0, -np.inf], [-np.inf, 48.0, 48.0, 48.0]],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=list(EPSILON))
@pytest.mark.parametrize("rows", ROWS.values(), ids=list(ROWS))
def test_logarithms_of_sums(dtype: DType, rows: list[list[float]]) -> None:
    x = np.array(rows)
    bar = np.tile([1.0, 1.5, -0.5, 2.0], (len(x), 1))
    shares, epsilon = shares_of(x), EPSILON[dtype.name]
    x_bar, y_dot = derivatives("ReduceLogSumExp", dtype, x, bar, {"keepdims": 1})
    assert_near(x_bar, shares * bar[:, :1], 3 * epsilon)
    assert_near(y_dot, (shares * bar).sum(axis=1, keepdims=True), 3 * epsilon, max(2 * epsilon, 1e-7))


@pytest.mark.parametrize("dtype", DTYPES, ids=list(EPSILON))
@pytest.mark.parametrize("rows", ROWS.values(), ids=list(ROWS))
def test_logarithms_of_shares(dtype: DType, rows: list[list[float]]) -> None:
    x = np.array(rows)
    bar = np.tile([0.0, 1.5, 0.0, 0.0], (len(x), 1))
    shares, epsilon = shares_of(x), EPSILON[dtype.name]
    x_bar, y_dot = derivatives("LogSoftmax", dtype, x, bar, {"axis": 1})
    assert_near(x_bar, bar - shares * 1.5, 3 * epsilon)
    assert_near(y_dot, bar - (shares * bar).sum(axis=1, keepdims=True), 3 * epsilon, max(2 * epsilon, 1e-7))


def test_rows_masked_as_a_whole_get_nothing() -> None:
    x = np.full((2, 3), -np.inf)
    x_bar, y_dot = derivatives("ReduceLogSumExp", dtype_of("float32"), x, np.ones((2, 3)), {})
    assert not x_bar.any() and not y_dot.any()
