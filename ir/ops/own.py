"""Operators of the flowgrad domain that undo broadcasting, slicing and gathering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.operands import (
    expand_to,
    extents,
    int_list,
    joined,
    known_dims,
    known_ints,
    known_length,
    normal_axes,
    reshape_to,
    unknown_shape,
)
from flowgrad.ir.ops.reduce import reduced_axes
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op, refuse
from flowgrad.ir.ops.shape import slice_tuple
from flowgrad.ir.types import Type


def _shaped(node: Node, like: int, shape: int) -> Type:
    """Return the type whose dtype input ``like`` has and whose shape input ``shape`` says."""
    dims = known_dims(node.input(shape))
    dtype = node.input(like).type.dtype
    return Type(dtype, unknown_shape(known_length(node.input(shape))) if dims is None else tuple(dims))


# ---- SumTo --------------------------------------------------------------------------------------------------------------


@op("SumTo", since=13, own=True, traits=(Trait.LINEAR,))
def sum_to(x: Array, shape: Array, *, out: Array | None = None) -> Array:
    """Sum the axes along which a tensor of ``shape`` was broadcast to the shape of ``x``."""
    wanted = tuple(int_list(shape) or ())
    leading = x.ndim - len(wanted)
    if leading < 0 or any(n not in (1, w) for w, n in zip(x.shape[leading:], wanted, strict=True)):
        raise ValidationError(f"{list(x.shape)} is no broadcast of {list(wanted)}", code="shape")
    inner = [i + leading for i, n in enumerate(wanted) if n == 1 and x.shape[i + leading] != 1]
    axes = (*range(leading), *inner)
    if not axes:
        return _copied(x, out)
    target = None if out is None else out.reshape((1,) * leading + out.shape)
    return np.asarray(np.sum(x, axis=axes, keepdims=True, dtype=x.dtype, out=target)).reshape(wanted)


def _copied(x: Array, out: Array | None) -> Array:
    if out is None:
        return x.copy()
    np.copyto(out, x)
    return out


@sum_to.types
def _(node: Node) -> Type:
    return _shaped(node, 0, 1)


@sum_to.adjoint
def _(b: Any, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar broadcast to the shape of x."""
    return expand_to(b, y_bar, node.input(0)), NO_GRADIENT


@sum_to.expansion
def _(b: Any, node: Node) -> Value:
    """Compare the two shapes, sum the axes where they differ, and drop the leading ones."""
    x, wanted = node.input(0), node.input(1)
    if known_ints(wanted) == []:
        return b.ReduceSum(x, keepdims=0)  # type: ignore[no-any-return]
    actual = b.Shape(x)
    missing = b.Unsqueeze(b.Sub(b.Size(actual), b.Size(wanted)), [0])
    padded = b.Concat(b.ConstantOfShape(missing, value=np.ones(1, np.int64)), wanted, axis=0)
    axes = b.Reshape(b.NonZero(b.Not(b.Equal(padded, actual))), [-1])
    summed = b.ReduceSum(x, axes, keepdims=1, noop_with_empty_axes=1)
    return b.Reshape(summed, wanted, allowzero=1)  # type: ignore[no-any-return]


# ---- SliceGrad ----------------------------------------------------------------------------------------------------------


@op("SliceGrad", since=18, own=True, traits=(Trait.LINEAR,))
def slice_grad(shape: Array, *pieces: Array, out: Array | None = None) -> Array:
    """Add pieces to zeros of ``shape``, each at a slice: (y_bar, starts, ends, axes, steps) five by five."""
    total = _zeros(shape, pieces[0], out)
    for y_bar, starts, ends, axes, steps in _groups(pieces, 5):
        place = total[slice_tuple(total.ndim, starts, ends, axes, steps)]
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
def _(b: Any, node: Node, x_bar: Value) -> Any:
    """The cotangent of a piece is the slice of x_bar at its place."""
    bars: list[Any] = [NO_GRADIENT]
    for _, *where in _groups(node.inputs[1:], 5):
        bars += [b.Slice(x_bar, *where), *[NO_GRADIENT] * 4]
    return bars


@slice_grad.combine
def _(b: Any, nodes: Sequence[Node]) -> Value:
    """One node with the pieces of all."""
    return b.add("SliceGrad", [nodes[0].input(0), *(v for n in nodes for v in n.inputs[1:])])  # type: ignore[no-any-return]


# ---- GatherGrad ---------------------------------------------------------------------------------------------------------


@op("GatherGrad", since=18, own=True, traits=(Trait.LINEAR,))
def gather_grad(shape: Array, *pieces: Array, axis: int = 0, out: Array | None = None) -> Array:
    """Add pieces to zeros of ``shape``, each at indices along ``axis``: (y_bar, indices) two by two."""
    total = _zeros(shape, pieces[0], out)
    at = axis % total.ndim
    rows = np.moveaxis(total, at, 0)
    for y_bar, indices in _groups(pieces, 2):
        moved = np.moveaxis(y_bar, range(at, at + indices.ndim), range(indices.ndim))
        _add_rows(rows, indices.reshape(-1), moved.reshape(indices.size, *rows.shape[1:]))
    return total


def _add_rows(rows: Array, indices: Array, updates: Array) -> None:
    """Add ``updates`` to ``rows`` at ``indices``, of which some may be equal."""
    if indices.size == 1:
        rows[int(indices[0])] += updates[0]
        return
    if not updates.size:
        return
    indices = np.where(indices < 0, indices + len(rows), indices)
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    if len(first) == len(indices):
        rows[indices] += updates
    else:
        rows[ordered[first]] += np.add.reduceat(updates[order], first, axis=0, dtype=updates.dtype)


@gather_grad.types
def _(node: Node) -> Type:
    return _shaped(node, 1, 0)


@gather_grad.adjoint
def _(b: Any, node: Node, x_bar: Value) -> Any:
    """The cotangent of a piece is what x_bar holds at its indices."""
    bars: list[Any] = [NO_GRADIENT]
    for _, indices in _groups(node.inputs[1:], 2):
        bars += [b.Gather(x_bar, indices, axis=attr(node, "axis")), NO_GRADIENT]
    return bars


@gather_grad.combine
def _(b: Any, nodes: Sequence[Node]) -> Value:
    """One node for each axis, with the pieces of all."""
    by_axis: dict[int, list[Node]] = {}
    for node in nodes:
        axis, rank = attr(node, "axis"), node.output().type.rank
        by_axis.setdefault(axis if rank is None else axis % rank, []).append(node)
    parts = [b.add("GatherGrad", [group[0].input(0), *(v for n in group for v in n.inputs[1:])], {"axis": axis})
             for axis, group in by_axis.items()]
    return parts[0] if len(parts) == 1 else b.Sum(*parts)  # type: ignore[no-any-return]


# ---- ProdOfOthers -------------------------------------------------------------------------------------------------------


@op("ProdOfOthers", since=18, own=True)
def prod_of_others(x: Array, axes: Array | None = None, *, noop_with_empty_axes: int = 0) -> Array:
    """Return, for every element, the product of the others along ``axes`` (all axes if absent)."""
    chosen = reduced_axes(axes, noop_with_empty_axes)
    last = list(range(x.ndim)) if chosen is None else [a % x.ndim for a in chosen]
    order = [*(i for i in range(x.ndim) if i not in last), *last]
    moved = x.transpose(order)
    rows = moved.reshape((*moved.shape[: x.ndim - len(last)], int(np.prod(moved.shape[x.ndim - len(last):], dtype=int))))
    before, after = np.ones_like(rows), np.ones_like(rows)
    np.cumprod(rows[..., :-1], axis=-1, out=before[..., 1:])
    np.cumprod(rows[..., :0:-1], axis=-1, out=after[..., -2::-1] if rows.shape[-1] > 1 else after[..., :0])
    return np.multiply(before, after, out=before).reshape(moved.shape).transpose(np.argsort(order))


@prod_of_others.types
def _(node: Node) -> Type:
    return node.input(0).type


@prod_of_others.adjoint
def _(b: Any, node: Node, y_bar: Value) -> Any:
    """y_i = prod of x_j, j != i: x_bar_k = sum over i != k of y_bar_i times the product of x_j, j != i, j != k.

    Takes n x n numbers for n factors: only second and higher derivatives of products meet it.
    """
    x, axes = node.input(0), node.inputs[1] if len(node.inputs) > 1 else None
    known = known_ints(axes) if axes is not None else []
    if known is None or x.type.rank is None:
        return refuse("the axes of a product are known only at run time: it has a first derivative only")
    if not known and attr(node, "noop_with_empty_axes"):
        return b.zeros_like(x), NO_GRADIENT
    rank = x.type.rank
    last = normal_axes(known, rank) if known else list(range(rank))
    order = [*(i for i in range(rank) if i not in last), *last]
    moved = b.Transpose(x, perm=order)
    outer = extents(b, moved, 0, rank - len(last))
    inner = b.Reshape(b.ReduceProd(joined(b, extents(b, moved, rank - len(last), rank))), b.ints([1]))
    rows = b.Reshape(moved, joined(b, [*outer, inner]), allowzero=1)
    bars = b.Reshape(b.Transpose(y_bar, perm=order), b.shape(rows))
    ramp = b.Range(np.int64(0), b.Squeeze(b.extent(rows, -1), [0]), np.int64(1))
    same = b.Equal(b.Unsqueeze(ramp, [1]), ramp)
    without_k = b.Where(same, b.scalar(1, x.type.dtype), b.Unsqueeze(rows, [-2]))
    others = b.ProdOfOthers(without_k, b.ints([-1]))
    terms = b.Where(same, b.scalar(0, x.type.dtype), b.Mul(others, b.Unsqueeze(bars, [-2])))
    x_bar = reshape_to(b, b.ReduceSum(terms, [-1], keepdims=0), moved)
    return b.Transpose(x_bar, perm=[order.index(i) for i in range(rank)]), NO_GRADIENT


@prod_of_others.expansion
def _(b: Any, node: Node) -> Value:
    """The product over x where x != 0; with one zero only at the zero itself, with more nowhere."""
    x, *axes = node.inputs
    one, zero = b.scalar(1, x.type.dtype), b.scalar(0, x.type.dtype)  # type: ignore[union-attr]
    noop = attr(node, "noop_with_empty_axes")
    at_zero = b.Equal(x, zero)
    nonzero = b.Where(at_zero, one, x)
    product = b.add("ReduceProd", [nonzero, *axes], {"noop_with_empty_axes": noop})
    zeros = b.add("ReduceSum", [b.Where(at_zero, one, zero), *axes], {"noop_with_empty_axes": noop})
    alone = b.Where(b.And(at_zero, b.Equal(zeros, one)), product, zero)
    return b.Where(b.Equal(zeros, zero), b.Div(product, nonzero), alone)  # type: ignore[no-any-return]
