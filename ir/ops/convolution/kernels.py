"""Convolution of arrays: columns and one matrix product per block of images, with cheaper ways where they exist.

All functions take ``w`` as (outputs, inputs / group, *kernel), whichever of the three arrays is the unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from flowgrad.ir.graph import Array
from flowgrad.ir.ops.convolution import together
from flowgrad.ir.ops.convolution.window import Window, image_part, needs_place, overlap, patches, place, tap_slices
from flowgrad.ir.ops.operands import into

SMALL_IMAGE = 512
"""Images with fewer output positions than this are put together: a narrow matrix product is a slow one."""

COLUMNS = 1 << 22
"""Columns of at most this many elements are built at once, unless a single image has more."""

GROUP_COLUMNS = 1 << 19
"""Columns of several groups are built at once up to this many elements."""

SCATTER_GAIN = 4
"""How many times less adding products to an image must move than gathering columns: it is the slower way to move them."""


def images_at_once(batch: int, rows: int, positions: int) -> int:
    """Return how many images one matrix product covers."""
    if positions >= SMALL_IMAGE or batch <= 1:
        return 1
    return max(1, min(batch, COLUMNS // max(1, rows * positions)))


def groups_at_once(group: int, rows: int, positions: int) -> int:
    """Return how many groups of an image one block of columns covers: as many as stay in a fast cache."""
    return max(1, min(group, GROUP_COLUMNS // max(1, rows * positions)))


def scratch_shapes(batch: int, channels: int, outputs: int, window: Window, group: int, sizes: Sequence[int]
                   ) -> list[tuple[int, ...]]:
    """Return the shapes of the scratch arrays of ``convolve``: placed images, columns, product."""
    if together.suits_columns(batch, channels, window):
        return together.scratch_shapes(batch, channels, outputs, window)
    rows = channels // group * window.taps
    count = images_at_once(batch, rows * group, window.positions)
    placed = (count, channels, *window.span) if needs_place(sizes, window) else (0,)
    if count == 1 and window.is_pointwise and tuple(sizes) == window.output:  # an image is its own columns
        return [placed, (0,), (0,)]
    if count == 1:
        return [placed, (rows * groups_at_once(group, rows, window.positions), window.positions), (0,)]
    return [placed, (rows * group, count * window.positions), (outputs, count * window.positions)]


def _scratch(shapes: Sequence[tuple[int, ...]], work: Sequence[Array] | None, dtype: np.dtype[np.generic]
             ) -> list[Array | None]:
    if work is not None:
        return [buffer if buffer.size else None for buffer in work]
    return [np.empty(shape, dtype) if shape != (0,) else None for shape in shapes]


def _whole_scratch(shapes: Sequence[tuple[int, ...]], work: Sequence[Array] | None, dtype: np.dtype[np.generic]) -> Sequence[Array]:
    return [np.empty(shape, dtype) for shape in shapes] if work is None else work


def _target(out: Array | None, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    if out is not None and out.flags.c_contiguous and out.dtype == dtype:
        return out
    return np.empty(shape, dtype)


def convolve(
    x: Array, w: Array, bias: Array | None, window: Window, group: int,
    out: Array | None = None, work: Sequence[Array] | None = None,
) -> Array:
    """Return y[n,m,o] = bias[m] + sum over c, k of w[m,c,k] x[n,c,o*stride+k*dilation-begin], group by group."""
    batch, outputs = x.shape[0], w.shape[0]
    shape = (batch, outputs, *window.output)
    result = _target(out, shape, x.dtype)
    if result.size == 0:
        return into(result, out)
    if window.is_pointwise and needs_no_columns(x, window):
        _pointwise(x, w, group, result)
        _add_bias(result, bias)
        return into(result, out)
    shapes = scratch_shapes(batch, x.shape[1], outputs, window, group, x.shape[2:])
    if together.suits_columns(batch, x.shape[1], window):
        together.convolve(x, w, window, group, result, _whole_scratch(shapes, work, x.dtype))
        _add_bias(result, bias)
        return into(result, out)
    placed, columns, product = _scratch(shapes, work, x.dtype)
    if placed is not None:
        placed.fill(0)
    matrix = np.ascontiguousarray(w).reshape(group, outputs // group, w.shape[1] * window.taps)
    for images, groups, block in _blocks(x, window, group, columns, placed):
        y = result[images]
        if y.shape[0] == 1:
            np.matmul(matrix[groups], block, out=y.reshape(group, outputs // group, window.positions)[groups])
        else:
            wide = _room(product, (group, outputs // group, y.shape[0] * window.positions), x.dtype)
            np.matmul(matrix, block, out=wide)
            np.copyto(y.reshape(y.shape[0], outputs, -1), wide.reshape(outputs, y.shape[0], -1).swapaxes(0, 1))
    _add_bias(result, bias)
    return into(result, out)


def needs_no_columns(x: Array, window: Window) -> bool:
    """Return whether a pointwise window covers the whole image, so that its columns are the image itself."""
    return bool(x.shape[2:] == window.output)


def _pointwise(x: Array, w: Array, group: int, result: Array) -> None:
    batch, outputs = result.shape[:2]
    images = np.ascontiguousarray(x).reshape(batch, group, x.shape[1] // group, -1)
    matrix = np.ascontiguousarray(w).reshape(group, outputs // group, -1)
    np.matmul(matrix, images, out=result.reshape(batch, group, outputs // group, -1))


def _add_bias(y: Array, bias: Array | None) -> None:
    if bias is not None:
        y += bias.reshape(-1, *(1,) * (y.ndim - 2))


def _room(buffer: Array | None, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    size = math.prod(shape)
    if buffer is None or buffer.size < size:
        return np.empty(shape, dtype)
    return buffer.reshape(-1)[:size].reshape(shape)


def _blocks(
    x: Array, window: Window, group: int, columns: Array | None, placed: Array | None
) -> Iterator[tuple[slice, slice, Array]]:
    """Yield, block by block, which images, which groups, and their columns (groups, channels * taps, images * positions).

    A block has all groups of several images, or some groups of one.
    """
    batch, channels = x.shape[:2]
    inner, kernel_rank = channels // group, len(window.kernel)
    rows = inner * window.taps
    count = images_at_once(batch, rows * group, window.positions)
    every = slice(0, group)
    if count == 1 and window.is_pointwise and needs_no_columns(x, window):
        for n in range(batch):
            yield slice(n, n + 1), every, np.ascontiguousarray(x[n]).reshape(group, rows, window.positions)
        return
    step = groups_at_once(group, rows, window.positions) if count == 1 else group
    order = (1, *range(2, 2 + kernel_rank), 0, *range(2 + kernel_rank, 2 + 2 * kernel_rank))
    for start in range(0, batch, count):
        block = x[start : start + count]
        seen = patches(place(block, window, placed), window).transpose(order)
        for first in range(0, group, step):
            groups = every if step == group else slice(first, min(first + step, group))
            part = seen[groups.start * inner : groups.stop * inner]
            room = _room(columns, part.shape, x.dtype)
            np.copyto(room, part)
            yield (slice(start, start + len(block)), groups,
                   room.reshape(groups.stop - groups.start, rows, len(block) * window.positions))


# ---- the two derivatives ------------------------------------------------------------------------------------------------


def turned(w: Array, group: int) -> Array:
    """Return the weights of the transposed convolution: inputs and outputs swapped within groups, taps reversed."""
    outputs, inputs = w.shape[:2]
    grouped = w.reshape(group, outputs // group, *w.shape[1:]).swapaxes(1, 2)
    flipped = grouped[image_part([slice(None, None, -1)] * (w.ndim - 2))]
    return np.ascontiguousarray(flipped).reshape(group * inputs, outputs // group, *w.shape[2:])


def turned_window(window: Window, sizes: Sequence[int]) -> Window:
    """Return the window of the transposed convolution of one with stride 1."""
    begin = tuple(r - 1 - p for r, p in zip(window.reach, window.begin, strict=True))
    return replace(window, begin=begin, end=(0,) * len(begin), output=tuple(sizes))


def input_gradient(
    y_bar: Array, w: Array, window: Window, group: int, sizes: Sequence[int],
    out: Array | None = None, work: Sequence[Array] | None = None,
) -> Array:
    """Return x_bar[n,c,i]: the sum of w[m,c,k] y_bar[n,m,o] over m and all o, k with o*stride+k*dilation-begin = i."""
    batch, channels = y_bar.shape[0], w.shape[1] * group
    if together.suits_scattering(batch, channels, y_bar.shape[1], window, sizes):
        result = _target(out, (batch, channels, *sizes), y_bar.dtype)
        shapes = together.scratch_shapes(batch, channels, y_bar.shape[1], window)
        together.scattered_gradient(y_bar, w, window, group, result, _whole_scratch(shapes, work, y_bar.dtype))
        return into(result, out)
    if all(s == 1 for s in window.strides) and not scatters(y_bar.shape[1], channels, window, sizes):
        return convolve(y_bar, turned(w, group), None, turned_window(window, sizes), group, out, work)
    result = _target(out, (batch, channels, *sizes), y_bar.dtype)
    result.fill(0)
    if result.size == 0 or y_bar.size == 0:
        return into(result, out)
    shapes = [(channels, window.taps, *window.output), (channels, *window.span)]
    column, image = _whole_scratch(shapes, work, y_bar.dtype)
    matrix = np.ascontiguousarray(w.reshape(group, w.shape[0] // group, -1).swapaxes(1, 2))
    inside, source = overlap(sizes, window)
    for n in range(batch):
        seen = np.ascontiguousarray(y_bar[n]).reshape(group, w.shape[0] // group, -1)
        np.matmul(matrix, seen, out=column.reshape(group, -1, window.positions))
        _scatter(column, window, image)
        result[n][image_part(source)] = image[image_part(inside)]
    return into(result, out)


def scatters(outputs: int, channels: int, window: Window, sizes: Sequence[int]) -> bool:
    """Return whether an image gradient moves far less by adding products to the image than by gathering columns of y_bar."""
    return outputs * math.prod(sizes) >= SCATTER_GAIN * channels * window.positions


def gradient_scratch_shapes(batch: int, channels: int, outputs: int, window: Window, group: int, sizes: Sequence[int]
                            ) -> list[tuple[int, ...]]:
    """Return the shapes of the scratch arrays of ``input_gradient``: what adds to the image wants products, image and pads."""
    if together.suits_scattering(batch, channels, outputs, window, sizes):
        return together.scratch_shapes(batch, channels, outputs, window)
    if any(s != 1 for s in window.strides) or scatters(outputs, channels, window, sizes):
        return [(channels, window.taps, *window.output), (channels, *window.span)]
    turned_ = turned_window(window, sizes)
    if turned_.is_pointwise and window.output == turned_.output:  # an image is its own columns
        return []
    return scratch_shapes(batch, outputs, channels, turned_, group, window.output)


def _scatter(column: Array, window: Window, image: Array) -> None:
    """Add the products (channels, taps, *output) to the places of the image that they belong to."""
    image.fill(0)
    if window.taps <= window.positions:
        for tap, where in enumerate(tap_slices(window)):
            image[image_part(where)] += column[:, tap]
        return
    products = column.reshape(-1, *window.kernel, window.positions)
    for index, place_ in enumerate(np.ndindex(*window.output)):
        where = tuple(slice(o * s, o * s + r, d) for o, s, r, d in
                      zip(place_, window.strides, window.reach, window.dilations, strict=True))
        image[image_part(where)] += products[..., index]


def weight_gradient(
    x: Array, y_bar: Array, window: Window, group: int, out: Array | None = None, work: Sequence[Array] | None = None
) -> Array:
    """Return w_bar[m,c,k] = sum over n, o of y_bar[n,m,o] x[n,c,o*stride+k*dilation-begin], group by group."""
    batch, channels = x.shape[:2]
    outputs = y_bar.shape[1]
    inner = channels // group
    result = _target(out, (outputs, inner, *window.kernel), x.dtype)
    if y_bar.size == 0 or x.size == 0:
        result.fill(0)
        return into(result, out)
    shapes = scratch_shapes(batch, channels, outputs, window, group, x.shape[2:])
    if together.suits_columns(batch, channels, window):
        together.weight_gradient(x, y_bar, window, group, result, _whole_scratch(shapes, work, x.dtype))
        return into(result, out)
    placed, columns, product = _scratch(shapes, work, x.dtype)
    if placed is not None:
        placed.fill(0)
    total = result.reshape(group, outputs // group, -1)
    for images, groups, block in _blocks(x, window, group, columns, placed):
        seen = y_bar[images]
        if len(seen) > 1:
            wide = _room(product, (outputs, len(seen), window.positions), x.dtype)
            np.copyto(wide, seen.reshape(len(seen), outputs, -1).swapaxes(0, 1))
            seen = wide
        left = np.ascontiguousarray(seen).reshape(group, outputs // group, -1)[groups]
        if images.start:
            total[groups] += left @ block.swapaxes(1, 2)
        else:
            np.matmul(left, block.swapaxes(1, 2), out=total[groups])
    return into(result, out)
