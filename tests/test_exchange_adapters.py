"""Models of older opsets: what they mean in onnxruntime, run as they are, is what the imported graph means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from flowgrad.exchange.adapters import ADAPTERS, FORMULAS
from flowgrad.exchange.reader import read_onnx
from flowgrad.exchange.writer import write_onnx
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array
from flowgrad.ir.ops.registry import find_op
from flowgrad.ir.verify import verify
from tests.onnx_models import info, model, onnxruntime_outputs

RNG = np.random.default_rng(7)


def x(*shape: int, dtype: Any = np.float32) -> Array:
    """Distinct numbers of both signs."""
    count = int(np.prod(shape))
    return ((RNG.permutation(count) - count / 2 + 0.25) / max(count, 1) * 4).reshape(shape).astype(dtype)


Row = tuple[str, str, int, dict[str, Array], dict[str, Any], int]
"""Name, op, opset, inputs, attributes, number of outputs."""

ROWS: list[Row] = [
    ("softmax_default_axis", "Softmax", 9, {"x": x(2, 3, 4)}, {}, 1),
    ("softmax_first_axis", "Softmax", 11, {"x": x(2, 3, 4)}, {"axis": 0}, 1),
    ("softmax_last_axis", "Softmax", 11, {"x": x(2, 3, 4)}, {"axis": -1}, 1),
    ("softmax_middle_negative", "Softmax", 11, {"x": x(2, 3, 4)}, {"axis": -2}, 1),
    ("softmax_trailing_ones", "Softmax", 11, {"x": x(2, 3, 1, 1)}, {"axis": 1}, 1),
    ("log_softmax", "LogSoftmax", 12, {"x": x(2, 3, 4)}, {}, 1),
    ("hardmax", "Hardmax", 12, {"x": x(2, 3, 4)}, {}, 1),
    ("squeeze", "Squeeze", 11, {"x": x(1, 3, 1)}, {"axes": [0]}, 1),
    ("squeeze_all", "Squeeze", 12, {"x": x(1, 3, 1)}, {}, 1),
    ("unsqueeze", "Unsqueeze", 12, {"x": x(2, 3)}, {"axes": [0, -1]}, 1),
    ("reduce_sum", "ReduceSum", 11, {"x": x(2, 3, 4)}, {"axes": [1], "keepdims": 0}, 1),
    ("reduce_sum_all", "ReduceSum", 12, {"x": x(2, 3, 4)}, {}, 1),
    ("reduce_mean", "ReduceMean", 13, {"x": x(2, 3, 4)}, {"axes": [0, 2]}, 1),
    ("reduce_max", "ReduceMax", 17, {"x": x(2, 3, 4)}, {"axes": [-1], "keepdims": 0}, 1),
    ("reduce_l2", "ReduceL2", 11, {"x": x(2, 3)}, {"axes": [1]}, 1),
    ("reduce_log_sum_exp", "ReduceLogSumExp", 13, {"x": x(2, 3)}, {"axes": [1]}, 1),
    ("split", "Split", 11, {"x": x(6, 2)}, {"split": [1, 2, 3]}, 3),
    ("split_equal", "Split", 11, {"x": x(6, 2)}, {}, 3),
    ("split_13_equal", "Split", 13, {"x": x(2, 6)}, {"axis": 1}, 2),
    ("split_13_sizes", "Split", 13, {"x": x(6), "s": np.array([4, 2])}, {}, 2),
    ("slice", "Slice", 9, {"x": x(4, 5)}, {"starts": [1, -3], "ends": [3, 1000], "axes": [0, 1]}, 1),
    ("slice_no_axes", "Slice", 7, {"x": x(4, 5)}, {"starts": [1], "ends": [-1]}, 1),
    ("pad", "Pad", 10, {"x": x(2, 3)}, {"pads": [0, 1, 2, 1], "value": 1.5}, 1),
    ("pad_reflect", "Pad", 10, {"x": x(3, 4)}, {"pads": [1, 2, 0, 1], "mode": "reflect"}, 1),
    ("clip", "Clip", 10, {"x": x(3, 4)}, {"min": -0.5, "max": 0.25}, 1),
    ("clip_upper", "Clip", 7, {"x": np.array([-np.inf, -1, 0, 9, np.inf], np.float32)}, {"max": 0.25}, 1),
    ("top_k", "TopK", 9, {"x": x(3, 5)}, {"k": 2}, 2),
    ("top_k_10", "TopK", 10, {"x": x(3, 5), "k": np.array([2])}, {"axis": 0}, 2),
    ("dropout", "Dropout", 7, {"x": x(3, 4)}, {"ratio": 0.75}, 1),
    ("dropout_10", "Dropout", 10, {"x": x(3, 4)}, {}, 1),
    ("batch_normalization", "BatchNormalization", 8,
     {"x": x(2, 3, 4), "s": x(3), "b": x(3), "m": x(3), "v": np.abs(x(3)) + 1}, {"epsilon": 1e-3}, 1),
    ("upsample", "Upsample", 8, {"x": x(1, 1, 2, 3)}, {"scales": [1.0, 1.0, 2.0, 3.0]}, 1),
    ("upsample_fraction", "Upsample", 7, {"x": x(1, 1, 3, 3)}, {"scales": [1.0, 1.0, 1.5, 2.3]}, 1),
    ("upsample_linear", "Upsample", 7, {"x": x(1, 1, 2, 3)}, {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "linear"}, 1),
    ("upsample_9", "Upsample", 9, {"x": x(1, 1, 2, 3), "s": np.array([1, 1, 2, 2], np.float32)}, {}, 1),
    ("upsample_9_linear", "Upsample", 9, {"x": x(1, 2, 3, 4), "s": np.array([1, 1, 2, 2], np.float32)},
     {"mode": "linear"}, 1),
    ("resize_10_up", "Resize", 10, {"x": x(1, 1, 3, 4), "s": np.array([1, 1, 2, 1.7], np.float32)}, {}, 1),
    ("resize_10_down", "Resize", 10, {"x": x(1, 1, 5, 7), "s": np.array([1, 1, 0.6, 0.4], np.float32)}, {}, 1),
    ("resize_10_both", "Resize", 10, {"x": x(1, 1, 5, 7), "s": np.array([1, 1, 0.6, 2.5], np.float32)}, {}, 1),
    ("resize_10_linear", "Resize", 10, {"x": x(1, 1, 5, 7), "s": np.array([1, 1, 0.6, 2.5], np.float32)},
     {"mode": "linear"}, 1),
    ("resize_11_linear", "Resize", 11, {"x": x(1, 1, 2, 4), "r": np.zeros(0, np.float32),
     "s": np.array([1, 1, 2, 2], np.float32)}, {"mode": "linear"}, 1),
    ("resize_11_sizes", "Resize", 11, {"x": x(1, 1, 2, 4), "r": np.zeros(0, np.float32), "s": np.zeros(0, np.float32),
     "z": np.array([1, 1, 3, 3])}, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, 1),
    ("scatter", "Scatter", 9, {"x": x(3, 3), "i": np.array([[1, 0, 2], [0, 2, 1]]), "u": x(2, 3)}, {}, 1),
    ("roi_align", "RoiAlign", 10, {"x": x(1, 1, 6, 6), "r": np.array([[0, 0, 4, 4], [1, 1, 5, 3]], np.float32),
     "i": np.array([0, 0])}, {"output_height": 2, "output_width": 2, "sampling_ratio": 2}, 1),
    ("grid_sample", "GridSample", 16, {"x": x(1, 1, 4, 4), "g": np.clip(x(1, 2, 2, 2), -1, 1)}, {}, 1),
    ("grid_sample_cubic", "GridSample", 16, {"x": x(1, 1, 4, 4), "g": np.clip(x(1, 2, 2, 2), -1, 1)},
     {"mode": "bicubic", "align_corners": 1}, 1),
    ("dft", "DFT", 17, {"x": x(1, 5, 3, 1)}, {}, 1),
    ("dft_axis", "DFT", 17, {"x": x(1, 5, 3, 1)}, {"axis": 2}, 1),
    ("gemm", "Gemm", 8, {"a": x(2, 3), "b": x(3, 4), "c": x(4)}, {"alpha": 0.5}, 1),
    ("lstm", "LSTM", 7, {"x": x(3, 2, 4), "w": x(1, 12, 4), "r": x(1, 12, 3)}, {"hidden_size": 3}, 2),
    ("average_pool", "AveragePool", 7, {"x": x(1, 1, 5, 5)}, {"kernel_shape": [2, 2], "strides": [2, 2]}, 1),
    ("max_pool", "MaxPool", 8, {"x": x(1, 1, 5, 5)}, {"kernel_shape": [2, 2]}, 1),
    ("array_feature_extractor_row", "ArrayFeatureExtractor", 13, {"x": x(4), "i": np.array([2, 0])}, {}, 1),
    ("array_feature_extractor", "ArrayFeatureExtractor", 13, {"x": x(2, 4), "i": np.array([[2, 0, 1]])}, {}, 1),
]
BECOMES = {"Upsample": "Resize", "Scatter": "ScatterElements", "ArrayFeatureExtractor": "Gather"}
STATIC = {"Upsample", "Resize"}  # operands that onnxruntime wants as initializers


def build(row: Row) -> tuple[ModelProto, dict[str, Array]]:
    name, op, opset, inputs, attributes, count = row
    domain = "ai.onnx.ml" if op == "ArrayFeatureExtractor" else ""
    outputs = [f"y{i}" for i in range(count)]
    node = helper.make_node(op, list(inputs), outputs, name=name, domain=domain, **attributes)
    fixed = {k: a for k, a in inputs.items() if op in STATIC and k != "x"}
    fed = {k: a for k, a in inputs.items() if k not in fixed}
    proto = model([node], fed, outputs, opset=opset, initializers=fixed, domains={domain: 2} if domain else None)
    second = {"TopK": TensorProto.INT64, "Dropout": TensorProto.BOOL}.get(op)
    if count == 2 and second:
        proto.graph.output[1].type.tensor_type.elem_type = second
    return proto, fed


@pytest.mark.parametrize("row", ROWS, ids=[r[0] for r in ROWS])
def test_old_models_mean_what_they_meant(row: Row) -> None:
    if find_op(BECOMES.get(row[1], row[1])) is None:
        pytest.skip(f"{row[1]} is not there yet")
    proto, feeds = build(row)
    expected = onnxruntime_outputs(proto, feeds)
    graph = read_onnx(proto)
    verify(graph)
    for which in (graph, read_onnx(write_onnx(graph))):
        got = evaluate(which, feeds)
        for i, theirs in enumerate(expected):
            np.testing.assert_allclose(got[f"y{i}"], theirs, rtol=2e-5, atol=2e-5, err_msg=f"output {i}")


@pytest.mark.parametrize("row", [r for r in ROWS if r[1] in ("Softmax", "LogSoftmax", "Hardmax")], ids=lambda r: r[0])
def test_flattening_with_extents_known_at_run_time_only(row: Row) -> None:
    proto, feeds = build(row)
    expected = onnxruntime_outputs(proto, feeds)
    rank = feeds["x"].ndim
    proto.graph.input[0].CopyFrom(info("x", [f"n{i}" for i in range(rank)]))
    got = evaluate(read_onnx(proto), feeds)
    np.testing.assert_allclose(got["y0"], expected[0], rtol=1e-5, atol=1e-6)


def test_every_adapter_has_a_row_or_a_test_of_its_own() -> None:
    elsewhere = {"GroupNormalization", "Dropout", "ReduceL1", "ReduceLogSum", "ReduceMin", "ReduceProd",
                 "ReduceSumSquare"}
    elsewhere |= FORMULAS | {"SimplifiedLayerNormalization"}  # tests/test_formulas.py, tests/test_microsoft.py
    tested = {r[1] for r in ROWS} | elsewhere
    later = {op for (domain, op), adapters in ADAPTERS.items() if not domain and any(version > 7 for version, _ in adapters)}
    assert later <= tested  # those of the first opsets: tests/test_wild_files.py; of other domains: tests of their own


def test_resize_10_with_scales_known_at_run_time_only() -> None:
    if find_op("Resize") is None:
        pytest.skip("Resize is not there yet")
    for row in ROWS:
        if row[0] in ("resize_10_up", "resize_10_down", "resize_10_both"):
            proto, feeds = build(row)
            expected = onnxruntime_outputs(proto, feeds)[0]
            dynamic = model(list(proto.graph.node), row[3], ["y0"], opset=10)
            got = evaluate(read_onnx(dynamic), row[3])["y0"]
            np.testing.assert_allclose(got, expected, rtol=1e-5, err_msg=row[0])


def test_dropout_mask_of_opset_7_is_a_float() -> None:
    node = helper.make_node("Dropout", ["x"], ["y", "mask"], ratio=0.5)
    graph = read_onnx(model([node], {"x": (2, 3)}, ["y", "mask"], opset=7))
    got = evaluate(graph, {"x": x(2, 3)})
    assert got["mask"].dtype == np.float32 and (got["mask"] == 1).all()


def test_batch_normalization_with_five_outputs_trains() -> None:
    if find_op("BatchNormalization") is None:
        pytest.skip("BatchNormalization is not there yet")
    data = {"x": x(4, 3, 5), "s": x(3), "b": x(3), "m": x(3), "v": np.abs(x(3)) + 1}
    outputs = ["y", "mean", "var", "saved_mean", "saved_var"]
    node = helper.make_node("BatchNormalization", list(data), outputs, momentum=0.75)
    got = evaluate(read_onnx(model([node], {k: a.shape for k, a in data.items()}, outputs, opset=9)), data)
    mean, var = data["x"].mean((0, 2)), data["x"].var((0, 2))
    np.testing.assert_allclose(got["saved_mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(got["saved_var"], var, rtol=1e-5)
    np.testing.assert_allclose(got["mean"], 0.75 * data["m"] + 0.25 * mean, rtol=1e-5)
    shaped = [v.reshape(1, 3, 1) for v in (mean, var, data["s"], data["b"])]
    np.testing.assert_allclose(got["y"], (data["x"] - shaped[0]) / np.sqrt(shaped[1] + 1e-5) * shaped[2] + shaped[3],
                               rtol=1e-4, atol=1e-5)


def test_group_normalization_18_has_scales_per_group() -> None:
    data = {"x": x(2, 4, 3), "s": x(2), "b": x(2)}
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)
    got = evaluate(read_onnx(model([node], {k: a.shape for k, a in data.items()}, ["y"], opset=18)), data)["y"]
    groups = data["x"].reshape(2, 2, -1)
    normal = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    expected = normal * data["s"].reshape(1, 2, 1) + data["b"].reshape(1, 2, 1)
    np.testing.assert_allclose(got, expected.reshape(2, 4, 3), rtol=1e-4, atol=1e-5)


def test_scan_8_runs_over_the_batch() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "x"], ["total"]), helper.make_node("Identity", ["total"], ["out"])], "body",
        [info("s", (2,)), info("x", (2,))], [info("total", (2,)), info("out", (2,))],
    )
    node = helper.make_node("Scan", ["", "start", "seq"], ["end", "sums"], num_scan_inputs=1, body=body)
    feeds = {"start": x(3, 2), "seq": x(3, 4, 2)}
    proto = model([node], feeds, ["end", "sums"], opset=8)
    graph = read_onnx(proto)
    verify(graph)
    got = evaluate(graph, feeds)
    sums = feeds["start"][:, None] + np.cumsum(feeds["seq"], axis=1)
    np.testing.assert_allclose(got["sums"], sums, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["end"], sums[:, -1], rtol=1e-5, atol=1e-5)
    again = evaluate(read_onnx(write_onnx(graph)), feeds)
    np.testing.assert_array_equal(again["sums"], got["sums"])


REFUSED = [
    (helper.make_node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y"], spatial=0), 7),
    (helper.make_node("Scan", ["n", "s", "x"], ["y"], num_scan_inputs=1, body=helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])], "body", [info("a", (3,)), info("b", (3,))], [info("c", (3,))])), 8),
]


@pytest.mark.parametrize(("node", "opset"), REFUSED, ids=lambda p: getattr(p, "op_type", p))
def test_what_has_no_counterpart_is_refused_by_name(node: Any, opset: int) -> None:
    if find_op(node.op_type) is None:
        pytest.skip(f"{node.op_type} is not there yet")
    proto = model([node], {"x": (2, 3, 3), "s": (2, 3), "n": np.zeros(2, np.int64)}, ["y"], opset=opset)
    with pytest.raises(UnsupportedError, match=node.op_type):
        read_onnx(proto)


def test_uneven_split_before_18_is_invalid() -> None:
    with pytest.raises(ValidationError, match="does not split"):
        read_onnx(model([helper.make_node("Split", ["x"], ["y", "z"])], {"x": (5,)}, ["y", "z"], opset=13))


@pytest.mark.parametrize("opset", [0, 29, 1000, -1])
def test_opsets_out_of_range_are_refused(opset: int) -> None:
    with pytest.raises(UnsupportedError, match="opset"):
        read_onnx(model([helper.make_node("Relu", ["x"], ["y"])], {"x": (2,)}, ["y"], opset=opset))
