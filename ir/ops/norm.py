"""Normalization: by statistics of the batch, of layers, of instances and of groups, by norms, and across channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops import plainnorm as plainnorm  # declares its operators
from flowgrad.ir.ops.operands import normal_axis
from flowgrad.ir.ops.registry import attr, op
from flowgrad.ir.ops.standardize import Standardized, cast, inverse_deviation, standardize, statistics, wide
from flowgrad.ir.types import DType, Type, dtype_of


def per_channel(b: Any, vector: Value, rank: int) -> Value:
    """Return a vector of channels as a tensor that broadcasts along axis 1."""
    return b.Unsqueeze(vector, list(range(1, rank - 1))) if rank > 2 else vector


def channel_axes(rank: int) -> list[int]:
    """Return all axes but that of the channels."""
    return [0, *range(2, rank)]


def _column(vector: Array, rank: int, dtype: np.dtype[Any]) -> Array:
    return vector.reshape(-1, *(1,) * (rank - 2)).astype(dtype, copy=False)


def _sum(b: Any, *terms: Value | None) -> Value | None:
    present = [t for t in terms if t is not None]
    if not present:
        return None
    total = present[0]
    for term in present[1:]:
        total = b.Add(total, term)
    return total


def _product(b: Any, x: Value | None, factor: Any) -> Value | None:
    return None if b.is_zero(x) else b.Mul(x, factor)


# ---- BatchNormalization -------------------------------------------------------------------------------------------------


@op("BatchNormalization", since=15, outputs=("Y", "running_mean", "running_var"), required_outputs=1,
    residuals=("saved_mean", "saved_inv_std"))
def batch_normalization(
    x: Array, scale: Array, b: Array, input_mean: Array, input_var: Array, *,
    epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0, count: int = 1, out: Array | None = None,
) -> Any:
    rank = max(x.ndim, 2)
    if not training_mode:
        factor = scale / np.sqrt(input_var + x.dtype.type(epsilon))
        y = np.multiply(x, _column(factor, rank, x.dtype), out=out)
        y += _column(b - input_mean * factor, rank, x.dtype)
        return y
    axes = tuple(channel_axes(rank))
    mean = np.mean(x, axis=axes, keepdims=True)
    y = np.subtract(x, mean, out=out)
    var = np.mean(np.square(y), axis=axes)
    inverse = 1 / np.sqrt(var + x.dtype.type(epsilon))
    y *= _column(scale * inverse, rank, x.dtype)
    y += _column(b, rank, x.dtype)
    if count < 2:
        return y
    mean = mean.reshape(-1)
    fresh = 1 - momentum
    return y, input_mean * momentum + mean * fresh, input_var * momentum + var * fresh, mean, inverse


@batch_normalization.types
def _(node: Node) -> list[Type | None]:
    x, mean, var = node.input(0), node.input(3), node.input(4)
    if not attr(node, "training_mode"):
        return [x.type, None, None, None, None]
    channels = mean.type.shape if x.type.shape is None else (x.shape[1],)
    saved = Type(wide(x.type.dtype), channels)
    return [x.type, mean.type.with_shape(channels), var.type.with_shape(channels), saved, saved]


def _batch_statistics(b: Any, node: Node) -> tuple[Value, Value]:
    x = node.input(0)
    return statistics(b, cast(b, x, wide(x.type.dtype)), channel_axes(len(x.shape)), attr(node, "epsilon"))


@batch_normalization.residual("saved_mean")
def _(b: Any, node: Node) -> Value:
    """The mean of every channel."""
    return b.Reshape(_batch_statistics(b, node)[0], [-1])  # type: ignore[no-any-return]


@batch_normalization.residual("saved_inv_std")
def _(b: Any, node: Node) -> Value:
    """One over the standard deviation of every channel."""
    return b.Reshape(_batch_statistics(b, node)[1], [-1])  # type: ignore[no-any-return]


@batch_normalization.expansion
def _(b: Any, node: Node) -> list[Value | None]:
    """y = x^ scale + b, with x^ from the given or from the data's own statistics."""
    x, scale, bias, old_mean, old_var = (node.input(i) for i in range(5))
    dtype, rank = wide(x.type.dtype), len(x.shape)
    if attr(node, "training_mode"):
        mean, r = _batch_statistics(b, node)
        hat = b.Mul(b.Sub(cast(b, x, dtype), mean), r)
    else:
        hat = _inference(b, node)[2]
    columns = [per_channel(b, cast(b, v, dtype), rank) for v in (scale, bias)]
    results: list[Value | None] = [cast(b, b.Add(b.Mul(hat, columns[0]), columns[1]), x.type.dtype)]
    if len(node.outputs) > 1:
        centred = b.Sub(cast(b, x, dtype), mean)
        var = b.ReduceMean(b.Mul(centred, centred), channel_axes(rank), keepdims=0)
        momentum = float(attr(node, "momentum"))
        for old, new in ((old_mean, b.Reshape(mean, [-1])), (old_var, var)):
            running = b.Add(b.Mul(cast(b, old, dtype), momentum), b.Mul(new, 1 - momentum))
            results.append(cast(b, running, old.type.dtype))
        results += [b.Reshape(mean, [-1]), b.Reshape(r, [-1])]
    return results


@batch_normalization.adjoint
def _(b: Any, node: Node, y_bar: Value, *rest: Value | None) -> Any:
    """With a = scale * r: x_bar = a y_bar, scale_bar = sum(y_bar x^), b_bar = sum(y_bar), and besides

    inference: mean_bar = -sum(y_bar) a, var_bar = -sum(y_bar x^) scale r^2 / 2;
    training: x_bar as in ``standardize``; running = momentum * old + (1 - momentum) * new, with var = r^-2 - epsilon.
    """
    bars = _batch_bars(b, node, y_bar, rest) if attr(node, "training_mode") else _inference_bars(b, node, y_bar)
    return [cast(b, bar, node.input(i).type.dtype) for i, bar in enumerate(bars)]


def _inference(b: Any, node: Node) -> tuple[Value, Value, Value]:
    """Return scale, r and x^ in the wide type, the first two as vectors."""
    x, scale, _, mean, var = (node.input(i) for i in range(5))
    dtype, rank = wide(x.type.dtype), len(x.shape)
    r = inverse_deviation(b, cast(b, var, dtype), attr(node, "epsilon"))
    centred = b.Sub(cast(b, x, dtype), per_channel(b, cast(b, mean, dtype), rank))
    return cast(b, scale, dtype), r, b.Mul(centred, per_channel(b, r, rank))


def _inference_bars(b: Any, node: Node, y_bar: Value) -> list[Value]:
    scale, r, hat = _inference(b, node)
    rank = len(node.input(0).shape)
    bar, factor = cast(b, y_bar, r.type.dtype), b.Mul(scale, r)
    total = b.ReduceSum(bar, channel_axes(rank), keepdims=0)
    paired = b.ReduceSum(b.Mul(bar, hat), channel_axes(rank), keepdims=0)
    var_bar = b.Mul(paired, b.Mul(b.Mul(factor, r), -0.5))
    return [b.Mul(bar, per_channel(b, factor, rank)), paired, total, b.Neg(b.Mul(total, factor)), var_bar]


def _batch_parts(b: Any, node: Node) -> Standardized:
    x, rank = node.input(0), len(node.input(0).shape)
    mean, r = (per_channel(b, b.residual(node, name), rank) for name in ("saved_mean", "saved_inv_std"))
    return Standardized(cast(b, x, wide(x.type.dtype)), mean, r, channel_axes(rank))


def _batch_bars(b: Any, node: Node, y_bar: Value, rest: Sequence[Value | None]) -> list[Value]:
    running_mean_bar, running_var_bar, saved_mean_bar, saved_r_bar = rest
    rank = len(node.input(0).shape)
    parts = _batch_parts(b, node)
    dtype = parts.x.type.dtype
    momentum = float(attr(node, "momentum"))
    mean_bar = None if b.is_zero(saved_mean_bar) else saved_mean_bar
    r_bar = None if b.is_zero(saved_r_bar) else saved_r_bar
    if running_mean_bar is not None and not b.is_zero(running_mean_bar):
        mean_bar = _sum(b, mean_bar, b.Mul(cast(b, running_mean_bar, dtype), 1 - momentum))
    if running_var_bar is not None and not b.is_zero(running_var_bar):
        r = b.residual(node, "saved_inv_std")
        cube = b.Mul(r, b.Mul(r, r))
        r_bar = _sum(b, r_bar, b.Div(b.Mul(cast(b, running_var_bar, dtype), 2 * (momentum - 1)), cube))
    hat, bar = parts.hat(b), cast(b, y_bar, dtype)
    hat_bar = b.Mul(bar, per_channel(b, cast(b, node.input(1), dtype), rank))
    columns = [v and per_channel(b, v, rank) for v in (mean_bar, r_bar)]
    x_bar = parts.bar(b, hat, hat_bar, *columns)
    scale_bar = b.ReduceSum(b.Mul(bar, hat), channel_axes(rank), keepdims=0)
    old = [_product(b, v, momentum) or b.zero(node.input(i)) for i, v in ((3, running_mean_bar), (4, running_var_bar))]
    return [x_bar, scale_bar, b.ReduceSum(bar, channel_axes(rank), keepdims=0), *old]


@batch_normalization.tangent
def _(b: Any, node: Node, *dots: Value | None) -> Any:
    """y_dot = x^_dot scale + x^ scale_dot + b_dot, with x^_dot from the given or from the data's own statistics."""
    x = node.input(0)
    rank, dtype = len(x.shape), wide(x.type.dtype)
    wide_dots = [None if d is None else cast(b, d, dtype) for d in dots]
    if attr(node, "training_mode"):
        return _batch_dots(b, node, wide_dots)
    scale, r, hat = _inference(b, node)
    x_dot, scale_dot, b_dot, mean_dot, var_dot = wide_dots
    shift = None if mean_dot is None else b.Neg(b.Mul(mean_dot, b.Mul(scale, r)))
    slope = None if var_dot is None else b.Mul(var_dot, b.Mul(b.Mul(scale, b.Mul(r, r)), -0.5))
    return [_affine_dot(b, node, hat, None if x_dot is None else b.Mul(x_dot, per_channel(b, b.Mul(scale, r), rank)),
                        _sum(b, scale_dot, slope), _sum(b, b_dot, shift))]


def _affine_dot(b: Any, node: Node, hat: Value, direct: Value | None, slope: Value | None, shift: Value | None) -> Value:
    """Return direct + x^ * slope + shift in the type of the output."""
    x = node.input(0)
    rank = len(x.shape)
    scaled = None if slope is None else b.Mul(hat, per_channel(b, slope, rank))
    moved = None if shift is None else per_channel(b, shift, rank)
    total = _sum(b, direct, scaled, moved)
    if total is None:
        return b.zero(x)  # type: ignore[no-any-return]
    if direct is None and scaled is None:
        total = b.Expand(total, b.shape(x))
    return cast(b, total, x.type.dtype)


def _batch_dots(b: Any, node: Node, dots: Sequence[Value | None]) -> list[Value | None]:
    x_dot, scale_dot, b_dot, old_mean_dot, old_var_dot = dots
    rank = len(node.input(0).shape)
    parts = _batch_parts(b, node)
    hat = parts.hat(b)
    momentum = float(attr(node, "momentum"))
    direct = mean_dot = r_dot = var_dot = None
    if x_dot is not None:
        scale = per_channel(b, cast(b, node.input(1), parts.x.type.dtype), rank)
        hat_dot, mean_dot, r_dot = parts.dots(b, hat, x_dot)
        direct = b.Mul(hat_dot, scale)
        mean_dot, r_dot = (b.Reshape(v, [-1]) for v in (mean_dot, r_dot))
        r = b.residual(node, "saved_inv_std")
        var_dot = b.Mul(b.Div(r_dot, b.Mul(r, b.Mul(r, r))), -2.0)
    running = [_sum(b, _product(b, old, momentum), _product(b, new, 1 - momentum))
               for old, new in ((old_mean_dot, mean_dot), (old_var_dot, var_dot))]
    typed = [v and cast(b, v, node.input(i).type.dtype) for i, v in zip((3, 4), running, strict=True)]
    return [_affine_dot(b, node, hat, direct, scale_dot, b_dot), *typed, mean_dot, r_dot]


# ---- LayerNormalization and RMSNormalization ----------------------------------------------------------------------------


def stash(node: Node) -> DType:
    """Return the type that statistics are computed in: what stash_type says, and never less than the data has."""
    asked = dtype_of(int(attr(node, "stash_type")))
    own = node.input(0).type.dtype
    return own if own.itemsize > asked.itemsize else asked


def _layer_axes(node: Node) -> list[int]:
    rank = len(node.input(0).shape)
    return list(range(normal_axis(attr(node, "axis"), rank), rank))


def _affine(hat: Array, scale: Array, bias: Array | None, out: Array | None) -> Array:
    y = np.multiply(hat, scale, out=out)
    if bias is not None:
        y += bias
    return y


@op("LayerNormalization", since=17, outputs=("Y", "Mean", "InvStdDev"), required_outputs=1,
    residuals=("saved_mean", "saved_inv_std"))
def layer_normalization(
    x: Array, scale: Array, b: Array | None = None, *,
    axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, count: int = 1, out: Array | None = None,
) -> Any:
    axis %= max(x.ndim, 1)
    rows = np.ascontiguousarray(x).reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))
    place = out.reshape(rows.shape) if out is not None and out.flags.c_contiguous else None
    hat, mean, r = standardize(rows, epsilon, place)
    y = _affine(hat.reshape(x.shape), scale, b, out)
    if count < 2:
        return y
    shape = (*x.shape[:axis], *(1,) * (x.ndim - axis))
    mean, r = mean.reshape(shape), r.reshape(shape)
    return y, mean, r, mean, r


@layer_normalization.types
def _(node: Node) -> list[Type]:
    x = node.input(0)
    asked, exact = dtype_of(int(attr(node, "stash_type"))), stash(node)
    shape = None
    if x.type.shape is not None:
        axes = _layer_axes(node)
        shape = (*x.shape[: axes[0]], *(1,) * len(axes))
    return [x.type, Type(asked, shape), Type(asked, shape), Type(exact, shape), Type(exact, shape)]


def _layer_statistics(b: Any, node: Node) -> tuple[Value, Value]:
    return statistics(b, cast(b, node.input(0), stash(node)), _layer_axes(node), attr(node, "epsilon"))


@layer_normalization.residual("saved_mean")
def _(b: Any, node: Node) -> Value:
    """The mean of every layer."""
    return _layer_statistics(b, node)[0]


@layer_normalization.residual("saved_inv_std")
def _(b: Any, node: Node) -> Value:
    """One over the standard deviation of every layer."""
    return _layer_statistics(b, node)[1]


def _layer_parts(b: Any, node: Node) -> Standardized:
    """The standard's own outputs serve as residuals where they are as precise as the data."""
    exact = stash(node)
    names = ("Mean", "InvStdDev") if exact == dtype_of(int(attr(node, "stash_type"))) else ("saved_mean", "saved_inv_std")
    mean, r = (b.residual(node, name) for name in names)
    return Standardized(cast(b, node.input(0), exact), mean, r, _layer_axes(node))


def _live(b: Any, dtype: DType, *bars: Value | None) -> Value | None:
    """Return the sum of the cotangents that are there, in ``dtype``."""
    return _sum(b, *(cast(b, bar, dtype) for bar in bars if bar is not None and not b.is_zero(bar)))


@layer_normalization.adjoint
def _(b: Any, node: Node, y_bar: Value, mean_bar: Value | None, r_bar: Value | None, saved_mean_bar: Value | None,
      saved_r_bar: Value | None) -> Any:
    """x^_bar = y_bar scale, x_bar as in ``standardize``; scale_bar = sum(y_bar x^), b_bar = sum(y_bar)."""
    parts = _layer_parts(b, node)
    dtype = parts.x.type.dtype
    return _affine_bars(b, node, parts, y_bar, _live(b, dtype, mean_bar, saved_mean_bar),
                        _live(b, dtype, r_bar, saved_r_bar))


def _affine_bars(
    b: Any, node: Node, parts: Standardized, y_bar: Value, mean_bar: Value | None, r_bar: Value | None
) -> list[Value]:
    """Return the cotangents of x, scale and bias of y = x^ * scale + bias, whose last two broadcast."""
    dtype = parts.x.type.dtype
    bar, scale, hat = cast(b, y_bar, dtype), node.input(1), parts.hat(b)
    x_bar = parts.bar(b, hat, b.Mul(bar, cast(b, scale, dtype)), mean_bar, r_bar)
    bars = [x_bar, b.sum_to(b.Mul(bar, hat), scale)]
    if len(node.inputs) > 2:
        bars.append(b.sum_to(bar, node.input(2)))
    return [cast(b, bar, node.input(i).type.dtype) for i, bar in enumerate(bars)]


@layer_normalization.tangent
def _(b: Any, node: Node, x_dot: Value | None, scale_dot: Value | None, b_dot: Value | None = None) -> Any:
    """y_dot = x^_dot scale + x^ scale_dot + b_dot; the statistics have tangents too."""
    y_dot, mean_dot, r_dot = _affine_dots(b, node, _layer_parts(b, node), x_dot, scale_dot, b_dot)
    asked = dtype_of(int(attr(node, "stash_type")))
    return [y_dot, mean_dot and cast(b, mean_dot, asked), r_dot and cast(b, r_dot, asked), mean_dot, r_dot]


def _affine_dots(
    b: Any, node: Node, parts: Standardized, x_dot: Value | None, scale_dot: Value | None, b_dot: Value | None
) -> tuple[Value, Value | None, Value | None]:
    x, dtype = node.input(0), parts.x.type.dtype
    hat = parts.hat(b)
    direct = mean_dot = r_dot = None
    if x_dot is not None:
        hat_dot, mean_dot, r_dot = parts.dots(b, hat, cast(b, x_dot, dtype))
        direct = b.Mul(hat_dot, cast(b, node.input(1), dtype))
    scaled = None if scale_dot is None else b.Mul(hat, cast(b, scale_dot, dtype))
    total = _sum(b, direct, scaled, b_dot and cast(b, b_dot, dtype))
    if total is None:
        return b.zero(x), mean_dot, r_dot
    if direct is None and scaled is None:
        total = b.Expand(total, b.shape(x))
    return cast(b, total, x.type.dtype), mean_dot, r_dot


@op("RMSNormalization", since=23, residuals=("inv_rms",))
def rms_normalization(
    x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, count: int = 1,
    out: Array | None = None,
) -> Any:
    axis %= max(x.ndim, 1)
    rows = np.ascontiguousarray(x).reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))
    mean = np.einsum("ij,ij->i", rows, rows) / max(rows.shape[1], 1)
    r = (1 / np.sqrt(mean + x.dtype.type(epsilon))).reshape(*x.shape[:axis], *(1,) * (x.ndim - axis))
    y = np.multiply(x, r, out=out)
    y *= scale
    return (y, r) if count > 1 else y


@rms_normalization.types
def _(node: Node) -> list[Type]:
    x = node.input(0)
    shape = None
    if x.type.shape is not None:
        axes = _layer_axes(node)
        shape = (*x.shape[: axes[0]], *(1,) * len(axes))
    return [x.type, Type(stash(node), shape)]


@rms_normalization.residual("inv_rms")
def _(b: Any, node: Node) -> Value:
    """One over the root mean square of every layer."""
    x = cast(b, node.input(0), stash(node))
    return inverse_deviation(b, b.ReduceMean(b.Mul(x, x), _layer_axes(node), keepdims=1), attr(node, "epsilon"))


@rms_normalization.expansion
def _(b: Any, node: Node) -> Any:
    """x / sqrt(mean(x^2) + epsilon) * scale."""
    x, exact = node.input(0), stash(node)
    data = cast(b, x, exact)
    r = inverse_deviation(b, b.ReduceMean(b.Mul(data, data), _layer_axes(node), keepdims=1), attr(node, "epsilon"))
    return b.Mul(cast(b, b.Mul(data, r), x.type.dtype), node.input(1)), r


def _rms_parts(b: Any, node: Node) -> Standardized:
    return Standardized(cast(b, node.input(0), stash(node)), None, b.residual(node, "inv_rms"), _layer_axes(node))


@rms_normalization.adjoint
def _(b: Any, node: Node, y_bar: Value, r_bar: Value | None) -> Any:
    """With x^ = x r: x_bar = r (x^_bar - x^ mean(x^_bar x^)) - r_bar r^2 x^ / m; scale_bar = sum(y_bar x^)."""
    return _affine_bars(b, node, _rms_parts(b, node), y_bar, None, r_bar)


@rms_normalization.tangent
def _(b: Any, node: Node, x_dot: Value | None, scale_dot: Value | None) -> Any:
    """y_dot = x^_dot scale + x^ scale_dot; the residual has a tangent too."""
    y_dot, _, r_dot = _affine_dots(b, node, _rms_parts(b, node), x_dot, scale_dot, None)
    return [y_dot, r_dot]


# ---- InstanceNormalization and GroupNormalization -----------------------------------------------------------------------


def _by_groups(
    x: Array, groups: int, scale: Array, bias: Array, epsilon: float, count: int, out: Array | None
) -> Any:
    rows = np.ascontiguousarray(x).reshape(x.shape[0] * groups, int(np.prod(x.shape[1:])) // max(groups, 1))
    place = out.reshape(rows.shape) if out is not None and out.flags.c_contiguous else None
    hat, mean, r = standardize(rows, epsilon, place)
    y = _affine(hat.reshape(x.shape), _column(scale, x.ndim, x.dtype), _column(bias, x.ndim, x.dtype), out)
    shape = (x.shape[0], groups, *(1,) * (x.ndim - 1))
    return (y, mean.reshape(shape), r.reshape(shape)) if count > 1 else y


def _group_types(node: Node, groups: Any, exact: DType) -> list[Type]:
    x = node.input(0)
    if x.type.shape is None:
        return [x.type, Type(exact, None), Type(exact, None)]
    saved = Type(exact, (x.shape[0], groups, *(1,) * (len(x.shape) - 1)))
    return [x.type, saved, saved]


class Grouped:
    """A tensor (batch, channels, image) seen as (batch, groups, channels in a group, image) in a graph."""

    def __init__(self, b: Any, node: Node, groups: Value | int, exact: DType) -> None:
        self.b, self.node, self.exact = b, node, exact
        x = node.input(0)
        self.rank = len(x.shape)
        self.axes = list(range(2, self.rank + 1))
        count = b.ints([groups]) if isinstance(groups, int) else groups
        inner = b.Div(b.extent(x, 1), count) if isinstance(groups, int) else b.ints([1])
        self.channels = b.Concat(count, inner, axis=0)
        tail = [b.Shape(x, start=2)] if self.rank > 2 else []
        self.shape = b.Concat(b.extent(x, 0), self.channels, *tail, axis=0)

    def view(self, x: Value) -> Value:
        """Return a tensor of the shape of x by groups, in the type of the statistics."""
        return self.b.Reshape(cast(self.b, x, self.exact), self.shape, allowzero=1)  # type: ignore[no-any-return]

    def column(self, vector: Value) -> Value:
        """Return a vector of channels so that it broadcasts against a view."""
        matrix = self.b.Reshape(cast(self.b, vector, self.exact), self.channels, allowzero=1)
        axes = list(range(2, self.rank))
        return self.b.Unsqueeze(matrix, axes) if axes else matrix  # type: ignore[no-any-return]

    def back(self, viewed: Value, like: Value) -> Value:
        """Return a view, or what is left of it after summing, in shape and type of ``like``."""
        return cast(self.b, self.b.Reshape(viewed, self.b.shape(like), allowzero=1), like.type.dtype)

    def sum(self, viewed: Value) -> Value:
        """Return the sum over batch and image."""
        return self.b.ReduceSum(viewed, [0, *range(3, self.rank + 1)], keepdims=0)  # type: ignore[no-any-return]

    def parts(self) -> Standardized:
        """Return the pieces of the standardization of every group."""
        mean, r = (self.b.residual(self.node, name) for name in ("saved_mean", "saved_inv_std"))
        return Standardized(self.view(self.node.input(0)), mean, r, self.axes)

    def statistics(self) -> tuple[Value, Value]:
        """Return mean and r of every group, from plain operators."""
        return statistics(self.b, self.view(self.node.input(0)), self.axes, attr(self.node, "epsilon"))

    def bars(self, y_bar: Value, mean_bar: Value | None, r_bar: Value | None) -> list[Value]:
        """Return the cotangents of x, scale and bias."""
        x, scale, bias = (self.node.input(i) for i in range(3))
        parts, bar = self.parts(), self.view(y_bar)
        hat = parts.hat(self.b)
        x_bar = parts.bar(self.b, hat, self.b.Mul(bar, self.column(scale)), mean_bar, r_bar)
        sums = self.sum(self.b.Mul(bar, hat)), self.sum(bar)
        return [self.back(x_bar, x), self.back(sums[0], scale), self.back(sums[1], bias)]

    def dots(self, x_dot: Value | None, scale_dot: Value | None, bias_dot: Value | None) -> list[Value | None]:
        """Return the tangents of y, mean and r."""
        b, x, parts = self.b, self.node.input(0), self.parts()
        hat = parts.hat(b)
        direct = mean_dot = r_dot = None
        if x_dot is not None:
            hat_dot, mean_dot, r_dot = parts.dots(b, hat, self.view(x_dot))
            direct = b.Mul(hat_dot, self.column(self.node.input(1)))
        scaled = None if scale_dot is None else b.Mul(hat, self.column(scale_dot))
        total = _sum(b, direct, scaled, bias_dot and self.column(bias_dot))
        if total is not None and direct is None and scaled is None:
            total = b.Expand(total, self.shape)
        return [total and self.back(total, x), mean_dot, r_dot]


@op("InstanceNormalization", since=6, residuals=("saved_mean", "saved_inv_std"))
def instance_normalization(
    x: Array, scale: Array, b: Array, *, epsilon: float = 1e-5, count: int = 1, out: Array | None = None
) -> Any:
    return _by_groups(x, x.shape[1], scale, b, epsilon, count, out)


@instance_normalization.types
def _(node: Node) -> list[Type]:
    x = node.input(0)
    return _group_types(node, x.shape[1] if x.type.shape is not None else None, wide(x.type.dtype))


def _instances(b: Any, node: Node) -> Grouped:
    x = node.input(0)
    return Grouped(b, node, b.extent(x, 1), wide(x.type.dtype))


@instance_normalization.residual("saved_mean")
def _(b: Any, node: Node) -> Value:
    """The mean of every channel of every image."""
    return _instances(b, node).statistics()[0]


@instance_normalization.residual("saved_inv_std")
def _(b: Any, node: Node) -> Value:
    """One over the standard deviation of every channel of every image."""
    return _instances(b, node).statistics()[1]


@instance_normalization.adjoint
def _(b: Any, node: Node, y_bar: Value, mean_bar: Value | None, r_bar: Value | None) -> Any:
    """x_bar as in ``standardize`` with x^_bar = y_bar scale; scale_bar = sum(y_bar x^), b_bar = sum(y_bar)."""
    return _instances(b, node).bars(y_bar, mean_bar, r_bar)


@instance_normalization.tangent
def _(b: Any, node: Node, *dots: Value | None) -> Any:
    """y_dot = x^_dot scale + x^ scale_dot + b_dot."""
    return _instances(b, node).dots(*dots)


@op("GroupNormalization", since=21, residuals=("saved_mean", "saved_inv_std"))
def group_normalization(
    x: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1,
    count: int = 1, out: Array | None = None,
) -> Any:
    return _by_groups(x, num_groups, scale, bias, epsilon, count, out)


@group_normalization.types
def _(node: Node) -> list[Type]:
    x, groups = node.input(0), attr(node, "num_groups")
    if groups < 1 or (x.type.shape is not None and isinstance(x.shape[1], int) and x.shape[1] % groups):
        raise ValidationError(f"{groups} groups do not divide {x.type!r}", code="attribute", where=node.label)
    return _group_types(node, groups, stash(node))


def _groups(b: Any, node: Node) -> Grouped:
    return Grouped(b, node, int(attr(node, "num_groups")), stash(node))


@group_normalization.residual("saved_mean")
def _(b: Any, node: Node) -> Value:
    """The mean of every group of every image."""
    return _groups(b, node).statistics()[0]


@group_normalization.residual("saved_inv_std")
def _(b: Any, node: Node) -> Value:
    """One over the standard deviation of every group of every image."""
    return _groups(b, node).statistics()[1]


@group_normalization.expansion
def _(b: Any, node: Node) -> Any:
    """Standardize every group, then scale and shift every channel."""
    groups = _groups(b, node)
    x = groups.view(node.input(0))
    mean, r = groups.statistics()
    hat = b.Mul(b.Sub(x, mean), r)
    y = b.Add(b.Mul(hat, groups.column(node.input(1))), groups.column(node.input(2)))
    return groups.back(y, node.input(0)), mean, r


@group_normalization.adjoint
def _(b: Any, node: Node, y_bar: Value, mean_bar: Value | None, r_bar: Value | None) -> Any:
    """x_bar as in ``standardize`` with x^_bar = y_bar scale; scale_bar = sum(y_bar x^), bias_bar = sum(y_bar)."""
    return _groups(b, node).bars(y_bar, mean_bar, r_bar)


@group_normalization.tangent
def _(b: Any, node: Node, *dots: Value | None) -> Any:
    """y_dot = x^_dot scale + x^ scale_dot + bias_dot."""
    return _groups(b, node).dots(*dots)
