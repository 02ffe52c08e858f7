"""What values are before any run: computed from constants and from extents that are known."""

from __future__ import annotations

import math

import numpy as np

from flowgrad.ir.errors import FlowgradError
from flowgrad.ir.evaluate import call_node
from flowgrad.ir.graph import ENTRIES, SYMBOLIC_ELEMENTS, Array, Node, Value
from flowgrad.ir.ops.registry import Trait, opdef

MOST_NODES = 64
"""A condition takes a few steps to compute; what takes more is left to the run."""


def known_value(value: Value) -> Array | None:
    """Return a small value if constants and known extents decide it and it takes few nodes, else None."""
    order: list[Node] = []
    known: dict[Value, Array] = {}
    pending = [value]
    while pending:
        current = pending[-1]
        found = _given(current)
        missing = [] if found is not None else [v for v in current.producer.operands if v not in known]
        if found is None and not missing:
            found = _computed(current, known)
        if found is not None:
            known[current] = found
            pending.pop()
            continue
        if not missing or len(order) >= MOST_NODES or not _may_compute(current.producer):
            return None
        order.append(current.producer)
        pending += missing
    return known[value]


def _given(value: Value) -> Array | None:
    if value.symbolic is not None and all(isinstance(n, (int, np.integer)) for n in value.symbolic.flat):
        return value.symbolic.astype(np.int64).astype(value.type.dtype.numpy)
    constant = value.constant
    return constant if constant is not None and constant.size <= SYMBOLIC_ELEMENTS else None


def _may_compute(node: Node) -> bool:
    """Return whether a node is one that conditions are made of: small integers or truth values, no heavy work."""
    if node.op in ENTRIES or node.subgraphs or Trait.RANDOM in opdef(node.op).traits:
        return False
    return all(not v.type.dtype.is_float and v.type.is_static and math.prod(v.type.static_shape) <= SYMBOLIC_ELEMENTS
               for v in node.results)


def _computed(value: Value, known: dict[Value, Array]) -> Array | None:
    node = value.producer
    if not _may_compute(node):
        return None
    try:
        results = call_node(node, [None if v is None else known[v] for v in node.inputs], (), None)
    except FlowgradError:
        return None
    return np.asarray(results[value.index])
