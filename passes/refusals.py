"""The error that names everything that refuses to be differentiated, and how it is reached."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flowgrad.ir.errors import FlowgradError, NotDifferentiableError, ValidationError
from flowgrad.ir.graph import Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.operands import unknown_ranks
from flowgrad.ir.ops.registry import Refusal


def refusal_of(node: Node, error: ValidationError) -> Refusal:
    """Return the refusal of a rule that does not get along with the types it meets.

    A rule may ask the rank of what it made on its way; the reader is told of the values of the node.
    """
    reason = unknown_ranks(node, error.where) if error.code == "rank" else ""
    return Refusal(reason or error.message)


def refusal_error(refusals: Sequence[tuple[Node, str]], active: Collection[Value]) -> FlowgradError:
    """Return the error that names all refusing nodes, each with its reason and one path from ``wrt``."""
    lines = []
    for node, reason in list(dict.fromkeys(refusals))[:20]:
        lines.append(f"\n  {describe(node)}\n    {reason}; reached by {_path(node, active)}")
    return NotDifferentiableError(f"not differentiable:{''.join(lines)}", code="refused")


def _path(node: Node, active: Collection[Value]) -> str:
    steps = [node.label]
    while True:
        back = next((v for v in node.operands if v in active), None)
        if back is None:
            break
        steps.append(back.name)
        node = back.producer
    shown = steps[::-1]
    return " -> ".join(shown if len(shown) <= 8 else [*shown[:4], "...", *shown[-3:]])


def names_of(values: Sequence[Value]) -> str:
    """Return the names of values for a message."""
    return ", ".join(repr(v.name) for v in values[:8]) + (", ..." if len(values) > 8 else "")
