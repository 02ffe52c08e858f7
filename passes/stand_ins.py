"""What stands for values takes their places: after the batch pass, many examples or seeds for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flowgrad.ir.graph import ENTRIES, Graph, Value
from flowgrad.ir.reach import dependents
from flowgrad.passes.batch import Examples
from flowgrad.passes.edits import remove_dead


def take_places(graph: Graph, olds: Sequence[Value], examples: Examples, names: Mapping[Value, str]) -> None:
    """Remove what is computed from ``olds``, the inputs of one example, and give the names to what stands for it."""
    stale = dependents(graph.nodes(), olds)
    gone = {y.name for y in stale}
    pinned = [name for name in graph.pinned if name in gone]
    for name in pinned:
        del graph.pinned[name]
    remove_dead(graph, [y.producer for y in stale])
    for x in olds:
        graph.remove(x.producer)
    for y, many in {**examples.known, **examples.rows}.items():
        name = names.get(y, "")
        if name and name not in graph.values and graph.values.get(many.name) is many and many.producer.op not in ENTRIES:
            graph.rename(many, name)
            many.producer.name = many.producer.name or (y.producer.name if y.producer.op == many.producer.op else "")
    for name in pinned:
        if name in graph.values:
            graph.pin(graph.value(name))
