"""Copy the nodes of one graph into another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph, Node, Value
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
