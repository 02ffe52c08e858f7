"""What differs between two graphs, line by line, nodes and values being told apart by their names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flowgrad.ir.compare import same_graph
from flowgrad.ir.graph import Array, Graph, same_array
from flowgrad.ir.text import format_node
from flowgrad.ir.types import dtype_of


def differences(a: Graph, b: Graph) -> Iterator[str]:
    """Yield a line for each input, constant, node and output that is in one graph only (- first, + second) or not the same."""
    found = False
    for line in (*_entries(a, b), *_constants(a, b), *_nodes(a, b)):
        found = True
        yield line
    if not found and (rest := same_graph(a, b, origins=False)) is not None:
        yield rest


def _entries(a: Graph, b: Graph) -> Iterator[str]:
    for what, mine, other in (("input", _inputs(a), _inputs(b)), ("output", _outputs_of(a), _outputs_of(b))):
        yield from _changes({n: f"{what} {t}" for n, t in mine.items()}, {n: f"{what} {t}" for n, t in other.items()})


def _inputs(graph: Graph) -> dict[str, str]:
    return {v.name: f"%{v.name}: {v.type!r}" for v in graph.inputs}


def _outputs_of(graph: Graph) -> dict[str, str]:
    return {n.name: f"%{n.name}: {n.input(0).type!r}" for n in graph.output_entries}


def _constants(a: Graph, b: Graph) -> Iterator[str]:
    mine, other = ({v.name: v for v in g.constants if v.name} for g in (a, b))
    yield from _changes({n: f"constant %{n}: {v.type!r}" for n, v in mine.items()},
                        {n: f"constant %{n}: {v.type!r}" for n, v in other.items()})
    for name in mine:
        x, y = mine[name].producer.data, other[name].producer.data if name in other else None
        if x is not None and y is not None and x.shape == y.shape and x.dtype == y.dtype and not same_array(x, y):
            yield f"~ constant %{name}: {distance(x, y)}"


def _is_number(array: Array) -> bool:
    return dtype_of(array.dtype).kind in ("float", "int", "uint", "bool")


def distance(x: Array, y: Array) -> str:
    """Return by how much arrays of one shape and dtype differ."""
    apart = int((x != y).sum())
    if not _is_number(x):
        return f"{apart} of {x.size} elements differ"
    wide = np.abs(x.astype(np.float64) - y.astype(np.float64))
    return f"{apart} of {x.size} elements differ, by up to {np.nanmax(wide, initial=0):.4g}"


def _nodes(a: Graph, b: Graph) -> Iterator[str]:
    yield from _changes(*({node.label or f"{node.op} {node.key}": format_node(node) for node in g.nodes()} for g in (a, b)))


def _changes(mine: dict[str, str], other: dict[str, str]) -> Iterator[str]:
    for name, text in mine.items():
        if other.get(name) != text:
            yield f"- {text}"
            if name in other:
                yield f"+ {other[name]}"
    yield from (f"+ {text}" for name, text in other.items() if name not in mine)
