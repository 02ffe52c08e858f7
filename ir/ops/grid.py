"""Grids of positions to sample an image at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, looped, within
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.convolution.batching import scaled_shape
from flowgrad.ir.ops.operands import int_list, known_dims, known_length, moved_last
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op, refuse
from flowgrad.ir.types import UNKNOWN, DimLike, Type


@op("AffineGrid", since=20, outputs=("grid",), traits=(Trait.LINEAR,), extents=("size",))
def affine_grid(theta: Array, size: Array, *, align_corners: int = 0) -> Array:
    """grid[n, i] = theta[n] (x_i, 1) for the position x_i of every pixel i, first axis last: -1 to 1 over the image."""
    batch, _, *sizes = int_list(size) or []
    wide = theta.astype(np.result_type(theta.dtype, np.float32), copy=False)
    grid: Array = np.matmul(_positions(sizes, bool(align_corners), wide.dtype), np.swapaxes(wide, 1, 2))
    return grid.reshape(batch, *sizes, len(sizes)).astype(theta.dtype, copy=False)


def _positions(sizes: Sequence[int], align_corners: bool, dtype: np.dtype[Any]) -> Array:
    """Return the positions of all pixels, and a 1 for the shift: one row a pixel, the last axis of the image first."""
    lines = [_line(n, align_corners) for n in sizes]
    columns = np.meshgrid(*lines, indexing="ij")[::-1]
    return np.stack([*(c.reshape(-1) for c in columns), np.ones(math.prod(sizes))], axis=-1).astype(dtype)


def _line(count: int, align_corners: bool) -> Array:
    """Return the positions of ``count`` pixels: their centres, or with ``align_corners`` from end to end.

    A single one lies in the middle, as in PyTorch; the standard divides by zero there, and onnxruntime takes the end.
    """
    if not align_corners or count == 1:
        return (2 * np.arange(count) + 1) / max(count, 1) - 1
    return np.linspace(-1, 1, count)


@affine_grid.types
def _(node: Node) -> Type:
    """[N, (D,) H, W, 2 or 3]: the size without its channels."""
    theta, count = node.input(0).type, known_length(node.input(1))
    if count not in (None, 4, 5) or theta.rank not in (None, 3):
        raise ValidationError(f"AffineGrid takes matrices and a size of 4 or 5 numbers, got {theta!r} and {count}",
                              code="shape", where=node.label)
    axes = _axes(node)
    if axes is None:
        return Type(theta.dtype, None)
    rows: tuple[DimLike, ...] = (axes, axes + 1)
    if theta.shape is not None and any(isinstance(a, int) and a != b for a, b in zip(theta.shape[1:], rows, strict=True)):
        raise ValidationError(f"theta is {theta!r}, and the size has {axes} axes", code="shape", where=node.label)
    dims = known_dims(node.input(1)) or [UNKNOWN] * (axes + 2)
    return Type(theta.dtype, (dims[0], *dims[2:], axes))


def _axes(node: Node) -> int | None:
    """Return the number of axes of the image, or None where only the run can tell."""
    count, shape = known_length(node.input(1)), node.input(0).type.shape
    if count is not None:
        return count - 2
    return int(shape[1]) if shape is not None and isinstance(shape[1], int) else None


@affine_grid.ranks
def _(node: Node) -> list[int | None]:
    """A matrix for each image."""
    return [3]


@affine_grid.support
def _(b: DerivativeBuilder, node: Node, masks: Sequence[Value | None]) -> None:
    """Positions have either sign, so that a sum of them tells nothing: all of the grid counts."""
    return None


@affine_grid.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """theta_bar[n] = sum over the pixels i of y_bar[n, i] (x_i, 1)^T."""
    axes, size = _axes(node), node.input(1)
    if axes is None:
        return refuse("the number of axes of the image is not known before the run")
    unit = b.cast_like(b.value(np.eye(axes, axes + 1)[None]), y_bar)
    one = b.Concat([1], b.Slice(b.cast_like(size, b.ints([1])), [1], [axes + 2], [0]), axis=0)
    places = b.Reshape(b.AffineGrid(unit, one, align_corners=attr(node, "align_corners")), [-1, axes])
    ones = b.filled(1, b.Slice(places, [0], [1], [1]))
    rows = b.Reshape(y_bar, b.Concat(b.Shape(node.input(0), start=0, end=1), [-1, axes], axis=0))
    return b.MatMul(b.Transpose(rows, perm=moved_last([1], 3)), b.Concat(places, ones, axis=1)), NO_GRADIENT


@affine_grid.batch
def _(b: BatchBuilder, node: Node, theta: Value, size: Value) -> Any:
    """More images."""
    if b.holds(size):
        return looped(b, node, theta, size)
    return within(b, node, [theta, scaled_shape(b, size)], {0: 0}, [0])
