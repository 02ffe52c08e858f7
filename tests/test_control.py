"""If, Loop and Scan: values, derivatives of both modes and orders, zero trips, random bodies, nesting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from flowgrad.exchange.lowering import lowered
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import NotDifferentiableError, RunError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.types import BOOL, FLOAT64, INT64, Dim, Type
from flowgrad.ir.verify import verify
from flowgrad.passes.differentiate import adjoint, tangent, with_adjoint
from flowgrad.passes.prune import prune_subgraphs
from tests.derivative_checks import check_gradients, check_tangents

RNG = np.random.default_rng(5)
Body = Callable[..., Any]


def f64(*shape: Any) -> Type:
    return Type(FLOAT64, shape)


def branch(captures: Sequence[Value], make: Body) -> Graph:
    """Return a closed branch; ``make(b, *captures)`` returns its outputs."""
    graph = Graph("branch")
    formals = [graph.add_input(x.name, x.type) for x in captures]
    for value in make(Builder(graph), *formals):
        graph.add_output(value, value.name or "literal")
    return graph


def add_if(b: Builder, condition: Any, captures: Sequence[Value], then: Body, other: Body) -> Node:
    graphs = {"then_branch": branch(captures, then), "else_branch": branch(captures, other)}
    count = len(graphs["then_branch"].outputs)
    return b.add_node("If", [condition], outputs=count, captures=captures, subgraphs=graphs)


def add_loop(b: Builder, trips: Any, condition: Any, states: Sequence[Value], captures: Sequence[Value], make: Body,
             formals: Sequence[Type] | None = None) -> Node:
    """Add a Loop; ``make(b, i, cond, *states, *captures)`` returns (cond, *states, *scans)."""
    body = Graph("body")
    types = [v.type for v in states] if formals is None else formals
    inner = [body.add_input("i", Type(INT64, ())), body.add_input("going", Type(BOOL, ())),
             *(body.add_input(f"state{k}", t) for k, t in enumerate(types)),
             *(body.add_input(x.name, x.type) for x in captures)]
    results = make(Builder(body), *inner)
    for k, value in enumerate(results):
        body.add_output(value, f"out{k}")
    return b.add_node("Loop", [trips, condition, *states], outputs=len(results) - 1, captures=captures,
                      subgraphs={"body": body})


def add_scan(b: Builder, states: Sequence[Value], rows: Sequence[Value], captures: Sequence[Value], make: Body,
             **attributes: Any) -> Node:
    """Add a Scan; ``make(b, *states, *slices, *captures)`` returns (*states, *scans)."""
    body = Graph("body")
    axes = attributes.get("scan_input_axes", [0] * len(rows))
    inner = [body.add_input(f"state{k}", v.type) for k, v in enumerate(states)]
    for k, (x, axis) in enumerate(zip(rows, axes, strict=True)):
        shape = list(x.shape)
        del shape[axis]
        inner.append(body.add_input(f"row{k}", x.type.with_shape(shape)))
    inner += [body.add_input(x.name, x.type) for x in captures]
    results = make(Builder(body), *inner)
    for k, value in enumerate(results):
        body.add_output(value, f"out{k}")
    return b.add_node("Scan", [*states, *rows], {"num_scan_inputs": len(rows), **attributes}, outputs=len(results),
                      captures=captures, subgraphs={"body": body})


def outputs_of(graph: Graph, *values: Value | None) -> Graph:
    for k, value in enumerate(values):
        if value is not None:
            graph.add_output(value, f"y{k}")
    return graph


def check(graph: Graph, feeds: dict[str, Any], wrt: Sequence[str], *, second: bool = True) -> None:
    """Check adjoint, tangent, adjoint of adjoint and tangent of adjoint."""
    before = evaluate(graph, feeds)
    check_gradients(graph, feeds, wrt, step=1e-3, rtol=1e-8)
    check_tangents(graph, feeds, wrt, step=1e-3, rtol=1e-8)
    extended = with_adjoint(graph, wrt)
    joint, cotangents = extended.graph, extended.drawn(before, RNG)
    verify(joint)
    after = evaluate(joint, {**feeds, **cotangents})
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    if second:
        check_gradients(graph, feeds, wrt, step=1e-3, rtol=1e-7, order=2)
        check_tangents(joint, {**feeds, **cotangents}, wrt, step=1e-3, rtol=1e-7)


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


FEEDS: dict[str, Any] = {"h": RNG.standard_normal((2, 3)), "w": RNG.standard_normal((3, 3))}


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


def test_growing_state() -> None:
    """A state that grows has a gradient as long as no value of changing shape must be kept; otherwise it is refused."""
    def made(square: bool) -> Graph:
        graph = Graph()
        b = Builder(graph)
        x, row = graph.add_input("x", f64(1, 2)), graph.add_input("row", f64(1, 2))

        def body(b: Builder, i: Value, going: Value, v: Value, row: Value) -> Any:
            return going, b.add("Concat", [b.Mul(v, v) if square else v, b.Sin(row)], {"axis": 0})

        node = add_loop(b, np.int64(3), None, [x], [row], body, [f64(Dim.named("_d1"), 2)])
        return outputs_of(graph, *node.outputs)

    feeds = {"x": RNG.standard_normal((1, 2)), "row": RNG.standard_normal((1, 2))}
    check(made(False), feeds, ["x", "row"])
    with pytest.raises(NotDifferentiableError, match="changes its shape"):
        with_adjoint(made(True), ["x"])


@pytest.mark.parametrize("extent", [2, Dim.named("N")])
def test_a_state_that_doubles_is_refused_when_that_is_certain_and_named_when_it_runs(extent: Any) -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", f64(extent))

    def body(b: Builder, i: Value, going: Value, v: Value) -> Any:
        return going, b.Concat(b.Mul(v, v), v, axis=0)

    node = add_loop(b, np.int64(2), None, [x], [], body, [f64(Dim.named("_d1"))])
    outputs_of(graph, *node.outputs)
    if isinstance(extent, int):
        with pytest.raises(NotDifferentiableError, match="changes its shape from one iteration to the next"):
            with_adjoint(graph, ["x"])
        return
    joint = with_adjoint(graph, ["x"]).graph
    feeds = {"x": np.ones(2), "y0_ct": np.ones(8)}
    with pytest.raises(RunError, match=r'scan output 0 of Loop, "[^"]*_tape", has shape \[2\], then \[4\].*has no gradient'):
        evaluate(joint, feeds)
    assert evaluate(joint, {"x": np.ones(0), "y0_ct": np.ones(0)})["x_grad"].shape == (0,)


# ---- Scan ---------------------------------------------------------------------------------------------------------------


SCANS = [
    {},
    {"scan_input_directions": (1, 0)},
    {"scan_output_directions": (1, 0)},
    {"scan_input_axes": (1, 0), "scan_output_axes": (1, 0)},
    {"scan_input_axes": (1, 0), "scan_input_directions": (1, 1), "scan_output_axes": (-1, 0),
     "scan_output_directions": (1, 1)},
]


def scan_graph(attributes: dict[str, Any], symbolic: bool) -> Graph:
    graph = Graph()
    b = Builder(graph)
    t, n = (Dim.named("T"), Dim.named("N")) if symbolic else (4, 2)
    axis = attributes.get("scan_input_axes", (0,))[0]
    h, w = graph.add_input("h", f64(n, 3)), graph.add_input("w", f64(3, 3))
    xs, ys = graph.add_input("xs", f64(*((n, t, 3) if axis else (t, n, 3)))), graph.add_input("ys", f64(t, 3))

    def body(b: Builder, h: Value, x: Value, y: Value, w: Value) -> Any:
        z = b.Tanh(b.Add(b.MatMul(h, w), b.Mul(x, y)))
        return z, b.Mul(z, x), b.ReduceSum(z, [0], keepdims=0)

    return outputs_of(graph, *add_scan(b, [h], [xs, ys], [w], body, **attributes).outputs)


def scan_feeds(attributes: dict[str, Any], length: int) -> dict[str, Any]:
    axis = attributes.get("scan_input_axes", (0,))[0]
    return {"h": FEEDS["h"], "w": FEEDS["w"], "ys": RNG.standard_normal((length, 3)),
            "xs": RNG.standard_normal((2, length, 3) if axis else (length, 2, 3))}


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


# ---- passes and other engines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attributes", SCANS)
@pytest.mark.parametrize("length", [0, 4])
def test_scan_as_a_loop(attributes: dict[str, Any], length: int) -> None:
    from flowgrad.passes.expand import expand

    graph = scan_graph(attributes, True)
    looped = graph.copy()
    expand(looped, lambda n: n.op == "Scan")
    verify(looped)
    assert "Loop" in {n.op for n in looped.nodes()} and "Scan" not in {n.op for n in looped.nodes()}
    feeds = scan_feeds(attributes, length)
    for got, expected in zip(evaluate(looped, feeds).values(), evaluate(graph, feeds).values(), strict=True):
        np.testing.assert_array_equal(got, expected)


def assert_same_in_onnxruntime(graph: Graph, feeds: dict[str, Any], expected: dict[str, Array]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from flowgrad.exchange.writer import write_onnx

    session = onnxruntime.InferenceSession(write_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    for output, got in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        if got.size == 0:  # of a Loop without iterations, onnxruntime does not know the extents of scan outputs
            assert expected[output.name].size == 0
            continue
        np.testing.assert_allclose(got, expected[output.name], rtol=1e-9, atol=1e-12, err_msg=output.name)


@pytest.mark.parametrize("extent", [0, 2])
@pytest.mark.parametrize("backward", [0, 1])
def test_slices_without_elements_do_not_end_the_process_of_onnxruntime(extent: int, backward: int) -> None:
    """Version 1.32 divides by their size where it moves what it has stacked to another axis; that kills the process."""
    body, graph = Graph("body"), Graph()
    row = body.add_input("row", f64(Dim.named("N")))
    body.add_output(Builder(body).Neg(row), "minus")
    x = graph.add_input("x", f64(Dim.named("N"), 3))
    scan = Builder(graph).add_node("Scan", [x], {"num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [1],
                                                 "scan_output_directions": [backward]}, subgraphs={"body": body})
    graph.add_output(scan.output(), "y")
    feeds = {"x": RNG.standard_normal((extent, 3))}
    assert not any(n.op == "Scan" for n in lowered(graph).nodes())  # or the next line ends this process as well
    assert_same_in_onnxruntime(graph, feeds, evaluate(graph, feeds))


@pytest.mark.parametrize("length", [0, 4])
def test_gradients_run_in_onnxruntime(length: int) -> None:
    for attributes in SCANS:
        joint = with_adjoint(scan_graph(attributes, True), ["h", "w", "xs", "ys"]).graph
        feeds = scan_feeds(attributes, length)
        cotangents: dict[str, Any] = {f"{k}_ct": RNG.standard_normal(y.shape)
                      for k, y in evaluate(scan_graph(attributes, True), feeds).items()}
        expected = evaluate(joint, {**feeds, **cotangents})
        assert_same_in_onnxruntime(joint, {**feeds, **cotangents}, expected)


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("trips", [0, 3])
def test_gradients_of_if_and_loop_run_in_onnxruntime(trips: int, condition: bool) -> None:
    joint = with_adjoint(nested(), ["h", "w"]).graph
    feeds = {**FEEDS, "trips": np.asarray(trips), "c": np.asarray(condition), "y0_ct": np.ones((2, 3)),
             "y1_ct": np.ones((trips, 2, 3))}
    expected = evaluate(joint, feeds)
    assert_same_in_onnxruntime(joint, feeds, expected)


def nested() -> Graph:
    """A Loop whose body holds an If with different tapes in its branches."""
    graph = Graph()
    b = Builder(graph)
    n = Dim.named("N")
    h, w = graph.add_input("h", f64(n, 3)), graph.add_input("w", f64(3, 3))
    count, c = graph.add_input("trips", Type(INT64, ())), graph.add_input("c", Type(BOOL, ()))

    def body(b: Builder, i: Value, going: Value, h: Value, w: Value, c: Value) -> Any:
        first = b.And(c, b.Less(i, 2))
        node = add_if(b, first, [h, w], lambda b, h, w: [b.Tanh(b.MatMul(h, w))],
                      lambda b, h, w: [b.Mul(b.Sin(h), b.ReduceSum(w, [0], keepdims=0))])
        return going, node.output(), b.Mul(node.output(), h)

    node = add_loop(b, count, None, [h], [w, c], body)
    return outputs_of(graph, *node.outputs)


def test_if_in_loop() -> None:
    for trips, condition in ((0, True), (3, True), (3, False)):
        check(nested(), {**FEEDS, "trips": np.asarray(trips), "c": np.asarray(condition)}, ["h", "w"])


def test_dropout_in_a_branch_in_a_loop() -> None:
    """The masks of the branch must be stackable over iterations that take different branches."""
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", f64(40))

    def body(b: Builder, i: Value, going: Value, x: Value) -> Any:
        node = add_if(b, b.Equal(b.Mod(i, 2), 0), [x], lambda b, x: [b.add("Dropout", [b.Mul(x, 2.0), 0.5, True])],
                      lambda b, x: [b.Sin(x)])
        return going, node.output()

    node = add_loop(b, np.int64(4), None, [], [x], body)
    joint = with_adjoint(outputs_of(graph, *node.outputs), ["x"]).graph
    got = evaluate(joint, {"x": np.ones(40), "y0_ct": np.ones((4, 40))})
    y = got["y0"]
    np.testing.assert_allclose(got["x_grad"], y[0] + y[2] + 2 * np.cos(1.0))
    assert 0 < np.count_nonzero(y[0]) < 40


def test_pruning_leaves_what_is_needed() -> None:
    graph = Graph()
    b = Builder(graph)
    x, w = graph.add_input("x", f64(2)), graph.add_input("w", f64(2))

    def body(b: Builder, i: Value, going: Value, used: Value, unused: Value, feeding: Value, x: Value, w: Value) -> Any:
        return going, b.Add(used, feeding), b.Mul(unused, w), b.Sin(feeding), b.Exp(unused), b.Cos(b.Add(used, x))

    node = add_loop(b, np.int64(3), None, [x, x, x], [x, w], body)
    total, _, _, _, last = node.outputs
    outputs_of(graph, total, last)
    expected = evaluate(graph, {"x": np.ones(2), "w": np.ones(2)})
    prune_subgraphs(graph, node)
    verify(graph)
    assert [v.name for v in node.captures] == ["x"]
    assert len(node.inputs) == 4 and len(node.outputs) == 3
    assert sorted(n.op for n in node.subgraphs["body"].nodes()) == ["Add", "Add", "Cos", "Sin"]
    got = evaluate(graph, {"x": np.ones(2), "w": np.ones(2)})
    assert {k: v.tolist() for k, v in got.items()} == {k: v.tolist() for k, v in expected.items()}
    version = graph.version
    prune_subgraphs(graph, node)
    assert graph.version == version


def test_pruning_a_scan_and_an_if() -> None:
    graph = Graph()
    b = Builder(graph)
    x, ys, zs = graph.add_input("x", f64(2)), graph.add_input("ys", f64(3, 2)), graph.add_input("zs", f64(2, 3))
    node = add_scan(b, [x, x], [ys, zs], [x], lambda b, s, t, y, z, x: (b.Add(s, z), b.Mul(t, y), b.Sin(y), b.Cos(z)),
                    scan_input_axes=(0, 1), scan_output_axes=(0, 1))
    c = graph.add_input("c", Type(BOOL, ()))
    choice = add_if(b, c, [x, ys], lambda b, x, ys: [b.Sin(x), ys], lambda b, x, ys: [b.Cos(x), ys])
    outputs_of(graph, node.outputs[0], node.outputs[3], choice.outputs[0])
    feeds = {"x": np.ones(2), "ys": np.ones((3, 2)), "zs": RNG.standard_normal((2, 3)), "c": np.asarray(True)}
    expected = evaluate(graph, feeds)
    for pruned in (node, choice):
        prune_subgraphs(graph, pruned)
    verify(graph)
    assert [v.name for v in node.operands] == ["x", "zs"]
    assert node.attributes == {"num_scan_inputs": 1, "scan_input_axes": (1,), "scan_output_axes": (1,)}
    assert len(choice.outputs) == 1 and [v.name for v in choice.captures] == ["x"]
    for name, array in evaluate(graph, feeds).items():
        np.testing.assert_array_equal(array, expected[name])


def test_the_optimised_gradient_is_the_same() -> None:
    from flowgrad.model import Model
    from flowgrad.passes.manager import DEFAULT_PIPELINE, PassManager

    joint = with_adjoint(nested(), ["h", "w"]).graph
    feeds = {**FEEDS, "trips": np.asarray(3), "c": np.asarray(True), "y0_ct": np.ones((2, 3)), "y1_ct": np.ones((3, 2, 3))}
    expected = evaluate(joint, feeds)
    optimized = PassManager(DEFAULT_PIPELINE).run(Model(joint)).model
    verify(optimized.graph)
    for name, got in Model(joint)(feeds).items():
        np.testing.assert_allclose(got, expected[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("through", ["state", "condition", "branch"])
def test_a_derivative_that_stops_inside_a_body_is_no_silent_zero(through: str) -> None:
    graph = Graph()
    b = Builder(graph)
    x, w = graph.add_input("x", f64(2)), graph.add_input("w", f64(2))

    def body(b: Builder, i: Value, going: Value, v: Value, w: Value) -> Any:
        step = b.Round(w) if through == "state" else b.Sin(v)
        return b.Greater(b.ReduceSum(w, keepdims=0), 0.0) if through == "condition" else going, b.Add(v, step), v, b.Exp(w)

    if through == "branch":
        node = add_if(b, np.asarray(True), [x, w], lambda b, x, w: [b.Mul(b.Floor(w), x)], lambda b, x, w: [x])
    else:
        node = add_loop(b, np.int64(3), None, [x], [w], body)
    y = node.outputs[0]
    assert y is not None
    y_bar = graph.add_input("y_bar", y.type)
    with pytest.raises(NotDifferentiableError, match="zero"):
        adjoint(graph, [(y, y_bar)], [w])
    assert adjoint(graph, [(y, y_bar)], [w], zero="allow") == [None]


def test_an_output_that_does_not_depend_is_zero_without_an_error() -> None:
    graph = Graph()
    b = Builder(graph)
    x, w = graph.add_input("x", f64(2)), graph.add_input("w", f64(2))
    node = add_loop(b, np.int64(3), None, [x], [w], lambda b, i, going, v, w: (going, b.Sin(v), b.Exp(w)))
    y = node.outputs[0]
    assert y is not None
    assert adjoint(graph, [(y, graph.add_input("y_bar", y.type))], [w]) == [None]


def test_refusals_inside_a_body_name_the_operator() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", f64(2))
    node = add_loop(b, np.int64(3), None, [x], [], lambda b, i, going, v: (going, b.Sin(v), b.BitCast(v, to=11)))
    with pytest.raises(NotDifferentiableError, match="(?s)Loop.*BitCast"):
        with_adjoint(outputs_of(graph, *node.outputs), ["x"])
    assert len(graph) == 1 and len(node.outputs) == 2


def dropout_loop() -> Graph:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", f64(60))
    node = add_loop(b, np.int64(3), None, [x], [], lambda b, i, going, v: (going, b.add("Dropout", [v, 0.3, True]), v))
    return outputs_of(graph, node.outputs[0])


def test_tangent_uses_the_mask_of_the_forward_pass() -> None:
    graph = dropout_loop()
    (dot,) = tangent(graph, [(graph.value("x"), graph.add_input("x_dot", f64(60)))], graph.outputs)
    assert dot is not None
    graph.add_output(dot, "dot")
    verify(graph)
    assert [n.op for n in graph.nodes()] == ["Loop"]
    got = evaluate(graph, {"x": np.ones(60), "x_dot": np.full(60, 2.0)})
    np.testing.assert_allclose(got["dot"], 2 * got["y0"])
    assert 0 < np.count_nonzero(got["y0"]) < 60


def test_random_numbers_are_not_drawn_again_for_a_tangent_that_depends_on_them() -> None:
    graph = dropout_loop()
    y = graph.outputs[0]
    with pytest.raises(NotDifferentiableError, match="random numbers"):
        tangent(graph, [(graph.value("x"), Builder(graph).Sin(y))], [y])
