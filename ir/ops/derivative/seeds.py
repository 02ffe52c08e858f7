"""What is fed as a cotangent or tangent has the shape of its value."""

from __future__ import annotations

from typing import Any

from flowgrad.ir.batching import BatchBuilder, again, looped
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import int_list, joined, known_dims, known_length, unknown_shape
from flowgrad.ir.ops.registry import FLOWGRAD, NO_GRADIENT, Trait, op
from flowgrad.ir.types import Type, merge_types


@op("OfShape", since=14, domain=FLOWGRAD, traits=(Trait.LINEAR, Trait.VIEW, Trait.REGROUPS), extents=("shape",))
def of_shape(x: Array, shape: Array) -> Array:
    """Return ``x``. Raises InputError unless it has the given shape: another one would broadcast."""
    wanted = int_list(shape) or []
    if list(x.shape) != wanted:
        raise InputError(f"a cotangent or tangent of shape {list(x.shape)} is fed for a value of shape {wanted}", code="shape")
    return x


@of_shape.types
def _(node: Node) -> Type:
    x, dims = node.input(0).type, known_dims(node.input(1))
    said = x.with_shape(unknown_shape(known_length(node.input(1))) if dims is None else tuple(dims))
    return said if x.is_static and said.is_static else merge_types(x, said)


@of_shape.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar."""
    return y_bar, NO_GRADIENT


@of_shape.expansion
def _(b: Builder, node: Node) -> Value:
    """A Reshape, which fails for another number of elements."""
    return b.Reshape(*node.operands, allowzero=1)


@of_shape.batch
def _(b: BatchBuilder, node: Node, x: Value, shape: Value) -> Any:
    """The shape of one for each."""
    if b.holds(shape):
        return looped(b, node, x, shape)
    return again(b, node, [x, joined(b, [b.count, shape])])
