"""Reading an image between its pixels: a few pixels around a position along each axis, each with a weight.

Positions count pixels: 0 is the centre of the first one. All stands here twice, on arrays for the kernels and as nodes for
the derivatives.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array, Value
from flowgrad.ir.ops.operands import extents, joined, known_ints, ramp
from flowgrad.ir.types import INT64, DType

STEPS = {"nearest": (0,), "linear": (0, 1), "cubic": (-1, 0, 1, 2)}
"""The pixels that each mode reads, counted from the one at or before the position (for nearest: at it)."""

A = -0.75
"""The free coefficient of Keys' cubic: (A + 2) d^3 - (A + 3) d^2 + 1 up to the distance 1, A (d^3 - 5 d^2 + 8 d - 4) to 2."""


# ---- arrays -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taps:
    """Along one axis: pixels (taps, batch, positions) within the image, their weights (None: 1), and which count at all.

    One that does not count weighs 0, and is left alone where it is NaN or infinite.
    """

    at: Array
    weight: Array | None
    seen: Array | None = None

    @staticmethod
    def around(position: Array, mode: str, size: int, dtype: np.dtype[Any], padding: str = "zeros", low: float = 0.0) -> Taps:
        """Return the pixels around positions (batch, positions), and beyond the image what ``padding`` takes for them.

        That is 0 for zeros, the last pixel for border, and for reflection the one that a mirror at ``low`` shows, -1/2 or 0.
        """
        if mode == "nearest":
            first, weight = np.rint(position), None
        else:
            first = np.floor(position)
            weight = weights(position - first, mode).astype(dtype, copy=False)
        at, seen = first + np.reshape(STEPS[mode], (-1, *(1,) * position.ndim)), None
        if padding == "zeros":
            seen = (at >= 0) & (at < size)
            weight = None if weight is None else np.where(seen, weight, weight.dtype.type(0))
        if padding == "reflection":
            at = mirrored(at, low, size)
        at = np.fmin(np.fmax(at, 0), max(size - 1, 0))  # NaN becomes 0
        return Taps(at.astype(np.int64), weight, seen)


def mirrored(at: Array, low: float, size: int) -> Array:
    """Return positions reflected at the ends of an axis, ``low`` and its counterpart, until they lie between them."""
    span = size - 1 - 2 * low
    if span <= 0:
        return np.zeros_like(at)
    return low + span - np.abs(np.fmod(np.abs(at - low), 2 * span) - span)


def weights(beyond: Array, mode: str) -> Array:
    """Return the weight of each pixel, by how far the position lies beyond the first one."""
    if mode == "linear":
        return np.stack([1 - beyond, beyond])
    return np.stack([_far(1 + beyond), _near(beyond), _near(1 - beyond), _far(2 - beyond)])


def _near(d: Array) -> Array:
    return ((A + 2) * d - (A + 3)) * d * d + 1


def _far(d: Array) -> Array:
    return (((d - 5) * d + 8) * d - 4) * A


def read(x: Array, taps: Sequence[Taps]) -> Array:
    """Return what an image (batch, channels, ...) is at positions, by its ``taps`` along each axis: (batch, channels, positions).
    """
    batch, channels, *sizes = x.shape
    positions = taps[0].at.shape[2]
    if positions and batch and not math.prod(sizes):
        raise ValueError(f"an image of extents {sizes} has no pixels to read")
    flat = x.reshape(batch, channels, math.prod(sizes))
    blank: Any = "" if x.dtype == object else x.dtype.type(0)
    result = np.full((batch, channels, positions), blank, x.dtype)
    is_finite = x.dtype.kind in "fc" and bool(np.isfinite(x).all())
    for chosen in itertools.product(*(range(len(t.at)) for t in taps)):
        at = np.zeros((batch, positions), np.int64)
        for tap, size, i in zip(taps, sizes, chosen, strict=True):
            at = at * size + tap.at[i]
        factors = [t.weight[i] for t, i in zip(taps, chosen, strict=True) if t.weight is not None]
        masks = [t.seen[i] for t, i in zip(taps, chosen, strict=True) if t.seen is not None]
        for n in range(batch):
            pixels = np.take(flat[n], at[n], axis=1)
            if masks and not (factors and is_finite):
                pixels = np.where(np.all([m[n] for m in masks], axis=0), pixels, blank)
            if factors:
                result[n] += pixels * math.prod(f[n] for f in factors)
            else:
                result[n] = pixels
    return result


# ---- nodes --------------------------------------------------------------------------------------------------------------


def extent(b: Builder, x: Value, axis: int, dtype: DType) -> Value:
    """Return one extent of ``x`` as a scalar of ``dtype``: a constant where it is known."""
    size = x.shape[axis]
    return b.scalar(size, dtype) if isinstance(size, int) else b.cast(b.Squeeze(b.extent(x, axis), [0]), dtype)


def near(
    b: Builder, position: Value, mode: str, size: Value, padding: str = "zeros", low: float = 0.0
) -> tuple[Value, Value | None]:
    """Return what ``Taps.around`` does: pixels (taps, batch, positions) and their weights (None: 1)."""
    dtype = position.type.dtype
    steps = b.value(np.reshape(STEPS[mode], (-1, *(1,) * len(position.shape))).astype(dtype.numpy))
    if mode == "nearest":
        first, weight = b.Round(position), None
    else:
        first = b.Floor(position)
        weight = _weights(b, b.Unsqueeze(b.Sub(position, first), [0]), mode)
    at = b.Add(b.Unsqueeze(first, [0]), steps)
    if padding == "zeros":
        inside = b.And(b.GreaterOrEqual(at, 0.0), b.Less(at, size))
        weight = b.cast(inside, dtype) if weight is None else b.Where(inside, weight, b.scalar(0, dtype))
    if padding == "reflection":
        at = mirror(b, at, low, size)
    if padding == "border":  # far out, what a cast gives is left open
        at = b.Min(at, b.Sub(size, 1.0))
    last = b.Sub(b.cast(size, INT64), np.int64(1))
    return b.Max(b.Min(b.cast(at, INT64), last), np.int64(0)), weight


def mirror(b: Builder, at: Value, low: float, size: Value) -> Value:
    """Return what ``mirrored`` does; where there is a single position, one at or before it."""
    span = b.Sub(size, 1 + 2 * low)
    period = b.Max(b.Add(span, span), 1.0)
    return b.Sub(b.Add(span, low), b.Abs(b.Sub(b.Mod(b.Abs(b.Sub(at, low)), period, fmod=1), span)))


def _weights(b: Builder, beyond: Value, mode: str) -> Value:
    before = b.Sub(b.scalar(1, beyond.type.dtype), beyond)
    if mode == "linear":
        return b.Concat(before, beyond, axis=0)

    def near(d: Value) -> Value:
        return b.Add(b.Mul(b.Sub(b.Mul(d, A + 2), A + 3), b.Mul(d, d)), 1.0)

    def far(d: Value) -> Value:
        return b.Mul(b.Sub(b.Mul(b.Add(b.Mul(b.Sub(d, 5.0), d), 8.0), d), 4.0), A)

    return b.Concat(far(b.Add(beyond, 1.0)), near(beyond), near(before), far(b.Add(before, 1.0)), axis=0)


def product(b: Builder, parts: Sequence[Value]) -> Value:
    """Return the product of all entries of int64 vectors as a vector of length 1: a constant if they are."""
    whole = joined(b, parts)
    known = known_ints(whole)
    return b.ReduceProd(whole, keepdims=1) if known is None else b.ints([math.prod(known)])


def rows_of(b: Builder, x: Value) -> Value:
    """Return an image (batch, channels, ...) as one row of channels for each pixel of each image."""
    rank = len(x.shape)
    last = b.Transpose(x, perm=[0, *range(2, rank), 1])
    count = product(b, [*extents(b, x, 0, 1), *extents(b, x, 2, rank)])
    return b.Reshape(last, joined(b, [count, b.extent(x, 1)]), allowzero=1)


def place_of(b: Builder, x: Value, images: Value, taps: Sequence[Value]) -> Value:
    """Return the rows of pixels: (taps along the first axis, ..., taps along the last axis, batch, positions).

    ``images`` says in which image to look, ``taps`` at which pixels along each axis: (taps, batch, positions) each.
    """
    place = images
    for axis, at in enumerate(taps):
        size = extent(b, x, 2 + axis, INT64)
        ahead, behind = axis, len(taps) - 1 - axis
        spread = b.Unsqueeze(at, [*range(ahead), *range(ahead + 1, ahead + 1 + behind)]) if len(taps) > 1 else at
        place = b.Add(b.Mul(place, size), spread)
    return place


def joint(b: Builder, weights: Sequence[Value | None]) -> Value | None:
    """Return the product of the weights along the axes, spread like the places of the pixels."""
    total: Value | None = None
    for axis, weight in enumerate(weights):
        if weight is None:
            continue
        others = [*range(axis), *range(axis + 1, len(weights))]
        spread = b.Unsqueeze(weight, others) if others else weight
        total = spread if total is None else b.Mul(total, spread)
    return total


def batch_numbers(b: Builder, x: Value) -> Value:
    """Return the numbers of the images of ``x`` as a column."""
    return b.Unsqueeze(ramp(b, b.extent(x, 0)), [1])


def read_rows(b: Builder, x: Value, images: Value, near: Sequence[tuple[Value, Value | None]]) -> Value:
    """Return what ``read`` does, with the channels last: (batch, positions, channels)."""
    place = place_of(b, x, images, [at for at, _ in near])
    weight = joint(b, [w for _, w in near])
    pixels = b.Gather(rows_of(b, x), place, axis=0)
    axes = list(range(len(near)))
    if weight is None:
        return b.Squeeze(pixels, axes)
    weighted = b.Mul(pixels, b.Unsqueeze(b.cast_like(weight, x), [-1]))
    return b.ReduceSum(weighted, axes, keepdims=0)


def on_pixels(b: Builder, positions: Sequence[tuple[Value, Value]]) -> Value:
    """Return where a position lies on a pixel along some axis, (position, size) each: there the pixels around it change.

    The pixel before the first and the one behind the last count, where the image begins to be seen.
    """
    masks = []
    for at, size in positions:
        seen = b.And(b.GreaterOrEqual(at, -1.0), b.LessOrEqual(at, size))
        masks.append(b.And(b.Equal(at, b.Floor(at)), seen))
    return functools.reduce(b.Or, masks)
