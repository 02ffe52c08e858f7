"""How far inputs must move to change the class: projected gradient descent in growing balls."""

import numpy as np

import flowgrad as fg

model = fg.extract(fg.load("tests/data/mlp.onnx"), outputs="logits")
x = np.random.default_rng(0).standard_normal((64, 4), np.float32)
labels = model(x=x)["logits"].argmax(1)

for eps in (0.02, 0.1, 0.3, 1.0):
    attack = fg.attack.PGD(model, eps=eps, step_size=eps / 4, steps=10, restarts=2, bounds=None)
    moved = attack(x, labels)
    print(f"within {eps:4}: {attack.success(moved, labels).mean():.0%} of {len(x)} examples change their class")
