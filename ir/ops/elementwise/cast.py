"""Conversions between element types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from flowgrad.ir.batching import BatchBuilder, single
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise.arithmetic import float_info
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op, refuse
from flowgrad.ir.types import Dim, DType, Type, dtype_of

POWERS = "float8_e8m0fnu"
"""Powers of two, without a sign."""

NO_SIGN = "float8_e8m0fnu holds powers of two: no derivative can be told in it"

SATURATING = {"float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"}


def converted(x: Array, to: np.dtype[Any], saturate: int, round_mode: str) -> Array:
    """Return ``x`` in the element type ``to``.

    Floats go to integers by cutting off the fraction; what does not fit is undefined in the standard and what NumPy
    makes of it here. Integers wrap. Float8 out of range becomes the largest number if ``saturate``, else NaN or inf.
    """
    if x.dtype == to:
        return x
    if x.dtype == object:
        return _from_strings(x, to)
    if to.kind == "O":
        return x.astype(np.str_).astype(object)
    name = dtype_of(to).name
    if name == POWERS:
        return _to_power_of_two(x, bool(saturate), round_mode)
    if name in SATURATING and saturate:
        most = float(float_info(to).max)
        wide = x if x.dtype.kind == "f" else x.astype(np.float32)
        return np.clip(wide, -most, most).astype(to)
    return x.astype(to)


def _from_strings(x: Array, to: np.dtype[Any]) -> Array:
    texts = x.astype(np.str_)
    if dtype_of(to).is_integer:
        return texts.astype(np.int64).astype(to)
    return texts.astype(np.float64).astype(to)


def _to_power_of_two(x: Array, saturate: bool, round_mode: str) -> Array:
    """Return ``x`` as float8_e8m0fnu: a power of two, 2^-127 to 2^127; the sign is dropped, inf and NaN give NaN."""
    size = np.abs(x.astype(np.float32)).astype(np.float64)
    fraction, exponent = np.frexp(size)  # size = fraction 2^exponent, fraction in [1/2, 1)
    down = exponent - 1
    if round_mode == "up":
        power = np.where(fraction > 0.5, down + 1, down)
    elif round_mode == "nearest":
        power = np.where(fraction >= 0.75, down + 1, down)
    else:
        power = down
    code = np.clip(power + 127, 0, 254)
    code = np.where(size == 0, 0, code)
    lost = ~np.isfinite(size) | ((power > 127) & (not saturate))
    return np.where(lost, 255, code).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)


@op("Cast", since=9, outputs=("output",), traits=(Trait.ELEMENTWISE, Trait.LINEAR), dtype_attributes=("to",))
def cast(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up", to_dtype: Any = None,
         out: Array | None = None) -> Array:
    return _written(x, dtype_of(to).numpy, saturate, round_mode, out)


def _written(x: Array, to: np.dtype[Any], saturate: int, round_mode: str, out: Array | None) -> Array:
    if out is None:
        return converted(x, to, saturate, round_mode)
    if _is_plain(x.dtype) and _is_plain(to):
        np.copyto(out, x, casting="unsafe")
    else:
        np.copyto(out, converted(x, to, saturate, round_mode))
    return out


def _is_plain(dtype: np.dtype[Any]) -> bool:
    return dtype.isbuiltin == 1 and dtype.kind in "fiub"


@cast.types
def _(node: Node) -> Type:
    return node.input(0).type.with_dtype(dtype_of(attr(node, "to")))


@cast.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar in the dtype of x."""
    return _back(b, node, y_bar)


def _back(b: Builder, node: Node, y_bar: Value | None) -> Any:
    x = node.input(0)
    if y_bar is None or not x.type.dtype.is_float:
        return NO_GRADIENT
    return refuse(NO_SIGN) if x.type.dtype.name == POWERS else b.cast_like(y_bar, x)


@cast.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value) -> Any:
    """y_dot = x_dot in the dtype of y."""
    return _forth(b, node, x_dot)


def _forth(b: Builder, node: Node, x_dot: Value | None) -> Any:
    y = node.output()
    if x_dot is None or not y.type.dtype.is_float:
        return None
    return refuse(NO_SIGN) if y.type.dtype.name == POWERS else b.cast_like(x_dot, y)


@cast.unrounded
def _(b: Builder, node: Node, reals: Sequence[Value | None]) -> Value | None:
    """What the operand is before it is rounded, in the type of y if that is a float."""
    real, dtype = reals[0], node.output().type.dtype
    return real if real is None or not dtype.is_float else b.cast(real, dtype)


@cast.symbolic
def _(node: Node) -> Array | None:
    """A cast between integers keeps the value as far as it is known to fit."""
    return _symbolic(node.input(0), dtype_of(attr(node, "to")))


def _symbolic(x: Value, to: DType) -> Array | None:
    known = x.symbolic
    if known is None or not (to.is_integer and x.type.dtype.is_integer):
        return None
    limits = ml_dtypes.iinfo(to.numpy)  # type: ignore[no-untyped-call]
    holds_extents = to.itemsize >= 4
    fits = all(holds_extents if isinstance(d, Dim) else limits.min <= d <= limits.max for d in known.flat)
    return known if fits else None


@op("CastLike", new_dtypes=("target_type",), since=15, outputs=("output",), traits=(Trait.ELEMENTWISE,))
def cast_like(x: Array, target_type: Array, *, saturate: int = 1, round_mode: str = "up", to_dtype: Any = None,
              out: Array | None = None) -> Array:
    return _written(x, np.dtype(to_dtype), saturate, round_mode, out)


@cast_like.types
def _(node: Node) -> Type:
    return node.input(0).type.with_dtype(node.input(1).type.dtype)


@cast_like.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar in the dtype of x; the second input lends its dtype alone."""
    return _back(b, node, y_bar), NO_GRADIENT


@cast_like.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, target_dot: Value | None) -> Any:
    """y_dot = x_dot in the dtype of y."""
    return _forth(b, node, x_dot)


@cast_like.symbolic
def _(node: Node) -> Array | None:
    """A cast between integers keeps the value as far as it is known to fit."""
    return _symbolic(node.input(0), node.input(1).type.dtype)


@cast_like.batch
def _(b: BatchBuilder, node: Node, x: Value, target: Value) -> Any:
    """Of the target the type alone counts."""
    y = single(b, node, [x, target])
    return y if b.holds(x) else b.same(y)
