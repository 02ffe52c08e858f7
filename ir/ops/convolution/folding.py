"""Operators that put back what windows took from an image: Col2Im adds the windows, MaxUnpool places their maxima."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, looped, within_batch
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.limits import check_scratch
from flowgrad.ir.ops.convolution.window import (
    image_part,
    overlap,
    shape_in,
    slide,
    spatial_tuple,
    split_pads,
    tap_slices,
)
from flowgrad.ir.ops.operands import (
    END,
    extents,
    int_list,
    joined,
    known_ints,
    known_length,
    permuted,
    ramp,
    reshape_to,
)
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op, refuse
from flowgrad.ir.types import INT64, UNKNOWN, DimLike, Type, floor_div, merge_dims

# ---- Col2Im -------------------------------------------------------------------------------------------------------------


@op("Col2Im", since=18, outputs=("output",), traits=(Trait.LINEAR,), extents=("image_shape", "block_shape"))
def col2im(
    input: Array, image_shape: Array, block_shape: Array, *,
    dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Array:
    """Every column of [N, C * block, L] is a block of the image; the image is the sum of its blocks."""
    sizes, block = int_list(image_shape) or [], int_list(block_shape) or []
    window = slide(sizes, block, strides, dilations, pads, "NOTSET")
    batch, rows, columns = input.shape
    if not window.taps or rows % window.taps or columns != window.positions:
        raise ValueError(f"{rows} rows, {columns} columns: blocks of {block} in {sizes} have {window.taps} rows each and "
                         f"make {window.positions} columns")
    blocks = input.reshape(batch, rows // window.taps, window.taps, *window.output)
    check_scratch(math.prod((batch, blocks.shape[1], *window.span)) * input.itemsize, f"an image of {sizes} in its pads")
    spread = np.zeros((batch, blocks.shape[1], *window.span), input.dtype)
    for tap, where in enumerate(tap_slices(window)):
        spread[image_part(where)] += blocks[:, :, tap]
    image = np.zeros((batch, blocks.shape[1], *sizes), input.dtype)
    inside, source = overlap(sizes, window)
    image[image_part(source)] = spread[image_part(inside)]
    return image


@col2im.types
def _(node: Node) -> Type:
    """[N, C, *image_shape] for an input [N, C * product(block_shape), L]."""
    x, sizes, block = node.input(0).type, shape_in(node.input(1)), known_ints(node.input(2))
    if x.rank not in (None, 3):
        raise ValidationError(f"Col2Im takes columns [N, C * block, L], got {x!r}", code="shape", where=node.label)
    if sizes is None:
        given = attr(node, "strides") or attr(node, "dilations") or (attr(node, "pads") or ())[::2]
        if not given:
            return x.with_shape(None)
        sizes = (UNKNOWN,) * len(given)
    if block is not None and (len(block) != len(sizes) or math.prod(block) < 1):
        raise ValidationError(f"blocks of {block} in {list(sizes)}", code="shape", where=node.label)
    batch, rows = (UNKNOWN, UNKNOWN) if x.shape is None else x.shape[:2]
    channels: DimLike = UNKNOWN if block is None else floor_div(rows, math.prod(block))
    return x.with_shape((batch, channels, *sizes))


@col2im.ranks
def _(node: Node) -> list[int | None]:
    """Batch, rows and columns."""
    return [3]


@col2im.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar holds the blocks of y_bar: what lies beyond the image is 0, and along each axis block l reads l * stride + tap."""
    x, rank = node.input(0), y_bar.type.rank
    if rank is None:
        return refuse("the number of axes of the image is not known before the run")
    axes = rank - 2
    begin, end = split_pads(attr(node, "pads"), axes)
    total = b.Pad(y_bar, b.ints([0, 0, *begin, 0, 0, *end])) if any((*begin, *end)) else y_bar
    for axis in range(axes):
        total = b.Gather(total, _places(b, node, axis, axes, begin[axis] + end[axis]), axis=2 + 2 * axis)
    blocks = permuted(b, total, [0, 1, *range(2, 2 + 2 * axes, 2), *range(3, 2 + 2 * axes, 2)])
    return reshape_to(b, blocks, x), NO_GRADIENT, NO_GRADIENT


def _places(b: Builder, node: Node, axis: int, axes: int, pads: int) -> Value:
    """Return which pixel of the padded image each tap (rows) of each block (columns) reads along one axis."""
    step = spatial_tuple(attr(node, "strides"), axes, 1, "strides")[axis]
    spread = spatial_tuple(attr(node, "dilations"), axes, 1, "dilations")[axis]
    sizes, block = known_ints(node.input(1)), known_ints(node.input(2))
    if sizes is not None and block is not None:
        blocks = (sizes[axis] + pads - spread * (block[axis] - 1) - 1) // step + 1
        return b.value(np.arange(block[axis])[:, None] * spread + np.arange(blocks) * step)
    size, taps = (b.Slice(node.input(i), [axis], [axis + 1], [0]) for i in (1, 2))
    room = b.Sub(b.Add(size, np.int64(pads - 1)), b.Mul(b.Sub(taps, np.int64(1)), np.int64(spread)))
    count = b.Add(b.Div(room, np.int64(step)), np.int64(1))
    return b.Add(b.Mul(b.Unsqueeze(ramp(b, taps), [1]), np.int64(spread)), b.Mul(ramp(b, count), np.int64(step)))


# ---- MaxUnpool ----------------------------------------------------------------------------------------------------------


@op("MaxUnpool", since=9, outputs=("output",), extents=("output_shape",))
def max_unpool(
    X: Array, I: Array, output_shape: Array | None = None, *,  # noqa: E741
    kernel_shape: Sequence[int], pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Array:
    """Y = zeros with every element of X at the flat index that I gives it, of several at one index the last.

    The indices count in the image that kernel, strides and pads tell, which stands at the beginning of ``output_shape``.
    """
    sizes = [_unpooled(n, *axis) for n, axis in zip(X.shape[2:], _axes(kernel_shape, pads, strides), strict=True)]
    inner = (*X.shape[:2], *sizes)
    shape = inner if output_shape is None else tuple(int_list(output_shape) or ())
    if len(shape) != len(inner) or any(m < n for m, n in zip(shape, inner, strict=True)) or X.shape != I.shape:
        raise ValueError(f"{list(X.shape)} at indices {list(I.shape)} makes an image of {list(inner)}, which is not part of "
                         f"{list(shape)}")
    flat = np.zeros(math.prod(inner), X.dtype)
    if I.size and (I.min() < 0 or I.max() >= flat.size):
        raise IndexError(f"index {I.min() if I.min() < 0 else I.max()} is out of bounds for an image of {list(inner)}")
    flat[I.reshape(-1)] = X.reshape(-1)
    result = np.zeros(shape, X.dtype)
    result[tuple(slice(0, n) for n in inner)] = flat.reshape(inner)
    return result


def _axes(kernel: Sequence[int], pads: Sequence[int] | None, strides: Sequence[int] | None) -> list[tuple[int, int, int]]:
    """Return (taps, stride, pads) along each axis."""
    begin, end = split_pads(pads, len(kernel))
    steps = spatial_tuple(strides, len(kernel), 1, "strides")
    return [(k, s, p + q) for k, s, p, q in zip(kernel, steps, begin, end, strict=True)]


def _axes_of(node: Node) -> list[tuple[int, int, int]]:
    return _axes(attr(node, "kernel_shape"), attr(node, "pads"), attr(node, "strides"))


def _unpooled(pooled: Any, taps: int, stride: int, pads: int) -> Any:
    """Return the extent that windows are taken from, by how many there are: an integer or a dim."""
    return (pooled - 1) * stride - pads + taps


@max_unpool.types
def _(node: Node) -> Type:
    x, indices, wanted = node.input(0).type, node.input(1).type, node.optional(2)
    axes = _axes_of(node)
    if x.rank not in (None, len(axes) + 2) or (wanted is not None and known_length(wanted) not in (None, len(axes) + 2)):
        raise ValidationError(f"a kernel of {list(attr(node, 'kernel_shape'))} unpools no {x!r}", code="shape",
                              where=node.label)
    if x.shape is not None and indices.shape is not None:
        x = x.with_shape([merge_dims(m, n) for m, n in zip(x.shape, indices.shape, strict=True)])
    if wanted is not None:
        return x.with_shape(shape_in(wanted) or (UNKNOWN,) * (len(axes) + 2))
    if x.shape is None:
        return x
    return x.with_shape((*x.shape[:2], *(_unpooled(n, *axis) for n, axis in zip(x.shape[2:], axes, strict=True))))


@max_unpool.ranks
def _(node: Node) -> list[int | None]:
    """The image has the axes of the kernel, besides batch and channels."""
    return [2 + len(attr(node, "kernel_shape"))] * 2


@max_unpool.expands_on_export
def _(node: Node) -> bool:
    """onnxruntime counts the indices in the image of ``output_shape``, not in the one that was pooled."""
    return node.optional(2) is not None


@max_unpool.expansion
def _(b: Builder, node: Node) -> Value:
    """Zeros to which is added what of X is the last at its index, and more zeros behind."""
    x, places, wanted = node.input(0), b.Reshape(node.input(1), [-1]), node.optional(2)
    axes = _axes_of(node)
    inner = _unpooled_shape(b, x, axes)
    zeros = b.Expand(b.scalar(0, x.type.dtype), b.ReduceProd(inner, keepdims=1))
    order = ramp(b, b.Reshape(b.Size(x), [1]))
    last = b.ScatterElements(b.cast(b.zeros_like(zeros), INT64), places, order, axis=0, reduction="max")
    stays = b.Equal(b.GatherElements(last, places, axis=0), order)
    kept = b.Where(stays, b.Reshape(x, [-1]), b.scalar(0, x.type.dtype))
    image = b.Reshape(b.ScatterElements(zeros, places, kept, axis=0, reduction="add"), inner, allowzero=1)
    if wanted is None:
        return image
    more = b.Sub(wanted, inner)
    return b.Pad(image, b.Concat(b.ints([0] * (len(axes) + 2)), more, axis=0))


def _unpooled_shape(b: Builder, x: Value, axes: Sequence[tuple[int, int, int]]) -> Value:
    taps, steps, pads = zip(*axes, strict=True) if axes else ((), (), ())
    if x.type.is_static:
        return b.ints([*x.type.static_shape[:2], *(_unpooled(n, *axis) for n, axis in zip(x.shape[2:], axes, strict=True))])
    grown = b.Mul(b.Sub(b.Shape(x, start=2), np.int64(1)), b.ints(steps))
    image = b.Add(grown, b.ints([k - p for k, p in zip(taps, pads, strict=True)]))
    return joined(b, [*extents(b, x, 0, 2), image])


col2im.batch(within_batch(0))


@max_unpool.batch
def _(b: BatchBuilder, node: Node, x: Value, indices: Value, shape: Value | None = None) -> Any:
    """More images, at indices that count in all of them."""
    if shape is not None or any(v.type.rank is None for v in node.operands):
        return looped(b, node, x, indices, shape)
    x, indices = b.lifted(x), b.lifted(indices)
    b.batched.update((x, indices))
    inner = _unpooled_shape(b, b.merged(x), _axes_of(node))
    size = b.Mul(b.Squeeze(b.extent(x, 1), [0]), b.ReduceProd(b.Slice(inner, [1], [END], [0]), keepdims=0))
    places = b.alike(b.Add(indices, b.numbers(len(indices.shape), size)), indices)
    y = b.add("MaxUnpool", [b.merged(x), b.merged(places)], dict(node.attributes))
    return b.unmerged(y, x.shape[1], lambda: b.extent(x, 1))
