"""States of a Loop whose types change: their extents, or from an optional value to what it holds."""

from __future__ import annotations

from collections.abc import Sequence

from flowgrad.exchange.imported_node import ImportedNode
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Value
from flowgrad.ir.types import UNKNOWN, Type


def unwrapped_states(call: ImportedNode) -> list[int]:
    """Return the states of a Loop whose type changes from an optional value to what it holds (a Scan carries none)."""
    body = call.subgraphs.get("body")
    if body is None:
        return []
    pairs = zip(body.inputs[2:], body.outputs[1:], strict=False)
    return [k for k, (formal, result) in enumerate(pairs) if k < len(call.inputs) - 2
            and formal.type.dtype.kind == "optional" and formal.type.dtype.element is result.type.dtype]


def wrap_states(call: ImportedNode, states: Sequence[int]) -> None:
    """Make the body return optional values for ``states``."""
    body = call.subgraphs["body"]
    b = Builder(body)
    entries = list(body.output_entries)
    for state in states:
        old = entries[1 + state]
        wrapped, name = b.Optional(old.input(0)), old.name
        body.remove(old)
        entries[1 + state] = body.add_output(wrapped, name)
    body.reorder_outputs(entries)


def read_states(b: Builder, results: Sequence[Value | None], states: Sequence[int]) -> list[Value | None]:
    """Return the results of the Loop with what its optional values hold in place of ``states``."""
    return [b.OptionalGetElement(v) if v is not None and k in states else v for k, v in enumerate(results)]


def widened(formal: Type, result: Type, attempt: int, is_free: bool) -> Type:
    """Return the type that fits a state before and after an iteration, the wider the more attempts have failed.

    The extents of a formal that ``is_free`` are names of its own, which stand for others in every iteration.
    Raises ValidationError where the dtype changes, but for an optional value: see ``unwrapped_states``.
    """
    if formal.dtype.kind == "optional" and formal.dtype.element is result.dtype:
        return formal
    if formal.dtype != result.dtype:
        raise ValidationError(f"a value carried through a Loop changes from {formal!r} to {result!r}", code="dtype")
    if formal.shape is None or result.shape is None or len(formal.shape) != len(result.shape):
        return Type(formal.dtype, None)
    if formal.shape == result.shape or is_free:
        return formal
    if attempt > 2:
        return Type(formal.dtype, None)
    kept = [a if a == b and attempt == 0 else UNKNOWN for a, b in zip(formal.shape, result.shape, strict=True)]
    return Type(formal.dtype, tuple(kept))
