"""Softmax and its relatives, normalised along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import along_axis
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise.arithmetic import computed
from flowgrad.ir.ops.operands import normal_axis
from flowgrad.ir.ops.registry import Trait, attr, op
from flowgrad.ir.types import Type

Work = Sequence[Array] | None


def _normalized_type(node: Node) -> Type:
    """The type of the input, which must have the axis."""
    type_ = node.input(0).type
    if type_.rank is not None:
        normal_axis(attr(node, "axis"), type_.rank)
    return type_


def _row_type(node: Node) -> list[Type]:
    """One number per row: the type of the input with extent 1 along the axis."""
    type_ = computed(node.input(0).type)
    shape = list(type_.static_shape)
    shape[attr(node, "axis")] = 1
    return [type_.with_shape(shape)]


def _row_buffer(x: Array, axis: int, work: Work) -> Array:
    if work:
        return work[0]
    shape = list(x.shape)
    shape[axis] = 1
    return np.empty(shape, x.dtype)


def _shifted(x: Array, axis: int, out: Array, row: Array) -> Array:
    """Write x - max(x) to ``out``, so that no exponential overflows."""
    np.maximum.reduce(x, axis=axis, keepdims=True, out=row)
    return np.subtract(x, row, out=out)


@op("Softmax", since=13, outputs=("output",))
def softmax(x: Array, *, axis: int = -1, out: Array | None = None, work: Work = None) -> Array:
    result = np.empty_like(x) if out is None else out
    if x.size == 0:
        return result
    row = _row_buffer(x, axis, work)
    np.exp(_shifted(x, axis, result, row), out=result)
    np.add.reduce(result, axis=axis, keepdims=True, out=row)
    return np.divide(result, row, out=result)


softmax.types(_normalized_type)
softmax.work(_row_type)


def _softmax_rule(b: Builder, node: Node, v: Value) -> Value:
    """y (v - sum(y v)): the Jacobian is symmetric, so both modes share this."""
    y, change = (b.cast(a, a.type.dtype.wide) for a in (node.output(), v))
    weighted = b.ReduceSum(b.Mul(change, y), [attr(node, "axis")], keepdims=1)
    return b.cast_like(b.Mul(b.Sub(change, weighted), y), v)


softmax.adjoint(_softmax_rule)
softmax.tangent(_softmax_rule)


@op("LogSoftmax", since=13, outputs=("output",))
def log_softmax(x: Array, *, axis: int = -1, out: Array | None = None, work: Work = None) -> Array:
    result = np.empty_like(x) if out is None else out
    if x.size == 0:
        return result
    row = _row_buffer(x, axis, work)
    shifted = _shifted(x, axis, result, row)
    exponentials = work[1] if work else np.empty_like(x)
    np.exp(shifted, out=exponentials)
    np.add.reduce(exponentials, axis=axis, keepdims=True, out=row)
    np.log(row, out=row)
    return np.subtract(shifted, row, out=result)


log_softmax.types(_normalized_type)


@log_softmax.work
def _(node: Node) -> list[Type]:
    return [*_row_type(node), computed(node.input(0).type)]


def _shares(b: Builder, node: Node) -> Value:
    """Return exp(y) in the type that is computed in; not from a y that was rounded to a narrower one."""
    x, y = node.input(0), node.output()
    return b.Softmax(b.cast(x, x.type.dtype.wide), axis=attr(node, "axis")) if y.type.dtype.is_narrow else b.Exp(y)


@log_softmax.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar - exp(y) sum(y_bar)."""
    change = b.cast(y_bar, y_bar.type.dtype.wide)
    total = b.ReduceSum(change, [attr(node, "axis")], keepdims=1)
    return b.cast_like(b.Sub(change, b.Mul(total, _shares(b, node))), y_bar)


@log_softmax.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value) -> Any:
    """y_dot = x_dot - sum(exp(y) x_dot)."""
    change = b.cast(x_dot, x_dot.type.dtype.wide)
    weighted = b.Mul(change, _shares(b, node))
    return b.cast_like(b.Sub(change, b.ReduceSum(weighted, [attr(node, "axis")], keepdims=1)), x_dot)


@op("Hardmax", since=13, outputs=("output",), traits=(Trait.ZERO,))
def hardmax(x: Array, *, axis: int = -1, out: Array | None = None) -> Array:
    result = np.zeros_like(x) if out is None else out
    if x.size == 0:
        return result
    np.copyto(result, 0)
    first = np.expand_dims(np.argmax(x, axis=axis), axis)
    np.put_along_axis(result, first, 1, axis=axis)
    return result


hardmax.types(_normalized_type)

for _definition in (softmax, log_softmax, hardmax):
    _definition.batch(along_axis())
