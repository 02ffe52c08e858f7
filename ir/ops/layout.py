"""Operators that repeat, pad, mask or rearrange blocks of elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, images, looped, shifted_axes, single, within, within_batch
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import (
    blank,
    extents,
    int_list,
    joined,
    known_dims,
    known_ints,
    known_length,
    normal_axes,
    normal_axis,
    ramp,
    slice_axis,
    unknown_shape,
)
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, like_first, op, refuse
from flowgrad.ir.types import INT64, UNKNOWN, DimLike, Type, dtype_of

# ---- Tile ---------------------------------------------------------------------------------------------------------------


@op("Tile", since=13, outputs=("output",), traits=(Trait.LINEAR, Trait.SHAPE_ARITHMETIC), extents=("repeats",))
def tile(input: Array, repeats: Array) -> Array:
    return np.tile(input, int_list(repeats) or ())


@tile.types
def _(node: Node) -> Type:
    x, repeats = node.input(0).type, known_dims(node.input(1))
    if x.shape is None or repeats is None:
        return x.with_shape(unknown_shape(x.rank))
    if len(repeats) != len(x.shape):
        raise ValidationError(f"Tile repeats {len(repeats)} axes of {len(x.shape)}", code="shape")
    return x.with_shape([d * r for d, r in zip(x.shape, repeats, strict=True)])


@tile.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = the sum of the tiles of y_bar: every axis becomes (repeats, extent), and the repeats are summed."""
    x, repeats = node.input(0), node.input(1)
    known = known_ints(repeats)
    if x.type.is_static and known is not None:
        pairs = b.ints([n for pair in zip(known, x.type.static_shape, strict=True) for n in pair])
    else:
        columns = [b.Unsqueeze(b.cast(repeats, INT64), [1]), b.Unsqueeze(b.shape(x), [1])]
        pairs = b.Reshape(b.Concat(*columns, axis=1), b.ints([-1]))
    rank = x.type.rank
    if rank == 0:
        return y_bar, NO_GRADIENT
    tiles = b.ints(range(0, 2 * rank, 2)) if rank is not None else b.Range(np.int64(0), b.Size(pairs), np.int64(2))
    summed = b.ReduceSum(b.Reshape(y_bar, pairs, allowzero=1), tiles, keepdims=0)
    return summed, NO_GRADIENT


# ---- Pad ----------------------------------------------------------------------------------------------------------------

_MODES = {"constant": "constant", "edge": "edge", "reflect": "reflect", "wrap": "wrap"}


@op("Pad", since=18, outputs=("output",), traits=(Trait.LINEAR, Trait.SPREADS), extents=("pads", "axes"),
    settings=("constant_value",), values_since={("mode", "wrap"): 19})
def pad(
    data: Array, pads: Array, constant_value: Array | None = None, axes: Array | None = None, *, mode: str = "constant",
    out: Array | None = None,
) -> Array:
    """Pad, or crop where a pad is negative (first, so that the other modes repeat what is left)."""
    given, chosen = int_list(pads) or [], int_list(axes)
    where = normal_axes(range(data.ndim) if chosen is None else chosen, data.ndim)
    widths = [(0, 0)] * data.ndim
    for i, axis in enumerate(where):
        widths[axis] = given[i], given[i + len(where)]
    extents = [n + before + after for n, (before, after) in zip(data.shape, widths, strict=True)]
    if min(extents, default=0) < 0:
        raise ValueError(f"the pads {given} take away more than there is of {list(data.shape)}")
    kept = data[tuple(slice(max(-before, 0), max(n - max(-after, 0), 0))
                      for n, (before, after) in zip(data.shape, widths, strict=True))]
    widths = [(max(before, 0), max(after, 0)) for before, after in widths]
    if mode != "constant":
        return np.pad(kept, widths, mode=_MODES[mode])  # type: ignore[call-overload, no-any-return]
    if out is None:
        out = np.empty(extents, data.dtype)  # one side may take away what the other side gives
    if out.size != kept.size:
        out.fill(blank(data.dtype) if constant_value is None else np.asarray(constant_value).reshape(-1)[0])
    out[tuple(slice(before, before + n) for n, (before, _) in zip(kept.shape, widths, strict=True))] = kept
    return out


@pad.types
def _(node: Node) -> Type:
    x, pads = node.input(0).type, known_dims(node.input(1))
    if attr(node, "mode") not in _MODES:
        raise ValidationError(f"Pad has no mode {attr(node, 'mode')!r}", code="attribute")
    if x.shape is None:
        return x
    where = _pad_axes(node)
    if where is None or pads is None:
        return x.with_shape([UNKNOWN if where is None or i in where else d for i, d in enumerate(x.shape)])
    if len(pads) != 2 * len(where):
        raise ValidationError(f"Pad has {len(pads)} pads for {len(where)} axes", code="shape")
    new = list(x.shape)
    for i, axis in enumerate(where):
        extent = new[axis] + pads[i] + pads[i + len(where)]
        if isinstance(extent, int) and extent < 0:
            raise ValidationError(f"Pad takes away more than there is of axis {axis}: {x.shape[axis]!r}", code="shape")
        new[axis] = extent
    return x.with_shape(new)


def _pad_axes(node: Node) -> list[int] | None:
    """Return the padded axes, or None if they are known only at run time."""
    axes = node.optional(3)
    rank = len(node.input(0).shape)
    known = list(range(rank)) if axes is None else known_ints(axes)
    return None if known is None else normal_axes(known, rank)


@pad.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar without the pads; the other modes add what was repeated to where it came from."""
    x = node.input(0)
    pads, constant, axes = map(node.optional, (1, 2, 3))
    if attr(node, "mode") != "constant":
        return _repeated_bar(b, node, y_bar), NO_GRADIENT, NO_GRADIENT, NO_GRADIENT
    known = known_ints(pads)
    negated = b.ints([-n for n in known]) if known is not None else b.Neg(pads)
    x_bar = b.Pad(y_bar, negated, None, axes)
    if constant is None:
        return x_bar, NO_GRADIENT, NO_GRADIENT, NO_GRADIENT
    padded = b.Pad(b.zeros_like(x), pads, b.scalar(1, y_bar.type.dtype), axes)
    chosen = b.Where(b.Equal(padded, 1.0), y_bar, b.scalar(0, y_bar.type.dtype))
    constant_bar = b.ReduceSum(chosen, keepdims=0)
    if constant.type.rank != 0:
        constant_bar = b.Reshape(constant_bar, b.shape(constant))
    return x_bar, NO_GRADIENT, constant_bar, NO_GRADIENT


def _repeated_bar(b: Builder, node: Node, y_bar: Value) -> Any:
    """Undo the pads axis by axis: along an axis, padding gathers at a ramp that is padded in the same mode."""
    x, pads = node.input(0), node.input(1)
    if x.type.rank is None or (where := _pad_axes(node)) is None:
        return refuse(f"padding by {attr(node, 'mode')!r} along axes known only at run time")
    known, count = known_ints(pads), len(where)
    for i, axis in enumerate(where):
        if known is not None and not known[i] and not known[i + count]:
            continue
        ends = b.ints([known[i], known[i + count]]) if known is not None else b.Concat(
            slice_axis(b, pads, i, i + 1), slice_axis(b, pads, i + count, i + count + 1), axis=0)
        sources = b.Pad(ramp(b, b.extent(x, axis)), ends, mode=attr(node, "mode"))
        rank = len(x.shape)
        shape = joined(b, [*extents(b, y_bar, 0, axis), b.extent(x, axis), *extents(b, y_bar, axis + 1, rank)])
        y_bar = b.GatherGrad(shape, y_bar, sources, axis=axis)
    return y_bar


@pad.expansion
def _(b: Builder, node: Node) -> Value:
    """Pads of every axis, in place of those of named axes."""
    x, rank, where = node.input(0), len(node.input(0).shape), _pad_axes(node)
    if where is None:
        return refuse("its axes are known only at run time")  # type: ignore[no-any-return]
    places, known = [*where, *(axis + rank for axis in where)], known_ints(node.input(1))
    if known is None:
        pads = b.ScatterElements(b.ints([0] * 2 * rank), b.ints(places), b.cast(node.input(1), INT64), axis=0)
    else:
        given = dict(zip(places, known, strict=True))
        pads = b.ints([given.get(place, 0) for place in range(2 * rank)])
    return b.Pad(x, pads, node.optional(2), mode=attr(node, "mode"))


@pad.expands_on_export
def _(node: Node) -> bool:
    """onnxruntime moves a Transpose past a Pad of named axes as if its pads were those of all."""
    return node.optional(3) is not None and node.input(0).type.rank is not None and _pad_axes(node) is not None


# ---- blocks of depth ----------------------------------------------------------------------------------------------------


@op("DepthToSpace", since=13, outputs=("output",), traits=(Trait.LINEAR,))
def depth_to_space(input: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    n, c, h, w = input.shape
    depth = c // blocksize**2
    if mode == "DCR":
        blocks = input.reshape(n, blocksize, blocksize, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        blocks = input.reshape(n, depth, blocksize, blocksize, h, w).transpose(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, depth, h * blocksize, w * blocksize)


@op("SpaceToDepth", since=13, outputs=("output",), traits=(Trait.LINEAR,))
def space_to_depth(input: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    n, c, h, w = input.shape
    blocks = input.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    moved = blocks.transpose((0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    return moved.reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


def _blocks_type(node: Node, moved: Callable[[DimLike, DimLike, DimLike, int], Sequence[DimLike]]) -> Type:
    """Return the type of the result: ``moved(channels, height, width, blocksize)`` are its last three extents."""
    x = node.input(0).type
    if x.shape is not None and len(x.shape) != 4:
        raise ValidationError(f"{node.op} takes tensors of rank 4", code="shape")
    if attr(node, "mode") not in ("DCR", "CRD"):
        raise ValidationError(f"{node.op} has no mode {attr(node, 'mode')!r}", code="attribute")
    return x if x.shape is None else x.with_shape((x.shape[0], *moved(*x.shape[1:], attr(node, "blocksize"))))


@depth_to_space.types
def _(node: Node) -> Type:
    return _blocks_type(node, lambda c, h, w, size: (c // size**2, h * size, w * size))


@space_to_depth.types
def _(node: Node) -> Type:
    return _blocks_type(node, lambda c, h, w, size: (c * size**2, h // size, w // size))


@depth_to_space.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = the blocks of y_bar, moved back."""
    size = attr(node, "blocksize")
    if attr(node, "mode") == "DCR":
        return b.SpaceToDepth(y_bar, blocksize=size)
    return _space_to_depth(b, y_bar, size, node.input(0))


def _space_to_depth(b: Builder, y_bar: Value, size: int, x: Value) -> Value:
    """Return SpaceToDepth in mode CRD, which has no op before opset 28."""
    block = b.ints([size])
    parts = [b.extent(y_bar, 0), b.extent(y_bar, 1), b.extent(x, 2), block, b.extent(x, 3), block]
    blocks = b.Reshape(y_bar, joined(b, parts), allowzero=1)
    return b.Reshape(b.Transpose(blocks, perm=[0, 1, 3, 5, 2, 4]), b.shape(x), allowzero=1)


@space_to_depth.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = the blocks of y_bar, moved back."""
    return b.DepthToSpace(y_bar, blocksize=attr(node, "blocksize"), mode=attr(node, "mode"))


# ---- triangles and the identity -----------------------------------------------------------------------------------------


@op("Trilu", since=14, outputs=("output",), traits=(Trait.LINEAR, Trait.SPREADS))
def trilu(input: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    diagonal = 0 if k is None else int(np.asarray(k).reshape(-1)[0])
    if input.dtype == object:
        rows, columns = input.shape[-2:]
        kept = np.tri(rows, columns, diagonal - 1 if upper else diagonal, dtype=bool) != bool(upper)
        return np.where(kept, input, blank(input.dtype))
    return np.triu(input, diagonal) if upper else np.tril(input, diagonal)


trilu.types(like_first)


@trilu.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = the same triangle of y_bar."""
    return b.add("Trilu", [y_bar, *node.inputs[1:]], dict(node.attributes)), NO_GRADIENT


@op("EyeLike", since=9, outputs=("output",), traits=(Trait.ZERO,), dtype_attributes=("dtype",))
def eye_like(input: Array, *, dtype: int | None = None, k: int = 0) -> Array:
    element = input.dtype if dtype is None else dtype_of(dtype).numpy
    rows, columns = input.shape
    return np.eye(rows, columns, k=k).astype(element)


@eye_like.types
def _(node: Node) -> Type:
    x, dtype = node.input(0).type, attr(node, "dtype")
    if x.rank not in (None, 2):
        raise ValidationError(f"EyeLike takes matrices, got {x!r}", code="shape")
    return x if dtype is None else x.with_dtype(dtype_of(dtype))


# ---- ReverseSequence, CenterCropPad -------------------------------------------------------------------------------------


@op("ReverseSequence", since=10, traits=(Trait.LINEAR,))
def reverse_sequence(input: Array, sequence_lens: Array, *, batch_axis: int = 1, time_axis: int = 0) -> Array:
    time = np.arange(input.shape[time_axis])
    lengths = sequence_lens.reshape(-1, 1)
    places = np.where(time < lengths, lengths - 1 - time, time)
    rows = np.moveaxis(input, (batch_axis, time_axis), (0, 1))
    return np.moveaxis(rows[np.arange(len(rows))[:, None], places], (0, 1), (batch_axis, time_axis))


reverse_sequence.types(like_first)


@reverse_sequence.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar reversed in the same way: the op is its own inverse."""
    return b.add("ReverseSequence", [y_bar, node.input(1)], dict(node.attributes)), NO_GRADIENT


@op("CenterCropPad", since=18, outputs=("output_data",), traits=(Trait.LINEAR, Trait.SPREADS), extents=("shape",))
def center_crop_pad(input_data: Array, shape: Array, *, axes: Sequence[int] | None = None) -> Array:
    wanted = int_list(shape) or []
    read, write, new = [slice(None)] * input_data.ndim, [slice(None)] * input_data.ndim, list(input_data.shape)
    for axis, extent in zip(normal_axes(range(input_data.ndim) if axes is None else axes, input_data.ndim), wanted,
                            strict=True):
        old, new[axis] = input_data.shape[axis], extent
        start = abs(old - extent) // 2
        if extent < old:
            read[axis] = slice(start, start + extent)
        else:
            write[axis] = slice(start, start + old)
    result = np.full(new, blank(input_data.dtype), input_data.dtype)
    result[tuple(write)] = input_data[tuple(read)]
    return result


@center_crop_pad.types
def _(node: Node) -> Type:
    x, axes = node.input(0).type, attr(node, "axes")
    if x.shape is None:
        return x
    known, new = known_dims(node.input(1)), list(x.shape)
    where = [normal_axis(a, len(new)) for a in (range(len(new)) if axes is None else axes)]
    if known is not None and len(known) != len(where) or (known_length(node.input(1)) or len(where)) != len(where):
        raise ValidationError("CenterCropPad takes one extent an axis", code="shape")
    for i, axis in enumerate(where):
        new[axis] = UNKNOWN if known is None else known[i]
    return x.with_shape(new)


@center_crop_pad.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar, cropped where x was padded and padded where it was cropped."""
    x, axes = node.input(0), attr(node, "axes")
    shape = b.shape(x) if axes is None else joined(b, [b.extent(x, a) for a in axes])
    return b.CenterCropPad(y_bar, shape, axes=axes), NO_GRADIENT


@center_crop_pad.expansion
def _(b: Builder, node: Node) -> Value:
    """The extents of every axis, in place of those of named axes."""
    x, shape = node.input(0), node.input(1)
    where = normal_axes(attr(node, "axes"), len(x.shape))
    parts = [slice_axis(b, shape, where.index(a), where.index(a) + 1) if a in where else b.extent(x, a) for a in range(len(x.shape))]
    return b.CenterCropPad(x, joined(b, [b.cast(p, INT64) for p in parts]))


@center_crop_pad.expands_on_export
def _(node: Node) -> bool:
    """onnxruntime makes a Pad of named axes of it, and moves a Transpose past that as if its pads were those of all."""
    return attr(node, "axes") is not None and node.input(0).type.rank is not None


# ---- many examples ----------------------------------------------------------------------------------------------------------

for _blocks in (depth_to_space, space_to_depth):
    _blocks.batch(within_batch(0))
trilu.batch(images)


@tile.batch
def _(b: BatchBuilder, node: Node, data: Value, repeats: Value) -> Any:
    """The examples are not repeated."""
    if b.holds(repeats) or node.input(0).type.rank is None:
        return looped(b, node, data, repeats)
    return again(b, node, [data, joined(b, [b.ints([1]), b.cast(repeats, INT64)])])


@pad.batch
def _(b: BatchBuilder, node: Node, data: Value, pads: Value, constant: Value | None = None, axes: Value | None = None) -> Any:
    """The same pads of the same axes, by name."""
    rank = node.input(0).type.rank
    if any(b.holds(x) for x in (pads, constant, axes)) or (rank is None and axes is None):
        return looped(b, node, data, pads, constant, axes)
    if not rank and axes is None:
        return b.Identity(data)
    named = b.ints(range(1, 1 + (rank or 0))) if axes is None else shifted_axes(b, axes, rank)
    return again(b, node, [data, pads, constant, named])


@eye_like.batch
def _(b: BatchBuilder, node: Node, data: Value) -> Any:
    """One for all: it depends on the shape alone."""
    return looped(b, node, data) if data.type.rank is None else b.same(single(b, node, [b.one(data)]))


@reverse_sequence.batch
def _(b: BatchBuilder, node: Node, data: Value, lengths: Value) -> Any:
    """More sequences."""
    axis = attr(node, "batch_axis")
    return within(b, node, [data, lengths], {0: axis, 1: 0}, [axis])


@center_crop_pad.batch
def _(b: BatchBuilder, node: Node, data: Value, shape: Value) -> Any:
    """The same extents of the same axes, by name."""
    rank, axes = node.input(0).type.rank, attr(node, "axes")
    if b.holds(shape) or rank is None:
        return looped(b, node, data, shape)
    named = range(rank) if axes is None else normal_axes(axes, rank)
    return again(b, node, [data, shape], axes=tuple(1 + a for a in named))
