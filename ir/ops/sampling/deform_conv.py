"""DeformConv: a convolution whose taps are moved by offsets, so that they read between the pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import within_batch
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.convolution.operators import check_channels, kernel_of
from flowgrad.ir.ops.convolution.window import output_extent, slide, spatial_tuple, split_pads
from flowgrad.ir.ops.operands import extents, joined, ramp
from flowgrad.ir.ops.registry import attr, op
from flowgrad.ir.ops.sampling.taps import Taps, batch_numbers, extent, near, on_pixels, product, read, read_rows
from flowgrad.ir.types import Type, merge_dims


@op("DeformConv", since=19)
def deform_conv(
    X: Array, W: Array, offset: Array, B: Array | None = None, mask: Array | None = None, *,
    dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Array:
    """Y = W applied to what X, 0 beyond its pixels, is where the taps lie, times the mask.

    Channels fall into ``offset_group`` groups that share offsets and mask, and into ``group`` groups of the convolution.
    """
    batch, channels, *sizes = X.shape
    window = slide(sizes, W.shape[2:], strides, dilations, pads, "NOTSET")
    rank, places = len(sizes), (window.taps, window.positions)
    if offset.shape != (batch, offset_group * window.taps * rank, *window.output):
        raise ValueError(f"offsets {list(offset.shape)} do not fit taps {list(window.kernel)} at {list(window.output)}")
    moved = offset.reshape(batch * offset_group, window.taps, rank, window.positions)
    taps = []
    for axis, size in enumerate(sizes):
        at = _line(axis, rank, window.kernel[axis], window.dilations[axis], -window.begin[axis]) + _line(
            rank + axis, rank, window.output[axis], window.strides[axis], 0)
        whole = np.broadcast_to(at, (*window.kernel, *window.output)).reshape(places)
        position = (moved[:, :, axis] + whole.astype(offset.dtype)).reshape(len(moved), math.prod(places))
        taps.append(Taps.around(position, "linear", size, X.dtype))
    columns = read(X.reshape(batch * offset_group, channels // offset_group, *sizes), taps)
    if mask is not None:
        columns *= mask.reshape(len(moved), 1, math.prod(places))
    columns = columns.reshape(batch, group, channels // group * window.taps, window.positions)
    kernels = W.reshape(group, len(W) // group, W.shape[1] * window.taps)
    y = np.matmul(kernels, columns).reshape(batch, len(W), *window.output)
    return np.asarray(y if B is None else y + B.reshape(-1, *(1,) * rank))


def _line(axis: int, rank: int, count: int, step: int, start: int) -> Array:
    """Return equal steps along one of the 2 * rank axes of taps and outputs."""
    return (np.arange(count) * step + start).reshape([-1 if i == axis else 1 for i in range(2 * rank)])


@deform_conv.types
def _(node: Node) -> Type:
    """[N, channels of W, *image], as the offsets have it."""
    x, w, offset = (node.input(i).type for i in range(3))
    if x.shape is None or w.shape is None or offset.shape is None:
        return x.with_shape(None)
    if not len(x.shape) == len(w.shape) == len(offset.shape) or len(x.shape) < 3:
        raise ValidationError(f"{x!r}, {w!r} and offsets {offset!r} must have as many axes", code="shape", where=node.label)
    batch, channels, *sizes = x.shape
    check_channels(node, channels, w.shape[1], w.shape[0])
    shared, rank = attr(node, "offset_group"), len(sizes)
    if shared < 1 or (isinstance(channels, int) and channels % shared):
        raise ValidationError(f"offset_group {shared} does not divide {channels!r} channels", code="attribute",
                              where=node.label)
    kernel = kernel_of(node, node.input(1), rank)
    _check_taps(node, 2, kernel, rank)
    _check_taps(node, 4, kernel, 1)
    steps, spread = (spatial_tuple(attr(node, name), rank, 1, name) for name in ("strides", "dilations"))
    begin, end = split_pads(attr(node, "pads"), rank)
    made = [merge_dims(output_extent(n, (k - 1) * d + 1, s, p, q, False), o) for n, k, d, s, p, q, o in
            zip(sizes, kernel, spread, steps, begin, end, offset.shape[2:], strict=True)]
    return x.with_shape((merge_dims(batch, offset.shape[0]), w.shape[0], *made))


def _check_taps(node: Node, slot: int, kernel: Sequence[Any], each: int) -> None:
    """Check that an input has ``each`` channels for every tap of every group of offsets."""
    value = node.optional(slot)
    if value is None or value.type.shape is None or not all(isinstance(k, int) for k in kernel):
        return
    wanted, rank = attr(node, "offset_group") * math.prod(kernel) * each, len(kernel) + 2
    if len(value.type.shape) != rank or merge_dims(value.type.shape[1], wanted) != wanted:
        raise ValidationError(f"{value!r} has not the {wanted} channels of the taps", code="shape", where=node.label)


@deform_conv.ranks
def _(node: Node) -> list[int | None]:
    """Image, weights, offsets and mask have as many axes as each other."""
    known = next((r for r in (node.input(i).type.rank for i in range(3)) if r is not None), None)
    return [known, known, known, 1, known]


@deform_conv.expansion
def _(b: Builder, node: Node) -> Value:
    """y[n, g] = W[g] columns[n, g]; a column holds what x is at the taps, times the mask."""
    x, w, offset = (node.input(i) for i in range(3))
    bias, mask, shared = node.optional(3), node.optional(4), attr(node, "offset_group")
    rank, output = len(x.shape) - 2, extents(b, offset, 2, len(x.shape))
    images, places = _scaled(b, x, 0, shared), product(b, [*extents(b, w, 2, rank + 2), *output])
    flat = joined(b, [images, places])
    taps = [near(b, b.Reshape(at, flat, allowzero=1), "linear", size) for at, size in _positions(b, node)]
    grouped = x
    if shared != 1:
        each = _shared(b, x, shared)
        grouped = b.Reshape(x, joined(b, [images, each, *extents(b, x, 2, rank + 2)]), allowzero=1)
    columns = read_rows(b, grouped, batch_numbers(b, grouped), taps)
    if mask is not None:
        columns = b.Mul(columns, b.Reshape(mask, joined(b, [images, places, b.ints([1])]), allowzero=1))
    count = b.ints([attr(node, "group")])
    rows, positions = product(b, extents(b, w, 1, rank + 2)), product(b, output)
    shape = joined(b, [*extents(b, x, 0, 1), count, rows, positions])
    columns = b.Reshape(b.Transpose(columns, perm=[0, 2, 1]), shape, allowzero=1)
    kernels = b.Reshape(w, joined(b, [count, _shared(b, w, attr(node, "group"), 0), rows]), allowzero=1)
    y = b.Reshape(b.MatMul(kernels, columns), joined(b, [*extents(b, x, 0, 1), *extents(b, w, 0, 1), *output]), allowzero=1)
    return y if bias is None else b.Add(y, b.Unsqueeze(bias, list(range(1, rank + 1))))


@deform_conv.kinks
def _(b: Builder, node: Node) -> Value:
    """Where a tap lies on a pixel, as all do without offsets."""
    return on_pixels(b, _positions(b, node))


def _positions(b: Builder, node: Node) -> list[tuple[Value, Value]]:
    """Return for each axis where the taps lie, (batch and groups of offsets, *taps, *outputs), and the extent of the image."""
    x, w, offset = (node.input(i) for i in range(3))
    rank = len(x.shape) - 2
    shape = [_scaled(b, x, 0, attr(node, "offset_group")), *extents(b, w, 2, rank + 2), b.ints([rank]),
             *extents(b, offset, 2, rank + 2)]
    moved = b.Reshape(b.cast(offset, offset.type.dtype.wide), joined(b, shape), allowzero=1)
    return [(b.Add(b.Gather(moved, np.int64(axis), axis=1 + rank), _whole(b, node, axis)),
             extent(b, x, 2 + axis, moved.type.dtype)) for axis in range(rank)]


def _scaled(b: Builder, x: Value, axis: int, factor: int) -> Value:
    size = x.shape[axis]
    return b.ints([size * factor]) if isinstance(size, int) else b.Mul(b.extent(x, axis), np.int64(factor))


def _shared(b: Builder, x: Value, parts: int, axis: int = 1) -> Value:
    size = x.shape[axis]
    return b.ints([size // parts]) if isinstance(size, int) else b.Div(b.extent(x, axis), np.int64(parts))


def _whole(b: Builder, node: Node, axis: int) -> Value:
    """Return where the taps lie along one axis without offsets, spread over the axes of taps and outputs."""
    w, offset = node.input(1), node.input(2)
    rank, dtype = len(w.shape) - 2, offset.type.dtype.wide
    begin = split_pads(attr(node, "pads"), rank)[0][axis]
    total = None
    for at, (value, name, start) in ((axis, (w, "dilations", -begin)), (rank + axis, (offset, "strides", 0))):
        step = spatial_tuple(attr(node, name), rank, 1, name)[axis]
        count = value.shape[2 + axis]
        if isinstance(count, int):
            line = b.value(_line(at, rank, count, step, start).astype(dtype.numpy))
        else:
            numbers = b.cast(ramp(b, b.extent(value, 2 + axis)), dtype)
            line = b.Add(b.Mul(numbers, float(step)), float(start))
            line = b.Unsqueeze(line, [i for i in range(2 * rank) if i != at])
        total = line if total is None else b.Add(total, line)
    assert total is not None
    return total


deform_conv.batch(within_batch(0, 2, 4))
