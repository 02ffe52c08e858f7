"""The cse pass: one node for applications of one op to the same operands."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.ops.registry import OpDef, Trait, opdef
from flowgrad.ir.types import merge_types
from flowgrad.passes.edits import (
    all_graphs,
    is_literal,
    is_pinned,
    is_removable_constant,
    mark_bypassed,
    recompute_of,
    substitute,
)
from flowgrad.passes.registry import pass_
from flowgrad.passes.rewrite import permitted


@pass_("cse", kind="exact")
def cse(graph: Graph) -> None:
    """Merge nodes that compute the same: equal op, attributes, operands and subgraphs.

    Random and pinned nodes are never merged, nor nodes of different recomputations. Of constants, only literals are merged: an
    initializer keeps its own name, so that it can be given another value.
    """
    digests: dict[int, tuple[int, bool]] = {}
    table: dict[Hashable, int] = {}
    for inner in all_graphs(graph):
        _merge(inner, digests)
        if inner is not graph:
            digests[id(inner)] = _digest(inner, digests, table)


def _merge(graph: Graph, digests: Mapping[int, tuple[int, bool]]) -> None:
    replaced = _equal_literals(graph)

    def number(value: Value) -> int:
        return id(replaced.get(value, value))

    seen: dict[Hashable, Node] = {}
    doomed: list[Node] = []
    for node in graph.nodes():
        if _is_random(node, digests) or is_pinned(graph, node):
            continue
        first = seen.setdefault((_key(node, number, digests), recompute_of(node)), node)
        if first is node or not _agree(first, node) or not permitted("cse", node):
            continue
        for old, new in zip(node.outputs, first.outputs, strict=True):
            if old is not None and new is not None:
                replaced[old] = new
                graph.set_type(new, merge_types(new.type, old.type))
                new.symbolic = old.symbolic if new.symbolic is None else new.symbolic
        mark_bypassed(first, "cse")
        doomed.append(node)
    substitute(graph, replaced)
    for node in reversed(doomed):
        graph.remove(node)
    for value in replaced:
        if value.producer.op == "Constant" and is_removable_constant(graph, value.producer):
            graph.remove(value.producer)


def _is_random(node: Node, digests: Mapping[int, tuple[int, bool]]) -> bool:
    if Trait.RANDOM in opdef(node.op).traits:
        return True
    return bool(node.subgraphs) and any(digests[id(g)][1] for g in node.subgraphs.values())


def _equal_literals(graph: Graph) -> dict[Value, Value]:
    seen: dict[Hashable, Value] = {}
    replaced: dict[Value, Value] = {}
    for value in graph.constants:
        array = value.constant
        if array is None or not is_literal(value) or value.name in graph.pinned:
            continue
        first = seen.setdefault((value.type, _bytes(array)), value)
        if first is not value and permitted("cse", value.producer):
            replaced[value] = first
    return replaced


def _bytes(array: np.ndarray[Any, Any]) -> Hashable:
    return tuple(array.ravel().tolist()) if array.dtype == object else array.tobytes()


def _agree(first: Node, second: Node) -> bool:
    """Return whether declared types do not conflict and the same outputs are asked for."""
    if [v is None for v in first.outputs] != [v is None for v in second.outputs]:
        return False
    try:
        for a, b in zip(first.outputs, second.outputs, strict=True):
            if a is not None and b is not None:
                merge_types(a.type, b.type)
    except ValidationError:
        return False
    return True


def _key(node: Node, number: Callable[[Value], int], digests: Mapping[int, tuple[int, bool]]) -> Hashable:
    """Return what equal computations share; ``number`` identifies operands."""
    definition = opdef(node.op)
    inputs = [0 if v is None else number(v) for v in node.inputs]
    if len(inputs) == 2 and Trait.COMMUTATIVE in definition.traits:
        inputs.sort()
    bodies = tuple([(name, digests[id(g)][0]) for name, g in sorted(node.subgraphs.items())]) if node.subgraphs else ()
    captures = tuple(map(number, node.captures)) if node.captures else ()
    absent = tuple([v is None for v in node.outputs]) if None in node.outputs else len(node.outputs)
    return node.op, tuple(inputs), captures, _attributes(node, definition), bodies, absent


def _attributes(node: Node, definition: OpDef) -> Hashable:
    if not node.attributes and not definition.attributes:
        return ()
    given = {**{k: v for k, v in definition.attributes.items() if k not in node.attributes}, **node.attributes}
    return tuple((name, _hashable(given[name])) for name in sorted(given))


def _hashable(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, _bytes(value)
    if isinstance(value, (tuple, list)):
        return tuple(_hashable(v) for v in value)
    if isinstance(value, float):
        return "float", value.hex()
    return type(value).__name__, value if isinstance(value, Hashable) else repr(value)


def _digest(graph: Graph, digests: Mapping[int, tuple[int, bool]], table: dict[Hashable, int]) -> tuple[int, bool]:
    """Return a number that graphs share exactly if they are equal up to names, and whether random numbers are drawn."""
    numbers: dict[Value, int] = {}

    def number(value: Value) -> int:
        """Return the number of a value, the same for equal literals; other constants belong to their graph alone."""
        if value not in numbers:
            array = value.constant
            key = (value.type, _bytes(array)) if array is not None and is_literal(value) else ("value", id(value))
            numbers[value] = table.setdefault(key, -1 - len(table))
        return numbers[value]

    for position, value in enumerate(graph.inputs):
        numbers[value] = 1 + position
    count = len(numbers)
    keys: list[Hashable] = [tuple((v.type.dtype.name, v.type.rank) for v in graph.inputs)]
    is_random = False
    for node in graph.nodes():
        is_random |= _is_random(node, digests)
        keys.append((_key(node, number, digests), recompute_of(node)))
        for made in node.outputs:
            count += 1
            if made is not None:
                numbers[made] = count
    keys.append(tuple(number(v) for v in graph.outputs))
    return table.setdefault(tuple(keys), len(table)), is_random
