"""Elementwise mathematical functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise.arithmetic import BROADCASTS, at, select, slope
from flowgrad.ir.ops.elementwise.error_function import BLOCK, ROWS, erf_into
from flowgrad.ir.ops.operands import sum_of
from flowgrad.ir.ops.registry import FLOWGRAD, NO_GRADIENT, OpDef, Trait, op
from flowgrad.ir.types import FLOAT64, Type, broadcast_shapes

UNARY = (Trait.ELEMENTWISE,)


def scaled_by_reciprocal(definition: OpDef, divisor: Callable[[Any, Node], Value]) -> None:
    """Register dy/dx = 1 / divisor in both modes."""

    def rule(b: Builder, node: Node, v: Value) -> Any:
        return b.Div(v, divisor(b, node))

    rule.__doc__ = divisor.__doc__
    slope(definition)(rule)


# ---- powers, exponentials -----------------------------------------------------------------------------------------------


@op("Sqrt", since=6, traits=UNARY, ufunc=np.sqrt, in_place=True)
def sqrt(x: Array, *, out: Array | None = None) -> Array:
    return np.sqrt(x, out=out)


@slope(sqrt)
def _(b: DerivativeBuilder, node: Node, v: Value) -> Any:
    """dy/dx = 1 / (2 y)."""
    return b.Div(b.Mul(v, 0.5), node.output())


@sqrt.kinks
def _(b: Builder, node: Node) -> Value:
    """At 0, where the slope has no end."""
    return at(b, node.input(0), 0.0)


@op("Exp", since=6, outputs=("output",), traits=UNARY, ufunc=np.exp, in_place=True)
def exp(x: Array, *, out: Array | None = None) -> Array:
    return np.exp(x, out=out)


@exp.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = y."""
    return (node.output(),)


@op("Log", since=6, outputs=("output",), traits=UNARY)
def log(x: Array, *, out: Array | None = None) -> Array:
    return np.log(x, out=out)


def _log_divisor(b: Builder, node: Node) -> Value:
    """dy/dx = 1 / x."""
    return node.input(0)


scaled_by_reciprocal(log, _log_divisor)


@op("Reciprocal", since=6, traits=UNARY)
def reciprocal(x: Array, *, out: Array | None = None) -> Array:
    return np.divide(1.0, x, out=out, dtype=x.dtype)


@slope(reciprocal)
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """dy/dx = -1 / x^2."""
    x = node.input(0)
    return b.Neg(b.Div(b.Div(y_bar, x), x))


@op("Pow", new_dtypes=("y",), since=12, outputs=("Z",), traits=BROADCASTS)
def power(x: Array, y: Array, *, out: Array | None = None) -> Array:
    if y.size == 1 and x.dtype.kind == "f" and y.ndim <= x.ndim and (quick := _QUICK_POWERS.get(float(y.reshape(())))):
        return quick(x, out)
    if x.dtype == y.dtype:
        return np.power(x, y, out=out)
    result = np.power(x, y)
    if out is None:
        return result.astype(x.dtype)
    np.copyto(out, result, casting="unsafe")
    return out


def _cube(x: Array, out: Array | None) -> Array:
    return np.multiply(np.multiply(x, x), x, out=out)


_QUICK_POWERS: dict[float, Callable[[Array, Array | None], Array]] = {
    1.0: lambda x, out: np.positive(x, out=out),
    2.0: lambda x, out: np.multiply(x, x, out=out),
    3.0: _cube,
    -1.0: lambda x, out: np.divide(1.0, x, out=out, dtype=x.dtype),
}


@power.types
def _(node: Node) -> Type:
    x, y = node.input(0).type, node.input(1).type
    return Type(x.dtype, broadcast_shapes(x.shape, y.shape))


@power.kinks
def _(b: Builder, node: Node) -> Value:
    """At base 0 for an exponent below 1 that is not 0."""
    x, y = node.input(0), b.cast_like(node.input(1), node.input(0))
    return b.And(at(b, x, 0.0), b.And(b.Less(y, 1.0), b.Not(at(b, y, 0.0))))


def _power_rule(b: DerivativeBuilder, node: Node, v: Value) -> Value:
    """v * dz/dx = v y x^(y-1), with constant exponents as clean as by hand."""
    x, y = node.input(0), node.input(1)
    wide = b.cast_like(y, x)
    exponents = np.zeros(0) if y.literal is None else np.unique(y.literal.astype(np.float64))
    if exponents.size != 1:
        steep = b.Mul(b.Mul(v, wide), b.Pow(x, b.Sub(wide, 1.0)))
        return select(b, b.Not(b.And(b.Equal(x, 0.0), b.Equal(wide, 0.0))), steep)  # x^0 is constant, also at 0
    p = float(exponents[0])
    if p == 0.0:
        return b.zero(node.output())
    if p == 1.0:
        return v
    if p == 2.0:
        return b.Mul(v, b.Mul(x, 2.0))
    return b.Mul(b.Mul(v, wide), b.Pow(x, b.Sub(wide, 1.0)))


def _exponent_rule(b: Builder, node: Node, v: Value) -> Value:
    """v * dz/dy = v z log(x); 0 where x = 0 and y >= 0, like the limit from above."""
    x, y = node.input(0), node.input(1)
    flat = b.And(b.Equal(x, 0.0), b.GreaterOrEqual(y, 0.0))
    return b.cast_like(select(b, b.Not(flat), b.Mul(b.Mul(v, node.output()), b.Log(x))), y)


@power.adjoint
def _(b: DerivativeBuilder, node: Node, z_bar: Value) -> Any:
    """x_bar = z_bar y x^(y-1); y_bar = z_bar z log(x)."""
    is_float = node.input(1).type.dtype.is_float
    needed = is_float and node.input(1).constant is None
    return _power_rule(b, node, z_bar), _exponent_rule(b, node, z_bar) if needed else NO_GRADIENT


@power.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, y_dot: Value | None) -> Any:
    """z_dot = x_dot y x^(y-1) + y_dot z log(x)."""
    parts = [] if x_dot is None else [_power_rule(b, node, x_dot)]
    if y_dot is not None:
        parts.append(_exponent_rule(b, node, b.cast_like(y_dot, node.input(0))))
    return sum_of(b, parts)


# ---- trigonometry -------------------------------------------------------------------------------------------------------


@op("Sin", since=7, outputs=("output",), traits=UNARY)
def sin(x: Array, *, out: Array | None = None) -> Array:
    return np.sin(x, out=out)


@sin.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = cos(x)."""
    return (b.Cos(node.input(0)),)


@op("Cos", since=7, outputs=("output",), traits=UNARY)
def cos(x: Array, *, out: Array | None = None) -> Array:
    return np.cos(x, out=out)


@cos.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = -sin(x)."""
    return (b.Neg(b.Sin(node.input(0))),)


@op("Tan", since=7, outputs=("output",), traits=UNARY)
def tan(x: Array, *, out: Array | None = None) -> Array:
    return np.tan(x, out=out)


@tan.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = 1 + y^2."""
    y = node.output()
    return (b.Add(b.Mul(y, y), 1.0),)


@op("OneMinusSquare", domain=FLOWGRAD, traits=UNARY)
def one_minus_square(x: Array, *, out: Array | None = None) -> Array:
    """(1 - x)(1 + x), with a slope of one factor: of two, one is 0 at an edge, where a derivative of 1 / y is infinite."""
    return np.asarray(np.multiply(1 - x, 1 + x, out=out))


@slope(one_minus_square)
def _(b: Builder, node: Node, v: Value) -> Any:
    """dy/dx = -2 x."""
    return b.Mul(v, b.Mul(node.input(0), -2.0))


@one_minus_square.expansion
def _(b: Builder, node: Node) -> Any:
    """y = (1 - x) (1 + x); read again, it is repaired again."""
    x = node.input(0)
    return b.Mul(b.Sub(b.scalar(1, x.type.dtype), x), b.Add(x, 1.0))


@op("Asin", since=7, outputs=("output",), traits=UNARY)
def asin(x: Array, *, out: Array | None = None) -> Array:
    return np.arcsin(x, out=out)


def _asin_divisor(b: Builder, node: Node) -> Value:
    """dy/dx = 1 / sqrt((1 - x)(1 + x))."""
    return b.Sqrt(b.OneMinusSquare(node.input(0)))


scaled_by_reciprocal(asin, _asin_divisor)


@op("Acos", since=7, outputs=("output",), traits=UNARY)
def acos(x: Array, *, out: Array | None = None) -> Array:
    return np.arccos(x, out=out)


@slope(acos)
def _(b: Builder, node: Node, v: Value) -> Any:
    """dy/dx = -1 / sqrt((1 - x)(1 + x)): the sign is not the divisor's, which may be 0."""
    return b.Neg(b.Div(v, _asin_divisor(b, node)))


@op("Atan", since=7, outputs=("output",), traits=UNARY)
def atan(x: Array, *, out: Array | None = None) -> Array:
    return np.arctan(x, out=out)


@slope(atan)
def _(b: Builder, node: Node, v: Value) -> Any:
    """dy/dx = 1 / (1 + x^2)."""
    length = _hypotenuse(b, node.input(0))
    return b.cast_like(b.Div(b.Div(b.cast_like(v, length), length), length), v)


FAR = 2.0**30
"""Where 1 + x^2 is x^2 in every float type, and neither overflows in those that are computed in."""


def _hypotenuse(b: Builder, x: Value) -> Value:
    """Return sqrt(1 + x^2) in the type that is computed in: of an x within FAR, times |x| / FAR beyond."""
    x = b.cast(x, x.type.dtype.wide)
    near = b.Clip(x, -FAR, FAR)
    beyond = b.Sub(b.Mul(b.Sub(b.Clip(x, FAR, None), b.Clip(x, None, -FAR)), 1 / FAR), 1.0)
    return b.Mul(b.Sqrt(b.Add(b.Mul(near, near), 1.0)), beyond)


@op("AtanOfQuotient", domain=FLOWGRAD, traits=BROADCASTS)
def atan_of_quotient(y: Array, x: Array, *, out: Array | None = None) -> Array:
    """atan(y / x), with a derivative of its own: that of the two in turn is no number where x is 0."""
    return np.arctan(np.divide(y, x, out=out), out=out)


@atan_of_quotient.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """da/dy = x / (x^2 + y^2), da/dx = -y / (x^2 + y^2), divided by the greater first: no square overflows."""
    y, x = node.input(0), node.input(1)
    is_flat = b.GreaterOrEqual(b.Abs(x), b.Abs(y))
    p, q = b.Div(y, x), b.Div(x, y)
    flat, steep = b.Add(x, b.Mul(y, p)), b.Add(y, b.Mul(x, q))
    return (b.Where(is_flat, b.Reciprocal(flat), b.Div(q, steep)),
            b.Neg(b.Where(is_flat, b.Div(p, flat), b.Reciprocal(steep))))


@atan_of_quotient.expansion
def _(b: Builder, node: Node) -> Any:
    """a = atan(y / x); read again, it is repaired again."""
    return b.Atan(b.Div(node.input(0), node.input(1)))


@op("Sinh", since=9, outputs=("output",), traits=UNARY)
def sinh(x: Array, *, out: Array | None = None) -> Array:
    return np.sinh(x, out=out)


@sinh.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = cosh(x)."""
    return (b.Cosh(node.input(0)),)


@op("Cosh", since=9, outputs=("output",), traits=UNARY)
def cosh(x: Array, *, out: Array | None = None) -> Array:
    return np.cosh(x, out=out)


@cosh.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = sinh(x)."""
    return (b.Sinh(node.input(0)),)


@op("Asinh", since=9, outputs=("output",), traits=UNARY)
def asinh(x: Array, *, out: Array | None = None) -> Array:
    return np.arcsinh(x, out=out)


@slope(asinh)
def _(b: Builder, node: Node, v: Value) -> Any:
    """dy/dx = 1 / sqrt(1 + x^2)."""
    length = _hypotenuse(b, node.input(0))
    return b.cast_like(b.Div(b.cast_like(v, length), length), v)


@op("Acosh", since=9, outputs=("output",), traits=UNARY)
def acosh(x: Array, *, out: Array | None = None) -> Array:
    return np.arccosh(x, out=out)


@slope(acosh)
def _(b: Builder, node: Node, v: Value) -> Any:
    """dy/dx = 1 / sqrt(x - 1) / sqrt(x + 1): one after the other, for their product at 1 would be 0 times infinity again."""
    x = node.input(0)
    return b.Div(b.Div(v, b.Sqrt(b.Sub(x, 1.0))), b.Sqrt(b.Add(x, 1.0)))


@op("Atanh", since=9, outputs=("output",), traits=UNARY)
def atanh(x: Array, *, out: Array | None = None) -> Array:
    return np.arctanh(x, out=out)


def _atanh_divisor(b: Builder, node: Node) -> Value:
    """dy/dx = 1 / ((1 - x)(1 + x))."""
    return b.OneMinusSquare(node.input(0))


scaled_by_reciprocal(atanh, _atanh_divisor)


# ---- the error function -------------------------------------------------------------------------------------------------


@op("Erf", since=9, outputs=("output",), traits=UNARY)
def erf(x: Array, *, out: Array | None = None, work: Sequence[Array] | None = None) -> Array:
    result = np.empty_like(x) if out is None else out
    erf_into(x, result, work[0] if work else None)
    return result


@erf.work
def _(node: Node) -> list[Type]:
    return [Type(FLOAT64, (ROWS, BLOCK))]


@erf.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = 2 / sqrt(pi) exp(-x^2), which is 0 long before x^2 overflows."""
    x = b.Clip(node.input(0), -30.0, 30.0)
    return (b.Mul(b.Exp(b.Neg(b.Mul(x, x))), 2.0 / math.sqrt(math.pi)),)
