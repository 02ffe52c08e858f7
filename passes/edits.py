"""Edits that several passes share: batched substitution, removal of dead nodes, walks over closed subgraphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from flowgrad.ir.graph import ENTRIES, FEEDABLE, INITIALIZER, LITERAL, Graph, Node, Value
from flowgrad.ir.ops.registry import is_random


def all_graphs(graph: Graph) -> list[Graph]:
    """Return ``graph`` and all its subgraphs, every subgraph before the graph that holds it."""
    found = [graph]
    for current in found:
        for node in current.nodes() if current.has_subgraphs else ():
            found += node.subgraphs.values()
    return found[::-1]


def fingerprint(graph: Graph) -> tuple[int, ...]:
    """Return the versions of a graph and its subgraphs: they differ after every edit."""
    return tuple(g.version for g in all_graphs(graph))


def substitute(graph: Graph, mapping: Mapping[Value, Value]) -> None:
    """Let the users of every key of ``mapping`` use its value instead, editing each user once."""
    users: dict[Node, None] = {}
    for old in mapping:
        users.update(dict.fromkeys(old.uses.values()))
    for node in users:
        inputs = [v if v is None else mapping.get(v, v) for v in node.inputs]
        graph.set_inputs(node, inputs, [mapping.get(v, v) for v in node.captures])


def is_pinned(graph: Graph, node: Node) -> bool:
    """Return whether an output of a node must survive as it is."""
    pinned = graph.pinned
    if pinned:
        for value in node.outputs:
            if value is not None and value.name in pinned:
                return True
    return False


def is_dead(graph: Graph, node: Node) -> bool:
    """Return whether nobody uses any output of an op node, and none is pinned."""
    for value in node.outputs:
        if value is not None and value.uses:
            return False
    return not is_pinned(graph, node)


def remove_dead(graph: Graph, nodes: Iterable[Node], *, keep_random: bool = False) -> list[Node]:
    """Remove those of ``nodes`` that are dead, then what only they used (constants excepted); return them."""
    removed: list[Node] = []
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.key not in graph.entries or node.op in ENTRIES or not is_dead(graph, node):
            continue
        if keep_random and is_random(node):
            continue
        operands = node.operands
        graph.remove(node)
        removed.append(node)
        stack += [v.producer for v in dict.fromkeys(operands) if not v.uses]
    return removed


def is_removable_constant(graph: Graph, node: Node) -> bool:
    """Return whether a Constant entry may go: nobody uses it, no run can feed it, and it is not pinned."""
    return not node.output().uses and node.role not in FEEDABLE and not is_pinned(graph, node)


def is_literal(value: Value) -> bool:
    """Return whether ``value`` is a constant without a role that a user could name."""
    return value.constant is not None and value.producer.role == LITERAL


def is_shared(weight: Value, apart_from: Callable[[Node], bool] = lambda node: False) -> bool:
    """Return whether a float constant has several users, those that ``apart_from`` accepts left out."""
    return weight.type.dtype.is_float and sum(not apart_from(n) for n in weight.users) > 1


def has_shared_weights(graph: Graph) -> bool:
    """Return whether the pass ``fold`` left something to ``fold{shared=true}``."""
    return any(v.producer.role == INITIALIZER and is_shared(v) for inner in all_graphs(graph) for v in inner.constants)


BYPASSED = "flowgrad.bypassed"
"""The metadata key of a node whose results no longer stand before all that used them: the pass or rule that did it."""


def mark_bypassed(node: Node, by: str) -> None:
    """Note that some users of a node's results get round them now, or that other values' users came to them.

    Derivatives with respect to such a value would be those of another function: see ``selection.check_whole``.
    """
    node.metadata.setdefault(BYPASSED, by)


def recompute_of(node: Node) -> str:
    """Return which recomputation a node belongs to: "" for a node of the forward pass proper."""
    if not node.metadata and not node.attributes:
        return ""
    return str(node.metadata.get("recompute", node.attributes.get("recompute", "")))


def sweep(graph: Graph) -> None:
    """Remove all nodes that no output needs, and unused constants; inputs stay."""
    remove_dead(graph, reversed(graph.nodes()))
    for value in graph.constants:
        if not value.uses:
            graph.remove(value.producer)
