"""Operators of com.microsoft beside onnxruntime's own kernels, and their derivatives against differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

import flowgrad as fg
from flowgrad.ir.errors import UnsupportedError
from flowgrad.ir.graph import Array

onnxruntime = pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(3)


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return RNG.uniform(0.5, 1.5, shape).astype(np.float32)


def ints(*shape: int, below: int, dtype: str = "int32") -> Array:
    return RNG.integers(0, below, shape).astype(dtype)


class Row:
    """One call: the op, its inputs (None for an absent one; a tuple holds a constant), attributes, number of outputs."""

    def __init__(self, op: str, *inputs: Any, outputs: int | Sequence[bool] = 1, name: str = "", domain: str = "com.microsoft",
                 rtol: float = 2e-5, atol: float = 2e-6, **attributes: Any) -> None:
        self.op, self.inputs, self.attributes, self.domain = op, inputs, attributes, domain
        self.wanted = [True] * outputs if isinstance(outputs, int) else list(outputs)
        self.id = f"{op}-{name}" if name else op
        self.rtol, self.atol = rtol, atol

    def model(self) -> Any:
        names = [f"x{k}" if x is not None else "" for k, x in enumerate(self.inputs)]
        ends = [f"y{k}" if wanted else "" for k, wanted in enumerate(self.wanted)]
        node = helper.make_node(self.op, names, ends, domain=self.domain, **self.attributes)
        fed = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
               for n, a in self.feeds().items()]
        held = [numpy_helper.from_array(x[0], n) for n, x in zip(names, self.inputs, strict=True) if isinstance(x, tuple)]
        graph = helper.make_graph([node], "g", fed, [helper.make_empty_tensor_value_info(e) for e in ends if e], held)
        return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18),
                                                                     helper.make_opsetid("com.microsoft", 1)])

    def feeds(self) -> dict[str, Array]:
        return {f"x{k}": x for k, x in enumerate(self.inputs) if x is not None and not isinstance(x, tuple)}


X = floats(2, 3, 8)
MASK = np.array([[1, 1, 0], [1, 1, 1]], np.int32)
TABLES = [np.cos(floats(9, 8)), np.sin(floats(9, 8))]
TABLE = [np.cos(floats(7, 2)), np.sin(floats(7, 2))]

FUSED: dict[str, dict[str, Any]] = {
    "Elu": {"activation_alpha": 0.3}, "Celu": {"activation_alpha": 0.3}, "ThresholdedRelu": {"activation_alpha": 0.3},
    "Selu": {"activation_alpha": 0.3, "activation_gamma": 1.2}, "Softplus": {}, "Softsign": {},
    "HardSigmoid": {"activation_alpha": 0.3, "activation_beta": 0.7},
}

ROWS = [
    Row("Gelu", X), Row("BiasGelu", X, floats(8)), Row("FastGelu", X), Row("FastGelu", X, floats(8), name="bias"),
    Row("QuickGelu", X), Row("QuickGelu", X, alpha=0.7, name="alpha"),
    Row("FusedMatMul", floats(2, 3, 4), floats(2, 4, 5), alpha=0.5),
    Row("FusedMatMul", floats(2, 4, 3), floats(2, 5, 4), transA=1, transB=1, name="transposed"),
    Row("FusedMatMul", floats(3, 2, 4), floats(5, 2, 4), transBatchA=1, transBatchB=1, transB=1, name="batch"),
    Row("FusedGemm", floats(3, 4), floats(4, 5), floats(5), activation="Relu", alpha=0.5, beta=2.0),
    Row("FusedGemm", floats(4, 3), floats(4, 5), floats(5), activation="LeakyRelu", activation_alpha=0.3, transA=1, name="leaky"),
    Row("FusedConv", floats(1, 2, 5, 5), floats(3, 2, 3, 3), floats(3), activation="Relu", pads=[1, 1, 1, 1]),
    Row("FusedConv", floats(1, 2, 5, 5), floats(3, 2, 3, 3), floats(3), activation="Clip", activation_params=[-0.5, 0.5],
        name="clip"),
    Row("FusedConv", floats(1, 2, 5, 5), floats(3, 2, 3, 3), floats(3), floats(1, 3, 3, 3), activation="Relu", name="sum"),
    Row("CDist", floats(4, 3), floats(5, 3), metric="sqeuclidean"),
    Row("CDist", floats(4, 3), floats(5, 3), metric="euclidean", name="root"),
    Row("SimplifiedLayerNormalization", X, positive(8), epsilon=1e-3, domain=""),
    Row("SkipLayerNormalization", X, floats(2, 3, 8), positive(8), floats(8), floats(8), outputs=(True, False, False, True),
        epsilon=1e-3),
    Row("SkipLayerNormalization", X, floats(2, 3, 8), positive(8), name="plain", epsilon=1e-3),
    Row("SkipSimplifiedLayerNormalization", X, floats(2, 3, 8), positive(8), floats(8), outputs=(True, False, False, True),
        epsilon=1e-3),
    Row("EmbedLayerNormalization", ints(2, 3, below=9), ints(2, 3, below=2), floats(9, 8), floats(4, 8), floats(2, 8),
        positive(8), floats(8), MASK, outputs=2, epsilon=1e-3),
    Row("EmbedLayerNormalization", ints(2, 3, below=9), None, floats(9, 8), floats(4, 8), None, positive(8), floats(8),
        outputs=(True, True, True), epsilon=1e-3, name="words"),
    Row("MatMulNBits", floats(3, 40), (ints(5, 2, 16, below=256, dtype="uint8"),), (positive(10),), N=5, K=40, bits=4,
        block_size=32, rtol=2e-4, atol=2e-4),
    Row("MatMulNBits", floats(3, 64), (ints(5, 2, 16, below=256, dtype="uint8"),), (positive(10),),
        (ints(5, below=256, dtype="uint8"),), N=5, K=64, bits=4, block_size=32, name="zero_points", rtol=2e-4, atol=2e-4),
    Row("Attention", X, floats(8, 24), floats(24), num_heads=2),
    Row("Attention", X, floats(8, 24), floats(24), num_heads=2, unidirectional=1, name="causal"),
    Row("Attention", X, floats(8, 24), floats(24), MASK, num_heads=2, name="mask"),
    Row("Attention", X, floats(8, 24), floats(24), np.array([2, 3], np.int32), num_heads=2, name="lengths"),
    Row("Attention", X, floats(8, 24), floats(24), None, floats(2, 2, 2, 2, 4), num_heads=2, outputs=2, unidirectional=1,
        name="past"),
    Row("Attention", X, floats(8, 24), floats(24), None, None, floats(2, 2, 3, 3), num_heads=2, name="bias"),
    Row("Attention", X, floats(8, 20), floats(20), num_heads=2, qkv_hidden_sizes=[8, 8, 4], scale=0.3, name="sizes"),
    Row("MultiHeadAttention", X, floats(2, 5, 8), floats(2, 5, 8), num_heads=2),
    Row("MultiHeadAttention", X, floats(2, 5, 8), floats(2, 5, 12), floats(28), num_heads=2, name="projection_bias"),
    Row("MultiHeadAttention", X, floats(2, 3, 8), floats(2, 3, 8), None, MASK, num_heads=2, scale=0.4, name="mask"),
    Row("MultiHeadAttention", X, floats(2, 3, 8), floats(2, 3, 8), None, None, floats(1, 2, 3, 3), num_heads=2, name="bias"),
    Row("MultiHeadAttention", X, floats(2, 3, 8), floats(2, 3, 8), None, None, None, floats(2, 2, 4, 4), floats(2, 2, 4, 4),
        num_heads=2, outputs=3, name="past"),
    Row("MultiHeadAttention", X, floats(2, 3, 8), floats(2, 3, 8), num_heads=2, unidirectional=1, name="causal"),
    Row("MultiHeadAttention", X, floats(2, 2, 5, 4), floats(2, 2, 5, 4), floats(24), num_heads=2, name="heads_apart"),
    Row("GroupQueryAttention", floats(2, 3, 32), floats(2, 3, 16), floats(2, 3, 16), None, None, np.array([2, 2], np.int32),
        (np.array(3, np.int32),), num_heads=4, kv_num_heads=2, outputs=3),
    Row("GroupQueryAttention", floats(2, 1, 32), floats(2, 1, 16), floats(2, 1, 16), floats(2, 2, 5, 8), floats(2, 2, 5, 8),
        np.array([5, 3], np.int32), (np.array(6, np.int32),), num_heads=4, kv_num_heads=2, outputs=3, name="step"),
    Row("GroupQueryAttention", floats(1, 3, 128), None, None, floats(1, 2, 5, 16), floats(1, 2, 5, 16), np.array([7], np.int32),
        (np.array(8, np.int32),), *TABLES, num_heads=4, kv_num_heads=2, outputs=3, do_rotary=1, name="packed"),
    Row("GroupQueryAttention", floats(2, 3, 64), floats(2, 3, 32), floats(2, 3, 32), None, None, np.array([2, 2], np.int32),
        (np.array(3, np.int32),), *TABLES, num_heads=4, kv_num_heads=2, outputs=3, do_rotary=1, rotary_interleaved=1,
        scale=0.3, softcap=1.5, name="interleaved"),
    Row("RotaryEmbedding", floats(2, 3, 8), ints(2, 3, below=7, dtype="int64"), *TABLE),
    Row("RotaryEmbedding", floats(2, 2, 3, 4), np.array([2], np.int64), *TABLE, interleaved=1, name="interleaved"),
    Row("RotaryEmbedding", floats(2, 3, 12), ints(2, 3, below=7, dtype="int64"), *TABLE, num_heads=2, rotary_embedding_dim=4,
        name="part"),
    *(Row("FusedGemm", floats(3, 4), floats(4, 5), activation=op, name=op, **numbers) for op, numbers in FUSED.items()),
    Row("RotaryEmbedding", floats(2, 3, 8), ints(2, 3, below=7, dtype="int64"), *TABLE, scale=0.5, name="scale"),
]
IDS = [row.id for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_values_are_those_of_onnxruntime(row: Row) -> None:
    expected = onnxruntime.InferenceSession(row.model().SerializeToString(), providers=["CPUExecutionProvider"]
                                            ).run(None, row.feeds())
    found = list(fg.load(row.model())(row.feeds()).values())
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=row.rtol, atol=row.atol)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_derivatives_fit_differences(row: Row) -> None:
    """In float64, along a random direction of all float inputs; onnxruntime has no kernels in that type."""
    model = fg.load(row.model()).astype("float64")
    feeds = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in row.feeds().items()}
    wrt = [n for n, a in feeds.items() if a.dtype == np.float64]
    cotangent = {"y0_grad": RNG.standard_normal(model(feeds)["y0"].shape)}
    gradient = fg.vjp(model, "y0", wrt)({**feeds, **cotangent})
    steps = {n: RNG.standard_normal(feeds[n].shape) for n in wrt}

    def moved(size: float) -> float:
        shifted = {n: a + size * steps[n] if n in steps else a for n, a in feeds.items()}
        return float((model(shifted)["y0"] * cotangent["y0_grad"]).sum())

    slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
    found = sum(float((gradient[f"{n}_grad"] * steps[n]).sum()) for n in wrt)
    assert found == pytest.approx(slope, rel=2e-6, abs=1e-7)


REFUSED: list[tuple[Row, str]] = [
    (Row("BiasSoftmax", X, floats(2, 1, 8), axis=2, is_inner_broadcast=0), "is_inner_broadcast"),
    (Row("FusedConv", floats(1, 2, 5, 5), floats(3, 2, 3, 3), activation="Mish"), "activation 'Mish'"),
    (Row("CDist", floats(4, 3), floats(5, 3), metric="cityblock"), "metric='cityblock'"),
    (Row("MatMulNBits", floats(3, 64), ints(5, 2, 16, below=256, dtype="uint8"), positive(10), N=5, K=64, bits=4,
         block_size=32), "weights that are computed"),
    (Row("Attention", X, floats(8, 24), floats(24), ints(3, below=3), num_heads=2), "a mask of 3 entries"),
    (Row("MultiHeadAttention", X, floats(2, 5, 8), floats(2, 5, 8), num_heads=2, unidirectional=1), "3 queries for 5 keys"),
]


@pytest.mark.parametrize("row, reason", REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_is_not_understood_is_refused_by_name(row: Row, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        fg.load(row.model())




def softmax(x: Array) -> Array:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


def erf_gelu(x: Array) -> Array:
    return np.asarray([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.ravel()]).reshape(x.shape)


B, S = floats(1, 3, 8), floats(2, 3, 8)


@pytest.mark.parametrize("row, expected", [
    (Row("BiasSoftmax", X, B, axis=2, is_inner_broadcast=1), softmax(X + B)),
    (Row("BiasSoftmax", X, B, axis=1, is_inner_broadcast=1), softmax((X + B).reshape(2, 24)).reshape(X.shape)),
    (Row("BiasSplitGelu", X, B[0, 0]), (X + B[0, 0])[..., :4] * erf_gelu((X + B[0, 0])[..., 4:])),
    (Row("BiasAdd", X, B[0, 0], S), X + B[0, 0] + S),
], ids=["BiasSoftmax", "BiasSoftmax-flat", "BiasSplitGelu", "BiasAdd"])
def test_operators_for_graphics_processors(row: Row, expected: Array) -> None:
    """Those that onnxruntime has no kernels for here, by their formulas."""
    np.testing.assert_allclose(fg.load(row.model())(row.feeds())["y0"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels_last", [0, 1])
def test_group_norm_is_the_standards(channels_last: int) -> None:
    """onnxruntime has this one for graphics processors alone: beside the operator of the standard."""
    x, scale, shift = floats(2, 4, 3, 3), positive(4), floats(4)
    fed = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if channels_last else x
    row = Row("GroupNorm", fed, scale, shift, groups=2, activation=1, epsilon=1e-3, channels_last=channels_last)
    found = fg.load(row.model())(row.feeds())["y0"]
    groups = x.reshape(2, 2, -1).astype(np.float64)
    centred = groups - groups.mean(-1, keepdims=True)
    plain = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3)).reshape(x.shape)
    plain = plain * scale[:, None, None] + shift[:, None, None]
    expected = plain / (1 + np.exp(-plain))
    np.testing.assert_allclose(np.moveaxis(found, -1, 1) if channels_last else found, expected, rtol=1e-4, atol=1e-5)
