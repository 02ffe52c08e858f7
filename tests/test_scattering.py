"""Scatters whose updates meet: the last one stays, in the engine and exported, and derivatives are those of that value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.types import FLOAT32, FLOAT64, INT64, Dim, Type

MEETING = {"ScatterElements": np.array([1, 0, 1, -1, 0]), "ScatterND": np.array([[1], [0], [1], [-3], [0]])}


def scatter(op: str, indices: Array | None, **attributes: Any) -> Graph:
    """y = (x written with u at i)^2, u being as long as i."""
    graph, n = Graph("scatter"), Dim.named("N")
    x, u = graph.add_input("x", Type(FLOAT64, (4,))), graph.add_input("u", Type(FLOAT64, (n if indices is None else len(indices),)))
    i = graph.add_input("i", Type(INT64, (n, 1) if op == "ScatterND" else (n,))) if indices is None else indices
    b = Builder(graph)
    y = b.add(op, [x, i, u], attributes)
    graph.add_output(b.Mul(y, y), "y")
    return graph


def expected(indices: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return feeds, and the cotangents of x and u for one of ones."""
    x, u = np.arange(1.0, 5), np.arange(10.0, 15)
    places = indices.reshape(-1) % 4
    last = {int(p): k for k, p in enumerate(places)}
    u_grad = np.array([2 * u[k] if last[int(p)] == k else 0 for k, p in enumerate(places)])
    x_grad = np.array([0 if p in last else 2 * x[p] for p in range(4)])
    return {"x": x, "u": u, "i": indices}, {"x_grad": x_grad, "u_grad": u_grad}


@pytest.mark.parametrize("is_constant", [False, True], ids=["run-time", "constant"])
@pytest.mark.parametrize("op", MEETING)
def test_only_the_update_that_stays_has_a_derivative(op: str, is_constant: bool) -> None:
    indices = MEETING[op]
    model = fg.Model(scatter(op, indices if is_constant else None))
    feeds, wanted = expected(indices)
    if is_constant:
        del feeds["i"]
    gradient = fg.vjp(model)
    got = gradient({**feeds, "y_grad": np.ones(4)})
    u_dot = np.array([1.0, 2, 3, 5, 7])
    dots = fg.jvp(model)({**feeds, "x_tangent": np.zeros(4), "u_tangent": u_dot})
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array)
    np.testing.assert_allclose(dots["y_tangent"].sum(), wanted["u_grad"] @ u_dot)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(gradient.to_onnx().SerializeToString())
    exported = dict(zip([o.name for o in session.get_outputs()], session.run(None, {**feeds, "y_grad": np.ones(4)}), strict=True))
    for name, array in {**wanted, "y": got["y"]}.items():
        np.testing.assert_array_equal(exported[name], array)


@pytest.mark.parametrize("op", MEETING)
def test_second_derivatives_are_those_of_the_update_that_stays(op: str) -> None:
    model = fg.Model(scatter(op, None))
    feeds, wanted = expected(MEETING[op])
    first = fg.vjp(model, wrt="u")
    twice = fg.vjp(first, of="u_grad", wrt="u")
    got = twice({**feeds, "y_grad": np.ones(4), "u_grad_grad": np.ones(5)})
    np.testing.assert_array_equal(got["u_grad_1"] if "u_grad_1" in got else got["u_grad_2"], 2.0 * (wanted["u_grad"] != 0))


@pytest.mark.parametrize("make", [
    lambda b, x, u, k: b.ScatterElements(x, np.array([2, 0, 1]), u),
    lambda b, x, u, k: b.ScatterElements(x, np.array([-2, -4, -1]), u),
    lambda b, x, u, k: b.ScatterElements(x, k, b.Slice(u, [0], [1])),
    lambda b, x, u, k: b.ScatterElements(x, b.add_several("TopK", [x, k], outputs=2)[1], u),
    lambda b, x, u, k: b.ScatterND(x, np.array([[2], [0], [1]]), u),
    lambda b, x, u, k: b.ScatterND(x, b.Transpose(b.NonZero(x), perm=[1, 0]), u),
], ids=["constant", "from-behind", "one", "ranked", "rows", "found"])
def test_indices_that_are_known_to_differ_are_not_compared(make: Any) -> None:
    graph = Graph("scatter")
    x, k = graph.add_input("x", Type(FLOAT64, (Dim.named("N"),))), graph.add_input("k", Type(INT64, (1,)))
    u = graph.add_input("u", Type(FLOAT64, (3,)))
    graph.add_output(make(Builder(graph), x, u, k), "y")
    assert "Equal" not in {n.op for n in fg.vjp(fg.Model(graph), wrt="u").graph.nodes()}


@pytest.mark.parametrize(("indices", "differ"), [([1, -1], True), ([1, -3], False), ([2, 2], False)])
def test_indices_from_both_ends_meet_by_the_extent(indices: list[int], differ: bool) -> None:
    for op, places in (("ScatterElements", np.array(indices)), ("ScatterND", np.array(indices)[:, None])):
        graph = fg.vjp(fg.Model(scatter(op, places)), wrt="u").graph
        assert ("Equal" not in {n.op for n in graph.nodes()}) == differ


def test_the_order_of_indices_counts_not_that_of_memory() -> None:
    """Indices and updates that run backward in memory are written in the order that they are read in."""
    i, u = np.array([0, 1, 0])[::-1], np.array([1.0, 2.0, 3.0])[::-1]
    graph = scatter("ScatterElements", None)
    assert evaluate(graph, {"x": np.zeros(4), "i": i, "u": u})["y"][0] == 1.0


def test_rows_that_meet_stay_whole_in_every_thread() -> None:
    """onnxruntime writes wide rows in several threads, so that any of them might stay."""
    onnxruntime = pytest.importorskip("onnxruntime")
    graph, n = Graph("rows"), Dim.named("N")
    x, i = graph.add_input("x", Type(FLOAT32, (4, 256))), graph.add_input("i", Type(INT64, (n, 1)))
    u = graph.add_input("u", Type(FLOAT32, (n, 256)))
    graph.add_output(Builder(graph).ScatterND(x, i, u), "y")
    exported = fg.Model(graph).to_onnx()
    assert "ScatterND" not in {node.op_type for node in exported.graph.node}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 4
    session = onnxruntime.InferenceSession(exported.SerializeToString(), options)
    places = np.arange(2000)[:, None] * 7 % 4
    updates = np.repeat(np.arange(2000, dtype=np.float32)[:, None], 256, axis=1)
    wanted = np.zeros((4, 256), np.float32)
    wanted[places[:, 0]] = updates
    for _ in range(3):
        np.testing.assert_array_equal(session.run(None, {"x": wanted * 0, "i": places, "u": updates})[0], wanted)


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_rows_of_a_cache_are_written_once(mode: str) -> None:
    graph = Graph("cache")
    past, update = graph.add_input("past", Type(FLOAT64, (2, 4, 3))), graph.add_input("update", Type(FLOAT64, (2, 2, 3)))
    graph.add_output(Builder(graph).TensorScatter(past, update, graph.add_input("start", Type(INT64, (2,))), mode=mode), "y")
    for way in (fg.vjp, fg.jvp):
        derivative = way(fg.Model(graph)).graph
        assert not {"Equal", "ScatterElements"} & {n.op for n in derivative.nodes()}


@pytest.mark.parametrize("channels", [0, 3])
def test_rows_of_no_elements_are_exported(channels: int) -> None:
    """onnxruntime expands an extent of 1 to 0 by leaving it as it is."""
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = Graph("sampled")
    x = graph.add_input("x", Type(FLOAT32, (1, channels, 4, 4)))
    graph.add_output(Builder(graph).GridSample(x, graph.add_input("g", Type(FLOAT32, (1, 2, 2, 2)))), "y")
    gradient = fg.vjp(fg.Model(graph))
    feeds = {"x": np.ones((1, channels, 4, 4), np.float32), "g": np.full((1, 2, 2, 2), 0.3, np.float32),
             "y_grad": np.ones((1, channels, 2, 2), np.float32)}
    session = onnxruntime.InferenceSession(gradient.to_onnx().SerializeToString())
    for got, wanted in zip(session.run(None, feeds), gradient(feeds).values(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
