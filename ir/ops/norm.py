"""Normalization by statistics of the data: batch, layer, instance, group, root mean square.

All the differentiable ones share one rule. With x^ = (x - mean) * r, r = 1 / sqrt(var + epsilon), mean and var taken
over the same m elements, and cotangents x^_bar, mean_bar, r_bar:

    x_bar = r * (x^_bar - mean(x^_bar) - x^ * mean(x^_bar * x^)) + mean_bar / m - r_bar * r^2 * x^ / m

mean and r are residuals of the forward node, so they are computed once, and their own cotangents in second derivatives
enter through mean_bar and r_bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.registry import attr, op
from flowgrad.ir.types import FLOAT32, DType, Type


def wide(dtype: DType) -> DType:
    """Return the type that statistics are computed in."""
    return FLOAT32 if dtype.itemsize < 4 else dtype


def cast(b: Any, x: Value, dtype: DType) -> Value:
    """Return ``x`` in ``dtype``."""
    return x if x.type.dtype == dtype else b.Cast(x, to=dtype.onnx)


def channel_shape(rank: int) -> list[int]:
    """Return the shape that makes a vector run along axis 1 of a tensor of this rank."""
    return [-1, *(1,) * (rank - 2)]


def per_channel(b: Any, vector: Value, rank: int) -> Value:
    """Return a vector of channels as a tensor that broadcasts along axis 1."""
    return b.Unsqueeze(vector, list(range(1, rank - 1))) if rank > 2 else vector


def count_along(b: Any, x: Value, axes: Sequence[int], dtype: DType) -> Any:
    """Return the number of elements along ``axes``: a number where it is known, else a value in ``dtype``."""
    extents = [x.shape[a] for a in axes]
    if all(isinstance(n, int) for n in extents):
        return float(np.prod(extents))  # type: ignore[arg-type]
    return b.Cast(b.ReduceProd(b.Gather(b.shape(x), list(axes)), keepdims=0), to=dtype.onnx)


def standardized_bar(
    b: Any, x: Value, mean: Value, r: Value, hat_bar: Value, mean_bar: Value, r_bar: Value, axes: Sequence[int]
) -> Value:
    """Return x_bar of x^ = (x - mean) * r, mean and r, which depend on x through its statistics along ``axes``.

    ``mean``, ``r`` and their cotangents broadcast against ``x``.
    """
    hat = b.Mul(b.Sub(x, mean), r)
    terms = []
    if not b.is_zero(hat_bar):
        inner = b.ReduceMean(b.Mul(hat_bar, hat), list(axes), keepdims=1)
        centred = b.Sub(hat_bar, b.ReduceMean(hat_bar, list(axes), keepdims=1))
        terms.append(b.Mul(r, b.Sub(centred, b.Mul(hat, inner))))
    count = count_along(b, x, axes, x.type.dtype)
    if not b.is_zero(mean_bar):
        terms.append(b.Div(mean_bar, count))
    if not b.is_zero(r_bar):
        terms.append(b.Mul(hat, b.Div(b.Neg(b.Mul(r_bar, b.Mul(r, r))), count)))
    if not terms:
        return b.zero(x)  # type: ignore[no-any-return]
    total = terms[0]
    for term in terms[1:]:
        total = b.Add(total, term)
    return total if total.type.shape == x.type.shape else b.Expand(total, b.shape(x))


# ---- BatchNormalization -------------------------------------------------------------------------------------------------


@op("BatchNormalization", since=15, outputs=("Y", "running_mean", "running_var"), required_outputs=1,
    residuals=("saved_mean", "saved_inv_std"))
def batch_normalization(
    x: Array, scale: Array, b: Array, input_mean: Array, input_var: Array, *,
    epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0, count: int = 1, out: Array | None = None,
) -> Any:
    shape = channel_shape(max(x.ndim, 2))
    if not training_mode:
        factor = scale / np.sqrt(input_var + x.dtype.type(epsilon))
        y = np.multiply(x, factor.reshape(shape).astype(x.dtype, copy=False), out=out)
        y += (b - input_mean * factor).reshape(shape).astype(x.dtype, copy=False)
        return y
    axes = (0, *range(2, x.ndim))
    mean = np.mean(x, axis=axes, keepdims=True)
    centred = np.subtract(x, mean, out=out)
    var = np.mean(np.square(centred), axis=axes)
    inverse = 1 / np.sqrt(var + x.dtype.type(epsilon))
    centred *= (scale * inverse).reshape(shape).astype(x.dtype, copy=False)
    centred += b.reshape(shape).astype(x.dtype, copy=False)
    mean = mean.reshape(-1)
    running = [input_mean * momentum + mean * (1 - momentum), input_var * momentum + var * (1 - momentum)]
    return (centred, *running, mean, inverse)[:count] if count > 1 else centred


@batch_normalization.types
def _(node: Node) -> list[Type | None]:
    x, mean, var = node.input(0), node.input(3), node.input(4)
    if not attr(node, "training_mode"):
        return [x.type, None, None, None, None]
    channels = (x.shape[1],) if x.type.shape is not None else mean.type.shape
    saved = Type(wide(x.type.dtype), channels)
    return [x.type, mean.type.with_shape(channels), var.type.with_shape(channels), saved, saved]


def _statistics(b: Any, node: Node) -> tuple[Value, Value]:
    x = cast(b, node.input(0), wide(node.input(0).type.dtype))
    axes = [0, *range(2, len(x.shape))]
    mean = b.ReduceMean(x, axes, keepdims=1)
    centred = b.Sub(x, mean)
    var = b.ReduceMean(b.Mul(centred, centred), axes, keepdims=0)
    return b.Reshape(mean, [-1]), b.Reciprocal(b.Sqrt(b.Add(var, attr(node, "epsilon"))))


@batch_normalization.residual("saved_mean")
def _(b: Any, node: Node) -> Value:
    """The mean of every channel."""
    return _statistics(b, node)[0]


@batch_normalization.residual("saved_inv_std")
def _(b: Any, node: Node) -> Value:
    """One over the standard deviation of every channel."""
    return _statistics(b, node)[1]


@batch_normalization.adjoint
def _(b: Any, node: Node, y_bar: Value, *rest: Value | None) -> Any:
    """With a = scale * r: x_bar = a y_bar, scale_bar = sum(y_bar (x - mean)) r, b_bar = sum(y_bar), and further

    inference: mean_bar = -sum(y_bar) a, var_bar = -sum(y_bar (x - mean)) a r^2 / 2;
    training: x_bar goes through the statistics too, and the running ones are momentum * old + (1 - momentum) * new.
    """
    return _trained(b, node, y_bar, *rest) if attr(node, "training_mode") else _inferred(b, node, y_bar)


def _inferred(b: Any, node: Node, y_bar: Value) -> list[Value]:
    x, scale, _, mean, var = (node.input(i) for i in range(5))
    dtype, rank = wide(x.type.dtype), len(x.shape)
    axes = [0, *range(2, rank)]
    r = b.Reciprocal(b.Sqrt(b.Add(cast(b, var, dtype), attr(node, "epsilon"))))
    factor = b.Mul(cast(b, scale, dtype), r)
    bar = cast(b, y_bar, dtype)
    x_bar = b.Mul(bar, per_channel(b, factor, rank))
    total = b.ReduceSum(bar, axes, keepdims=0)
    centred = b.Sub(cast(b, x, dtype), per_channel(b, cast(b, mean, dtype), rank))
    paired = b.ReduceSum(b.Mul(bar, centred), axes, keepdims=0)
    var_bar = b.Mul(b.Mul(paired, b.Mul(factor, b.Mul(r, r))), -0.5)
    bars = [x_bar, b.Mul(paired, r), total, b.Neg(b.Mul(total, factor)), var_bar]
    return [cast(b, bar, node.input(i).type.dtype) for i, bar in enumerate(bars)]


def _trained(
    b: Any, node: Node, y_bar: Value, running_mean_bar: Value, running_var_bar: Value, saved_mean_bar: Value,
    saved_r_bar: Value,
) -> list[Any]:
    x, scale = node.input(0), node.input(1)
    dtype, rank = wide(x.type.dtype), len(x.shape)
    axes = [0, *range(2, rank)]
    momentum = float(attr(node, "momentum"))
    mean, r = b.residual(node, "saved_mean"), b.residual(node, "saved_inv_std")
    wide_x, bar = cast(b, x, dtype), cast(b, y_bar, dtype)
    mean_bar, r_bar = saved_mean_bar, saved_r_bar
    if not b.is_zero(running_mean_bar):
        mean_bar = _plus(b, mean_bar, b.Mul(cast(b, running_mean_bar, dtype), 1 - momentum))
    if not b.is_zero(running_var_bar):  # var = r^-2 - epsilon, so var_bar enters r_bar with -2 r^-3
        through = b.Div(b.Mul(cast(b, running_var_bar, dtype), -2 * (1 - momentum)), b.Mul(r, b.Mul(r, r)))
        r_bar = _plus(b, r_bar, through)
    columns = [v if v is None else per_channel(b, v, rank) for v in (mean, r, mean_bar, r_bar)]
    if b.is_zero(mean_bar):
        columns[2] = None
    if b.is_zero(r_bar):
        columns[3] = None
    hat_bar = b.Mul(bar, per_channel(b, cast(b, scale, dtype), rank))
    x_bar = standardized_bar(b, wide_x, columns[0], columns[1], hat_bar, columns[2], columns[3], axes)
    hat = b.Mul(b.Sub(wide_x, columns[0]), columns[1])
    scale_bar = b.ReduceSum(b.Mul(bar, hat), axes, keepdims=0)
    bias_bar = b.ReduceSum(bar, axes, keepdims=0)
    old = [b.zero(node.input(i)) if b.is_zero(v) else b.Mul(v, momentum)
           for i, v in ((3, running_mean_bar), (4, running_var_bar))]
    bars = [x_bar, scale_bar, bias_bar, *old]
    return [cast(b, bar, node.input(i).type.dtype) for i, bar in enumerate(bars)]


def _plus(b: Any, x: Value | None, y: Value) -> Value:
    return y if b.is_zero(x) else b.Add(x, y)
