"""The dce pass: removes what no output needs."""

from __future__ import annotations

from flowgrad.ir.graph import Graph, Node
from flowgrad.ir.ops.registry import opdef
from flowgrad.passes.edits import all_graphs, fingerprint, is_dead, is_removable_constant
from flowgrad.passes.prune import prune_subgraphs
from flowgrad.passes.registry import pass_
from flowgrad.passes.rewrite import may_change, permitted


@pass_("dce", kind="exact")
def dce(graph: Graph) -> None:
    """Remove dead nodes, constants and optional outputs, in subgraphs too; inputs and parameters stay.

    Linear in nodes per level of nesting: what dies inside a body can free what the body captures.
    """
    before = None
    while before != (before := fingerprint(graph)):
        for inner in all_graphs(graph)[::-1]:
            _sweep(inner)


def _sweep(graph: Graph) -> None:
    for node in reversed(graph.nodes()):
        if is_dead(graph, node):
            if permitted("dce", node):
                graph.remove(node)
            continue
        _drop_outputs(graph, node)
        if node.subgraphs and may_change():
            before = _versions(graph, node)
            prune_subgraphs(graph, node)
            if _versions(graph, node) != before:
                permitted("prune", node)
    for value in graph.constants:
        if is_removable_constant(graph, value.producer) and permitted("dce", value.producer):
            graph.remove(value.producer)


def _versions(graph: Graph, node: Node) -> list[tuple[int, ...]]:
    """Return the versions of a graph and of the subgraphs of one of its nodes."""
    return [(graph.version,), *(fingerprint(inner) for inner in node.subgraphs.values())]


def _drop_outputs(graph: Graph, node: Node) -> None:
    definition = opdef(node.op)
    if definition.variadic_outputs:
        return  # the number of outputs has a meaning
    for value in node.outputs[definition.required_outputs:]:
        if value is not None and not value.uses and value.name not in graph.pinned and permitted("dce", node):
            graph.drop_output(value)
