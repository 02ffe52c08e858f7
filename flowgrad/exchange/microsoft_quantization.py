"""Adapters for the quantized operators of onnxruntime's own domain: operators of the standard between pairs of its own.

An operator on quantized numbers becomes DequantizeLinear, the operator on reals, and QuantizeLinear; integer products stay
integer products.
"""

from __future__ import annotations

from collections.abc import Callable

from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.exchange.microsoft import Results, contributed
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.graph import Value
from flowgrad.ir.types import FLOAT32, UINT8


def _restored(b: ImportBuilder, call: ImportedNode, slot: int) -> Value:
    """Return the reals that the operand in ``slot`` stands for; scale and zero point follow it."""
    return restored(b, call, slot, slot + 1, slot + 2)


def restored(b: ImportBuilder, call: ImportedNode, slot: int, scale: int, zero: int) -> Value:
    """Return the reals that the operand in ``slot`` stands for, with its scale and its zero point in other slots."""
    return b.DequantizeLinear(call.input(slot), call.input(scale), call.optional(zero))


def _quantized(b: ImportBuilder, real: Value, scale: Value, zero: Value | None) -> Results:
    return (b.QuantizeLinear(real, scale, zero),)


def _channels_first(b: ImportBuilder, call: ImportedNode, work: Callable[[Value], Value]) -> Results:
    """Return what ``work`` makes of the first input with its channels before the image, laid out as they were."""
    x = call.input(0)
    if not call.take("channels_last", 0):
        return (work(x),)
    if x.type.rank is None:
        raise UnsupportedError(f"{call.op} with channels last on a tensor of unknown rank", code="rank", where=call.label)
    rank = x.type.rank
    y = work(b.Transpose(x, perm=[0, rank - 1, *range(1, rank - 1)]))
    return (b.Transpose(y, perm=[0, *range(2, rank), 1]),)


@contributed("QuantizeLinear", "DequantizeLinear")
def as_in_the_standard(b: ImportBuilder, call: ImportedNode) -> None:
    """The same as those of the standard."""


# ---- elementwise and whole tensors ----------------------------------------------------------------------------------------


@contributed("QLinearAdd", "QLinearMul")
def binary(b: ImportBuilder, call: ImportedNode) -> Results:
    """C = quantized(A op B)."""
    real = b.add(call.op.removeprefix("QLinear"), [_restored(b, call, 0), _restored(b, call, 3)])
    return _quantized(b, real, call.input(6), call.optional(7))


@contributed("QLinearSigmoid", "QLinearLeakyRelu")
def activation(b: ImportBuilder, call: ImportedNode) -> Results:
    """Y = quantized(f(X))."""
    real = b.add(call.op.removeprefix("QLinear"), [_restored(b, call, 0)], call.attributes)
    return _quantized(b, real, call.input(3), call.optional(4))


@contributed("QLinearSoftmax")
def softmax(b: ImportBuilder, call: ImportedNode) -> Results:
    """Y = quantized(Softmax(X)); before opset 13 that was over all axes from ``axis`` on."""
    real, axis = _restored(b, call, 0), int(call.take("axis", -1))
    if int(call.take("opset", 13)) < 13:
        rank = real.type.rank
        if rank is None:
            raise UnsupportedError("QLinearSoftmax of opset 12 on a tensor of unknown rank", code="rank", where=call.label)
        made = b.Reshape(b.Softmax(b.Flatten(real, axis=axis % rank), axis=1), b.shape(real), allowzero=1)
    else:
        made = b.Softmax(real, axis=axis)
    return _quantized(b, made, call.input(3), call.optional(4))


@contributed("QLinearConcat")
def concat(b: ImportBuilder, call: ImportedNode) -> Results:
    """Y = quantized(Concat(...)); scale and zero point of Y come first, those of the parts follow each."""
    if len(call.inputs) % 3 != 2:
        raise ValidationError(f"QLinearConcat with {len(call.inputs)} inputs", code="arity", where=call.label)
    parts = [_restored(b, call, slot) for slot in range(2, len(call.inputs), 3)]
    return _quantized(b, b.Concat(*parts, axis=call.take("axis")), call.input(0), call.input(1))


@contributed("QLinearWhere")
def where(b: ImportBuilder, call: ImportedNode) -> Results:
    """Z = quantized(Where(condition, X, Y))."""
    chosen = b.Where(call.input(0), _restored(b, call, 1), _restored(b, call, 4))
    return _quantized(b, chosen, call.input(7), call.optional(8))


# ---- means -----------------------------------------------------------------------------------------------------------------


@contributed("QLinearGlobalAveragePool", "QLinearAveragePool")
def average_pool(b: ImportBuilder, call: ImportedNode) -> Results:
    """Y = quantized(pool(X))."""
    op = call.op.removeprefix("QLinear")

    def work(x: Value) -> Value:
        real = b.DequantizeLinear(x, call.input(1), call.optional(2))
        return b.QuantizeLinear(b.add(op, [real], call.attributes), call.input(3), call.optional(4))

    return _channels_first(b, call, work)


@contributed("QLinearReduceMean")
def reduce_mean(b: ImportBuilder, call: ImportedNode) -> Results:
    """Y = quantized(ReduceMean(X))."""
    axes = call.take("axes")
    mean = b.ReduceMean(_restored(b, call, 0), None if axes is None else list(axes), keepdims=call.take("keepdims", 1))
    return _quantized(b, mean, call.input(3), call.optional(4))


# ---- products --------------------------------------------------------------------------------------------------------------


@contributed("QLinearConv")
def convolution(b: ImportBuilder, call: ImportedNode) -> Results:
    """That of the standard; the channels of x may come last."""
    return _channels_first(b, call, lambda x: b.add("QLinearConv", [x, *call.inputs[1:]], call.attributes))


@contributed("QGemm")
def gemm(b: ImportBuilder, call: ImportedNode) -> Results:
    """Y = alpha a_scale b_scale ((A' - zero point)(B' - zero point) + C), quantized if it has a scale."""
    a, w = (_matrix(b, call, slot, name) for slot, name in ((0, "transA"), (3, "transB")))
    total = b.MatMulInteger(a, w, call.input(2), call.input(5))
    if (bias := call.optional(6)) is not None:
        total = b.Add(total, bias)
    scale = b.Mul(_scalar(b, call.input(1)), call.input(4))
    alpha = float(call.take("alpha", 1.0))
    real = _scaled(b, total, scale if alpha == 1 else b.Mul(scale, alpha))
    return (real,) if call.optional(7) is None else _quantized(b, real, call.input(7), call.optional(8))


def _matrix(b: ImportBuilder, call: ImportedNode, slot: int, flag: str) -> Value:
    return b.Transpose(call.input(slot), perm=[1, 0]) if call.take(flag, 0) else call.input(slot)


def _scalar(b: ImportBuilder, scale: Value) -> Value:
    return b.Squeeze(scale, [0]) if scale.type.shape == (1,) else scale


def _scaled(b: ImportBuilder, total: Value, scale: Value) -> Value:
    """Return a product of integers as reals; a vector of scales belongs to its columns."""
    return b.DequantizeLinear(total, scale, None, axis=-1)


@contributed("MatMulIntegerToFloat")
def product_as_float(b: ImportBuilder, call: ImportedNode) -> Results:
    """Y = a_scale b_scale (A - zero point)(B - zero point) + bias."""
    x, w, x_scale, w_scale = (call.input(k) for k in range(4))
    real = integer_product(b, x, w, x_scale, w_scale, call.optional(4), call.optional(5))
    return (real if call.optional(6) is None else b.Add(real, call.input(6)),)


def integer_product(
    b: ImportBuilder, x: Value, w: Value, x_scale: Value, w_scale: Value, x_zero: Value | None, w_zero: Value | None
) -> Value:
    """Return x_scale w_scale (x - zero point)(w - zero point)."""
    return _scaled(b, b.MatMulInteger(x, w, x_zero, w_zero), b.Mul(_scalar(b, x_scale), w_scale))


@contributed("DynamicQuantizeMatMul")
def dynamic_product(b: ImportBuilder, call: ImportedNode) -> Results:
    """Y = b_scale a_scale (A - zero point)(B - zero point) + bias, with A quantized to uint8 over its range and zero."""
    real = rounded_product(b, call.input(0), call.input(1), call.input(2), call.optional(3))
    return (real if call.optional(4) is None else b.Add(real, call.input(4)),)


def rounded_product(b: ImportBuilder, x: Value, w: Value, w_scale: Value, w_zero: Value | None) -> Value:
    """Return x (w - zero point) w_scale, with x rounded to 256 numbers over its range and zero."""
    low, high = b.Min(b.ReduceMin(x, keepdims=0), 0.0), b.Max(b.ReduceMax(x, keepdims=0), 0.0)
    extent = b.Div(b.Sub(high, low), 255.0)
    scale = b.Where(b.Equal(extent, 0.0), b.scalar(1, FLOAT32), extent)
    zero = b.cast(b.Round(b.Clip(b.Neg(b.Div(low, scale)), 0.0, 255.0)), UINT8)
    total = b.MatMulInteger(b.QuantizeLinear(x, scale, zero), w, zero, w_zero)
    return _scaled(b, total, b.Mul(scale, w_scale))
