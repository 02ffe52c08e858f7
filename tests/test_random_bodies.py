"""Random numbers drawn in the bodies of If, Loop and Scan: every derivative sees those of the value beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import UnsupportedError
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.types import BOOL, INT64, Dim, Type
from tests.control_graphs import add_if, add_loop, add_scan, f64

X = np.array([1.5, -2.0, 3.0, 0.7, 1.1, -0.4])
W = np.array([0.3, 1.0, -0.5, 2.0, 0.1, 0.9])


def dropped(b: Builder, x: Value) -> Value:
    return b.Dropout(x, 0.4, b.value(True))


def noisy(b: Builder, x: Value) -> Value:
    return b.Mul(x, b.add("RandomUniformLike", [x], {"low": 1.0, "high": 2.0}))


KINDS = ["if", "branches", "loop", "scan"]


def drawing(kind: str, noise: Callable[[Builder, Value], Value], extent: Any = 6) -> fg.Model:
    """Return y = m x w with random numbers m, drawn in a body and again behind it, and the scalar s = sum of y^2 x."""
    graph = Graph(kind)
    b = Builder(graph)
    x, w = graph.add_input("x", f64(extent)), graph.add_input("w", f64(extent))
    c, k = graph.add_input("c", Type(BOOL, ())), graph.add_input("k", Type(INT64, ()))
    if kind == "if":
        y = add_if(b, c, [x, w], lambda b, x, w: [noise(b, b.Mul(x, w))], lambda b, x, w: [b.Mul(b.Mul(x, w), 3.0)]).output()
    elif kind == "branches":
        y = add_if(b, c, [x, w], lambda b, x, w: [noise(b, b.Mul(noise(b, x), w))], lambda b, x, w: [noise(b, b.Mul(x, w))]).output()
    elif kind == "loop":
        y = add_loop(b, k, None, [b.Mul(x, w)], [], lambda b, i, going, s: (going, noise(b, s))).output()
    else:
        y = add_scan(b, [], [x, w], [], lambda b, x, w: [noise(b, b.Mul(x, w))]).output()
    y = noise(b, y)
    graph.add_output(y, "y")
    graph.add_output(b.ReduceSum(b.Mul(b.Mul(y, y), x), keepdims=0), "s")
    return fg.Model(graph)


def run(model: fg.Model, **more: Array) -> dict[str, Array]:
    feeds = {"x": X, "w": W, "c": np.array(True), "k": np.array(3), **more}
    return dict(model.compile().run({v.name: feeds[v.name] for v in model.inputs}, seed=7))


both = pytest.mark.parametrize("noise", [dropped, noisy])
kinds = pytest.mark.parametrize("kind", KINDS)


@both
@kinds
@pytest.mark.parametrize("extent", [6, Dim.named("N")], ids=str)
def test_jacobians(kind: str, noise: Any, extent: Any) -> None:
    model = drawing(kind, noise, extent)
    for mode, chunk_size in (("rev", None), ("rev", 4), ("fwd", None)):
        found = run(fg.jacobian(model, "y", ["x", "w"], keep="y", mode=mode, chunk_size=chunk_size))  # type: ignore[arg-type]
        np.testing.assert_allclose(found["y_x_jacobian"], np.diag(found["y"] / X), rtol=1e-12)
        np.testing.assert_allclose(found["y_w_jacobian"], np.diag(found["y"] / W), rtol=1e-12)
        assert len(set(np.round(found["y"] / (X * W), 9))) > 1  # numbers were drawn


@both
@kinds
def test_many_cotangents_and_tangents(kind: str, noise: Any) -> None:
    model, many = drawing(kind, noise), np.arange(1, 19.0).reshape(3, 6)
    found = run(fg.vjp(model, "y", "x", seeds=3), y_grad=many)
    np.testing.assert_allclose(found["x_grad"], many * found["y"] / X, rtol=1e-12)
    found = run(fg.jvp(model, "y", "x", seeds=3), x_tangent=many)
    np.testing.assert_allclose(found["y_tangent"], many * found["y"] / X, rtol=1e-12)


@both
@kinds
def test_second_derivatives(kind: str, noise: Any) -> None:
    """s = sum of m^2 w^2 x^3: its second derivative is 6 y^2 / x."""
    model, many = drawing(kind, noise), np.arange(1, 19.0).reshape(3, 6)
    found = run(fg.hessian(model, "s", "x", keep="y"))
    np.testing.assert_allclose(found["x_x_hessian"], np.diag(6 * found["y"]**2 / X), rtol=1e-12)
    found = run(fg.hvp(model, "s", "x", seeds=3), x_tangent=many)
    np.testing.assert_allclose(found["x_hvp"], many * 2 * found["x_grad"] / X, rtol=1e-12)


@both
@kinds
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_gradients_of_examples_and_what_is_computed_again(kind: str, noise: Any, randomness: Any) -> None:
    first = fg.grad(drawing(kind, noise), "s", "x", keep="y")
    again = fg.checkpoint(first)
    found = run(again)
    np.testing.assert_allclose(found["x_grad"], 3 * found["y"]**2, rtol=1e-12)
    each = run(fg.vmap(again, {"x": 0}, randomness=randomness), x=np.stack([X, 2 * X]))
    np.testing.assert_allclose(each["x_grad"], 3 * each["y"]**2, rtol=1e-12)
    assert np.allclose(each["y"][1], 2 * each["y"][0]) == (randomness == "same")
    with pytest.raises(UnsupportedError, match="randomness='same' or 'different'"):
        fg.vmap(first, {"x": 0})


@kinds
def test_chunks_of_tangents_would_draw_again_and_are_refused(kind: str) -> None:
    model = drawing(kind, dropped)
    refusal = "draws random numbers beside its tangents.*leave chunk_size out"
    with pytest.raises(UnsupportedError, match=refusal):
        fg.jacobian(model, "y", "x", mode="fwd", chunk_size=2)
    with pytest.raises(UnsupportedError, match=refusal):
        fg.hessian(model, "s", "x", chunk_size=2)
