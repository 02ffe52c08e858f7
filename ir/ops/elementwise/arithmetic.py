"""Elementwise arithmetic, comparison by size, selection and rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import ml_dtypes
import numpy as np

from flowgrad.ir.batching import BatchBuilder, pointwise
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import RunError, ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import into, sum_of
from flowgrad.ir.ops.registry import NO_GRADIENT, Kernel, OpDef, Trait, attr, broadcasted, like_first, op, refuse
from flowgrad.ir.support import intersection, is_zero, negation, union
from flowgrad.ir.types import BOOL, Dim, DimLike, Type

BROADCASTS = (Trait.BROADCASTS, Trait.ELEMENTWISE)
SHAPES = (*BROADCASTS, Trait.SHAPE_ARITHMETIC)


# ---- what many rules share ----------------------------------------------------------------------------------------------


def zero(b: Builder, like: Value) -> Value:
    """Return the rank-0 zero in the dtype of ``like``."""
    return b.scalar(0, like.type.dtype)


def select(b: Builder, condition: Value, x: Value) -> Value:
    """Return ``x`` where ``condition`` holds, else zero."""
    return b.Where(condition, x, zero(b, x))


def at(b: Builder, x: Value, *points: float) -> Value:
    """Return where ``x`` is one of some numbers."""
    return reduce(b.Or, [b.Equal(x, point) for point in points])


def float_info(dtype: np.dtype[Any]) -> Any:
    """Return the limits of a float type, NumPy's or narrower."""
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]


def computed(type_: Type) -> Type:
    """Return the type in which kernels see a value: floats narrower than 32 bits arrive as float32."""
    return type_.with_dtype(type_.dtype.wide)


def slope(definition: OpDef) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register ``rule(b, node, v) = v * dy/dx`` of an op of one input, for both modes."""

    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        definition.adjoint(rule)
        definition.tangent(rule)
        return rule

    return register


def _is_symbolic(*arrays: Array) -> bool:
    return any(a.dtype == object for a in arrays)


def _nonnegative(d: DimLike) -> bool:
    return d.is_nonnegative if isinstance(d, Dim) else d >= 0


def _on_dims(function: Any, *arrays: Array) -> Array:
    """Apply a function of single dims; ValueError from it means that only the run can tell."""
    result = np.frompyfunc(function, len(arrays), 1)(*arrays)
    return np.asarray(result, object)


def matched(node: Node) -> Type:
    """Return the broadcast type of inputs that must have one dtype (the condition of Where apart)."""
    operands = [v for v in (node.inputs[1:] if node.op == "Where" else node.inputs) if v is not None]
    if len({v.type.dtype for v in operands}) > 1:
        raise ValidationError(f"{node.op} takes inputs of one dtype, got {', '.join(repr(v) for v in operands)}",
                              code="dtype")
    return broadcasted(node)


# ---- arithmetic ---------------------------------------------------------------------------------------------------------


@op("Add", since=7, outputs=("C",), traits=(*SHAPES, Trait.LINEAR, Trait.COMMUTATIVE), ufunc=np.add, in_place=True)
def add(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.add(a, b, out=out)


@add.adjoint
def _(b: DerivativeBuilder, node: Node, c_bar: Value) -> Any:
    """a_bar = c_bar; b_bar = c_bar."""
    return c_bar, c_bar


@op("Sub", since=7, outputs=("C",), traits=(*SHAPES, Trait.LINEAR), ufunc=np.subtract, in_place=True)
def sub(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.subtract(a, b, out=out)


@sub.adjoint
def _(b: DerivativeBuilder, node: Node, c_bar: Value) -> Any:
    """a_bar = c_bar; b_bar = -c_bar."""
    return c_bar, b.Neg(c_bar)


@op("Mul", since=7, outputs=("C",), traits=(*SHAPES, Trait.BILINEAR, Trait.COMMUTATIVE),
    ufunc=np.multiply, in_place=True)
def mul(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.multiply(a, b, out=out)


@mul.adjoint
def _(b: DerivativeBuilder, node: Node, c_bar: Value) -> Any:
    """a_bar = c_bar * b; b_bar = c_bar * a."""
    x, y = node.inputs
    return b.Mul(c_bar, y), b.Mul(c_bar, x)


@op("Div", since=7, outputs=("C",), traits=(*SHAPES, Trait.QUOTIENT), in_place=True)
def div(a: Array, b: Array, *, out: Array | None = None) -> Array:
    if _is_symbolic(a, b):
        return _on_dims(_dim_quotient, a, b)
    if np.result_type(a, b).kind not in "iu":
        return np.divide(a, b, out=out)
    _check_divisor(b, "Div")
    quotient = np.floor_divide(a, b, out=out)
    if quotient.dtype.kind == "i":  # the standard truncates like C, NumPy rounds down
        quotient = np.add(quotient, (np.remainder(a, b) != 0) & ((a < 0) != (b < 0)), out=out, dtype=quotient.dtype)
    return quotient


@div.specialise
def _(node: Node) -> Kernel | None:
    """Floats need no look at the divisor."""
    return np.divide if all(v.type.dtype.is_float for v in node.operands) else None


def _dim_quotient(a: DimLike, b: DimLike) -> DimLike:
    if not (_nonnegative(a) and _nonnegative(b)) or (not isinstance(b, Dim) and b == 0):
        raise ValueError("the sign is not known before the run")
    return a // b


def _check_divisor(b: Array, name: str) -> None:
    if not np.all(b):
        raise RunError(f"{name} divides integers by zero", code="division")


@div.adjoint
def _(b: DerivativeBuilder, node: Node, c_bar: Value) -> Any:
    """a_bar = c_bar / b; b_bar = -(c_bar / b) * a / b."""
    x, y = node.inputs
    x_bar = b.Div(c_bar, y)
    return x_bar, b.Neg(b.Div(b.Mul(x_bar, x), y))


@div.tangent
def _(b: DerivativeBuilder, node: Node, a_dot: Value | None, b_dot: Value | None) -> Any:
    """c_dot = a_dot / b - (b_dot / b) * a / b."""
    x, y = node.inputs
    first = None if a_dot is None else b.Div(a_dot, y)
    if b_dot is None:
        return first
    second = b.Div(b.Mul(b.Div(b_dot, y), x), y)
    return b.Neg(second) if first is None else b.Sub(first, second)


@op("Mod", since=10, outputs=("C",), traits=SHAPES)
def mod(a: Array, b: Array, *, fmod: int = 0, out: Array | None = None) -> Array:
    if _is_symbolic(a, b):
        return _on_dims(lambda x, y: x - _dim_quotient(x, y) * y, a, b)
    if np.result_type(a, b).kind in "iu":
        _check_divisor(b, "Mod")
    return np.fmod(a, b, out=out) if fmod else np.remainder(a, b, out=out)


@mod.adjoint
def _(b: DerivativeBuilder, node: Node, c_bar: Value) -> Any:
    """c = a - n b with n integer, so a_bar = c_bar; b_bar = -n c_bar."""
    return c_bar, b.Neg(b.Mul(c_bar, _whole(b, node)))


@mod.tangent
def _(b: DerivativeBuilder, node: Node, a_dot: Value | None, b_dot: Value | None) -> Any:
    """c_dot = a_dot - n b_dot."""
    if b_dot is None:
        return a_dot
    second = b.Mul(b_dot, _whole(b, node))
    return b.Neg(second) if a_dot is None else b.Sub(a_dot, second)


@mod.expands_on_export
def _(node: Node) -> bool:
    """True for floats with the sign of the divisor, which no opset before 28 has."""
    return node.output().type.dtype.is_float and not attr(node, "fmod")


@mod.expansion
def _(b: Builder, node: Node) -> Any:
    """With r = fmod(x, y): r, or r + y where r has another sign than y."""
    x, y = node.operands
    if not node.output().type.dtype.is_float or attr(node, "fmod"):
        return refuse("it takes integers, or has the sign of the dividend")
    rest = b.Mod(x, y, fmod=1)
    turned = b.And(b.Not(b.Equal(rest, 0.0)), b.Xor(b.Less(rest, 0.0), b.Less(y, 0.0)))
    return b.Where(turned, b.Add(rest, y), rest)


def _whole(b: Builder, node: Node) -> Value:
    """The integer n of c = a - n b."""
    x, y = node.inputs
    return b.Round(b.Div(b.Sub(x, node.output()), y))


@op("Neg", since=6, traits=(Trait.ELEMENTWISE, Trait.LINEAR, Trait.SHAPE_ARITHMETIC), ufunc=np.negative, in_place=True)
def neg(x: Array, *, out: Array | None = None) -> Array:
    return np.negative(x, out=out)


@neg.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = -y_bar."""
    return b.Neg(y_bar)


@op("Abs", since=6, traits=(Trait.ELEMENTWISE, Trait.SHAPE_ARITHMETIC))
def absolute(x: Array, *, out: Array | None = None) -> Array:
    return _on_dims(_dim_absolute, x) if _is_symbolic(x) else np.absolute(x, out=out)


def _dim_absolute(d: DimLike) -> DimLike:
    if _nonnegative(d):
        return d
    if _nonnegative(-d):
        return -d
    raise ValueError("the sign is not known before the run")


@absolute.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = sign(x), 0 at 0."""
    return (b.Sign(node.input(0)),)


@absolute.kinks
def _(b: Builder, node: Node) -> Value:
    """At 0."""
    return at(b, node.input(0), 0.0)


@op("Sum", since=8, outputs=("sum",), traits=(*SHAPES, Trait.LINEAR))
def sum_(*xs: Array, out: Array | None = None) -> Array:
    return _chained(np.add, xs, out)


@sum_.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar for every x."""
    return [y_bar] * len(node.inputs)


@op("Mean", since=8, outputs=("mean",), traits=(*BROADCASTS, Trait.LINEAR))
def mean(*xs: Array, out: Array | None = None) -> Array:
    total = _chained(np.add, xs, out)
    return np.divide(total, len(xs), out=out)


@mean.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar / n for every x."""
    return [b.Div(y_bar, float(len(node.inputs)))] * len(node.inputs)


def _chained(function: Any, xs: Sequence[Array], out: Array | None) -> Array:
    if len(xs) == 1:
        return into(xs[0], out)
    if out is not None and any(x.shape != out.shape for x in xs[:2]) and len(xs) > 2:
        # a partial result may have a smaller shape than the buffer: broadcast it into place first
        np.copyto(out, xs[0])
        for x in xs[1:]:
            function(out, x, out=out)
        return out
    total = function(xs[0], xs[1], out=out)
    for x in xs[2:]:
        total = function(total, x, out=out)
    return np.asarray(total)


# ---- comparison by size -------------------------------------------------------------------------------------------------


@op("Max", since=8, outputs=("max",), traits=SHAPES)
def maximum(*xs: Array, out: Array | None = None) -> Array:
    if _is_symbolic(*xs):
        return _chained(np.frompyfunc(_dim_maximum, 2, 1), xs, None)
    return _chained(np.maximum, xs, out)


@op("Min", since=8, outputs=("min",), traits=SHAPES)
def minimum(*xs: Array, out: Array | None = None) -> Array:
    if _is_symbolic(*xs):
        return _chained(np.frompyfunc(lambda x, y: x + y - _dim_maximum(x, y), 2, 1), xs, None)
    return _chained(np.minimum, xs, out)


def _dim_maximum(x: DimLike, y: DimLike) -> DimLike:
    if _nonnegative(x - y):
        return x
    if _nonnegative(y - x):
        return y
    raise ValueError("which is larger is not known before the run")


def _extremum_adjoint(b: Builder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar / n where x is one of the n inputs equal to y, else 0: ties share equally."""
    if len(node.inputs) == 1:
        return y_bar
    chosen, count = _ties(b, node)
    share = b.Div(y_bar, count)
    return [select(b, c, share) for c in chosen]


def _extremum_tangent(b: Builder, node: Node, *dots: Value | None) -> Any:
    """y_dot = the mean of x_dot over the inputs x equal to y."""
    if len(node.inputs) == 1:
        return dots[0]
    chosen, count = _ties(b, node)
    parts = [select(b, c, x_dot) for c, x_dot in zip(chosen, dots, strict=False) if x_dot is not None]
    return b.Div(sum_of(b, parts), count)


def _ties(b: Builder, node: Node) -> tuple[list[Value], Value]:
    """Return which inputs equal the output, and how many do (at least 1, also where the output is NaN)."""
    y = node.output()
    chosen = [b.Equal(x, y) for x in node.inputs]
    counted = [b.cast(c, y.type.dtype) for c in chosen]
    return chosen, b.Max(b.Sum(*counted), 1.0)


def _extremum_kinks(b: Builder, node: Node) -> Value:
    """Where more than one input is the largest, the smallest."""
    if len(node.inputs) == 1:
        return b.filled(False, node.output(), BOOL)
    return b.Greater(_ties(b, node)[1], 1.0)


for _extremum in (maximum, minimum):
    _extremum.kinks(_extremum_kinks)
    _extremum.adjoint(_extremum_adjoint)
    _extremum.tangent(_extremum_tangent)


@op("Clip", since=11, outputs=("output",), traits=(*BROADCASTS, Trait.SHAPE_ARITHMETIC), settings=("low", "high"))
def clip(x: Array, low: Array | None = None, high: Array | None = None, *, out: Array | None = None) -> Array:
    lift, lower = (maximum.kernel, minimum.kernel) if _is_symbolic(x) else (np.maximum, np.minimum)
    if low is None and high is None:
        return into(x, out)
    bounded = x if low is None else lift(x, low, out=out)
    return np.asarray(bounded if high is None else lower(bounded, high, out=out))


clip.types(like_first)


@clip.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar where low <= x <= high; the bound that is active gets the rest, summed."""
    inside, below, above = _clip_regions(b, node)
    bars: list[Any] = [y_bar if inside is None else select(b, inside, y_bar)]
    bars += [NO_GRADIENT if region is None else select(b, region, y_bar) for region in (below, above)]
    return bars[: len(node.inputs)]


@clip.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, low_dot: Value | None = None,
      high_dot: Value | None = None) -> Any:
    """y_dot = x_dot inside, the tangent of the active bound outside."""
    inside, below, above = _clip_regions(b, node)
    parts = [y if region is None else select(b, region, y)
             for region, y in zip((inside, below, above), (x_dot, low_dot, high_dot), strict=True) if y is not None]
    return sum_of(b, parts)


@clip.kinks
def _(b: Builder, node: Node) -> Value:
    """At a bound."""
    x, bounds = node.input(0), [v for v in node.inputs[1:] if v is not None]
    return reduce(b.Or, [b.Equal(x, v) for v in bounds]) if bounds else b.filled(False, x, BOOL)


def _clip_regions(b: Builder, node: Node) -> tuple[Value | None, Value | None, Value | None]:
    """Return where x, the lower and the upper bound decide the output (None: the bound is absent)."""
    x, low, high = map(node.optional, (0, 1, 2))
    if low is None and high is None:
        return None, None, None
    if low is None:
        return b.LessOrEqual(x, high), None, b.Greater(x, high)
    if high is None:
        return b.GreaterOrEqual(x, low), b.Less(x, low), None
    inside = b.And(b.GreaterOrEqual(x, low), b.LessOrEqual(x, high))
    below = b.And(b.Less(x, low), b.LessOrEqual(low, high))
    return inside, below, b.Greater(b.Max(x, low), high)


# ---- selection and copies -----------------------------------------------------------------------------------------------


@op("Where", since=9, outputs=("output",), traits=(*SHAPES, Trait.CHOOSES))
def where(condition: Array, x: Array, y: Array, *, out: Array | None = None) -> Array:
    if out is None:
        return np.where(condition, x, y)
    if condition.shape == out.shape and out.dtype in INTEGERS:
        if x.shape == out.shape and _is_plain_zero(y):
            return _kept(x, np.multiply(condition, -1, out=out.view(INTEGERS[out.dtype])), out)
        if y.shape == out.shape and _is_plain_zero(x):
            return _kept(y, np.subtract(condition, 1, out=out.view(INTEGERS[out.dtype]), dtype=INTEGERS[out.dtype]), out)
    np.copyto(out, y)
    np.copyto(out, x, where=condition)
    return out


INTEGERS = {np.dtype(f"f{size}"): np.dtype(f"i{size}") for size in (2, 4, 8)}
"""Integers as wide as floats: a selection between numbers and zeros is a matter of bits, whatever the numbers are."""


def _is_plain_zero(a: Array) -> bool:
    return a.ndim == 0 and not a and not np.signbit(a)


def _kept(a: Array, ones: Array, out: Array) -> Array:
    """Return ``a`` where all bits of ``ones``, which lies in ``out``, are set, and 0 where none is."""
    np.bitwise_and(ones, a.view(ones.dtype), out=ones)
    return out


@where.adjoint
def _(b: DerivativeBuilder, node: Node, out_bar: Value) -> Any:
    """x_bar = out_bar where the condition holds, else 0; y_bar the other way round."""
    condition = node.input(0)
    nothing = zero(b, out_bar)
    return NO_GRADIENT, b.Where(condition, out_bar, nothing), b.Where(condition, nothing, out_bar)


@where.tangent
def _(b: DerivativeBuilder, node: Node, condition_dot: None, x_dot: Value | None, y_dot: Value | None) -> Any:
    """out_dot = x_dot where the condition holds, else y_dot."""
    nothing = zero(b, node.output())
    return b.Where(node.input(0), nothing if x_dot is None else x_dot, nothing if y_dot is None else y_dot)


@where.support
def _(b: DerivativeBuilder, node: Node, masks: Sequence[Value | None]) -> Value | None:
    """Where the condition chooses what may be other than zero."""
    x, y = node.input(1), node.input(2)
    if is_zero(b, x) == is_zero(b, y):
        return union(b, masks[1:])
    condition, (chosen, mask) = b.support.condition(node.input(0)), (x, masks[1]) if is_zero(b, y) else (y, masks[2])
    if chosen.type == node.output().type:
        b.support.unselected[node.output()] = chosen
    return intersection(b, condition if chosen is x else negation(b, condition), mask)


@op("Identity", outputs=("output",),
    traits=(Trait.ELEMENTWISE, Trait.LINEAR, Trait.VIEW, Trait.SHAPE_ARITHMETIC))
def identity(x: Array, *, out: Array | None = None) -> Array:
    return into(x, out)


@identity.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar."""
    return y_bar


# ---- piecewise constant -------------------------------------------------------------------------------------------------


@op("Floor", since=6, traits=(Trait.ELEMENTWISE, Trait.ZERO))
def floor(x: Array, *, out: Array | None = None) -> Array:
    return np.floor(x, out=out)


@op("Ceil", since=6, traits=(Trait.ELEMENTWISE, Trait.ZERO))
def ceil(x: Array, *, out: Array | None = None) -> Array:
    return np.ceil(x, out=out)


@op("Round", since=11, traits=(Trait.ELEMENTWISE, Trait.ZERO))
def round_(x: Array, *, out: Array | None = None) -> Array:
    return np.rint(x, out=out)  # halves go to the even neighbour


@op("Sign", since=9, outputs=("output",), traits=(Trait.ELEMENTWISE, Trait.ZERO))
def sign(x: Array, *, out: Array | None = None) -> Array:
    return np.sign(x, out=out)


@op("IsNaN", since=9, traits=(Trait.ELEMENTWISE, Trait.ZERO))
def is_nan(x: Array, *, out: Array | None = None) -> Array:
    return np.isnan(x, out=out)


@op("IsInf", since=10, traits=(Trait.ELEMENTWISE, Trait.ZERO))
def is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1, out: Array | None = None) -> Array:
    if detect_negative and detect_positive:
        return np.isinf(x, out=out)
    if detect_negative:
        return np.equal(x, -np.inf, out=out)
    return np.equal(x, np.inf if detect_positive else np.nan, out=out)  # nothing equals NaN


def _bool_like_first(node: Node) -> Type:
    return node.input(0).type.with_dtype(BOOL)


is_nan.types(_bool_like_first)
is_inf.types(_bool_like_first)


# ---- bits ---------------------------------------------------------------------------------------------------------------


@op("BitShift", since=11, outputs=("Z",), traits=(*BROADCASTS, Trait.ZERO))
def bit_shift(x: Array, y: Array, *, direction: str, out: Array | None = None) -> Array:
    return np.left_shift(x, y, out=out) if direction == "LEFT" else np.right_shift(x, y, out=out)


@op("BitwiseAnd", since=18, outputs=("C",), traits=(*BROADCASTS, Trait.ZERO, Trait.COMMUTATIVE))
def bitwise_and(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.bitwise_and(a, b, out=out)


@op("BitwiseOr", since=18, outputs=("C",), traits=(*BROADCASTS, Trait.ZERO, Trait.COMMUTATIVE))
def bitwise_or(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.bitwise_or(a, b, out=out)


@op("BitwiseXor", since=18, outputs=("C",), traits=(*BROADCASTS, Trait.ZERO, Trait.COMMUTATIVE))
def bitwise_xor(a: Array, b: Array, *, out: Array | None = None) -> Array:
    return np.bitwise_xor(a, b, out=out)


@op("BitwiseNot", since=18, traits=(Trait.ELEMENTWISE, Trait.ZERO))
def bitwise_not(x: Array, *, out: Array | None = None) -> Array:
    return np.bitwise_not(x, out=out)


for _definition in (add, sub, mul, div, mod, sum_, mean, maximum, minimum, where, bitwise_and, bitwise_or, bitwise_xor):
    _definition.types(matched)


@clip.batch
def _(b: BatchBuilder, node: Node, x: Value, *bounds: Value | None) -> Any:
    """Bounds of their own broadcast to x."""
    return pointwise(b, node, b.lifted(x), *bounds)


@clip.expands_on_export
def _(node: Node) -> bool:
    """The standard has one bound for all elements."""
    return any(v.type.rank != 0 for v in node.operands[1:])


@clip.expansion
def _(b: Builder, node: Node) -> Any:
    """min(max(x, low), high)."""
    if all(v.type.rank == 0 for v in node.operands[1:]):
        return refuse("it is as plain as it gets")
    x, low, high = map(node.optional, (0, 1, 2))
    bounded = x if low is None else b.Max(x, low)
    return bounded if high is None else b.Min(bounded, high)
