"""Elementwise arithmetic and mathematics."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.registry import Trait, op

BROADCASTS = (Trait.BROADCASTS, Trait.ELEMENTWISE)
SHAPES = (*BROADCASTS, Trait.SHAPE_ARITHMETIC)


@op("Add", since=7, outputs=("C",), traits=(*SHAPES, Trait.LINEAR, Trait.COMMUTATIVE))
def add(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.add(a, b, out=out)


@add.adjoint
def _(b: Any, node: Node, c_bar: Value) -> Any:
    """a_bar = c_bar; b_bar = c_bar."""
    return c_bar, c_bar


@op("Mul", since=7, outputs=("C",), traits=(*SHAPES, Trait.BILINEAR, Trait.COMMUTATIVE))
def mul(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.multiply(a, b, out=out)


@mul.adjoint
def _(b: Any, node: Node, c_bar: Value) -> Any:
    """a_bar = c_bar * b; b_bar = c_bar * a."""
    x, y = node.inputs
    return b.Mul(c_bar, y), b.Mul(c_bar, x)


@op("Exp", since=6, traits=(Trait.ELEMENTWISE,))
def exp(x: Array, *, out: Array | None = None) -> Array:
    return np.exp(x, out=out)


@exp.partials
def _(b: Any, node: Node) -> Any:
    """dy/dx = y."""
    return (node.output(),)
