"""Projected gradient descent against a small network of digits, beside torchattacks where that is installed."""

import time
from importlib.util import find_spec

import numpy as np

import flowgrad as fg

model = fg.load("examples/data/cnn.onnx")  # two convolutions, trained on digits of 8 x 8 pixels
digits = np.load("examples/data/digits.npz")
x, labels = (digits["images"][-256:, None] / 16).astype(np.float32), digits["labels"][-256:]
attacks = {engine: fg.attack.PGD(model, 0.1, 0.02, 10, engine=engine) for engine in ("numpy", "ort")}
if find_spec("torchattacks"):
    import torchattacks
    from torch import nn, tensor
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
                        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    net.load_state_dict({name: tensor(array) for name, array in model.state_dict().items()})
    attacks["torch"] = lambda x, labels: torchattacks.PGD(net, 0.1, 0.02, 10)(tensor(x), tensor(labels)).numpy()
for name, attack in attacks.items():
    warm, started, moved = attack(x, labels), time.perf_counter(), attack(x, labels)
    seconds, taken = time.perf_counter() - started, model(image=moved)["logits"].argmax(1) != labels
    print(f"{name}: {taken.mean():.0%} of {len(x)} taken for another digit, {seconds:.3f} s")
