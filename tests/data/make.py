"""Makes the models of this folder: ``python tests/data/make.py``. Seeded, so the files come out the same."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent


def weight(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    data = rng.standard_normal(shape) / np.sqrt(shape[0])
    return numpy_helper.from_array(data.astype(np.float32), name)


def info(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def finish(name: str, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="flowgrad")
    onnx.checker.check_model(model, full_check=True)
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))


def mlp() -> None:
    """Two layers and a softmax cross-entropy loss."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["hidden_in"], name="fc1"),
        helper.make_node("Tanh", ["hidden_in"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w2", "b2"], ["logits"], name="fc2"),
        helper.make_node("SoftmaxCrossEntropyLoss", ["logits", "target"], ["loss"]),
    ]
    weights = [weight(rng, "w1", 4, 8), weight(rng, "b1", 8), weight(rng, "w2", 8, 3), weight(rng, "b2", 3)]
    finish("mlp", helper.make_graph(
        nodes, "mlp", [info("x", TensorProto.FLOAT, "N", 4), info("target", TensorProto.INT64, "N")],
        [info("loss", TensorProto.FLOAT), info("logits", TensorProto.FLOAT, "N", 3)], weights))


def loop() -> None:
    """A recurrent cell in a Loop: h = tanh(h @ w + x), ``steps`` times; the weight is captured."""
    rng = np.random.default_rng(2)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h_in", "w"], ["product"]),
            helper.make_node("Add", ["product", "x"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["h_out"]),
            helper.make_node("Identity", ["more_in"], ["more_out"]),
            helper.make_node("ReduceSum", ["h_out"], ["total"], keepdims=0),
        ], "body",
        [info("step", TensorProto.INT64), info("more_in", TensorProto.BOOL), info("h_in", TensorProto.FLOAT, "N", 3)],
        [info("more_out", TensorProto.BOOL), info("h_out", TensorProto.FLOAT, "N", 3), info("total", TensorProto.FLOAT)])
    finish("loop", helper.make_graph(
        [helper.make_node("Loop", ["steps", "", "h"], ["h_last", "totals"], body=body)], "loop",
        [info("steps", TensorProto.INT64), info("x", TensorProto.FLOAT, "N", 3), info("h", TensorProto.FLOAT, "N", 3)],
        [info("h_last", TensorProto.FLOAT, "N", 3), info("totals", TensorProto.FLOAT, "S")], [weight(rng, "w", 3, 3)]))


def branch() -> None:
    """An If on the sign of the sum of x, with gradients through both branches."""
    rng = np.random.default_rng(3)
    warm = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Exp", ["a"], ["y_warm"])],
                             "warm", [], [info("y_warm", TensorProto.FLOAT, "N", 3)])
    cold = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["s"]), helper.make_node("MatMul", ["s", "v"], ["y_cold"])],
                             "cold", [], [info("y_cold", TensorProto.FLOAT, "N", 3)])
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["is_warm"]),
        helper.make_node("If", ["is_warm"], ["y"], then_branch=warm, else_branch=cold),
    ]
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    finish("branch", helper.make_graph(nodes, "branch", [info("x", TensorProto.FLOAT, "N", 3)],
                                       [info("y", TensorProto.FLOAT, "N", 3)],
                                       [weight(rng, "w", 3, 3), weight(rng, "v", 3, 3), zero]))


def gradient() -> None:
    """The gradient of the network above, in the project's own form."""
    sys.path.insert(0, str(HERE.parent.parent))
    import flowgrad as fg

    fg.value_and_grad(fg.load(HERE / "mlp.onnx"), of="loss", wrt="params").optimized().save(HERE / "mlp_grad.msgpack")


if __name__ == "__main__":
    mlp()
    loop()
    branch()
    if "--onnx-only" not in sys.argv:
        gradient()
