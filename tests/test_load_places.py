"""Errors at load: the node of the file, what it takes under the names of the file, and who called it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

import flowgrad as fg
from flowgrad.ir.errors import FlowgradError, UnsupportedError, ValidationError
from flowgrad.ir.graph import Array
from tests.onnx_models import info, model

MS, ML, LOCAL = {"com.microsoft": 1}, {"ai.onnx.ml": 3}, {"local": 1}


def node(op: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"the_{op.lower()}", **attributes)


def error_of(proto: ModelProto) -> FlowgradError:
    with pytest.raises(FlowgradError) as caught:
        fg.load(proto)
    return caught.value


ONE_NODE: list[tuple[NodeProto, dict[str, Any], dict[str, int], str, str]] = [
    (node("MatMul", ["x", "w"]), {"x": ("N", 3), "w": (4, 5)}, {}, "MatMul: extents 3 and 4 must be equal",
     "node 'the_matmul': y = MatMul(x: f32[N,3], w: f32[4,5])"),
    (node("Add", ["x", "w"]), {"x": (2, 3), "w": info("w", (3,), TensorProto.DOUBLE)}, {},
     "Add takes inputs of one type, got float32 and float64", "node 'the_add': y = Add(x: f32[2,3], w: f64[3])"),
    (node("Conv", ["x", "w"]), {"x": (1, 3, 8), "w": (4, 3, 3, 3)}, {},
     "Conv: a kernel of 2 spatial axes does not fit an image of 1",
     "node 'the_conv': y = Conv(x: f32[1,3,8], w: f32[4,3,3,3])"),
    (node("MaxPool", ["x"], kernel_shape=[2, 2]), {"x": (1, 2, 8)}, {},
     "MaxPool: a kernel of 2 spatial axes does not fit an image of 1", "node 'the_maxpool': y = MaxPool(x: f32[1,2,8])"),
    (node("SoftmaxCrossEntropyLoss", ["x", "t"]), {"x": (2, 3), "t": info("t", (4,), TensorProto.INT64)}, {},
     "SoftmaxCrossEntropyLoss: extents 2 and 4 must be equal",
     "node 'the_softmaxcrossentropyloss': y = SoftmaxCrossEntropyLoss(x: f32[2,3], t: i64[4])"),
    (node("Neg", ["x"]), {"x": info("x", (2,), TensorProto.DOUBLE)}, {}, "Neg: %y: f64[2] is declared as float32",
     "node 'the_neg': y = Neg(x: f64[2])"),
    (node("Softmax", ["x"], axis=5), {"x": (2, 3)}, {}, "Softmax: no axis 5 at rank 2", "node 'the_softmax': y = Softmax(x: f32[2,3])"),
    (node("Attention", ["x", "w"], domain="com.microsoft", num_heads=2), {"x": (2, 5, 8), "w": (6, 24)}, MS,
     "Attention: extents 8 and 6 must be equal",
     "node 'the_attention': y = com.microsoft:Attention(x: f32[2,5,8], w: f32[6,24])"),
    (node("Attention", ["x", "w"], domain="com.microsoft"), {"x": (2, 5, 8), "w": (8, 24)}, MS,
     "Attention needs the attribute 'num_heads'",
     "node 'the_attention': y = com.microsoft:Attention(x: f32[2,5,8], w: f32[8,24])"),
    (node("FusedMatMul", ["x", "w"], domain="com.microsoft", transA=1), {"x": None, "w": (4, 5)}, MS,
     "FusedMatMul that transposes a tensor of unknown rank; shapes={...} at load (--input-shapes) fixes those of the inputs",
     "node 'the_fusedmatmul': y = com.microsoft:FusedMatMul(x: f32[*], w: f32[4,5])"),
    (node("Scaler", ["x"], domain="ai.onnx.ml", offset=[0.0, 1.0], scale=[1.0, 1.0]), {"x": (2, 3)}, ML,
     "Scaler: 2 entries of offset for 3 columns", "node 'the_scaler': y = ai.onnx.ml:Scaler(x: f32[2,3])"),
]


@pytest.mark.parametrize(("bad", "inputs", "domains", "message", "where"), ONE_NODE, ids=[c[3][:40] for c in ONE_NODE])
def test_an_error_names_the_node_and_its_inputs(
    bad: NodeProto, inputs: dict[str, Any], domains: dict[str, int], message: str, where: str
) -> None:
    error = error_of(model([bad], inputs, ["y"], domains=domains))
    assert error.message == message
    assert error.where == where


WRONG_CONSTANTS: list[tuple[NodeProto, Array, str]] = [
    (node("Reshape", ["x", "c"]), np.array([4, 2]), "Reshape: cannot reshape [2, 3] to [4, 2]"),
    (node("Split", ["x", "c"], ["y", "z"]), np.array([1, 2]), "Split cuts 2 entries of axis 0 into pieces of [1, 2]"),
    (node("Resize", ["x", "", "c"]), np.ones(3, np.float32), "Resize takes one scale for each of 2 axes, got 3"),
]


@pytest.mark.parametrize(("bad", "constant", "message"), WRONG_CONSTANTS, ids=[c[2][:20] for c in WRONG_CONSTANTS])
def test_constants_that_do_not_fit_are_told(bad: NodeProto, constant: Array, message: str) -> None:
    error = error_of(model([bad], {"x": (2, 3)}, ["y"], initializers={"c": constant}))
    assert error.message == message
    assert error.where.startswith(f"node 'the_{bad.op_type.lower()}': ")


def test_a_node_without_a_name_is_shown_by_what_it_makes() -> None:
    error = error_of(model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (2, 3), "w": (4, 5)}, ["y"]))
    assert error.where == "y = MatMul(x: f32[2,3], w: f32[4,5])"


def test_a_function_of_the_file_is_named_with_its_callers() -> None:
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    inner = helper.make_function("local", "Inner", ["a", "b"], ["c"],
                                 [helper.make_node("Relu", ["a"], ["r"]), node("MatMul", ["r", "b"], ["c"])], imports)
    outer = helper.make_function("local", "Outer", ["a", "b"], ["c"],
                                 [node("Inner", ["a", "b"], ["c"], domain="local")], imports)
    call = helper.make_node("Outer", ["x", "w"], ["y"], domain="local")
    error = error_of(model([call], {"x": (2, 3), "w": (4, 5)}, ["y"], functions=[inner, outer], domains=LOCAL))
    assert error.where == ("node 'the_matmul' in function 'Inner': c = MatMul(r: f32[2,3], b: f32[4,5]); called by node 'the_inner' "
                           "in function 'Outer'; called by the node that makes 'y'")


def test_a_body_that_the_standard_gives_is_not_shown() -> None:
    crop = node("CenterCropPad", ["x", "s"], axes=[0, 5])
    error = error_of(model([crop], {"x": (2, 3)}, ["y"], initializers={"s": np.array([1, 2])}))
    assert error.message == "CenterCropPad: no axis 5 at rank 2"
    assert error.where == "node 'the_centercroppad': y = CenterCropPad(x: f32[2,3], s: i64[2])"


def test_a_subgraph_is_told_with_its_owner() -> None:
    body = helper.make_graph([node("Add", ["h", "w"], ["h2"])], "body",
                             [info("i", (), TensorProto.INT64), info("c", (), TensorProto.BOOL), info("h", None)],
                             [info("c", (), TensorProto.BOOL), info("h2", None)])
    loop = node("Loop", ["m", "", "x"], body=body)
    error = error_of(model([loop], {"m": info("m", (), TensorProto.INT64), "x": (2, 3), "w": (4,)}, ["y"]))
    assert isinstance(error, ValidationError)
    assert error.where == "node 'the_add': h2 = Add(h: f32[2,3], w: f32[4]); in a subgraph of node 'the_loop' (Loop)"


def test_the_class_and_the_code_stay() -> None:
    error = error_of(model([node("FusedMatMul", ["x", "w"], domain="com.microsoft", transA=1)], {"x": None, "w": (4, 5)}, ["y"],
                           domains=MS))
    assert type(error) is UnsupportedError
    assert error.code == "rank"
    assert type(error.__cause__) is UnsupportedError
