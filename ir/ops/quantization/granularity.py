"""Which scale and zero point belong to an element: one for all, one a place along an axis, or one a block."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import concatenated, extents, joined, known_ints, normal_axis, reshape_to
from flowgrad.ir.ops.registry import attr
from flowgrad.ir.types import DType, dtype_of


def limits_of(dtype: DType) -> tuple[int, int]:
    """Return the least and the largest number of an integer type, of 2 and 4 bits too."""
    info = ml_dtypes.iinfo(dtype.numpy)  # type: ignore[no-untyped-call]
    return int(info.min), int(info.max)


def bounds_of(dtype: DType) -> tuple[float, float]:
    """Return the least and the largest finite number of an integer or float type."""
    if dtype.is_integer:
        return limits_of(dtype)
    most = float(ml_dtypes.finfo(dtype.numpy).max)  # type: ignore[no-untyped-call]
    return -most, most


# ---- arrays -------------------------------------------------------------------------------------------------------------


def spread(scale: Array, shape: tuple[int, ...], axis: int, block_size: int) -> Array:
    """Return scales or zero points so that they broadcast to ``shape``. ValueError where they do not fit."""
    if scale.ndim <= 1 and scale.size == 1:
        return np.asarray(scale.reshape(()))
    if not block_size:
        if scale.ndim != 1 or scale.size != shape[axis]:
            raise ValueError(f"scales of shape {list(scale.shape)} for axis {axis} of {list(shape)}")
        return np.asarray(scale.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))]))
    blocks = [-(-n // block_size) if i == axis % len(shape) else n for i, n in enumerate(shape)]
    if list(scale.shape) != blocks:
        raise ValueError(f"scales of shape {list(scale.shape)} for blocks of {block_size} along axis {axis} of {list(shape)}")
    return np.take(scale, np.arange(shape[axis]) // block_size, axis)


# ---- graphs -------------------------------------------------------------------------------------------------------------


def check(node: Node) -> None:
    """Raise ValidationError where scale or zero point of a QuantizeLinear or DequantizeLinear cannot fit its first input."""
    block_size = attr(node, "block_size")
    if block_size < 0:
        raise ValidationError(f"block_size {block_size}", code="attribute", where=node.label)
    x = node.input(0)
    for value in node.operands[1:]:
        if x.type.rank is None or value.type.rank is None or is_single(node, value):
            continue
        axis = normal_axis(attr(node, "axis"), x.type.rank)
        if value.type.rank != (x.type.rank if block_size else 1):
            raise ValidationError(f"{value!r} does not fit {x!r}: it has one entry, one for each place along the axis, or with "
                                  "block_size one for each block", code="shape", where=node.label)
        wanted = [-(-n // block_size) if i == axis else n for i, n in enumerate(x.shape)] if block_size else [x.shape[axis]]
        for given, extent in zip(value.shape, wanted, strict=True):
            if isinstance(given, int) and isinstance(extent, int) and given != extent:
                raise ValidationError(f"{value!r} does not fit {x!r}", code="shape", where=node.label)


def is_single(node: Node, value: Value) -> bool:
    """Return whether a scale or zero point must be one for all: a vector, too, where the first input does not have the axis."""
    x, shape = node.input(0).type, value.type.shape
    if shape in ((), (1,)):
        return True
    lacks_axis = x.rank is not None and not -x.rank <= attr(node, "axis") < x.rank
    return lacks_axis and shape is not None and len(shape) == 1 and not isinstance(shape[0], int)


def spread_value(b: Builder, node: Node, value: Value) -> Value:
    """Return the scales or zero points ``value`` of a node so that they broadcast to its first input."""
    x = node.input(0)
    if value.type.rank == 0:
        return value
    if is_single(node, value):
        return b.Squeeze(value, [0])
    axis = normal_axis(attr(node, "axis"), len(x.shape))
    if not attr(node, "block_size"):
        later = list(range(1, len(x.shape) - axis))
        return b.Unsqueeze(value, later) if later else value
    size, rank = _block(b, node, x, axis), len(x.shape)
    ones = [b.ints([1] * count) for count in (axis + 1, rank - axis - 1)]
    repeated = b.Expand(b.Unsqueeze(value, [axis + 1]), joined(b, [ones[0], size, ones[1]]))
    count = _times(b, b.extent(value, axis), size)
    flat = b.Reshape(repeated, joined(b, [*extents(b, value, 0, axis), count, *extents(b, value, axis + 1, rank)]), allowzero=1)
    if flat.type.shape == x.type.shape:
        return flat
    return b.Slice(flat, [0], b.extent(x, axis), [axis])


def _block(b: Builder, node: Node, x: Value, axis: int) -> Value:
    """Return the size of the blocks, as a vector of length 1; one that is all there is may be told to be larger."""
    extent, size = x.shape[axis], attr(node, "block_size")
    return b.ints([min(size, extent)]) if isinstance(extent, int) else b.Min(b.extent(x, axis), [size])


def _times(b: Builder, count: Value, size: Value) -> Value:
    known = known_ints(count), known_ints(size)
    return b.ints([known[0][0] * known[1][0]]) if known[0] and known[1] else b.Mul(count, size)


def summed_to_scale(b: DerivativeBuilder, node: Node, value: Value) -> Value:
    """Return ``value``, which has the shape of the first input, summed over the elements that each scale belongs to."""
    scale = node.input(1)
    if scale.type.rank == 0:
        return b.ReduceSum(value, keepdims=0)
    if is_single(node, scale):
        return b.Reshape(b.ReduceSum(value, keepdims=0), b.ints([1]))
    rank = len(value.shape)
    axis = normal_axis(attr(node, "axis"), rank)
    if not attr(node, "block_size"):
        others = [i for i in range(rank) if i != axis]
        return b.sum_to(b.ReduceSum(value, others, keepdims=0) if others else value, scale)
    size = _block(b, node, value, axis)
    lacking = b.Sub(_times(b, b.extent(scale, axis), size), b.extent(value, axis))
    whole = b.Pad(value, concatenated(b, [b.ints([0]), lacking]), None, [axis])
    blocks = joined(b, [*extents(b, scale, 0, axis + 1), size, *extents(b, scale, axis + 1, rank)])
    return reshape_to(b, b.ReduceSum(b.Reshape(whole, blocks, allowzero=1), [axis + 1], keepdims=0), scale)


def wide_of(dtype: DType) -> DType:
    """Return the float type that numbers of ``dtype`` are computed in."""
    return dtype.wide if dtype.is_float else dtype_of("float32")


