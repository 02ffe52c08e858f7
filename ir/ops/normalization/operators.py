"""Normalization by statistics of layers, of instances and of groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, in_rows, looped, merged_again
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.normalization.standardization import (
    Standardized,
    column,
    inverse_deviation,
    standardize,
    statistics,
)
from flowgrad.ir.ops.operands import check_channels, normal_axis, sum_of_present
from flowgrad.ir.ops.registry import attr, op
from flowgrad.ir.types import DType, Type, dtype_of

# ---- LayerNormalization and RMSNormalization ----------------------------------------------------------------------------


def stash(node: Node) -> DType:
    """Return the type that statistics are computed in: what stash_type says, and never less than the data has."""
    asked = dtype_of(int(attr(node, "stash_type")))
    given = node.input(0).type.dtype
    return given if given.itemsize > asked.itemsize else asked


def _layer_axes(node: Node) -> list[int]:
    rank = len(node.input(0).shape)
    return list(range(normal_axis(attr(node, "axis"), rank), rank))


def _affine(hat: Array, scale: Array, bias: Array | None, out: Array | None) -> Array:
    y = np.multiply(hat, scale, out=out)
    if bias is not None:
        y += bias
    return y


@op("LayerNormalization", since=17, outputs=("Y", "Mean", "InvStdDev"), required_outputs=1,
    residuals=("saved_mean", "saved_inv_std"), dtype_attributes=("stash_type",))
def layer_normalization(
    x: Array, scale: Array, b: Array | None = None, *,
    axis: int = -1, epsilon: float = 9.999999747378752e-06, stash_type: int = 1, count: int = 1, out: Array | None = None,
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


@layer_normalization.scratch
def _(node: Node) -> int:
    """The standardised operand, where statistics are asked for, too."""
    x = node.input(0).type
    return math.prod(x.static_shape) * x.dtype.wide.itemsize if len(node.results) > 1 else 0


@layer_normalization.types
def _(node: Node) -> list[Type]:
    x = node.input(0)
    asked, exact = dtype_of(int(attr(node, "stash_type"))), stash(node)
    shape = None
    if x.type.shape is not None:
        axes = _layer_axes(node)
        shape = (*x.shape[: axes[0]], *(1,) * len(axes))
    return [x.type, Type(asked, shape), Type(asked, shape), Type(exact, shape), Type(exact, shape)]


def _layer_statistics(b: Builder, node: Node) -> tuple[Value, Value]:
    return statistics(b, b.cast(node.input(0), stash(node)), _layer_axes(node), attr(node, "epsilon"))


@layer_normalization.residual("saved_mean")
def _(b: Builder, node: Node) -> Value:
    """The mean of every layer."""
    return _layer_statistics(b, node)[0]


@layer_normalization.residual("saved_inv_std")
def _(b: Builder, node: Node) -> Value:
    """One over the standard deviation of every layer."""
    return _layer_statistics(b, node)[1]


def _layer_parts(b: DerivativeBuilder, node: Node) -> Standardized:
    """The standard's own outputs serve as residuals where they are as precise as the data."""
    exact = stash(node)
    names = ("Mean", "InvStdDev") if exact == dtype_of(int(attr(node, "stash_type"))) else ("saved_mean", "saved_inv_std")
    mean, r = (b.residual(node, name) for name in names)
    return Standardized(b.cast(node.input(0), exact), mean, r, _layer_axes(node))


def _live(b: DerivativeBuilder, dtype: DType, *bars: Value | None) -> Value | None:
    """Return the sum of the cotangents that are there, in ``dtype``."""
    return sum_of_present(b, *(b.cast(bar, dtype) for bar in bars if bar is not None and not b.is_zero(bar)))


@layer_normalization.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value, mean_bar: Value | None, r_bar: Value | None, saved_mean_bar: Value | None,
      saved_r_bar: Value | None) -> Any:
    """x^_bar = y_bar scale, x_bar as in ``standardize``; scale_bar = sum(y_bar x^), b_bar = sum(y_bar)."""
    parts = _layer_parts(b, node)
    dtype = parts.x.type.dtype
    return _affine_bars(b, node, parts, y_bar, _live(b, dtype, mean_bar, saved_mean_bar),
                        _live(b, dtype, r_bar, saved_r_bar))


def _affine_bars(
    b: DerivativeBuilder, node: Node, parts: Standardized, y_bar: Value, mean_bar: Value | None, r_bar: Value | None
) -> list[Value]:
    """Return the cotangents of x, scale and bias of y = x^ * scale + bias, whose last two broadcast."""
    dtype = parts.x.type.dtype
    bar, scale, hat = b.cast(y_bar, dtype), node.input(1), parts.hat(b)
    x_bar = parts.bar(b, hat, b.Mul(bar, b.cast(scale, dtype)), mean_bar, r_bar)
    bars = [x_bar, b.sum_to(b.Mul(bar, hat), scale)]
    if len(node.inputs) > 2:
        bars.append(b.sum_to(bar, node.input(2)))
    return [b.cast(bar, node.input(i).type.dtype) for i, bar in enumerate(bars)]


@layer_normalization.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, scale_dot: Value | None, b_dot: Value | None = None) -> Any:
    """y_dot = x^_dot scale + x^ scale_dot + b_dot; the statistics have tangents too."""
    y_dot, mean_dot, r_dot = _affine_dots(b, node, _layer_parts(b, node), x_dot, scale_dot, b_dot)
    asked = dtype_of(int(attr(node, "stash_type")))
    return [y_dot, mean_dot and b.cast(mean_dot, asked), r_dot and b.cast(r_dot, asked), mean_dot, r_dot]


def _affine_dots(
    b: DerivativeBuilder, node: Node, parts: Standardized, x_dot: Value | None, scale_dot: Value | None, b_dot: Value | None
) -> tuple[Value, Value | None, Value | None]:
    x, dtype = node.input(0), parts.x.type.dtype
    hat = parts.hat(b)
    direct = mean_dot = r_dot = None
    if x_dot is not None:
        hat_dot, mean_dot, r_dot = parts.dots(b, hat, b.cast(x_dot, dtype))
        direct = b.Mul(hat_dot, b.cast(node.input(1), dtype))
    scaled = None if scale_dot is None else b.Mul(hat, b.cast(scale_dot, dtype))
    total = sum_of_present(b, direct, scaled, b_dot and b.cast(b_dot, dtype))
    if total is None:
        return b.zero(x), mean_dot, r_dot
    if direct is None and scaled is None:
        total = b.Expand(total, b.shape(x))
    return b.cast(total, x.type.dtype), mean_dot, r_dot


@op("RMSNormalization", new_dtypes=("scale",), since=23, residuals=("inv_rms",), dtype_attributes=("stash_type",))
def rms_normalization(
    x: Array, scale: Array, *, axis: int = -1, epsilon: float = 9.999999747378752e-06, stash_type: int = 1, count: int = 1,
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
def _(b: Builder, node: Node) -> Value:
    """One over the root mean square of every layer."""
    x = b.cast(node.input(0), stash(node))
    return inverse_deviation(b, b.ReduceMean(b.Mul(x, x), _layer_axes(node), keepdims=1), attr(node, "epsilon"))


@rms_normalization.expansion
def _(b: Builder, node: Node) -> Any:
    """x / sqrt(mean(x^2) + epsilon) * scale."""
    x, exact = node.input(0), stash(node)
    data = b.cast(x, exact)
    r = inverse_deviation(b, b.ReduceMean(b.Mul(data, data), _layer_axes(node), keepdims=1), attr(node, "epsilon"))
    return b.Mul(b.cast(b.Mul(data, r), x.type.dtype), node.input(1)), r


def _rms_parts(b: DerivativeBuilder, node: Node) -> Standardized:
    return Standardized(b.cast(node.input(0), stash(node)), None, b.residual(node, "inv_rms"), _layer_axes(node))


@rms_normalization.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value, r_bar: Value | None) -> Any:
    """With x^ = x r: x_bar = r (x^_bar - x^ mean(x^_bar x^)) - r_bar r^2 x^ / m; scale_bar = sum(y_bar x^)."""
    return _affine_bars(b, node, _rms_parts(b, node), y_bar, None, r_bar)


@rms_normalization.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, scale_dot: Value | None) -> Any:
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
    y = _affine(hat.reshape(x.shape), column(scale, x.ndim, x.dtype), column(bias, x.ndim, x.dtype), out)
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

    def __init__(self, b: Builder, node: Node, groups: Value | int, exact: DType) -> None:
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
        return self.b.Reshape(self.b.cast(x, self.exact), self.shape, allowzero=1)

    def column(self, vector: Value) -> Value:
        """Return a vector of channels so that it broadcasts against a view."""
        matrix = self.b.Reshape(self.b.cast(vector, self.exact), self.channels, allowzero=1)
        axes = list(range(2, self.rank))
        return self.b.Unsqueeze(matrix, axes) if axes else matrix

    def back(self, viewed: Value, like: Value) -> Value:
        """Return a view, or what is left of it after summing, in shape and type of ``like``."""
        return self.b.cast(self.b.Reshape(viewed, self.b.shape(like), allowzero=1), like.type.dtype)

    def sum(self, viewed: Value) -> Value:
        """Return the sum over batch and image."""
        return self.b.ReduceSum(viewed, [0, *range(3, self.rank + 1)], keepdims=0)

    def parts(self) -> Standardized:
        """Return the pieces of the standardization of every group."""
        mean, r = (self.b.residual(self.node, name) for name in ("saved_mean", "saved_inv_std"))
        return Standardized(self.view(self.node.input(0)), mean, r, self.axes)

    def statistics(self) -> tuple[Value, Value]:
        """Return mean and r of every group, from plain operators."""
        return statistics(self.b, self.view(self.node.input(0)), self.axes, attr(self.node, "epsilon"))

    def bars(self, b: DerivativeBuilder, y_bar: Value, mean_bar: Value | None, r_bar: Value | None) -> list[Value]:
        """Return the cotangents of x, scale and bias."""
        x, scale, bias = (self.node.input(i) for i in range(3))
        parts, bar = self.parts(), self.view(y_bar)
        hat = parts.hat(self.b)
        x_bar = parts.bar(b, hat, self.b.Mul(bar, self.column(scale)), mean_bar, r_bar)
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
        total = sum_of_present(b, direct, scaled, bias_dot and self.column(bias_dot))
        if total is not None and direct is None and scaled is None:
            total = b.Expand(total, self.shape)
        return [total and self.back(total, x), mean_dot, r_dot]


@op("InstanceNormalization", since=6, residuals=("saved_mean", "saved_inv_std"))
def instance_normalization(
    x: Array, scale: Array, b: Array, *, epsilon: float = 9.999999747378752e-06, count: int = 1, out: Array | None = None
) -> Any:
    return _by_groups(x, x.shape[1], scale, b, epsilon, count, out)


@instance_normalization.types
def _(node: Node) -> list[Type]:
    x = node.input(0)
    check_channels(node, 1, 2)
    return _group_types(node, x.shape[1] if x.type.shape is not None else None, x.type.dtype.wide)


def _instances(b: Builder, node: Node) -> Grouped:
    x = node.input(0)
    return Grouped(b, node, b.extent(x, 1), x.type.dtype.wide)


@instance_normalization.residual("saved_mean")
def _(b: Builder, node: Node) -> Value:
    """The mean of every channel of every image."""
    return _instances(b, node).statistics()[0]


@instance_normalization.residual("saved_inv_std")
def _(b: Builder, node: Node) -> Value:
    """One over the standard deviation of every channel of every image."""
    return _instances(b, node).statistics()[1]


@instance_normalization.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value, mean_bar: Value | None, r_bar: Value | None) -> Any:
    """x_bar as in ``standardize`` with x^_bar = y_bar scale; scale_bar = sum(y_bar x^), b_bar = sum(y_bar)."""
    return _instances(b, node).bars(b, y_bar, mean_bar, r_bar)


@instance_normalization.tangent
def _(b: DerivativeBuilder, node: Node, *dots: Value | None) -> Any:
    """y_dot = x^_dot scale + x^ scale_dot + b_dot."""
    return _instances(b, node).dots(*dots)


@op("GroupNormalization", since=21, residuals=("saved_mean", "saved_inv_std"), dtype_attributes=("stash_type",))
def group_normalization(
    x: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float = 9.999999747378752e-06, stash_type: int = 1,
    count: int = 1, out: Array | None = None,
) -> Any:
    return _by_groups(x, num_groups, scale, bias, epsilon, count, out)


@group_normalization.types
def _(node: Node) -> list[Type]:
    x, groups = node.input(0), attr(node, "num_groups")
    if groups < 1 or (x.type.shape is not None and isinstance(x.shape[1], int) and x.shape[1] % groups):
        raise ValidationError(f"{groups} groups do not divide {x.type!r}", code="attribute", where=node.label)
    return _group_types(node, groups, stash(node))


def _groups(b: Builder, node: Node) -> Grouped:
    return Grouped(b, node, int(attr(node, "num_groups")), stash(node))


@group_normalization.residual("saved_mean")
def _(b: Builder, node: Node) -> Value:
    """The mean of every group of every image."""
    return _groups(b, node).statistics()[0]


@group_normalization.residual("saved_inv_std")
def _(b: Builder, node: Node) -> Value:
    """One over the standard deviation of every group of every image."""
    return _groups(b, node).statistics()[1]


@group_normalization.expansion
def _(b: Builder, node: Node) -> Any:
    """Standardize every group, then scale and shift every channel."""
    groups = _groups(b, node)
    x = groups.view(node.input(0))
    mean, r = groups.statistics()
    hat = b.Mul(b.Sub(x, mean), r)
    y = b.Add(b.Mul(hat, groups.column(node.input(1))), groups.column(node.input(2)))
    return groups.back(y, node.input(0)), mean, r


@group_normalization.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value, mean_bar: Value | None, r_bar: Value | None) -> Any:
    """x_bar as in ``standardize`` with x^_bar = y_bar scale; scale_bar = sum(y_bar x^), bias_bar = sum(y_bar)."""
    return _groups(b, node).bars(b, y_bar, mean_bar, r_bar)


@group_normalization.tangent
def _(b: DerivativeBuilder, node: Node, *dots: Value | None) -> Any:
    """y_dot = x^_dot scale + x^ scale_dot + bias_dot."""
    return _groups(b, node).dots(*dots)


# ---- many examples ----------------------------------------------------------------------------------------------------------


@layer_normalization.batch
def _(b: BatchBuilder, node: Node, x: Value, scale: Value, bias: Value | None = None) -> Any:
    """The same axes behind that of the examples."""
    return _layers(b, node, [x, scale, bias])


@rms_normalization.batch
def _(b: BatchBuilder, node: Node, x: Value, scale: Value) -> Any:
    """The same axes behind that of the examples."""
    return _layers(b, node, [x, scale])


def _layers(b: BatchBuilder, node: Node, xs: Sequence[Value | None]) -> Any:
    rank = node.input(0).type.rank
    if not rank or any(v.type.rank is None for v in node.operands) or xs[0] is None:
        return looped(b, node, *xs)
    xs = [b.lifted(xs[0]), *xs[1:]]
    axis = normal_axis(attr(node, "axis"), rank)
    small = all(b.holds(v) or len(v.shape) < rank for v in xs[1:] if v is not None)
    if axis and small and not any(b.holds(v) for v in xs[1:]) and (made := in_rows(b, node, xs, axis=axis)) is not None:
        return made
    return again(b, node, [v if v is None else b.padded(v, rank) for v in xs], axis=axis + 1)


def _samples(b: BatchBuilder, node: Node, x: Value, scale: Value, bias: Value) -> Any:
    """Take the examples for more samples; None where they have factors of their own."""
    if any(v.type.rank is None for v in node.operands):
        return looped(b, node, x, scale, bias)
    if b.holds(scale) or b.holds(bias):
        return None
    return merged_again(b, node, [x, scale, bias], {0: 0}, [0, 0, 0])


@instance_normalization.batch
def _(b: BatchBuilder, node: Node, x: Value, scale: Value, bias: Value) -> Any:
    """More samples by shared factors; with those of each example, more channels."""
    if (made := _samples(b, node, x, scale, bias)) is not None:
        return made
    return merged_again(b, node, [x, scale, bias], {0: 1, 1: 0, 2: 0}, [1, 1, 1])


@group_normalization.batch
def _(b: BatchBuilder, node: Node, x: Value, scale: Value, bias: Value) -> Any:
    """More samples; factors of their own are applied to what is standardized."""
    if (made := _samples(b, node, x, scale, bias)) is not None:
        return made
    one, none = (b.Expand(b.scalar(n, v.type.dtype), b.example_shape(v) if b.holds(v) else b.shape(v))
                 for n, v in ((1, scale), (0, bias)))
    hat, *others = merged_again(b, node, [x, one, none], {0: 0}, [0, 0, 0])
    assert hat is not None
    rank, tail = len(node.input(0).shape), list(range(-1, 1 - len(node.input(0).shape), -1))
    columns = [b.padded(b.alike(b.Unsqueeze(v, tail) if tail else v, v), rank) for v in (scale, bias)]
    return b.Add(b.Mul(hat, columns[0]), columns[1]), *others
