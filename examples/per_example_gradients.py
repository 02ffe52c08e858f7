"""One gradient for each example of a batch, in one pass: norms for clipping, influence, noise scales."""

import numpy as np

import flowgrad as fg

model = fg.load("tests/data/mlp.onnx")
each = fg.vmap(fg.grad(fg.unbatch(model), of="loss", wrt="params"))
rng = np.random.default_rng(0)
x, target = rng.standard_normal((64, 4), np.float32), rng.integers(0, 3, 64)
gradients = each(x=x, target=target)
norms = np.sqrt(sum((g.reshape(64, -1) ** 2).sum(1) for g in gradients.values()))
mean = fg.grad(model, of="loss", wrt="params")(x=x, target=target)
print(f"norms from {norms.min():.2f} to {norms.max():.2f};",
      "their mean is the gradient of the batch:", all(np.allclose(gradients[n].mean(0), mean[n], atol=1e-6) for n in mean))
