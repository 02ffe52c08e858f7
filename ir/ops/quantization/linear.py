"""QuantizeLinear and DequantizeLinear: y = saturate(round(x / scale) + zero point), and x = (y - zero point) scale.

QuantizeLinear is piecewise constant, so no derivative passes it, whatever its type of result: like Round, it makes
differentiation refuse where nothing else leads on (``zero="allow"`` gives zeros), and ``through_quantization`` gives models
whose derivatives take it as unrounded. DequantizeLinear is linear in its scale, and integers carry no derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, looped
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise.cast import NO_SIGN, POWERS, converted
from flowgrad.ir.ops.operands import into, normal_axis, sum_of_present, unknown_ranks
from flowgrad.ir.ops.quantization.granularity import (
    bounds_of,
    check,
    is_single,
    limits_of,
    spread,
    spread_value,
    summed_to_scale,
    wide_of,
)
from flowgrad.ir.ops.registry import NO_GRADIENT, Kernel, Trait, attr, op, refuse
from flowgrad.ir.types import FLOAT64, UINT8, DType, Type, dtype_of

FIXED = "the zero point of numbers that are floats is zero: no derivative is told with respect to it"


# ---- arrays -------------------------------------------------------------------------------------------------------------


def ratio(x: Array, scale: Array, precision: int = 0) -> Array:
    """Return x / scale rounded to ``precision`` (a number of ONNX's), by default the type of the scale; float32 at least."""
    chosen = dtype_of(precision) if precision else dtype_of(scale.dtype)
    if chosen.name == POWERS:
        chosen = dtype_of(x.dtype) if x.dtype.kind != "i" else dtype_of(np.float32)  # dividing by them loses nothing
    if not chosen.is_float:
        return np.asarray(np.divide(x, scale, dtype=np.float64))
    wide = chosen.wide.numpy
    top, bottom = (a if a.dtype == chosen.numpy else a.astype(chosen.numpy) for a in (x, scale))
    made: Array = np.divide(top.astype(wide, copy=False), bottom.astype(wide, copy=False))
    return made.astype(chosen.numpy).astype(wide) if chosen.is_narrow else made


def saturated(real: Array, zero: Array | None, to: np.dtype[Any], saturate: int = 1) -> Array:
    """Return ``real`` rounded half to even, plus the zero point, in the range of ``to``; NaN becomes its least integer.

    Floats of less than 16 bits are rounded to their own grid, and saturate as Cast does.
    """
    dtype = dtype_of(to)
    if not dtype.is_integer:
        shifted = real if zero is None or not np.any(zero) else real + zero.astype(real.dtype)
        return converted(shifted, to, saturate, "up")
    return _into_range(np.asarray(np.rint(real)), *_range(zero, dtype, real.dtype)).astype(to)


def _range(zero: Array | None, to: DType, dtype: np.dtype[Any]) -> tuple[Array, Array, Array]:
    """Return the least and the largest number before the zero point is added, and the zero point, in the type ``dtype``."""
    low, high = limits_of(to)
    shift = np.zeros((), np.int32) if zero is None else zero.astype(np.int32)
    least, most, added = (np.asarray(n, dtype) for n in (low - shift, high - shift, shift))
    return least, most, added


def _into_range(whole: Array, least: Array, most: Array, shift: Array) -> Array:
    """Bring whole numbers into a range, then shift them; they are written over."""
    np.fmax(whole, least, out=whole)  # takes the bound where the other is NaN
    np.fmin(whole, most, out=whole)
    return np.asarray(np.add(whole, shift, out=whole))  # exact: no integer type here has numbers beyond float32's


# ---- QuantizeLinear -----------------------------------------------------------------------------------------------------


@op("QuantizeLinear", new_dtypes=("y_scale",), since=10, outputs=("y",), traits=(Trait.ZERO,), settings=("y_scale", "y_zero_point"),
    dtype_attributes=("output_dtype", "precision"))
def quantize_linear(
    x: Array, y_scale: Array, y_zero_point: Array | None = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0,
    precision: int = 0, saturate: int = 1, to_dtype: Any = None, out: Array | None = None,
) -> Array:
    scale = spread(y_scale, x.shape, axis, block_size)
    zero = None if y_zero_point is None else spread(y_zero_point, x.shape, axis, block_size)
    return into(saturated(ratio(x, scale, precision), zero, np.dtype(to_dtype), saturate), out)


def _constants(node: Node) -> tuple[Array, Array | None] | None:
    """Return the spread scale and zero point of a node if they are constants, else None."""
    scale, zero = node.input(1).constant, node.optional(2)
    if scale is None or (zero is not None and zero.constant is None):
        return None
    how = node.input(0).type.static_shape, attr(node, "axis"), attr(node, "block_size")
    return spread(scale, *how), None if zero is None or zero.constant is None else spread(zero.constant, *how)


@quantize_linear.specialise
def _(node: Node) -> Kernel | None:
    """With constants, and in one float type: what they lead to is made once."""
    x, y, known = node.input(0).type.dtype, node.output().type.dtype, _constants(node)
    if known is None or x != node.input(1).type.dtype or not x.is_float or not y.is_integer or attr(node, "precision"):
        return None
    scale, bounds = known[0], _range(known[1], y, x.numpy)

    def kernel(x: Array, *operands: Any) -> None:
        real = np.asarray(np.divide(x, scale))
        np.copyto(operands[-1], _into_range(np.rint(real, out=real), *bounds), casting="unsafe")

    return kernel


@quantize_linear.types
def _(node: Node) -> Type:
    check(node)
    zero, asked = node.optional(2), attr(node, "output_dtype")
    dtype = dtype_of(asked) if asked else UINT8 if zero is None else zero.type.dtype
    if zero is not None and zero.type.dtype != dtype:
        raise ValidationError(f"output_dtype {dtype.name} with the zero point {zero!r}", code="dtype", where=node.label)
    if dtype.itemsize > (2 if dtype.is_integer else 1) or not (dtype.is_integer or dtype.is_float):
        raise ValidationError(f"QuantizeLinear gives no {dtype.name}", code="dtype", where=node.label)
    if attr(node, "precision") and not dtype_of(attr(node, "precision")).is_float:
        raise ValidationError("the precision of a division is a float type", code="attribute", where=node.label)
    return node.input(0).type.with_dtype(dtype)


def _is_double(node: Node) -> bool:
    """The standard quantizes no float64."""
    return any(v.type.dtype == FLOAT64 for v in (*node.operands, *node.results))


@quantize_linear.expands_on_export
def _(node: Node) -> bool:
    return _is_double(node) or attr(node, "precision") == FLOAT64.onnx


@quantize_linear.expansion
def _(b: Builder, node: Node) -> Value:
    """y = Cast(Clip(Round(x / scale) + zero point)), in the float type that is wide enough for all."""
    x, scale = node.input(0), node.input(1)
    precision = attr(node, "precision")
    dtype = dtype_of(precision) if precision else wide_of(scale.type.dtype)
    real = b.Div(b.cast(x, dtype), b.cast(spread_value(b, node, scale), dtype))
    return quantized(b, real, _zero(b, node, real.type.dtype), node.output().type.dtype, attr(node, "saturate"))


def quantized(b: Builder, real: Value, zero: Value | None, to: DType, saturate: int = 1) -> Value:
    """Return a real and a zero point of its type as a number of the type ``to``."""
    if not to.is_integer:
        return b.Cast(real if zero is None else b.Add(real, zero), to=to.onnx, saturate=saturate)
    whole = b.Round(real)
    return b.cast(_clipped(b, whole if zero is None else b.Add(whole, zero), to), to)


def _zero(b: Builder, node: Node, dtype: DType) -> Value | None:
    zero = node.optional(2)
    return None if zero is None else b.cast(spread_value(b, node, zero), dtype)


def _clipped(b: Builder, real: Value, to: DType) -> Value:
    low, high = bounds_of(to)
    return b.Clip(real, b.scalar(low, real.type.dtype), b.scalar(high, real.type.dtype))


@quantize_linear.unrounded
def _(b: Builder, node: Node, reals: Sequence[Value | None]) -> Value | None:
    """Clip(x / scale + zero point), in the float type of x that is computed in."""
    x, scale = node.input(0), node.input(1)
    if not x.type.dtype.is_float:
        return None
    dtype = x.type.dtype.wide
    real = b.Div(b.cast(x, dtype), b.cast(spread_value(b, node, scale), dtype))
    zero = _zero(b, node, dtype)
    return _clipped(b, real if zero is None else b.Add(real, zero), node.output().type.dtype)


# ---- DequantizeLinear ---------------------------------------------------------------------------------------------------


@op("DequantizeLinear", since=10, outputs=("y",), settings=("x_scale", "x_zero_point"), traits=(Trait.RESTORES,),
    dtype_attributes=("output_dtype",))
def dequantize_linear(
    x: Array, x_scale: Array, x_zero_point: Array | None = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0,
    to_dtype: Any = None, out: Array | None = None,
) -> Array:
    dtype = dtype_of(np.dtype(to_dtype)).wide.numpy
    result = np.asarray(x.astype(dtype))
    if x_zero_point is not None:
        result = np.asarray(np.subtract(result, spread(x_zero_point, x.shape, axis, block_size).astype(dtype)))
    made: Array = np.asarray(np.multiply(result, spread(x_scale, x.shape, axis, block_size).astype(dtype)))
    return into(made.astype(to_dtype, copy=False), out)


@dequantize_linear.specialise
def _(node: Node) -> Kernel | None:
    """With constants: what they lead to is made once."""
    y, known = node.output().type.dtype, _constants(node)
    if known is None or y.is_narrow:
        return None
    scale, shift = known[0].astype(y.numpy), None if known[1] is None else known[1].astype(y.numpy)

    def kernel(x: Array, *operands: Any) -> None:
        out = operands[-1]
        np.copyto(out, x, casting="unsafe")
        if shift is not None:
            np.subtract(out, shift, out=out)
        np.multiply(out, scale, out=out)

    return kernel


@dequantize_linear.types
def _(node: Node) -> Type:
    check(node)
    asked, scale = attr(node, "output_dtype"), node.input(1).type.dtype
    dtype = dtype_of(asked) if asked else scale
    if not dtype.is_float or dtype.itemsize == 1:
        raise ValidationError(f"DequantizeLinear gives no {dtype.name}" + ("" if asked else "; output_dtype may say another"),
                              code="dtype", where=node.label)
    return node.input(0).type.with_dtype(dtype)


@dequantize_linear.expands_on_export
def _(node: Node) -> bool:
    return _is_double(node)


@dequantize_linear.expansion
def _(b: Builder, node: Node) -> Value:
    """y = (x - zero point) scale, in the type that is computed in."""
    y = node.output()
    return b.cast_like(_dequantized(b, node, node.input(0), y.type.dtype.wide), y)


def _dequantized(b: Builder, node: Node, x: Value, dtype: DType) -> Value:
    zero = _zero(b, node, dtype)
    shifted = b.cast(x, dtype) if zero is None else b.Sub(b.cast(x, dtype), zero)
    return b.Mul(shifted, b.cast(spread_value(b, node, node.input(1)), dtype))


@dequantize_linear.unrounded
def _(b: Builder, node: Node, reals: Sequence[Value | None]) -> Value | None:
    """(real - zero point) scale."""
    real, y = reals[0], node.output()
    return None if real is None else b.cast_like(_dequantized(b, node, real, y.type.dtype.wide), y)


def _how(node: Node) -> dict[str, Any]:
    return {name: attr(node, name) or None for name in ("block_size", "output_dtype")} | {"axis": attr(node, "axis")}


@dequantize_linear.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """scale_bar = the sum of y_bar (x - zero point) over the elements of each scale; x_bar = y_bar scale if x holds floats.

    Integers carry no derivative; the zero point of floats is zero, says the standard.
    """
    x, scale, y = node.input(0), node.input(1), node.output()
    if x.type.rank is None and scale.type.rank != 0:
        return refuse(unknown_ranks(node))
    x_bar = zero_bar = NO_GRADIENT
    if x.type.dtype.is_float:
        zero_bar = refuse(FIXED)
        x_bar = b.cast_like(b.Mul(y_bar, b.cast_like(spread_value(b, node, scale), y_bar)), x)
    if scale.type.dtype.name == POWERS:
        return x_bar, refuse(NO_SIGN), zero_bar
    wide = y.type.dtype.wide
    ones = b.filled(1, scale, wide)
    shifted = b.DequantizeLinear(x, ones, node.optional(2), axis=attr(node, "axis"), block_size=attr(node, "block_size") or None)
    return x_bar, b.cast_like(summed_to_scale(b, node, b.Mul(b.cast(y_bar, wide), shifted)), scale), zero_bar


@dequantize_linear.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, scale_dot: Value | None, zero_dot: Value | None = None) -> Any:
    """y_dot = (x - zero point) scale_dot + x_dot scale."""
    x, scale, zero = node.input(0), node.input(1), node.optional(2)
    if zero_dot is not None:
        return refuse(FIXED)
    if scale_dot is not None and scale.type.dtype.name == POWERS:
        return refuse(NO_SIGN)
    by_scale = None if scale_dot is None else b.DequantizeLinear(x, scale_dot, zero, **_how(node))
    return sum_of_present(b, by_scale, None if x_dot is None else b.DequantizeLinear(x_dot, scale, None, **_how(node)))


# ---- many examples ----------------------------------------------------------------------------------------------------------


def _batched(b: BatchBuilder, node: Node, x: Value, *others: Value | None) -> Any:
    """Places and blocks along the next axis; one scale for each example is one for each place along the first."""
    rank = node.input(0).type.rank
    vectors = [v for v in node.operands[1:] if not is_single(node, v)]
    if rank is None or any(v.type.rank is None for v in node.operands):
        return looped(b, node, x, *others)
    if any(b.holds(v) for v in others):
        if vectors or attr(node, "block_size") or any(v.type.rank for v in node.operands[1:]):
            return looped(b, node, x, *others)
        return again(b, node, [b.lifted(x), *(v if v is None else b.lifted(v) for v in others)], axis=0)
    if not vectors:
        return again(b, node, [x, *others])
    if attr(node, "block_size"):
        others = tuple(v if v is None else b.lifted(v) for v in others)
    return again(b, node, [x, *others], axis=normal_axis(attr(node, "axis"), rank) + 1)


quantize_linear.batch(_batched)
dequantize_linear.batch(_batched)
