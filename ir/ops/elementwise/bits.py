"""Bits read as another type."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.batching import alone
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node
from flowgrad.ir.literals import SUBBYTE
from flowgrad.ir.ops.registry import Trait, attr, op
from flowgrad.ir.types import DType, Type, dtype_of


@op("BitCast", since=26, outputs=("output",), traits=(Trait.NON_DIFFERENTIABLE, Trait.HIDES), dtype_attributes=("to",))
def bit_cast(input: Array, *, to: int, to_dtype: Any) -> Array:
    """The same bits in another type of as many; a truth value is true for any bits but zeros.

    Its derivative would be that of the number the bits stand for, which no operator on integers has: whoever goes on with
    the bits of a number that is differentiated is told so.
    """
    if np.dtype(to_dtype).kind == "b" and input.dtype.kind != "b":
        return np.asarray(input.view(np.uint8) != 0)
    return np.ascontiguousarray(input).reshape(input.shape).view(to_dtype)


@bit_cast.types
def _(node: Node) -> Type:
    given, wanted = node.input(0).type, dtype_of(attr(node, "to"))
    if "string" in (given.dtype.kind, wanted.kind) or _bits(given.dtype) != _bits(wanted):
        raise ValidationError(f"BitCast keeps the bits: {given.dtype.name} has not as many as {wanted.name}", code="dtype",
                              where=node.label)
    return given.with_dtype(wanted)


def _bits(dtype: DType) -> int:
    """Return how many bits an element of a type has."""
    mask = SUBBYTE.get(dtype.name)
    return 8 * dtype.itemsize if mask is None else mask.bit_length()


bit_cast.batch(alone)
