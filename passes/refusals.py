"""The error that names everything that refuses to be differentiated, and how it is reached."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flowgrad.ir.errors import FlowgradError, NotDifferentiableError, ValidationError
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.operands import unknown_ranks
from flowgrad.ir.ops.registry import Refusal, Trait, opdef
from flowgrad.ir.reach import ancestors
from flowgrad.passes.activity import blocking_nodes


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


def check_zero(graph: Graph, wrt: Sequence[Value], of: Sequence[Value]) -> None:
    """Raise NotDifferentiableError if some of ``of`` depends on some of ``wrt``, by steps alone, so that nothing was found."""
    blocked = blocking_nodes(graph, wrt, of)
    if not blocked:
        return
    needed = ancestors(graph.nodes(), of)
    listing = "; ".join(f"{n.op} at {n.label!r}" for n in blocked[:10])
    rounds = any(opdef(n.op).unrounded_rule is not None and Trait.ZERO in opdef(n.op).traits for n in blocked)
    hint = " through_quantization gives a model that is differentiated as if it did not round." if rounds else ""
    raise NotDifferentiableError(
        f"every path from {names_of([x for x in wrt if x in needed])} to {names_of(of)} crosses integer or piecewise-constant "
        f"operators ({listing}): the derivative is zero. Ask for others only, or let zero='allow' (--zero allow) give zeros.{hint}",
        code="zero")


def names_of(values: Sequence[Value]) -> str:
    """Return the names of values for a message."""
    return ", ".join(repr(v.name) for v in values[:8]) + (", ..." if len(values) > 8 else "")
