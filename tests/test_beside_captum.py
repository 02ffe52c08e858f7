"""Explanations and attacks beside Captum and torchattacks, on the models that PyTorch exported, in both engines."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.graph import Array

torch: Any = pytest.importorskip("torch")
captum: Any = pytest.importorskip("captum.attr")

DATA = Path(__file__).resolve().parent.parent / "examples" / "data"
ENGINES = ("numpy", "ort")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of torch and captum


def classifier() -> tuple[fg.Model, Any]:
    """Return the small network of the examples, in both forms."""
    nn = torch.nn
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
                        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    model = fg.load(DATA / "cnn.onnx")
    net.load_state_dict({name: torch.tensor(array) for name, array in model.state_dict().items()})
    return model, net.eval()


def digits(count: int) -> tuple[Array, Array]:
    data = np.load(DATA / "digits.npz")
    return (data["images"][-count:, None] / 16).astype(np.float32), data["labels"][-count:]


@pytest.fixture(scope="module")
def resnet() -> tuple[fg.Model, Any]:
    """Return torchvision's ResNet-18 as it is exported for any batch, with random weights, in both forms."""
    torchvision: Any = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None).eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(2, 3, 64, 64),), file, input_names=["image"], output_names=["logits"], dynamo=False,
                          dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}})
    return fg.load(file.getvalue()), net


def agree(found: Array, expected: Any) -> None:
    """Check that elements agree, relative to the largest: in float32 but for the few that rounding takes over a kink."""
    reference = expected.detach().numpy()
    assert found.shape == reference.shape and found.dtype == reference.dtype
    if found.dtype == np.float64:
        assert np.abs(found - reference).max() <= 1e-6 * np.abs(reference).max()  # the exporter folds weights in float32
    else:
        assert np.linalg.norm(found - reference) <= 0.02 * np.linalg.norm(reference)
        assert np.median(np.abs(found - reference)) <= 1e-4 * np.abs(reference).max()


FORMS = [("float64", "numpy"), ("float32", "numpy"), ("float32", "ort")]


@pytest.mark.parametrize(("dtype", "engine"), FORMS)
def test_a_resnet_is_explained_as_by_captum(resnet: tuple[fg.Model, Any], dtype: Any, engine: str) -> None:
    model, net = resnet[0].astype(dtype), copy.deepcopy(resnet[1]).to(getattr(torch, dtype))
    x = np.random.default_rng(1).random((3, 3, 64, 64)).astype(dtype)
    labels = np.array([3, 141, 592])
    images, target = torch.tensor(x), torch.tensor(labels)
    last = [n.output().name for n in model.graph.nodes() if n.op == "Relu"][-1]
    explain: Any = fg.explain
    kind: dict[str, Any] = {"engine": engine, "batch": 2}
    agree(explain.Saliency(model, **kind).attribute(x, labels), captum.Saliency(net).attribute(images, target))
    agree(explain.InputXGradient(model, **kind).attribute(x, labels), captum.InputXGradient(net).attribute(images, target))
    agree(explain.IntegratedGradients(model, **kind).attribute(x, labels, n_steps=6),
          captum.IntegratedGradients(net).attribute(images, target=target, n_steps=6))
    agree(explain.LayerGradCam(model, last, **kind).attribute(x, labels),
          captum.LayerGradCam(net, net.layer4).attribute(images, target))


@pytest.mark.parametrize(("dtype", "engine"), FORMS)
def test_a_trained_network_is_explained_as_by_captum(dtype: Any, engine: str) -> None:
    model, net = classifier()
    model, net = model.astype(dtype), net.to(getattr(torch, dtype))
    x, labels = digits(20)
    x = x.astype(dtype)
    baseline = np.random.default_rng(2).random((1, *x.shape[1:])).astype(dtype)
    images, target, start = torch.tensor(x), torch.tensor(labels), torch.tensor(baseline)
    explain: Any = fg.explain
    agree(explain.Saliency(model, engine=engine).attribute(x, labels), captum.Saliency(net).attribute(images, target))
    agree(explain.GuidedBackprop(model, engine=engine).attribute(x, labels),
          captum.GuidedBackprop(net).attribute(images, target))
    agree(explain.IntegratedGradients(model, engine=engine).attribute(x, labels, baseline, n_steps=20),
          captum.IntegratedGradients(net).attribute(images, start, target, n_steps=20))
    for layer, module in zip([n.output().name for n in model.graph.nodes() if n.op == "Relu"], (net[1], net[4]), strict=True):
        agree(explain.LayerConductance(model, layer, engine=engine).attribute(x, labels, baseline, n_steps=10),
              captum.LayerConductance(net, module).attribute(images, start.expand_as(images), target, n_steps=10))
        agree(explain.LayerGradCam(model, layer, engine=engine).attribute(x, labels),
              captum.LayerGradCam(net, module).attribute(images, target))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_do_what_torchattacks_does(norm: Any, targeted: bool, engine: str) -> None:
    torchattacks: Any = pytest.importorskip("torchattacks")
    model, net = classifier()
    x, labels = digits(64)
    wished = (labels + 1) % 10 if targeted else labels
    images, target = torch.tensor(x), torch.tensor(wished)
    eps = 0.15 if norm == "linf" else 1.0
    theirs = (torchattacks.PGD if norm == "linf" else torchattacks.PGDL2)(net, eps, eps / 5, 10, random_start=False)
    if targeted:
        theirs.set_mode_targeted_by_label(quiet=True)
    attack = fg.attack.PGD(model, eps, eps / 5, 10, norm=norm, targeted=targeted, random_start=False, engine=engine)
    moved, expected = attack(x, wished), theirs(images, target).numpy()
    share = [float(attack.success(found, wished).mean()) for found in (moved, expected)]
    assert share[1] > 0.1 and abs(share[0] - share[1]) <= 2 / 64
    assert np.mean(np.abs(moved - expected).max((1, 2, 3)) < 1e-3) > 0.9  # steps of a sign part where a slope is about zero


@pytest.mark.parametrize("engine", ENGINES)
def test_one_step_and_restarts_and_margins_beat_plain_steps(engine: str) -> None:
    torchattacks: Any = pytest.importorskip("torchattacks")
    model, net = classifier()
    x, labels = digits(64)
    one = fg.attack.FGSM(model, 0.1, engine=engine)
    moved, expected = one(x, labels), torchattacks.FGSM(net, 0.1)(torch.tensor(x), torch.tensor(labels)).numpy()
    assert np.mean(np.abs(moved - expected) < 1e-6) > 0.99  # a slope of about zero has any sign
    losses: Any = ("cross_entropy", "margin")
    for loss in losses:
        attack = fg.attack.PGD(model, 0.1, 0.02, 10, restarts=3, loss=loss, engine=engine)
        assert attack.success(attack(x, labels), labels).mean() >= one.success(moved, labels).mean()
