"""Normalization across channels, by moments and by norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, along_axis, within_batch
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import mean_of
from flowgrad.ir.ops.reduction import reduce_l2
from flowgrad.ir.ops.registry import attr, op
from flowgrad.ir.types import FLOAT32, Type


@op("LRN", since=1)
def lrn(
    x: Array, *, alpha: float = 9.999999747378752e-05, beta: float = 0.75, bias: float = 1.0, size: int, out: Array | None = None
) -> Array:
    sums = np.zeros_like(x)
    squares = np.square(x)
    before, after = (size - 1) // 2, size // 2
    channels = x.shape[1]
    for shift in range(max(-before, 1 - channels), min(after, channels - 1) + 1):
        low, high = max(0, -shift), min(channels, channels - shift)
        sums[:, low:high] += squares[:, low + shift : high + shift]
    sums *= alpha / size
    sums += bias
    np.power(sums, -beta, out=sums)
    return np.multiply(x, sums, out=out)


@lrn.types
def _(node: Node) -> Type:
    return node.input(0).type


@lrn.expansion
def _(b: Builder, node: Node) -> Value:
    """x (bias + alpha mean(x^2 over the window of channels))^-beta, the mean counting what lies beyond the channels."""
    x = node.input(0)
    return b.Mul(x, b.Pow(_base(b, node, x), b.scalar(-attr(node, "beta"), x.type.dtype)))


@lrn.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar s^-beta - 2 alpha beta x mean(y_bar x s^(-beta - 1)), the mean over the window turned round."""
    x, alpha, beta = node.input(0), attr(node, "alpha"), attr(node, "beta")
    base = _base(b, node, x)
    scaled = b.Mul(y_bar, b.Pow(base, b.scalar(-beta, x.type.dtype)))
    spread = _mean(b, b.Div(b.Mul(scaled, x), base), node, 2 * alpha * beta, turned=True)
    return (b.Sub(scaled, b.Mul(x, spread)),)


def _base(b: Builder, node: Node, x: Value) -> Value:
    return _mean(b, b.Mul(x, x), node, attr(node, "alpha"), attr(node, "bias"))


BAND_CHANNELS = 512
"""Up to this many channels, a mean over a window of them is one product with a band matrix, else pooling over channels."""


def _mean(b: Builder, x: Value, node: Node, factor: float, offset: float = 0.0, turned: bool = False) -> Value:
    """Return factor * mean + offset: the mean over the window of channels, or its transpose, zeros beyond the channels."""
    size, rank, channels = int(attr(node, "size")), len(x.shape), x.shape[1]
    before, after = (size // 2, (size - 1) // 2) if turned else ((size - 1) // 2, size // 2)
    if rank > 2 and isinstance(channels, int) and channels <= BAND_CHANNELS:
        distance = np.subtract.outer(np.arange(channels), np.arange(channels))  # from the reading channel to the read one
        band = ((distance <= before) & (distance >= -after)) * (factor / size)
        weight = band.reshape(channels, channels, *(1,) * (rank - 2)).astype(x.type.dtype.numpy)
        bias = np.full(channels, offset, x.type.dtype.numpy)
        return b.Conv(x, weight, bias if offset else None)
    kernel, still = [size, *(1,) * (rank - 2)], [0] * (rank - 2)
    pooled = b.AveragePool(b.Unsqueeze(x, [1]), kernel_shape=kernel, count_include_pad=1,
                           pads=[before, *still, after, *still])
    scaled = b.Mul(b.Squeeze(pooled, [1]), factor)
    return b.Add(scaled, offset) if offset else scaled


DEVIATION_GUARD = 1e-9
"""What the standard adds to the deviation in MeanVarianceNormalization."""


@op("MeanVarianceNormalization", since=13)
def mean_variance_normalization(x: Array, *, axes: Sequence[int] = (0, 2, 3), out: Array | None = None) -> Array:
    along = tuple(int(a) for a in axes)
    centred = np.subtract(x, mean_of(x, along), out=out)
    deviation = np.sqrt(mean_of(np.square(centred), along))
    centred /= deviation + x.dtype.type(DEVIATION_GUARD)
    return centred


@mean_variance_normalization.types
def _(node: Node) -> Type:
    return node.input(0).type


@mean_variance_normalization.expansion
def _(b: Builder, node: Node) -> Value:
    """(x - mean) / (sqrt(var) + 1e-9), where a constant image has the deviation 0 and slope 0 in it."""
    narrow, axes = node.input(0), list(attr(node, "axes"))
    x = b.cast(narrow, narrow.type.dtype.wide)  # in which the guard is not 0
    centred = b.Sub(x, b.ReduceMean(x, axes, keepdims=1))
    var = b.ReduceMean(b.Mul(centred, centred), axes, keepdims=1)
    return b.cast(b.Div(centred, b.Add(_safe_root(b, var), DEVIATION_GUARD)), narrow.type.dtype)


@mean_variance_normalization.expands_on_export
def _(node: Node) -> bool:
    """True for all floats but float32: the function of the standard adds a float32 constant, which runtimes refuse."""
    return node.input(0).type.dtype != FLOAT32


def _safe_root(b: Builder, square: Value) -> Value:
    """Return the square root with the slope 0 at 0."""
    vanishes = b.Equal(square, 0.0)
    return b.Where(vanishes, b.scalar(0, square.type.dtype), b.Sqrt(b.Where(vanishes, b.scalar(1, square.type.dtype), square)))


@op("LpNormalization", since=1)
def lp_normalization(x: Array, *, axis: int = -1, p: int = 2, out: Array | None = None) -> Array:
    norm = np.sum(np.abs(x), axis=axis, keepdims=True) if p == 1 else reduce_l2.kernel(x, np.array([axis]))
    return np.asarray(np.divide(x, np.where(norm == 0, x.dtype.type(1), norm), out=out))


@lp_normalization.types
def _(node: Node) -> Type:
    if attr(node, "p") not in (1, 2):
        raise ValidationError(f"LpNormalization has p 1 or 2, got {attr(node, 'p')}", code="attribute", where=node.label)
    return node.input(0).type


@lp_normalization.expansion
def _(b: Builder, node: Node) -> Value:
    """x / |x|, and 0 with slope 0 where the norm is 0."""
    x = node.input(0)
    reduce = b.ReduceL1 if attr(node, "p") == 1 else b.ReduceL2
    norm = reduce(x, [attr(node, "axis")], keepdims=1)
    vanishes = b.Equal(norm, 0.0)
    one, zero = b.scalar(1, x.type.dtype), b.scalar(0, x.type.dtype)
    return b.Where(vanishes, zero, b.Div(x, b.Where(vanishes, one, norm)))


# ---- many examples ----------------------------------------------------------------------------------------------------------

lrn.batch(within_batch(0))
lp_normalization.batch(along_axis())


@mean_variance_normalization.batch
def _(b: BatchBuilder, node: Node, x: Value) -> Any:
    """The same axes behind that of the examples."""
    return again(b, node, [x], axes=tuple(a if a < 0 else a + 1 for a in attr(node, "axes")))
