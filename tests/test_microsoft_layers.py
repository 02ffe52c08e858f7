"""Attention, embedding and LSTM with quantized weights, and packed attention, of onnxruntime's own domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import flowgrad as fg
from flowgrad.exchange.microsoft import DOMAIN
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.graph import Array
from tests.test_quantization import from_nodes, session

RNG = np.random.default_rng(7)
SEEDED = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    RNG.bit_generator.state = SEEDED


def few(dtype: str, *shape: int) -> Array:
    """Return numbers of 7 bits: pairs of their products with 8 bits stay in the 16 bits of some processors' instructions."""
    low, high = (0, 127) if dtype == "uint8" else (-64, 63)
    return RNG.integers(low, high, shape).astype(dtype)


def one_node(op: str, arrays: list[Any], outputs: dict[str, int], **attributes: Any) -> onnx.ModelProto:
    """Return one node on numbers that the file holds."""
    names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    weights = {f"x{i}": np.asarray(a) for i, a in enumerate(arrays) if a is not None}
    nodes = [helper.make_node(op, names, list(outputs), domain=DOMAIN, **attributes)]
    return from_nodes(nodes, {"unused": (1, [1])}, outputs, weights, opset=17, domains=[DOMAIN])


def assert_as_onnxruntime(proto: onnx.ModelProto, feeds: dict[str, Array] | None = None, atol: float = 2e-6) -> None:
    feeds = feeds or {"unused": np.zeros(1, np.float32)}
    expected = session(proto).run(None, feeds)
    model = fg.load(proto)
    assert {n.domain for n in model.to_onnx(passes="").graph.node} == {""}
    for got, wanted in zip(model(feeds).values(), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=atol)


# ---- transformers ---------------------------------------------------------------------------------------------------------


def attention_arrays(w: str, batch: int = 2, length: int = 5, per_column: bool = False) -> list[Any]:
    columns = 24 if per_column else 1
    scale = np.linspace(0.002, 0.004, columns).astype(np.float32) if per_column else np.float32(0.003)
    zero = np.full(columns, 3, w) if per_column else np.asarray(3, w)
    return [few("uint8", batch, length, 6), few(w, 6, 24), RNG.standard_normal(24).astype(np.float32), np.float32(0.013), scale,
            None, np.uint8(100), zero]


@pytest.mark.parametrize("w", ["int8", "uint8"])
@pytest.mark.parametrize("attributes", [{}, {"unidirectional": 1}, {"scale": 0.3}])
def test_quantized_attention(w: str, attributes: dict[str, Any]) -> None:
    assert_as_onnxruntime(one_node("QAttention", attention_arrays(w), {"y": 1}, num_heads=2, **attributes))


def test_quantized_attention_with_a_scale_for_each_column_a_mask_and_a_past() -> None:
    arrays = attention_arrays("int8", per_column=True)
    assert_as_onnxruntime(one_node("QAttention", arrays, {"y": 1}, num_heads=2))
    arrays[5] = np.array([3, 5], np.int32)
    assert_as_onnxruntime(one_node("QAttention", arrays, {"y": 1}, num_heads=2))
    past = RNG.standard_normal((2, 2, 2, 3, 4)).astype(np.float32)
    assert_as_onnxruntime(one_node("QAttention", [*attention_arrays("uint8"), past], {"y": 1, "present": 1}, num_heads=2))


def embedding_arrays(mask: Any, has_segments: bool) -> list[Any]:
    ids, segments = RNG.integers(0, 9, (2, 4)).astype(np.int32), RNG.integers(0, 2, (2, 4)).astype(np.int32)
    tables = [few("uint8", n, 8) for n in (9, 5, 2)] + [few("uint8", 8), few("uint8", 8)]
    scales = [np.float32(s) for s in (0.01, 0.02, 0.03, 0.011, 0.012)]
    zeros = [np.uint8(z) for z in (60, 61, 62, 7, 64)]
    arrays = [ids, segments, *tables, mask, *scales, *zeros]
    for slot in () if has_segments else (1, 4, 10, 15):
        arrays[slot] = None
    return arrays


@pytest.mark.parametrize("has_segments", [True, False])
@pytest.mark.parametrize("mask", [None, np.array([[1, 1, 0, 0], [1, 1, 1, 1]], np.int32)], ids=["whole", "mask"])
def test_quantized_embedding(mask: Any, has_segments: bool) -> None:
    proto = one_node("QEmbedLayerNormalization", embedding_arrays(mask, has_segments), {"y": 1, "counts": 6}, epsilon=1e-5)
    assert_as_onnxruntime(proto)


@pytest.mark.parametrize("form", ["all", "keys and values"])
def test_packed_attention_is_attention_of_the_parts(form: str) -> None:
    query, key, value = (RNG.standard_normal((2, 5, 3, 4)).astype(np.float32) for _ in range(3))
    bias = RNG.standard_normal(36).astype(np.float32)
    flat = [a.reshape(2, 5, 12) for a in (query, key, value)]
    packed = [np.stack([query, key, value], 3), None, None] if form == "all" else [flat[0], np.stack([key, value], 3), None]
    expected, got = (fg.load(one_node("MultiHeadAttention", [*arrays, bias], {"y": 1}, num_heads=3))(np.zeros(1, np.float32))["y"]
                     for arrays in (flat, packed))
    np.testing.assert_array_equal(got, expected)


def test_attention_without_values_says_what_it_takes() -> None:
    x = RNG.standard_normal((2, 5, 12)).astype(np.float32)
    with pytest.raises(UnsupportedError, match=r"takes queries, keys and values of rank 3, .* got f32\[2,5,12\], none, none"):
        fg.load(one_node("MultiHeadAttention", [x, None, None], {"y": 1}, num_heads=3))


# ---- LSTM -------------------------------------------------------------------------------------------------------------------


def lstm(direction: str, has_more: bool = False) -> onnx.ModelProto:
    """Return an LSTM of floats, with peepholes and initial states if ``has_more``."""
    count = 2 if direction == "bidirectional" else 1
    shapes = {"w": (count, 32, 5), "r": (count, 32, 8), "b": (count, 64)}
    names = ["x", "w", "r", "b"]
    if has_more:
        shapes |= {"h": (count, 3, 8), "c": (count, 3, 8), "p": (count, 24)}
        names += ["", "h", "c", "p"]
    weights = {name: (RNG.standard_normal(shape) * 0.5).astype(np.float32) for name, shape in shapes.items()}
    outputs = ["y", "y_h", "y_c"]
    graph = helper.make_graph(
        [helper.make_node("LSTM", names, outputs, hidden_size=8, direction=direction, name="cells")], "g",
        [helper.make_tensor_value_info("x", 1, ["T", 3, 5])], [helper.make_tensor_value_info(n, 1, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantized(proto: onnx.ModelProto, folder: Path, per_channel: bool, weight: str) -> onnx.ModelProto:
    """Return what onnxruntime's dynamic quantizer makes of a model, in 7 bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    onnx.save(proto, folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "int.onnx", per_channel=per_channel, reduce_range=True,
                     weight_type=getattr(QuantType, weight))
    return onnx.load(folder / "int.onnx")


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("per_channel", "weight"), [(False, "QUInt8"), (True, "QInt8")])
def test_a_dynamically_quantized_lstm(direction: str, per_channel: bool, weight: str, tmp_path: Path) -> None:
    """A half may round otherwise than in onnxruntime, since sums of floats differ: a step of 1/127 of some entries of h."""
    proto = quantized(lstm(direction, has_more=weight == "QInt8"), tmp_path, per_channel, weight)
    assert [n.op_type for n in proto.graph.node] == ["DynamicQuantizeLSTM"]
    x = RNG.standard_normal((6, 3, 5)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    expected = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})
    for got, wanted in zip(fg.load(proto)(x=x).values(), expected, strict=True):
        assert np.median(np.abs(got - wanted)) < 1e-6
        np.testing.assert_allclose(got, wanted, atol=5e-3)


def test_derivatives_pass_a_quantized_lstm_and_are_exported(tmp_path: Path) -> None:
    """They point where those of the reals do. The elements that set a scale, the least and the largest, take the rounding errors of
    all others besides, so that no single element is as near."""
    original = lstm("bidirectional")
    proto = quantized(original, tmp_path, True, "QInt8")
    gradient = fg.vjp(fg.through_quantization(fg.load(proto)), of="y", wrt=["x", "b"])
    feeds = {"x": RNG.standard_normal((6, 3, 5)).astype(np.float32), "y_grad": RNG.standard_normal((6, 2, 3, 8)).astype(np.float32)}
    got, expected = gradient(feeds), fg.vjp(fg.load(original), of="y", wrt=["x", "b"])(feeds)
    for name in ("x_grad", "b_grad"):
        one, other = got[name].ravel(), expected[name].ravel()
        assert np.vdot(one, other) > 0.97 * np.linalg.norm(one) * np.linalg.norm(other)
        assert 0.8 < np.linalg.norm(one) / np.linalg.norm(other) < 1.25
    (again,) = session(gradient.to_onnx()).run(["x_grad"], feeds)
    np.testing.assert_allclose(again, got["x_grad"], atol=1e-4)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"clip": 1.0}, UnsupportedError, "DynamicQuantizeLSTM with clip=1.0"),
    ({"input_forget": 1}, UnsupportedError, "input_forget=1"),
    ({"activations": ["Tanh", "Tanh", "Tanh"]}, UnsupportedError, "with the activations Tanh, Tanh, Tanh"),
    ({"direction": "sideways"}, ValidationError, "direction 'sideways'"),
]


@pytest.mark.parametrize(("attributes", "kind", "says"), REFUSED, ids=[r[2][:30] for r in REFUSED])
def test_forms_of_a_quantized_lstm_that_are_not_read(attributes: dict[str, Any], kind: type[Exception], says: str) -> None:
    arrays = [RNG.standard_normal((2, 3, 5)).astype(np.float32), few("int8", 1, 5, 32), few("int8", 1, 8, 32), *[None] * 5,
              np.ones(1, np.float32), np.zeros(1, np.int8), np.ones(1, np.float32), np.zeros(1, np.int8)]
    with pytest.raises(kind, match=says):
        fg.load(one_node("DynamicQuantizeLSTM", arrays, {"y": 1}, hidden_size=8, **attributes))
    arrays[4] = np.array([2, 1, 2], np.int32)
    with pytest.raises(UnsupportedError, match="sequence_lens"):
        fg.load(one_node("DynamicQuantizeLSTM", arrays, {"y": 1}, hidden_size=8))
