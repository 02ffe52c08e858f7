"""Graphs and runners that the tests of the program share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import INITIALIZER, PARAMETER, Array, Graph
from flowgrad.ir.types import FLOAT32, FLOAT64, Dim, Type
from flowgrad.passes.differentiate import adjoint
from flowgrad.runtime import engines
from flowgrad.runtime.program import Program

N, M = Dim.named("N"), Dim.named("M")


def mlp(sizes: tuple[int, ...] = (4, 16, 16, 1), *, batch: int | Dim = N, seed: int = 0, dtype: Any = FLOAT32,
        gradient: bool = True) -> Graph:
    """Return a tanh network with its squared sum, and gradients of the weights."""
    rng = np.random.default_rng(seed)
    graph = Graph("mlp")
    b = Builder(graph)
    h = graph.add_input("x", Type(dtype, (batch, sizes[0])))
    weights = []
    for i, (n, m) in enumerate(zip(sizes, sizes[1:], strict=False)):
        w = graph.add_constant(rng.standard_normal((n, m)).astype(dtype.numpy) / np.sqrt(n, dtype=dtype.numpy), f"w{i}",
                               PARAMETER if gradient else INITIALIZER)
        c = graph.add_constant(rng.standard_normal(m).astype(dtype.numpy), f"b{i}", PARAMETER if gradient else INITIALIZER)
        h = b.Add(b.MatMul(h, w), c)
        if i < len(sizes) - 2:
            h = b.Tanh(h)
        weights += [w, c]
    loss = b.ReduceSum(b.Mul(h, h), keepdims=0)
    graph.add_output(loss, "loss")
    if gradient:
        found = adjoint(graph, [(loss, graph.add_constant(np.ones((), dtype.numpy)))], weights)
        for w, w_bar in zip(weights, found, strict=True):
            assert w_bar is not None
            graph.add_output(w_bar, f"{w.name}_grad")
    return graph


def feed(n: int, k: int = 4, dtype: Any = np.float32, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((n, k)).astype(dtype)}


def assert_bitwise(got: dict[str, Array], expected: dict[str, Array]) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype, name
        assert got[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


def pointwise(op: str = "Tanh", *, shape: tuple[Any, ...] = (N, 3), dtype: Any = FLOAT64) -> Graph:
    graph = Graph("pointwise")
    graph.add_output(getattr(Builder(graph), op)(graph.add_input("x", Type(dtype, shape))), "y")
    return graph


ENGINES = ("numpy", "ort")
RUNNERS = (*ENGINES, "evaluate")


def skip_unless_ready(engine: str) -> None:
    if engines.engines()[engine] != "ready":
        pytest.skip(engines.engines()[engine])


def compiled(graph: Graph, engine: str) -> Program:
    """Return a program; skips the test where the engine cannot start."""
    skip_unless_ready(engine)
    return engines.compile_graph(graph, engine)


def runner(how: str, graph: Graph) -> Callable[[dict[str, Any]], dict[str, Array]]:
    """Return what runs ``graph`` on feeds: the program of an engine, or the evaluator."""
    return partial(evaluate, graph) if how == "evaluate" else compiled(graph, how).run
