"""The order of nodes: each after what it is computed from, and one that depends on the graph alone."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.node import ENTRIES, Node


def topological(entries: Mapping[int, Node], name: str) -> list[Node]:
    """Return the op nodes of the graph ``name`` so that the one with the least key comes first of all that can come next.

    ``entries`` are all its nodes by key. Raises ValidationError if there is a cycle.
    """
    order: list[Node] = []
    missing: dict[int, int] = {}  # how many operands are not there yet, of nodes passed over
    waiting: dict[int, list[int]] = {}  # who waits for a node
    ready: list[int] = []

    def release(key: int) -> None:
        for waiter in waiting.pop(key):
            missing[waiter] -= 1
            if not missing[waiter]:
                del missing[waiter]
                heapq.heappush(ready, waiter)

    for key in sorted(entries):
        node = entries[key]
        lacking = []
        for operand in node.operands if node.captures else node.inputs:
            if operand is not None and ((source := operand.producer.key) >= key or source in missing):
                lacking.append(source)
        if lacking:
            missing[key] = len(lacking)
            for source in lacking:
                waiting.setdefault(source, []).append(key)
            continue
        ready.append(key)
        while ready:
            placed = heapq.heappop(ready)
            node = entries[placed]
            if node.op not in ENTRIES:
                order.append(node)
            if placed in waiting:
                release(placed)
    if missing:
        stuck = next(entries[key] for key in entries if key in missing)
        raise ValidationError(f"the graph {name!r} has a cycle", code="cycle", where=stuck.label)
    return order
