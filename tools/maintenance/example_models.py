"""``python -m flowgrad.tools.maintenance.example_models``: train and export the models in examples/data, by PyTorch.

Needs torch, timm and scikit-learn. What it writes is kept in the repository, so that examples need none of these.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "data"
TRAINED_ON = 1437
"""The first so many of the digits, in the order of the file; the other 360 test."""

SCALE = 4
"""Each pixel of a digit is so many pixels of an image for the ResNet."""

HEAD_STEPS, HEAD_BATCH, HEAD_RATE = 200, 32, 0.01


def main() -> int:
    """Write digits.npz, cnn.onnx, resnet18.onnx and the curve of a new head in head_losses.npy."""
    import timm
    import torch

    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    images, labels = _digits()
    np.savez_compressed(FOLDER / "digits.npz", images=images, labels=labels)
    small = (images / 16).astype(np.float32)[:, None]
    large = small.repeat(SCALE, 2).repeat(SCALE, 3)
    nn = torch.nn
    cnn = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
                        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    resnet = timm.create_model("resnet18", num_classes=10, in_chans=1, channels=(4, 8, 16, 32))
    for net, x, name in ((cnn, small, "cnn"), (resnet, large, "resnet18")):
        _train(net, x, labels, epochs=12)
        right = float((net(torch.from_numpy(x[TRAINED_ON:])).argmax(1).numpy() == labels[TRAINED_ON:]).mean())
        print(f"{name}: {sum(p.numel() for p in net.parameters())} weights, {right:.1%} of the test digits are right")
        _export(net, x[:2], FOLDER / f"{name}.onnx")
    np.save(FOLDER / "head_losses.npy", _head_losses(resnet, large, labels))
    return 0


def _digits() -> tuple[Array, Array]:
    """Return the digits of scikit-learn (UCI's handwritten digits), mixed: uint8[1797,8,8], int64[1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return digits.images[order].astype(np.uint8), digits.target[order].astype(np.int64)


def _train(net: Any, x: Array, labels: Array, epochs: int) -> None:
    import torch

    xs, ys = torch.from_numpy(x[:TRAINED_ON]), torch.from_numpy(labels[:TRAINED_ON])
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * -(-TRAINED_ON // 64))
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(TRAINED_ON).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(xs[rows]), ys[rows]).backward()
            optimizer.step()
            schedule.step()
    net.eval()


def _export(net: Any, x: Array, path: Path) -> None:
    """Write the model for any batch, without the names and paths of where it was made."""
    import onnx
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.from_numpy(x),), str(path), input_names=["image"], output_names=["logits"], dynamo=True,
                          dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False)
    made = onnx.load(path)
    for item in (made, made.graph, *made.graph.node, *made.graph.value_info, *made.graph.input, *made.graph.output,
                 *made.graph.initializer):
        item.ClearField("metadata_props")
    onnx.save(made, path)


def _head_losses(resnet: Any, x: Array, labels: Array) -> Array:
    """Return the losses of a new head, which tells odd digits from even ones, over its first steps in PyTorch."""
    import torch

    with torch.no_grad():
        features = resnet.forward_head(resnet.forward_features(torch.from_numpy(x[:TRAINED_ON])), pre_logits=True)
    head = torch.nn.Linear(features.shape[1], 2)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(np.random.default_rng(0).standard_normal((2, features.shape[1])) / 8))
        head.bias.zero_()
    optimizer = torch.optim.AdamW(head.parameters(), lr=HEAD_RATE)
    found = []
    for step in range(HEAD_STEPS):
        rows = np.arange(HEAD_BATCH * step, HEAD_BATCH * (step + 1)) % TRAINED_ON
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(features[rows]), torch.from_numpy(labels[rows] % 2))
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return np.array(found, np.float32)


if __name__ == "__main__":
    raise SystemExit(main())
