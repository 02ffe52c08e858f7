"""Operators whose results are as large as the data say: NonZero, Compress, Unique."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, looped, ragged
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import normal_axis, reshape_to
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op, refuse
from flowgrad.ir.types import BOOL, FLOAT32, INT64, UNKNOWN, Type


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


@compress.batch
def _(b: BatchBuilder, node: Node, data: Value, condition: Value) -> Any:
    """The same places of every example; places of their own would be more of one than of another."""
    rank, axis = node.input(0).type.rank, attr(node, "axis")
    if b.holds(condition):
        return ragged(b, node)
    if rank is None:
        return looped(b, node, data, condition)
    if axis is not None:
        return again(b, node, [data, condition], axis=normal_axis(axis, rank) + 1)
    flat = b.Reshape(data, b.ints([0, -1])) if rank != 1 else data
    return again(b, node, [flat, condition], axis=1)


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
