"""Operators of the domain com.microsoft that optimisers and exporters write, in terms of the standard's.

What each means is what onnxruntime's kernels for the CPU compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.exchange.adapters import EVERY_OPSET, RENAMED, Adapter, before
from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.exchange.tensors import unpacked
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.graph import Value
from flowgrad.ir.ops.operands import ramp
from flowgrad.ir.types import dtype_of

DOMAIN = "com.microsoft"

RENAMED["SimplifiedLayerNormalization"] = "RMSNormalization"  # written into the standard's domain

Results = Sequence[Value | None]


def contributed(*ops: str) -> Callable[[Adapter], Adapter]:
    """Register an adapter for operators of com.microsoft."""
    return before(EVERY_OPSET, *ops, domain=DOMAIN)


def refuse_attributes(call: ImportedNode, **expected: Any) -> None:
    """Raise UnsupportedError for an attribute that has another value than the one that is understood."""
    for name, value in expected.items():
        given = call.attributes.get(name, value)
        if given != value:
            raise UnsupportedError(f"{call.op} with {name}={given!r} is not supported", code="attribute", where=call.label)


def refuse_inputs(call: ImportedNode, **slots: int) -> None:
    """Raise UnsupportedError for an input that is given although it is not understood."""
    for name, slot in slots.items():
        if call.optional(slot) is not None:
            raise UnsupportedError(f"{call.op} with the input {name} is not supported", code="input", where=call.label)


def kept(call: ImportedNode, *names: str) -> dict[str, Any]:
    """Return those of the named attributes that the call has."""
    return {name: call.attributes[name] for name in names if name in call.attributes}


def added(b: ImportBuilder, x: Value, *terms: Value | None) -> Value:
    """Return the sum of ``x`` and the terms that are there."""
    for term in terms:
        x = x if term is None else b.Add(x, term)
    return x


# ---- activations --------------------------------------------------------------------------------------------------------


@contributed("Gelu")
def gelu(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = x Phi(x)."""
    return (b.Gelu(call.input(0)),)


@contributed("BiasGelu")
def bias_gelu(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = Gelu(x + bias)."""
    return (b.Gelu(b.Add(call.input(0), call.input(1))),)


@contributed("FastGelu")
def fast_gelu(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = Gelu(x + bias) with the approximation by tanh."""
    return (b.Gelu(added(b, call.input(0), call.optional(1)), approximate="tanh"),)


@contributed("QuickGelu")
def quick_gelu(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = x sigmoid(alpha x)."""
    return (b.Swish(call.input(0), alpha=float(call.take("alpha", 1.702))),)


@contributed("BiasSplitGelu")
def bias_split_gelu(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = u Gelu(v), with u and v the halves of x + bias along the last axis."""
    halves = b.add_several("Split", [b.Add(call.input(0), call.input(1))], {"axis": -1, "num_outputs": 2}, outputs=2)
    return (b.Mul(halves[0], b.Gelu(halves[1])),)


@contributed("BiasAdd")
def bias_add(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = x + bias + skip."""
    return (added(b, *(call.input(k) for k in range(3))),)


@contributed("BiasSoftmax")
def bias_softmax(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = softmax(x + bias) over the axes from ``axis`` on; the bias broadcasts over inner or outer axes."""
    refuse_attributes(call, is_inner_broadcast=1)
    x, axis = b.Add(call.input(0), call.input(1)), int(call.take("axis", 1))
    rank = len(x.shape)
    if axis % rank == rank - 1:
        return (b.Softmax(x, axis=-1),)
    flat = b.Reshape(x, np.asarray([0] * (axis % rank) + [-1], np.int64))
    return (b.Reshape(b.Softmax(flat, axis=-1), b.shape(x), allowzero=1),)


Parameters = Sequence[float | None]


def _number(parameters: Parameters, slot: int, default: float) -> float:
    found = parameters[slot] if slot < len(parameters) else None
    return default if found is None else float(found)


_FUSED: dict[str, Callable[[ImportBuilder, Value, Parameters], Value]] = {
    "": lambda b, x, _: x,
    "Relu": lambda b, x, _: b.Relu(x),
    "Tanh": lambda b, x, _: b.Tanh(x),
    "Sigmoid": lambda b, x, _: b.Sigmoid(x),
    "LeakyRelu": lambda b, x, p: b.LeakyRelu(x, alpha=_number(p, 0, 0.01)),
    "HardSigmoid": lambda b, x, p: b.HardSigmoid(x, alpha=_number(p, 0, 0.2), beta=_number(p, 1, 0.5)),
    "Clip": lambda b, x, p: b.Clip(x, *(b.scalar(float(v), x.type.dtype) for v in p[:2] if v is not None)),
    "Gelu": lambda b, x, _: b.Gelu(x),
    "Elu": lambda b, x, p: b.Elu(x, alpha=_number(p, 0, 1.0)),
    "Celu": lambda b, x, p: b.Celu(x, alpha=_number(p, 0, 1.0)),
    "Selu": lambda b, x, p: b.Selu(x, alpha=_number(p, 0, 1.6732632), gamma=_number(p, 2, 1.050701)),
    "Softplus": lambda b, x, _: b.Softplus(x),
    "Softsign": lambda b, x, _: b.Softsign(x),
    "ThresholdedRelu": lambda b, x, p: b.ThresholdedRelu(x, alpha=_number(p, 0, 1.0)),
}
"""Activations that are fused into products and convolutions, with their alpha, beta and gamma."""


def activated(b: ImportBuilder, call: ImportedNode, x: Value, parameters: Parameters) -> Value:
    """Return the activation that the attribute ``activation`` names."""
    name = str(call.take("activation", ""))
    if name not in _FUSED:
        raise UnsupportedError(f"{call.op} with the activation {name!r} is not supported", code="attribute", where=call.label)
    return _FUSED[name](b, x, parameters)


# ---- products and convolutions ------------------------------------------------------------------------------------------


@contributed("FusedMatMul", "TransposeMatMul")
def fused_matmul(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = alpha A' B', matrices transposed and the first axis of a batch moved before the last as told."""
    x = _arranged(b, call, call.input(0), int(call.take("transA", 0)), int(call.take("transBatchA", 0)))
    y = _arranged(b, call, call.input(1), int(call.take("transB", 0)), int(call.take("transBatchB", 0)))
    product, alpha = b.MatMul(x, y), float(call.take("alpha", 1.0))
    return (product if alpha == 1 else b.Mul(product, b.scalar(alpha, product.type.dtype)),)


def _arranged(b: ImportBuilder, call: ImportedNode, x: Value, transposed: int, batch: int) -> Value:
    """Return an operand with its last axes swapped if ``transposed``; with ``batch`` axis 0 goes before the last first."""
    if not transposed and not batch:
        return x
    if x.type.rank is None:
        raise UnsupportedError(f"{call.op} that transposes a tensor of unknown rank", code="rank", where=call.label)
    axes = list(range(x.type.rank))
    if batch and len(axes) > 2:
        axes = [*axes[1:-1], 0, axes[-1]]
    if transposed and len(axes) > 1:
        axes = [*axes[:-2], axes[-1], axes[-2]]
    return b.Transpose(x, perm=axes)


@contributed("FusedGemm")
def fused_gemm(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = activation(alpha A' B' + beta C)."""
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    parameters = [call.take(n) for n in names]
    product = b.add("Gemm", [call.input(0), call.input(1), call.optional(2)],
                    kept(call, "alpha", "beta", "transA", "transB"))
    return (activated(b, call, product, parameters),)


_WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


@contributed("FusedConv")
def fused_conv(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = activation(Conv(x, w, bias) + z)."""
    parameters = [float(v) for v in call.take("activation_params", ())]
    window = kept(call, *_WINDOW)
    y = b.add("Conv", [call.input(0), call.input(1), call.optional(2)], window)
    return (activated(b, call, added(b, y, call.optional(3)), parameters),)


@contributed("NhwcConv")
def nhwc_conv(b: ImportBuilder, call: ImportedNode) -> Results:
    """A convolution of x [N, spatial, C] by w [M, spatial, C / group]."""
    rank = len(call.input(1).shape)
    first, last = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    window = kept(call, *_WINDOW)
    x, w = (b.Transpose(call.input(k), perm=first) for k in range(2))
    return (b.Transpose(b.add("Conv", [x, w, call.optional(2)], window), perm=last),)


@contributed("CDist")
def pairwise_distances(b: ImportBuilder, call: ImportedNode) -> Results:
    """d[i, j] = |a[i] - c[j]|, or its square, for the rows of two matrices."""
    metric = str(call.take("metric", "sqeuclidean"))
    if metric not in ("euclidean", "sqeuclidean"):
        raise UnsupportedError(f"CDist with metric={metric!r} is not supported", code="attribute", where=call.label)
    difference = b.Sub(b.Unsqueeze(call.input(0), [1]), b.Unsqueeze(call.input(1), [0]))
    reduce = b.ReduceSumSquare if metric == "sqeuclidean" else b.ReduceL2
    return (reduce(difference, [2], keepdims=0),)


@contributed("MatMulNBits")
def matmul_n_bits(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = x W' + bias, W [N, K] held in blocks of 4 or 8 bits along K: (q - zero point) scale."""
    refuse_inputs(call, g_idx=4)
    packed = call.input(1).constant
    if packed is None:
        raise UnsupportedError("MatMulNBits with weights that are computed is not supported", code="input", where=call.label)
    rows, columns = int(call.required("N")), int(call.required("K"))
    bits, size = int(call.attributes.get("bits", 4)), int(call.required("block_size"))
    if bits not in (4, 8):
        raise UnsupportedError(f"MatMulNBits with bits={bits} is not supported", code="attribute", where=call.label)
    blocks = -(-columns // size)
    quantized = _unpacked(packed.reshape(rows, blocks, -1), bits, size)
    zero = call.optional(3)
    scales = b.Reshape(call.input(2), np.asarray([rows, blocks, 1], np.int64))
    if zero is None:
        shifted = b.graph.add_constant(quantized.astype(scales.type.dtype.numpy) - 2 ** (bits - 1))
    elif zero.constant is not None and not zero.type.dtype.is_float:
        points = _unpacked(zero.constant.reshape(rows, -1), bits, blocks).reshape(rows, blocks, 1)
        shifted = b.graph.add_constant(quantized.astype(scales.type.dtype.numpy) - points.astype(scales.type.dtype.numpy))
    else:
        point = b.Reshape(b.cast(zero, scales.type.dtype), np.asarray([rows, blocks, 1], np.int64))
        shifted = b.Sub(b.graph.add_constant(quantized.astype(scales.type.dtype.numpy)), point)
    weights = b.Reshape(b.Mul(shifted, scales), np.asarray([rows, blocks * size], np.int64))
    if blocks * size != columns:
        weights = b.Slice(weights, [0], [columns], [1])
    product = b.MatMul(call.input(0), b.Transpose(b.cast(weights, call.input(0).type.dtype), perm=[1, 0]))
    return (added(b, product, call.optional(5)),)


def _unpacked(packed: np.ndarray[Any, Any], bits: int, count: int) -> np.ndarray[Any, Any]:
    """Return the numbers of 4 or 8 bits along the last axis, the lower half of a byte first; ValidationError if too few."""
    numbers = packed
    if bits == 4:
        numbers = unpacked(packed.reshape(-1), dtype_of("uint4"), (*packed.shape[:-1], 2 * packed.shape[-1])).astype(np.uint8)
    if numbers.shape[-1] < count:
        raise ValidationError(f"{numbers.shape[-1]} packed numbers where {count} are needed", code="shape")
    return numbers[..., :count]


# ---- normalisation ------------------------------------------------------------------------------------------------------


@contributed("LayerNormalization")
def layer_normalization(b: ImportBuilder, call: ImportedNode) -> Results:
    """The standard's operator, under another domain."""
    settings = kept(call, "axis", "epsilon", "stash_type")
    return b.add_several("LayerNormalization", [call.input(0), call.input(1), call.optional(2)], settings,
                         outputs=len(call.outputs))


@before(EVERY_OPSET, "SimplifiedLayerNormalization")
@contributed("SimplifiedLayerNormalization")
def simplified_layer_normalization(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = scale x / sqrt(mean x^2 + epsilon)."""
    if call.wants(1):
        raise UnsupportedError("SimplifiedLayerNormalization with its second output is not supported", code="output",
                               where=call.label)
    return (b.add("RMSNormalization", [call.input(0), call.input(1)],
                  kept(call, "axis", "epsilon", "stash_type")),)


@contributed("SkipLayerNormalization")
def skip_layer_normalization(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = LayerNormalization(x + skip + bias); the fourth output is that sum."""
    total = added(b, call.input(0), call.input(1), call.optional(4))
    epsilon = float(call.take("epsilon", 1e-12))
    made = b.add_several("LayerNormalization", [total, call.input(2), call.optional(3)], {"axis": -1, "epsilon": epsilon},
                         outputs=3)
    return (*made, total)


@contributed("SkipSimplifiedLayerNormalization")
def skip_simplified_layer_normalization(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = RMSNormalization(x + skip + bias); the fourth output is that sum."""
    if call.wants(1) or call.wants(2):
        raise UnsupportedError("SkipSimplifiedLayerNormalization with its statistics is not supported", code="output",
                               where=call.label)
    total = added(b, call.input(0), call.input(1), call.optional(3))
    y = b.RMSNormalization(total, call.input(2), axis=-1, epsilon=float(call.take("epsilon", 1e-12)))
    return (y, None, None, total)


@contributed("EmbedLayerNormalization")
def embed_layer_normalization(b: ImportBuilder, call: ImportedNode) -> Results:
    """y = LayerNormalization(word[ids] + position[places] + segment[segments]); how many entries of the mask are 1."""
    tables = [call.optional(k) for k in (2, 3, 4)]
    return embedded(b, call, tables, call.input(5), call.input(6), call.optional(8))


def embedded(
    b: ImportBuilder, call: ImportedNode, tables: Sequence[Value | None], scale: Value | None, shift: Value | None,
    places: Value | None,
) -> Results:
    """Return what EmbedLayerNormalization does of the tables for words, positions and segments."""
    ids, segments, (word, position, segment) = call.input(0), call.optional(1), tables
    if places is None:
        places = b.Unsqueeze(ramp(b, b.extent(ids, 1)), [0])
    parts = [b.Gather(word, ids), b.Gather(position, places)]
    if segments is not None and segment is not None:
        parts.append(b.Gather(segment, segments))
    total = added(b, *parts)
    y = b.LayerNormalization(total, scale, shift, axis=-1, epsilon=float(call.take("epsilon", 1e-12)))
    mask = call.optional(7)
    counts = None
    if call.wants(1):
        rows = b.extent(ids, 0)
        counts = (b.Expand(np.int32(0), rows) if mask is None
                  else b.ReduceSum(b.Cast(b.Equal(mask, b.scalar(1, mask.type.dtype)), to=6), [1], keepdims=0))
    return (y, counts, total)


@contributed("GroupNorm", "SkipGroupNorm")
def group_norm(b: ImportBuilder, call: ImportedNode) -> Results:
    """GroupNormalization of x, with its channels last by default, then SiLU if ``activation`` is 1; x may be a sum."""
    x, total = call.input(0), None
    if call.op == "SkipGroupNorm":
        skip, bias = call.input(3), call.optional(4)
        if skip.type.rank == 2:
            skip = b.Unsqueeze(skip, [1, 2])
        x = total = added(b, x, skip, bias)
    last = int(call.take("channels_last", 1))
    rank = len(x.shape)
    inner = b.Transpose(x, perm=[0, rank - 1, *range(1, rank - 1)]) if last else x
    scale, shift = (b.cast(call.input(k), x.type.dtype) for k in (1, 2))
    y = b.GroupNormalization(inner, scale, shift, num_groups=int(call.required("groups")),
                             epsilon=float(call.take("epsilon", 1e-5)))
    y = b.Transpose(y, perm=[0, *range(2, rank), 1]) if last else y
    return (b.Mul(y, b.Sigmoid(y)) if call.required("activation") else y, total)
