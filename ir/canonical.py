"""The order in which the text and msgpack forms write what a graph keeps in dicts and tables."""

from __future__ import annotations

from flowgrad.ir.graph import BUFFER, DEFAULT, INITIALIZER, LITERAL, PARAMETER, Graph, Node, Origin, Value
from flowgrad.ir.ops.registry import find_op

WRITTEN_ROLES = (PARAMETER, DEFAULT, INITIALIZER, BUFFER, LITERAL)


def subgraph_names(node: Node) -> list[str]:
    """Return the names of the subgraphs of a node: in the order its op declares them, then the others by name."""
    if not node.subgraphs:
        return []
    definition = find_op(node.op)
    declared = [] if definition is None else [n for n in definition.subgraphs if n in node.subgraphs]
    return declared + sorted(set(node.subgraphs) - set(declared))


def written_constants(graph: Graph, nodes: list[Node]) -> list[Value]:
    """Return the named constants by role, then the nameless literals by first use; unused nameless ones are left out."""
    constants = graph.constants
    named = [v for role in WRITTEN_ROLES for v in constants if v.name and v.producer.role == role]
    nameless = {v for v in constants if not v.name}
    used = [v for node in (*nodes, *graph.output_entries) for v in node.operands if v in nameless]
    return named + list(dict.fromkeys(used))


def written_origins(graph: Graph, nodes: list[Node]) -> tuple[list[Origin], dict[int, int]]:
    """Return the origins that nodes have, equal ones once, parents first; and the new id of each old one."""
    places: dict[Origin, int] = {graph.origins[0]: 0}
    renumbered: dict[int, int] = {0: 0}
    table: list[Origin] = [graph.origins[0]]
    for node in nodes:
        pending = [node.origin] if node.origin not in renumbered else []
        while pending:
            old = pending[-1]
            origin = graph.origins[old]
            missing = [] if old in renumbered else [p for p in origin.parents if p not in renumbered]
            if missing:
                pending.extend(reversed(missing))
                continue
            pending.pop()
            if old in renumbered:
                continue
            moved = Origin(origin.pass_name, origin.names, tuple(renumbered[p] for p in origin.parents))
            if moved not in places:
                places[moved] = len(table)
                table.append(moved)
            renumbered[old] = places[moved]
    return table, renumbered
