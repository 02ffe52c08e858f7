"""Derivatives stay finite where a finite answer exists: masked poles, kinks, overflow; ties and kinks by convention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import RunError, ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.types import FLOAT32, FLOAT64, DType, Type, dtype_of
from flowgrad.passes.differentiate import adjoint, tangent

Function = Callable[[Any, Value], Value]


def derivatives(function: Function, at: Array) -> tuple[Array, Array, Array]:
    """Return first and second derivatives (reverse over reverse) and the first in forward mode of a map of elements."""
    graph = Graph("hazard")
    b = Builder(graph)
    x = graph.add_input("x", Type(dtype_of(at.dtype), at.shape))
    y = function(b, x)
    one = b.filled(1.0, y)
    (first,) = adjoint(graph, [(y, one)], [x], zero="allow")
    if first is None:
        return np.zeros_like(at), np.zeros_like(at), np.zeros_like(at)
    (second,) = adjoint(graph, [(first, b.filled(1.0, first))], [x], zero="allow")
    (forward,) = tangent(graph, [(x, b.filled(1.0, x))], [y])
    graph.add_output(first, "first")
    for value, name in ((second, "second"), (forward, "forward")):
        graph.add_output(b.zeros_like(x) if value is None else value, name)
    results = evaluate(graph, {"x": at})
    return results["first"], results["second"], results["forward"]


def masked(condition: str, limit: float, inner: Function) -> Function:
    """Return where(x > limit, inner(x), 0), with the comparison by name."""

    def build(b: Any, x: Value) -> Value:
        return b.Where(b.add(condition, [x, limit]), inner(b, x), b.scalar(0, x.type.dtype))  # type: ignore[no-any-return]

    return build


MASKED: dict[str, tuple[Function, list[float]]] = {
    "sqrt": (masked("Greater", 0.0, lambda b, x: b.Sqrt(x)), [0.0, -1.0, -0.0]),
    "log": (masked("Greater", 0.0, lambda b, x: b.Log(x)), [0.0, -1.0]),
    "reciprocal": (masked("Greater", 0.0, lambda b, x: b.Reciprocal(x)), [0.0, -1.0, -0.0]),
    "constant-over-x": (masked("Greater", 0.0, lambda b, x: b.Div(b.scalar(3, x.type.dtype), x)), [0.0]),
    "exp": (masked("Less", 50.0, lambda b, x: b.Exp(x)), [800.0, 1e30]),
    "log-of-exp": (masked("Less", 20.0, lambda b, x: b.Log(b.Add(b.Exp(x), 1.0))), [800.0]),
    "power-half": (masked("Greater", 0.0, lambda b, x: b.Pow(x, 0.5)), [0.0, -1.0]),
    "power-3/2": (masked("Greater", 0.0, lambda b, x: b.Pow(x, 1.5)), [0.0, -1.0]),
    "power-minus-1": (masked("Greater", 0.0, lambda b, x: b.Pow(x, -1.0)), [0.0, -1.0]),
    "power-minus-2": (masked("Greater", 0.0, lambda b, x: b.Pow(x, -2.0)), [0.0, -1.0]),
    "asin": (masked("Less", 1.0, lambda b, x: b.Asin(x)), [1.0]),
    "acos": (masked("Less", 1.0, lambda b, x: b.Acos(x)), [1.0]),
    "atanh": (masked("Less", 1.0, lambda b, x: b.Atanh(x)), [1.0]),
    "acosh": (masked("Greater", 1.0, lambda b, x: b.Acosh(x)), [1.0]),
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=["float32", "float64"])
def test_a_masked_pole_gives_zero(name: str, dtype: DType) -> None:
    function, points = MASKED[name]
    for found in derivatives(function, np.asarray(points, dtype.numpy)):
        assert np.array_equal(found, np.zeros(len(points)))


def test_a_masked_quotient_of_zeros_gives_zero() -> None:
    function = masked("Greater", 0.0, lambda b, x: b.Div(b.Sin(x), x))
    first, _, forward = derivatives(function, np.array([0.0, -0.0]))
    assert np.array_equal(first, [0.0, 0.0]) and np.array_equal(forward, [0.0, 0.0])


@pytest.mark.parametrize("name", ["sqrt", "log", "reciprocal", "power-half"])
def test_an_unmasked_pole_is_infinite(name: str) -> None:
    operations: dict[str, Function] = {
        "sqrt": lambda b, x: b.Sqrt(x), "log": lambda b, x: b.Log(x), "reciprocal": lambda b, x: b.Reciprocal(x),
        "power-half": lambda b, x: b.Pow(x, 0.5),
    }
    first, _, forward = derivatives(operations[name], np.array([0.0]))
    assert np.isinf(first).all() and np.isinf(forward).all()


EXACT: dict[str, tuple[Function, list[float], list[float], list[float]]] = {
    "square": (lambda b, x: b.Pow(x, 2.0), [0.0, -3.0], [0.0, -6.0], [2.0, 2.0]),
    "cube": (lambda b, x: b.Pow(x, 3.0), [0.0, -2.0], [0.0, 12.0], [0.0, -12.0]),
    "power-1": (lambda b, x: b.Pow(x, 1.0), [0.0, -2.0], [1.0, 1.0], [0.0, 0.0]),
    "power-0": (lambda b, x: b.Pow(x, 0.0), [0.0, -2.0], [0.0, 0.0], [0.0, 0.0]),
    "power-minus-1": (lambda b, x: b.Pow(x, -1.0), [-2.0], [-0.25], [-0.25]),
    "abs": (lambda b, x: b.Abs(x), [0.0, -2.0], [0.0, -1.0], [0.0, 0.0]),
    "relu": (lambda b, x: b.Relu(x), [0.0, -2.0, 3.0], [0.0, 0.0, 1.0], [0.0] * 3),
    "clip": (lambda b, x: b.Clip(x, -1.0, 1.0), [-1.0, 1.0, 2.0], [1.0, 1.0, 0.0], [0.0] * 3),
    "max-of-twins": (lambda b, x: b.Max(x, x), [2.0], [1.0], [0.0]),
    "max-of-tie": (lambda b, x: b.Max(b.Mul(x, 3.0), x, b.scalar(0, x.type.dtype)), [0.0], [4.0 / 3.0], [0.0]),
    "min-of-tie": (lambda b, x: b.Min(b.Mul(x, 3.0), x), [0.0, 1.0], [2.0, 1.0], [0.0, 0.0]),
    "x-times-x": (lambda b, x: b.Mul(x, x), [3.0], [6.0], [2.0]),
    "x-over-x": (lambda b, x: b.Div(x, x), [3.0], [0.0], [0.0]),
    "sigmoid-far": (lambda b, x: b.Sigmoid(x), [-1e3, 1e3], [0.0, 0.0], [0.0, 0.0]),
    "softplus-far": (lambda b, x: b.Softplus(x), [-1e3, 1e3], [0.0, 1.0], [0.0, 0.0]),
    "elu-far": (lambda b, x: b.Elu(x), [-1e3, 1e3], [0.0, 1.0], [0.0, 0.0]),
    "gelu-far": (lambda b, x: b.Gelu(x), [-1e3, 1e3], [0.0, 1.0], [0.0, 0.0]),
    "mish-far": (lambda b, x: b.Mish(x), [-1e3, 1e3], [0.0, 1.0], [0.0, 0.0]),
    "swish-far": (lambda b, x: b.Swish(x), [-1e3, 1e3], [0.0, 1.0], [0.0, 0.0]),
    "tanh-far": (lambda b, x: b.Tanh(x), [-1e3, 1e3], [0.0, 0.0], [0.0, 0.0]),
}


@pytest.mark.parametrize("name", EXACT)
def test_kinks_ties_and_far_arguments(name: str) -> None:
    function, points, first, second = EXACT[name]
    found = derivatives(function, np.asarray(points))
    for got, expected in zip(found, (first, second, first), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-14, atol=0)


def test_the_exponent_of_a_power_at_zero_has_the_derivative_zero() -> None:
    graph = Graph("exponent")
    b = Builder(graph)
    x, y = (graph.add_input(n, Type(FLOAT64, (4,))) for n in ("x", "y"))
    z = b.Pow(x, y)
    (y_bar,) = adjoint(graph, [(z, b.filled(1.0, z))], [y])
    assert y_bar is not None
    graph.add_output(y_bar, "y_bar")
    bases, exponents = np.array([0.0, 0.0, 2.0, 2.0]), np.array([2.0, 0.0, 3.0, -1.0])
    found = evaluate(graph, {"x": bases, "y": exponents})["y_bar"]
    np.testing.assert_allclose(found, [0.0, 0.0, 8 * np.log(2), np.log(2) / 2], rtol=1e-14)


@pytest.mark.parametrize("op", ["Div", "Mod"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_integer_division_by_zero_is_a_typed_error(op: str, dtype: str) -> None:
    graph = Graph("division")
    b = Builder(graph)
    x, y = (graph.add_input(n, Type(dtype_of(dtype), (2,))) for n in ("x", "y"))
    graph.add_output(b.add(op, [x, y]), "z")
    with pytest.raises(RunError) as caught:
        evaluate(graph, {"x": np.array([1, 2], dtype), "y": np.array([1, 0], dtype)})
    assert caught.value.code == "division"


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64"])
def test_the_least_integer_over_minus_one_wraps(dtype: str) -> None:
    graph = Graph("division")
    b = Builder(graph)
    x, y = (graph.add_input(n, Type(dtype_of(dtype), ())) for n in ("x", "y"))
    graph.add_output(b.Div(x, y), "z")
    least = np.array(np.iinfo(dtype).min, dtype)
    assert evaluate(graph, {"x": least, "y": np.array(-1, dtype)})["z"] == least


@pytest.mark.parametrize("op", ["BatchNormalization", "InstanceNormalization"])
def test_a_vector_that_would_broadcast_over_channels_is_refused(op: str) -> None:
    graph = Graph("channels")
    x = graph.add_input("x", Type(FLOAT64, (2, 3, 4)))
    one = graph.add_constant(np.ones(1), "one")
    vectors = [one] * (4 if op == "BatchNormalization" else 2)
    with pytest.raises(ValidationError, match="for each channel"):
        Builder(graph).add(op, [x, *vectors])


@pytest.mark.parametrize("op", ["GlobalAveragePool", "MeanVarianceNormalization"])
def test_a_mean_over_nothing_is_no_number_and_no_warning(op: str) -> None:
    graph = Graph("nothing")
    x = graph.add_input("x", Type(FLOAT64, (2, 3, 0, 4)))
    graph.add_output(Builder(graph).add(op, [x]), "y")
    y = evaluate(graph, {"x": np.zeros((2, 3, 0, 4))})["y"]
    assert np.isnan(y).all()
