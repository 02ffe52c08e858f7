"""Formulas for operators whose function in the standard asks for more than a file may tell."""

from __future__ import annotations

from collections.abc import Sequence

from flowgrad.exchange.adapters import EVERY_OPSET, FORMULAS, before
from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Value
from flowgrad.ir.ops.operands import END, ramp

FORMULAS.add("CausalConvWithState")


@before(EVERY_OPSET, "CausalConvWithState")
def causal_conv_with_state(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """A convolution of every channel with what came before, and what the next step must know of it.

    The standard's function is one Conv, whose groups must be known; with channels that only the run tells, the pieces of
    the signal are gathered and weighted.
    """
    x, weight, bias, past = call.input(0), call.input(1), call.optional(2), call.optional(3)
    activation = call.attributes.get("activation", "none")
    if activation not in ("none", "silu", "swish"):
        raise ValidationError(f"CausalConvWithState has no activation {activation!r}", code="attribute", where=call.label)
    if any(v.type.rank not in (None, 3) for v in (x, weight)):
        raise ValidationError(f"CausalConvWithState takes tensors of rank 3, got {x!r} and {weight!r}", code="rank",
                              where=call.label)
    width = b.extent(weight, 2)
    kept = b.Sub(width, [1])
    before_x = b.Pad(x, b.Concat(kept, b.ints([0]), axis=0), None, [2]) if past is None else b.Concat(past, x, axis=2)
    groups = next((v.shape[0 if v is weight else 1] for v in (weight, x) if v.type.shape is not None), None)
    if isinstance(groups, int):
        y = b.Conv(before_x, weight, bias, group=groups)
    else:
        places = b.Add(b.Unsqueeze(ramp(b, b.extent(x, 2)), [1]), ramp(b, width))
        pieces, weights = (b.cast(v, x.type.dtype.wide) for v in (b.Gather(before_x, places, axis=2), weight))
        y = b.ReduceSum(b.Mul(pieces, weights), [-1], keepdims=0)
        y = y if bias is None else b.Add(y, b.Unsqueeze(b.cast_like(bias, y), [1]))
    y = b.cast(y, x.type.dtype.wide)
    y = y if activation == "none" else b.Mul(y, b.Sigmoid(y))
    return b.cast_like(y, x), b.Slice(before_x, b.Sub(b.extent(before_x, 2), kept), [END], [2])
