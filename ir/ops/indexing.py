"""Reading and writing elements at indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise.arithmetic import select
from flowgrad.ir.ops.operands import (
    END,
    divided,
    extents,
    joined,
    known_dims,
    normal_axis,
    ramp,
    reshape_to,
    sum_of,
    unknown_ranks,
)
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, like_first, op, refuse
from flowgrad.ir.support import is_zero, moved
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


# ---- GatherElements and ScatterElements ---------------------------------------------------------------------------------


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


Reducer = Callable[..., Any]
_AT: dict[str, Reducer] = {
    "add": np.add.at, "mul": np.multiply.at, "max": np.maximum.at, "min": np.minimum.at,
}


def _scattered(data: Array, index: Any, updates: Array, reduction: str, out: Array | None) -> Array:
    if out is None:
        result = data.copy()
    else:
        result = out
        if result is not data:
            np.copyto(result, data)
    if reduction == "none":
        result[index] = updates
    else:
        _AT[reduction](result, index, updates)
    return result


@op("ScatterElements", since=18, outputs=("output",))
def scatter_elements(
    data: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none", out: Array | None = None
) -> Array:
    return _scattered(data, element_index(indices, axis), updates, reduction, out)


@op("ScatterND", since=18, outputs=("output",))
def scatter_nd(
    data: Array, indices: Array, updates: Array, *, reduction: str = "none", out: Array | None = None
) -> Array:
    return _scattered(data, tuple(np.moveaxis(indices, -1, 0)), updates, reduction, out)


scatter_elements.types(like_first)
scatter_nd.types(like_first)


def _read(b: Builder, node: Node, value: Value) -> Value:
    """Return the elements of ``value`` at the places that ``node`` writes, in the shape of its updates."""
    if node.op == "ScatterND":
        return b.GatherND(value, node.input(1))
    return b.GatherElements(value, node.input(1), axis=attr(node, "axis"))


def _write(b: Builder, node: Node, value: Value, updates: Value, reduction: str) -> Value:
    """Return ``value`` with ``updates`` at the places that ``node`` writes."""
    axis = {} if node.op == "ScatterND" else {"axis": attr(node, "axis")}
    return b.add(node.op, [value, node.input(1), updates], {**axis, "reduction": reduction})


REPEATED = "indices repeat, and without a reduction which update stays is left open"


def _repeats(node: Node) -> bool:
    """True if a scatter without reduction is known to write an element twice."""
    return attr(node, "reduction") == "none" and _meet(node)


def _meet(node: Node) -> bool:
    """True if two updates of a scatter are known to go to one element."""
    indices, shape = node.input(1).constant, node.input(0).type.shape
    if indices is None or not indices.size or shape is None:
        return False
    if node.op == "ScatterND":
        extents_, rows = shape[: indices.shape[-1]], indices.reshape(-1, indices.shape[-1])
        wrapped = [_wrapped(rows[:, i], extent) for i, extent in enumerate(extents_)]
        places = np.stack(wrapped, axis=-1)
        return len(np.unique(places, axis=0)) < len(places)
    axis = normal_axis(attr(node, "axis"), indices.ndim)
    ordered = np.sort(_wrapped(indices, shape[axis]), axis=axis)
    return bool((np.diff(ordered, axis=axis) == 0).any())


def _apart(node: Node) -> bool:
    """True if no two updates of a scatter can go to one element."""
    return node.input(1).constant is not None and node.input(0).type.is_static and not _meet(node)


def _wrapped(indices: Array, extent: Any) -> Array:
    return np.where(indices < 0, indices + extent, indices) if isinstance(extent, int) else indices


@scatter_nd.expands_on_export
def _(node: Node) -> bool:
    """Runtimes that share the updates among threads lose some of those that meet at one element."""
    return attr(node, "reduction") != "none" and not _apart(node)


@scatter_nd.expansion
def _(b: Builder, node: Node) -> Value:
    """Axes that are indexed become one, the others another: ScatterElements takes one update after the other."""
    data, indices, updates = (node.input(i) for i in range(3))
    shape, width = b.shape(data), b.extent(indices, -1)
    indexed, rest = b.Slice(shape, [0], width, [0]), b.Slice(shape, width, [END], [0])
    count, row = (b.ReduceProd(b.Concat([1], extents_, axis=0), keepdims=1) for extents_ in (indexed, rest))
    numbers = b.Reshape(ramp(b, count), indexed, allowzero=1)
    places = b.Reshape(b.GatherND(numbers, indices), b.ints([-1, 1]))
    wide = b.Concat(b.Shape(places, start=0, end=1), row, axis=0)
    total = b.ScatterElements(
        b.Reshape(data, b.Concat(count, row, axis=0), allowzero=1), b.Expand(places, wide),
        b.Reshape(updates, wide, allowzero=1), axis=0, reduction=attr(node, "reduction"),
    )
    return reshape_to(b, total, data)


def _scatter_adjoint(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """Each reduction has its own rule; without one, what is overwritten gets nothing.

    Without a reduction no two indices may be equal, says the standard, and the derivative by the updates relies on it:
    constant indices that repeat are refused, those of run time are not looked at.
    """
    data, updates = node.input(0), node.input(2)
    reduction = attr(node, "reduction")
    if reduction == "add":
        return y_bar, NO_GRADIENT, _read(b, node, y_bar)
    if reduction == "none":
        updates_bar = refuse(REPEATED) if _repeats(node) else _read(b, node, y_bar)
        return _write(b, node, y_bar, b.zero(updates), "none"), NO_GRADIENT, updates_bar
    if reduction == "mul":
        factors = _write(b, node, b.filled(1, data), updates, "mul")
        return b.Mul(y_bar, factors), NO_GRADIENT, b.Mul(_read(b, node, y_bar), _others(b, node))
    return _extreme_adjoint(b, node, y_bar)


def _others(b: Builder, node: Node) -> Value:
    """Return the product of all but itself that each update of a multiplying scatter meets, zeros among them or not.

    Takes n x n numbers for n updates, unless it is known that no two meet.
    """
    data, updates = node.input(0), node.input(2)
    before = _read(b, node, data)
    if _apart(node):
        return before
    count = b.Reshape(b.Size(data), b.ints([1]))
    numbers = b.Reshape(ramp(b, count), b.shape(data), allowzero=1)
    places = b.Reshape(_read(b, node, numbers), b.ints([-1]))
    order = ramp(b, b.extent(places, 0))
    meet, same = (b.Equal(b.Unsqueeze(v, [1]), v) for v in (places, order))
    factors = b.Where(b.And(meet, b.Not(same)), b.Reshape(updates, b.ints([-1])), b.scalar(1, updates.type.dtype))
    return b.Mul(before, reshape_to(b, b.ReduceProd(factors, [1], keepdims=0), updates))


def _extreme_adjoint(b: Builder, node: Node, y_bar: Value) -> Any:
    """Data and updates that are equal to the result share its cotangent equally."""
    data, updates, y = node.input(0), node.input(2), node.output()
    kept, chosen = b.Equal(data, y), b.Equal(updates, _read(b, node, y))
    share = divided(b, y_bar, _ties(b, node, kept, chosen))
    zero = b.scalar(0, y.type.dtype)
    return b.Where(kept, share, zero), NO_GRADIENT, b.Where(chosen, _read(b, node, share), zero)


def _ties(b: Builder, node: Node, kept: Value, chosen: Value) -> Value:
    """Return how many data and updates are equal to the result, in the type that is computed in; at least 1."""
    wide = node.output().type.dtype.wide
    return b.Max(_write(b, node, b.cast(kept, wide), b.cast(chosen, wide), "add"), 1.0)


def _scatter_tangent(b: DerivativeBuilder, node: Node, x_dot: Value | None, indices_dot: Any, u_dot: Value | None) -> Any:
    """Linear in data and updates together, except for a product or an extreme."""
    data, updates = node.input(0), node.input(2)
    reduction = attr(node, "reduction")
    if _repeats(node) and u_dot is not None:
        return refuse(REPEATED)
    if reduction == "mul":
        terms = [] if x_dot is None else [b.Mul(x_dot, _write(b, node, b.filled(1, data), updates, "mul"))]
        if u_dot is not None:
            terms.append(_write(b, node, b.zero(data), b.Mul(u_dot, _others(b, node)), "add"))
        return sum_of(b, terms)
    x_dot = b.zero(data) if x_dot is None else x_dot
    u_dot = b.zero(updates) if u_dot is None else u_dot
    if reduction in ("none", "add"):
        return _write(b, node, x_dot, u_dot, reduction)
    return _extreme_tangent(b, node, x_dot, u_dot)


def _extreme_tangent(b: Builder, node: Node, x_dot: Value, u_dot: Value) -> Value:
    data, updates, y = node.input(0), node.input(2), node.output()
    kept, chosen = b.Equal(data, y), b.Equal(updates, _read(b, node, y))
    x_part, u_part = (b.cast(select(b, c, v), y.type.dtype.wide) for c, v in ((kept, x_dot), (chosen, u_dot)))
    return b.cast_like(b.Div(_write(b, node, x_part, u_part, "add"), _ties(b, node, kept, chosen)), y)


def _scatter_support(b: DerivativeBuilder, node: Node, masks: Sequence[Value | None]) -> Value | None:
    """Where something lies that was written, or was there and is not overwritten."""
    if attr(node, "reduction") not in ("none", "add"):
        return None
    mask = moved(b, node, [b.support.given(m) for m in masks])[0]
    if mask is not None and node.op == "ScatterElements" and is_zero(b, node.input(0)):
        _note_rows(b, node, mask, masks[2])
    return mask


def _note_rows(b: DerivativeBuilder, node: Node, mask: Value, updates: Value | None) -> None:
    """Note that along the axis every row of the result holds updates, if their shape says so."""
    data, indices = node.input(0).type.shape, node.input(1).type.shape
    if data is None or indices is None:
        return
    axis = normal_axis(attr(node, "axis"), len(data))
    others = [i for i in range(len(data)) if i != axis]
    if isinstance(indices[axis], int) and indices[axis] != 0 and all(data[i] == indices[i] for i in others):
        b.support.along[mask] = axis, updates


def _combined(b: DerivativeBuilder, nodes: Sequence[Node]) -> Value:
    """Return the sum of the outputs of adding scatters: those of one kind become one, with all updates."""
    groups: dict[Any, list[Node]] = {}
    for node in nodes:
        groups.setdefault(_kind(node), []).append(node)
    parts = []
    for kind, group in groups.items():
        parts += [n.output() for n in group] if kind is None or len(group) == 1 else [_united(b, group)]
    return sum_of(b, parts)


def _kind(node: Node) -> Any:
    """Return what scatters must have in common to be joined, None for one that cannot be."""
    shape = node.input(1).type.shape
    if attr(node, "reduction") != "add" or shape is None or node.input(0).type.rank is None:
        return None
    if node.op == "ScatterND":
        return shape[-1] if shape and isinstance(shape[-1], int) and shape[-1] else None
    axis = normal_axis(attr(node, "axis"), len(shape))
    return axis, shape[:axis], shape[axis + 1 :]


def _united(b: DerivativeBuilder, group: Sequence[Node]) -> Value:
    bases = [n.input(0) for n in group if not b.is_zero(n.input(0))]
    base = sum_of(b, bases) if bases else group[0].input(0)
    if group[0].op == "ScatterElements":
        axis = attr(group[0], "axis")
        indices = b.Concat(*(b.cast(n.input(1), INT64) for n in group), axis=axis)
        updates = b.Concat(*(n.input(2) for n in group), axis=axis)
        return b.ScatterElements(base, indices, updates, axis=axis, reduction="add")
    rows = [_flat_rows(b, n) for n in group]
    indices, updates = (b.Concat(*(row[i] for row in rows), axis=0) for i in range(2))
    return b.ScatterND(base, indices, updates, reduction="add")


def _flat_rows(b: Builder, node: Node) -> tuple[Value, Value]:
    """Return indices and updates of a ScatterND with all leading axes as one."""
    data, indices, updates = (node.input(i) for i in range(3))
    rank, width = len(indices.shape), indices.shape[-1]
    if rank == 2:
        return indices, updates
    leading = extents(b, indices, 0, rank - 1)
    count = b.ReduceProd(leading[0], keepdims=1) if leading else b.ints([1])
    shape = joined(b, [count, *extents(b, data, int(width), len(data.shape))])  # type: ignore[arg-type]
    return b.Reshape(indices, joined(b, [count, b.ints([width])]), allowzero=1), b.Reshape(updates, shape, allowzero=1)


for _scatter in (scatter_elements, scatter_nd):
    _scatter.adjoint(_scatter_adjoint)
    _scatter.tangent(_scatter_tangent)
    _scatter.combine(_combined)
    _scatter.support(_scatter_support)


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
