"""Operators that make tensors from shapes and bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import int_list, known_dims, known_length, ramp, sum_of_present, unknown_shape
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op
from flowgrad.ir.types import UNKNOWN, Dim, DimLike, Type, ceil_div, dtype_of

ZERO = np.zeros(1, np.float32)
"""What ConstantOfShape repeats if nothing else is said."""


@op("ConstantOfShape", since=9, outputs=("output",), traits=(Trait.ZERO, Trait.SHAPE_ARITHMETIC), extents=("input",))
def constant_of_shape(input: Array, *, value: Any = ZERO, out: Array | None = None) -> Array:
    number = np.asarray(value).reshape(1)
    if out is None:
        return np.full(int_list(input) or (), number[0], number.dtype)
    out.fill(number[0])
    return out


@constant_of_shape.types
def _(node: Node) -> Type:
    dtype = dtype_of(np.asarray(attr(node, "value")).dtype)
    dims = known_dims(node.input(0))
    return Type(dtype, unknown_shape(known_length(node.input(0))) if dims is None else tuple(dims))


@op("Range", since=11, outputs=("output",), traits=(Trait.SHAPE_ARITHMETIC,),
    extents=("start", "limit", "delta"), dtype_attributes=("stash_type",))
def range_(start: Array, limit: Array, delta: Array, *, stash_type: int = 1) -> Array:
    first, last, step = (a.reshape(-1)[0] for a in (start, limit, delta))
    if start.dtype == object:
        return np.asarray(list(range(*_plain_ints(first, last, step))), object)
    count = _range_length(first, last, step)
    return np.asarray(first + np.arange(count).astype(start.dtype) * step).astype(start.dtype, copy=False)


def _range_length(first: Any, last: Any, step: Any) -> int:
    if np.asarray(first).dtype.kind == "f":
        return max(int(np.ceil((last - first) / step)), 0)
    return len(range(int(first), int(last), int(step)))


def _plain_ints(*numbers: Any) -> list[int]:
    if not all(isinstance(n, (int, np.integer)) for n in numbers):
        raise TypeError("the bounds are known only at run time")
    return [int(n) for n in numbers]


@range_.types
def _(node: Node) -> Type:
    dtype = node.input(0).type.dtype
    constants = [v.constant if v is not None else None for v in node.inputs]
    if all(c is not None for c in constants):
        return Type(dtype, (_range_length(*(c.reshape(-1)[0] for c in constants if c is not None)),))
    bounds = [known_dims(v) for v in node.inputs]
    if any(d is None for d in bounds):
        return Type(dtype, (UNKNOWN,))
    ((first,), (last,), (step,)) = [d or [0] for d in bounds]
    if all(isinstance(d, int) for d in (first, last, step)):
        return Type(dtype, (len(range(*_plain_ints(first, last, step))),))
    if isinstance(step, int) and step > 0 and _is_nonnegative(last - first):
        return Type(dtype, (ceil_div(last - first, step),))
    return Type(dtype, (UNKNOWN,))


@range_.expands_on_export
def _(node: Node) -> bool:
    """True for vectors of one element, which runtimes take and onnx.checker does not."""
    return any(v.type.rank for v in node.operands)


@range_.expansion
def _(b: Builder, node: Node) -> Value:
    """The same of scalars."""
    bounds = [b.Reshape(v, b.ints([])) if v.type.rank else v for v in node.operands]
    return b.Range(*bounds, **node.attributes)


def _is_nonnegative(dim: DimLike) -> bool:
    return dim.is_nonnegative if isinstance(dim, Dim) else dim >= 0


def _ramp_like(b: Builder, like: Value) -> Value:
    """Return 0, 1, 2, ... of the type of the vector ``like``."""
    return b.cast(ramp(b, b.extent(like, 0)), like.type.dtype)


@range_.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """y_i = start + i delta: start_bar = sum(y_bar), delta_bar = sum(i y_bar); limit only sets the length."""
    return (
        b.Reshape(b.ReduceSum(y_bar, keepdims=0), b.shape(node.input(0))),
        NO_GRADIENT,
        b.Reshape(b.ReduceSum(b.Mul(y_bar, _ramp_like(b, y_bar)), keepdims=0), b.shape(node.input(2))),
    )


@range_.tangent
def _(b: DerivativeBuilder, node: Node, start_dot: Value | None, limit_dot: Value | None, delta_dot: Value | None) -> Any:
    """y_dot_i = start_dot + i delta_dot."""
    slope = delta_dot and b.Mul(delta_dot, _ramp_like(b, node.output()))
    return sum_of_present(b, slope, start_dot and b.Expand(start_dot, b.shape(node.output())))
