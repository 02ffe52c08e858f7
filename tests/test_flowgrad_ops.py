"""The operators of the flowgrad domain: their expansions, and that many reads of one value cost linear memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.ops.registry import FLOWGRAD, Trait, opdef
from flowgrad.ir.types import FLOAT32, FLOAT64, INT64, Dim, DimLike, Type
from flowgrad.passes.canonicalize_shapes import permutation
from flowgrad.passes.differentiate import adjoint
from flowgrad.passes.expand import expand
from tests.cases.accumulation import CASES
from tests.op_cases import Case

IDS = [c.id for c in CASES]


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_expansion_gives_the_same_values(case: Case, symbolic: bool) -> None:
    arrays = case.arrays()
    graph, _ = case.graph(arrays, symbolic)
    feeds = case.feeds(arrays)
    expected = evaluate(graph, feeds)
    expand(graph, lambda n: opdef(n.op).domain == FLOWGRAD)
    assert not [n.op for n in graph.nodes() if opdef(n.op).domain == FLOWGRAD]
    for node in graph.nodes():  # one that permutes nothing is misread by older runtimes
        assert node.op != "Transpose" or permutation(node) != list(range(len(node.output().shape)))
    for got, wanted in zip(evaluate(graph, feeds).values(), expected.values(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def bytes_made(graph: Graph, since: int) -> int:
    """Return the bytes of all tensors that nodes of key ``since`` and later make, views left out."""
    total = 0
    for node in graph.nodes():
        if node.key < since or Trait.VIEW in opdef(node.op).traits:
            continue
        total += sum(int(np.prod(v.type.static_shape)) * v.type.dtype.itemsize for v in node.results)
    return total


def read_rows(b: Builder, x: Value, how: str, count: int) -> list[Value]:
    if how == "Slice":
        return [b.Slice(x, [i], [i + 1], [0]) for i in range(count)]
    if how == "Gather":
        return [b.Gather(x, np.int64(i)) for i in range(count)]
    if how == "overlapping":
        return [b.Slice(x, [i], [i + 2], [0]) for i in range(count - 1)]
    if how == "GatherND":
        return [b.GatherND(x, np.array([[i]])) for i in range(count)]
    if how == "GatherElements":
        return [b.GatherElements(x, np.full((1, 8), i)) for i in range(count)]
    return list(b.add_several("Split", [x], {"num_outputs": count}, outputs=count))


@pytest.mark.parametrize("how", ["Slice", "Gather", "Split", "overlapping", "GatherND", "GatherElements"])
def test_many_reads_of_one_value_take_linear_memory(how: str) -> None:
    """The adjoint of 500 reads of single rows of one value holds at most three times the bytes of the pieces.

    GatherElements has an index of twice the bytes for each element.
    """
    count = 500
    graph = Graph()
    x = graph.add_input("x", Type(FLOAT32, (count, 8)))
    b = Builder(graph)
    pieces = read_rows(b, x, how, count)
    seeds = [(p, graph.add_input(f"{i}_ct", p.type)) for i, p in enumerate(pieces)]
    start = graph._next_key
    (x_bar,) = adjoint(graph, seeds, [x])
    assert x_bar is not None
    graph.add_output(x_bar, "x_grad")
    size = sum(int(np.prod(p.type.static_shape)) for p in pieces) * 4
    bound = 4.1 if how == "GatherElements" else 3.1
    assert bytes_made(graph, start) <= bound * size
    rng = np.random.default_rng(0)
    feeds = {"x": np.zeros((count, 8), np.float32)}
    feeds |= {y_bar.name: rng.standard_normal(y_bar.type.static_shape).astype(np.float32) for _, y_bar in seeds}
    expected = evaluate(graph, feeds)["x_grad"]
    expand(graph, lambda n: opdef(n.op).domain == FLOWGRAD)
    assert bytes_made(graph, start) <= bound * size
    np.testing.assert_allclose(evaluate(graph, feeds)["x_grad"], expected, rtol=1e-6)


def sliced_graph(shape: tuple[DimLike, ...], slices: list[tuple[Any, ...]]) -> tuple[Graph, list[Value]]:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, shape))
    names = sorted({a for s in slices for a in s if isinstance(a, str)})
    fed = {a: graph.add_input(a, Type(INT64, (1,))) for a in names}
    where = [[fed[a] if isinstance(a, str) else list(a) for a in s] for s in slices]
    return graph, [b.Slice(x, *s) for s in where]


SLICES: dict[str, list[tuple[Any, ...]]] = {
    "tiles": [((0,), (2,), (0,)), ((2,), (6,), (0,))],
    "gaps": [((1,), (2,), (1,)), ((3,), (4,), (1,))],
    "shift": [((0,), (-1,), (0,)), ((1,), (99,), (0,))],
    "two-axes": [((1, 0), (3, 4), (0, 1)), ((-2, 1), (9, 3), (0, 1))],
    "strided": [((0,), (99,), (1,), (2,)), ((1,), (99,), (1,), (2,))],
    "backwards": [((-1,), (-99,), (0,), (-1,))],
    "mixed": [((0,), (2,), (0,)), ((3,), (1,), (1,), (-1,))],
    "run-time": [("s", "e", (0,)), ((0,), "e", (1,))],
    "many": [((i,), (i + 5,), (0,)) for i in range(6)],
    "nothing": [((3,), (1,), (0,)), ((0,), (1,), (0,))],
}


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", SLICES)
def test_slices_of_one_value(name: str, symbolic: bool) -> None:
    """The combined cotangent, its expansion and NumPy's own writing agree."""
    shape: tuple[DimLike, ...] = (Dim.named("n"), Dim.named("m")) if symbolic else (6, 5)
    graph, pieces = sliced_graph(shape, SLICES[name])
    rng = np.random.default_rng(1)
    feeds: dict[str, Any] = {"x": rng.standard_normal((6, 5))}
    feeds |= {v.name: np.array([{"s": -4, "e": 3}[v.name]]) for v in graph.inputs[1:]}
    seeds = []
    expected = np.zeros((6, 5))
    for i, piece in enumerate(pieces):
        seeds.append((piece, graph.add_input(f"{i}_ct", piece.type)))
        starts, ends, axes, *steps = [feeds.get(a, a) if isinstance(a, str) else a for a in SLICES[name][i]]
        index = [slice(None), slice(None)]
        for k, axis in enumerate(axes):
            index[axis] = slice(int(starts[k]), int(ends[k]), steps[0][k] if steps else 1)
        place = expected[tuple(index)]
        feeds[f"{i}_ct"] = rng.standard_normal(place.shape)
        place += feeds[f"{i}_ct"]
    (x_bar,) = adjoint(graph, seeds, [graph.value("x")])
    assert x_bar is not None
    graph.add_output(x_bar, "x_grad")
    np.testing.assert_allclose(evaluate(graph, feeds)["x_grad"], expected, rtol=1e-12)
    expand(graph, lambda n: opdef(n.op).domain == FLOWGRAD)
    np.testing.assert_allclose(evaluate(graph, feeds)["x_grad"], expected, rtol=1e-12)


GATHERS: dict[str, tuple[int, list[Any]]] = {
    "rows": (0, [0, 3, 3, -1]),
    "columns": (1, [[1, 1], [[0, -1], [2, 1]]]),
    "every-row": (0, [[2, 3], [0, 1], [-2, -1]]),
    "every-column": (1, [4, 3, 2, 1, 0]),
    "none": (0, [[], [5]]),
}


@pytest.mark.parametrize("fed", [False, True], ids=["constant", "fed"])
@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", GATHERS)
def test_gathers_of_one_value(name: str, symbolic: bool, fed: bool) -> None:
    """The combined cotangent, its expansion and NumPy's own writing agree."""
    axis, all_indices = GATHERS[name]
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (Dim.named("n"), Dim.named("m")) if symbolic else (6, 5)))
    rng = np.random.default_rng(1)
    feeds: dict[str, Any] = {"x": rng.standard_normal((6, 5))}
    seeds, expected = [], np.zeros((6, 5))
    for i, given in enumerate(all_indices):
        indices = np.asarray(given, np.int64)
        if fed:
            feeds[f"{i}_at"] = indices
        value = graph.add_input(f"{i}_at", Type(INT64, indices.shape)) if fed else indices
        piece = b.Gather(x, value, axis=axis)
        seeds.append((piece, graph.add_input(f"{i}_ct", piece.type)))
        feeds[f"{i}_ct"] = rng.standard_normal(np.take(expected, indices, axis).shape)
        index: Any = (indices,) if axis == 0 else (slice(None), indices)
        np.add.at(expected, index, feeds[f"{i}_ct"])
    (x_bar,) = adjoint(graph, seeds, [x])
    assert x_bar is not None
    graph.add_output(x_bar, "x_grad")
    np.testing.assert_allclose(evaluate(graph, feeds)["x_grad"], expected, rtol=1e-12)
    expand(graph, lambda n: opdef(n.op).domain == FLOWGRAD)
    np.testing.assert_allclose(evaluate(graph, feeds)["x_grad"], expected, rtol=1e-12)


@pytest.mark.parametrize(("rows", "width"), [(500, 1), (500, 40), (4000, 3)])
@pytest.mark.parametrize("crowd", [0.0, 0.1, 1.0], ids=["spread", "one row crowded", "one row"])
def test_rows_are_added_up_however_often_they_are_named(rows: int, width: int, crowd: float) -> None:
    rng = np.random.default_rng(0)
    indices = rng.integers(-rows, rows, 2000)
    indices[rng.random(2000) < crowd] = 3
    updates = rng.standard_normal((2000, width))
    expected = np.zeros((rows, width))
    np.add.at(expected, indices, updates)
    got = opdef("GatherGrad").kernel(np.array([rows, width]), updates, indices)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
