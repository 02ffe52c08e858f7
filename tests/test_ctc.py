"""The loss "ctc" against a sum over all alignments, its derivative against differences, and both against PyTorch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Array

STEPS, EXAMPLES, CLASSES = 5, 6, 3
SCORES = np.random.default_rng(0).standard_normal((STEPS, EXAMPLES, CLASSES))
LABELS = np.array([[1, 2, 1], [1, 1, 2], [2, -7, 99], [1, 1, 1], [2, 2, 0], [1, 2, 2]])
COUNTS = np.array([3, 2, 1, 3, 0, 2])
LENGTHS = np.array([5, 4, 3, 4, 2, 5])  # the fourth example needs five steps and has four


def model(dtype: str = "f64", shape: str = "T,N,C") -> fg.Model:
    return fg.load(f"graph @g (%x: {dtype}[{shape}]) -> (%y: {dtype}[{shape}]) {{ %y: {dtype}[{shape}] = Identity(%x) }}".encode())


def feeds(blank: int = 0) -> dict[str, Array]:
    labels = LABELS if blank == 0 else np.where(blank == LABELS, 0, LABELS)
    return {"x": SCORES, "labels": labels, "input_lengths": LENGTHS, "target_lengths": COUNTS}


def summed_over_alignments(n: int, blank: int) -> float:
    """Return -log of the sum over all paths that read, blanks and repetitions taken out, as the labels."""
    prob = np.exp(SCORES[:, n] - np.log(np.exp(SCORES[:, n]).sum(1, keepdims=True)))
    wanted = feeds(blank)["labels"][n, : COUNTS[n]].tolist()
    total = 0.0
    for path in itertools.product(range(CLASSES), repeat=int(LENGTHS[n])):
        read = [c for i, c in enumerate(path) if c != blank and (i == 0 or path[i - 1] != c)]
        if read == wanted:
            total += float(np.prod([prob[t, c] for t, c in enumerate(path)]))
    return -np.log(total) if total else np.inf


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("shape", ["T,N,C", "5,6,3"])
def test_it_is_the_sum_over_all_alignments(blank: int, shape: str) -> None:
    found = fg.with_loss(model(shape=shape), "ctc", target="labels", blank=blank, reduction="none")(feeds(blank))["loss"]
    expected = np.array([summed_over_alignments(n, blank) for n in range(EXAMPLES)])
    assert np.isinf(expected[3])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    mean = fg.with_loss(model(), "ctc", target="labels", blank=blank)(feeds(blank))["loss"]
    np.testing.assert_allclose(mean, (expected / np.maximum(COUNTS, 1)).mean(), rtol=1e-12)


def test_its_derivatives_are_those_of_differences_and_zero_where_nothing_fits() -> None:
    each = fg.with_loss(model(), "ctc", target="labels", reduction="none")
    slope = fg.vjp(each, "loss", "x")({**feeds(), "loss_grad": np.ones(EXAMPLES)})["x_grad"]
    np.testing.assert_array_equal(slope[:, 3], 0)
    possible = {name: a[:, [0, 1, 2, 4, 5]] if name == "x" else a[[0, 1, 2, 4, 5]] for name, a in feeds().items()}
    total = fg.with_loss(model(), "ctc", target="labels", reduction="sum")
    assert fg.gradcheck(total, possible, "loss", "x", atol=1e-7, rtol=1e-6)
    steps = np.arange(STEPS)[:, None, None] < possible["input_lengths"][:, None]
    assert np.all(fg.grad(total, "loss", "x")(possible)["x_grad"][~np.broadcast_to(steps, possible["x"].shape)] == 0)


def test_long_sequences_in_float32_keep_their_digits() -> None:
    rng = np.random.default_rng(1)
    fed: dict[str, Any] = {"x": 3 * rng.standard_normal((200, 2, 30)), "labels": rng.integers(1, 30, (2, 60)),
                           "input_lengths": np.array([200, 170]), "target_lengths": np.array([60, 40])}
    wide = fg.value_and_grad(fg.with_loss(model(), "ctc", target="labels"), "loss", "x")(fed)
    narrow = fg.value_and_grad(fg.with_loss(model("f32"), "ctc", target="labels"), "loss", "x")({**fed, "x": fed["x"].astype(np.float32)})
    np.testing.assert_allclose(narrow["loss"], wide["loss"], rtol=1e-5)
    np.testing.assert_allclose(narrow["x_grad"], wide["x_grad"], atol=2e-4 * np.abs(wide["x_grad"]).max())


def test_it_trains_and_runs_in_onnxruntime() -> None:
    pytest.importorskip("onnxruntime")
    loss = fg.value_and_grad(fg.with_loss(model(), "ctc", target="labels", reduction="sum"), "loss", "x")
    fed = {name: a[:, :3] if name == "x" else a[:3] for name, a in feeds().items()}
    here, there = loss(fed), loss.compile("ort").run(fed)
    for name, array in here.items():
        np.testing.assert_allclose(there[name], array, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_value_and_gradient_are_those_of_pytorch(reduction: Any) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    x, labels = 2 * rng.standard_normal((12, 5, 6)), rng.integers(1, 6, (5, 5))
    lengths, counts = rng.integers(8, 13, 5), rng.integers(0, 4, 5)
    scores = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.ctc_loss(scores.log_softmax(2), torch.tensor(labels), torch.tensor(lengths), torch.tensor(counts),
                                            reduction=reduction)
    loss = fg.with_loss(model(), "ctc", target="labels", reduction=reduction)
    bar = np.asarray(rng.standard_normal(tuple(expected.shape)))
    expected.backward(torch.tensor(bar))
    found = fg.vjp(loss, "loss", "x")(x=x, labels=labels, input_lengths=lengths, target_lengths=counts, loss_grad=bar)
    np.testing.assert_allclose(found["loss"], expected.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(found["x_grad"], scores.grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("make", "said"), [
    (lambda: fg.with_loss(model(shape="N,C"), "ctc"), r"takes scores \[steps, examples, classes\]"),
    (lambda: fg.with_loss(model(shape="5,6,3"), "ctc", blank=3), "a class from 0 to 2"),
    (lambda: fg.with_loss(model(), "huber", blank=1), "these do: ctc"),
])
def test_wrong_calls_say_the_way_out(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()
