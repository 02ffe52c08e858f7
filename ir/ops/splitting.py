"""Cuts of large work into pieces of fixed size: the same pieces for any number of threads, so the same results."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flowgrad.ir.ops.registry import Cut

ELEMENTS = 1 << 16
"""Elements of one piece of elementwise work; less than four pieces are not worth waking a thread."""

PRODUCTS = 1 << 24
"""Multiplications of one piece of a matrix product or a convolution."""


def spans(extent: int, pieces: int, unit: int = 1) -> list[tuple[int, int]]:
    """Cut range(extent) into at most ``pieces`` spans of equal length, a multiple of ``unit`` (the last may be shorter)."""
    length = -(-extent // max(1, pieces))
    length = -(-length // unit) * unit
    return [(start, min(start + length, extent)) for start in range(0, extent, max(length, 1))]


def along(rank: int, axis: int, span: tuple[int, int]) -> Cut:
    """Return the cut of an operand of ``rank`` along ``axis``, counted from the end."""
    return (*(slice(None),) * (rank + axis), slice(*span))


def part(shape: Sequence[int], rank: int, axis: int, span: tuple[int, int], extent: int) -> Cut:
    """Return the part of a broadcast operand that the span of the result's axis needs; None for all of it."""
    at = axis - rank + len(shape)
    if at < 0 or shape[at] != extent:
        return None
    return (*(slice(None),) * at, slice(*span))


def elementwise_cuts(operands: Sequence[Sequence[int]], shape: Sequence[int]) -> list[tuple[Cut, ...]]:
    """Return the pieces of elementwise work on operands that broadcast to ``shape``."""
    size = math.prod(shape)
    if size < 4 * ELEMENTS:
        return []
    axis = next((i for i, n in enumerate(shape) if n >= 16), int(np.argmax(shape)))
    return [tuple(part(s, len(shape), axis, span, shape[axis]) for s in (*operands, shape))
            for span in spans(shape[axis], -(-size // ELEMENTS))]
