"""Writing elements at indices: ScatterElements and ScatterND.

Where updates without a reduction meet at one element, the last one stays, in the order of the indices; the standard leaves it
open. Derivatives are those of that value: the updates that others replaced have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, along_axis, looped
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise.arithmetic import select
from flowgrad.ir.ops.indexing import element_index, with_batch
from flowgrad.ir.ops.operands import END, divided, extents, joined, normal_axis, ramp, reshape_to, sum_of
from flowgrad.ir.ops.registry import NO_GRADIENT, attr, like_first, op
from flowgrad.ir.support import is_zero, moved
from flowgrad.ir.types import INT64, UNKNOWN, DimLike

Reducer = Callable[..., Any]
_AT: dict[str, Reducer] = {
    "add": np.add.at, "mul": np.multiply.at, "max": np.maximum.at, "min": np.minimum.at,
}


def _scattered(data: Array, index: Any, updates: Array, reduction: str, out: Array | None) -> Array:
    """Write ``updates``; ``index`` is in the order of memory, in which NumPy then takes them: the last one stays."""
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
    return _scattered(data, element_index(np.ascontiguousarray(indices), axis), updates, reduction, out)


@op("ScatterND", since=18, outputs=("output",))
def scatter_nd(
    data: Array, indices: Array, updates: Array, *, reduction: str = "none", out: Array | None = None
) -> Array:
    return _scattered(data, tuple(np.moveaxis(np.ascontiguousarray(indices), -1, 0)), updates, reduction, out)


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


# ---- which updates may meet ---------------------------------------------------------------------------------------------


def _apart(node: Node) -> bool:
    """True if no two updates of a scatter can go to one element, as far as is known before the run."""
    indices = node.input(1)
    if indices.constant is None:
        return _distinct_by_origin(node)
    return node.op == "ScatterND" and _rows_apart(node, indices.constant) or (
        node.op == "ScatterElements" and _elements_apart(node, indices.constant))


def _distinct_by_origin(node: Node) -> bool:
    """True for indices of which what made them says that they differ, and for one index along the axis."""
    indices = node.input(1)
    source, shape = indices.producer, indices.type.shape
    if node.op == "ScatterND":
        is_turned = source.op == "Transpose" and attr(source, "perm") in (None, (1, 0))
        return is_turned and source.input(0).producer.op == "NonZero"
    axis = attr(node, "axis")
    if shape is None:
        return False
    at = normal_axis(axis, len(shape))
    is_ranked = source.op == "TopK" and normal_axis(attr(source, "axis"), len(shape)) == at
    return shape[at] in (0, 1) or (is_ranked and indices.index == 1)


def _rows_apart(node: Node, indices: Array) -> bool:
    rows, shape = indices.reshape(-1, indices.shape[-1]), node.input(0).type.shape
    found = [_from_front(rows[:, i], UNKNOWN if shape is None else shape[i]) for i in range(rows.shape[1])]
    places = [p for p in found if p is not None]
    if len(rows) < 2 or not places or len(places) < len(found):
        return len(rows) < 2
    return len(np.unique(np.stack(places, axis=-1), axis=0)) == len(rows)


def _elements_apart(node: Node, indices: Array) -> bool:
    axis, shape = normal_axis(attr(node, "axis"), indices.ndim), node.input(0).type.shape
    places = _from_front(indices, UNKNOWN if shape is None else shape[axis])
    return places is not None and bool((np.diff(np.sort(places, axis=axis), axis=axis) != 0).all())


def _from_front(indices: Array, extent: DimLike) -> Array | None:
    """Return indices counted from the front, or from behind if all are; None where the extent would have to be known."""
    below = indices < 0
    if not below.any() or below.all():
        return indices
    return np.where(below, indices + extent, indices) if isinstance(extent, int) else None


def _staying(b: Builder, node: Node) -> Value:
    """Return where an update of a scatter without reduction stays: where no later one goes to the same element.

    The numbers of the updates are scattered like the updates, and read again: for indices known only at run time that
    takes an int64 tensor as large as the data (of ScatterND: as its indexed axes) and one as large as the indices. They are
    compared with their own numbers; the booleans broadcast to the updates.
    """
    data, indices, updates = (node.input(i) for i in range(3))
    if node.op == "ScatterElements":
        number = _numbered(b, b.shape(indices))
        return b.Equal(_read(b, node, _write(b, node, b.filled(0, data, INT64), number, "none")), number)
    places, count = _places(b, data, indices)
    number = ramp(b, b.extent(places, 0))
    zeros = b.Expand(b.scalar(0, INT64), count)
    last = b.Gather(b.ScatterElements(zeros, places, number, axis=0), places)
    rank, rows = updates.type.rank, b.Slice(b.shape(indices), [0], [-1], [0])
    if rank is None or indices.type.rank is None:
        missing = b.Sub(b.Shape(b.Shape(updates)), b.Shape(rows))
        return b.Reshape(b.Equal(last, number), b.Concat(rows, b.Expand(np.int64(1), missing), axis=0), allowzero=1)
    rows = b.Concat(rows, b.ints([1] * (rank - indices.type.rank + 1)), axis=0)
    return b.Reshape(b.Equal(last, number), rows, allowzero=1)


def _numbered(b: Builder, shape: Value) -> Value:
    """Return 0, 1, ... in ``shape``."""
    return b.Reshape(ramp(b, b.ReduceProd(shape, keepdims=1)), shape, allowzero=1)


def _places(b: Builder, data: Value, indices: Value) -> tuple[Value, Value]:
    """Return the rows that a ScatterND writes, counted from the first, as a vector; and how many the data has."""
    indexed = b.Slice(b.shape(data), [0], b.extent(indices, -1), [0])
    places = b.GatherND(_numbered(b, indexed), indices)
    return b.Reshape(places, b.ints([-1])), b.ReduceProd(indexed, keepdims=1)


# ---- export -------------------------------------------------------------------------------------------------------------


@scatter_nd.expands_on_export
def _(node: Node) -> bool:
    """Runtimes that share the updates among threads lose some of those that meet at one element, or keep any of them."""
    return not _apart(node)


@scatter_nd.expansion
def _(b: Builder, node: Node) -> Value:
    """Axes that are indexed become one, the others another: ScatterElements takes one update after the other.

    Without a reduction it scatters the numbers of the rows, and one Gather takes them from data and updates.
    """
    data, indices, updates = (node.input(i) for i in range(3))
    reduction = attr(node, "reduction")
    places, count = _places(b, data, indices)
    row = b.ReduceProd(b.Slice(b.shape(data), b.extent(indices, -1), [END], [0]), keepdims=1)
    rows, whole = b.Reshape(data, b.Concat(count, row, axis=0), allowzero=1), b.Concat(b.Shape(places), row, axis=0)
    news = b.Reshape(updates, whole, allowzero=1)
    if reduction == "none":
        numbers = b.Add(ramp(b, b.extent(places, 0)), count)
        source = b.ScatterElements(ramp(b, count), places, numbers, axis=0)
        return reshape_to(b, b.Gather(b.Concat(rows, news, axis=0), source), data)
    zeros = b.Expand(np.int64(0), b.Concat([1], row, axis=0))  # onnxruntime expands an extent of 1 to 0 by leaving it as it is
    columns = b.Add(b.Unsqueeze(places, [1]), zeros)
    return reshape_to(b, b.ScatterElements(rows, columns, news, axis=0, reduction=reduction), data)


# ---- derivatives --------------------------------------------------------------------------------------------------------


def _scatter_adjoint(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """Each reduction has its own rule; without one, what is overwritten gets nothing, updates by later ones included."""
    data, updates = node.input(0), node.input(2)
    reduction = attr(node, "reduction")
    if reduction == "add":
        return y_bar, NO_GRADIENT, _read(b, node, y_bar)
    if reduction == "none":
        updates_bar = _read(b, node, y_bar)
        if not _apart(node):
            updates_bar = select(b, _staying(b, node), updates_bar)
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
    places = b.Reshape(_read(b, node, _numbered(b, b.shape(data))), b.ints([-1]))
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


# ---- many examples ----------------------------------------------------------------------------------------------------------

scatter_elements.batch(along_axis())


@scatter_nd.batch
def _(b: BatchBuilder, node: Node, *xs: Value) -> Any:
    """Indices count the examples too."""
    if any(v.type.rank is None for v in node.operands):
        return looped(b, node, *xs)
    data, indices, updates = (b.lifted(x) for x in xs)
    return again(b, node, [data, with_batch(b, indices, 1), updates])
