"""Regions of an image brought to one size: RoiAlign, which samples them, and MaxRoiPool, which takes their maxima."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, looped
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.limits import check_scratch, check_time, check_work
from flowgrad.ir.ops.operands import ramp
from flowgrad.ir.ops.registry import attr, op
from flowgrad.ir.ops.sampling.taps import Taps, extent, near, on_pixels, rows_of
from flowgrad.ir.types import BOOL, INT64, UNKNOWN, Type, merge_dims

CHOICES = {"mode": ("avg", "max"), "coordinate_transformation_mode": ("half_pixel", "output_half_pixel")}


PIXELS_AT_A_TIME = 2**24
OPERATIONS_A_PIXEL = 20
"""At least: each is read twice, selected, weighed and added, one whole array after the other."""


def _check_images(images: Array, count: int) -> None:
    if images.size and (images.min() < 0 or images.max() >= count):
        raise IndexError(f"a region lies in image {images.min() if images.min() < 0 else images.max()} of {count}")


def _regions_type(node: Node, columns: int, made: Sequence[int]) -> Type:
    """Return [regions, channels, *made]; ``columns`` is how many numbers tell a region."""
    x, rois = node.input(0).type, node.input(1).type
    if x.rank not in (None, 4) or rois.rank not in (None, 2):
        raise ValidationError(f"{node.op} takes images [N, C, H, W] and regions [R, {columns}], got {x!r} and {rois!r}",
                              code="shape", where=node.label)
    if min(made, default=1) < 1 or len(made) != 2:
        raise ValidationError(f"regions of {list(made)} pixels", code="attribute", where=node.label)
    if rois.shape is not None:
        merge_dims(rois.shape[1], columns)
    count = UNKNOWN if rois.shape is None else rois.shape[0]
    return x.with_shape((count, UNKNOWN if x.shape is None else x.shape[1], *made))


# ---- RoiAlign -----------------------------------------------------------------------------------------------------------


@op("RoiAlign", since=16)
def roi_align(
    X: Array, rois: Array, batch_indices: Array, *, coordinate_transformation_mode: str = "half_pixel", mode: str = "avg",
    output_height: int = 1, output_width: int = 1, sampling_ratio: int = 0, spatial_scale: float = 1.0,
) -> Array:
    """Every region is cut into bins, each bin read at the middles of a grid of cells, and what is read averaged.

    A grid has ``sampling_ratio`` cells along each axis, or with 0 cells of at most a pixel. ``max`` takes, as onnxruntime
    and onnx's reference do, the largest product of a pixel and its weight, before they are added.
    """
    _check_images(batch_indices, len(X))
    y = np.zeros((len(rois), X.shape[1], output_height, output_width), X.dtype)
    half_pixel = coordinate_transformation_mode == "half_pixel"
    corners = rois * rois.dtype.type(spatial_scale) - rois.dtype.type(0.5 if half_pixel else 0.0)
    for r, ((left, top, right, bottom), image) in enumerate(zip(corners, batch_indices, strict=True)):
        check_time()
        rows = _cells(top, bottom, output_height, sampling_ratio, half_pixel)
        columns = _cells(left, right, output_width, sampling_ratio, half_pixel)
        if rows.size and columns.size and X.shape[1]:
            _check_room(X, rows, columns, mode)
            y[r] = (_average if mode == "avg" else _largest)(X[image], rows, columns)
    return y


def _cells(low: Any, high: Any, bins: int, ratio: int, half_pixel: bool) -> Array:
    """Return the middles of the cells along one axis: (bins, cells)."""
    size = (high - low if half_pixel else max(high - low, low.dtype.type(1))) / bins
    count = ratio if ratio > 0 else max(int(np.ceil(size)), 0)
    check_scratch(count * bins * low.itemsize, f"{bins} bins of {count} cells")
    return np.asarray(low + np.arange(bins, dtype=low.dtype)[:, None] * size
                      + (np.arange(count, dtype=low.dtype) + low.dtype.type(0.5)) * size / max(count, 1))


def _check_room(x: Array, rows: Array, columns: Array, mode: str) -> None:
    """Raise LimitError for cells that take too much memory or time: an average goes along one axis after the other."""
    width = columns.size if mode == "max" else min(x.shape[3], int(np.ptp(columns)) + 2)
    pixels, what = x.shape[1] * max(rows.size * width, len(rows) * columns.size), f"{rows.size} x {columns.size} cells of a region"
    if mode == "max":
        check_scratch(pixels * x.itemsize, what)
    check_work(OPERATIONS_A_PIXEL * pixels, what)


def _near_cells(at: Array, size: int) -> Taps:
    """Return the pixels around positions; up to a pixel beyond the image its edge counts, further out nothing."""
    taps = Taps.around(np.clip(at, 0, max(size - 1, 0)), "linear", size, at.dtype, "border")
    assert taps.weight is not None
    seen = (at >= -1) & (at <= size)
    return Taps(taps.at, np.where(seen, taps.weight, at.dtype.type(0)), np.broadcast_to(seen, taps.at.shape))


def _average(image: Array, rows: Array, columns: Array) -> Array:
    """The mean over cells on a grid is one along each axis."""
    down, across = _near_cells(rows, image.shape[1]), _near_cells(columns, image.shape[2])
    first = across.at.min()
    image = image[:, :, first : across.at.max() + 1]
    image = _mean(image, down, 1)
    return _mean(image, Taps(across.at - first, across.weight, across.seen), 2)


def _mean(image: Array, taps: Taps, axis: int) -> Array:
    """Return the mean over the cells of each bin of what is read along ``axis``, so many cells at a time as memory likes."""
    assert taps.weight is not None and taps.seen is not None
    _, bins, cells = taps.at.shape
    step = max(1, PIXELS_AT_A_TIME * image.shape[axis] // max(1, image.size * bins))
    column, mean = (-1, *(1,) * (2 - axis)), None
    for start in range(0, cells, step):
        check_time()
        part, total = slice(start, start + step), 0.0
        for place, weight, seen in zip(taps.at[..., part], taps.weight[..., part], taps.seen[..., part], strict=True):
            pixels = np.take(image, place.reshape(-1), axis)
            if not seen.all():
                pixels = np.where(seen.reshape(column), pixels, image.dtype.type(0))
            total = total + pixels * weight.reshape(column)
        found = np.sum(np.reshape(total, (*image.shape[:axis], bins, -1, *image.shape[axis + 1 :])), axis=axis + 1)
        mean = found if mean is None else mean + found
    return np.asarray(mean / image.dtype.type(cells))


def _largest(image: Array, rows: Array, columns: Array) -> Array:
    down, across = _near_cells(rows, image.shape[1]), _near_cells(columns, image.shape[2])
    best = None
    for i, j in np.ndindex(2, 2):
        assert down.weight is not None and across.weight is not None and down.seen is not None and across.seen is not None
        pixels = image[:, down.at[i].reshape(-1)[:, None], across.at[j].reshape(-1)]
        pixels = np.where(down.seen[i].reshape(-1)[:, None] & across.seen[j].reshape(-1), pixels, image.dtype.type(0))
        product = pixels * (down.weight[i].reshape(-1)[:, None] * across.weight[j].reshape(-1))
        best = product if best is None else np.maximum(best, product)
    assert best is not None
    return np.asarray(best.reshape(len(image), *rows.shape, *columns.shape).max((2, 4)))


@roi_align.types
def _(node: Node) -> Type:
    """[regions, channels, output_height, output_width]."""
    for name, legal in CHOICES.items():
        if attr(node, name) not in legal:
            raise ValidationError(f"{name} is {attr(node, name)!r}, not one of {', '.join(legal)}", code="attribute",
                                  where=node.label)
    if attr(node, "sampling_ratio") < 0:
        raise ValidationError("sampling_ratio is negative", code="attribute", where=node.label)
    made = _regions_type(node, 4, (attr(node, "output_height"), attr(node, "output_width")))
    images = node.input(2).type.shape
    if images is None or made.shape is None:
        return made
    if len(images) != 1:
        raise ValidationError(f"batch_indices is {node.input(2).type!r}, no vector", code="shape", where=node.label)
    return made.with_shape((merge_dims(made.shape[0], images[0]), *made.shape[1:]))


@roi_align.ranks
def _(node: Node) -> list[int | None]:
    """Images, a row of corners for each region, the image each lies in."""
    return [4, 2, 1]


@roi_align.expansion
def _(b: Builder, node: Node) -> Value:
    """y[r, c, p] = mean over the cells s of bin p of sum over the pixels i near s of w_i(s) x[image of r, c, i].

    With axes (pixels down, pixels across, regions, bins down, cells down, bins across, cells across).
    """
    x, dtype = node.input(0), node.input(0).type.dtype
    corners, place = _corners(b, node), b.Unsqueeze(node.input(2), [1, 2, 3, 4])
    weights, cells, counts = [], [], []
    for axis, name in enumerate(("output_height", "output_width")):
        at, is_cell, count = _cell_nodes(b, node, corners, 1 - axis, attr(node, name))
        size = extent(b, x, 2 + axis, dtype)
        last = b.Sub(size, 1.0)
        pixels, weight = near(b, b.Max(b.Min(at, last), 0.0), "linear", size, "border")
        inside = b.And(is_cell, b.And(b.GreaterOrEqual(at, -1.0), b.LessOrEqual(at, size)))
        weight = b.Where(inside, weight, b.scalar(0, dtype))
        others = ([1, 5, 6], [0, 3, 4])[axis]
        place = b.Add(b.Mul(place, extent(b, x, 2 + axis, INT64)), b.Unsqueeze(pixels, others))
        weights.append(b.Unsqueeze(weight, others))
        cells.append(b.Unsqueeze(b.Unsqueeze(is_cell, [0]), others))
        counts.append(count)
    products = b.Mul(b.Gather(rows_of(b, x), place, axis=0), b.Unsqueeze(b.Mul(*weights), [-1]))
    count = b.Max(b.Mul(*counts), 1.0)
    if attr(node, "mode") == "avg":
        total = b.Div(b.ReduceSum(products, [0, 1, 4, 6], keepdims=0), b.Unsqueeze(count, [1, 2, 3]))
    else:
        some = b.Unsqueeze(b.And(*cells), [-1])
        largest = b.ReduceMax(b.Where(some, products, b.scalar(-np.inf, dtype)), [0, 1, 4, 6], keepdims=0)
        is_any = b.Unsqueeze(b.Greater(b.Min(*counts), 0.0), [1, 2, 3])
        total = b.Where(is_any, largest, b.scalar(0, dtype))
    return b.Transpose(total, perm=[0, 3, 1, 2])


@roi_align.kinks
def _(b: Builder, node: Node) -> Value:
    """Where the middle of a cell lies on a pixel."""
    x, corners = node.input(0), _corners(b, node)
    found = []
    for axis, name in enumerate(("output_height", "output_width")):
        at, is_cell, _ = _cell_nodes(b, node, corners, 1 - axis, attr(node, name))
        found.append(b.And(is_cell, on_pixels(b, [(at, extent(b, x, 2 + axis, at.type.dtype))])))
    return b.Concat(*(b.Reshape(mask, [-1]) for mask in found), axis=0)


def _corners(b: Builder, node: Node) -> Value:
    """Return the corners of the regions in pixels."""
    offset = 0.5 if attr(node, "coordinate_transformation_mode") == "half_pixel" else 0.0
    rois = b.cast(node.input(1), node.input(1).type.dtype.wide)
    return b.Sub(b.Mul(rois, attr(node, "spatial_scale")), offset)


def _cell_nodes(b: Builder, node: Node, corners: Value, column: int, bins: int) -> tuple[Value, Value, Value]:
    """Return what ``_cells`` does for all regions, (regions, bins, cells), which of that are cells, and how many there are."""
    dtype, ratio = corners.type.dtype, attr(node, "sampling_ratio")
    low, high = (b.Slice(corners, [c], [c + 1], [1]) for c in (column, column + 2))
    size = b.Sub(high, low)
    if attr(node, "coordinate_transformation_mode") != "half_pixel":
        size = b.Max(size, 1.0)
    size = b.Div(size, float(bins))
    count = b.filled(ratio, low) if ratio > 0 else b.Ceil(size)
    most = b.ints([ratio]) if ratio > 0 else b.ReduceMax(
        b.Concat(b.ints([1]), b.cast(b.Squeeze(count, [1]), INT64), axis=0), [0], keepdims=1)
    numbers = b.cast(ramp(b, most), dtype)
    starts = b.Add(low, b.Mul(size, b.value(np.arange(bins).astype(dtype.numpy))))
    steps = b.Mul(b.Add(numbers, 0.5), b.Div(size, b.Max(count, 1.0)))
    at = b.Add(b.Unsqueeze(starts, [2]), b.Unsqueeze(steps, [1]))
    is_cell = b.Unsqueeze(b.Less(numbers, count), [1])
    return at, is_cell, b.Squeeze(count, [1])


# ---- MaxRoiPool ---------------------------------------------------------------------------------------------------------


@op("MaxRoiPool", settings=("rois",))
def max_roi_pool(X: Array, rois: Array, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0) -> Array:
    """The largest pixel of each bin of each region [image, left, top, right, bottom], 0 where a bin holds none.

    Corners are rounded to pixels and belong to the region; bins are rounded outward.
    """
    if not np.isfinite(rois).all():
        raise ValueError("a region has corners that are no numbers")
    images = rois[:, 0].astype(np.int64)
    _check_images(images, len(X))
    y = np.zeros((len(rois), X.shape[1], *pooled_shape), X.dtype)
    for r, (image, corners) in enumerate(zip(images if X.shape[1] else (), rois[:, 1:], strict=False)):
        left, top, right, bottom = _rounded(corners * rois.dtype.type(spatial_scale))
        across = _bins(left, right, pooled_shape[1], X.shape[3])
        for i, above, below in zip(*_bins(top, bottom, pooled_shape[0], X.shape[2]), strict=True):
            for j, first, last in zip(*across, strict=True):
                check_time()
                y[r, :, i, j] = X[image, :, above:below, first:last].max((1, 2))
    return y


def _rounded(at: Array) -> Array:
    """Return whole numbers, half of one away from zero."""
    return np.asarray(np.sign(at) * np.floor(np.abs(at) + at.dtype.type(0.5)))


def _bins(low: Any, high: Any, bins: int, size: int) -> tuple[Array, Array, Array]:
    """Return which bins hold pixels, where each of those begins, and where it ends."""
    check_scratch(8 * bins, f"{bins} bins of a region")
    step, number = max(high - low + 1, low.dtype.type(1)) / bins, np.arange(bins, dtype=low.dtype)
    first, last = (np.clip(edge + low, 0, size).astype(np.int64) for edge in (np.floor(number * step), np.ceil((number + 1) * step)))
    filled = np.flatnonzero(first < last)
    return filled, first[filled], last[filled]


@max_roi_pool.types
def _(node: Node) -> Type:
    """[regions, channels, *pooled_shape]."""
    return _regions_type(node, 5, attr(node, "pooled_shape"))


@max_roi_pool.ranks
def _(node: Node) -> list[int | None]:
    """Images, and a row of five numbers for each region."""
    return [4, 2]


@max_roi_pool.expansion
def _(b: Builder, node: Node) -> Value:
    """The maximum along each axis of what lies in the bins, of the image of each region."""
    x, rois = node.input(0), node.input(1)
    zero, lowest = (b.scalar(v, x.type.dtype) for v in (0, -np.inf))
    image = b.Squeeze(b.cast(b.Slice(rois, [0], [1], [1]), INT64), [1])
    scaled = b.Mul(b.Slice(rois, [1], [5], [1]), attr(node, "spatial_scale"))
    corners = b.Mul(b.Sign(scaled), b.Floor(b.Add(b.Abs(scaled), 0.5)))
    total, some = b.Gather(x, image, axis=0), b.scalar(True, BOOL)
    for axis in (3, 2):  # regions, channels, rows, columns
        inside = _in_bins(b, x, corners, axis, attr(node, "pooled_shape")[axis - 2])
        parts = b.Where(b.Unsqueeze(inside, [1, 2] if axis == 3 else [1, 4]), b.Unsqueeze(total, [axis]), lowest)
        total = b.ReduceMax(parts, [axis + 1], keepdims=0)
        filled = b.Greater(b.ReduceMax(b.cast(inside, x.type.dtype), [2], keepdims=0), zero)
        some = b.And(some, b.Unsqueeze(filled, [1, 2] if axis == 3 else [1, 3]))
    return b.Where(some, total, zero)


def _in_bins(b: Builder, x: Value, corners: Value, axis: int, bins: int) -> Value:
    """Return which pixels along an axis lie in which bins: (regions, bins, pixels)."""
    dtype = corners.type.dtype
    column = 3 - axis
    low, high = (b.Slice(corners, [c], [c + 1], [1]) for c in (column, column + 2))
    step = b.Div(b.Max(b.Add(b.Sub(high, low), 1.0), 1.0), float(bins))
    numbers = np.arange(bins).astype(dtype.numpy)
    first = b.Add(b.Floor(b.Mul(step, b.value(numbers))), low)
    end = b.Add(b.Ceil(b.Mul(step, b.value(numbers + 1))), low)
    pixels = b.cast(ramp(b, b.extent(x, axis)), dtype)
    return b.And(b.GreaterOrEqual(pixels, b.Unsqueeze(first, [2])), b.Less(pixels, b.Unsqueeze(end, [2])))


@roi_align.batch
def _(b: BatchBuilder, node: Node, x: Value, rois: Value, images: Value) -> Any:
    """More images and more regions, which count all images."""
    if any(v.type.rank is None for v in node.operands):
        return looped(b, node, x, rois, images)
    x, rois, images = (b.lifted(v) for v in (x, rois, images))
    count = b.Squeeze(b.extent(x, 1), [0])
    places = b.Add(images, b.cast_like(b.numbers(2, count), images))
    b.batched.update((x, rois, places))
    y = b.add("RoiAlign", [b.merged(x), b.merged(rois), b.merged(places)], dict(node.attributes))
    return b.unmerged(y, rois.shape[1], lambda: b.extent(rois, 1))


@max_roi_pool.batch
def _(b: BatchBuilder, node: Node, x: Value, rois: Value) -> Any:
    """More images and more regions, of which the first number counts all images."""
    if any(v.type.rank is None for v in node.operands):
        return looped(b, node, x, rois)
    x, rois = b.lifted(x), b.lifted(rois)
    offsets = b.cast_like(b.numbers(3, b.Squeeze(b.extent(x, 1), [0])), rois)
    places = b.Add(rois, b.Mul(offsets, np.eye(1, 5, dtype=rois.type.dtype.numpy)))
    b.batched.update((x, places))
    y = b.add("MaxRoiPool", [b.merged(x), b.merged(places)], dict(node.attributes))
    return b.unmerged(y, rois.shape[1], lambda: b.extent(rois, 1))
