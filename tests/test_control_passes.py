"""If, Loop and Scan in passes, in onnxruntime, and where derivatives through them are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowgrad.exchange.lowering import lowered
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import NotDifferentiableError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.types import BOOL, INT64, Dim, Type
from flowgrad.ir.verify import verify
from flowgrad.passes.bodies import Bodies
from flowgrad.passes.differentiate import adjoint, tangent, with_adjoint
from flowgrad.passes.prune import prune_subgraphs
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


def branching(depth: int) -> Graph:
    """sin(x) * (an If on c of which both branches do the same, ``depth`` levels deep)."""
    def level(b: Builder, x: Value, c: Value, left: int) -> Value:
        y = b.Sin(x)
        if not left:
            return y
        inner = add_if(b, c, [x, c], *[lambda b, x, c: [level(b, x, c, left - 1)]] * 2)
        return b.Mul(y, inner.output())

    graph = Graph()
    x, c = graph.add_input("x", f64(2)), graph.add_input("c", Type(BOOL, ()))
    graph.add_output(level(Builder(graph), x, c, depth), "y")
    return graph


def test_branches_within_branches_are_differentiated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of bodies that are differentiated, and of nodes made, grows as the graph does."""
    bodies: list[int] = []
    original = Bodies.body_adjoint

    def counted(self: Bodies, body: Graph, **keywords: Any) -> Any:
        bodies.append(1)
        return original(self, body, **keywords)

    monkeypatch.setattr(Bodies, "body_adjoint", counted)
    for depth in (2, 5):
        graph = branching(depth)
        before = sum(1 for _ in graph.walk())
        found = with_adjoint(graph, ["x"]).graph
        assert len(bodies) == 2 ** (depth + 1) - 2
        assert sum(1 for _ in found.walk()) < 4 * before
        bodies.clear()
