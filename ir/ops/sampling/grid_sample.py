"""GridSample: an image read at the positions of a grid."""

from __future__ import annotations

import math

import numpy as np

from flowgrad.ir.batching import within_batch
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.convolution.operators import ranks_alike
from flowgrad.ir.ops.operands import extents, joined
from flowgrad.ir.ops.registry import attr, op
from flowgrad.ir.ops.sampling.taps import (
    STEPS,
    Taps,
    batch_numbers,
    extent,
    mirror,
    mirrored,
    near,
    on_pixels,
    product,
    read,
    read_rows,
)
from flowgrad.ir.types import BOOL, FLOAT32, FLOAT64, DType, Type, merge_dims

PADDING = ("zeros", "border", "reflection")


@op("GridSample", new_dtypes=("grid",), since=20)
def grid_sample(
    X: Array, grid: Array, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Array:
    """Y[n, :, p] = X[n] at grid[n, p], in which -1 and 1 are the ends of an axis and the last axis comes first.

    The ends are the centres of the outer pixels with ``align_corners``, else their outer edges. A cubic is not moved into
    the image but padded pixel by pixel, as in PyTorch and onnxruntime; moved to the border, as in onnx's reference, it would
    jump where the image ends.
    """
    images, sizes, places = X.shape[0], X.shape[2:], grid.shape[1:-1]
    if grid.shape[0] != images or grid.shape[-1] != len(sizes):
        raise ValueError(f"a grid of {list(grid.shape)} has no positions in {list(X.shape)}")
    wide = grid.astype(np.result_type(grid.dtype, X.dtype if X.dtype.kind == "f" else np.float32), copy=False)
    dtype = X.dtype if X.dtype.kind in "fc" else wide.dtype
    flat = wide.reshape(images, math.prod(places), len(sizes))
    taps = []
    low = 0.0 if align_corners else -0.5
    for axis, size in enumerate(sizes):
        at = flat[..., len(sizes) - 1 - axis]
        at = (at + 1) / 2 * (size - 1) if align_corners else ((at + 1) * size - 1) / 2
        if mode == "nearest":
            at = np.rint(at)
        if padding_mode != "zeros" and mode != "cubic":
            moved = np.clip(at, 0, max(size - 1, 0)) if padding_mode == "border" else mirrored(at, low, size)
            at = np.where((at < low) | (at > size - 1 - low), moved, at)
        taps.append(Taps.around(at, mode, size, dtype, padding_mode, low))
    return read(X, taps).reshape(*X.shape[:2], *places)


@grid_sample.types
def _(node: Node) -> Type:
    """[N, C, *places] for X [N, C, *image] and grid [N, *places, axes of the image]."""
    x, grid = node.input(0).type, node.input(1).type
    mode, padding = attr(node, "mode"), attr(node, "padding_mode")
    for name, value, legal in (("mode", mode, STEPS), ("padding_mode", padding, PADDING)):
        if value not in legal:
            raise ValidationError(f"{name} is {value!r}, not one of {', '.join(legal)}", code="attribute", where=node.label)
    if mode != "nearest" and x.dtype.kind not in ("float", "complex"):
        raise ValidationError(f"between pixels of {x.dtype!r} there is nothing: mode {mode!r} needs floats", code="dtype",
                              where=node.label)
    if x.shape is None or grid.shape is None:
        return x.with_shape(None)
    axes = grid.shape[-1] if grid.shape else 0
    if len(x.shape) != len(grid.shape) or len(x.shape) < 3 or (isinstance(axes, int) and axes != len(x.shape) - 2):
        raise ValidationError(f"a grid {grid!r} has no positions in {x!r}", code="shape", where=node.label)
    return x.with_shape((merge_dims(x.shape[0], grid.shape[0]), x.shape[1], *grid.shape[1:-1]))


grid_sample.ranks(ranks_alike)


@grid_sample.expansion
def _(b: Builder, node: Node) -> Value:
    """y[n, c, p] = sum over the pixels i near grid[n, p] of w_i(grid[n, p]) x[n, c, i]."""
    x, grid = node.input(0), node.input(1)
    rank = len(x.shape) - 2
    dtype = FLOAT64 if FLOAT64 in (x.type.dtype, grid.type.dtype) else FLOAT32
    places = joined(b, extents(b, grid, 1, rank + 1))
    taps = []
    for axis, at in enumerate(_pixels(b, node, dtype)):
        size = extent(b, x, 2 + axis, dtype)
        taps.append(near(b, at, attr(node, "mode"), size, attr(node, "padding_mode"), _end(node)))
    rows = read_rows(b, x, batch_numbers(b, x), taps)
    return b.Reshape(b.Transpose(rows, perm=[0, 2, 1]), joined(b, [*extents(b, x, 0, 2), places]), allowzero=1)


def _end(node: Node) -> float:
    """Return the pixel that -1 stands for."""
    return 0.0 if attr(node, "align_corners") else -0.5


def _pixels(b: Builder, node: Node, dtype: DType) -> list[Value]:
    """Return for each axis of the image the positions (batch, positions) in pixels, brought inside as the padding says."""
    x, grid = node.input(0), node.input(1)
    rank = len(x.shape) - 2
    count = product(b, extents(b, grid, 1, rank + 1))
    flat = b.Reshape(b.cast(grid, dtype), joined(b, [*extents(b, grid, 0, 1), count, b.ints([rank])]), allowzero=1)
    return [_pixel(b, node, b.Gather(flat, np.int64(rank - 1 - axis), axis=2), extent(b, x, 2 + axis, dtype))
            for axis in range(rank)]


def _pixel(b: Builder, node: Node, at: Value, size: Value) -> Value:
    mode, padding, low = attr(node, "mode"), attr(node, "padding_mode"), _end(node)
    if attr(node, "align_corners"):
        at = b.Mul(b.Div(b.Add(at, 1.0), 2.0), b.Sub(size, 1.0))
    else:
        at = b.Div(b.Sub(b.Mul(b.Add(at, 1.0), size), 1.0), 2.0)
    if mode == "nearest":
        at = b.Round(at)
    if padding == "zeros" or mode == "cubic":
        return at
    moved = mirror(b, at, low, size) if padding == "reflection" else b.Max(b.Min(at, b.Sub(size, 1.0)), 0.0)
    return b.Where(b.Or(b.Less(at, low), b.Greater(at, b.Sub(size, 1 + low))), moved, at)


@grid_sample.kinks
def _(b: Builder, node: Node) -> Value:
    """Where a position lies on a pixel, since the pixels around it change there; cubic weights pass that smoothly."""
    if attr(node, "mode") != "linear":
        return b.scalar(False, BOOL)
    x, dtype = node.input(0), node.input(1).type.dtype.wide
    return on_pixels(b, [(at, extent(b, x, 2 + axis, dtype)) for axis, at in enumerate(_pixels(b, node, dtype))])


grid_sample.batch(within_batch(0, 1))
