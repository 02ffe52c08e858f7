"""Which values count as parameters, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flowgrad.ir.graph import CONSTANT, LITERAL, PARAMETER, Graph, Node, Value

SLOTS_THAT_STEER = {
    "BatchNormalization": (3, 4), "Reshape": (1,), "Expand": (1,), "Tile": (1,), "Pad": (1, 2, 3), "Slice": (1, 2, 3, 4),
    "Resize": (1, 2, 3), "Upsample": (1,), "Clip": (1, 2), "Dropout": (1, 2), "TopK": (1,), "OneHot": (1, 2),
    "Range": (0, 1, 2), "ConstantOfShape": (0,),
}
"""Input slots whose floats are settings (statistics, pads, scales, bounds, ratios), not weights."""


@dataclass(frozen=True)
class Candidate:
    """A float value that could be a parameter, whether it counts as one, and why."""

    value: Value
    included: bool
    reason: str


def candidates(graph: Graph) -> list[Candidate]:
    """Return every parameter candidate of ``graph``: its named float constants, then computed frontier values.

    The frontier lies between what depends on no graph input and what does. A frontier value that is computed from
    named float constants stands for those; one computed from none (weights made by ConstantOfShape) stands for itself.
    """
    fed = _depends_on_inputs(graph)
    found: dict[Value, Candidate] = {}
    for node in graph.nodes():
        if not any(v in fed for v in node.outputs if v is not None):
            continue
        operands = [*enumerate(node.inputs), *((None, v) for v in node.captures)]
        for slot, value in operands:
            if value is None or value in fed or not value.type.dtype.is_float:
                continue
            steers = slot in SLOTS_THAT_STEER.get(node.op, ())
            for root in _roots(value):
                candidate = _judge(root, node, steers)
                if root not in found or (candidate.included and not found[root].included):
                    found[root] = candidate
    for value in graph.constants:
        if value.name and value.type.dtype.is_float and value not in found:
            found[value] = Candidate(value, value.producer.role == PARAMETER, "nothing that depends on an input uses it")
    order = {v: i for i, v in enumerate(graph.constants)}
    return sorted(found.values(), key=lambda c: (order.get(c.value, len(order)), c.value.producer.key))


def parameters(graph: Graph) -> list[Value]:
    """Return the values that ``"params"`` stands for."""
    return [c.value for c in candidates(graph) if c.included]


def _judge(value: Value, user: Node, steers: bool) -> Candidate:
    entry = value.producer
    if entry.role == PARAMETER:
        return Candidate(value, True, "named in wrt before")
    if entry.op == CONSTANT and entry.role == LITERAL:
        return Candidate(value, False, "a literal of the graph")
    if steers:
        return Candidate(value, False, f"a setting of {user.op} at {user.label!r}, not a weight")
    if value.type.rank == 0:
        return Candidate(value, False, "a single number (rank 0)")
    return Candidate(value, True, f"a weight of {user.op} at {user.label!r}")


def _depends_on_inputs(graph: Graph) -> set[Value]:
    fed = set(graph.inputs)
    for node in graph.nodes():
        if any(v in fed for v in (*node.inputs, *node.captures) if v is not None):
            fed.update(v for v in node.outputs if v is not None)
    return fed


def _roots(value: Value) -> Iterable[Value]:
    """Return the named float constants that ``value`` is computed from, or ``value`` itself if there are none."""
    if value.producer.op == CONSTANT:
        return [value] if value.name else []
    roots: dict[Value, None] = {}
    stack, seen = [value], {value}
    while stack:
        node = stack.pop().producer
        for operand in (*node.inputs, *node.captures):
            if operand is None or operand in seen or not operand.type.dtype.is_float:
                continue
            seen.add(operand)
            if operand.producer.op != CONSTANT:
                stack.append(operand)
            elif operand.name and operand.producer.role != LITERAL:
                roots[operand] = None
    return list(roots) or [value]
