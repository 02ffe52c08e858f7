"""Explanations and attacks against their formulas, on a small network whose gradients are known from vjp."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import INITIALIZER, Array, Graph
from flowgrad.ir.types import FLOAT64, Dim, DimLike, Type

RNG = np.random.default_rng(5)
IMAGES = RNG.random((6, 2, 5, 5))
CLASSES = RNG.integers(0, 3, 6)


BATCH = Dim.named("N")


def network(batch: DimLike = BATCH) -> fg.Model:
    """Return a classifier of images of 2 channels: a convolution, Relu, a product."""
    rng = np.random.default_rng(0)
    graph = Graph("cnn")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (batch, 2, 5, 5)))
    w = graph.add_constant(rng.standard_normal((4, 2, 3, 3)), "w", INITIALIZER)
    v = graph.add_constant(rng.standard_normal((36, 3)), "v", INITIALIZER)
    relu = b.add("Relu", [b.add("Conv", [x, w], name="conv")], name="relu")
    graph.add_output(b.MatMul(b.Flatten(relu), v), "y")
    return fg.Model(graph)


def logits(x: Array) -> Array:
    return network()(x=x)["y"]


def slopes(x: Array, classes: Array, wrt: str = "x") -> Array:
    """Return d y[class] / d wrt for each example."""
    return fg.vjp(network(), of="y", wrt=wrt)(x=x, y_grad=np.eye(3)[classes])[f"{wrt}_grad"]


# ---- explanations -------------------------------------------------------------------------------------------------------------


def test_saliency_and_gradient_times_input() -> None:
    slope = slopes(IMAGES, CLASSES)
    np.testing.assert_allclose(fg.explain.Saliency(network()).attribute(IMAGES, CLASSES), np.abs(slope), rtol=1e-12)
    np.testing.assert_allclose(fg.explain.Saliency(network()).attribute(IMAGES, 1, absolute=False), slopes(IMAGES, np.full(6, 1)),
                               rtol=1e-12)
    np.testing.assert_allclose(fg.explain.InputXGradient(network()).attribute(IMAGES, CLASSES), IMAGES * slope, rtol=1e-12)


def test_integrated_gradients_add_up_to_what_the_output_rises_by() -> None:
    method = fg.explain.IntegratedGradients(network())
    baselines = 0.3 * np.ones((1, 2, 5, 5))
    found = method.attribute(IMAGES, CLASSES, baselines, n_steps=300)
    own = np.arange(6)
    rise = logits(IMAGES)[own, CLASSES] - logits(np.broadcast_to(baselines, IMAGES.shape))[own, CLASSES]
    np.testing.assert_allclose(found.reshape(6, -1).sum(1), rise, atol=0.02)
    np.testing.assert_allclose(method.convergence_delta(found, IMAGES, CLASSES, baselines),
                               found.reshape(6, -1).sum(1) - rise, atol=1e-12)


def test_guided_backpropagation_passes_positive_cotangents_alone() -> None:
    relu_bar = np.maximum(slopes(IMAGES, CLASSES, "relu"), 0)
    expected = fg.vjp(network(), of="conv", wrt="x")(
        x=IMAGES, conv_grad=relu_bar * (fg.vjp(network(), of="conv", wrt="x", keep="conv")(
            x=IMAGES, conv_grad=np.zeros((6, 4, 3, 3)))["conv"] > 0))["x_grad"]
    np.testing.assert_allclose(fg.explain.GuidedBackprop(network()).attribute(IMAGES, CLASSES), expected, rtol=1e-12)


@pytest.mark.parametrize("positive", [False, True])
def test_grad_cam_weighs_maps_by_their_mean_slopes(positive: bool) -> None:
    maps = fg.vjp(network(), keep="relu")(x=IMAGES, y_grad=np.zeros((6, 3)))["relu"]
    expected = (slopes(IMAGES, CLASSES, "relu").mean((2, 3), keepdims=True) * maps).sum(1, keepdims=True)
    found = fg.explain.LayerGradCam(network(), "relu").attribute(IMAGES, CLASSES, relu_attributions=positive)
    np.testing.assert_allclose(found, np.maximum(expected, 0) if positive else expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layer", ["relu", "conv"])
def test_layer_conductance_adds_up_to_what_the_output_rises_by(layer: str) -> None:
    method = fg.explain.LayerConductance(network(), layer, batch=4)
    found = method.attribute(IMAGES, CLASSES, 0.3, n_steps=400)
    own = np.arange(6)
    rise = logits(IMAGES)[own, CLASSES] - logits(np.full_like(IMAGES, 0.3))[own, CLASSES]
    assert found.shape == (6, 4, 3, 3)
    np.testing.assert_allclose(found.reshape(6, -1).sum(1), rise, atol=0.02)
    plain = fg.explain.LayerConductance(network(), layer).attribute(IMAGES, CLASSES, 0.3, n_steps=1)
    first, second = (0.3 + (0.5 + s * 0.5 / 3**0.5) * (IMAGES - 0.3) for s in (-1, 1))
    at = [fg.vjp(network(), keep=layer)(x=x, y_grad=np.zeros((6, 3)))[layer] for x in (first, second)]
    np.testing.assert_allclose(plain, slopes(first, CLASSES, layer) * (at[1] - at[0]), rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match="n_steps is 1 or more"):
        method.attribute(IMAGES, 0, n_steps=0)


def test_progress_is_shown_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    method = fg.explain.IntegratedGradients(network(), progress=True)
    expected = fg.explain.IntegratedGradients(network()).attribute(IMAGES, CLASSES, n_steps=3)
    assert capsys.readouterr() == ("", "")
    assert method.attribute(IMAGES, CLASSES, n_steps=3).tobytes() == expected.tobytes()
    assert "integrated gradients 3/3" in capsys.readouterr().err
    fg.attack.PGD(network(), steps=4, progress=True)(IMAGES, CLASSES)
    out, err = capsys.readouterr()
    assert out == "" and "steps, start 1 of 1 4/4" in err


def test_smooth_gradients_are_means_over_noise() -> None:
    method = fg.explain.SmoothGrad(fg.explain.Saliency(network()))
    rng = np.random.default_rng(7)
    expected = np.mean([np.abs(slopes(IMAGES + 0.1 * rng.standard_normal(IMAGES.shape), CLASSES)) for _ in range(4)], axis=0)
    np.testing.assert_allclose(method.attribute(IMAGES, CLASSES, nt_samples=4, stdevs=0.1, seed=7), expected, rtol=1e-10)


def test_examples_go_through_in_portions() -> None:
    expected = fg.explain.Saliency(network()).attribute(IMAGES, CLASSES)
    for model, batch in ((network(), 4), (network(1), None), (network(3), None)):
        found = fg.explain.Saliency(model, batch=batch).attribute(IMAGES, CLASSES)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    with pytest.raises(InputError, match="takes 4 examples at a time, and 6"):
        fg.explain.Saliency(network(4)).attribute(IMAGES, CLASSES)


def test_other_inputs_are_cut_only_where_they_have_the_axis_of_the_examples() -> None:
    """As many weights as there are examples are still weights that all of these share."""
    model = fg.load(b"""graph @g (%x: f64[N,2], %w: f64[M]) -> (%y: f64[N]) {
  %s: f64[] = ReduceSum(%w) {keepdims=0}
  %r: f64[N] = ReduceSumSquare(%x, [1]) {keepdims=0}
  %y: f64[N] = Mul(%r, %s)
}""")
    x, w = RNG.standard_normal((4, 2)), np.arange(4.0)
    found = fg.explain.InputXGradient(model, input="x", others={"w": w}, batch=2).attribute(x)
    np.testing.assert_allclose(found, 2 * x * x * w.sum(), rtol=1e-12)


def test_targets_have_the_extent_of_the_output_under_another_name() -> None:
    model = fg.load(b"""graph @g (%x: f64[N,3], %rows: i64[K]) -> (%y: f64[K,3]) {
  %q: f64[K,3] = Gather(%x, %rows)
  %y: f64[K,3] = Mul(%q, %q)
}""")
    x, rows = RNG.standard_normal((4, 3)), np.arange(4)
    method = fg.explain.Saliency(model, others={"rows": rows}, batch=4)
    np.testing.assert_allclose(method.attribute(x, np.array([0, 2, 1, 0])), np.abs(2 * x) * np.eye(3)[[0, 2, 1, 0]], rtol=1e-12)


def test_one_number_per_example_needs_no_target() -> None:
    model = fg.load(b"graph @g (%x: f64[N,2]) -> (%y: f64[N]) {\n  %y: f64[N] = ReduceSumSquare(%x, [1]) {keepdims=0}\n}")
    x = RNG.standard_normal((3, 2))
    np.testing.assert_allclose(fg.explain.Saliency(model).attribute(x), np.abs(2 * x), rtol=1e-12)
    with pytest.raises(InputError, match="no class to pick"):
        fg.explain.Saliency(model).attribute(x, 1)


def any_of(word: Any) -> Any:
    """Return a word that types would refuse."""
    return word


@pytest.mark.parametrize(("call", "said"), [
    (lambda m: fg.explain.Saliency(m).attribute(IMAGES), "target= must say"),
    (lambda m: fg.explain.Saliency(m).attribute(IMAGES, 3), "lies outside 0..2"),
    (lambda m: fg.attack.FGSM(m)(IMAGES - 1, CLASSES), r"beyond bounds=\(0, 1\)"),
    (lambda m: fg.explain.Saliency(m, output="z"), "no output, value or node 'z'"),
    (lambda m: fg.explain.Saliency(m, input="z"), "no float input 'z'"),
    (lambda m: fg.explain.LayerGradCam(m, "y"), "a layer of feature maps"),
    (lambda m: fg.explain.IntegratedGradients(m).attribute(IMAGES, 0, n_steps=0), "n_steps is 1 or more"),
    (lambda m: fg.attack.PGD(m, norm=any_of("l1")), "norm is 'linf' or 'l2'"),
    (lambda m: fg.attack.PGD(m, loss=any_of("dlr")), "loss is 'cross_entropy' or 'margin'"),
    (lambda m: fg.attack.PGD(m, steps=0), "steps and restarts are 1 or more"),
    (lambda m: fg.attack.FGSM(m)(IMAGES, CLASSES.astype(float)), "one integer per example"),
    (lambda m: fg.attack.FGSM(m, eps=-1), "eps is 0 or more"),
])
def test_wrong_calls_say_the_way_out(call: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call(network())


# ---- attacks ------------------------------------------------------------------------------------------------------------------


LABELS = logits(IMAGES).argmax(1)


def loss_slopes(x: Array, labels: Array) -> Array:
    shifted = np.exp(logits(x) - logits(x).max(1, keepdims=True))
    shares = shifted / shifted.sum(1, keepdims=True) - np.eye(3)[labels]
    return fg.vjp(network(), of="y", wrt="x")(x=x, y_grad=shares)["x_grad"]


@pytest.mark.parametrize("targeted", [False, True])
def test_one_signed_step(targeted: bool) -> None:
    sign = -1 if targeted else 1
    expected = np.clip(IMAGES + sign * 0.05 * np.sign(loss_slopes(IMAGES, LABELS)), 0, 1)
    np.testing.assert_allclose(fg.attack.FGSM(network(), 0.05, targeted=targeted)(IMAGES, LABELS), expected, rtol=1e-12)


def test_projected_steps() -> None:
    x = IMAGES
    for _ in range(5):
        x = np.clip(IMAGES + np.clip(x + 0.03 * np.sign(loss_slopes(x, LABELS)) - IMAGES, -0.08, 0.08), 0, 1)
    found = fg.attack.PGD(network(), 0.08, 0.03, 5, random_start=False)(IMAGES, LABELS)
    np.testing.assert_allclose(found, x, rtol=1e-12)
    alpha = fg.attack.PGD(network(), eps=0.08, alpha=0.03, steps=5, random_start=False)
    np.testing.assert_array_equal(alpha(IMAGES, LABELS), found)


def test_modules_show_what_they_are_for() -> None:
    assert dir(fg.attack) == ["FGSM", "PGD"] and "Saliency" in dir(fg.explain) and "np" not in dir(fg.explain)
    assert all(hasattr(module, name) for module in (fg.attack, fg.explain) for name in dir(module))


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_stay_in_their_ball_and_succeed(norm: Any, loss: Any) -> None:
    eps = 0.4 if norm == "linf" else 2.0
    attack = fg.attack.PGD(network(), eps, eps / 4, 20, norm=norm, loss=loss, restarts=2, seed=1)
    found = attack(IMAGES, LABELS)
    moved = (found - IMAGES).reshape(6, -1)
    size = np.abs(moved).max(1) if norm == "linf" else np.linalg.norm(moved, axis=1)
    assert (size <= eps * (1 + 1e-9)).all()
    assert found.min() >= 0 and found.max() <= 1
    assert attack.success(found, LABELS).all()
    assert (attack.success(found, LABELS) == (logits(found).argmax(1) != LABELS)).all()
    np.testing.assert_array_equal(found, attack(IMAGES, LABELS))


def test_restarts_keep_what_succeeded() -> None:
    one = [fg.attack.PGD(network(), 0.15, 0.05, 4, seed=0, restarts=n) for n in (1, 4)]
    first, best = (a.success(a(IMAGES, LABELS), LABELS) for a in one)
    assert (best >= first).all()


def test_no_examples_are_attacked_as_well() -> None:
    assert fg.attack.PGD(network(), norm="l2")(IMAGES[:0], LABELS[:0]).shape == (0, 2, 5, 5)
