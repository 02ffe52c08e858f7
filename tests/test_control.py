"""If, Loop and Scan: values, derivatives of both modes and orders, zero trips, random bodies, nesting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowgrad.exchange.writer import write_onnx
from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.types import BOOL, INT64, STRING, Dim, Type
from flowgrad.passes.differentiate import adjoint, tangent, with_adjoint
from tests.control_graphs import (
    FEEDS,
    RNG,
    SCANS,
    add_if,
    add_loop,
    add_scan,
    check,
    f64,
    outputs_of,
    scan_feeds,
    scan_graph,
)
from tests.derivative_checks import check_gradients, check_tangents

# ---- If -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("symbolic", [False, True])
def test_both_branches_carry_gradients(condition: bool, symbolic: bool) -> None:
    graph = Graph()
    b = Builder(graph)
    n = Dim.named("N") if symbolic else 3
    x, w = graph.add_input("x", f64(n, 2)), graph.add_input("w", f64(2, 2))
    c = graph.add_input("c", Type(BOOL, ()))
    node = add_if(b, c, [x, w],
                  lambda b, x, w: [b.Tanh(b.MatMul(x, w)), b.Mul(x, x)],
                  lambda b, x, w: [b.Sin(x), b.Exp(b.Mul(b.Sin(x), 0.5))])
    outputs_of(graph, b.Mul(node.outputs[0], x), node.outputs[1])
    feeds = {"x": RNG.standard_normal((3, 2)), "w": RNG.standard_normal((2, 2)), "c": np.asarray(condition)}
    check(graph, feeds, ["x", "w"])


def test_untaken_capture_has_zero_gradient() -> None:
    graph = Graph()
    b = Builder(graph)
    x, w = graph.add_input("x", f64(3)), graph.add_input("w", f64(3))
    c = graph.add_input("c", Type(BOOL, ()))
    node = add_if(b, c, [x, w], lambda b, x, w: [b.Sin(x)], lambda b, x, w: [b.Mul(w, w)])
    joint = with_adjoint(outputs_of(graph, node.output()), ["x", "w"]).graph
    feeds = {"x": np.ones(3), "w": np.full(3, 2.0), "y0_ct": np.ones(3)}
    for condition, expected in ((True, (np.cos(1.0), 0.0)), (False, (0.0, 4.0))):
        got = evaluate(joint, {**feeds, "c": np.asarray(condition)})
        np.testing.assert_allclose(got["x_grad"], np.full(3, expected[0]))
        np.testing.assert_allclose(got["w_grad"], np.full(3, expected[1]))


# ---- Loop ---------------------------------------------------------------------------------------------------------------


def recurrent(trips: Any, symbolic: bool = False) -> Graph:
    graph = Graph()
    b = Builder(graph)
    n = Dim.named("N") if symbolic else 2
    h, w = graph.add_input("h", f64(n, 3)), graph.add_input("w", f64(3, 3))

    def body(b: Builder, i: Value, going: Value, h: Value, w: Value) -> Any:
        y = b.Tanh(b.MatMul(h, w))
        return going, y, b.Mul(y, y)

    count = graph.add_input("trips", Type(INT64, ())) if trips is None else trips
    node = add_loop(b, count, None, [h], [w], body)
    return outputs_of(graph, *node.outputs)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("trips", [0, 1, 4])
def test_loop_with_captured_weight(trips: int, symbolic: bool) -> None:
    check(recurrent(np.int64(trips), symbolic), FEEDS, ["h", "w"])


@pytest.mark.parametrize("trips", [0, 3])
def test_loop_with_count_from_the_run(trips: int) -> None:
    check(recurrent(None, True), {**FEEDS, "trips": np.asarray(trips)}, ["h", "w"])


def test_no_trips_give_empty_scan_outputs_of_the_right_shape() -> None:
    got = evaluate(recurrent(None, True), {**FEEDS, "trips": np.asarray(0)})
    assert got["y1"].shape == (0, 2, 3)
    np.testing.assert_array_equal(got["y0"], FEEDS["h"])


def test_condition_ends_the_loop() -> None:
    graph = Graph()
    b = Builder(graph)
    x, w = graph.add_input("x", f64(2)), graph.add_input("w", f64(2))

    def body(b: Builder, i: Value, going: Value, x: Value, w: Value) -> Any:
        y = b.Mul(x, b.Exp(w))
        return b.Less(b.ReduceSum(y, keepdims=0), 20.0), y, b.Sin(y)

    node = add_loop(b, None, np.asarray(True), [x], [w], body)
    outputs_of(graph, *node.outputs)
    feeds = {"x": np.array([1.0, 1.5]), "w": np.array([0.4, 0.7])}
    assert len(evaluate(graph, feeds)["y1"]) == 4
    check(graph, feeds, ["x", "w"])


def test_state_that_only_counts_and_state_that_feeds_another() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", f64(2))
    start = graph.add_constant(np.zeros(2), "start", "initializer")
    steps = graph.add_constant(np.asarray(0, np.int64), "steps", "initializer")

    def body(b: Builder, i: Value, going: Value, steps: Value, total: Value, power: Value, x: Value) -> Any:
        return going, b.Add(steps, 1), b.Add(total, power), b.Mul(power, b.Sin(x)), b.Cast(i, to=11)

    node = add_loop(b, np.int64(3), None, [steps, start, x], [x], body)
    outputs_of(graph, *node.outputs[1:])
    check(graph, {"x": np.array([0.3, -0.8])}, ["x"])


def test_cotangent_of_the_iteration_number_only() -> None:
    """Nothing but the trip count is needed from the forward pass: v = v + i * x."""
    graph = Graph()
    b = Builder(graph)
    x, v = graph.add_input("x", f64(2)), graph.add_input("v", f64(2))

    def body(b: Builder, i: Value, going: Value, v: Value, x: Value) -> Any:
        return going, b.Add(v, x)

    node = add_loop(b, np.int64(5), None, [v], [x], body)
    joint = with_adjoint(outputs_of(graph, *node.outputs), ["x", "v"]).graph
    got = evaluate(joint, {"x": np.ones(2), "v": np.ones(2), "y0_ct": np.array([1.0, 2.0])})
    np.testing.assert_array_equal(got["x_grad"], [5.0, 10.0])
    check(graph, {"x": np.ones(2), "v": np.ones(2)}, ["x", "v"])


@pytest.mark.parametrize("square", [False, True])
def test_growing_state(square: bool) -> None:
    """What a state that grows has been in each iteration is kept in a sequence where the backward part needs it."""
    graph = Graph()
    b = Builder(graph)
    x, row = graph.add_input("x", f64(1, 2)), graph.add_input("row", f64(1, 2))

    def body(b: Builder, i: Value, going: Value, v: Value, row: Value) -> Any:
        return going, b.add("Concat", [b.Mul(v, v) if square else v, b.Sin(row)], {"axis": 0})

    node = add_loop(b, np.int64(3), None, [x], [row], body, [f64(Dim.named("_d1"), 2)])
    feeds = {"x": RNG.standard_normal((1, 2)), "row": RNG.standard_normal((1, 2))}
    check(outputs_of(graph, *node.outputs), feeds, ["x", "row"])
    tapes = [v for n in with_adjoint(graph, ["x"]).graph.nodes() for v in n.results if v.type.dtype.kind == "sequence"]
    assert bool(tapes) is square


@pytest.mark.parametrize("extent", [2, Dim.named("N")])
def test_a_state_that_doubles(extent: Any) -> None:
    """In two iterations, v becomes (v**4, v**2, v**2, v)."""
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", f64(extent))

    def body(b: Builder, i: Value, going: Value, v: Value) -> Any:
        return going, b.Concat(b.Mul(v, v), v, axis=0)

    node = add_loop(b, np.int64(2), None, [x], [], body, [f64(Dim.named("_d1"))])
    joint = with_adjoint(outputs_of(graph, *node.outputs), ["x"]).graph
    v = np.array([0.5, -2.0])
    found = evaluate(joint, {"x": v, "y0_ct": np.ones(8)})["x_grad"]
    np.testing.assert_allclose(found, 4 * v**3 + 4 * v + 1, rtol=1e-15)
    if extent != 2:
        assert evaluate(joint, {"x": np.ones(0), "y0_ct": np.ones(0)})["x_grad"].shape == (0,)


# ---- Scan ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attributes", SCANS)
@pytest.mark.parametrize("symbolic", [False, True])
def test_scan(attributes: dict[str, Any], symbolic: bool) -> None:
    check(scan_graph(attributes, symbolic), scan_feeds(attributes, 4), ["h", "w", "xs", "ys"])


def test_empty_scan() -> None:
    graph = Graph()
    b = Builder(graph)
    h, xs, w = graph.add_input("h", f64(3)), graph.add_input("xs", f64(Dim.named("T"), 3)), graph.add_input("w", f64(3))
    node = add_scan(b, [h], [xs], [w], lambda b, h, x, w: (b.Sin(b.Add(h, x)), b.Mul(b.Mul(h, x), w)))
    outputs_of(graph, *node.outputs)
    feeds = {"h": np.ones(3), "xs": np.ones((0, 3)), "w": np.ones(3)}
    assert evaluate(graph, feeds)["y1"].shape == (0, 3)
    check_gradients(graph, feeds, ["h", "w"], step=1e-3, rtol=1e-8)
    check_gradients(graph, feeds, ["h", "w"], step=1e-3, rtol=1e-8, order=2)


# ---- random bodies, nesting -----------------------------------------------------------------------------------------------


def test_dropout_mask_of_the_loop_is_that_of_its_gradient() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", f64(50))
    ratio = graph.add_constant(np.asarray(0.5), "ratio", "initializer")
    training = graph.add_constant(np.asarray(True), "training", "initializer")

    def body(b: Builder, i: Value, going: Value, total: Value, x: Value, ratio: Value, training: Value) -> Any:
        y = b.add("Dropout", [x, ratio, training])
        return going, b.Add(total, y), y

    total = b.Mul(x, 0.0)
    node = add_loop(b, np.int64(3), None, [total], [x, ratio, training], body)
    outputs_of(graph, *node.outputs)
    joint = with_adjoint(graph, ["x"]).graph
    feeds = {"x": np.ones(50), "y0_ct": np.zeros(50), "y1_ct": np.ones((3, 50))}
    got = evaluate(joint, feeds, rng=np.random.default_rng(1))
    np.testing.assert_allclose(got["x_grad"], got["y1"].sum(axis=0))
    assert 0 < np.count_nonzero(got["y1"]) < 150


@pytest.mark.parametrize("condition", [True, False])
def test_dropout_mask_of_a_branch_is_that_of_its_gradient(condition: bool) -> None:
    graph = Graph()
    b = Builder(graph)
    x, c = graph.add_input("x", f64(50)), graph.add_input("c", Type(BOOL, ()))
    node = add_if(b, c, [x], lambda b, x: [b.add("Dropout", [b.Mul(x, 2.0), 0.5, True])],
                  lambda b, x: [b.add("Dropout", [b.Sin(x), 0.3, True])])
    joint = with_adjoint(outputs_of(graph, node.output()), ["x"]).graph
    got = evaluate(joint, {"x": np.ones(50), "c": np.asarray(condition), "y0_ct": np.ones(50)})
    slope = 1.0 if condition else np.cos(1.0) / np.sin(1.0)
    np.testing.assert_allclose(got["x_grad"], got["y0"] * slope)
    assert 0 < np.count_nonzero(got["y0"]) < 50


@pytest.mark.parametrize("length", [0, 3])
def test_loop_in_if_in_scan(length: int) -> None:
    graph = Graph()
    b = Builder(graph)
    h, xs = graph.add_input("h", f64(2)), graph.add_input("xs", f64(Dim.named("T"), 2))
    w = graph.add_input("w", f64(2))

    def inner(b: Builder, i: Value, going: Value, v: Value, w: Value) -> Any:
        return going, b.Sin(b.Mul(v, w)), b.Mul(v, v)

    def then(b: Builder, h: Value, x: Value, w: Value) -> Any:
        node = add_loop(b, np.int64(2), None, [b.Mul(h, x)], [w], inner)
        return [b.Add(node.outputs[0], b.ReduceSum(node.outputs[1], [0], keepdims=0))]

    def body(b: Builder, h: Value, x: Value, w: Value) -> Any:
        positive = b.Greater(b.ReduceSum(x, keepdims=0), 0.0)
        node = add_if(b, positive, [h, x, w], then, lambda b, h, x, w: [b.Exp(b.Mul(b.Mul(h, x), 0.3))])
        return node.output(), b.Mul(node.output(), w)

    node = add_scan(b, [h], [xs], [w], body)
    outputs_of(graph, *node.outputs)
    feeds = {"h": np.array([0.5, -0.4]), "w": np.array([0.9, 1.2]),
             "xs": np.array([[1.0, 0.2], [-1.0, 0.5], [0.3, 0.4]])[:length]}
    wrt = ["h", "xs", "w"] if length else ["h", "w"]
    check_gradients(graph, feeds, wrt, step=1e-3, rtol=1e-8)
    check_gradients(graph, feeds, wrt, step=1e-3, rtol=1e-7, order=2)
    check_tangents(graph, feeds, wrt, step=1e-3, rtol=1e-8)


def test_tangent_along_the_gradient_makes_no_cycle() -> None:
    graph = recurrent(np.int64(3))
    w = graph.value("w")
    y = Builder(graph).ReduceSum(graph.outputs[0], keepdims=0)
    (g,) = adjoint(graph, [(y, graph.add_constant(np.asarray(1.0)))], [w])
    assert g is not None
    (dot,) = tangent(graph, [(w, g)], [y])
    assert dot is not None
    graph.add_output(dot, "dot")
    graph.add_output(g, "g")
    got = evaluate(graph, FEEDS)
    np.testing.assert_allclose(got["dot"], np.sum(got["g"] ** 2))


@pytest.mark.parametrize("extent", [3, Dim.named("N")], ids=str)
def test_branches_share_what_they_keep_where_extents_are_the_same(extent: Any) -> None:
    """A named extent of a captured value is one and the same in both branches."""
    graph = Graph()
    b = Builder(graph)
    x, c = graph.add_input("x", f64(extent)), graph.add_input("c", Type(BOOL, ()))
    made = add_if(b, c, [x], lambda b, x: [b.Mul(b.Sin(x), b.Exp(x))], lambda b, x: [b.Mul(b.Cos(x), b.Tanh(x))])
    joint = with_adjoint(outputs_of(graph, made.output())).graph
    forward = next(n for n in joint.nodes() if n.op == "If")
    assert [y.type for y in forward.results] == 3 * [f64(extent)]  # the result, and two values kept


def test_strings_of_rank_0_are_stacked_as_strings() -> None:
    graph = Graph()
    b = Builder(graph)
    words = graph.add_input("words", Type(STRING, (2,)))
    graph.add_output(add_scan(b, [], [words], [], lambda b, word: [b.StringConcat(word, word)]).output(), "y")
    assert evaluate(graph, {"words": np.array(["a", "bc"], object)})["y"].tolist() == ["aa", "bcbc"]


@pytest.mark.parametrize("as_state", [True, False])
def test_strings_that_a_loop_stacks_as_it_was_given_them_stay_whole_in_onnxruntime(as_state: bool) -> None:
    """onnxruntime 1.32 moves them out of the state or what is captured, and stacks empty ones from then on."""
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = Graph()
    b = Builder(graph)
    words = graph.add_input("words", Type(STRING, (2,)))
    states, captures = ([words], []) if as_state else ([], [words])
    made = add_loop(b, np.asarray(3), None, states, captures,
                    lambda b, i, going, s: (going, s, b.Identity(s)) if as_state else (going, b.Identity(s)))
    graph.add_output(made.output(int(as_state)), "y")
    given = {"words": np.array(["a", "a word that is too long to lie beside its length"], object)}
    session = onnxruntime.InferenceSession(write_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, given)[0].tolist() == evaluate(graph, given)["y"].tolist() == [given["words"].tolist()] * 3
