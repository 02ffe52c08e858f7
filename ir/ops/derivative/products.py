"""ProdOfOthers: for every factor of a product, the product of the others, without a division."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, looped
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import (
    extents,
    inverse_of,
    joined,
    known_ints,
    moved_last,
    normal_axes,
    permuted,
    ramp,
    reshape_to,
    unknown_ranks,
)
from flowgrad.ir.ops.reduction import reduced_axes
from flowgrad.ir.ops.registry import FLOWGRAD, NO_GRADIENT, attr, op, refuse
from flowgrad.ir.types import Type, dim_product


@op("ProdOfOthers", since=18, domain=FLOWGRAD)
def prod_of_others(x: Array, axes: Array | None = None, *, noop_with_empty_axes: int = 0) -> Array:
    """Return, for every element, the product of the others along ``axes`` (all axes if absent)."""
    chosen = reduced_axes(axes, noop_with_empty_axes)
    last = list(range(x.ndim)) if chosen is None else [a % x.ndim for a in chosen]
    order = moved_last(last, x.ndim)
    moved = x.transpose(order)
    rows = moved.reshape((*moved.shape[: x.ndim - len(last)], int(np.prod(moved.shape[x.ndim - len(last):], dtype=int))))
    before, after = np.ones_like(rows), np.ones_like(rows)
    np.cumprod(rows[..., :-1], axis=-1, out=before[..., 1:])
    np.cumprod(rows[..., :0:-1], axis=-1, out=after[..., -2::-1] if rows.shape[-1] > 1 else after[..., :0])
    return np.multiply(before, after, out=before).reshape(moved.shape).transpose(inverse_of(order))


@prod_of_others.types
def _(node: Node) -> Type:
    return node.input(0).type


@prod_of_others.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """y_i = prod of x_j, j != i: x_bar_k = sum over i != k of y_bar_i times the product of x_j, j != i, j != k.

    Takes n x n numbers for n factors: only second and higher derivatives of products meet it.
    """
    x, axes = node.input(0), node.optional(1)
    known = known_ints(axes) if axes is not None else []
    if x.type.rank is None:
        return refuse(unknown_ranks(node))
    if known is None:
        return refuse("the axes of a product are known only at run time: it has a first derivative only")
    if not known and attr(node, "noop_with_empty_axes"):
        return b.zeros_like(x), NO_GRADIENT
    moved, rows, order = _factors(b, x, known)
    bars = b.Reshape(permuted(b, y_bar, order), b.shape(rows), allowzero=1)
    places = ramp(b, b.extent(rows, -1))
    same = b.Equal(b.Unsqueeze(places, [1]), places)
    without_k = b.Where(same, b.scalar(1, x.type.dtype), b.Unsqueeze(rows, [-2]))
    others = b.ProdOfOthers(without_k, b.ints([-1]))
    terms = b.Where(same, b.scalar(0, x.type.dtype), b.Mul(others, b.Unsqueeze(bars, [-2])))
    x_bar = reshape_to(b, b.ReduceSum(terms, [-1], keepdims=0), moved)
    return permuted(b, x_bar, inverse_of(order)), NO_GRADIENT


def _factors(b: Builder, x: Value, axes: Sequence[int]) -> tuple[Value, Value, list[int]]:
    """Return x with the axes of the factors (all, if ``axes`` is empty) behind the others, then as one, and the permutation."""
    rank = len(x.shape)
    last = normal_axes(axes, rank) if axes else list(range(rank))
    order = moved_last(last, rank)
    moved = permuted(b, x, order)
    outer, inner = extents(b, moved, 0, rank - len(last)), moved.shape[rank - len(last):]
    count = b.ints([dim_product(inner)]) if all(isinstance(d, int) for d in inner) else b.Reshape(
        b.ReduceProd(joined(b, extents(b, moved, rank - len(last), rank))), b.ints([1]))
    return moved, b.Reshape(moved, joined(b, [*outer, count]), allowzero=1), order


@prod_of_others.expansion
def _(b: Builder, node: Node) -> Value:
    """The product of the factors before times that of those behind, if it is known how many there are.

    So derivatives of it are right at zeros too: nothing is divided and nothing compared.
    """
    x, axes = node.input(0), node.optional(1)
    known = known_ints(axes) if axes is not None else []
    if x.type.rank is None or known is None or (not known and attr(node, "noop_with_empty_axes")):
        return _quotients(b, node)
    moved, rows, order = _factors(b, x, known)
    count = rows.shape[-1]
    if not isinstance(count, int):
        return _quotients(b, node)
    if not count:
        return x
    return permuted(b, reshape_to(b, b.Mul(_before(b, rows, count, 1), _before(b, rows, count, -1)), moved), inverse_of(order))


def _before(b: Builder, rows: Value, count: int, direction: int) -> Value:
    """Return the product of all factors before each (behind, for direction -1), in as many steps as ``count`` has bits."""

    def moved(v: Value, step: int) -> Value:
        start, end = (0, count - step) if direction > 0 else (step, count)
        pads = [0] * (2 * len(rows.shape))
        pads[len(rows.shape) - 1 if direction > 0 else -1] = step
        return b.Pad(b.Slice(v, [start], [end], [-1]), pads, b.scalar(1, rows.type.dtype))

    product, step = moved(rows, 1), 1
    while step < count:
        product, step = b.Mul(product, moved(product, step)), 2 * step
    return product


def _quotients(b: Builder, node: Node) -> Value:
    """The product over x where x != 0; with one zero only at the zero itself, with more nowhere.

    A derivative of this, taken after it was written to a file, is right where no factor is zero.
    """
    x, *axes = node.inputs
    one, zero = b.scalar(1, x.type.dtype), b.scalar(0, x.type.dtype)  # type: ignore[union-attr]
    noop = attr(node, "noop_with_empty_axes")
    at_zero = b.Equal(x, zero)
    nonzero = b.Where(at_zero, one, x)
    product = b.add("ReduceProd", [nonzero, *axes], {"noop_with_empty_axes": noop})
    zeros = b.add("ReduceSum", [b.Where(at_zero, one, zero), *axes], {"noop_with_empty_axes": noop})
    alone = b.Where(b.And(at_zero, b.Equal(zeros, one)), product, zero)
    return b.Where(b.Equal(zeros, zero), b.Div(product, nonzero), alone)


@prod_of_others.batch
def _(b: BatchBuilder, node: Node, x: Value, axes: Value | None = None) -> Any:
    """The same axes behind that of the examples."""
    rank, listed = node.input(0).type.rank, [] if axes is None else known_ints(axes)
    if rank is None or listed is None or b.holds(axes):
        return looped(b, node, x, axes)
    chosen = normal_axes(listed, rank) or ([] if attr(node, "noop_with_empty_axes") else list(range(rank)))
    return again(b, node, [x, b.ints([1 + a for a in chosen])], noop_with_empty_axes=1)
