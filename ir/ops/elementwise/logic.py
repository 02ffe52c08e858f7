"""Comparison and logic: outputs are bool, no cotangent passes."""

from __future__ import annotations

import numpy as np

from flowgrad.ir.graph import Array, Node
from flowgrad.ir.ops.elementwise.arithmetic import matched
from flowgrad.ir.ops.registry import Trait, op
from flowgrad.ir.types import BOOL, Type

TRAITS = (Trait.BROADCASTS, Trait.ELEMENTWISE, Trait.ZERO)


@op("Equal", since=7, outputs=("C",), traits=(*TRAITS, Trait.COMMUTATIVE), ufunc=np.equal)
def equal(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.equal(a, b, out=out)


@op("Less", since=7, outputs=("C",), traits=TRAITS, ufunc=np.less)
def less(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.less(a, b, out=out)


@op("LessOrEqual", since=12, outputs=("C",), traits=TRAITS, ufunc=np.less_equal)
def less_or_equal(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.less_equal(a, b, out=out)


@op("Greater", since=7, outputs=("C",), traits=TRAITS, ufunc=np.greater)
def greater(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.greater(a, b, out=out)


@op("GreaterOrEqual", since=12, outputs=("C",), traits=TRAITS, ufunc=np.greater_equal)
def greater_or_equal(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.greater_equal(a, b, out=out)


@op("And", since=7, outputs=("C",), traits=(*TRAITS, Trait.COMMUTATIVE), ufunc=np.logical_and, in_place=True)
def and_(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.logical_and(a, b, out=out)


@op("Or", since=7, outputs=("C",), traits=(*TRAITS, Trait.COMMUTATIVE), ufunc=np.logical_or, in_place=True)
def or_(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.logical_or(a, b, out=out)


@op("Xor", since=7, outputs=("C",), traits=(*TRAITS, Trait.COMMUTATIVE))
def xor(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.logical_xor(a, b, out=out)


def _bool_matched(node: Node) -> Type:
    return matched(node).with_dtype(BOOL)


for _definition in (equal, less, less_or_equal, greater, greater_or_equal, and_, or_, xor):
    _definition.types(_bool_matched)


@op("Not", traits=(Trait.ELEMENTWISE, Trait.ZERO), ufunc=np.logical_not, in_place=True)
def not_(x: Array, *, out: Array | None = None) -> Array:
    return np.logical_not(x, out=out)


@not_.types
def _(node: Node) -> Type:
    return node.input(0).type.with_dtype(BOOL)
