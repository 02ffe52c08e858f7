"""Whether two graphs are the same: in structure, names, types, attributes and constants."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from flowgrad.ir.graph import Graph, Node, Value, same_array
from flowgrad.ir.text import format_node


def same_graph(a: Graph, b: Graph, *, origins: bool = True) -> str | None:
    """Return None if the graphs are the same, else the first difference in words.

    Nodes are told apart by what they compute, so their order does not matter; that of inputs, outputs and captures
    does. Of origins only the latest pass and its names count, and nothing if ``origins`` is False.
    """
    pending = [(a, b, "")]
    while pending:
        first, second, place = pending.pop()
        difference = next(_differences(first, second, origins), None)
        if difference is not None:
            return place + difference
        twins = {_label(n): n for n in second.nodes()}
        for node in first.nodes():
            twin = twins[_label(node)] if node.subgraphs else node
            pending += [(g, twin.subgraphs[name], f"{place}{name} of {_label(node)}: ")
                        for name, g in node.subgraphs.items()]
    return None


def _differences(a: Graph, b: Graph, origins: bool) -> Iterator[str]:
    if a.name != b.name:
        yield f"the graphs are called {a.name!r} and {b.name!r}"
    if a.metadata != b.metadata:
        yield f"the metadata are {a.metadata!r} and {b.metadata!r}"
    yield from _unequal("inputs", [repr(v) for v in a.inputs], [repr(v) for v in b.inputs])
    yield from _unequal("outputs", _outputs(a), _outputs(b))
    yield from _constant_differences(a, b)
    mine, others = ({_label(n): n for n in g.nodes()} for g in (a, b))
    for label in mine.keys() ^ others.keys():
        yield f"only the {'first' if label in mine else 'second'} graph has a node {label}"
    if len(a) != len(b):
        yield f"the graphs have {len(a)} and {len(b)} nodes"
    for label, node in mine.items():
        yield from _node_differences(a, node, b, others[label], origins)


def _unequal(what: str, a: list[str], b: list[str]) -> Iterator[str]:
    if a != b:
        place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        yield (f"{what} differ at {place}: {a[place] if place < len(a) else 'nothing'} and "
               f"{b[place] if place < len(b) else 'nothing'}")


def _outputs(graph: Graph) -> list[str]:
    return [f"{n.name} = {_reference(n.input(0))}: {n.input(0).type!r}" for n in graph.output_entries]


def _label(node: Node) -> str:
    return f"%{node.label}" if node.results else f"{node.op} without outputs {node.label}"


def _reference(value: Value | None) -> Any:
    """Return what says which value is meant: its name, or type and bytes of a nameless literal."""
    if value is None or value.name:
        return value and value.name
    data = value.producer.data
    return repr(value.type), b"" if data is None else data.tobytes()


def _constant_differences(a: Graph, b: Graph) -> Iterator[str]:
    mine, others = ({v.name: v for v in g.constants if v.name} for g in (a, b))
    for name in sorted(mine.keys() ^ others.keys()):
        yield f"only the {'first' if name in mine else 'second'} graph has the constant %{name}"
    for name, value in mine.items():
        x, y = value.producer, others[name].producer
        if x.role != y.role:
            yield f"%{name} is {x.role} in one graph and {y.role} in the other"
        if x.data is None or y.data is None:
            if x.data is not y.data:
                yield f"only one of the graphs has the data of %{name}"
        elif not same_array(x.data, y.data):
            yield f"the constant %{name} holds other data"


def _node_differences(a: Graph, x: Node, b: Graph, y: Node, origins: bool) -> Iterator[str]:
    shown = f"{format_node(x)}\n  and {format_node(y)}"
    if x.op != y.op:
        yield f"the operators differ: {shown}"
    for what in ("inputs", "captures"):
        if [_reference(v) for v in getattr(x, what)] != [_reference(v) for v in getattr(y, what)]:
            yield f"{what} differ: {shown}"
    if [v and (v.name, v.type) for v in x.outputs] != [v and (v.name, v.type) for v in y.outputs]:
        yield f"outputs differ: {shown}"
    if x.attributes.keys() != y.attributes.keys() or any(
        not _same_attribute(x.attributes[k], y.attributes[k]) for k in x.attributes
    ):
        yield f"attributes differ: {shown}"
    if (x.name, x.metadata) != (y.name, y.metadata):
        yield f"node names or metadata differ: {shown}"
    if x.subgraphs.keys() != y.subgraphs.keys():
        yield f"subgraphs differ: {shown}"
    if origins and a.origins[x.origin][:2] != b.origins[y.origin][:2]:
        yield f"origins differ: {a.origins[x.origin][:2]} and {b.origins[y.origin][:2]} of {shown}"


def _same_attribute(x: Any, y: Any) -> bool:
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return same_array(x, y)
    if isinstance(x, tuple) and isinstance(y, tuple):
        return len(x) == len(y) and all(_same_attribute(i, j) for i, j in zip(x, y, strict=True))
    if isinstance(x, float) and isinstance(y, float):
        return struct.pack("<d", x) == struct.pack("<d", y)
    return type(x) is type(y) and bool(x == y)
