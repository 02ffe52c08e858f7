"""Operators of the flowgrad domain that derivatives are made with: a product that selects first, and a stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise.arithmetic import computed
from flowgrad.ir.ops.registry import FLOWGRAD, STANDS_FOR, Trait, op
from flowgrad.ir.types import BOOL, Type


@op("MaskedMul", domain=FLOWGRAD, traits=(Trait.BROADCASTS, Trait.ELEMENTWISE, Trait.BILINEAR))
def masked_mul(a: Array, b: Array, *, out: Array | None = None, work: Sequence[Array] | None = None) -> Array:
    """a * b where a is not zero, else 0: a zero cotangent meets a NaN or an infinity without harm."""
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
    """a_bar = y_bar * b, b_bar = y_bar * a, selected likewise."""
    x, y = node.inputs
    return b.MaskedMul(y_bar, y), b.MaskedMul(x, y_bar)


@masked_mul.expansion
def _(b: Builder, node: Node) -> Any:
    """y = Where(a = 0, 0, a * b)."""
    x, y = node.input(0), node.input(1)
    return b.Where(b.Equal(x, 0.0), b.scalar(0, x.type.dtype), b.Mul(x, y))


@op("StopGradient", domain=FLOWGRAD, traits=(Trait.ELEMENTWISE, Trait.VIEW, Trait.ZERO))
def stop_gradient(x: Array) -> Array:
    return x


@stop_gradient.expansion
def _(b: Builder, node: Node) -> Any:
    """y = x; the mark lets a reader know that no derivative passes."""
    y = b.Identity(node.input(0))
    y.producer.metadata[STANDS_FOR] = node.op
    return y
