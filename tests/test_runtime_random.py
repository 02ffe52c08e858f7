"""Random graphs with much reuse and many views: the program gives what the reference evaluator gives."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.types import FLOAT64, Dim, Type
from flowgrad.runtime.numpy_program import NumpyProgram

ROWS, COLUMNS = 4, 6


def grow(draw: st.DrawFn, b: Builder, values: list[Value]) -> Value:
    """Return one more value of shape [4, 6] (or [N, 6] with N = 4 at run time) made of earlier ones."""
    pick = st.sampled_from(values)
    x = draw(pick)
    kind = draw(st.integers(0, 13))
    if kind <= 2:
        return b.add(("Add", "Sub", "Mul")[kind], [x, draw(pick)])
    if kind <= 5:
        return b.add(("Tanh", "Neg", "Relu")[kind - 3], [x])
    if kind == 6:  # views there and back
        return b.Transpose(b.Tanh(b.Transpose(x, perm=[1, 0])), perm=[1, 0])
    if kind == 7:
        return b.Reshape(b.Reshape(x, [-1]), [-1, COLUMNS])
    if kind == 8:
        half = b.Slice(x, [0], [3], [1])
        return b.Concat(half, b.Slice(draw(pick), [3], [6], [1]), axis=1)
    if kind == 9:
        return b.Slice(x, [-1], [-100], [1], [-1])
    if kind == 10:
        return b.Mul(x, b.ReduceSum(draw(pick), [1]))
    if kind == 11:
        return b.Tanh(b.MatMul(b.MatMul(x, b.Transpose(draw(pick), perm=[1, 0])), draw(pick)))
    if kind == 12:
        return b.Squeeze(b.Unsqueeze(x, [0]), [0])
    return b.Where(b.Greater(x, draw(pick)), x, b.Mul(x, 0.5))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    symbolic = draw(st.booleans())
    graph = Graph("random")
    b = Builder(graph)
    shape = (Dim.named("N") if symbolic else ROWS, COLUMNS)
    values = [graph.add_input(n, Type(FLOAT64, shape)) for n in ("x", "y")]
    for _ in range(draw(st.integers(1, 25))):
        values.append(grow(draw, b, values[-6:] if draw(st.booleans()) else values))
    chosen = draw(st.lists(st.sampled_from(values), min_size=1, max_size=5))
    for i, value in enumerate([*chosen, values[-1]]):
        graph.add_output(value, f"out{i}")
    return graph


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_random_graphs(graph: Graph) -> None:
    program = NumpyProgram(graph, threads=1)
    results = []
    for seed in range(3):  # the same buffers serve all three
        rng = np.random.default_rng(seed)
        feeds = {n: rng.standard_normal((ROWS, COLUMNS)) for n in ("x", "y")}
        kept = {n: a.copy() for n, a in feeds.items()}
        got, expected = program.run(feeds), evaluate(graph, feeds)
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-9, atol=1e-9, err_msg=name)
        for name, array in kept.items():
            np.testing.assert_array_equal(feeds[name], array)
        results.append((got, expected))
    for got, expected in results:  # later runs wrote over nothing that was handed out
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-9, atol=1e-9, err_msg=name)
    arrays = list(results[-1][0].values())
    for i, a in enumerate(arrays):
        assert all(not np.shares_memory(a, other) for other in arrays[:i])
