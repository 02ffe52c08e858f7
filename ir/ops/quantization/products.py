"""Products of quantized operands: MatMulInteger, ConvInteger, QLinearMatMul, QLinearConv.

All of them are functions of integers, or round: no derivative passes, except in models that ``through_quantization`` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, looped, within_batch
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.convolution import kernels
from flowgrad.ir.ops.convolution.operators import convolved_shape, geometry, ranks_alike
from flowgrad.ir.ops.convolution.window import Window, slide
from flowgrad.ir.ops.matmul import product_shape
from flowgrad.ir.ops.quantization.granularity import bounds_of
from flowgrad.ir.ops.quantization.linear import saturated
from flowgrad.ir.ops.registry import Trait, op, refuse
from flowgrad.ir.types import FLOAT32, FLOAT64, INT32, DType, Type

EXACT_IN_FLOAT32 = 2**24
"""Whole numbers up to this are float32 numbers, so that their sums and products can be left to BLAS."""


# ---- arrays -------------------------------------------------------------------------------------------------------------


def centred(x: Array, zero: Array | None, rows: bool = False) -> Array:
    """Return x - zero point in float64; a vector of zero points holds one for each row of a matrix if ``rows``."""
    wide = x.astype(np.float64)
    return wide if zero is None else np.asarray(np.subtract(wide, _laid(zero, int(rows)).astype(np.float64)))


def _laid(given: Array, later: int = 0) -> Array:
    """Return scales or zero points to broadcast: a vector before as many axes of extent 1, a single one as a scalar."""
    if given.size == 1:
        return given.reshape(())
    return given.reshape(-1, *(1,) * later) if given.ndim == 1 else given


def for_product(a: Array, b: Array, terms: int) -> tuple[Array, Array]:
    """Return whole numbers in the narrowest float type in which sums of ``terms`` products of them are exact."""
    if a.size and b.size and float(np.abs(a).max()) * float(np.abs(b).max()) * terms <= EXACT_IN_FLOAT32:
        return a.astype(np.float32), b.astype(np.float32)
    return a, b


def wrapped(total: Array) -> Array:
    """Return whole numbers as int32, which wrap around where they do not fit."""
    return np.asarray(total.astype(np.int64).astype(np.int32))


def _product(a: Array, b: Array) -> Array:
    return np.asarray(np.matmul(*for_product(a, b, a.shape[-1])))


def _convolution(x: Array, w: Array, window: Window, group: int) -> Array:
    return kernels.convolve(*for_product(x, w, w.shape[1] * window.taps), None, window, group)


def requantized(total: Array, a_scale: Array, b_scale: Array, y_scale: Array, zero: Array) -> Array:
    """Return a total, in units of the product of two scales, as a number of the type of the zero point.

    Rounded half to even in float32, before the zero point is added.
    """
    a, b, y = (s.astype(np.float32) for s in (a_scale, b_scale, y_scale))
    return saturated(np.asarray(total.astype(np.float32) * (a * b / y)), zero, zero.dtype)


# ---- what the products are before they are rounded ----------------------------------------------------------------------


def _wide(reals: Sequence[Value | None]) -> DType:
    """Return the float type that the reals are told in."""
    return max((v.type.dtype for v in reals if v is not None), key=lambda dtype: dtype.itemsize, default=FLOAT32)


def _centred(b: Builder, node: Node, reals: Sequence[Value | None], slots: tuple[int, int], lay: str = "") -> Value:
    """Return a real operand minus its zero point; ``slots`` are theirs."""
    x, zero = slots
    dtype = _wide(reals)
    real = b.cast(reals[x] or node.input(x), dtype)
    shift = _number(b, node, zero, dtype, lay)
    return real if shift is None else b.Sub(real, shift)


def _number(b: Builder, node: Node, slot: int, dtype: DType, lay: str = "") -> Value | None:
    """Return scales or zero points laid out to broadcast: one for each row of a matrix, or each output channel of weights.

    A single one has the rank 0.
    """
    value = node.optional(slot)
    if value is None:
        return None
    given = b.cast(value, dtype)
    if given.type.shape == (1,):
        return b.Squeeze(given, [0])
    later = {"": 0, "rows": 1, "weights": len(node.output().shape) - 1, "channels": len(node.output().shape) - 2}[lay]
    return b.Unsqueeze(given, list(range(1, 1 + later))) if given.type.rank == 1 and later else given


def _scaled(b: Builder, node: Node, total: Value, scales: Sequence[Value | None]) -> Value:
    """Return a total as real of the output of a QLinear product: in units of its scale, in its range."""
    dtype = total.type.dtype
    for scale in scales:
        total = b.Mul(total, scale)
    y = b.Add(b.Div(total, _number(b, node, 6, dtype)), _number(b, node, 7, dtype))
    return b.Clip(y, *(b.scalar(n, dtype) for n in bounds_of(node.output().type.dtype)))


# ---- MatMulInteger, QLinearMatMul ---------------------------------------------------------------------------------------


@op("MatMulInteger", since=10, traits=(Trait.ZERO,))
def matmul_integer(A: Array, B: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None) -> Array:
    return wrapped(_product(centred(A, a_zero_point, rows=True), centred(B, b_zero_point)))


@matmul_integer.types
def _(node: Node) -> Type:
    return Type(INT32, product_shape(node.input(0).type, node.input(1).type))


@matmul_integer.unrounded
def _(b: Builder, node: Node, reals: Sequence[Value | None]) -> Value | None:
    """(A - zero point) (B - zero point)."""
    if not any(reals[:2]):
        return None
    return b.MatMul(_centred(b, node, reals, (0, 2), "rows"), _centred(b, node, reals, (1, 3)))


@op("QLinearMatMul", since=10, outputs=("y",), traits=(Trait.ZERO,),
    settings=("a_scale", "a_zero_point", "b_scale", "b_zero_point", "y_scale", "y_zero_point"))
def qlinear_matmul(
    a: Array, a_scale: Array, a_zero_point: Array, b: Array, b_scale: Array, b_zero_point: Array, y_scale: Array,
    y_zero_point: Array, *, to_dtype: Any = None,
) -> Array:
    total = _product(centred(a, a_zero_point, rows=True), centred(b, b_zero_point))
    return requantized(total, _laid(a_scale, 1), _laid(b_scale), _laid(y_scale), _laid(y_zero_point))


@qlinear_matmul.types
def _(node: Node) -> Type:
    return Type(node.input(7).type.dtype, product_shape(node.input(0).type, node.input(3).type))


@qlinear_matmul.expands_on_export
def _(node: Node) -> bool:
    """The standard has no scales in float64."""
    return any(v.type.dtype == FLOAT64 for v in node.operands)


@qlinear_matmul.expansion
def _(b: Builder, node: Node) -> Any:
    """The integer product, times the scales in float32, quantized with the scale 1."""
    a, w, zero = node.input(0), node.input(3), node.input(7)
    if a.type.dtype.is_float or w.type.dtype.is_float:
        return refuse("a product of float8 numbers has no form without QLinearMatMul")
    a_scale, b_scale, y_scale = (_number(b, node, slot, FLOAT32, lay) for slot, lay in ((1, "rows"), (4, ""), (6, "")))
    total = b.cast(b.MatMulInteger(a, w, node.input(2), node.input(5)), FLOAT32)
    return b.QuantizeLinear(b.Mul(total, b.Div(b.Mul(a_scale, b_scale), y_scale)), b.scalar(1, FLOAT32), zero)


@qlinear_matmul.unrounded
def _(b: Builder, node: Node, reals: Sequence[Value | None]) -> Value | None:
    """Clip((a - zero point) a_scale (b - zero point) b_scale / y_scale + zero point)."""
    if not (reals[0] or reals[3]):
        return None
    total = b.MatMul(_centred(b, node, reals, (0, 2), "rows"), _centred(b, node, reals, (3, 5)))
    dtype = total.type.dtype
    return _scaled(b, node, total, [_number(b, node, 1, dtype, "rows"), _number(b, node, 4, dtype)])


# ---- ConvInteger, QLinearConv -------------------------------------------------------------------------------------------


@op("ConvInteger", since=10, outputs=("y",), traits=(Trait.ZERO,))
def conv_integer(
    x: Array, w: Array, x_zero_point: Array | None = None, w_zero_point: Array | None = None, *,
    auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    kernel_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Array:
    window = slide(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    zero = None if w_zero_point is None else _laid(w_zero_point, w.ndim - 1)
    return wrapped(_convolution(centred(x, x_zero_point), centred(w, zero), window, group))


@conv_integer.types
def _(node: Node) -> Type:
    return Type(INT32, convolved_shape(node, node.input(0), node.input(1)))


conv_integer.ranks(ranks_alike)


@conv_integer.unrounded
def _(b: Builder, node: Node, reals: Sequence[Value | None]) -> Value | None:
    """The convolution of x - zero point by w - zero point."""
    if not any(reals[:2]):
        return None
    return b.Conv(_centred(b, node, reals, (0, 2)), _centred(b, node, reals, (1, 3), "weights"), **geometry(node))


@op("QLinearConv", since=10, outputs=("y",), traits=(Trait.ZERO,), float32_inputs=("x_scale", "w_scale", "y_scale"),
    settings=("x_scale", "w_scale", "y_scale"))
def qlinear_conv(
    x: Array, x_scale: Array, x_zero_point: Array, w: Array, w_scale: Array, w_zero_point: Array, y_scale: Array,
    y_zero_point: Array, B: Array | None = None, *,
    auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    kernel_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Array:
    window = slide(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    total = _convolution(centred(x, x_zero_point), centred(w, _laid(w_zero_point, w.ndim - 1)), window, group)
    if B is not None:
        total = np.add(total, B.reshape(-1, *(1,) * (w.ndim - 2)), dtype=np.float64)
    return requantized(total, _laid(x_scale), _laid(w_scale, w.ndim - 2), _laid(y_scale), _laid(y_zero_point))


@qlinear_conv.types
def _(node: Node) -> Type:
    return Type(node.input(7).type.dtype, convolved_shape(node, node.input(0), node.input(3)))


@qlinear_conv.ranks
def _(node: Node) -> list[int | None]:
    """Image and weights have as many axes as each other."""
    x, w = node.input(0).type.rank, node.input(3).type.rank
    return [w if x is None else x, None, None, x if w is None else w]


@qlinear_conv.unrounded
def _(b: Builder, node: Node, reals: Sequence[Value | None]) -> Value | None:
    """Clip((the convolution of x - zero point by w - zero point + B) x_scale w_scale / y_scale + zero point)."""
    if not (reals[0] or reals[3]):
        return None
    bias = node.optional(8)
    image, weights = _centred(b, node, reals, (0, 2)), _centred(b, node, reals, (3, 5), "weights")
    total = b.Conv(image, weights, None if bias is None else b.cast_like(bias, image), **geometry(node))
    dtype = total.type.dtype
    return _scaled(b, node, total, [_number(b, node, 1, dtype), _number(b, node, 4, dtype, "channels")])


# ---- many examples ----------------------------------------------------------------------------------------------------------

conv_integer.batch(within_batch(0))
qlinear_conv.batch(within_batch(0))


@matmul_integer.batch
def _(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """One more batch axis."""
    return _more_products(b, node, xs, (0, 1))


@qlinear_matmul.batch
def _(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """One more batch axis."""
    return _more_products(b, node, xs, (0, 3))


def _more_products(b: BatchBuilder, node: Node, xs: Sequence[Value | None], factors: tuple[int, int]) -> Any:
    ranks = [node.input(i).type.rank or 0 for i in factors]
    others = [x for slot, x in enumerate(xs) if x is not None and slot not in factors]
    if min(ranks) < 2 or any(b.holds(x) or x.type.shape not in ((), (1,)) for x in others):
        return looped(b, node, *xs)
    return again(b, node, [b.padded(x, max(ranks)) if x is not None and slot in factors else x for slot, x in enumerate(xs)])
