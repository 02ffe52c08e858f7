"""What depends on what: values and nodes on the way from some values to others, in one sweep over the order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from flowgrad.ir.graph import Node, Value


def _always(node: Node) -> bool:
    return True


def dependents(order: Iterable[Node], sources: Iterable[Value], *, passes: Callable[[Node], bool] = _always,
               keeps: Callable[[Value], bool] | None = None) -> set[Value]:
    """Return ``sources`` and the values of ``order`` that depend on them.

    Dependence goes on through the nodes that ``passes`` accepts, to those of their outputs that ``keeps`` accepts.
    """
    found = set(sources)
    for node in order:
        if (found.isdisjoint(node.inputs) and found.isdisjoint(node.captures)) or not passes(node):
            continue
        found.update(node.results if keeps is None else filter(keeps, node.results))
    return found


def ancestors(order: Sequence[Node], sinks: Iterable[Value], *, within: Collection[Value] | None = None) -> set[Value]:
    """Return ``sinks`` and the values that they are computed from (those in ``within``, if given)."""
    found = set(sinks)
    for node in reversed(order):
        if not found.isdisjoint(node.outputs):
            found.update(v for v in node.operands if within is None or v in within)
    return found


def needed_nodes(order: Sequence[Node], sinks: Iterable[Value], *, given: Collection[Value] = ()) -> list[Node]:
    """Return the nodes of ``order`` that compute ``sinks``, in order; what is ``given`` need not be computed."""
    keys = {v.producer.key for v in sinks if v not in given}
    kept: list[Node] = []
    for node in reversed(order):
        if node.key in keys:
            kept.append(node)
            keys.update([v.producer.key for v in node.operands if v not in given])
    return kept[::-1]


def depend_on(values: Iterable[Value], node: Node) -> bool:
    """Return whether ``node`` is needed for one of ``values``, at the cost of what they are computed from alone."""
    seen: set[Node] = set()
    stack = [v.producer for v in values]
    while stack:
        current = stack.pop()
        if current is node:
            return True
        if current not in seen:
            seen.add(current)
            stack.extend(v.producer for v in current.operands)
    return False


def path_nodes(order: Sequence[Node], sources: Iterable[Value], sinks: Iterable[Value]) -> list[Node]:
    """Return the nodes on a path from ``sources`` to ``sinks``, in order."""
    reached = dependents(order, sources)
    forward = [n for n in order if not (reached.isdisjoint(n.inputs) and reached.isdisjoint(n.captures))]
    return needed_nodes(forward, sinks)
