"""What people do with gradients of a network: maps of what it looks at, attacks, and one model for every size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import flowgrad as fg
from flowgrad.ir.graph import Array
from flowgrad.tools.light import models, smooth_twin

HERE = Path(__file__).resolve().parent
ZOO = HERE.parent.parent / "shared" / "zoo"


# ---- Grad-CAM -------------------------------------------------------------------------------------------------------


def grad_cam(model: fg.Model, scores: str, layer: str) -> fg.Model:
    """Return the model that gives the activations of ``layer`` and their gradient, of a class picked at run time."""
    return fg.grad(model, fg.pick(scores, "target"), wrt=layer, keep=layer)


def heat(cam: fg.Model, layer: str, feeds: dict[str, Any]) -> Array:
    """Return the map, scaled to [0, 1], of one image."""
    found = cam(feeds)
    weights = found[f"{layer}_grad"].mean(axis=(2, 3), keepdims=True)
    seen = np.maximum((weights * found[layer]).sum(axis=1), 0)
    return np.asarray(seen / max(seen.max(), 1e-30))


def last_convolution(model: fg.Model) -> str:
    """Return the name of what the last convolution makes."""
    return [n.output().name for n in model.graph.nodes() if n.op == "Conv"][-1]


def logits_of(model: fg.Model) -> str:
    """Return the name of what the last softmax is fed."""
    name: str = [n.input(0).name for n in model.graph.nodes() if n.op == "Softmax"][-1]
    return name


def test_grad_cam_of_the_raw_resnet50() -> None:
    model = fg.load(models(None, ["resnet50"])[0])
    layer, scores = last_convolution(model), logits_of(model)
    cam = grad_cam(model, scores, layer)
    image = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    found = heat(cam, layer, {model.inputs[0].name: image, "target": np.array([243])})
    assert found.shape == (1, 7, 7)
    assert np.isfinite(found).all()
    assert 0 <= found.min() <= found.max() <= 1


def test_grad_cam_depends_on_the_class_as_differences_say() -> None:
    model = smooth_twin(fg.load(models(None, ["squeezenet"])[0])).astype("float64")
    layer, scores, name = last_convolution(model), logits_of(model), model.inputs[0].name
    cam = grad_cam(model, scores, layer)
    image = np.random.default_rng(0).random((1, 3, 224, 224))
    # the scores are taken along the last axis: here an image of one pixel
    gradient = cam({name: image, "target": np.zeros((1, 1000, 1), np.int64)})[f"{layer}_grad"]
    direction = np.random.default_rng(1).standard_normal(gradient.shape)
    head = fg.jvp(model, of=scores, wrt=layer)
    moved = head({name: image, f"{layer}_tangent": direction})[f"{scores}_tangent"]
    np.testing.assert_allclose(np.vdot(gradient, direction), moved.sum(), rtol=1e-9)


# ---- an attack ------------------------------------------------------------------------------------------------------


def attack(loss: fg.Model, name: str, feeds: dict[str, Array], radius: float, steps: int = 10) -> Array:
    """Return the input moved by projected gradient ascent within a box of ``radius`` around what ``feeds`` holds."""
    gradient = fg.grad(loss, wrt=name).compile()
    start = feeds[name]
    x = start.copy()
    for _ in range(steps):
        step = gradient.run({**feeds, name: x})[f"{name}_grad"]
        x = np.clip(x + 2.5 * radius / steps * np.sign(step), start - radius, start + radius).astype(x.dtype)
    return x


def test_an_attack_raises_the_loss_of_the_small_network() -> None:
    model = fg.load(HERE / "data" / "mlp.onnx")
    loss = fg.grad(model, "loss", "x", keep="loss")
    x = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    feeds = {"x": x, "target": model(x=x, target=np.zeros(16, np.int64))["logits"].argmax(1)}
    moved = attack(drop(model, "logits"), "x", feeds, 0.3)
    assert np.abs(moved - x).max() <= 0.3 + 1e-6
    random = x + 0.3 * np.sign(np.random.default_rng(1).standard_normal(x.shape)).astype(np.float32)
    losses = [loss({**feeds, "x": at})["loss"] for at in (x, random, moved)]
    assert losses[2] - losses[0] > 2 * abs(losses[1] - losses[0])


def drop(model: fg.Model, name: str) -> fg.Model:
    """Return the model without an output."""
    graph = model.graph.copy()
    graph.remove(next(e for e in graph.output_entries if e.name == name))
    return fg.Model(graph)


@pytest.mark.skipif(not ZOO.is_dir(), reason="the models are not here")
def test_an_attack_changes_what_a_classifier_says() -> None:
    model = fg.load(ZOO / "timm_resnet18_narrow" / "model.onnx")
    image = np.random.default_rng(0).random((4, 3, 64, 64), np.float32)
    said = model(image=image)["logits"].argmax(-1)
    loss = fg.compose(model, cross_entropy(10), {"logits": "scores"})
    moved = attack(loss, "image", {"image": image, "labels": said}, 0.1, 20)
    assert np.abs(moved - image).max() <= 0.1 + 1e-6
    before, after = (loss(image=at, labels=said)["loss"] for at in (image, moved))
    assert after > before
    assert (model(image=moved)["logits"].argmax(-1) != said).any()


def cross_entropy(classes: int) -> fg.Model:
    """Return the loss as a model of its own: scores and labels in."""
    node = helper.make_node("SoftmaxCrossEntropyLoss", ["scores", "labels"], ["loss"])
    return fg.load(helper.make_model(helper.make_graph(
        [node], "loss", [info("scores", "N", classes), info("labels", "N", kind=TensorProto.INT64)], [info("loss")]),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


# ---- one model for every batch and image ----------------------------------------------------------------------------


def info(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def network(batch: int | str, height: int | str, width: int | str) -> ModelProto:
    """Return a small image classifier for images of the given extents."""
    rng = np.random.default_rng(3)
    weights = {"w1": (8, 3, 3, 3), "b1": (8,), "scale": (8,), "shift": (8,), "mean": (8,), "w2": (12, 8, 3, 3),
               "b2": (12,), "w3": (12, 5), "b3": (5,)}
    arrays = {n: (rng.standard_normal(s) / np.sqrt(np.prod(s[1:] or (4,)))).astype(np.float32) for n, s in weights.items()}
    arrays["var"] = rng.uniform(0.5, 1.5, 8).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["scores"]),
        helper.make_node("SoftmaxCrossEntropyLoss", ["scores", "labels"], ["loss"]),
    ]
    graph = helper.make_graph(
        nodes, "network", [info("image", batch, 3, height, width), info("labels", batch, kind=TensorProto.INT64)],
        [info("loss")], [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_one_gradient_model_serves_every_batch_and_image_size() -> None:
    ort = pytest.importorskip("onnxruntime")
    gradient = fg.value_and_grad(fg.load(network("batch", "height", "width")), "loss", ["inputs", "params"]).optimized()
    program = gradient.compile()
    session = ort.InferenceSession(gradient.to_onnx().SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    rng = np.random.default_rng(0)
    for batch in (1, 7, 64):
        for height, width in ((32, 32), (45, 27)):
            feeds = {"image": rng.standard_normal((batch, 3, height, width)).astype(np.float32),
                     "labels": rng.integers(0, 5, batch)}
            static = fg.value_and_grad(fg.load(network(batch, height, width)), "loss", ["inputs", "params"])
            expected = static(feeds)
            assert len(expected) == 10
            for found in (program.run(feeds), dict(zip(names, session.run(None, feeds), strict=True))):
                assert set(found) == set(expected)
                for name, reference in expected.items():
                    np.testing.assert_allclose(found[name], reference, rtol=1e-4, atol=2e-5 * np.abs(reference).max())
