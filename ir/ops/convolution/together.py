"""Convolution of many small images at once: examples lie along the last axis, so that what moves is long runs of them.

An image, a gradient or a product is turned from (examples, channels, *places) to (channels, *places, examples), block by block. A
column for a tap is then a few long pieces of the turned image, and there is one matrix product for all images of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from flowgrad.ir.graph import Array
from flowgrad.ir.ops.convolution.window import Window, image_part, overlap, patches, tap_slices

LEAST = 16
"""So many examples make runs that are worth turning images for."""

IMAGE_COLUMNS = 1 << 16
"""Images with more elements in their columns than this have runs of their own that are long enough."""

BLOCK_COLUMNS = 1 << 19
"""Columns of so many elements are built at once, if that is ``LEAST`` images or more."""

MOST_TAPS = 128
"""Taps are gone through one by one."""

GATHER_GAIN = 2
"""How many times more a gradient may move by columns of its cotangent than by adding products to the image."""

Shapes = list[tuple[int, ...]]


def suits(batch: int, rows: int, window: Window) -> bool:
    """Return whether images whose columns have ``rows`` rows are better taken together."""
    if batch < LEAST or not 1 < window.taps <= MOST_TAPS or not 0 < rows * window.positions <= IMAGE_COLUMNS:
        return False
    return rows // window.taps * math.prod(window.span) <= IMAGE_COLUMNS  # pads and dilations can make images vast


def block_length(batch: int, rows: int, window: Window) -> int:
    """Return how many images are taken together: a multiple of ``LEAST``, or all."""
    largest = max(rows * window.positions, rows // window.taps * math.prod(window.span))
    many = BLOCK_COLUMNS // largest // LEAST * LEAST
    return min(batch, max(LEAST, many))


def suits_columns(batch: int, channels: int, window: Window) -> bool:
    """Return whether columns of these images are better made together: steps of more than 1 leave no long runs."""
    return all(s == 1 for s in window.strides) and suits(batch, channels * window.taps, window)


def suits_scattering(batch: int, channels: int, outputs: int, window: Window, sizes: Sequence[int]) -> bool:
    """Return whether a gradient by images is better made by adding products to turned images."""
    if not suits(batch, channels * window.taps, window):
        return False
    if any(s != 1 for s in window.strides):
        return True
    return outputs * math.prod(sizes) >= GATHER_GAIN * channels * window.positions


def scratch_shapes(batch: int, channels: int, outputs: int, window: Window) -> Shapes:
    """Return the shapes of the scratch arrays: turned images, columns, products (or cotangents) of a block."""
    rows = channels * window.taps
    length = block_length(batch, rows, window)
    return [(channels * math.prod(window.span) * length,), (rows * window.positions * length,),
            (outputs * window.positions * length,)]


def convolve(x: Array, w: Array, window: Window, group: int, result: Array, work: Sequence[Array]) -> None:
    """Fill ``result`` (examples, outputs, *places) with the convolution of ``x`` by ``w``."""
    outputs = w.shape[0]
    matrix = np.ascontiguousarray(w).reshape(group, outputs // group, -1)
    for images, columns in _blocks(x, window, group, work):
        product = _room(work[2], (group, outputs // group, columns.shape[2]))
        np.matmul(matrix, columns, out=product)
        _turn_back(product, result[images])


def weight_gradient(x: Array, y_bar: Array, window: Window, group: int, result: Array, work: Sequence[Array]) -> None:
    """Fill ``result``, of the shape of the weights, with the sum over examples and places of y_bar times what taps see."""
    outputs = y_bar.shape[1]
    total = result.reshape(group, outputs // group, -1)
    for images, columns in _blocks(x, window, group, work):
        seen = _turned(y_bar[images], work[2]).reshape(group, outputs // group, -1)
        if images.start:
            total += seen @ columns.swapaxes(1, 2)
        else:
            np.matmul(seen, columns.swapaxes(1, 2), out=total)


def scattered_gradient(y_bar: Array, w: Array, window: Window, group: int, result: Array, work: Sequence[Array]) -> None:
    """Fill ``result`` (examples, channels, *image) with what each element of y_bar gives to the places that it saw."""
    batch, channels, *sizes = result.shape
    outputs = y_bar.shape[1]
    matrix = np.ascontiguousarray(w.reshape(group, outputs // group, -1).swapaxes(1, 2))
    inside, source = overlap(sizes, window)
    covered = math.prod(p.stop - p.start for p in source) == math.prod(sizes)
    length = block_length(batch, channels * window.taps, window)
    for start in range(0, batch, length):
        images = slice(start, min(start + length, batch))
        count = images.stop - images.start
        seen = _turned(y_bar[images], work[2]).reshape(group, outputs // group, -1)
        product = _room(work[1], (group, matrix.shape[1], seen.shape[2]))
        np.matmul(matrix, seen, out=product)
        taps = product.reshape(channels, window.taps, *window.output, count)
        image = _room(work[0], (channels, *window.span, count))
        image.fill(0)
        for tap, where in enumerate(tap_slices(window)):
            image[(slice(None), *where)] += taps[:, tap]
        part = result[images]
        if not covered:
            part.fill(0)
        part[image_part(source)] = np.moveaxis(image[(slice(None), *inside)], -1, 0)


def _blocks(x: Array, window: Window, group: int, work: Sequence[Array]) -> Iterator[tuple[slice, Array]]:
    """Yield, block by block, which images, and their columns (groups, channels * taps, places * images)."""
    batch, channels, *sizes = x.shape
    inside, source = overlap(sizes, window)
    length = block_length(batch, channels * window.taps, window)
    for start in range(0, batch, length):
        images = slice(start, min(start + length, batch))
        count = images.stop - images.start
        placed = _room(work[0], (channels, *window.span, count))
        if tuple(window.span) != tuple(p.stop - p.start for p in inside):
            placed.fill(0)
        placed[(slice(None), *inside)] = np.moveaxis(x[images][image_part(source)], 0, -1)
        columns = _room(work[1], (channels, *window.kernel, *window.output, count))
        np.copyto(columns, np.moveaxis(patches(np.moveaxis(placed, -1, 0), window), 0, -1))
        yield images, columns.reshape(group, channels // group * window.taps, -1)


def _room(buffer: Array, shape: tuple[int, ...]) -> Array:
    return buffer[: math.prod(shape)].reshape(shape)


def _turned(x: Array, buffer: Array) -> Array:
    """Return ``x`` with the examples as the last axis, in ``buffer``."""
    turned = _room(buffer, (*x.shape[1:], x.shape[0]))
    np.copyto(turned, np.moveaxis(x, 0, -1))
    return turned


def _turn_back(product: Array, result: Array) -> None:
    """Copy a product, whose last axis has the examples of each place side by side, to where its examples belong."""
    np.copyto(result, np.moveaxis(product.reshape(*result.shape[1:], result.shape[0]), -1, 0))
