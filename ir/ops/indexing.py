"""Reading elements at indices, and finding those of interest."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import extents, joined, known_dims, normal_axis, ramp, reshape_to, unknown_ranks
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op, refuse
from flowgrad.ir.types import BOOL, FLOAT32, INT64, UNKNOWN, Type


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
    indices = _with_batch(b, node.input(1), attr(node, "batch_dims"))
    return b.ScatterND(b.zero(x), indices, y_bar, reduction="add"), NO_GRADIENT


def _with_batch(b: Builder, indices: Value, batch_dims: int) -> Value:
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


# ---- OneHot, NonZero, Compress, Unique ----------------------------------------------------------------------------------


@op("OneHot", since=11, outputs=("output",), extents=("depth",), settings=("values",))
def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    extent = int(np.asarray(depth).reshape(-1)[0])
    at = axis + indices.ndim + 1 if axis < 0 else axis
    places = indices.astype(np.int64)
    places = np.expand_dims(np.where(places < 0, places + extent, places), at)
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


@op("NonZero", since=13, traits=(Trait.ZERO, Trait.BOUNDED))
def non_zero(X: Array) -> Array:
    if X.ndim == 0:
        return np.zeros((0, int(bool(X))), np.int64)
    return np.stack(np.nonzero(X)).astype(np.int64, copy=False)


@non_zero.types
def _(node: Node) -> Type:
    rank = node.input(0).type.rank
    return Type(INT64, (UNKNOWN if rank is None else rank, UNKNOWN))


@non_zero.expands_on_export
def _(node: Node) -> bool:
    """Runtimes count the numbers of few types; truth values are among them."""
    return node.input(0).type.dtype not in (BOOL, FLOAT32, INT64)


@non_zero.expansion
def _(b: Builder, node: Node) -> Any:
    """Of what the numbers are as truth values."""
    x = node.input(0)
    return refuse("truth values are as plain as it gets") if x.type.dtype == BOOL else b.NonZero(b.cast(x, BOOL))


@op("Compress", since=11, outputs=("output",), traits=(Trait.LINEAR, Trait.BOUNDED))
def compress(input: Array, condition: Array, *, axis: int | None = None) -> Array:
    return np.asarray(np.compress(condition, input, axis))


@compress.types
def _(node: Node) -> Type:
    x, axis = node.input(0).type, attr(node, "axis")
    if axis is None:
        return x.with_shape((UNKNOWN,))
    if x.shape is None:
        return x
    at = normal_axis(axis, len(x.shape))
    return x.with_shape((*x.shape[:at], UNKNOWN, *x.shape[at + 1 :]))


@compress.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = zeros with y_bar at the places where the condition holds."""
    x, axis = node.input(0), attr(node, "axis")
    places = b.Reshape(b.NonZero(node.input(1)), b.ints([-1]))
    if axis is not None:
        return b.GatherGrad(b.shape(x), y_bar, places, axis=axis), NO_GRADIENT
    flat = b.GatherGrad(b.Reshape(b.Size(x), b.ints([1])), y_bar, places)
    return reshape_to(b, flat, x), NO_GRADIENT


@op("Unique", since=11, outputs=("Y", "indices", "inverse_indices", "counts"), required_outputs=1,
    traits=(Trait.BOUNDED,))
def unique(X: Array, *, axis: int | None = None, sorted: int = 1) -> tuple[Array, Array, Array, Array]:
    """Return the distinct elements (or slices along ``axis``), their first places, where each went, and how often."""
    values, first, inverse, counts = np.unique(X, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        values = np.take(values, order, axis or 0)
        first, counts, inverse = first[order], counts[order], place[inverse]
    return values, *(np.asarray(a, np.int64) for a in (first, inverse, counts))  # type: ignore[return-value]


@unique.types
def _(node: Node) -> list[Type]:
    x, axis = node.input(0).type, attr(node, "axis")
    vectors = [Type(INT64, (UNKNOWN,))] * 3
    if axis is None:
        return [x.with_shape((UNKNOWN,)), *vectors]
    if x.shape is None:
        return [x, *vectors]
    at = normal_axis(axis, len(x.shape))
    return [x.with_shape((*x.shape[:at], UNKNOWN, *x.shape[at + 1 :])), *vectors]


@unique.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value, *others: Any) -> Any:
    """x_bar = zeros with y_bar at the places that Y was taken from: of equal elements the first one."""
    x, axis, places = node.input(0), attr(node, "axis"), b.residual(node, "indices")
    if axis is not None:
        return b.GatherGrad(b.shape(x), y_bar, places, axis=axis)
    return reshape_to(b, b.GatherGrad(b.Reshape(b.Size(x), b.ints([1])), y_bar, places), x)


@unique.kinks
def _(b: Builder, node: Node) -> Value:
    """Where equal elements have come together: moved apart, they would be several."""
    return b.Greater(b.residual(node, "counts"), np.int64(1))


@unique.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None) -> Any:
    """y_dot = x_dot at the places that Y was taken from."""
    if x_dot is None:
        return [None] * len(node.outputs)
    axis, places = attr(node, "axis"), b.residual(node, "indices")
    flat = b.Reshape(x_dot, b.ints([-1])) if axis is None else x_dot
    return [b.Gather(flat, places, axis=axis or 0), *[None] * (len(node.outputs) - 1)]
