"""Every loss and option beside PyTorch's, in value and gradient, in float64 (needs torch)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.graph import Array

torch = pytest.importorskip("torch")
functional = torch.nn.functional

RNG = np.random.default_rng(7)
SCORES = 2 * RNG.standard_normal((5, 4, 3, 2))
LABELS = RNG.integers(0, 4, (5, 3, 2))
SHARES = RNG.dirichlet(np.ones(4), (5, 3, 2)).transpose(0, 3, 1, 2)
WEIGHTS = RNG.random(4) + 0.2
X, T = RNG.standard_normal((2, 6, 4))
REDUCTIONS = ("mean", "sum", "none")


def beside(y: Array, target: Array, loss: str, peer: Callable[[Any, Any], Any], **options: Any) -> None:
    """Compare value and gradient of a loss with those of ``peer(y, target)``."""
    shape = ",".join(map(str, y.shape))
    model = fg.load(f"graph @g (%x: f64[{shape}]) -> (%y: f64[{shape}]) {{ %y: f64[{shape}] = Identity(%x) }}".encode())
    scores = torch.tensor(y, requires_grad=True)
    expected = peer(scores, torch.tensor(target))
    bar = np.asarray(RNG.standard_normal(tuple(expected.shape)))
    expected.backward(torch.tensor(bar))
    made = fg.vjp(fg.with_loss(model, loss, **options), "loss", "x")(x=y, target=target, loss_grad=bar)
    np.testing.assert_allclose(made["loss"], expected.detach().numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(made["x_grad"], scores.grad.numpy(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("weighted", "ignored", "smoothing"), list(itertools.product((False, True), (None, 2, -100), (0.0, 0.1, 1.0))))
def test_cross_entropy_of_labels(weighted: bool, ignored: int | None, smoothing: float, reduction: str) -> None:
    weights = WEIGHTS if weighted else None
    labels = np.where(LABELS == 1, -100, LABELS) if ignored == -100 else LABELS

    def peer(y: Any, t: Any) -> Any:
        return functional.cross_entropy(y, t, weight=None if weights is None else torch.tensor(weights), reduction=reduction,
                                        ignore_index=-1000 if ignored is None else ignored, label_smoothing=smoothing)

    beside(SCORES, labels, "softmax_cross_entropy", peer, reduction=reduction, weights=weights, ignore_index=ignored,
           label_smoothing=smoothing)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("weighted", "smoothing"), list(itertools.product((False, True), (0.0, 0.2))))
def test_cross_entropy_of_probabilities(weighted: bool, smoothing: float, reduction: str) -> None:
    weights = WEIGHTS if weighted else None

    def peer(y: Any, t: Any) -> Any:
        """PyTorch's mean is over the examples times the places, as ours is."""
        return functional.cross_entropy(y, t, weight=None if weights is None else torch.tensor(weights), reduction=reduction,
                                        label_smoothing=smoothing)

    beside(SCORES, SHARES, "softmax_cross_entropy", peer, reduction=reduction, weights=weights, labels="probabilities",
           label_smoothing=smoothing)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("loss", "target", "options", "peer"), [
    ("mean_squared_error", T, {}, lambda y, t, r: functional.mse_loss(y, t, reduction=r)),
    ("mean_absolute_error", T, {}, lambda y, t, r: functional.l1_loss(y, t, reduction=r)),
    ("huber", T, {"delta": 0.6}, lambda y, t, r: functional.huber_loss(y, t, delta=0.6, reduction=r)),
    ("poisson", np.abs(T), {}, lambda y, t, r: functional.poisson_nll_loss(y, t, reduction=r)),
    ("sigmoid_cross_entropy", (T > 0) * 1.0, {}, lambda y, t, r: functional.binary_cross_entropy_with_logits(y, t, reduction=r)),
    ("sigmoid_cross_entropy", (T > 0) * 0.8 + 0.1, {"weights": 2.5},
     lambda y, t, r: functional.binary_cross_entropy_with_logits(y, t, pos_weight=torch.tensor(2.5, dtype=torch.float64), reduction=r)),
    ("sigmoid_cross_entropy", (T > 0) * 1.0, {"weights": WEIGHTS},
     lambda y, t, r: functional.binary_cross_entropy_with_logits(y, t, pos_weight=torch.tensor(WEIGHTS), reduction=r)),
], ids=lambda p: p if isinstance(p, str) else "")
def test_losses_of_numbers(loss: str, target: Array, options: dict[str, Any], peer: Any, reduction: str) -> None:
    beside(X, np.asarray(target, np.float64), loss, lambda y, t: peer(y, t, reduction), reduction=reduction, **options)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_divergence(reduction: str) -> None:
    """PyTorch's takes log-probabilities, and its mean is over all elements: sums along the classes are compared."""
    def peer(y: Any, t: Any) -> Any:
        each = functional.kl_div(y.log_softmax(1), t, reduction="none").sum(1)
        return each.sum() if reduction == "sum" else each

    beside(SCORES, SHARES, "kl_divergence", peer, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gaussian(reduction: Any) -> None:
    variance = RNG.random((6, 4)) + 0.1
    model = fg.load(b"graph @g (%x: f64[6,4], %v: f64[6,4]) -> (%y: f64[6,4], %w: f64[6,4]) "
                    b"{ %y: f64[6,4] = Identity(%x) %w: f64[6,4] = Identity(%v) }")
    y, v = torch.tensor(X, requires_grad=True), torch.tensor(variance, requires_grad=True)
    expected = functional.gaussian_nll_loss(y, torch.tensor(T), v, reduction=reduction, eps=1e-12)
    bar = np.asarray(RNG.standard_normal(tuple(expected.shape)))
    expected.backward(torch.tensor(bar))
    made = fg.vjp(fg.with_loss(model, "gaussian", output="y", variance="w", reduction=reduction), "loss", ["x", "v"])(
        x=X, v=variance, target=T, loss_grad=bar)
    np.testing.assert_allclose(made["loss"], expected.detach().numpy(), rtol=1e-12)
    for name, leaf in (("x_grad", y), ("v_grad", v)):
        np.testing.assert_allclose(made[name], leaf.grad.numpy(), rtol=1e-10, atol=1e-12)
