"""Adapters for what onnxruntime's own domain has beside transformers and quantization.

Copies of the standard's operators of their time, products with weights in few bits, positions, text.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.exchange.microsoft import Results, activated, added, contributed, kept
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.graph import Array, Value
from flowgrad.ir.ops.operands import ramp
from flowgrad.ir.types import FLOAT32, INT32, INT64, UINT8, dtype_of

UINT32 = dtype_of("uint32")

# ---- copies of the standard's -------------------------------------------------------------------------------------------


@contributed("GatherND", "Trilu")
def as_in_the_standard(b: ImportBuilder, call: ImportedNode) -> None:
    """The same as those of the standard."""


@contributed("GridSample")
def grid_sample(b: ImportBuilder, call: ImportedNode) -> Results:
    """The standard's, with its modes under their older names."""
    modes = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}
    mode = str(call.take("mode", "bilinear"))
    if mode not in modes:
        raise UnsupportedError(f"GridSample with mode={mode!r} is not supported", code="attribute", where=call.label)
    return (b.GridSample(call.input(0), call.input(1), mode=modes[mode], **kept(call, "align_corners", "padding_mode")),)


@contributed("Range")
def number_range(b: ImportBuilder, call: ImportedNode) -> Results:
    """The standard's, in steps of 1 by default."""
    start, limit, step = call.input(0), call.input(1), call.optional(2)
    scalars = [v if v is None or v.type.rank == 0 else b.Reshape(v, np.zeros(0, np.int64)) for v in (start, limit, step)]
    return (b.Range(*scalars[:2], b.scalar(1, start.type.dtype) if step is None else scalars[2]),)


@contributed("Pad")
def pad(b: ImportBuilder, call: ImportedNode) -> Results:
    """The standard's; the pads may have the shape [1, 2 n]."""
    pads = b.Reshape(call.input(1), np.asarray([-1], np.int64))
    return (b.add("Pad", [call.input(0), pads, call.optional(2)], kept(call, "mode")),)


@contributed("ExpandDims")
def expand_dims(b: ImportBuilder, call: ImportedNode) -> Results:
    """A new axis at a place that is given as a number of 32 bits."""
    return (b.Unsqueeze(call.input(0), b.Reshape(b.cast(call.input(1), INT64), np.asarray([1], np.int64))),)


@contributed("Unique")
def unique(b: ImportBuilder, call: ImportedNode) -> Results:
    """The distinct elements in the order in which they appear, the place of each element's, and how often they come."""
    values, _, places, counts = b.add_several("Unique", [call.input(0)], {"sorted": 0}, outputs=4)
    return values, places, counts


@contributed("Inverse")
def inverse(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = x^-1 for each matrix: its cofactors, transposed, over its determinant. A singular one gives no finite numbers."""
    x = call.input(0)
    if x.type.rank is None:
        raise UnsupportedError("Inverse of a tensor of unknown rank is not supported", code="rank", where=call.label)
    turned = [*range(x.type.rank - 2), x.type.rank - 1, x.type.rank - 2]
    return (b.Div(b.Transpose(b.Cofactor(x), perm=turned), b.Unsqueeze(b.Det(x), [-1, -2])),)


@contributed("BiasDropout")
def bias_dropout(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = Dropout(x + bias) + residual, and the mask."""
    made = b.add_several("Dropout", [b.Add(call.input(0), call.input(1)), call.optional(3), call.optional(4)],
                         kept(call, "seed"), outputs=2)
    return added(b, made[0], call.optional(2)), made[1]


# ---- images ---------------------------------------------------------------------------------------------------------------


def _first_and_last(x: Value, call: ImportedNode) -> tuple[list[int], list[int]]:
    """Return the permutations that bring channels from the end to the front, and back."""
    if x.type.rank is None:
        raise UnsupportedError(f"{call.op} on a tensor of unknown rank is not supported", code="rank", where=call.label)
    rank = x.type.rank
    return [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]


@contributed("NhwcMaxPool")
def max_pool_channels_last(b: ImportBuilder, call: ImportedNode) -> Results:
    """MaxPool of x [N, spatial, C]."""
    first, last = _first_and_last(call.input(0), call)
    window = kept(call, "auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
    return (b.Transpose(b.MaxPool(b.Transpose(call.input(0), perm=first), **window), perm=last),)


@contributed("NhwcFusedConv")
def fused_conv_channels_last(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = activation(Conv(x, w, bias) + z), x, y and z with their channels last, w as the standard has it."""
    first, last = _first_and_last(call.input(0), call)
    parameters = [float(v) for v in call.take("activation_params", ())]
    window = kept(call, "auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    y = b.add("Conv", [b.Transpose(call.input(0), perm=first), call.input(1), call.optional(2)], window)
    return (activated(b, call, added(b, b.Transpose(y, perm=last), call.optional(3)), parameters),)


@contributed("CropAndResize")
def crop_and_resize(b: ImportBuilder, call: ImportedNode) -> Results:
    """Boxes [y1, x1, y2, x2] of x [N, C, H, W], from corner to corner in ``crop_size`` steps, between four pixels each."""
    mode, size = str(call.take("mode", "bilinear")), call.input(3).constant
    if mode != "bilinear" or size is None:
        raise UnsupportedError(f"CropAndResize with mode={mode!r} and a size that is "
                               f"{'computed' if size is None else 'known'} is not supported", code="attribute", where=call.label)
    x, boxes = call.input(0), call.input(1)
    rows, columns = (_between(b, boxes, corner, int(n)) for corner, n in enumerate(size.reshape(-1)))
    down, right = b.Unsqueeze(rows, [2]), b.Unsqueeze(columns, [1])
    zeros = b.Mul(b.Add(down, right), b.scalar(0, x.type.dtype))
    grid = b.Concat(*(b.Unsqueeze(b.Add(v, zeros), [3]) for v in (right, down)), axis=3)
    images = b.Gather(x, call.input(2), axis=0)
    two, one = b.scalar(2, x.type.dtype), b.scalar(1, x.type.dtype)
    found = b.GridSample(images, b.Sub(b.Mul(grid, two), one), align_corners=1, padding_mode="border")
    inside = b.Unsqueeze(b.And(_is_inside(b, down), _is_inside(b, right)), [1])
    return (b.Where(inside, found, b.scalar(float(call.take("extrapolation_value", 0.0)), x.type.dtype)),)


def _between(b: ImportBuilder, boxes: Value, corner: int, steps: int) -> Value:
    """Return ``steps`` numbers from one corner of each box to the other; the middle if it is one step."""
    low, high = (b.Gather(boxes, np.asarray([k], np.int64), axis=1) for k in (corner, corner + 2))
    parts = np.linspace(0, 1, steps) if steps > 1 else np.array([0.5])
    return b.Add(low, b.Mul(b.Sub(high, low), b.graph.add_constant(parts[None].astype(boxes.type.dtype.numpy))))


def _is_inside(b: ImportBuilder, places: Value) -> Value:
    return b.And(b.GreaterOrEqual(places, 0.0), b.LessOrEqual(places, 1.0))


# ---- products and sums ------------------------------------------------------------------------------------------------------


@contributed("GemmFastGelu")
def gemm_fast_gelu(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = Gelu(x w + bias) with the approximation by tanh."""
    return (b.Gelu(added(b, b.MatMul(call.input(0), call.input(1)), call.optional(2)), approximate="tanh"),)


@contributed("ReduceSumInteger")
def reduce_sum_integer(b: ImportBuilder, call: ImportedNode) -> Results:
    """The sum of numbers of 8 bits in 32 bits."""
    wide = UINT32 if call.input(0).type.dtype == UINT8 else INT32
    return (b.ReduceSum(b.cast(call.input(0), wide), b.ints(call.required("axes")), keepdims=int(call.required("keepdims"))),)


@contributed("MulInteger")
def mul_integer(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = (x - its zero point) (w - its zero point) in 32 bits."""
    factors = []
    for slot in (0, 2):
        number, zero = b.cast(call.input(slot), INT32), call.optional(slot + 1)
        factors.append(number if zero is None else b.Sub(number, b.cast(zero, INT32)))
    return (b.Mul(*factors),)


@contributed("MatMulInteger16")
def matmul_integer_16(b: ImportBuilder, call: ImportedNode) -> Results:
    """The product of matrices of 16 bits in 32 bits."""
    wide = INT32 if call.input(0).type.dtype.kind == "int" else UINT32
    return (b.MatMul(b.cast(call.input(0), wide), b.cast(call.input(1), wide)),)


@contributed("ComplexMul", "ComplexMulConj")
def complex_mul(b: ImportBuilder, call: ImportedNode) -> Results:
    """x w, or x times the conjugate of w; the last axis holds real and imaginary parts."""
    (a, c), (d, e) = (b.add_several("Split", [call.input(k)], {"axis": -1, "num_outputs": 2}, outputs=2) for k in range(2))
    e = b.Neg(e) if call.op == "ComplexMulConj" else e
    return (b.Concat(b.Sub(b.Mul(a, d), b.Mul(c, e)), b.Add(b.Mul(a, e), b.Mul(c, d)), axis=-1),)


# ---- weights in few bits ----------------------------------------------------------------------------------------------------


_NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
_FP4_HALF = (0.0, 0.0052083333333, 0.6666666667, 1.0, 0.3333333333, 0.5, 0.1666666667, 0.25)
_FP4 = (*_FP4_HALF, *(-v for v in _FP4_HALF))


@contributed("MatMulBnb4")
def matmul_bnb4(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = x W', or x W; W [N, K] is held as 16 numbers that are none of a line, each block with its largest magnitude."""
    packed = call.input(1).constant
    if packed is None:
        raise UnsupportedError("MatMulBnb4 with weights that are computed is not supported", code="input", where=call.label)
    rows, columns, size = (int(call.required(n)) for n in ("N", "K", "block_size"))
    table = np.asarray(_NF4 if call.required("quant_type") else _FP4, np.float32)
    codes = np.stack([packed >> 4, packed & 15], -1).reshape(-1)[: rows * columns]
    if len(codes) < rows * columns or size < 1:
        raise ValidationError(f"{len(codes)} numbers where {rows * columns} are needed", code="shape", where=call.label)
    of = np.arange(rows * columns, dtype=np.int64) // size
    scales = b.cast(b.Gather(b.Reshape(call.input(2), np.asarray([-1], np.int64)), of), FLOAT32)
    weights = b.Reshape(b.Mul(b.graph.add_constant(table[codes]), scales), np.asarray([rows, columns], np.int64))
    weights = b.cast_like(weights, call.input(0))
    return (b.MatMul(call.input(0), b.Transpose(weights, perm=[1, 0]) if call.take("transB", 1) else weights),)


@contributed("GatherBlockQuantized")
def gather_block_quantized(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = Gather((data - zero point) scale), one scale for ``block_size`` elements along an axis.

    An index that points outside gives zeros.
    """
    data, scales = call.input(0), call.input(2)
    if not data.type.is_static or not scales.type.is_static:
        raise UnsupportedError(f"{call.op} of tensors whose shapes only the run tells is not supported", code="shape",
                               where=call.label)
    zero = call.optional(3)
    bits = int(call.take("bits", 4))
    if data.type.dtype == UINT8 and bits != 8:
        data, zero = _spread(b, call, data, bits), None if zero is None else _spread(b, call, zero, bits)
    rank, extents = len(data.shape), data.type.static_shape
    along, at = (int(call.take(n, d)) % rank for n, d in (("quantize_axis", 1), ("gather_axis", 0)))
    size = int(call.take("block_size", 128)) or extents[along]
    if zero is None and data.type.dtype == UINT8:
        zero = b.scalar(2 ** (bits - 1), UINT8)
    indices, rows = call.input(1), extents[at]
    outside = b.Or(b.Less(indices, b.scalar(-rows, indices.type.dtype)),
                   b.GreaterOrEqual(indices, b.scalar(rows, indices.type.dtype)))
    safe = b.Where(outside, b.scalar(0, indices.type.dtype), indices)

    def taken(part: Value) -> Value:
        return b.Gather(part, safe, axis=at) if part.type.static_shape[at] == rows else part

    blocks = np.arange(extents[along], dtype=np.int64) // size
    parts: list[Value | None] = [data, _repeated(b, scales, blocks, along), zero and _repeated(b, zero, blocks, along)]
    if at != along:  # fewer numbers to restore
        parts = [part if part is None or not part.type.rank else taken(part) for part in parts]
    number, scale, point = parts
    assert number is not None and scale is not None
    whole = b.cast(number, FLOAT32)
    real = b.Mul(whole if point is None else b.Sub(whole, b.cast(point, FLOAT32)), b.cast(scale, FLOAT32))
    real = b.cast(real if at != along else taken(real), scales.type.dtype)
    mask = b.Unsqueeze(outside, list(range(-(rank - 1 - at), 0))) if at < rank - 1 else outside
    return (b.Where(mask, b.scalar(0, scales.type.dtype), real),)


def _spread(b: ImportBuilder, call: ImportedNode, packed: Value, bits: int) -> Value:
    """Return numbers of 2 or 4 bits, packed into bytes along the last axis, as bytes of their own."""
    held: Array | None = packed.constant
    if held is None or bits not in (2, 4):
        raise UnsupportedError(f"{call.op} with bits={bits} and packed numbers that are "
                               f"{'computed' if held is None else 'known'} is not supported", code="input", where=call.label)
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    return b.graph.add_constant(((held[..., None] >> shifts) & (2**bits - 1)).reshape(*held.shape[:-1], -1))


def _repeated(b: ImportBuilder, x: Value, blocks: Array, axis: int) -> Value:
    """Return what belongs to blocks for each of their elements along ``axis``; one for all broadcasts."""
    if not x.type.rank or (x.type.static_shape[axis] == 1 and (not len(blocks) or not blocks[-1])):
        return x
    return b.Gather(x, blocks, axis=axis)


# ---- positions --------------------------------------------------------------------------------------------------------------


@contributed("RelativePositionBias")
def relative_position_bias(b: ImportBuilder, call: ImportedNode) -> Results:
    """Rows of a table for the distance from query to key: near ones by themselves, farther ones by their logarithm (T5)."""
    table = call.input(0)
    if not table.type.is_static:
        raise UnsupportedError(f"{call.op} with a table of unknown shape is not supported", code="shape", where=call.label)
    buckets, farthest = table.type.static_shape[0], int(call.required("max_distance"))
    queries, keys = (b.Unsqueeze(ramp(b, b.Reshape(call.input(k), np.asarray([1], np.int64))), [axis])
                     for k, axis in ((1, 1), (2, 0)))
    distance = b.Sub(keys, queries)
    first: Value | None = None
    if call.take("is_bidirectional", 0):
        buckets //= 2
        first = b.Mul(b.Cast(b.Greater(distance, np.int64(0)), to=INT64.onnx), np.int64(buckets))
        distance = b.Abs(distance)
    else:
        distance = b.Neg(b.Min(distance, np.int64(0)))
    near = buckets // 2
    parts = b.Div(b.Log(b.Div(b.cast(b.Max(distance, np.int64(1)), FLOAT32), float(near))), math.log(farthest / near))
    far = b.Add(b.Cast(b.Mul(parts, float(buckets - near)), to=INT64.onnx), np.int64(near))
    place = b.Where(b.Less(distance, np.int64(near)), distance, b.Min(far, np.int64(buckets - 1)))
    rows = b.Gather(table, place if first is None else b.Add(place, first))
    return (b.Unsqueeze(b.Transpose(rows, perm=[2, 0, 1]), [0]),)


@contributed("GatedRelativePositionBias")
def gated_relative_position_bias(b: ImportBuilder, call: ImportedNode) -> Results:
    """u (r a - 1) + 2 times the bias by position; u and r are gates that the queries open (WavLM)."""
    if call.optional(6) is not None:
        raise UnsupportedError(f"{call.op} with packed tokens is not supported", code="input", where=call.label)
    heads, weight = int(call.required("num_heads")), call.input(3)
    query = b.Add(call.input(0), call.input(1))
    query = b.Transpose(b.Reshape(query, np.asarray([0, 0, heads, -1], np.int64)), perm=[0, 2, 1, 3])
    gates = b.Add(b.MatMul(query, weight), call.input(4))
    gates = b.ReduceSum(b.Reshape(gates, np.asarray([0, 0, 0, 2, -1], np.int64)), [-1], keepdims=0)
    u, r = b.add_several("Split", [b.Sigmoid(gates)], {"axis": -1, "num_outputs": 2}, outputs=2)
    factor = b.Add(b.Mul(u, b.Sub(b.Mul(r, call.input(5)), 1.0)), 2.0)
    return (b.Mul(factor, call.input(2)),)


# ---- text -------------------------------------------------------------------------------------------------------------------


@contributed("Tokenizer")
def tokenizer(b: ImportBuilder, call: ImportedNode) -> Results:
    """Texts into their tokens; there are no operators of the standard for it, so that export refuses it."""
    settings: dict[str, Any] = {n: call.required(n) for n in ("mark", "mincharnum", "pad_value")}
    return (b.add("Tokenizer", [call.input(0)], settings | kept(call, "separators", "tokenexp")),)
