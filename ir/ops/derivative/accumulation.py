"""Operators of the flowgrad domain that undo broadcasting, slicing and gathering."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, looped, shifted_axes
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import (
    concatenated,
    expand_to,
    int_list,
    into,
    inverse_of,
    joined,
    known_dims,
    known_ints,
    known_length,
    moved_first,
    normal_axis,
    permuted,
    ramp,
    slice_axis,
    sum_of,
    unknown_shape,
)
from flowgrad.ir.ops.pieces import slice_tuple
from flowgrad.ir.ops.registry import FLOWGRAD, NO_GRADIENT, Trait, attr, op
from flowgrad.ir.support import moved
from flowgrad.ir.types import INT64, DimLike, Type, dim_product


def _shaped(node: Node, like: int, shape: int) -> Type:
    """Return the type whose dtype input ``like`` has and whose shape input ``shape`` says."""
    dims = known_dims(node.input(shape))
    dtype = node.input(like).type.dtype
    return Type(dtype, unknown_shape(known_length(node.input(shape))) if dims is None else tuple(dims))


# ---- SumTo --------------------------------------------------------------------------------------------------------------


@op("SumTo", since=13, domain=FLOWGRAD, traits=(Trait.LINEAR,), extents=("shape",))
def sum_to(x: Array, shape: Array, *, out: Array | None = None) -> Array:
    """Sum the axes along which a tensor of ``shape`` was broadcast to the shape of ``x``."""
    wanted = tuple(int_list(shape) or ())
    leading = x.ndim - len(wanted)
    if leading < 0 or any(n not in (1, w) for w, n in zip(x.shape[leading:], wanted, strict=True)):
        raise ValidationError(f"{list(x.shape)} is no broadcast of {list(wanted)}", code="shape")
    inner = [i + leading for i, n in enumerate(wanted) if n == 1 and x.shape[i + leading] != 1]
    axes = (*range(leading), *inner)
    if not axes:
        return x.copy() if out is None else into(x, out)
    target = None if out is None else out.reshape((1,) * leading + out.shape)
    return np.asarray(np.sum(x, axis=axes, keepdims=True, dtype=x.dtype, out=target)).reshape(wanted)


@sum_to.types
def _(node: Node) -> Type:
    return _shaped(node, 0, 1)


@sum_to.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar broadcast to the shape of x."""
    return expand_to(b, y_bar, node.input(0)), NO_GRADIENT


@sum_to.expansion
def _(b: Builder, node: Node) -> Value:
    """Compare the two shapes, sum the axes where they differ, and drop the leading ones."""
    x, wanted = node.input(0), node.input(1)
    if known_ints(wanted) == []:
        return b.ReduceSum(x, keepdims=0)
    actual = b.Shape(x)
    missing = b.Unsqueeze(b.Sub(b.Size(actual), b.Size(wanted)), [0])
    padded = b.Concat(b.ConstantOfShape(missing, value=np.ones(1, np.int64)), wanted, axis=0)
    axes = b.Reshape(b.NonZero(b.Not(b.Equal(padded, actual))), [-1])
    summed = b.ReduceSum(x, axes, keepdims=1, noop_with_empty_axes=1)
    return b.Reshape(summed, wanted, allowzero=1)


# ---- SliceGrad ----------------------------------------------------------------------------------------------------------


@op("SliceGrad", since=18, domain=FLOWGRAD, traits=(Trait.LINEAR, Trait.SPREADS), extents=("shape",))
def slice_grad(shape: Array, *pieces: Array, out: Array | None = None) -> Array:
    """Add pieces to zeros of ``shape``, each at a slice: (y_bar, starts, ends, axes, steps) five by five."""
    total = _zeros(shape, pieces[0], out)
    for y_bar, starts, ends, axes, steps in _groups(pieces, 5):
        place = total[slice_tuple(total.shape, starts, ends, axes, steps)]
        np.add(place, y_bar, out=place)
    return total


def _zeros(shape: Array, like: Array, out: Array | None) -> Array:
    if out is None:
        return np.zeros(int_list(shape) or (), like.dtype)
    out.fill(0)
    return out


def _groups(items: Sequence[Any], width: int) -> Iterator[Sequence[Any]]:
    if not items or len(items) % width:
        raise ValidationError(f"takes inputs {width} by {width}, got {len(items)}", code="arity")
    return (items[i : i + width] for i in range(0, len(items), width))


@slice_grad.types
def _(node: Node) -> Type:
    return _shaped(node, 1, 0)


@slice_grad.adjoint
def _(b: DerivativeBuilder, node: Node, x_bar: Value) -> Any:
    """The cotangent of a piece is the slice of x_bar at its place."""
    bars: list[Any] = [NO_GRADIENT]
    for _, *where in _groups(node.inputs[1:], 5):
        bars += [b.Slice(x_bar, *where), *[NO_GRADIENT] * 4]
    return bars


@slice_grad.support
def _(b: DerivativeBuilder, node: Node, masks: Sequence[Value | None]) -> Value | None:
    """Where the pieces lie: along the axes that are sliced, if they are known, for whole pieces."""
    pieces = list(_groups(node.inputs[1:], 5))
    axes = [known_ints(axes) for _, _, _, axes, _ in pieces]
    if all(m is None for m in masks) and _covers(node, pieces):
        return None
    rank = node.output().type.rank
    if rank is None or any(found is None for found in axes):
        return moved(b, node, masks)[0]
    return _spread(b, node, masks, {a % rank for found in axes for a in found or ()}, 5)


def _covers(node: Node, pieces: Sequence[Sequence[Value]]) -> bool:
    """Return whether pieces are known to leave nothing out, as those of a tensor that was cut up or rolled."""
    layers = _layers(node, pieces)
    if layers is None or len(layers[1]) != 1:
        return False
    ends = [0, *(end for _, end, _ in layers[1][0])]
    extent = (known_dims(node.input(0)) or [])[layers[0]]
    return [start for start, _, _ in layers[1][0]] == ends[:-1] and ends[-1] == extent


def _spread(b: DerivativeBuilder, node: Node, masks: Sequence[Value | None], axes: Collection[int], width: int
            ) -> Value | None:
    """Return the mask of pieces among zeros, with extents of 1 but for ``axes``, the same for all, where that is known."""
    pieces = node.inputs[1::width]
    dims = known_dims(node.input(0))
    is_whole = all(m is None for m in masks) and all(v in b.support.carried for v in pieces)
    if not is_whole or dims is None or not all(isinstance(d, int) for d in dims):
        return moved(b, node, masks)[0]
    dtype = node.output().type.dtype
    inputs: list[Any] = list(node.inputs)
    inputs[0] = b.ints([d if i in axes else 1 for i, d in enumerate(dims)])
    for i in range(1, len(inputs), width):
        shape, offset = inputs[i].type.shape, len(inputs[i].type.shape or ()) - len(dims)
        if shape is None or not all(isinstance(d, int) for d in shape):
            return moved(b, node, masks)[0]
        first = min(axes, default=0)
        kept = [d if (j in axes and offset >= 0) or first <= j <= first + offset else 1 for j, d in enumerate(shape)]
        inputs[i] = b.Expand(b.scalar(1, dtype), b.ints(kept))
    return b.support.made(b.Greater(b.add(node.op, inputs, node.attributes), 0.0))


@slice_grad.combine
def _(b: DerivativeBuilder, nodes: Sequence[Node]) -> Value:
    """One node with the pieces of all."""
    return b.add("SliceGrad", [nodes[0].input(0), *(v for n in nodes for v in n.inputs[1:])])


MOST_LAYERS = 4
"""Up to so many full-size tensors are added up; more pieces than that are scattered."""


@slice_grad.expansion
def _(b: Builder, node: Node) -> Value:
    """Concatenate the pieces where they lie side by side, pad a few, or scatter many.

    The memory this takes is linear in that of the pieces and the result.
    """
    pieces = [tuple(group) for group in _groups(node.inputs[1:], 5)]
    layers = _layers(node, pieces)
    if layers is not None and len(layers[1]) <= MOST_LAYERS:
        return sum_of(b, [_side_by_side(b, node, layers[0], layer) for layer in layers[1]])
    if len(pieces) <= MOST_LAYERS and all(set(known_ints(piece[4]) or [0]) == {1} for piece in pieces):
        return sum_of(b, [_padded(b, node.input(0), piece) for piece in pieces])
    axes = {tuple(known_ints(piece[3]) or ()) for piece in pieces}
    rank = node.output().type.rank
    if rank is not None and len(axes) == 1 and len(chosen := next(iter(axes))) == 1:
        return _scattered_slices(b, node, normal_axis(chosen[0], rank), pieces)
    return _scattered_elements(b, node, pieces)


Interval = tuple[int, int, Value]


def _layers(node: Node, pieces: Sequence[Sequence[Value]]) -> tuple[int, list[list[Interval]]] | None:
    """Return (axis, layers of disjoint intervals in order) if the pieces are known intervals of one known axis."""
    dims = known_dims(node.input(0))
    intervals: list[Interval] = []
    found: int | None = None
    for y_bar, *where in pieces:
        starts, ends, axes, steps = (known_ints(v) for v in where)
        if dims is None or starts is None or ends is None or axes is None or len(axes) != 1 or steps != [1]:
            return None
        axis = normal_axis(axes[0], len(dims))
        extent = dims[axis]
        if found not in (None, axis) or not isinstance(extent, int):
            return None
        found = axis
        start, end, _ = slice(starts[0], ends[0]).indices(extent)
        intervals.append((start, max(end, start), y_bar))
    return None if found is None else (found, _disjoint(intervals))


def _disjoint(intervals: Sequence[Interval]) -> list[list[Interval]]:
    """Return the intervals in as few layers as need be, so that those of one layer do not overlap."""
    layers: list[list[Interval]] = []
    ends: list[tuple[int, int]] = []
    for start, end, y_bar in sorted(intervals, key=lambda item: item[:2]):
        if ends and ends[0][0] <= start:
            _, at = heapq.heappop(ends)
        else:
            at = len(layers)
            layers.append([])
        layers[at].append((start, end, y_bar))
        heapq.heappush(ends, (end, at))
    return layers


def _side_by_side(b: Builder, node: Node, axis: int, layer: Sequence[Interval]) -> Value:
    """Return the pieces of a layer joined along ``axis``, each padded with zeros up to the next."""
    extent = (known_dims(node.input(0)) or [])[axis]
    parts: list[Value] = []
    at: DimLike = 0
    for i, (start, end, y_bar) in enumerate(layer):
        stop = layer[i + 1][0] if i + 1 < len(layer) else extent
        before, after = start - at, stop - end
        parts.append(b.Pad(y_bar, b.ints([before, after]), None, b.ints([axis])) if before or after else y_bar)
        at = stop
    return concatenated(b, parts, axis)


def _padded(b: Builder, shape: Value, piece: Sequence[Value]) -> Value:
    """Return a piece of unit steps, padded with zeros to ``shape``."""
    y_bar, starts, _, axes, _ = piece
    whole = b.Gather(shape, axes)
    starts = b.cast(starts, INT64)
    begin = b.Max(b.Min(b.Where(b.Less(starts, 0), b.Add(starts, whole), starts), whole), 0)
    after = b.Sub(b.Sub(whole, begin), b.Gather(b.shape(y_bar), axes))
    return b.Pad(y_bar, b.Concat(begin, after, axis=0), None, axes)


def _scattered_slices(b: Builder, node: Node, axis: int, pieces: Sequence[Sequence[Value]]) -> Value:
    """Return zeros to which the pieces are added row by row, a row being an index along ``axis``."""
    places = ramp(b, slice_axis(b, node.input(0), axis, axis + 1))
    indices = [b.Slice(places, starts, ends, b.ints([0]), steps) for _, starts, ends, _, steps in pieces]
    rank = node.output().type.rank or 0
    order = moved_first([axis], rank)
    rows = [permuted(b, y_bar, order) for y_bar, *_ in pieces]
    return _scatter_rows(b, node.input(0), axis, rank, indices, rows)


def _scatter_rows(
    b: Builder, shape: Value, axis: int, rank: int, indices: Sequence[Value], rows: Sequence[Value]
) -> Value:
    order = moved_first([axis], rank)
    moved = joined(b, [slice_axis(b, shape, i, i + 1) for i in order]) if axis else shape
    zeros = b.Expand(b.scalar(0, rows[0].type.dtype), moved)
    total = b.ScatterND(zeros, b.Unsqueeze(concatenated(b, indices), [1]), concatenated(b, rows), reduction="add")
    return permuted(b, total, inverse_of(order))


def _scattered_elements(b: Builder, node: Node, pieces: Sequence[Sequence[Value]]) -> Value:
    """Return zeros to which the pieces are added element by element, where a ramp of element numbers says."""
    shape, flat = node.input(0), b.ints([-1])
    count = b.ReduceProd(shape, keepdims=1)
    numbers = b.Reshape(ramp(b, count), shape, allowzero=1)
    if node.op == "SliceGrad":
        places = [b.Reshape(b.Slice(numbers, *where), flat) for _, *where in pieces]
    else:
        places = [b.Reshape(b.Gather(numbers, indices, axis=attr(node, "axis")), flat) for _, indices in pieces]
    updates = [b.Reshape(y_bar, flat) for y_bar, *_ in pieces]
    zeros = b.Expand(b.scalar(0, updates[0].type.dtype), count)
    total = b.ScatterElements(zeros, concatenated(b, places), concatenated(b, updates), axis=0, reduction="add")
    return b.Reshape(total, shape, allowzero=1)


# ---- GatherGrad ---------------------------------------------------------------------------------------------------------


@op("GatherGrad", since=18, domain=FLOWGRAD, traits=(Trait.LINEAR, Trait.SPREADS), extents=("shape",))
def gather_grad(shape: Array, *pieces: Array, axis: int = 0, out: Array | None = None) -> Array:
    """Add pieces to zeros of ``shape``, each at indices along ``axis``: (y_bar, indices) two by two."""
    total = _zeros(shape, pieces[0], out)
    at = axis % total.ndim
    rows = np.moveaxis(total, at, 0)
    for y_bar, indices in _groups(pieces, 2):
        moved = np.moveaxis(y_bar, range(at, at + indices.ndim), range(indices.ndim))
        _add_rows(rows, indices.reshape(-1), moved.reshape(indices.size, *rows.shape[1:]))
    return total


MOST_ROUNDS, ROUND = 64, 1024
"""Where at most so many updates meet they are added in rounds, one to each row: NumPy adds up many short runs slowly. A round
must be worth its calls."""


def _add_rows(rows: Array, indices: Array, updates: Array) -> None:
    """Add ``updates`` to ``rows`` at ``indices``, of which some may be equal."""
    if indices.size == 1:
        rows[int(indices[0])] += updates[0]
        return
    indices = _from_front(indices, len(rows))
    if not updates.size:
        return
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(first, append=len(indices))
    long = (counts > MOST_ROUNDS) | (updates.size < ROUND * min(int(counts.max()), MOST_ROUNDS))
    starts, lengths = first[~long], counts[~long]
    for turn in range(int(lengths.max(initial=0))):
        part = order[starts[lengths > turn] + turn]
        rows[indices[part]] += updates[part]
    if long.any():
        part, lengths = order[np.repeat(long, counts)], counts[long]
        starts = np.cumsum(lengths) - lengths
        rows[indices[part[starts]]] += np.add.reduceat(updates[part], starts, axis=0, dtype=updates.dtype)


def _from_front(indices: Array, extent: int) -> Array:
    """Return indices counted from the front; IndexError for one that is out of bounds, as when it was read."""
    wrapped = np.where(indices < 0, indices + extent, indices)
    outside = (wrapped < 0) | (wrapped >= extent)
    if outside.any():
        raise IndexError(f"index {int(indices[outside][0])} is out of bounds for extent {extent}")
    return wrapped


@gather_grad.types
def _(node: Node) -> Type:
    return _shaped(node, 1, 0)


@gather_grad.adjoint
def _(b: DerivativeBuilder, node: Node, x_bar: Value) -> Any:
    """The cotangent of a piece is what x_bar holds at its indices."""
    bars: list[Any] = [NO_GRADIENT]
    for _, indices in _groups(node.inputs[1:], 2):
        bars += [b.Gather(x_bar, indices, axis=attr(node, "axis")), NO_GRADIENT]
    return bars


@gather_grad.support
def _(b: DerivativeBuilder, node: Node, masks: Sequence[Value | None]) -> Value | None:
    """Along the axis, where an index points to."""
    rank = node.output().type.rank
    return moved(b, node, masks)[0] if rank is None else _spread(b, node, masks, {attr(node, "axis") % rank}, 2)


@gather_grad.combine
def _(b: DerivativeBuilder, nodes: Sequence[Node]) -> Value:
    """One node for each axis, with the pieces of all."""
    by_axis: dict[int, list[Node]] = {}
    for node in nodes:
        axis, rank = attr(node, "axis"), node.output().type.rank
        by_axis.setdefault(axis if rank is None else axis % rank, []).append(node)
    parts = [b.add("GatherGrad", [group[0].input(0), *(v for n in group for v in n.inputs[1:])], {"axis": axis})
             for axis, group in by_axis.items()]
    return sum_of(b, parts)


@gather_grad.expansion
def _(b: Builder, node: Node) -> Value:
    """Scatter the pieces, rows first; pieces that are all rows, each once, are only put in order."""
    shape, rank = node.input(0), node.output().type.rank
    pieces = [tuple(group) for group in _groups(node.inputs[1:], 2)]
    if rank is None or any(indices.type.rank is None for _, indices in pieces):
        return _scattered_elements(b, node, pieces)
    axis = normal_axis(attr(node, "axis"), rank)
    extent = slice_axis(b, shape, axis, axis + 1)
    rows = [_rows(b, shape, rank, axis, y_bar, indices) for y_bar, indices in pieces]
    order = _each_once(known_ints(extent), [indices for _, indices in pieces])
    if order is not None:
        total = concatenated(b, [rows[i] for i in order])
        return permuted(b, total, inverse_of(moved_first([axis], rank)))
    return _scatter_rows(b, shape, axis, rank, [_flat(b, i) for _, i in pieces], rows)


def _rows(b: Builder, shape: Value, rank: int, axis: int, y_bar: Value, indices: Value) -> Value:
    """Return a piece with its index axes first, as one axis."""
    width = len(indices.shape)
    y_bar = permuted(b, y_bar, moved_first(range(axis, axis + width), rank - 1 + width))
    if width == 1:
        return y_bar
    count = b.ints([dim_product(indices.shape)]) if indices.type.is_static else b.Reshape(b.Size(indices), b.ints([1]))
    rest = [slice_axis(b, shape, 0, axis)] if axis else []
    rest += [slice_axis(b, shape, axis + 1, rank)] if axis + 1 < rank else []
    return b.Reshape(y_bar, joined(b, [count, *rest]), allowzero=1)


def _flat(b: Builder, indices: Value) -> Value:
    """Return indices as an int64 vector, those from behind as they are: a scatter refuses what is out of bounds."""
    constant = indices.constant
    if constant is not None:
        return b.value(constant.reshape(-1).astype(np.int64))
    return b.Reshape(b.cast(indices, INT64), b.ints([-1]))


def _each_once(extent: list[int] | None, pieces: Sequence[Value]) -> list[int] | None:
    """Return the order in which pieces of constant indices are the rows 0, 1, ..., or None if they are not."""
    constants = [indices.constant for indices in pieces]
    if extent is None or any(c is None or c.size == 0 for c in constants):
        return None
    rows = [np.where(c < 0, c + extent[0], c).reshape(-1) for c in constants if c is not None]
    order = sorted(range(len(rows)), key=lambda i: int(rows[i][0]))
    return order if np.array_equal(np.concatenate([rows[i] for i in order]), np.arange(extent[0])) else None


# ---- many examples ----------------------------------------------------------------------------------------------------------


@sum_to.batch
def _(b: BatchBuilder, node: Node, x: Value, shape: Value) -> Any:
    """The axes before those that the shape tells are summed; the others broadcast behind that of the examples."""
    rank, count = node.input(0).type.rank, known_length(node.input(1))
    if b.holds(shape) or rank is None or count is None:
        return looped(b, node, x, shape)
    leading, known = list(range(1, 1 + rank - count)), known_ints(shape)
    if known is not None:
        axes = [*leading, *(i + 1 + len(leading) for i, n in enumerate(known) if n == 1)]
        summed = b.ReduceSum(x, axes, keepdims=1) if axes else x
        return b.Squeeze(summed, leading) if leading else summed
    summed = b.ReduceSum(x, leading, keepdims=0) if leading else x
    return b.SumTo(summed, joined(b, [b.count, shape])) if count else summed


@slice_grad.batch
def _(b: BatchBuilder, node: Node, shape: Value, *pieces: Value) -> Any:
    """The same slices of the examples."""
    groups, rank = list(_groups(pieces, 5)), known_length(node.input(0))
    if b.holds(shape) or rank is None or any(b.holds(v) for _, *where in groups for v in where):
        return looped(b, node, shape, *pieces)
    moved = [(b.lifted(y_bar), starts, ends, shifted_axes(b, axes, rank), steps) for y_bar, starts, ends, axes, steps in groups]
    return again(b, node, [joined(b, [b.count, shape]), *(v for group in moved for v in group)])


@gather_grad.batch
def _(b: BatchBuilder, node: Node, shape: Value, *pieces: Value) -> Any:
    """Shared indices along the next axis; those of each example count the rows of all examples."""
    groups, rank = list(_groups(pieces, 2)), known_length(node.input(0))
    if b.holds(shape) or rank is None or any(v.type.rank is None for v in node.inputs[1:] if v is not None):
        return looped(b, node, shape, *pieces)
    axis = normal_axis(attr(node, "axis"), rank)
    whole = joined(b, [b.count, shape])
    if not any(b.holds(indices) for _, indices in groups):
        return again(b, node, [whole, *(v for y_bar, i in groups for v in (b.lifted(y_bar), i))], axis=axis + 1)
    rows = slice_axis(b, shape, axis, axis + 1)
    rest = [slice_axis(b, shape, i, i + 1) for i in range(rank) if i != axis]
    flat = [v for group in groups for v in _counted(b, axis, rows, *group)]
    total = b.GatherGrad(joined(b, [b.Mul(b.count, rows), *rest]), *flat, axis=0)
    split = b.Reshape(total, joined(b, [b.count, rows, *rest]), allowzero=1)
    return permuted(b, split, [0, *(1 + i for i in inverse_of(moved_first([axis], rank)))])


def _counted(b: BatchBuilder, axis: int, rows: Value, y_bar: Value, indices: Value) -> tuple[Value, Value]:
    """Return a piece with its index axes first, and the indices of its rows among those of all examples."""
    width = len(indices.shape) - b.holds(indices)
    y_bar, indices = b.lifted(y_bar), b.cast(b.lifted(indices), INT64)
    wrapped = b.Where(b.Less(indices, 0), b.Add(indices, rows), indices)
    first = moved_first(range(axis, axis + width), len(y_bar.shape) - 1)
    return permuted(b, y_bar, [0, *(1 + i for i in first)]), b.Add(wrapped, b.numbers(width + 1, rows))
