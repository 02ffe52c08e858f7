"""Reductions along axes: axes are constants, known only at run time, or absent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, BatchRule, again, along_axis, in_rows, looped, shifted_axes
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import (
    divided,
    expand_to,
    into,
    known_dims,
    known_ints,
    known_length,
    normal_axes,
    normal_axis,
    unknown_shape,
)
from flowgrad.ir.ops.registry import NO_GRADIENT, Kernel, OpDef, Trait, attr, op
from flowgrad.ir.support import summed
from flowgrad.ir.types import INT64, UNKNOWN, Type

Axes = tuple[int, ...] | None


def reduced_axes(axes: Array | None, noop_with_empty_axes: int) -> Axes:
    """Return the ``axis`` argument of a NumPy reduction: None for all axes."""
    given = () if axes is None else tuple(int(a) for a in np.asarray(axes).reshape(-1).tolist())
    return given if given or noop_with_empty_axes else None


def reduced_type(node: Node) -> Type:
    """The shape of the first input with the axes of the second removed, or 1 with ``keepdims``."""
    x, axes = node.input(0).type, node.optional(1)
    keep, noop = attr(node, "keepdims"), attr(node, "noop_with_empty_axes")
    if x.shape is None:
        return x if keep or noop or axes is not None else x.with_shape(())
    rank = len(x.shape)
    known = [] if axes is None else known_ints(axes)
    if known is not None:
        chosen = set(normal_axes(known, rank) if known or noop else range(rank))
        kept = [1 if i in chosen else d for i, d in enumerate(x.shape) if keep or i not in chosen]
        return x.with_shape(kept)
    if keep:
        return x.with_shape(unknown_shape(rank))
    count = known_length(axes) if axes is not None else None
    if count is None:
        return x.with_shape(None)
    return x.with_shape((UNKNOWN,) * (rank - count if count or noop else 0))


def restored(b: Builder, node: Node, value: Value) -> Value:
    """Return ``value``, of the shape of the output, with the reduced axes put back as extents of 1."""
    axes = node.optional(1)
    if attr(node, "keepdims") or axes is None or known_ints(axes) == []:
        return value  # without axes all or none are reduced: a scalar broadcasts
    return b.Unsqueeze(value, axes)


def _like_node(b: Builder, node: Node, value: Value) -> Value:
    """Return the sums of ``value`` over the axes that ``node`` reduces, in the shape of its output."""
    return b.add("ReduceSum", [value, *node.inputs[1:]], dict(node.attributes))


def batch_reduction(identity: bool = False) -> BatchRule:
    """Return the batching rule of a reduction; ``identity`` says that of one element it gives that element."""

    def rule(b: BatchBuilder, node: Node, data: Value, axes: Value | None = None) -> Any:
        rank, listed = node.input(0).type.rank, [] if axes is None else known_ints(axes)
        noop = attr(node, "noop_with_empty_axes")
        if rank is None or b.holds(axes) or (listed is None and not noop and not (axes and known_length(axes))):
            return looped(b, node, data, axes)
        if listed is None and axes is not None:
            return again(b, node, [data, shifted_axes(b, axes, rank)])
        chosen = normal_axes(listed or [], rank) or ([] if noop else list(range(rank)))
        if not chosen:
            return again(b, node, [data], noop_with_empty_axes=1)
        rest = [a for a in chosen if a]
        if rest == chosen and (made := in_rows(b, node, [data, b.ints(chosen)])) is not None:
            return made
        if data in b.rows and data.shape[1] == 1 and not attr(node, "keepdims") and (rest or identity):
            return again(b, node, [b.rows[data], b.ints(rest)]) if rest else b.rows[data]
        return again(b, node, [data, b.ints([1 + a for a in chosen])])

    return rule


Weights = Callable[[Any, Node], Value]


def differentiate_by_weights(definition: OpDef, weights: Weights) -> None:
    """Register both derivatives of a reduction: ``weights(b, node)`` is dy/dx in the shape of x (or broadcasts to it).

    x_bar = weights * y_bar and y_dot = sum(weights * x_dot).
    """

    def adjoint(b: Builder, node: Node, y_bar: Value) -> Any:
        return b.Mul(restored(b, node, y_bar), weights(b, node)), NO_GRADIENT

    def tangent(b: Builder, node: Node, x_dot: Value | None, axes_dot: Any = None) -> Any:
        return None if x_dot is None else _like_node(b, node, b.Mul(x_dot, weights(b, node)))

    definition.adjoint(adjoint).tangent(tangent)


def specialise_by(ufunc: np.ufunc) -> Callable[[Node], Kernel | None]:
    """Return the rule ``specialise`` of a reduction that is one ufunc: axes and flags are decided once."""

    def rule(node: Node) -> Kernel | None:
        data, inputs = node.input(0).type, len(node.inputs)
        if not data.dtype.is_float or data.size == 0:
            return None
        axes: tuple[int, ...] = ()
        if inputs > 1 and node.inputs[1] is not None:
            given = node.inputs[1].constant
            if given is None:
                return None
            axes = tuple(sorted(int(a) % (data.rank or 1) for a in given.reshape(-1).tolist()))
        if not axes and attr(node, "noop_with_empty_axes"):
            return None
        if all(data.static_shape[a] == 1 for a in axes or range(data.rank or 0)):
            return _copy_into(node.output().type.static_shape, inputs)
        reduce: Any = ufunc.reduce
        axis, keep = axes or None, bool(attr(node, "keepdims"))
        if inputs > 1:
            return lambda x, _, out: reduce(x, axis, None, out, keep)
        return lambda x, out: reduce(x, axis, None, out, keep)

    return rule


def _copy_into(shape: tuple[int, ...], inputs: int) -> Kernel:
    """Reducing axes of extent 1 copies."""
    if inputs > 1:
        return lambda x, _, out: np.copyto(out, x.reshape(shape))
    return lambda x, out: np.copyto(out, x.reshape(shape))


@op("ReduceSum", since=13, outputs=("reduced",), traits=(Trait.LINEAR,), extents=("axes",))
def reduce_sum(
    data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0,
    out: Array | None = None,
) -> Array:
    chosen = reduced_axes(axes, noop_with_empty_axes)
    return np.asarray(np.sum(data, axis=chosen, keepdims=bool(keepdims), dtype=data.dtype, out=out))


reduce_sum.types(reduced_type)
reduce_sum.specialise(specialise_by(np.add))


@reduce_sum.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar, broadcast along the reduced axes."""
    return expand_to(b, restored(b, node, y_bar), node.input(0)), NO_GRADIENT


def count_of(b: Builder, node: Node) -> Value:
    """Return how many elements each output element is made of, in the type that is computed in; at least 0."""
    x, y = node.input(0), node.output()
    if x.type.is_static and y.type.is_static:
        total, groups = int(np.prod(x.type.static_shape)), int(np.prod(y.type.static_shape))
        return b.scalar(total // max(groups, 1), x.type.dtype.wide)
    count = b.Div(b.Size(x), b.Max(b.Size(y), 1))
    return b.cast(count, x.type.dtype.wide)


@op("ReduceMean", since=18, outputs=("reduced",), traits=(Trait.LINEAR,), extents=("axes",))
def reduce_mean(
    data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0,
    out: Array | None = None,
) -> Array:
    chosen = reduced_axes(axes, noop_with_empty_axes)
    total = np.asarray(np.sum(data, axis=chosen, keepdims=bool(keepdims), dtype=data.dtype, out=out))
    count = data.dtype.type(data.size // total.size if total.size else 1)
    if data.dtype.kind in "iu":  # towards zero, as a cast of the quotient would
        return np.asarray(np.trunc(total / count), data.dtype) if count else total
    return np.asarray(np.divide(total, count, out=out))


reduce_mean.types(reduced_type)


@reduce_mean.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar / count, broadcast along the reduced axes."""
    share = divided(b, y_bar, count_of(b, node))
    return expand_to(b, restored(b, node, share), node.input(0)), NO_GRADIENT


for _sum in (reduce_sum, reduce_mean):
    _sum.support(summed)
    _sum.batch(batch_reduction(identity=True))


# ---- extremes -----------------------------------------------------------------------------------------------------------


def _lowest(dtype: np.dtype[Any]) -> Any:
    return False if dtype.kind == "b" else -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def _highest(dtype: np.dtype[Any]) -> Any:
    return True if dtype.kind == "b" else np.inf if dtype.kind == "f" else np.iinfo(dtype).max


@op("ReduceMax", since=18, outputs=("reduced",), extents=("axes",))
def reduce_max(
    data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0,
    out: Array | None = None,
) -> Array:
    chosen = reduced_axes(axes, noop_with_empty_axes)
    return np.asarray(np.max(data, axis=chosen, keepdims=bool(keepdims), initial=_lowest(data.dtype), out=out))


@op("ReduceMin", since=18, outputs=("reduced",), extents=("axes",))
def reduce_min(
    data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0,
    out: Array | None = None,
) -> Array:
    chosen = reduced_axes(axes, noop_with_empty_axes)
    return np.asarray(np.min(data, axis=chosen, keepdims=bool(keepdims), initial=_highest(data.dtype), out=out))


def _extreme_adjoint(b: Builder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar / ties where x = y, else 0: equal extremes share the cotangent equally."""
    x, y = node.input(0), restored(b, node, node.output())
    mask = b.Equal(x, y)
    share = divided(b, y_bar, _ties(b, node, mask))
    return b.Where(mask, restored(b, node, share), b.scalar(0, x.type.dtype)), NO_GRADIENT


def _ties(b: Builder, node: Node, mask: Value) -> Value:
    """Return how many elements the mask holds for, in the type that is computed in; at least 1."""
    count = _like_node(b, node, b.cast(mask, node.output().type.dtype.wide))
    return b.Max(count, 1.0)


def _extreme_tangent(b: Builder, node: Node, x_dot: Value | None, axes_dot: Any = None) -> Any:
    """y_dot = the mean of x_dot over the elements equal to y."""
    if x_dot is None:
        return None
    mask = b.Equal(node.input(0), restored(b, node, node.output()))
    chosen = b.cast(b.Where(mask, x_dot, b.scalar(0, x_dot.type.dtype)), x_dot.type.dtype.wide)
    return b.cast_like(b.Div(_like_node(b, node, chosen), _ties(b, node, mask)), x_dot)


def _extreme_kinks(b: Builder, node: Node) -> Value:
    """Where more than one element is the largest, the smallest."""
    mask = b.Equal(node.input(0), restored(b, node, node.output()))
    return b.Greater(_ties(b, node, mask), 1.0)


reduce_max.specialise(specialise_by(np.maximum))
reduce_min.specialise(specialise_by(np.minimum))
for _extreme in (reduce_max, reduce_min):
    _extreme.types(reduced_type)
    _extreme.batch(batch_reduction(identity=True))
    _extreme.kinks(_extreme_kinks)
    _extreme.adjoint(_extreme_adjoint)
    _extreme.tangent(_extreme_tangent)


# ---- norms and logarithms of sums ---------------------------------------------------------------------------------------


@op("ReduceL1", since=18, outputs=("reduced",), extents=("axes",))
def reduce_l1(
    data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0,
    out: Array | None = None,
) -> Array:
    total = reduce_sum.kernel(np.abs(data), axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes, out=out)
    return np.asarray(total)


def _l1_weights(b: Builder, node: Node) -> Value:
    """Return sign(x), 0 at 0."""
    return b.Sign(node.input(0))


@reduce_l1.kinks
def _(b: Builder, node: Node) -> Value:
    """At elements that are 0."""
    return b.Equal(node.input(0), 0.0)


def _as_reals(reduce: OpDef, data: Array, axes: Array | None, out: Array | None, **options: Any) -> Array:
    """Return a reduction of integers that is none, its fraction cut off; what has no number (log 0) is undefined."""
    real = reduce.kernel(data.astype(np.float64), axes, **options)
    with np.errstate(invalid="ignore"):
        return into(np.asarray(real).astype(data.dtype), out)


@op("ReduceL2", since=18, outputs=("reduced",), extents=("axes",))
def reduce_l2(
    data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0,
    out: Array | None = None,
) -> Array:
    options = {"keepdims": keepdims, "noop_with_empty_axes": noop_with_empty_axes}
    if data.dtype.kind in "iu":
        return _as_reals(reduce_l2, data, axes, out, **options)
    squares = reduce_sum_square.kernel(data, axes, **options, out=out)
    if data.dtype.kind != "f" or _in_range(squares):
        return np.asarray(np.sqrt(squares, out=out)).astype(data.dtype, copy=False)
    unit = np.abs(data).max(reduced_axes(axes, noop_with_empty_axes), keepdims=True, initial=0)
    unit = np.where((unit > 0) & (unit < np.inf), unit, data.dtype.type(1))
    root = np.sqrt(reduce_sum_square.kernel(data / unit, axes, **options))
    return np.asarray(np.multiply(root, unit.reshape(root.shape), out=out))


def _in_range(squares: Array) -> bool:
    """Return whether no square that counts has left the range of its type on the way to these sums."""
    info = np.finfo(squares.dtype)
    return bool(((squares > info.tiny / info.eps) & (squares < np.inf)).all())


def _l2_weights(b: Builder, node: Node) -> Value:
    """Return x / y, and 0 / infinity where y = 0: there derivatives of every order are 0, as those of |x|."""
    y = node.output()
    safe = b.Where(b.Equal(y, 0.0), b.scalar(float("inf"), y.type.dtype), y)
    return b.Div(node.input(0), restored(b, node, safe))


@reduce_l2.kinks
def _(b: Builder, node: Node) -> Value:
    """At zero vectors."""
    return b.Equal(node.output(), 0.0)


@op("ReduceSumSquare", since=18, outputs=("reduced",), extents=("axes",))
def reduce_sum_square(
    data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0,
    out: Array | None = None,
) -> Array:
    total = reduce_sum.kernel(np.square(data), axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes, out=out)
    return np.asarray(total)


def _square_weights(b: Builder, node: Node) -> Value:
    """Return 2 x."""
    return b.Mul(node.input(0), 2.0)


@op("ReduceLogSum", since=18, outputs=("reduced",), extents=("axes",))
def reduce_log_sum(
    data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0,
    out: Array | None = None,
) -> Array:
    options = {"keepdims": keepdims, "noop_with_empty_axes": noop_with_empty_axes}
    if data.dtype.kind in "iu":
        return _as_reals(reduce_log_sum, data, axes, out, **options)
    total = reduce_sum.kernel(data, axes, **options, out=out)
    return np.asarray(np.log(total, out=out)).astype(data.dtype, copy=False)


@reduce_log_sum.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar / sum(x)."""
    share = divided(b, y_bar, _wide_sum(b, node, node.input(0)))
    return expand_to(b, restored(b, node, share), node.input(0)), NO_GRADIENT


@reduce_log_sum.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, axes_dot: Any = None) -> Any:
    """y_dot = sum(x_dot) / sum(x)."""
    if x_dot is None:
        return None
    return b.cast_like(b.Div(_wide_sum(b, node, x_dot), _wide_sum(b, node, node.input(0))), x_dot)


def _wide_sum(b: Builder, node: Node, value: Value) -> Value:
    """Return the sums of ``value`` in the type that is computed in: they may overflow where their logarithm does not."""
    return _like_node(b, node, b.cast(value, value.type.dtype.wide))


@op("ReduceLogSumExp", since=18, outputs=("reduced",), extents=("axes",))
def reduce_log_sum_exp(
    data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0,
    out: Array | None = None,
) -> Array:
    if data.dtype.kind in "iu":
        return _as_reals(reduce_log_sum_exp, data, axes, out, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)
    chosen = reduced_axes(axes, noop_with_empty_axes)
    top = np.max(data, axis=chosen, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0).astype(data.dtype, copy=False)
    total = np.log(np.sum(np.exp(data - top), axis=chosen, keepdims=True, dtype=data.dtype)) + top
    result = total if keepdims else np.squeeze(total, axis=chosen if chosen is not None else tuple(range(data.ndim)))
    return into(np.asarray(result), out)


def _exp_weights(b: Builder, node: Node) -> Value:
    """Return exp(x - y), and 0 where all x are -inf.

    y is rounded to its dtype, which makes exp(x - y) wrong by any factor where y is large: the shift is the greatest x,
    which is exact. The weights do not depend on the shift, so no derivative passes through it.
    """
    dtype, options = node.input(0).type.dtype.wide, {**node.attributes, "keepdims": 1}
    x = b.cast(node.input(0), dtype)
    top = b.add("ReduceMax", [x, *node.inputs[1:]], options)
    shift = b.StopGradient(b.Where(b.Equal(top, float("-inf")), b.scalar(0, dtype), top))
    shares = b.Exp(b.Sub(x, shift))
    total = b.add("ReduceSum", [shares, *node.inputs[1:]], options)
    weights = b.Div(shares, b.Where(b.Equal(total, 0.0), b.scalar(1, dtype), total))
    return b.cast_like(weights, node.input(0))


# ---- products -----------------------------------------------------------------------------------------------------------


@op("ReduceProd", since=18, outputs=("reduced",), extents=("axes",))
def reduce_prod(
    data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0,
    out: Array | None = None,
) -> Array:
    chosen = reduced_axes(axes, noop_with_empty_axes)
    return np.asarray(np.prod(data, axis=chosen, keepdims=bool(keepdims), dtype=data.dtype, out=out))


def _prod_weights(b: Builder, node: Node) -> Value:
    """Return the product of the other elements, which needs no division and so allows zeros."""
    noop = attr(node, "noop_with_empty_axes")
    return b.add("ProdOfOthers", node.inputs, {"noop_with_empty_axes": noop})


for _reduction in (reduce_l1, reduce_l2, reduce_sum_square, reduce_log_sum, reduce_log_sum_exp, reduce_prod):
    _reduction.types(reduced_type)
    _reduction.batch(batch_reduction())
differentiate_by_weights(reduce_l1, _l1_weights)
differentiate_by_weights(reduce_l2, _l2_weights)
differentiate_by_weights(reduce_sum_square, _square_weights)
differentiate_by_weights(reduce_log_sum_exp, _exp_weights)
differentiate_by_weights(reduce_prod, _prod_weights)


# ---- indices of extremes ------------------------------------------------------------------------------------------------


def _arg_extreme(find: Callable[..., Any], data: Array, axis: int, keepdims: int, last: int) -> Array:
    if not last:
        return np.asarray(find(data, axis=axis, keepdims=bool(keepdims)), np.int64)
    flipped = np.asarray(find(np.flip(data, axis), axis=axis, keepdims=bool(keepdims)))
    return np.asarray(data.shape[axis] - 1 - flipped, np.int64)


@op("ArgMax", since=13, outputs=("reduced",), traits=(Trait.ZERO,))
def arg_max(data: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    return _arg_extreme(np.argmax, data, axis, keepdims, select_last_index)


@op("ArgMin", since=13, outputs=("reduced",), traits=(Trait.ZERO,))
def arg_min(data: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    return _arg_extreme(np.argmin, data, axis, keepdims, select_last_index)


def _arg_type(node: Node) -> Type:
    x = node.input(0).type
    if x.shape is None:
        return Type(INT64, None)
    at = normal_axis(attr(node, "axis"), len(x.shape))
    kept = (1,) if attr(node, "keepdims") else ()
    return Type(INT64, (*x.shape[:at], *kept, *x.shape[at + 1 :]))


for _arg in (arg_max, arg_min):
    _arg.types(_arg_type)
    _arg.batch(along_axis())


# ---- TopK ----------------------------------------------------------------------------------------------------------------


@op("TopK", since=11, outputs=("Values", "Indices"), extents=("K",))
def top_k(X: Array, K: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Array, Array]:
    """Return the K largest (smallest) elements, in order; of equal ones the first come first."""
    count = int(np.asarray(K).reshape(-1)[0])
    if not 0 <= count <= X.shape[axis]:
        raise ValueError(f"K is {count} for an extent of {X.shape[axis]}")
    if largest:  # a stable descending order: the stable ascending order of the reversed axis, reversed
        order = X.shape[axis] - 1 - np.flip(np.argsort(np.flip(X, axis), axis, kind="stable"), axis)
    else:
        order = np.argsort(X, axis, kind="stable")
    indices = np.take(order, range(count), axis)
    return np.take_along_axis(X, indices, axis), indices.astype(np.int64, copy=False)


@top_k.types
def _(node: Node) -> list[Type]:
    x, count = node.input(0).type, known_dims(node.input(1))
    if x.shape is None:
        return [x, x.with_dtype(INT64)]
    at = normal_axis(attr(node, "axis"), len(x.shape))
    found = x.with_shape((*x.shape[:at], UNKNOWN if count is None else count[0], *x.shape[at + 1 :]))
    return [found, found.with_dtype(INT64)]


@top_k.adjoint
def _(b: DerivativeBuilder, node: Node, values_bar: Value, indices_bar: Any = None) -> Any:
    """x_bar = zeros with values_bar at the chosen places."""
    x, indices = node.input(0), b.residual(node, "Indices")
    axis = attr(node, "axis")
    return b.ScatterElements(b.zero(x), indices, values_bar, axis=axis), NO_GRADIENT


@top_k.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, k_dot: Any = None) -> Any:
    """values_dot = x_dot at the chosen places."""
    if x_dot is None:
        return None, None
    return b.GatherElements(x_dot, b.residual(node, "Indices"), axis=attr(node, "axis")), None


top_k.batch(along_axis(slots=[0]))
