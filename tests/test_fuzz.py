"""Random graphs through every check of the fuzzer, and the bugs that it found."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from flowgrad.exchange.reader import read_onnx
from flowgrad.exchange.writer import write_onnx
from flowgrad.ir.builder import Builder
from flowgrad.ir.compare import same_graph
from flowgrad.ir.errors import RunError, ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Graph
from flowgrad.ir.text import format_graph, parse_graph
from flowgrad.ir.types import BOOL, FLOAT64, INT64, Dim, Type
from flowgrad.ir.verify import verify
from flowgrad.passes.differentiate import with_adjoint
from flowgrad.passes.manager import PassManager
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.tools.maintenance.fuzz import Summary, fuzz_one
from flowgrad.tools.maintenance.fuzz_checks import CHECKS
from tests.derivative_checks import check_gradients

GRAPHS = 100


@pytest.mark.parametrize("start", range(0, GRAPHS, 25))
def test_random_graphs(start: int) -> None:
    summary = Summary()
    for seed in range(start, start + 25):
        fuzz_one(seed, 15, list(CHECKS), summary, shrinking=2.0)
    assert not summary.failures, "\n".join(map(str, summary.failures))
    assert all(summary.done[name] for name in CHECKS), summary


def test_outputs_that_need_no_input_are_fresh_in_every_run() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (Dim.named("N"),)))
    graph.add_output(b.Sign(np.array([-1.5, 2.0])), "constant")
    graph.add_output(b.Cast(b.Shape(x), to=FLOAT64.onnx), "extent")
    graph.add_output(b.Shape(x), "shape")
    program = NumpyProgram(graph)
    feeds = {"x": np.zeros(3)}
    for _ in range(2):
        got = program.run(feeds)
        assert [a.tolist() for a in got.values()] == [[-1.0, 1.0], [3.0], [3]]
        for array in got.values():
            array.fill(7)


def test_a_literal_is_captured_in_the_text_form() -> None:
    graph = Graph()
    condition = graph.add_input("c", Type(BOOL, ()))
    captured = graph.add_constant(np.array([1.5, 2.5]))
    bodies = {}
    for name, op in (("then_branch", "Sin"), ("else_branch", "Cos")):
        bodies[name] = Graph(name)
        inner = bodies[name].add_input("a", captured.type)
        bodies[name].add_output(Builder(bodies[name]).add(op, [inner]), "r")
    graph.add_output(Builder(graph).add("If", [condition], captures=[captured], subgraphs=bodies), "y")
    assert same_graph(graph, parse_graph(format_graph(graph))) is None


def test_training_mode_exported_leaves_shared_statistics_alone() -> None:
    """onnxruntime updates running statistics in place: a constant that others use, or the next run uses, must not change."""
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (4, 3)))
    ones = graph.add_constant(np.full(3, 0.5))
    b.prefix = "normal"
    y, mean, var = b.add_several("BatchNormalization", [x, ones, ones, ones, ones], {"training_mode": 1}, outputs=3)
    for name, value in (("y", y), ("mean", mean), ("var", var)):
        graph.add_output(value, name)
    graph.add_output(b.Add(b.ReduceSum(x, [0], keepdims=0), ones), "z")
    session = onnxruntime.InferenceSession(write_onnx(graph).SerializeToString())
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 3))}
    expected = evaluate(graph, feeds)
    for _ in range(2):
        for name, array in zip(expected, session.run(None, feeds), strict=True):
            np.testing.assert_allclose(array, expected[name])


def test_a_pad_takes_away_no_more_than_there_is() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (1, 2)))
    with pytest.raises(ValidationError, match="more than there is of axis 1"):
        b.Pad(x, [0, -2, 0, -1])
    y = graph.add_input("y", Type(FLOAT64, (Dim.named("N"),)))
    graph.add_output(b.Pad(y, [-2, -1]), "z")
    feeds = {"x": np.zeros((1, 2)), "y": np.zeros(2)}
    with pytest.raises(RunError):
        evaluate(graph, feeds)
    with pytest.raises(RunError):
        NumpyProgram(graph).run(feeds)
    assert NumpyProgram(graph).run({**feeds, "y": np.arange(4.0)})["z"].tolist() == [2.0]


def test_second_derivative_of_a_product_of_nothing() -> None:
    graph = Graph()
    x = graph.add_input("x", Type(FLOAT64, (0, 0, 4, 2)))
    graph.add_output(Builder(graph).ReduceProd(x, [3, 2, 1], keepdims=0), "y")
    feeds = {"x": np.zeros((0, 0, 4, 2))}
    assert evaluate(graph, feeds)["y"].shape == (0,)
    check_gradients(graph, feeds, ["x"], step=1e-3, rtol=1e-8, order=2)


def test_a_decided_branch_may_return_one_value_twice() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (2,)))
    bodies = {}
    for name in ("then_branch", "else_branch"):
        bodies[name] = Graph(name)
        inner = Builder(bodies[name]).Sin(bodies[name].add_input("a", x.type))
        bodies[name].add_output(inner, "r0")
        bodies[name].add_output(inner, "r1")
    first, second = b.add_several("If", [np.asarray(True)], captures=[x], subgraphs=bodies, outputs=2)
    graph.add_output(b.Cos(first), "y0")
    graph.add_output(b.Exp(second), "y1")
    optimised = PassManager("canonicalize,canonicalize,dce", verify=True).run(graph).model
    assert sorted(n.op for n in optimised.nodes()) == ["Cos", "Exp", "Sin"]
    got = evaluate(optimised, {"x": np.array([0.5, 1.0])})
    assert np.array_equal(got["y1"], np.exp(np.sin([0.5, 1.0])))


@pytest.mark.parametrize("taken", [True, False])
def test_gradient_of_an_if_whose_branches_differ_in_shape(taken: bool) -> None:
    """What uses the result fits one branch alone: the cotangent has an extent that the other branch has not."""
    graph = Graph()
    b = Builder(graph)
    x, c = graph.add_input("x", Type(FLOAT64, (2, 3))), graph.add_input("c", Type(BOOL, ()))
    bodies = {}
    for name in ("then_branch", "else_branch"):
        bodies[name] = Graph(name)
        inner, a = Builder(bodies[name]), bodies[name].add_input("a", x.type)
        wide = name == "then_branch"
        bodies[name].add_output(inner.Concat(inner.Sin(a), inner.Slice(a, [0], [1], [1]), axis=1) if wide else a, "r")
    result = b.add("If", [c], captures=[x], subgraphs=bodies)
    rows = b.MatMul(result, np.arange(8.0).reshape(4, 2)) if taken else b.Mul(result, np.ones((1, 3)))
    graph.add_output(rows, "y")
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3)), "c": np.asarray(taken)}
    joint = with_adjoint(graph, ["x"]).graph
    verify(joint)
    check_gradients(graph, feeds, ["x"], step=1e-3, rtol=1e-8)


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
def test_outputs_of_subgraphs_that_nobody_uses_are_exported(op: str, kept: int) -> None:
    """The standard wants as many outputs of the node as its subgraphs have."""
    graph = Graph()
    b = Builder(graph)
    x, c = graph.add_input("x", Type(FLOAT64, (3,))), graph.add_input("c", Type(BOOL, ()))
    rows = {"If": "then_branch else_branch", "Loop": "body", "Scan": "body"}[op].split()
    bodies = {}
    for name in rows:
        body = bodies[name] = Graph(name)
        inner = Builder(body)
        if op == "Loop":
            body.add_input("i", Type(INT64, ()))
            body.add_output(body.add_input("going", Type(BOOL, ())), "going_on")
        a = body.add_input("a", Type(FLOAT64, ()) if op == "Scan" else x.type)
        for k, made in enumerate((inner.Sin(a), inner.Cos(a), inner.Exp(a))):
            body.add_output(made, f"r{k}")
    operands: dict[str, list[Any]] = {"If": [c], "Loop": [np.asarray(2), c], "Scan": [x]}
    attributes = {"num_scan_inputs": 1} if op == "Scan" else {}
    node = b.add_node(op, operands[op], attributes, outputs=3, captures=[] if op == "Scan" else [x], subgraphs=bodies)
    graph.add_output(node.output(kept), "y")
    for k in (2, 1, 0):
        if k != kept:
            graph.drop_output(node.output(k))
    verify(graph)
    proto = write_onnx(graph)
    feeds = {"x": np.array([0.5, 1.0, 2.0]), "c": np.asarray(True)}
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (got,) = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    needed = {v.name: feeds[v.name] for v in graph.inputs}
    np.testing.assert_allclose(got, evaluate(graph, needed)["y"])
    np.testing.assert_allclose(evaluate(read_onnx(proto), needed)["y"], got)


def test_a_loop_that_hands_through_what_another_output_views() -> None:
    """The state of a loop without iterations is the array itself, of which another output is a view."""
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (3,)))
    soft = b.Softmax(x)
    body = Graph("body")
    body.add_input("i", Type(INT64, ()))
    body.add_output(body.add_input("going", Type(BOOL, ())), "going_on")
    body.add_output(Builder(body).Sin(body.add_input("a", x.type)), "r")
    graph.add_output(b.add("Loop", [np.asarray(0), None, soft], subgraphs={"body": body}), "y0")
    graph.add_output(b.Transpose(soft, perm=[0]), "y1")
    got = NumpyProgram(graph).run({"x": np.arange(3.0)})
    assert not np.may_share_memory(got["y0"], got["y1"])
    assert np.array_equal(got["y0"], got["y1"])


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3)])
@pytest.mark.parametrize(("op", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_recurrent_layers_over_nothing(op: str, gates: int, shape: tuple[int, ...]) -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, shape))
    weights = np.ones((1, 2 * gates, 3)), np.ones((1, 2 * gates, 2))
    for value in b.add_several(op, [x, *weights], {"hidden_size": 2}, outputs=2):
        graph.add_output(value)
    got = list(evaluate(graph, {"x": np.zeros(shape)}).values())
    assert [a.shape for a in got] == [(shape[0], 1, shape[1], 2), (1, shape[1], 2)]
    assert not got[1].any()
