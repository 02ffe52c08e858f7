"""Operators that the standard tries out: FlexAttention with its subgraphs, optimizers, and Gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

import flowgrad as fg
from flowgrad.exchange.reader import read_onnx
from flowgrad.exchange.writer import write_onnx
from flowgrad.ir.errors import NotDifferentiableError, UnsupportedError, ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from tests.derivative_checks import check_gradients
from tests.onnx_models import info, model, onnxruntime_outputs

RNG = np.random.default_rng(3)
TRAINING = "ai.onnx.preview.training"
PREVIEW = "ai.onnx.preview"


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """Return a node; names stand in one string, "-" for an absent one."""
    given, made = (["" if n == "-" else n for n in text.split()] for text in (inputs, outputs))
    domain = TRAINING if op in ("Gradient", "Adam", "Adagrad", "Momentum") else PREVIEW if op == "FlexAttention" else ""
    return helper.make_node(op, given, made, domain=domain, **attributes)


def training_model(nodes: list[NodeProto], inputs: dict[str, Any], outputs: list[str], dtype: Any = np.float64) -> ModelProto:
    declared = {n: np.zeros(shape, dtype) if isinstance(shape, tuple) else shape for n, shape in inputs.items()}
    return model(nodes, declared, outputs, domains={TRAINING: 1}, output_dtype=TensorProto.DOUBLE)


def graph_of(proto: ModelProto) -> Graph:
    return read_onnx(proto)


# ---- Gradient -----------------------------------------------------------------------------------------------------------

CUBE = [node("Mul", "w w", "h"), node("Mul", "h z", "p"), node("ReduceSum", "p", "y", keepdims=0)]


def feeds(**shapes: tuple[int, ...]) -> dict[str, Array]:
    return {name: RNG.standard_normal(shape) for name, shape in shapes.items()}


def test_gradient_by_all_that_is_named() -> None:
    graph = graph_of(training_model([*CUBE, node("Gradient", "w z", "dw dz", xs=["w", "z"], y="y")],
                                    {"w": (3,), "z": (3,)}, ["dw", "dz"]))
    given = feeds(w=(3,), z=(3,))
    results = evaluate(graph, given)
    np.testing.assert_allclose(results["dw"], 2 * given["w"] * given["z"], rtol=1e-15)
    np.testing.assert_allclose(results["dz"], given["w"] ** 2, rtol=1e-15)


def test_gradient_of_a_later_node_by_an_inner_value_with_an_output_left_out() -> None:
    """What is named counts as independent: h is not w w here. The file may have the Gradient first."""
    nodes = [node("Gradient", "h z", "dh", xs=["h"], zs=["z"], y="y"), node("Gradient", "w h z", "- dh_again",
             xs=["w", "h"], zs=["z"], y="y"), *CUBE]
    graph = graph_of(training_model(nodes, {"w": (3,), "z": (3,)}, ["dh", "dh_again"]))
    given = feeds(w=(3,), z=(3,))
    for name in ("dh", "dh_again"):
        np.testing.assert_array_equal(evaluate(graph, given)[name], given["z"])


def test_gradient_at_other_values() -> None:
    nodes = [*CUBE, node("Exp", "z", "w_bar"), node("Gradient", "w_bar z", "dw", xs=["w"], zs=["z"], y="y")]
    graph = graph_of(training_model(nodes, {"w": (3,), "z": (3,)}, ["y", "dw", "w_bar"]))
    given = feeds(w=(3,), z=(3,))
    results = evaluate(graph, given)
    np.testing.assert_allclose(results["dw"], 2 * np.exp(given["z"]) * given["z"], rtol=1e-14)
    np.testing.assert_allclose(results["y"], np.sum(given["w"] ** 2 * given["z"]), rtol=1e-14)


def test_gradient_of_a_gradient_and_our_own_of_that() -> None:
    nodes = [*CUBE, node("Gradient", "w z", "dw", xs=["w"], zs=["z"], y="y"),
             node("Gradient", "w z", "ddw dwdz", xs=["w", "z"], y="dw")]
    proto = training_model(nodes, {"w": (3,), "z": (3,)}, ["ddw", "dwdz"])
    graph = graph_of(proto)
    given = feeds(w=(3,), z=(3,))
    np.testing.assert_allclose(evaluate(graph, given)["ddw"], 2 * given["z"], rtol=1e-15)
    np.testing.assert_allclose(evaluate(graph, given)["dwdz"], 2 * given["w"], rtol=1e-15)
    check_gradients(graph, given, ["w", "z"], step=1e-3, rtol=1e-8)
    exported = write_onnx(graph)
    assert {n.domain for n in exported.graph.node} == {""}
    np.testing.assert_allclose(onnxruntime_outputs(exported, given)[0], 2 * given["z"], rtol=1e-15)


def test_gradient_draws_no_second_mask() -> None:
    nodes = [node("Constant", "", "t", value=helper.make_tensor("t", TensorProto.BOOL, [], [True])),
             node("Dropout", "x - t", "y"), node("Gradient", "x", "dx", xs=["x"], y="y")]
    graph = graph_of(training_model(nodes, {"x": (100,)}, ["y", "dx"]))
    results = evaluate(graph, {"x": np.ones(100)})
    assert 0 < np.count_nonzero(results["y"]) < 100
    np.testing.assert_array_equal(results["y"], results["dx"])


def test_gradients_that_cannot_be() -> None:
    def refused(error: type[Exception], match: str, *nodes: NodeProto) -> None:
        with pytest.raises(error, match=match):
            graph_of(training_model(list(nodes), {"w": (3,), "z": (3,)}, [nodes[-1].output[0]]))

    refused(ValidationError, "depends on nothing", *CUBE, node("Exp", "z", "e"), node("Gradient", "w", "d", xs=["w"], y="e"))
    refused(ValidationError, "names 2 tensors, takes 1", *CUBE, node("Gradient", "w", "d", xs=["w"], zs=["z"], y="y"))
    refused(ValidationError, "nothing defines 'q'", *CUBE, node("Gradient", "w", "d", xs=["w"], y="q"))
    refused(NotDifferentiableError, "Floor", node("Floor", "w", "f"), node("Gradient", "w", "d", xs=["w"], y="f"))


# ---- optimizers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "kinds", "attributes"), [
    ("Adam", 4, {"norm_coefficient": 0.1, "norm_coefficient_post": 0.01, "alpha": 0.95}),
    ("Adam", 4, {}),
    ("Adagrad", 3, {"decay_factor": 0.1, "norm_coefficient": 0.2}),
    ("Adagrad", 3, {}),
    ("Momentum", 3, {"alpha": 0.9, "beta": 0.5, "mode": "standard", "norm_coefficient": 0.1}),
    ("Momentum", 3, {"alpha": 0.9, "beta": 0.5, "mode": "nesterov", "norm_coefficient": 0.0}),
])
@pytest.mark.parametrize("count", [0, 3])
def test_optimizers(op: str, kinds: int, attributes: dict[str, Any], count: int) -> None:
    """Two tensors at a time, as the standard's reference has it; and they can be differentiated."""
    from onnx.reference import ReferenceEvaluator

    shapes = [(2, 3), (4,)]
    names = [f"{'xgvh'[k]}{i}" for k in range(kinds) for i in range(2)]
    given = {n: RNG.uniform(0.5, 1.5, shapes[int(n[-1])]) for n in names}
    outputs = [f"{n}_new" for n in names if n[0] != "g"]
    proto = training_model([node(op, f"r t {' '.join(names)}", " ".join(outputs), **attributes)],
                           {"r": np.zeros(()), "t": np.zeros((), np.int64), **{n: a for n, a in given.items()}},
                           outputs)
    full = {"r": np.array(0.1), "t": np.array(count), **given}
    graph = graph_of(proto)
    expected = ReferenceEvaluator(proto).run(None, full)
    for name, array in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(evaluate(graph, full)[name], array, rtol=1e-6, err_msg=name)
    check_gradients(graph, full, ["r", *names], step=1e-3, rtol=1e-8)


# ---- FlexAttention ------------------------------------------------------------------------------------------------------


def bias_model(dtype: int = TensorProto.DOUBLE) -> ModelProto:
    """Attention whose scores get a weight of the subgraph and a value from outside, on twice as many heads of queries."""
    score = helper.make_graph(
        [helper.make_node("Add", ["scores", "bias"], ["biased"]), helper.make_node("Mul", ["biased", "K_scale"], ["out"])],
        "score", [info("scores", None, dtype)], [info("out", None, dtype)],
        [helper.make_tensor("bias", dtype, [2, 5], np.linspace(-1, 1, 10))])
    attention = node("FlexAttention", "Q K V", "Y", score_mod=score, scale=0.4)
    shapes: dict[str, list[int | str | None]] = {"Q": [1, 4, 2, 3], "K": [1, 2, "s", 3], "V": [1, 2, "s", 6], "K_scale": []}
    return model([attention], {n: info(n, s, dtype) for n, s in shapes.items()}, ["Y"], opset=26, domains={PREVIEW: 1},
                 output_dtype=dtype, ir_version=10)


def test_flex_attention_with_weights_and_values_from_outside() -> None:
    loaded = fg.load(bias_model())
    given = {"Q": RNG.standard_normal((1, 4, 2, 3)), "K": RNG.standard_normal((1, 2, 5, 3)),
             "V": RNG.standard_normal((1, 2, 5, 6)), "K_scale": np.array(0.7)}
    keys, values = (np.repeat(given[n], 2, axis=1) for n in "KV")
    scale = np.float64(np.sqrt(np.float32(0.4))) ** 2  # its root goes to both operands
    scores = (np.einsum("bhle,bhse->bhls", given["Q"], keys) * scale + np.linspace(-1, 1, 10).reshape(2, 5)) * 0.7
    weights = np.exp(scores)
    expected = (weights / weights.sum(-1, keepdims=True)) @ values
    np.testing.assert_allclose(loaded(given)["Y"], expected, rtol=1e-9)
    check_gradients(loaded.graph, given, list(given), step=1e-3, rtol=1e-7)
    assert "bias" in [p.name for p in loaded.params]
    exported = write_onnx(loaded.graph)
    np.testing.assert_allclose(onnxruntime_outputs(exported, given)[0], expected, rtol=1e-9)


def test_flex_attention_refuses() -> None:
    proto = bias_model()
    del proto.graph.input[0].type.tensor_type.shape.dim[0]
    with pytest.raises(ValidationError, match="rank 4"):
        graph_of(proto)
    proto = bias_model()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UnsupportedError, match="unknown rank"):
        graph_of(proto)
    proto = bias_model()
    proto.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 3
    with pytest.raises(ValidationError, match="4 heads of queries"):
        graph_of(proto)
