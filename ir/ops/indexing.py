"""Reading elements at indices, and finding those of interest."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, along_axis, first_moved, in_rows, looped, single
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import extents, joined, known_dims, normal_axis, permuted, ramp, unknown_ranks
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op, refuse
from flowgrad.ir.types import BOOL, INT64, UNKNOWN, Type


@op("Gather", since=13, outputs=("output",), traits=(Trait.LINEAR, Trait.SHAPE_ARITHMETIC))
def gather(data: Array, indices: Array, *, axis: int = 0, out: Array | None = None) -> Array:
    if out is not None and data.flags.c_contiguous and indices.size and data.shape[axis]:
        low, high, extent = int(indices.min()), int(indices.max()), data.shape[axis]
        if low < -extent or high >= extent:
            raise IndexError(f"index {low if low < -extent else high} is out of bounds for extent {extent}")
        return np.take(data, indices, axis, out=out, mode="wrap")  # the modes without a check need no second buffer
    return np.asarray(np.take(data, indices, axis, out=out))


@gather.types
def _(node: Node) -> Type:
    x, indices = node.input(0).type, node.input(1).type
    if x.shape is None or indices.shape is None:
        return x.with_shape(None)
    axis = normal_axis(attr(node, "axis"), len(x.shape))
    return x.with_shape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@gather.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = zeros, to which the parts of y_bar are added at their indices."""
    x, indices = node.input(0), node.input(1)
    return b.GatherGrad(b.shape(x), y_bar, indices, axis=attr(node, "axis")), NO_GRADIENT


# ---- GatherElements -----------------------------------------------------------------------------------------------------


def element_index(indices: Array, axis: int) -> tuple[Array, ...]:
    """Return the NumPy index whose place along ``axis`` is ``indices``, and elsewhere where it stands."""
    grids: list[Array] = list(np.ogrid[tuple(slice(n) for n in indices.shape)])
    grids[axis] = indices
    return tuple(grids)


@op("GatherElements", since=13, outputs=("output",), traits=(Trait.LINEAR,))
def gather_elements(data: Array, indices: Array, *, axis: int = 0) -> Array:
    return data[element_index(indices, axis)]


@gather_elements.types
def _(node: Node) -> Type:
    return Type(node.input(0).type.dtype, node.input(1).type.shape)


@gather_elements.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = zeros, to which y_bar is added at its places."""
    x, indices = node.input(0), node.input(1)
    return b.ScatterElements(b.zero(x), indices, y_bar, axis=attr(node, "axis"), reduction="add"), NO_GRADIENT


# ---- GatherND -----------------------------------------------------------------------------------------------------------


@op("GatherND", since=13, outputs=("output",), traits=(Trait.LINEAR,))
def gather_nd(data: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    parts = tuple(np.moveaxis(indices, -1, 0))
    if not batch_dims:
        return np.asarray(data[parts])
    batch = np.ogrid[tuple(slice(n) for n in indices.shape[:batch_dims])]
    rest = (1,) * (indices.ndim - 1 - batch_dims)
    return np.asarray(data[(*(g.reshape(g.shape + rest) for g in batch), *parts)])


@gather_nd.types
def _(node: Node) -> Type:
    x, indices, batch = node.input(0).type, node.input(1).type, attr(node, "batch_dims")
    if x.shape is None or indices.shape is None or not isinstance(indices.shape[-1], int):
        return x.with_shape(None)
    return x.with_shape((*indices.shape[:-1], *x.shape[batch + indices.shape[-1] :]))


@gather_nd.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = zeros, to which the parts of y_bar are added at their indices."""
    x = node.input(0)
    if attr(node, "batch_dims") and node.input(1).type.rank is None:
        return refuse(unknown_ranks(node))
    indices = with_batch(b, node.input(1), attr(node, "batch_dims"))
    return b.ScatterND(b.zero(x), indices, y_bar, reduction="add"), NO_GRADIENT


def with_batch(b: Builder, indices: Value, batch_dims: int) -> Value:
    """Return indices that count the batch axes too."""
    if not batch_dims:
        return indices
    rank = len(indices.shape)
    outer = joined(b, [*extents(b, indices, 0, rank - 1), b.ints([1])])
    grids = []
    for axis in range(batch_dims):
        column = b.Reshape(ramp(b, b.extent(indices, axis)), b.ints([-1, *[1] * (rank - 1 - axis)]))
        grids.append(b.Expand(column, outer))
    return b.Concat(*grids, b.cast(indices, INT64), axis=-1)


# ---- OneHot -------------------------------------------------------------------------------------------------------------


@op("OneHot", new_dtypes=("depth", "values"), since=11, outputs=("output",), extents=("depth",), settings=("values",))
def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    extent = int(np.asarray(depth).reshape(-1)[0])
    at = axis + indices.ndim + 1 if axis < 0 else axis
    places = indices.astype(np.int64)
    within = places if indices.dtype.kind == "u" else np.where(places < 0, places + extent, places)  # past 2^63 is no place
    places = np.expand_dims(within, at)
    ramp = np.arange(extent).reshape([-1 if i == at else 1 for i in range(indices.ndim + 1)])
    return np.asarray(values[(places == ramp).astype(np.intp)])


@one_hot.types
def _(node: Node) -> Type:
    indices, depth, values = (node.input(i) for i in range(3))
    if indices.type.shape is None:
        return values.type.with_shape(None)
    known = known_dims(depth)
    at = normal_axis(attr(node, "axis"), len(indices.shape) + 1)
    return values.type.with_shape((*indices.shape[:at], UNKNOWN if known is None else known[0], *indices.shape[at:]))


@one_hot.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """off_bar = the sum of y_bar off the places, on_bar = its sum at them."""
    ones = b.OneHot(node.input(0), node.input(1), np.array([0, 1], np.float32), axis=attr(node, "axis"))
    hot = b.cast(ones, BOOL)  # runtimes lack OneHot of bool
    zero = b.scalar(0, y_bar.type.dtype)
    parts = [b.ReduceSum(b.Where(hot, zero, y_bar), keepdims=0), b.ReduceSum(b.Where(hot, y_bar, zero), keepdims=0)]
    return NO_GRADIENT, NO_GRADIENT, b.Concat(*(b.Unsqueeze(p, [0]) for p in parts), axis=0)


@one_hot.tangent
def _(b: DerivativeBuilder, node: Node, indices_dot: Any, depth_dot: Any, values_dot: Value | None) -> Any:
    """Linear in the values; piecewise constant in the indices."""
    if values_dot is None:
        return None
    return b.OneHot(node.input(0), node.input(1), values_dot, axis=attr(node, "axis"))


# ---- many examples ----------------------------------------------------------------------------------------------------------

gather_elements.batch(along_axis())


@gather.batch
def _(b: BatchBuilder, node: Node, data: Value, indices: Value) -> Any:
    """Shared indices are read along the next axis; indices into shared data read more; else every example reads in its own."""
    rank, width = node.input(0).type.rank, node.input(1).type.rank
    if rank is None or width is None:
        return looped(b, node, data, indices)
    axis = normal_axis(attr(node, "axis"), rank)
    if not b.holds(indices):
        rows = in_rows(b, node, [data, indices], axis=axis) if axis else None
        return rows or again(b, node, [data, indices], axis=axis + 1)
    if not b.holds(data):
        return first_moved(b, single(b, node, [data, indices]), axis)
    read = permuted(b, data, [0, axis + 1, *(i for i in range(1, rank + 1) if i != axis + 1)])
    y = b.GatherND(read, b.Unsqueeze(b.cast(indices, INT64), [-1]), batch_dims=1)
    order = [*range(1 + width, 1 + width + axis), *range(1, 1 + width), *range(1 + width + axis, rank + width)]
    return permuted(b, y, [0, *order])


@gather_nd.batch
def _(b: BatchBuilder, node: Node, data: Value, indices: Value) -> Any:
    """One more batch axis, if the data have the examples."""
    if any(v.type.rank is None for v in node.operands):
        return looped(b, node, data, indices)
    if not b.holds(data) and not attr(node, "batch_dims"):
        return again(b, node, [data, indices])
    return again(b, node, [b.lifted(data), b.lifted(indices)], batch_dims=attr(node, "batch_dims") + 1)


@one_hot.batch
def _(b: BatchBuilder, node: Node, indices: Value, depth: Value, values: Value) -> Any:
    """The axis of the places counts that of the examples; values of their own are chosen by shared ones."""
    rank = node.input(0).type.rank
    if rank is None or b.holds(depth):
        return looped(b, node, indices, depth, values)
    axis = normal_axis(attr(node, "axis"), rank + 1) + b.holds(indices)
    if not b.holds(values):
        return again(b, node, [indices, depth, values], axis=axis)
    ones = b.OneHot(indices, depth, np.array([0, 1], np.float32), axis=axis)
    off, on = (b.alike(b.Gather(values, np.int64(i), axis=1), values) for i in range(2))
    return b.Where(b.cast(ones, BOOL), b.padded(on, rank + 1), b.padded(off, rank + 1))
