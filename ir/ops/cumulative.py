"""Cumulative sums and products along an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import along_axes_input
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.ops.operands import END, extents, joined, known_ints, normal_axis, reshape_to
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op
from flowgrad.ir.types import INT64, Type


def _accumulate(
    ufunc: np.ufunc, first: int, x: Array, axis: Array, exclusive: int, reverse: int, out: Array | None
) -> Array:
    """Return the results of ``ufunc`` along an axis so far; ``exclusive`` leaves out the own element, from ``first`` on."""
    at = normal_axis(int(np.asarray(axis).reshape(-1)[0]), x.ndim)
    result = np.empty_like(x) if out is None else out
    given, made = (np.moveaxis(a, at, 0)[:: -1 if reverse else 1] for a in (x, result))
    if exclusive:
        made[:1] = first
        given, made = given[:-1], made[1:]
    ufunc.accumulate(given, 0, x.dtype, made)
    return result


def _accumulated_type(node: Node) -> Type:
    """The type of the first input, which has the axis."""
    x, axis = node.input(0).type, known_ints(node.input(1))
    if axis is not None and x.rank is not None:
        normal_axis(axis[0], x.rank)
    return x


@op("CumSum", since=14, outputs=("y",), traits=(Trait.LINEAR,), extents=("axis",))
def cum_sum(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0, out: Array | None = None) -> Array:
    return _accumulate(np.add, 0, x, axis, exclusive, reverse, out)


@cum_sum.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = the sums of y_bar from the other end."""
    reverse, exclusive = attr(node, "reverse"), attr(node, "exclusive")
    return b.CumSum(y_bar, node.input(1), exclusive=exclusive, reverse=1 - int(reverse)), NO_GRADIENT


@op("CumProd", since=26, outputs=("y",), extents=("axis",))
def cum_prod(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0, out: Array | None = None) -> Array:
    return _accumulate(np.multiply, 1, x, axis, exclusive, reverse, out)


@cum_prod.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar_k = (the product of the x before k) * s_k, where s_k = y_bar_k + x_(k+1) s_(k+1) comes from behind.

    With ``exclusive``, s_k = y_bar_(k+1) + x_(k+1) s_(k+1), where the last x is in no product. Nothing is divided, so any
    x may be zero; no step multiplies by a zero that stands for nothing, so one may be infinite.
    """
    whole, exclusive, reverse = node.input(0), bool(attr(node, "exclusive")), bool(attr(node, "reverse"))
    (x, y_bar), axis = _laid_out(b, node, whole, y_bar)
    before = b.CumProd(x, np.int64(axis), exclusive=1, reverse=int(reverse))
    rows = [_next(b, x, axis, reverse, but_last=exclusive), _next(b, y_bar, axis, reverse) if exclusive else y_bar]
    s = _scan(b, 0, rows, axis, not reverse, _from_behind)
    return b.cast_like(reshape_to(b, b.Mul(before, s), whole), whole), NO_GRADIENT


@cum_prod.expansion
def _(b: Builder, node: Node) -> Value:
    """One Scan, for runtimes that do not know opset 26."""
    x = node.input(0)
    rows, axis = _laid_out(b, node, x)
    step = _product_before if attr(node, "exclusive") else _product
    return b.cast_like(reshape_to(b, _scan(b, 1, rows, axis, bool(attr(node, "reverse")), step), x), x)


def _from_behind(b: Builder, later: Value, x: Value, y_bar: Value) -> tuple[Value, Value]:
    s = b.Add(y_bar, b.Mul(x, later))
    return s, b.Identity(s)


def _product(b: Builder, before: Value, x: Value) -> tuple[Value, Value]:
    product = b.Mul(before, x)
    return product, b.Identity(product)


def _product_before(b: Builder, before: Value, x: Value) -> tuple[Value, Value]:
    return b.Mul(before, x), b.Identity(before)


def _laid_out(b: Builder, node: Node, *values: Value) -> tuple[list[Value], int]:
    """Return values of the type of x in the dtype that kernels compute in, with the axis of ``node`` at a known place."""
    x, known = node.input(0), known_ints(node.input(1))
    wide = [b.cast(v, x.type.dtype.wide) for v in values]
    if known is not None and x.type.rank is not None:
        return wide, normal_axis(known[0], x.type.rank)
    shape, at = b.shape(x), b.Reshape(b.cast(node.input(1), INT64), [1])
    outer = b.ReduceProd(b.Slice(shape, [0], at, [0]), keepdims=1)
    inner = b.ReduceProd(b.Slice(b.Slice(shape, at, [END], [0]), [1], [END], [0]), keepdims=1)
    view = b.Concat(outer, b.Gather(shape, at), inner, axis=0)
    return [b.Reshape(v, view, allowzero=1) for v in wide], 1


def _next(b: Builder, v: Value, axis: int, reverse: bool, *, but_last: bool = False) -> Value:
    """Return what stands one place further along ``axis``, and 0 where that is nothing (or the last, which is left out)."""
    left_out = int(but_last)
    taken = (left_out, -1) if reverse else (1, -1 if but_last else END)
    place = (1 + left_out, END) if reverse else (0, -1 - left_out)
    source, target = ([b.ints([n]) for n in (*ends, axis, 1)] for ends in (taken, place))
    return b.SliceGrad(b.shape(v), b.Slice(v, *source), *target)


def _scan(b: Builder, first: int, rows: Sequence[Value], axis: int, backward: bool,
          step: Callable[..., tuple[Value, Value]]) -> Value:
    """Return the stacked results of ``step(b, state, *row) -> (state, result)`` along ``axis``; states begin as ``first``."""
    x, body = rows[0], Graph("step")
    body._next_dim = b.graph._next_dim
    row = x.type.with_shape((*x.shape[:axis], *x.shape[axis + 1 :]))
    formals = [body.add_input(name, row) for name in ("state", "x", "y_bar")[: 1 + len(rows)]]
    for name, value in zip(("next", "result"), step(Builder(body, prefix="step"), *formals), strict=True):
        body.add_output(value, name)
    shape = joined(b, [*extents(b, x, 0, axis), *extents(b, x, axis + 1, x.type.rank or 0)])
    state = b.Expand(b.scalar(first, x.type.dtype), shape)
    attributes: dict[str, Any] = {
        "num_scan_inputs": len(rows), "scan_input_axes": [axis] * len(rows), "scan_output_axes": [axis],
        "scan_input_directions": [int(backward)] * len(rows), "scan_output_directions": [int(backward)],
    }
    return b.add_several("Scan", [state, *rows], attributes, outputs=2, subgraphs={"body": body})[1]


for _definition in (cum_sum, cum_prod):
    _definition.types(_accumulated_type)
    _definition.batch(along_axes_input(1))
