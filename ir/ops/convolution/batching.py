"""Convolutions of many examples: more images where they share the weights, more channels where they share the images.

Where they share neither, each example is a product of matrices, one of which holds the patches of its images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, looped, merged_again
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Node, Value
from flowgrad.ir.ops.convolution.window import Window, slide
from flowgrad.ir.ops.operands import joined, known_ints, slice_axis
from flowgrad.ir.ops.registry import attr
from flowgrad.ir.types import DimLike

HOW = ("auto_pad", "dilations", "group", "pads", "strides")


def scaled_shape(b: BatchBuilder, shape: Value, axis: int = 0) -> Value:
    """Return a shape of which the extent of ``axis`` is as many times as large as there are examples."""
    known = known_ints(shape)
    if known is not None and isinstance(b.dim, int):
        return b.ints([n * b.dim if i == axis else n for i, n in enumerate(known)])
    before = [slice_axis(b, shape, 0, axis)] if axis else []
    rest = b.ints(known[axis + 1:]) if known is not None else b.Slice(shape, [axis + 1], [2**62], [0])
    extent = slice_axis(b, shape, axis, axis + 1)
    return joined(b, [*before, b.count if known_ints(extent) == [1] else b.Mul(extent, b.count), rest])


def convolution(b: BatchBuilder, node: Node, xs: Sequence[Value | None]) -> Any:
    """Return y = conv(x, w) + bias of each example."""
    x, w, bias = (*xs, None)[:3]
    if x is None or w is None or any(v.type.rank is None for v in node.operands):
        return looped(b, node, *xs)
    if not b.holds(w) and not b.holds(bias):
        return merged_again(b, node, [x, w, bias], {0: 0}, [0])[0]
    y = _plain_convolution(b, node, x, w)
    if y is None:
        return looped(b, node, *xs)
    return y if bias is None else _with_bias(b, y, bias, node)


def _plain_convolution(b: BatchBuilder, node: Node, x: Value, w: Value) -> Value | None:
    """Return conv(x, w) of each example, or None where it takes extents that are not known."""
    how, group = _how(node), int(attr(node, "group"))
    if not b.holds(w) and not b.holds(x):
        return b.Conv(x, w, **how)
    if not b.holds(w):
        return merged_again(b, node, [x, w], {0: 0}, [0])[0]
    if not b.holds(x):
        y = b.Conv(x, _examples_in(b, w, 0, group), **how)
        return _examples_out(b, y, 1, group, node.input(1).shape[0], lambda: b.extent(w, 1))
    window = _window(node, node.input(0), node.input(1).type.shape)
    inner = node.input(1).shape[:2]
    if window is None or not all(isinstance(d, int) for d in (*inner, node.input(0).shape[1])):
        return None
    outputs, per_group = (int(d) for d in inner)  # type: ignore[arg-type]
    columns = _columns(b, x, window, group)
    matrix = b.shaped(w, (b.dim, 1, group, outputs // group, per_group * window.taps), lambda _: b.count)
    y = b.MatMul(matrix, columns)
    return _reshaped(b, y, (outputs, *window.output))


def input_gradient(b: BatchBuilder, node: Node, y_bar: Value, w: Value, x_shape: Value) -> Any:
    """Return x_bar of each example."""
    if b.holds(x_shape) or any(v.type.rank is None for v in node.operands[:2]):
        return looped(b, node, y_bar, w, x_shape)
    if not b.holds(w):
        return merged_again(b, node, [y_bar, w, scaled_shape(b, x_shape)], {0: 0}, [0])[0]
    shape, group = node.output().type.shape, int(attr(node, "group"))
    if shape is None:
        return looped(b, node, y_bar, w, x_shape)
    if not b.holds(y_bar):
        made = b.ConvInputGrad(y_bar, _examples_in(b, w, 1, 1), scaled_shape(b, x_shape, 1), **_how(node))
        return _examples_out(b, made, 1, group, shape[1], lambda: slice_axis(b, x_shape, 1, 2))
    window = _window(node, node.output(), node.input(1).type.shape)
    if window is None or not all(isinstance(d, int) for d in (*node.input(1).shape, *shape[1:])):
        return looped(b, node, y_bar, w, x_shape)
    outputs, per_group = (int(d) for d in node.input(1).shape[:2])  # type: ignore[arg-type]
    matrix = b.shaped(w, (b.dim, 1, group, outputs // group, per_group * window.taps), lambda _: b.count)
    samples = y_bar.shape[1]
    bars = b.shaped(y_bar, (b.dim, samples, group, outputs // group, window.positions), _lead(b, y_bar))
    columns = b.MatMul(_swapped(b, matrix), bars)
    wide = b.shaped(columns, (b.dim, samples, group * per_group * window.taps, window.positions), _lead(b, y_bar))
    image = b.Col2Im(b.merged(b.alike(wide, w)), b.ints(shape[2:]), b.ints(window.kernel), dilations=window.dilations,
                     pads=(*window.begin, *window.end), strides=window.strides)
    return b.unmerged(image, samples, lambda: b.extent(y_bar, 1))


def transposed(b: BatchBuilder, node: Node, xs: Sequence[Value | None]) -> Any:
    """Return conv_transpose(x, w) + bias of each example."""
    x, w, bias = (*xs, None)[:3]
    if x is None or w is None or any(v.type.rank is None for v in node.operands) or (b.holds(x) and b.holds(w)):
        return looped(b, node, *xs)
    if not b.holds(w) and not b.holds(bias):
        return merged_again(b, node, [x, w, bias], {0: 0}, [0])[0]
    if b.holds(x):
        y = merged_again(b, node, [x, w], {0: 0}, [0])[0]
    elif b.holds(w):
        made = b.add("ConvTranspose", [x, _examples_in(b, w, 1, 1)], dict(node.attributes))
        group = int(attr(node, "group"))
        y = _examples_out(b, made, 1, group, node.output().shape[1], lambda: b.Mul(b.extent(w, 2), b.ints([group])))
    else:
        y = b.add("ConvTranspose", [x, w], dict(node.attributes))
    assert y is not None
    return y if bias is None else _with_bias(b, y, bias, node)


def _with_bias(b: BatchBuilder, y: Value, bias: Value, node: Node) -> Value:
    """Return ``y`` with a bias of each channel added."""
    rank = node.input(0).type.rank or 2
    tail = list(range(-1, 1 - rank, -1))
    return b.Add(y, b.padded(b.alike(b.Unsqueeze(bias, tail) if tail else bias, bias), rank))


def weight_gradient(b: BatchBuilder, node: Node, x: Value, y_bar: Value, w_shape: Value) -> Any:
    """Return w_bar of each example."""
    shape, group, how = node.output().type.shape, int(attr(node, "group")), _how(node)
    if b.holds(w_shape) or shape is None or any(v.type.rank is None for v in node.operands[:2]):
        return looped(b, node, x, y_bar, w_shape)
    if not b.holds(x):
        made = b.ConvWeightGrad(x, _examples_in(b, y_bar, 1, group), scaled_shape(b, w_shape), **how)
        return _examples_out(b, made, 0, group, shape[0], lambda: slice_axis(b, w_shape, 0, 1))
    if not b.holds(y_bar):
        made = b.ConvWeightGrad(_examples_in(b, x, 1, group), y_bar, scaled_shape(b, w_shape, 1), **how)
        return _examples_out(b, made, 1, 1, shape[1], lambda: slice_axis(b, w_shape, 1, 2))
    window = _window(node, node.input(0), shape)
    if window is None or not all(isinstance(d, int) for d in (*shape, node.input(0).shape[1])):
        return looped(b, node, x, y_bar, w_shape)
    outputs = int(shape[0])  # type: ignore[arg-type]
    samples = node.input(0).shape[0]
    columns = _columns(b, x, window, group)
    bars = b.shaped(y_bar, (b.dim, samples, group, outputs // group, window.positions), _lead(b, y_bar))
    w_bar = b.MatMul(bars, _swapped(b, columns))
    w_bar = b.Squeeze(w_bar, [1]) if samples == 1 else b.ReduceSum(w_bar, [1], keepdims=0)
    return b.shaped(w_bar, (b.dim, *shape), lambda _: b.count)


def _how(node: Node) -> dict[str, Any]:
    return {name: node.attributes[name] for name in HOW if name in node.attributes}


def _swapped(b: Builder, x: Value) -> Value:
    rank = len(x.shape)
    return b.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])


def _lead(b: BatchBuilder, x: Value) -> Any:
    return lambda i: b.count if i == 0 else b.extent(x, i)


def _examples_in(b: BatchBuilder, x: Value, axis: int, group: int) -> Value:
    """Return the examples of ``x`` as more channels along ``axis`` of an example, those of each group side by side."""
    channels, rank = x.shape[axis + 1], len(x.shape)
    if group == 1:
        return b.merged(x, axis)
    dims = (*x.shape[:axis + 1], group, channels // group, *x.shape[axis + 2:])

    def part(i: int) -> Value:
        if i == axis + 2:
            return b.Div(b.extent(x, axis + 1), b.ints([group]))
        return b.extent(x, i if i <= axis else i - 1)

    split = b.shaped(x, dims, part)
    turned = b.Transpose(split, perm=[*range(1, axis + 2), 0, *range(axis + 2, rank + 1)])
    joined_dims = (*x.shape[1:axis + 1], channels * b.dim, *x.shape[axis + 2:])

    def size(i: int) -> Value:
        return b.Mul(b.extent(x, axis + 1), b.count) if i == axis else b.extent(x, i + 1)

    return b.shaped(turned, joined_dims, size)


def _examples_out(b: BatchBuilder, y: Value, axis: int, group: int, channels: DimLike, extent: Callable[[], Value]) -> Value:
    """Return what ``_examples_in`` led to, with the examples first: of each there are ``channels`` along ``axis``.

    ``extent()`` gives their number, as a vector, where only the run can tell.
    """
    rank = len(y.shape)
    if group == 1:
        return b.unmerged(y, channels, extent, axis)
    dims = (*y.shape[:axis], group, b.dim, channels // group, *y.shape[axis + 1:])

    def part(i: int) -> Value:
        if i == axis + 1:
            return b.count
        if i == axis + 2:
            return b.Div(extent(), b.ints([group]))
        return b.extent(y, i if i < axis else i - 2)

    split = b.shaped(y, dims, part)
    turned = b.Transpose(split, perm=[axis + 1, *range(axis + 1), *range(axis + 2, rank + 2)])
    whole = (b.dim, *y.shape[:axis], channels, *y.shape[axis + 1:])

    def size(i: int) -> Value:
        return b.count if i == 0 else extent() if i == axis + 1 else b.extent(y, i - 1)

    return b.shaped(turned, whole, size)


def _window(node: Node, x: Value, weights: Sequence[DimLike] | None) -> Window | None:
    """Return how the kernel slides over the image, None where extents are not known."""
    sizes = [*x.shape[2:], *(weights or ())[2:]]
    if weights is None or not all(isinstance(d, int) for d in sizes):
        return None
    count = len(sizes) // 2
    known = [int(d) for d in sizes]  # type: ignore[arg-type]
    return slide(known[:count], known[count:], attr(node, "strides"), attr(node, "dilations"), attr(node, "pads"),
                 attr(node, "auto_pad"))


def _columns(b: BatchBuilder, x: Value, window: Window, group: int) -> Value:
    """Return what the windows see of the images: [examples, samples, group, channels * taps, positions]."""
    rank = len(window.kernel)
    image = b.merged(x)
    channels = int(image.shape[1])  # type: ignore[arg-type]
    sizes = [int(d) for d in image.shape[2:]]  # type: ignore[arg-type]
    ends = [max(s - n - p, 0) for s, n, p in zip(window.span, sizes, window.begin, strict=True)]
    if any((*window.begin, *ends)):
        image = b.Pad(image, b.ints([0, 0, *window.begin, 0, 0, *ends]))
    axes = list(zip(window.kernel, window.output, window.strides, window.dilations, strict=True))
    if not window.is_pointwise:
        for axis in range(rank - 1, -1, -1):
            taps, positions, stride, dilation = axes[axis]
            places = np.arange(taps)[:, None] * dilation + np.arange(positions) * stride
            image = b.Gather(image, places, axis=2 + axis)
        image = b.Transpose(image, perm=[0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 2 + 2 * rank, 2)])
    samples = x.shape[1]
    dims = (b.dim, samples, group, channels // group * window.taps, window.positions)
    return b.shaped(image, dims, _lead(b, x))


def _reshaped(b: BatchBuilder, y: Value, tail: Sequence[int]) -> Value:
    return b.shaped(y, (b.dim, y.shape[1], *tail), _lead(b, y))
