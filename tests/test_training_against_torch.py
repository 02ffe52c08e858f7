"""fit beside PyTorch's optimizers, on both engines: every optimizer, with decay, clipping and a schedule (needs torch)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flowgrad as fg

torch = pytest.importorskip("torch")

STEPS = 20
RNG = np.random.default_rng(0)
BATCHES = [{"x": RNG.standard_normal((8, 4)), "target": RNG.integers(0, 3, 8)} for _ in range(STEPS)]


def rate(step: int) -> float:
    """Warm up, then decay."""
    return 0.05 * min(1.0, (step + 1) / 5) * 0.9 ** max(0, step - 5)


@pytest.fixture(scope="module")
def model() -> fg.Model:
    return fg.load("tests/data/mlp.onnx").astype("float64")


def trained_by_torch(model: fg.Model, make: Any, clip: float | None) -> tuple[list[float], dict[str, Any]]:
    weights = {name: torch.tensor(np.array(array), requires_grad=True) for name, array in model.state_dict().items()}
    optimizer = make(list(weights.values()))
    losses = []
    for step, batch in enumerate(BATCHES):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        hidden = torch.tanh(torch.tensor(batch["x"]) @ weights["w1"] + weights["b1"])
        loss = torch.nn.functional.cross_entropy(hidden @ weights["w2"] + weights["b2"], torch.tensor(batch["target"]))
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(weights.values()), clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, {name: value.detach().numpy() for name, value in weights.items()}


OPTIMIZERS: list[tuple[str, dict[str, float], Any]] = [
    ("sgd", {}, lambda p: torch.optim.SGD(p, 1.0)),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.01}, lambda p: torch.optim.SGD(p, 1.0, momentum=0.9, weight_decay=0.01)),
    ("sgd", {"momentum": 0.8, "nesterov": 1}, lambda p: torch.optim.SGD(p, 1.0, momentum=0.8, nesterov=True)),
    ("adam", {"weight_decay": 0.01}, lambda p: torch.optim.Adam(p, 1.0, weight_decay=0.01)),
    ("adamw", {"weight_decay": 0.1, "beta1": 0.8}, lambda p: torch.optim.AdamW(p, 1.0, betas=(0.8, 0.999), weight_decay=0.1)),
    ("rmsprop", {}, lambda p: torch.optim.RMSprop(p, 1.0)),
    ("rmsprop", {"decay": 0.9, "momentum": 0.5, "weight_decay": 0.01},
     lambda p: torch.optim.RMSprop(p, 1.0, alpha=0.9, momentum=0.5, weight_decay=0.01)),
]


@pytest.mark.parametrize("engine", ["numpy", "ort"])
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize(("name", "settings", "make"), OPTIMIZERS, ids=[f"{n}-{'-'.join(s) or 'plain'}" for n, s, _ in OPTIMIZERS])
def test_losses_and_weights_are_those_of_pytorch(model: fg.Model, name: str, settings: dict[str, Any], make: Any, clip: float | None,
                                                 engine: str) -> None:
    if engine == "ort":
        pytest.importorskip("onnxruntime")
    fitted = fg.fit(fg.train_step(model, name, of="loss", clip_norm=clip, **settings), BATCHES, learning_rate=rate, engine=engine)
    losses, weights = trained_by_torch(model, make, clip)
    np.testing.assert_allclose(fitted.losses, losses, rtol=1e-9)
    for weight, array in weights.items():
        np.testing.assert_allclose(fitted.state[weight], array, rtol=1e-7, atol=1e-9)
