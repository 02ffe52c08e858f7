"""Copies of the standard's operators, few-bit weights, positions and text of com.microsoft: beside onnxruntime's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import flowgrad as fg
from flowgrad.ir.errors import SaveError, UnsupportedError, ValidationError
from flowgrad.ir.graph import Array
from tests.test_microsoft import Row

onnxruntime = pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(11)


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(low: int, high: int, *shape: int, dtype: str = "int64") -> Array:
    return RNG.integers(low, high, shape).astype(dtype)


def boxes(count: int) -> Array:
    corners = RNG.uniform(-0.2, 1.2, (count, 4))
    return np.concatenate([np.sort(corners[:, ::2]), np.sort(corners[:, 1::2])], 1)[:, [0, 2, 1, 3]].astype(np.float32)


def blocked(kind: str, *shape: int) -> Array:
    numbers = ints(0 if kind[0] == "u" else -8, 16 if kind[0] == "u" else 8, *shape, dtype="int8")
    return numbers.astype(helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind.upper())))


MATRICES = floats(2, 3, 3) + 2 * np.eye(3, dtype=np.float32)
PLACES = np.array([[0, 3], [-1, 1]], np.int64)
TABLE = (np.full(4, 0.5, np.float32),)

SMOOTH = [
    Row("Trilu", floats(2, 3, 4), upper=0), Row("Trilu", floats(3, 4), np.array(1, np.int64), name="k"),
    Row("GatherND", floats(2, 3), np.array([[0, 1], [1, 2]], np.int64)),
    Row("GridSample", floats(1, 2, 4, 5), np.clip(floats(1, 3, 3, 2), -0.9, 0.9)),
    Row("GridSample", floats(1, 2, 4, 5), np.clip(floats(1, 3, 3, 2), -0.9, 0.9), mode="bicubic", align_corners=1, name="cubic"),
    Row("Range", (np.float32(1.5),), (np.float32(4),), (np.float32(0.5),)), Row("Range", (np.int64(1),), (np.int64(4),), name="by-one"),
    Row("Pad", floats(2, 3), (np.array([0, 1, 0, 2], np.int64),)),
    Row("Pad", floats(2, 3), (np.array([[0, 1, 0, 2]], np.int64),), (np.array([2], np.float32),), mode="constant", name="value"),
    Row("Pad", floats(2, 4), (np.array([0, 1, 0, 2], np.int64),), mode="reflect", name="reflect"),
    Row("ExpandDims", floats(2, 3), (np.array(1, np.int32),)), Row("ExpandDims", floats(2, 3), (np.array(-1, np.int32),), name="last"),
    Row("Inverse", MATRICES, rtol=2e-4), Row("Inverse", MATRICES[0], rtol=2e-4, name="one"),
    Row("MatMulBnb4", floats(3, 32), (ints(0, 256, 80, dtype="uint8"),), (floats(10),), N=5, K=32, block_size=16, quant_type=1,
        rtol=1e-4),
    Row("MatMulBnb4", floats(3, 32), (ints(0, 256, 80, dtype="uint8"),), (floats(10),), N=5, K=32, block_size=16, quant_type=0,
        name="floats", rtol=1e-4),
    Row("CropAndResize", floats(2, 3, 6, 5), boxes(4), (np.array([0, 1, 1, 0], np.int32),), (np.array([3, 4], np.int32),),
        extrapolation_value=0.5, rtol=1e-4, atol=1e-5),
    Row("CropAndResize", floats(2, 3, 6, 5), boxes(2), (np.array([0, 1], np.int32),), (np.array([1, 1], np.int32),), name="middle",
        rtol=1e-4, atol=1e-5),
    Row("GatherBlockQuantized", (blocked("uint4", 4, 32),), (PLACES,), floats(4, 2), (blocked("uint4", 4, 2),), block_size=16,
        quantize_axis=1, gather_axis=0),
    Row("GatherBlockQuantized", (blocked("int4", 32, 4),), (np.array([-2, 3], np.int64),), floats(2, 4), block_size=16,
        quantize_axis=0, gather_axis=1, name="signed"),
    Row("GatherBlockQuantized", (ints(0, 256, 4, 16, dtype="uint8"),), (PLACES,), floats(4, 2), block_size=16,
        quantize_axis=1, gather_axis=0, bits=4, name="packed"),
    Row("GatherBlockQuantized", (ints(0, 256, 4, 32, dtype="uint8"),), (PLACES,), floats(4, 2), (ints(0, 256, 4, 2, dtype="uint8"),),
        block_size=16, quantize_axis=1, gather_axis=0, bits=8, name="bytes"),
]
WHOLE = [
    Row("Unique", np.array([2, 1, 1, 3, 4, 3], np.float32), outputs=3),
    Row("MatMulInteger16", ints(-30000, 30000, 2, 3, dtype="int16"), ints(-9, 9, 3, 4, dtype="int16")),
    Row("NhwcMaxPool", ints(-128, 128, 1, 5, 6, 3, dtype="int8"), kernel_shape=[2, 3], strides=[2, 2], pads=[1, 0, 0, 1]),
    Row("NhwcMaxPool", ints(0, 256, 1, 5, 6, 3, dtype="uint8"), kernel_shape=[2, 2], name="unsigned"),
]


@pytest.mark.parametrize("row", SMOOTH + WHOLE, ids=[r.id for r in SMOOTH + WHOLE])
def test_values_are_those_of_onnxruntime(row: Row) -> None:
    expected = onnxruntime.InferenceSession(row.model().SerializeToString(), providers=["CPUExecutionProvider"]
                                            ).run(None, row.feeds())
    found = list(fg.load(row.model())(row.feeds()).values())
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=row.rtol, atol=row.atol)


@pytest.mark.parametrize("row", [r for r in SMOOTH if any(x.dtype == np.float32 for x in r.feeds().values())], ids=lambda r: r.id)
def test_derivatives_fit_differences(row: Row) -> None:
    """In float64, along a random direction of all float inputs."""
    model = fg.load(row.model()).astype("float64")
    feeds = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in row.feeds().items()}
    report = fg.gradcheck(model, feeds, of="y0", wrt=[n for n, a in feeds.items() if a.dtype == np.float64])
    assert report, report.checks


def test_an_index_outside_a_table_of_few_bits_gives_zeros() -> None:
    row = Row("GatherBlockQuantized", (blocked("int4", 4, 32),), ints(-4, 4, 3), floats(4, 2), block_size=16, quantize_axis=1,
              gather_axis=0)
    found = fg.load(row.model())({**row.feeds(), "x1": np.array([4, 0, -5], np.int64)})["y0"]
    assert not found[0].any() and found[1].any() and not found[2].any()


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def buckets_of_t5(distance: int, both: bool, buckets: int = 8, farthest: int = 20) -> int:
    """As in the code of T5."""
    start = 0
    if both:
        buckets //= 2
        start, distance = buckets * (distance > 0), abs(distance)
    else:
        distance = -min(distance, 0)
    near = buckets // 2
    if distance < near:
        return start + distance
    far = near + int(np.log(np.float32(distance / near)) / np.log(farthest / near) * (buckets - near))
    return start + min(far, buckets - 1)


A, C = floats(3, 2), floats(3, 2)
PRODUCT = (A[:, 0] + 1j * A[:, 1]) * (C[:, 0] + 1j * C[:, 1])
CONJUGATE = (A[:, 0] + 1j * A[:, 1]) * (C[:, 0] - 1j * C[:, 1])
BYTES = ints(-100, 100, 2, 3, dtype="int8")
X = floats(2, 3)
IMAGE, KERNEL = floats(1, 4, 5, 2), floats(3, 2, 3, 3)


def gated() -> tuple[Row, Array]:
    """Two heads of size 3, gates of width 4."""
    query, bias, place, w, shift, a = floats(1, 5, 6), floats(6), floats(1, 2, 5, 5), floats(3, 4), floats(4), floats(1, 2, 1, 1)
    heads = (query + bias).reshape(1, 5, 2, 3).transpose(0, 2, 1, 3)
    gates = sigmoid((heads @ w + shift).reshape(1, 2, 5, 2, 2).sum(-1))
    expected = (gates[..., :1] * (gates[..., 1:] * a - 1) + 2) * place
    return Row("GatedRelativePositionBias", query, bias, place, w, shift, a, num_heads=2), expected


FORMULAS: list[tuple[Row, Any]] = [
    (Row("ComplexMul", A, C), np.stack([PRODUCT.real, PRODUCT.imag], -1)),
    (Row("ComplexMulConj", A, C), np.stack([CONJUGATE.real, CONJUGATE.imag], -1)),
    (Row("ReduceSumInteger", BYTES, axes=[1], keepdims=0), BYTES.sum(1, dtype=np.int32)),
    (Row("MulInteger", BYTES, (np.int8(3),), BYTES[:1], None), (BYTES.astype(np.int32) - 3) * BYTES[:1]),
    (Row("BiasDropout", X, floats(3) * 0 + 2, X, outputs=2), (X + 2 + X, np.ones_like(X, bool))),
    (Row("GemmFastGelu", X, np.eye(3, dtype=np.float32), np.full(3, 0.5, np.float32)),
     0.5 * (X + 0.5) * (1 + np.tanh(float(np.sqrt(2 / np.pi)) * (X + 0.5 + 0.044715 * (X + 0.5) ** 3)))),
    (Row("NhwcFusedConv", IMAGE, KERNEL, None, np.full((1, 2, 3, 3), 0.25, np.float32), activation="Relu"),
     np.maximum(np.einsum("nhwcij,ocij->nhwo", np.lib.stride_tricks.sliding_window_view(IMAGE, (3, 3), axis=(1, 2)), KERNEL) + 0.25, 0)),
    gated(),
]


@pytest.mark.parametrize("row, expected", FORMULAS, ids=[row.id for row, _ in FORMULAS])
def test_operators_without_kernels_here(row: Row, expected: Any) -> None:
    """Those that onnxruntime has for graphics processors alone, by their formulas."""
    found = fg.load(row.model())(row.feeds()).values()
    for ours, wanted in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert ours.dtype == wanted.dtype
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("both", [0, 1])
def test_positions_of_t5(both: int) -> None:
    row = Row("RelativePositionBias", floats(8, 2), (np.array([6], np.int64),), (np.array([30], np.int64),), max_distance=20,
              is_bidirectional=both)
    table = row.feeds()["x0"]
    places = np.array([[buckets_of_t5(k - q, bool(both)) for k in range(30)] for q in range(6)])
    np.testing.assert_array_equal(fg.load(row.model())(row.feeds())["y0"], table[places].transpose(2, 0, 1)[None])


TEXTS = [np.array(["Hello World", "a  b", "", "x\ny.z-é", "_a1 B2"], object), np.array([["a b"], ["c"]], object), np.array([[""]], object)]
PLAIN: dict[str, Any] = {"mark": 0, "mincharnum": 1, "pad_value": "#"}
TOKENS: list[dict[str, Any]] = [
    {"separators": [" "]}, {"separators": [" "], "mark": 1}, {"separators": [""]}, {"tokenexp": "."}, {"separators": ["l*"]},
    {"tokenexp": "[a-z]+", "mincharnum": 2, "mark": 1, "pad_value": ""}, {"tokenexp": "zzz", "mark": 1}, {"separators": ["", ""]},
    {"separators": [" ", "l", "o|W"]}, {"tokenexp": r"\bl|o\b|^x|y|$"}, {"tokenexp": "[a-zA-Z0-9_]+"}, {"tokenexp": "a*|b"},
    {"separators": [r"[\s.]+", "-"], "mincharnum": 2}, {"separators": [" "], "tokenexp": "a"}, {"tokenexp": "H(el)?|Hell|W.r"},
]


@pytest.mark.parametrize("texts", TEXTS, ids=["rows", "column", "nothing"])
@pytest.mark.parametrize("attributes", TOKENS, ids=str)
def test_tokens_are_those_of_onnxruntime(texts: Array, attributes: dict[str, Any]) -> None:
    row = Row("Tokenizer", texts, **{**PLAIN, **attributes})
    proto = row.model()
    expected = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, row.feeds())
    np.testing.assert_array_equal(fg.load(proto)(row.feeds())["y0"], expected[0])


def test_a_tokenizer_is_not_exported() -> None:
    row = Row("Tokenizer", TEXTS[0], **PLAIN, separators=[" "])
    with pytest.raises(SaveError, match="no ONNX form is known for Tokenizer"):
        fg.load(row.model()).to_onnx()


REFUSED: list[tuple[Row, type[Exception], str]] = [
    (Row("Tokenizer", TEXTS[0], **PLAIN), ValidationError, "separators or tokenexp"),
    (Row("Tokenizer", TEXTS[0], **{**PLAIN, "mincharnum": 2}, tokenexp="."), ValidationError, "mincharnum"),
    (Row("Tokenizer", TEXTS[0], **PLAIN, tokenexp="(?=a)"), UnsupportedError, "pattern"),
    (Row("CropAndResize", floats(1, 1, 2, 2), boxes(1), np.zeros(1, np.int32), (np.array([2, 2], np.int32),), mode="nearest"),
     UnsupportedError, "mode='nearest'"),
    (Row("MatMulBnb4", floats(3, 32), ints(0, 256, 80, dtype="uint8"), floats(10), N=5, K=32, block_size=16, quant_type=1),
     UnsupportedError, "weights that are computed"),
    (Row("GridSample", floats(1, 2, 4, 5), floats(1, 3, 3, 2), mode="area"), UnsupportedError, "mode='area'"),
]


@pytest.mark.parametrize("row, error, reason", REFUSED, ids=[reason for _, _, reason in REFUSED])
def test_what_is_not_understood_is_refused_by_name(row: Row, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        fg.load(row.model())
