"""Batch normalization: by statistics of the batch when training, by given ones when not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, looped, merged_again, within
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.normalization.standardization import (
    Standardized,
    column,
    inverse_deviation,
    statistics,
)
from flowgrad.ir.ops.operands import check_channels, mean_of, sum_of_present
from flowgrad.ir.ops.registry import attr, op
from flowgrad.ir.types import Type


def per_channel(b: Builder, vector: Value, rank: int) -> Value:
    """Return a vector of channels as a tensor that broadcasts along axis 1."""
    return b.Unsqueeze(vector, list(range(1, rank - 1))) if rank > 2 else vector


def channel_axes(rank: int) -> list[int]:
    """Return all axes but that of the channels."""
    return [0, *range(2, rank)]


def _product(b: DerivativeBuilder, x: Value | None, factor: Any) -> Value | None:
    return None if b.is_zero(x) else b.Mul(x, factor)


@op("BatchNormalization", since=15, outputs=("Y", "running_mean", "running_var"), required_outputs=1,
    new_dtypes=("scale", "input_mean"),
    residuals=("saved_mean", "saved_inv_std"), settings=("input_mean", "input_var"))
def batch_normalization(
    x: Array, scale: Array, b: Array, input_mean: Array, input_var: Array, *,
    epsilon: float = 9.999999747378752e-06, momentum: float = 0.8999999761581421, training_mode: int = 0, count: int = 1,
    out: Array | None = None,
) -> Any:
    rank = max(x.ndim, 2)
    if not training_mode:
        factor = scale / np.sqrt(input_var + x.dtype.type(epsilon))
        y = np.multiply(x, column(factor, rank, x.dtype), out=out)
        y += column(b - input_mean * factor, rank, x.dtype)
        return y
    axes = tuple(channel_axes(rank))
    mean = mean_of(x, axes)
    y = np.subtract(x, mean, out=out)
    var = mean_of(np.square(y), axes, keepdims=False)
    inverse = 1 / np.sqrt(var + x.dtype.type(epsilon))
    y *= column(scale * inverse, rank, x.dtype)
    y += column(b, rank, x.dtype)
    if count < 2:
        return y
    mean = mean.reshape(-1)
    fresh = 1 - momentum
    return y, input_mean * momentum + mean * fresh, input_var * momentum + var * fresh, mean, inverse


@batch_normalization.types
def _(node: Node) -> list[Type | None]:
    x, mean, var = node.input(0), node.input(3), node.input(4)
    check_channels(node, 1, 2, 3, 4)
    if not attr(node, "training_mode"):
        return [x.type, None, None, None, None]
    channels = mean.type.shape if x.type.shape is None else (x.shape[1],)
    saved = Type(x.type.dtype.wide, channels)
    return [x.type, mean.type.with_shape(channels), var.type.with_shape(channels), saved, saved]


def _batch_statistics(b: Builder, node: Node) -> tuple[Value, Value]:
    x = node.input(0)
    return statistics(b, b.cast(x, x.type.dtype.wide), channel_axes(len(x.shape)), attr(node, "epsilon"))


@batch_normalization.residual("saved_mean")
def _(b: Builder, node: Node) -> Value:
    """The mean of every channel."""
    return b.Reshape(_batch_statistics(b, node)[0], [-1])


@batch_normalization.residual("saved_inv_std")
def _(b: Builder, node: Node) -> Value:
    """One over the standard deviation of every channel."""
    return b.Reshape(_batch_statistics(b, node)[1], [-1])


@batch_normalization.expansion
def _(b: Builder, node: Node) -> list[Value | None]:
    """y = x^ scale + b, with x^ from the given or from the data's own statistics."""
    x, scale, bias, old_mean, old_var = (node.input(i) for i in range(5))
    dtype, rank = x.type.dtype.wide, len(x.shape)
    if attr(node, "training_mode"):
        mean, r = _batch_statistics(b, node)
        hat = b.Mul(b.Sub(b.cast(x, dtype), mean), r)
    else:
        hat = _inference(b, node)[2]
    columns = [per_channel(b, b.cast(v, dtype), rank) for v in (scale, bias)]
    results: list[Value | None] = [b.cast(b.Add(b.Mul(hat, columns[0]), columns[1]), x.type.dtype)]
    if len(node.outputs) > 1:
        centred = b.Sub(b.cast(x, dtype), mean)
        var = b.ReduceMean(b.Mul(centred, centred), channel_axes(rank), keepdims=0)
        momentum = float(attr(node, "momentum"))
        for old, new in ((old_mean, b.Reshape(mean, [-1])), (old_var, var)):
            running = b.Add(b.Mul(b.cast(old, dtype), momentum), b.Mul(new, 1 - momentum))
            results.append(b.cast(running, old.type.dtype))
        results += [b.Reshape(mean, [-1]), b.Reshape(r, [-1])]
    return results


@batch_normalization.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value, *rest: Value | None) -> Any:
    """With a = scale * r: x_bar = a y_bar, scale_bar = sum(y_bar x^), b_bar = sum(y_bar), and besides

    inference: mean_bar = -sum(y_bar) a, var_bar = -sum(y_bar x^) scale r^2 / 2;
    training: x_bar as in ``standardize``; running = momentum * old + (1 - momentum) * new, with var = r^-2 - epsilon.
    """
    bars = _batch_bars(b, node, y_bar, rest) if attr(node, "training_mode") else _inference_bars(b, node, y_bar)
    return [b.cast(bar, node.input(i).type.dtype) for i, bar in enumerate(bars)]


def _inference(b: Builder, node: Node) -> tuple[Value, Value, Value]:
    """Return scale, r and x^ in the wide type, the first two as vectors."""
    x, scale, _, mean, var = (node.input(i) for i in range(5))
    dtype, rank = x.type.dtype.wide, len(x.shape)
    r = inverse_deviation(b, b.cast(var, dtype), attr(node, "epsilon"))
    centred = b.Sub(b.cast(x, dtype), per_channel(b, b.cast(mean, dtype), rank))
    return b.cast(scale, dtype), r, b.Mul(centred, per_channel(b, r, rank))


def _inference_bars(b: Builder, node: Node, y_bar: Value) -> list[Value]:
    scale, r, hat = _inference(b, node)
    rank = len(node.input(0).shape)
    bar, factor = b.cast(y_bar, r.type.dtype), b.Mul(scale, r)
    total = b.ReduceSum(bar, channel_axes(rank), keepdims=0)
    paired = b.ReduceSum(b.Mul(bar, hat), channel_axes(rank), keepdims=0)
    var_bar = b.Mul(paired, b.Mul(b.Mul(factor, r), -0.5))
    return [b.Mul(bar, per_channel(b, factor, rank)), paired, total, b.Neg(b.Mul(total, factor)), var_bar]


def _batch_parts(b: DerivativeBuilder, node: Node) -> Standardized:
    x, rank = node.input(0), len(node.input(0).shape)
    mean, r = (per_channel(b, b.residual(node, name), rank) for name in ("saved_mean", "saved_inv_std"))
    return Standardized(b.cast(x, x.type.dtype.wide), mean, r, channel_axes(rank))


def _batch_bars(b: DerivativeBuilder, node: Node, y_bar: Value, rest: Sequence[Value | None]) -> list[Value]:
    running_mean_bar, running_var_bar, saved_mean_bar, saved_r_bar = rest
    rank = len(node.input(0).shape)
    parts = _batch_parts(b, node)
    dtype = parts.x.type.dtype
    momentum = float(attr(node, "momentum"))
    mean_bar = None if b.is_zero(saved_mean_bar) else saved_mean_bar
    r_bar = None if b.is_zero(saved_r_bar) else saved_r_bar
    if running_mean_bar is not None and not b.is_zero(running_mean_bar):
        mean_bar = sum_of_present(b, mean_bar, b.Mul(b.cast(running_mean_bar, dtype), 1 - momentum))
    if running_var_bar is not None and not b.is_zero(running_var_bar):
        r = b.residual(node, "saved_inv_std")
        cube = b.Mul(r, b.Mul(r, r))
        r_bar = sum_of_present(b, r_bar, b.Div(b.Mul(b.cast(running_var_bar, dtype), 2 * (momentum - 1)), cube))
    hat, bar = parts.hat(b), b.cast(y_bar, dtype)
    hat_bar = b.Mul(bar, per_channel(b, b.cast(node.input(1), dtype), rank))
    columns = [v and per_channel(b, v, rank) for v in (mean_bar, r_bar)]
    x_bar = parts.bar(b, hat, hat_bar, *columns)
    scale_bar = b.ReduceSum(b.support.product_by_rows(bar, hat), channel_axes(rank), keepdims=0)
    old = [_product(b, v, momentum) or b.zero(node.input(i)) for i, v in ((3, running_mean_bar), (4, running_var_bar))]
    return [x_bar, scale_bar, b.ReduceSum(bar, channel_axes(rank), keepdims=0), *old]


@batch_normalization.tangent
def _(b: DerivativeBuilder, node: Node, *dots: Value | None) -> Any:
    """y_dot = x^_dot scale + x^ scale_dot + b_dot, with x^_dot from the given or from the data's own statistics."""
    x = node.input(0)
    rank, dtype = len(x.shape), x.type.dtype.wide
    wide_dots = [None if d is None else b.cast(d, dtype) for d in dots]
    if attr(node, "training_mode"):
        return _batch_dots(b, node, wide_dots)
    scale, r, hat = _inference(b, node)
    x_dot, scale_dot, b_dot, mean_dot, var_dot = wide_dots
    shift = None if mean_dot is None else b.Neg(b.Mul(mean_dot, b.Mul(scale, r)))
    slope = None if var_dot is None else b.Mul(var_dot, b.Mul(b.Mul(scale, b.Mul(r, r)), -0.5))
    return [_affine_dot(b, node, hat, None if x_dot is None else b.Mul(x_dot, per_channel(b, b.Mul(scale, r), rank)),
                        sum_of_present(b, scale_dot, slope), sum_of_present(b, b_dot, shift))]


def _affine_dot(b: DerivativeBuilder, node: Node, hat: Value, direct: Value | None, slope: Value | None,
                shift: Value | None) -> Value:
    """Return direct + x^ * slope + shift in the type of the output."""
    x = node.input(0)
    rank = len(x.shape)
    scaled = None if slope is None else b.Mul(hat, per_channel(b, slope, rank))
    moved = None if shift is None else per_channel(b, shift, rank)
    total = sum_of_present(b, direct, scaled, moved)
    if total is None:
        return b.zero(x)
    if direct is None and scaled is None:
        total = b.Expand(total, b.shape(x))
    return b.cast(total, x.type.dtype)


def _batch_dots(b: DerivativeBuilder, node: Node, dots: Sequence[Value | None]) -> list[Value | None]:
    x_dot, scale_dot, b_dot, old_mean_dot, old_var_dot = dots
    rank = len(node.input(0).shape)
    parts = _batch_parts(b, node)
    hat = parts.hat(b)
    momentum = float(attr(node, "momentum"))
    direct = mean_dot = r_dot = var_dot = None
    if x_dot is not None:
        scale = per_channel(b, b.cast(node.input(1), parts.x.type.dtype), rank)
        hat_dot, mean_dot, r_dot = parts.dots(b, hat, x_dot)
        direct = b.Mul(hat_dot, scale)
        mean_dot, r_dot = (b.Reshape(v, [-1]) for v in (mean_dot, r_dot))
        r = b.residual(node, "saved_inv_std")
        var_dot = b.Mul(b.Div(r_dot, b.Mul(r, b.Mul(r, r))), -2.0)
    running = [sum_of_present(b, _product(b, old, momentum), _product(b, new, 1 - momentum))
               for old, new in ((old_mean_dot, mean_dot), (old_var_dot, var_dot))]
    typed = [v and b.cast(v, node.input(i).type.dtype) for i, v in zip((3, 4), running, strict=True)]
    return [_affine_dot(b, node, hat, direct, scale_dot, b_dot), *typed, mean_dot, r_dot]


@batch_normalization.expands_on_export
def _(node: Node) -> bool:
    """True in training mode: onnxruntime writes the running statistics over its inputs, even over constants that
    others, or the next run, use."""
    return bool(attr(node, "training_mode"))


@batch_normalization.batch
def _(b: BatchBuilder, node: Node, *xs: Value) -> Any:
    """More samples by shared statistics; with those of each example, given or its own, more channels."""
    if any(v.type.rank in (None, 0, 1) for v in node.operands[:1]) or any(v.type.rank is None for v in node.operands):
        return looped(b, node, *xs)
    if not attr(node, "training_mode") and not any(b.holds(x) for x in xs[1:]):
        return within(b, node, xs, {0: 0}, [0])
    return merged_again(b, node, xs, {0: 1, **dict.fromkeys(range(1, 5), 0)}, [1, 0, 0, 0, 0])
