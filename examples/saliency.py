"""Which inputs decide the class: saliency and integrated gradients of an ONNX classifier."""

import numpy as np

import flowgrad as fg

model = fg.extract(fg.load("tests/data/mlp.onnx"), outputs="logits")
x = np.random.default_rng(0).standard_normal((5, 4), np.float32)
classes = model(x=x)["logits"].argmax(1)

saliency = fg.explain.Saliency(model).attribute(x, classes)
method = fg.explain.IntegratedGradients(model)
attributions = method.attribute(x, classes, n_steps=64)

for row, label in enumerate(classes):
    print(f"example {row}, class {label}: input {saliency[row].argmax()} moves the score most,",
          "shares", np.round(attributions[row].astype(float), 2).tolist())
print("largest gap of the shares to the score:", np.abs(method.convergence_delta(attributions, x, classes)).max().round(5))
