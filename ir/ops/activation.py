"""Activation functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise import select
from flowgrad.ir.ops.registry import Trait, op

UNARY = (Trait.ELEMENTWISE,)


@op("Relu", since=6, traits=UNARY)
def relu(x: Array, *, out: Array | None = None) -> Array:
    return np.maximum(x, 0, out=out)


def _relu_rule(b: Any, node: Node, v: Value) -> Any:
    """v where x > 0, else 0."""
    return select(b, b.Greater(node.output(), 0.0), v)


relu.adjoint(_relu_rule)
relu.tangent(_relu_rule)


@op("Sigmoid", since=6, traits=UNARY)
def sigmoid(x: Array, *, out: Array | None = None) -> Array:
    """1 / (1 + exp(-x)); where exp overflows the quotient is exactly 0."""
    result = np.negative(x, out=out)
    np.exp(result, out=result)
    np.add(result, 1, out=result)
    return np.divide(1, result, out=result)


@sigmoid.partials
def _(b: Any, node: Node) -> Any:
    """dy/dx = y (1 - y)."""
    y = node.output()
    return (b.Mul(y, b.Sub(b.scalar(1, y.type.dtype), y)),)


@op("Tanh", since=6, outputs=("output",), traits=UNARY)
def tanh(x: Array, *, out: Array | None = None) -> Array:
    return np.tanh(x, out=out)


@tanh.partials
def _(b: Any, node: Node) -> Any:
    """dy/dx = 1 - y^2."""
    y = node.output()
    return (b.Sub(b.scalar(1, y.type.dtype), b.Mul(y, y)),)
