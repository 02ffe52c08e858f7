"""Copy the nodes of one graph into another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.reach import needed_nodes


def inline(
    b: Builder,
    source: Graph,
    mapping: Mapping[Value, Value],
    wanted: Sequence[Value],
    *,
    skip: Callable[[Node], bool] | None = None,
) -> list[Value]:
    """Copy into ``b.graph`` what ``wanted`` (values of ``source``) needs; return their copies.

    ``mapping`` says which values of ``source`` (its inputs at least) stand for which values of the target. Nodes that
    ``skip`` accepts must have all their needed outputs in ``mapping``. Constants are copied, types inferred anew; what is
    pinned stays so.
    """
    known: dict[Value, Value] = dict(mapping)
    chosen = needed_nodes([n for n in source.nodes() if skip is None or not skip(n)], wanted, given=known)

    def target(value: Value) -> Value:
        if value not in known:
            entry = value.producer
            known[value] = b.graph.add_constant(entry.data, value.name and b.fresh(value.name), entry.role)
        return known[value]

    for node in chosen:
        names = ["" if v is None else b.fresh(v.name) for v in node.outputs]
        made = b.add_node(
            node.op,
            [None if v is None else target(v) for v in node.inputs],
            node.attributes,
            outputs=names,
            captures=[target(v) for v in node.captures],
            subgraphs={name: sub.copy() for name, sub in node.subgraphs.items()},
            name=node.name,
        )
        made.metadata, made.adjoint_rule = dict(node.metadata), node.adjoint_rule
        twins = [(v, w) for v, w in zip(node.outputs, b.passed(made), strict=True) if v is not None and w is not None]
        known.update(twins)
        for value, twin in twins:
            if value.name in source.pinned:
                b.graph.pin(twin)
    return [target(v) for v in wanted]


def rebuilt(source: Graph, constants: Mapping[Value, Array]) -> Graph:
    """Return ``source`` with other arrays for some named constants, of any shape, and all types inferred anew.

    Inputs, outputs, names and roles stay; what no output needs goes. Raises ValidationError, with the node, where an
    operator does not take what comes.
    """
    graph = Graph(source.name, source.limits)
    graph.metadata, graph.origins = dict(source.metadata), list(source.origins)
    mapping = {v: graph.add_input(v.name, v.type) for v in source.inputs}
    for value in source.constants:
        if value.name:
            data = constants.get(value, value.producer.data)
            mapping[value] = graph.add_constant(data, value.name, value.producer.role)
    entries = source.output_entries
    for entry, value in zip(entries, inline(Builder(graph), source, mapping, [e.input(0) for e in entries]), strict=True):
        graph.add_output(value, entry.name)
    return graph
