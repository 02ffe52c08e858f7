"""Operators of the flowgrad domain that derivatives are made with: a product with a mask, a stop, and a surrogate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import together
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise.arithmetic import computed
from flowgrad.ir.ops.operands import sum_of_present
from flowgrad.ir.ops.registry import FLOWGRAD, NO_GRADIENT, STANDS_FOR, Trait, op
from flowgrad.ir.types import BOOL, Type, merge_types


@op("MaskedMul", domain=FLOWGRAD, traits=(Trait.BROADCASTS, Trait.ELEMENTWISE, Trait.BILINEAR))
def masked_mul(a: Array, b: Array, *, out: Array | None = None, work: Sequence[Array] | None = None) -> Array:
    """a * b where a is not zero, else 0: what a mask of zeros and ones discards may be NaN or infinite."""
    zero = np.equal(a, 0, out=work[0] if work else None)
    result = np.multiply(a, b, out=out)
    if result.ndim == 0:
        return result if not zero else np.multiply(result.dtype.type(0), 1, out=out)
    np.copyto(result, 0, where=zero)
    return result


@masked_mul.work
def _(node: Node) -> list[Type]:
    return [computed(node.input(0).type).with_dtype(BOOL)]


@masked_mul.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """a_bar = y_bar * b; b_bar = a * y_bar, where a is zero that of a selection."""
    return b.Mul(y_bar, node.input(1)), b.support.masked_by(node.input(0), y_bar)


@masked_mul.tangent
def _(b: DerivativeBuilder, node: Node, a_dot: Value | None, b_dot: Value | None) -> Any:
    """y_dot = a_dot * b + a * b_dot."""
    first = None if a_dot is None else b.Mul(a_dot, node.input(1))
    return sum_of_present(b, first, None if b_dot is None else b.support.masked_by(node.input(0), b_dot))


@masked_mul.expansion
def _(b: Builder, node: Node) -> Any:
    """y = a b', where b' is b, but 0 where a is 0 and b is infinite or NaN. So dy/da is b where a is 0, too."""
    x, y = node.input(0), node.input(1)
    zero = b.scalar(0, y.type.dtype)
    is_finite = b.Equal(b.Sub(y, y), zero)
    return b.Mul(x, b.Where(b.Or(b.Not(b.Equal(x, zero)), is_finite), y, zero))


@op("StopGradient", domain=FLOWGRAD, traits=(Trait.ELEMENTWISE, Trait.VIEW, Trait.ZERO, Trait.MARKED))
def stop_gradient(x: Array) -> Array:
    return x


@stop_gradient.expansion
def _(b: Builder, node: Node) -> Any:
    """y = x; the mark lets a reader know that no derivative passes."""
    y = b.Identity(node.input(0))
    y.producer.metadata[STANDS_FOR] = node.op
    return y


@op("Surrogate", domain=FLOWGRAD, traits=(Trait.VIEW, Trait.MARKED), settings=("x",))
def surrogate(x: Array, smooth: Array) -> Array:
    """The value of the first operand, with the derivative of the second, which has its type."""
    return x


@surrogate.types
def _(node: Node) -> Type:
    return merge_types(node.input(0).type, node.input(1).type)


@surrogate.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """smooth_bar = y_bar; the first operand gets nothing, by definition."""
    return NO_GRADIENT, y_bar


@surrogate.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, smooth_dot: Value | None) -> Any:
    """y_dot = smooth_dot."""
    return smooth_dot


@surrogate.expansion
def _(b: Builder, node: Node) -> Any:
    """y = x, by a choice that is always the same; the mark lets a reader know whose derivative counts."""
    y = b.Where(b.scalar(True, BOOL), node.input(0), node.input(1))
    y.producer.metadata[STANDS_FOR] = node.op
    return y


surrogate.batch(together)
