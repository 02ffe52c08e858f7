"""Joining and cutting along an axis: Concat, Split, Slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, along_axis, each, in_rows, looped, shifted_axes
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import (
    concatenated,
    extents,
    int_list,
    joined,
    known_dims,
    known_ints,
    known_length,
    normal_axes,
    normal_axis,
    slice_axis,
    unknown_ranks,
    unknown_shape,
)
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op, refuse
from flowgrad.ir.ops.shape import MOVES, VIEWS
from flowgrad.ir.types import INT64, UNKNOWN, Dim, DimLike, Type, merge_dims

# ---- Concat, Split ------------------------------------------------------------------------------------------------------


@op("Concat", since=13, outputs=("concat_result",), traits=MOVES)
def concat(*inputs: Array, axis: int, out: Array | None = None) -> Array:
    return np.concatenate(inputs, axis, out=out)


@concat.types
def _(node: Node) -> Type:
    types = [v.type for v in node.operands]
    if not types:
        raise ValidationError("Concat needs an input", code="arity")
    ranked = [t.shape for t in types if t.shape is not None]
    if not ranked:
        return types[0]
    axis = normal_axis(attr(node, "axis"), len(ranked[0]))
    merged: list[DimLike] = list(ranked[0])
    total: DimLike = merged[axis]
    for other in ranked[1:]:
        if len(other) != len(merged):
            raise ValidationError("Concat takes inputs of one rank", code="shape")
        total = total + other[axis]
        merged = [d if i == axis else merge_dims(d, o) for i, (d, o) in enumerate(zip(merged, other, strict=True))]
    merged[axis] = total if len(ranked) == len(types) else UNKNOWN
    return types[0].with_shape(merged)


@concat.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """The cotangents of the inputs are the pieces of y_bar."""
    inputs = node.operands
    if len(inputs) == 1:
        return (y_bar,)
    axis = attr(node, "axis")
    sizes = joined(b, [b.extent(x, axis) for x in inputs])
    return b.add_several("Split", [y_bar, sizes], {"axis": axis}, outputs=len(inputs))


@op("Split", since=18, outputs=("outputs",), required_outputs=1, variadic_outputs=True,
    traits=(Trait.LINEAR, Trait.VIEW), extents=("split",))
def split(
    input: Array, split: Array | None = None, *, axis: int = 0, num_outputs: int | None = None, count: int = 0
) -> list[Array]:
    sizes = int_list(split)
    if sizes is None:
        sizes = _even_sizes(input.shape[axis], _checked_pieces(count if num_outputs is None else num_outputs, count))
    if sum(sizes) != input.shape[axis] or min(sizes, default=0) < 0:
        raise ValidationError(f"the pieces {sizes} are not the extent {input.shape[axis]}", code="shape")
    return np.split(input, np.cumsum(sizes)[:-1], axis)


MOST_SPARE = 2**12
"""More pieces that are no outputs than any graph has: what asks for more is damaged."""


def _checked_pieces(pieces: int, outputs: int) -> int:
    """Return the number of pieces; ValidationError if it is absurd or less than the outputs."""
    if not max(outputs, 1) <= pieces <= outputs + MOST_SPARE:
        raise ValidationError(f"Split into {pieces:,} pieces has {outputs} outputs", code="attribute")
    return pieces


def _even_sizes(extent: int, pieces: int) -> list[int]:
    step = -(-extent // pieces)
    return [max(min(step, extent - i * step), 0) for i in range(pieces)]


@split.types
def _(node: Node) -> list[Type]:
    return piece_types(node)[: len(node.outputs)]


def piece_types(node: Node) -> list[Type]:
    """Return the types of all pieces of a Split, those that are no outputs too."""
    x, axis = node.input(0).type, attr(node, "axis")
    at = None if x.shape is None else normal_axis(axis, len(x.shape))
    sizes = _split_sizes(node)
    if x.shape is None or at is None:
        return [x] * len(sizes)
    extent = x.shape[at]
    given = node.optional(1) is not None and all(isinstance(s, int) for s in sizes)
    if given and isinstance(extent, int) and sum(sizes) != extent:
        raise ValidationError(f"Split cuts {extent} entries of axis {axis} into pieces of {sizes}", code="shape")
    return [x.with_shape([*x.shape[:at], s, *x.shape[at + 1 :]]) for s in sizes]


def _split_sizes(node: Node) -> list[Any]:
    """Return the extents of all pieces, of which the last ones may be no outputs; UNKNOWN if only the run can tell."""
    outputs = len(node.outputs)
    if (sizes := node.optional(1)) is not None:
        known, length = known_dims(sizes), known_length(sizes)
        if known is not None and len(known) < outputs:
            raise ValidationError(f"Split into {len(known)} pieces has {outputs} outputs", code="shape")
        return [UNKNOWN] * (length or outputs) if known is None else list(known)
    x_shape = node.input(0).type.shape
    asked = attr(node, "num_outputs")
    pieces = _checked_pieces(outputs if asked is None else asked, outputs)
    if x_shape is None:
        return [UNKNOWN] * pieces
    extent = x_shape[normal_axis(attr(node, "axis"), len(x_shape))]
    if isinstance(extent, int):
        return _even_sizes(extent, pieces)
    step = extent // pieces
    return [step if not isinstance(extent % pieces, Dim) else UNKNOWN] * pieces


split.export_outputs(piece_types)  # runtimes take no fewer outputs than pieces, and crash at one without a name


@split.adjoint
def _(b: DerivativeBuilder, node: Node, *y_bars: Value | None) -> Any:
    """x_bar = the cotangents of the pieces, concatenated; zeros for a piece that is no output."""
    y_bars += (None,) * (len(_split_sizes(node)) - len(y_bars))
    sizes = node.optional(1)
    if sizes is not None and known_length(sizes) is None:
        return _run_time_pieces(b, node, y_bars), NO_GRADIENT
    if node.input(0).type.rank is None and any(y_bar is None for y_bar in y_bars):
        return refuse(unknown_ranks(node))
    pieces = [y_bar if y_bar is not None else _zero_piece(b, node, i) for i, y_bar in enumerate(y_bars)]
    axis = attr(node, "axis")
    return concatenated(b, pieces, axis), NO_GRADIENT


def _run_time_pieces(b: Builder, node: Node, y_bars: Sequence[Value | None]) -> Any:
    """Concatenate pieces of which there may be more than outputs: zeros take up what is left."""
    x, sizes, count = node.input(0), node.input(1), len(y_bars)
    if x.type.rank is None:
        return refuse(unknown_ranks(node))
    at = normal_axis(attr(node, "axis"), len(x.shape))
    rest = b.ReduceSum(b.Slice(sizes, [count], [2**63 - 1], [0]), keepdims=1)
    parts = [*extents(b, x, 0, at), rest, *extents(b, x, at + 1, len(x.shape))]
    tail = b.Expand(b.scalar(0, x.type.dtype), joined(b, parts))
    pieces = [y_bar if y_bar is not None else _zero_piece(b, node, i) for i, y_bar in enumerate(y_bars)]
    return b.Concat(*pieces, tail, axis=attr(node, "axis"))


def _zero_piece(b: Builder, node: Node, index: int) -> Value:
    """Return zeros in the place of an output that is absent."""
    x = node.input(0)
    at = normal_axis(attr(node, "axis"), len(x.shape))
    extent = _split_sizes(node)[index]
    if isinstance(extent, int):
        length = b.ints([extent])
    elif (sizes := node.optional(1)) is not None:
        length = slice_axis(b, sizes, index, index + 1)
    else:
        total, pieces = b.extent(x, at), len(_split_sizes(node))
        step = b.Div(b.Add(total, pieces - 1), pieces)
        length = b.Max(b.Min(step, b.Sub(total, b.Mul(step, index))), 0)
    parts = [*extents(b, x, 0, at), length, *extents(b, x, at + 1, len(x.shape))]
    return b.Expand(b.scalar(0, x.type.dtype), joined(b, parts))


# ---- Slice --------------------------------------------------------------------------------------------------------------


def slice_tuple(
    shape: Sequence[int], starts: Array, ends: Array, axes: Array | None, steps: Array | None
) -> tuple[slice, ...]:
    """Return the NumPy index that a Slice takes from a tensor of ``shape``."""
    rank = len(shape)
    first, last = int_list(starts) or [], int_list(ends) or []
    chosen = normal_axes(range(len(first)) if axes is None else int_list(axes) or [], rank)
    stride = [1] * len(first) if steps is None else int_list(steps) or []
    index = [slice(None)] * rank
    for axis, start, end, step in zip(chosen, first, last, stride, strict=True):
        index[axis] = slice_along(shape[axis], start, end, step)
    return tuple(index)


def slice_along(extent: int, start: int, end: int, step: int) -> slice:
    """Return the NumPy slice along one axis. Going down from before the first element begins at that, not before it."""
    return slice(0 if step < 0 and start < -extent else start, end, step)


@op("Slice", since=13, outputs=("output",), traits=VIEWS, extents=("starts", "ends", "axes", "steps"))
def slice_(data: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    return data[slice_tuple(data.shape, starts, ends, axes, steps)]


@slice_.types
def _(node: Node) -> Type:
    x = node.input(0).type
    if x.shape is None:
        return x
    starts, ends, axes, steps = map(node.optional, range(1, 5))
    first, last = known_dims(starts), known_dims(ends)
    count = known_length(node.input(1)) if first is None else len(first)
    chosen = list(range(count)) if axes is None and count is not None else known_ints(axes)
    if count is None or chosen is None:
        return x.with_shape(unknown_shape(len(x.shape)))
    stride = [1] * count if steps is None else known_ints(steps)
    new: list[DimLike] = list(x.shape)
    for at, axis in enumerate(normal_axes(chosen, len(x.shape))):
        known = first is not None and last is not None and stride is not None
        new[axis] = _sliced(new[axis], first[at], last[at], stride[at]) if known else UNKNOWN  # type: ignore[index]
    return x.with_shape(new)


def _sliced(extent: DimLike, start: DimLike, end: DimLike, step: int) -> DimLike:
    """Return the extent of a slice, UNKNOWN where it depends on which of two numbers is larger."""
    if isinstance(extent, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice_along(extent, start, end, step).indices(extent)))
    whole = isinstance(end, int) and end >= 2**31 - 1 or end == extent
    if start == 0 and whole and step > 0:
        return -(-extent // step)
    reverse = isinstance(start, int) and isinstance(end, int) and start == -1 and end <= -(2**31) + 1
    if reverse and step < 0:
        return -(-extent // -step)
    return 0 if start == end and step > 0 else UNKNOWN


@slice_.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = zeros with y_bar at the place of the slice."""
    x = node.input(0)
    where = [*node.inputs[1:], None, None][:4]
    x_bar = b.SliceGrad(b.shape(x), y_bar, *_all_operands(b, where))
    return x_bar, *[NO_GRADIENT] * 4


def _all_operands(b: Builder, where: Sequence[Value | None]) -> list[Value]:
    """Return starts, ends, axes and steps with the defaults of the last two filled in."""
    starts, ends, axes, steps = where
    assert starts is not None and ends is not None
    count = known_length(starts)
    if axes is None:
        axes = b.ints(range(count)) if count is not None else b.Range(0, b.Size(starts), 1)
    if steps is None:
        steps = b.ints([1] * count) if count is not None else b.Expand(b.ints([1]), b.Shape(starts))
    return [b.cast(v, INT64) for v in (starts, ends, axes, steps)]


# ---- many examples ----------------------------------------------------------------------------------------------------------

concat.batch(along_axis())
split.batch(along_axis(slots=[0]))


@slice_.batch
def _(b: BatchBuilder, node: Node, data: Value, starts: Value, ends: Value, axes: Value | None = None,
      steps: Value | None = None) -> Any:
    """The same slice of every example; slices of their own are taken one by one, and the run checks that they are alike."""
    count = known_length(node.input(1))
    if any(b.holds(x) for x in (starts, ends, axes, steps)):
        return each(b, node, data, starts, ends, axes, steps)
    if node.input(0).type.rank is None or (count is None and axes is None):
        return looped(b, node, data, starts, ends, axes, steps)
    first = [] if axes is None else known_ints(axes) or [0]
    if first and 0 not in normal_axes(first, len(node.input(0).shape)) and (
            made := in_rows(b, node, [data, starts, ends, axes, steps])) is not None:
        return made
    axes = b.ints(range(1, 1 + (count or 0))) if axes is None else shifted_axes(b, axes, node.input(0).type.rank)
    return again(b, node, [data, starts, ends, axes, steps])
