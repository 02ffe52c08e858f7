"""Exported derivatives that add up in several threads of onnxruntime: a few runs; the command ``races`` makes many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.exchange.lowering import lowered
from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.types import FLOAT32, INT64, Dim, Type
from flowgrad.passes.expand import expand
from flowgrad.tools.maintenance import races
from tests.cases.indexing import CASES
from tests.op_cases import Case

SCATTERS = [case for case in CASES if case.op == "ScatterND" and not case.refuses]


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("case", SCATTERS, ids=[c.id for c in SCATTERS])
def test_scattered_rows_are_scattered_elements(case: Case, symbolic: bool) -> None:
    arrays = case.arrays()
    graph, node = case.graph(arrays, symbolic)
    expected = evaluate(graph, case.feeds(arrays))
    expand(graph, lambda n: n is node)
    assert "ScatterND" not in {n.op for n in graph.nodes()}
    for got, wanted in zip(evaluate(graph, case.feeds(arrays)).values(), expected.values(), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_rows_of_unknown_rank_are_scattered_elements() -> None:
    graph = Graph("unknown")
    data, indices, updates = (graph.add_input(n, Type(t, None)) for n, t in zip("diu", (FLOAT32, INT64, FLOAT32), strict=True))
    graph.add_output(Builder(graph).ScatterND(data, indices, updates, reduction="add"), "y")
    assert "ScatterND" not in {n.op for n in lowered(graph).nodes()}
    d, i = np.ones((3, 2, 2), np.float32), np.array([[0, -1], [0, 1], [2, 0]])
    u = np.arange(6, dtype=np.float32).reshape(3, 2)
    wanted = d.copy()
    np.add.at(wanted, tuple(i.T), u)
    np.testing.assert_array_equal(evaluate(lowered(graph), {"d": d, "i": i, "u": u})["y"], wanted)


@pytest.mark.parametrize(("indices", "stays"), [([[0], [2]], True), ([[0], [0]], False), ([[1], [-2]], False), (None, False)])
def test_only_rows_that_cannot_meet_stay(indices: Any, stays: bool) -> None:
    graph = Graph("scatter")
    x, u = graph.add_input("x", Type(FLOAT32, (3,))), graph.add_input("u", Type(FLOAT32, (2,)))
    i = graph.add_input("i", Type(INT64, (2, 1))) if indices is None else graph.add_constant(np.array(indices))
    graph.add_output(Builder(graph).ScatterND(x, i, u, reduction="add"), "y")
    assert ("ScatterND" in {n.op for n in lowered(graph).nodes()}) == stays


def embedding(b: Builder, graph: Graph) -> fg.Model:
    x, i = graph.add_input("x", Type(FLOAT32, (Dim.named("V"), 8))), graph.add_input("i", Type(INT64, (Dim.named("N"),)))
    graph.add_output(b.Gather(x, i), "y")
    return fg.vjp(fg.Model(graph), of="y", wrt="x")


def vectors(b: Builder, graph: Graph) -> fg.Model:
    x, i = graph.add_input("x", Type(FLOAT32, (3, 3, 2))), graph.add_input("i", Type(INT64, (Dim.named("N"), 2)))
    graph.add_output(b.GatherND(x, i), "y")
    return fg.vjp(fg.Model(graph), of="y", wrt="x")


@pytest.mark.parametrize("make", [embedding, vectors])
def test_what_no_thread_may_lose_is_added_one_by_one(make: Callable[[Builder, Graph], fg.Model]) -> None:
    graph = Graph("reads")
    exported = make(Builder(graph), graph).to_onnx().graph
    assert not [n for n in exported.node if n.op_type == "ScatterND"]


@pytest.mark.parametrize("threads", races.THREADS)
def test_no_update_is_lost(threads: int) -> None:
    pytest.importorskip("onnxruntime")
    for name, model, feeds in races.accumulating(rows=8192):
        assert races.lost(model, feeds, threads, 2) == 0, name


def test_the_engine_ort_loses_none() -> None:
    pytest.importorskip("onnxruntime")
    graph = Graph("reads")
    model = embedding(Builder(graph), graph)
    y_grad: Array = np.asarray(np.random.default_rng(0).integers(0, 4, (200_000, 8)), np.float32)
    feeds = {"x": np.zeros((2, 8), np.float32), "i": np.zeros(200_000, np.int64), "y_grad": y_grad}
    program = model.compile(engine="ort", threads=2)
    for _ in range(4):
        np.testing.assert_array_equal(program.run(feeds)["x_grad"][0], y_grad.sum(0))
