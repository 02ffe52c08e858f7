"""Value and gradient tell the same story: formulas are repaired before they are differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.types import FLOAT32, FLOAT64, Dim, DimLike, Type, dtype_of
from flowgrad.passes.manager import PassManager

Formula = Callable[[Builder, Value], Value]


def softplus(b: Builder, x: Value) -> Value:
    return b.Log(b.Add(b.add("Exp", [x], name="e"), 1.0))


def log_sum_exp(b: Builder, x: Value) -> Value:
    return b.Log(b.ReduceSum(b.Exp(x), keepdims=0))


def last_log_softmax(b: Builder, x: Value) -> Value:
    return b.Gather(b.Log(b.Softmax(x)), [1])


def norm(b: Builder, x: Value) -> Value:
    return b.Sqrt(b.ReduceSum(b.Mul(x, x), keepdims=0))


def quotient(b: Builder, x: Value) -> Value:
    e = b.Exp(x)
    return b.Div(e, b.ReduceSum(e, [0], keepdims=1))


CASES: list[tuple[Formula, list[float], list[float]]] = [
    (softplus, [1000.0, 0.1], [1.0, 1 / (1 + np.exp(-0.1))]),
    (log_sum_exp, [1000.0, 0.1], [1.0, 0.0]),
    (last_log_softmax, [1000.0, 0.0], [-1.0, 1.0]),
    (norm, [0.0, 0.0], [0.0, 0.0]),
    (norm, [3.0, 4.0], [0.6, 0.8]),
    (quotient, [1000.0, 0.0], [0.0, 0.0]),
]


def model(formula: Formula) -> fg.Model:
    """The sum of a formula of a vector x."""
    graph = Graph("formula")
    b = Builder(graph)
    graph.add_output(b.ReduceSum(formula(b, graph.add_input("x", Type(FLOAT64, (2,)))), keepdims=0), "y")
    return fg.Model(graph)


@pytest.mark.parametrize(("formula", "x", "gradient"), CASES)
def test_the_gradient_is_that_of_the_repaired_formula(formula: Formula, x: list[float], gradient: list[float]) -> None:
    point = np.array(x)
    found = model(formula)
    derived = fg.value_and_grad(found)
    assert any("repaired" in note for note in derived.notes)
    np.testing.assert_allclose(derived(x=point)["x_grad"], gradient, rtol=1e-12, atol=1e-300)
    assert derived(x=point)["y"] == found(x=point)["y"]
    direction = np.array([1.0, 0.5])
    tangent = fg.jvp(found)(x=point, x_tangent=direction)["y_tangent"]
    np.testing.assert_allclose(tangent, np.dot(gradient, direction), rtol=1e-12, atol=1e-300)
    assert np.isfinite(fg.hvp(found)(x=point, x_tangent=direction)["x_hvp"]).all()


def test_both_stay_as_written_if_asked() -> None:
    found = model(softplus)
    derived = fg.value_and_grad(found, stabilize=False)
    assert not any("repaired" in note for note in derived.notes)
    outputs = derived(x=np.array([1000.0, 0.1]))
    assert outputs["y"] == np.inf
    assert outputs["x_grad"][0] != 1
    again = fg.jvp(derived, of="y")(x=np.array([1000.0, 0.1]), x_tangent=np.ones(2))
    assert again["y"] == np.inf  # what was made of it is not repaired either


def test_named_inner_values_and_overridden_nodes_are_left_alone() -> None:
    found = model(softplus)
    gradient = fg.grad(found, wrt=["e"], keep=["add"])(x=np.array([0.5, 0.1]))
    np.testing.assert_allclose(gradient["e_grad"], 1 / (1 + np.exp([0.5, 0.1])), rtol=1e-12)
    np.testing.assert_allclose(gradient["add"], 1 + np.exp([0.5, 0.1]), rtol=1e-12)
    through = fg.override_adjoint(found, fg.straight_through, op="Exp")
    outputs = fg.grad(through)(x=np.array([0.5, 0.1]))
    np.testing.assert_allclose(outputs["x_grad"], 1 / (1 + np.exp([0.5, 0.1])), rtol=1e-12)


def test_a_differentiated_output_that_is_an_existing_value_is_repaired_too() -> None:
    found = fg.load(b"graph @g (%x: f64[]) -> (%y: f64[]) { %e: f64[] = Exp(%x) %y: f64[] = Log(%e) }")
    outputs = fg.value_and_grad(found)(x=np.array(1000.0))
    assert outputs["y"] == 1000 and outputs["x_grad"] == 1


def root_mean_square(b: Builder, x: Value) -> Value:
    """As exporters write a standard deviation: the count and the one less are computed from the shape."""
    count = b.cast(b.Size(x), FLOAT64)
    scaled = b.Mul(b.ReduceMean(b.Mul(x, x), keepdims=0), count)
    return b.Sqrt(b.Div(scaled, b.Sub(count, 1.0)))


def half_norm(b: Builder, x: Value) -> Value:
    return b.Pow(b.ReduceSum(b.Pow(b.Abs(x), 0.5), keepdims=0), 2.0)


def cubic_norm(b: Builder, x: Value) -> Value:
    return b.Pow(b.ReduceSum(b.Pow(b.Abs(x), 3.0), keepdims=0), 1 / 3)


def even_norm(b: Builder, x: Value) -> Value:
    return b.Pow(b.ReduceSum(b.Pow(x, 4.0), keepdims=0), 0.25)


@pytest.mark.parametrize(("formula", "x", "gradient"), [
    (root_mean_square, [0.0, 0.0], [0.0, 0.0]),
    (root_mean_square, [3.0, 4.0], [0.6, 0.8]),
    (half_norm, [0.0, 4.0], [0.0, 1.0]),
    (half_norm, [1.0, 4.0], [3.0, 1.5]),
    (cubic_norm, [0.0, 0.0], [0.0, 0.0]),
    (cubic_norm, [0.0, -2.0], [0.0, -1.0]),
    (even_norm, [0.0, 0.0], [0.0, 0.0]),
    (even_norm, [0.0, -2.0], [0.0, -1.0]),
])
@pytest.mark.parametrize("extent", [2, Dim.named("N")], ids=["static", "symbolic"])
def test_norms_have_slope_zero_where_nothing_but_zeros_is_summed(
    formula: Formula, x: list[float], gradient: list[float], extent: DimLike
) -> None:
    graph = Graph("norms")
    graph.add_output(formula(Builder(graph), graph.add_input("x", Type(FLOAT64, (extent,)))), "y")
    found, point, direction = fg.Model(graph), np.array(x), np.array([1.0, 0.5])
    np.testing.assert_allclose(fg.grad(found)(x=point)["x_grad"], gradient, rtol=1e-12, atol=1e-300)
    tangent = fg.jvp(found)(x=point, x_tangent=direction)["y_tangent"]
    np.testing.assert_allclose(tangent, np.dot(gradient, direction), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(fg.value_and_grad(found)(x=point)["y"], found(x=point)["y"], rtol=1e-12)


# ---- infinite operands ------------------------------------------------------------------------------------------------------


def shifted_quotient(b: Builder, x: Value) -> Value:
    return quotient(b, b.Sub(x, b.ReduceMax(x, [0], keepdims=1)))


def one_over(b: Builder, x: Value) -> Value:
    return b.Reciprocal(b.Add(b.Exp(b.Neg(x)), 1.0))


def tanh(b: Builder, x: Value) -> Value:
    p, q = b.Exp(x), b.Exp(b.Neg(x))
    return b.Div(b.Sub(p, q), b.Add(p, q))


INFINITE: list[Formula] = [
    softplus, log_sum_exp, quotient, shifted_quotient, one_over, tanh, norm,
    lambda b, x: b.Log(b.Softmax(x)), lambda b, x: b.Log(b.Sigmoid(x)), lambda b, x: b.Div(b.Exp(x), b.Add(b.Exp(x), 1.0)),
]


def limit_of(values: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """What far points tell of a limit: numbers, infinities, NaN where they do not agree."""
    far = [np.where(np.abs(v) > 1e3, np.copysign(np.inf, v), v) for v in values]
    return np.where(np.isclose(far[0], far[1], atol=1e-4), far[0], np.nan)


@pytest.mark.parametrize("formula", INFINITE)
@pytest.mark.parametrize("row", [[np.inf, 0.5], [np.inf, np.inf], [-np.inf, 0.5], [-np.inf, -np.inf], [np.inf, -np.inf]])
def test_at_infinity_a_repaired_formula_is_its_limit_or_no_number(formula: Formula, row: list[float]) -> None:
    graph = Graph("infinite")
    b = Builder(graph)
    graph.add_output(formula(b, graph.add_input("x", Type(FLOAT64, (2,)))), "y")
    found, x = fg.Model(graph), np.array(row)
    derived = fg.vjp(found)
    far = [np.where(np.isinf(x), np.sign(x) * np.array(size), x) for size in ([1e4, 3e4], [3e4, 1e4])]
    seed = np.array([2.0, 1.0]) if found(x=x)["y"].ndim else np.array(1.0)
    outputs, limits = derived(x=x, y_grad=seed), [derived(x=point, y_grad=seed) for point in far]
    for name in ("y", "x_grad"):
        got, limit = outputs[name], limit_of([at[name] for at in limits])
        is_masked = name == "x_grad" and (x == -np.inf).all()  # what sums nothing has no slope
        assert (np.isnan(got) | np.isclose(got, limit, atol=1e-4) | (is_masked & (got == 0))).all(), name
    if np.isnan(outputs["y"]).all():
        assert np.isnan(outputs["x_grad"]).all()
    np.testing.assert_array_equal(outputs["y"], found(x=x)["y"])


# ---- powers of roots --------------------------------------------------------------------------------------------------------


def mean_root(b: Builder, x: Value) -> Value:
    return b.Sqrt(b.ReduceMean(b.Mul(x, x), keepdims=0))


def squared(b: Builder, r: Value) -> Value:
    return b.Mul(r, r)


POWERS: dict[str, tuple[Formula, float]] = {
    "mean": (lambda b, x: squared(b, mean_root(b, x)), 2 / 3),
    "mean, exponent": (lambda b, x: b.Pow(mean_root(b, x), 2.0), 2 / 3),
    "multiple of the mean": (lambda b, x: squared(b, b.Mul(b.Neg(mean_root(b, x)), 2.0)), 8 / 3),
    "multiple of the norm": (lambda b, x: squared(b, b.Div(norm(b, x), -3.0)), 2 / 9),
    "half the squares": (lambda b, x: squared(b, b.Sqrt(b.Mul(b.ReduceSumSquare(x, keepdims=0), 0.5))), 1.0),
    "exponent one half": (lambda b, x: squared(b, b.Pow(b.ReduceMean(b.Mul(x, x), keepdims=0), 0.5)), 2 / 3),
    "fourth root": (lambda b, x: squared(b, squared(b, b.Pow(b.ReduceSumSquare(x, keepdims=0), 0.25))), 2.0),
    "fourth power": (lambda b, x: squared(b, squared(b, mean_root(b, x))), 0.0),
    "third power": (lambda b, x: b.Mul(squared(b, mean_root(b, x)), mean_root(b, x)), 0.0),
    "cube of a root": (lambda b, x: b.Pow(b.Sqrt(b.ReduceSumSquare(squared(b, x), keepdims=0)), 3.0), 0.0),
    "of a computed count": (lambda b, x: squared(b, b.Div(norm(b, x), b.Sqrt(b.cast_like(b.Size(x), x)))), 2 / 3),
}
"""Formulas whose second derivative at 0 is a multiple of the identity."""


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("name", POWERS)
def test_powers_of_roots_are_smooth_at_zero(name: str, dtype: str) -> None:
    formula, curvature = POWERS[name]
    kind = dtype_of(dtype)
    graph = Graph("powers")
    graph.add_output(formula(Builder(graph), graph.add_input("x", Type(kind, (3,)))), "y")
    found, zero, direction = fg.Model(graph), np.zeros(3, dtype), np.array([1, 2, -4], dtype)
    assert not fg.grad(found)(x=zero)["x_grad"].any()
    got = fg.hvp(found)(x=zero, x_tangent=direction)["x_hvp"]
    np.testing.assert_allclose(got, curvature * direction, rtol=2.0**-9 if dtype == "float16" else 1e-12)
    there = np.array([1.5, -0.5, 0.25], dtype)
    np.testing.assert_allclose(fg.value_and_grad(found)(x=there)["y"], found(x=there)["y"],
                               rtol=2.0**-8 if dtype == "float16" else 1e-12)


def test_powers_of_roots_stay_no_number_below_zero() -> None:
    for form in (lambda b, x: squared(b, b.Mul(b.Sqrt(x), 2.0)), lambda b, x: b.Pow(b.Pow(x, 0.25), 8.0)):
        found = model(form)
        outputs = fg.value_and_grad(found)(x=np.array([-1.0, 1.0]))
        assert np.isnan(outputs["y"]) and np.isnan(found(x=np.array([-1.0, 1.0]))["y"])
        assert np.isfinite(fg.grad(found)(x=np.array([0.0, 1.0]))["x_grad"]).all()


@pytest.mark.parametrize("form", [lambda b, x: b.ReduceL2(x, keepdims=0),
                                  lambda b, x: b.Mul(b.Sqrt(b.ReduceSum(x, keepdims=0)), 2.0)])
def test_a_root_that_a_power_no_longer_goes_through_is_refused(form: Formula) -> None:
    graph = Graph("two uses")
    b = Builder(graph)
    r = form(b, graph.add_input("x", Type(FLOAT64, (2,))))
    graph.add_output(b.Add(squared(b, r), b.Mul(r, 3.0)), "y")
    before, name = fg.Model(graph), r.name
    point = np.array([3.0, 4.0])
    outputs = fg.grad(before, wrt=name, keep=[name])(x=point)
    np.testing.assert_allclose(outputs[f"{name}_grad"], 2 * outputs[name] + 3)
    after = fg.Model(PassManager("stabilize").run(graph).model)
    with pytest.raises(InputError, match="another way"):
        fg.grad(after, wrt=name)


@pytest.mark.parametrize("spelled", [
    lambda b, x: b.Div(1.0, b.Add(b.Exp(b.Neg(x)), 1.0)), lambda b, x: b.Reciprocal(b.Add(b.Exp(x), 1.0)),
    lambda b, x: b.Div(b.Exp(x), b.Add(b.Exp(x), 1.0)),
], ids=["negative", "of-negated", "positive"])
def test_a_sigmoid_that_is_spelled_out_keeps_its_digits_in_onnxruntime(spelled: Any) -> None:
    """The Sigmoid of onnxruntime is 0 below -18, and y (1 - y) is 0 above."""
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = Graph("sigmoid")
    x = graph.add_input("x", Type(FLOAT32, (8,)))
    graph.add_output(spelled(Builder(graph), x), "y")
    array = np.array([-80, -50, -19, -2, 2, 19, 50, 80], np.float32)
    gradient = fg.vjp(fg.Model(graph))
    session = onnxruntime.InferenceSession(gradient.to_onnx().SerializeToString())
    feeds = {"x": array, "y_grad": np.ones(8, np.float32)}
    exact = np.exp(array.astype(np.float64))
    slope, mine = exact / (1 + exact) ** 2, gradient(feeds)
    y, x_grad = session.run(["y", "x_grad"], feeds)
    np.testing.assert_allclose(y, fg.Model(graph).compile(engine="numpy").run({"x": array})["y"], rtol=2e-5)
    np.testing.assert_allclose(np.abs(x_grad), slope, rtol=2e-5)
    np.testing.assert_allclose(mine["x_grad"], x_grad, rtol=2e-5)
