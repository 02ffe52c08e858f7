"""Pooling: windowed and global maxima, means and norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, looped, volume, within_batch
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.convolution.automatic_pads import is_misread, padded
from flowgrad.ir.ops.convolution.batching import scaled_shape
from flowgrad.ir.ops.convolution.expansions import Slide, average_gradient, shape_tail, vector_tail, window_counts
from flowgrad.ir.ops.convolution.window import (
    CEIL_MODE_SINCE,
    Window,
    image_part,
    needs_place,
    output_shape,
    overlap,
    place,
    shape_in,
    slide,
    tap_slices,
)
from flowgrad.ir.ops.operands import divided, known_ints, mean_of
from flowgrad.ir.ops.reduction import reduce_l2
from flowgrad.ir.ops.registry import FLOWGRAD, NO_GRADIENT, Trait, attr, op
from flowgrad.ir.types import INT64, Type

GEOMETRY = ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides")

MOST_TAPS = 2**20
"""Kernels and derivatives take the taps of a window one by one."""


def geometry(node: Node) -> dict[str, Any]:
    """Return the attributes that say how the window slides and what it counts."""
    return {name: node.attributes[name] for name in GEOMETRY if name in node.attributes}


def pooled_type(node: Node) -> Type:
    """Return the type of a pooling node's output: batch and channels stay, the image shrinks."""
    x, kernel = node.input(0), _checked_kernel(node)
    if x.type.shape is None:
        return x.type
    return x.type.with_shape((*x.shape[:2], *output_shape(node, x.shape[2:], kernel)))


def _window(node: Node, image: Value) -> Window:
    """Return the geometry of a node that slides over an image of static type."""
    given = {name: attr(node, name) for name in ("strides", "dilations", "pads", "auto_pad", "ceil_mode")}
    return slide(image.type.static_shape[2:], _checked_kernel(node), **given)


def pooled_rank(node: Node) -> list[int | None]:
    """The image has the axes of the kernel, besides batch and channels."""
    return [2 + len(attr(node, "kernel_shape"))]


def _checked_kernel(node: Node) -> tuple[int, ...]:
    """Return the kernel's extents; ValidationError if a run could not list its taps."""
    kernel = tuple(int(n) for n in attr(node, "kernel_shape"))
    if min(kernel, default=1) < 1 or math.prod(kernel) > MOST_TAPS:
        raise ValidationError(f"a kernel of {list(kernel)} has no taps, or more than {MOST_TAPS:,}", code="attribute",
                              where=node.label)
    return kernel


def _result(out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.empty(shape, dtype) if out is None else out


# ---- MaxPool ------------------------------------------------------------------------------------------------------------


@op("MaxPool", since=12, outputs=("Y", "Indices"), required_outputs=1, values_since=CEIL_MODE_SINCE)
def max_pool(
    x: Array, *, kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None, storage_order: int = 0, strides: Sequence[int] | None = None,
    count: int = 1, out: Array | None = None,
) -> Any:
    window = slide(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    placed = place(x, window, None, lowest)
    y = _result(out, (*x.shape[:2], *window.output), x.dtype)
    slices = tap_slices(window)
    if count < 2:
        np.copyto(y, placed[image_part(slices[0])])
        for where in slices[1:]:
            np.maximum(y, placed[image_part(where)], out=y)
        return y
    return y, _first_maxima(x, placed, window, slices, y, storage_order)


def _first_maxima(
    x: Array, placed: Array, window: Window, slices: Sequence[tuple[slice, ...]], y: Array, column_major: int
) -> Array:
    """Fill ``y`` with the maxima and return the flat index into the whole tensor of the first element that is one."""
    seen = [placed[image_part(where)] for where in slices]
    steps = _image_steps(x.shape[2:], column_major)
    tap_steps = np.array([sum(k * d * s for k, d, s in zip(tap, window.dilations, steps, strict=True))
                          for tap in np.ndindex(*window.kernel)], np.int64)
    first = _first_of_plain(seen, y) if _are_all_above_pads(x) else _first_of_any(seen, y, _inside_masks(window, x.shape[2:]))
    found: Array = tap_steps.take(first)
    found += _corner_indices(window, steps)
    images = np.arange(math.prod(x.shape[:2]), dtype=np.int64) * math.prod(x.shape[2:])
    found += images.reshape(*x.shape[:2], *(1,) * len(window.kernel))
    return found


def _first_of_any(seen: Sequence[Array], y: Array, inside: Sequence[Array]) -> Array:
    """Fill ``y`` with the maxima, and return the number of the first tap that sees each: a pad never wins, a first NaN does."""
    best = np.zeros(y.shape, np.min_scalar_type(len(seen)))
    np.copyto(y, seen[0])
    chosen = np.broadcast_to(inside[0], y.shape).copy()
    may_be_nan = y.dtype.kind == "f"
    for tap in range(1, len(seen)):
        better = seen[tap] > y
        if may_be_nan:
            better |= np.isnan(seen[tap]) & ~np.isnan(y)
        np.logical_or(better, ~chosen & inside[tap], out=better)  # a pad never wins, even against minus infinity
        better &= inside[tap]
        np.copyto(y, seen[tap], where=better)
        np.copyto(best, best.dtype.type(tap), where=better)
        chosen |= inside[tap]
    return best


def _are_all_above_pads(x: Array) -> bool:
    """Return whether no element is NaN or as low as a pad, so that one that is larger than all before it is the first maximum."""
    if x.size == 0:
        return False
    return bool(np.min(x) > (-np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min))


def _first_of_plain(seen: Sequence[Array], y: Array) -> Array:
    """Fill ``y`` with the maxima, and return the number of the first tap that sees each.

    The last tap that is larger than all before it is the first maximum, and numbers go up: that one is a maximum too.
    """
    np.copyto(y, seen[0])
    number = np.min_scalar_type(len(seen))
    best, larger, candidate = np.zeros(y.shape, number), np.empty(y.shape, bool), np.empty(y.shape, number)
    for tap in range(1, len(seen)):
        np.greater(seen[tap], y, out=larger)
        np.maximum(y, seen[tap], out=y)
        np.multiply(larger, number.type(tap), out=candidate)
        np.maximum(best, candidate, out=best)
    return best


def _image_steps(sizes: Sequence[int], column_major: int) -> list[int]:
    order = range(len(sizes)) if column_major else range(len(sizes) - 1, -1, -1)
    steps, step = [0] * len(sizes), 1
    for axis in order:
        steps[axis], step = step, step * sizes[axis]
    return steps


def _corner_indices(window: Window, steps: Sequence[int]) -> Array:
    """Return the flat index into the image of the first tap of every window (outside of it where that lies in the pads)."""
    rank = len(window.kernel)
    total: Array = np.zeros((1,) * rank, np.int64)
    for axis, (extent, stride, begin) in enumerate(zip(window.output, window.strides, window.begin, strict=True)):
        along = (np.arange(extent, dtype=np.int64) * stride - begin) * steps[axis]
        total = total + along.reshape(-1, *(1,) * (rank - 1 - axis))
    return total


def _inside_masks(window: Window, sizes: Sequence[int]) -> list[Array]:
    """Return, per tap, which windows see a pixel of the image there."""
    axes = []
    for axis, size in enumerate(sizes):
        o = np.arange(window.output[axis])[None] * window.strides[axis] - window.begin[axis]
        at = o + np.arange(window.kernel[axis])[:, None] * window.dilations[axis]
        axes.append((at >= 0) & (at < size))
    rank = len(sizes)
    masks = []
    for tap in np.ndindex(*window.kernel):
        mask = np.ones((1,) * rank, bool)
        for axis, k in enumerate(tap):
            mask = mask & axes[axis][k].reshape(-1, *(1,) * (rank - 1 - axis))
        masks.append(mask)
    return masks


@max_pool.scratch
def _(node: Node) -> int:
    """The image with its pads; with indices, those of the corners of windows and two masks."""
    window = _window(node, node.input(0))
    batch, channels, *sizes = node.input(0).type.static_shape
    rows, itemsize = batch * channels, node.input(0).type.dtype.itemsize
    placed = rows * math.prod(window.span) * itemsize if needs_place(sizes, window) else 0
    return placed + (0 if node.optional_output(1) is None else 11 * rows * math.prod(window.output))


@max_pool.types
def _(node: Node) -> list[Type]:
    y = pooled_type(node)
    return [y, y.with_dtype(INT64)]


@max_pool.unrounded
def _(b: Builder, node: Node, reals: Sequence[Value | None]) -> Value | None:
    """The maxima of the operand before it was rounded."""
    return None if reals[0] is None else b.MaxPool(reals[0], **node.attributes)


@max_pool.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value, _indices: None) -> Any:
    """x_bar adds every element of y_bar where its maximum was found (the first one on ties).

    A window that sees nothing but pads has no maximum and passes nothing on.
    """
    x = node.input(0)
    indices = b.residual(node, "Indices")
    if _may_see_pads_alone(node):
        sees = b.Greater(b.add("MaxPool", [b.zeros_like(x)], node.attributes), b.scalar(-1, x.type.dtype))
        y_bar, indices = b.Where(sees, y_bar, b.scalar(0, x.type.dtype)), b.Where(sees, indices, b.scalar(0, INT64))
    if not attr(node, "storage_order"):
        return b.MaxPoolGrad(y_bar, indices, b.shape(x))
    rank = 2 + len(attr(node, "kernel_shape"))
    turned = [0, 1, *range(rank - 1, 1, -1)]  # column-major indices count over the image with its axes reversed
    return b.Transpose(b.MaxPoolGrad(y_bar, indices, b.Gather(b.shape(x), turned)), perm=turned)


def _may_see_pads_alone(node: Node) -> bool:
    kernel, pads = attr(node, "kernel_shape"), attr(node, "pads") or ()
    steps = attr(node, "dilations") or (1,) * len(kernel)
    return any(pad > (k - 1) * d for pad, k, d in zip(pads, (*kernel, *kernel), (*steps, *steps), strict=False))


@op("MaxPoolGrad", domain=FLOWGRAD, outputs=("x_bar",), traits=(Trait.LINEAR,), extents=("x_shape",))
def max_pool_grad(y_bar: Array, indices: Array, x_shape: Array, *, out: Array | None = None) -> Array:
    shape = tuple(int(n) for n in x_shape)
    x_bar = _result(out, shape, y_bar.dtype)
    size = math.prod(shape)
    sums = np.bincount(indices.reshape(-1), weights=y_bar.reshape(-1), minlength=size)
    np.copyto(x_bar, sums.reshape(shape), casting="same_kind")
    return x_bar


@max_pool_grad.scratch
def _(node: Node) -> int:
    """The sums, and what is summed, in float64."""
    return 8 * (math.prod(node.output().type.static_shape) + math.prod(node.input(0).type.static_shape))


@max_pool_grad.types
def _(node: Node) -> Type:
    return Type(node.input(0).type.dtype, shape_in(node.input(2)))


@max_pool_grad.adjoint
def _(b: DerivativeBuilder, node: Node, x_bar_bar: Value) -> Any:
    """y_bar_bar = the elements of the cotangent at the indices."""
    flat = b.Reshape(x_bar_bar, [-1])
    return b.Gather(flat, node.input(1), axis=0), NO_GRADIENT, NO_GRADIENT


@max_pool_grad.expansion
def _(b: Builder, node: Node) -> Value:
    """Zeros as many as x has elements, y_bar added at the indices, in the shape of x."""
    y_bar, indices, x_shape = (node.input(i) for i in range(3))
    known = known_ints(x_shape)
    size = b.ReduceProd(x_shape, keepdims=1) if known is None else b.ints([math.prod(known)])
    zeros = b.Expand(b.scalar(0, y_bar.type.dtype), size)
    flat = b.ScatterElements(zeros, b.Reshape(indices, [-1]), b.Reshape(y_bar, [-1]), axis=0, reduction="add")
    return b.Reshape(flat, x_shape, allowzero=1)


# ---- AveragePool --------------------------------------------------------------------------------------------------------


@op("AveragePool", since=19, traits=(Trait.LINEAR,), values_since=CEIL_MODE_SINCE)
def average_pool(
    x: Array, *, kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0, dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    out: Array | None = None,
) -> Array:
    window = slide(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    y = _result(out, (*x.shape[:2], *window.output), x.dtype)
    sum_windows(x, window, y)
    y *= _reciprocal_counts(window, x.shape[2:], count_include_pad, x.dtype)
    return y


def sum_windows(x: Array, window: Window, y: Array) -> None:
    """Fill ``y`` with the sum of each window."""
    placed = place(x, window, None)
    slices = tap_slices(window)
    np.copyto(y, placed[image_part(slices[0])])
    for where in slices[1:]:
        y += placed[image_part(where)]


def _reciprocal_counts(window: Window, sizes: Sequence[int], include_pad: int, dtype: np.dtype[Any]) -> Array:
    """Return one over the number of positions that each window counts."""
    rank = len(sizes)
    total = np.ones((1,) * rank)
    for axis, size in enumerate(sizes):
        low, high = (-window.begin[axis], size + window.end[axis]) if include_pad else (0, size)
        at = (np.arange(window.output[axis]) * window.strides[axis] - window.begin[axis])[:, None]
        at = at + np.arange(window.kernel[axis]) * window.dilations[axis]
        counts = ((at >= low) & (at < high)).sum(1)
        total = total * counts.reshape(-1, *(1,) * (rank - 1 - axis))
    return (1 / np.maximum(total, 1)).astype(dtype)


@average_pool.types
def _(node: Node) -> Type:
    return pooled_type(node)


@average_pool.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar spreads every element of y_bar evenly over what its window counted."""
    return b.AveragePoolGrad(y_bar, b.shape(node.input(0)), **geometry(node))


@op("AveragePoolGrad", domain=FLOWGRAD, outputs=("x_bar",), traits=(Trait.LINEAR,), extents=("x_shape",))
def average_pool_grad(
    y_bar: Array, x_shape: Array, *, kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0, dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    out: Array | None = None,
) -> Array:
    shape = tuple(int(n) for n in x_shape)
    window = slide(shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    share = y_bar * _reciprocal_counts(window, shape[2:], count_include_pad, y_bar.dtype)
    spread = np.zeros((*shape[:2], *window.span), y_bar.dtype)
    for where in tap_slices(window):
        spread[image_part(where)] += share
    x_bar = _result(out, shape, y_bar.dtype)
    x_bar.fill(0)
    inside, source = overlap(shape[2:], window)
    x_bar[image_part(source)] = spread[image_part(inside)]
    return x_bar


@average_pool_grad.scratch
def _(node: Node) -> int:
    """The shares, and the image with its pads that they are added to."""
    window = _window(node, node.output())
    rows = math.prod(node.output().type.static_shape[:2])
    return rows * (math.prod(window.span) + math.prod(window.output)) * node.output().type.dtype.itemsize


@average_pool_grad.types
def _(node: Node) -> Type:
    _checked_kernel(node)
    return Type(node.input(0).type.dtype, shape_in(node.input(1)))


@average_pool_grad.expansion
def _(b: Builder, node: Node) -> Value:
    """y_bar over the counts, then a transposed convolution with ones, channel by channel."""
    y_bar, x_shape = node.input(0), node.input(1)
    how = Slide.of(b, node, len(y_bar.shape) - 2, shape_tail(b, x_shape))
    return average_gradient(b, how, y_bar, x_shape, attr(node, "kernel_shape"), attr(node, "count_include_pad"))


@average_pool_grad.adjoint
def _(b: DerivativeBuilder, node: Node, x_bar_bar: Value) -> Any:
    """The transpose of the spreading is the mean itself."""
    return b.AveragePool(x_bar_bar, **geometry(node)), NO_GRADIENT


# ---- the global ones ----------------------------------------------------------------------------------------------------


def global_type(node: Node) -> Type:
    """Return the type of x with every extent of the image 1."""
    x = node.input(0)
    return x.type if x.type.shape is None else x.type.with_shape((*x.shape[:2], *(1,) * (len(x.shape) - 2)))


@op("GlobalAveragePool", traits=(Trait.LINEAR,))
def global_average_pool(x: Array, *, out: Array | None = None) -> Array:
    return mean_of(x, tuple(range(2, x.ndim)), out=out)


global_average_pool.types(global_type)


@global_average_pool.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar / count, spread over the image."""
    x = node.input(0)
    return b.Expand(divided(b, y_bar, image_size(b, x)), b.shape(x))


def image_size(b: Builder, x: Value) -> Any:
    """Return the number of pixels of an image: a number if it is known, else a value in the type that is computed in."""
    sizes = x.shape[2:]
    if all(isinstance(n, int) for n in sizes):
        return float(np.prod([int(n) for n in sizes]))  # type: ignore[arg-type]
    return b.cast(b.ReduceProd(b.Shape(x, start=2), keepdims=0), x.type.dtype.wide)


@op("GlobalMaxPool")
def global_max_pool(x: Array, *, out: Array | None = None) -> Array:
    return np.asarray(np.max(x, axis=tuple(range(2, x.ndim)), keepdims=True, out=out))


global_max_pool.types(global_type)


@global_max_pool.kinks
def _(b: Builder, node: Node) -> Value:
    """Where more than one pixel is the largest."""
    x = node.input(0)
    largest = b.cast(b.Equal(x, node.output()), x.type.dtype.wide)
    return b.Greater(b.ReduceSum(largest, list(range(2, len(x.shape))), keepdims=1), 1.0)


@global_max_pool.expansion
def _(b: Builder, node: Node) -> Value:
    """The maximum over all axes of the image."""
    x = node.input(0)
    return b.ReduceMax(x, list(range(2, len(x.shape))), keepdims=1)


# ---- norms --------------------------------------------------------------------------------------------------------------


@op("LpPool", since=18)
def lp_pool(
    x: Array, *, kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Sequence[int] | None = None, p: int = 2,
    pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    out: Array | None = None,
) -> Array:
    window = slide(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    y = _result(out, (*x.shape[:2], *window.output), x.dtype)
    sum_windows(np.abs(x) ** p, window, y)
    return np.asarray(np.power(y, x.dtype.type(1 / p), out=y))


lp_pool.types(pooled_type)


@lp_pool.expansion
def _(b: Builder, node: Node) -> Value:
    """(sum of |x|^p)^(1/p), the sum being the mean over the window times what it counts."""
    x, p, kernel = node.input(0), int(attr(node, "p")), attr(node, "kernel_shape")
    mean = b.AveragePool(_powered(b, x, p), count_include_pad=1, **geometry(node))
    how = Slide.of(b, node, len(x.shape) - 2, vector_tail(b, x))
    return _root(b, b.Mul(mean, b.cast_like(window_counts(b, how, mean, kernel, 1), mean)), p)


def _powered(b: Builder, x: Value, p: int) -> Value:
    """Return |x|^p."""
    if p == 2:
        return b.Mul(x, x)
    size = b.Abs(x)
    return size if p == 1 else b.Pow(size, b.scalar(p, x.type.dtype))


def _root(b: Builder, total: Value, p: int) -> Value:
    """Return total^(1/p), with the slope 0 where nothing but zeros was summed."""
    if p == 1:
        return total
    vanishes = b.Equal(total, 0.0)
    safe = b.Where(vanishes, b.scalar(1, total.type.dtype), total)
    root = b.Sqrt(safe) if p == 2 else b.Pow(safe, b.scalar(1 / p, total.type.dtype))
    return b.Where(vanishes, b.scalar(0, total.type.dtype), root)


@op("GlobalLpPool", since=2)
def global_lp_pool(x: Array, *, p: int = 2, out: Array | None = None) -> Array:
    if p == 2:
        return np.asarray(reduce_l2.kernel(x, np.arange(2, x.ndim), noop_with_empty_axes=1, out=out))
    total = np.sum(np.abs(x) ** p, axis=tuple(range(2, x.ndim)), keepdims=True, out=out)
    return np.asarray(np.power(total, x.dtype.type(1 / p), out=out))


global_lp_pool.types(global_type)


@global_lp_pool.expansion
def _(b: Builder, node: Node) -> Value:
    """(sum of |x|^p over the image)^(1/p)."""
    x, p = node.input(0), int(attr(node, "p"))
    return _root(b, b.ReduceSum(_powered(b, x, p), list(range(2, len(x.shape))), keepdims=1), p)


for _pool in (max_pool, average_pool, lp_pool):
    _pool.ranks(pooled_rank)
    _pool.expands_on_export(is_misread)

for _pool in (max_pool, average_pool):
    _pool.expansion(padded)


# ---- many examples ----------------------------------------------------------------------------------------------------------

for _pool in (average_pool, lp_pool, global_average_pool, global_max_pool, global_lp_pool):
    _pool.batch(within_batch(0))


@max_pool.batch
def _(b: BatchBuilder, node: Node, x: Value) -> Any:
    """More images. Indices count in all of them, so each example's are less by what is before it."""
    made = within_batch(0)(b, node, x)
    if len(node.outputs) < 2 or x.type.rank is None or made[1] is None:
        return made
    own = b.Sub(made[1], b.numbers(len(made[1].shape), volume(b, x)))
    b.flat_indices[own] = made[1]
    return made[0], own


@max_pool_grad.batch
def _(b: BatchBuilder, node: Node, y_bar: Value, indices: Value, x_shape: Value) -> Any:
    """More images, at indices that count in all of them."""
    y_bar, indices = b.lifted(y_bar), b.lifted(indices)
    if b.holds(x_shape) or y_bar.type.rank is None or indices.type.rank is None:
        return looped(b, node, y_bar, indices, x_shape)
    places = b.flat_indices.get(indices)
    if places is None:
        places = b.alike(b.Add(indices, b.numbers(len(indices.shape), b.ReduceProd(x_shape, keepdims=0))), indices)
    b.batched.update((y_bar, places))
    image = b.MaxPoolGrad(b.merged(y_bar), b.merged(places), scaled_shape(b, x_shape))
    return b.unmerged(image, node.output().shape[0], lambda: b.extent(y_bar, 1))


@average_pool_grad.batch
def _(b: BatchBuilder, node: Node, y_bar: Value, x_shape: Value) -> Any:
    """More images."""
    if b.holds(x_shape):
        return looped(b, node, y_bar, x_shape)
    return within_batch(0)(b, node, y_bar, scaled_shape(b, x_shape))
