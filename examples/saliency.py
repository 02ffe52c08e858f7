"""Where a ResNet-18 looks: saliency and integrated gradients of a file that PyTorch exported, written as a picture."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import flowgrad as fg

model = fg.load("examples/data/resnet18.onnx")  # trained on digits of 8 x 8 pixels, image: float32[batch,1,32,32]
digits = np.load("examples/data/digits.npz")["images"][-8:, None]
images = (digits / 16).astype(np.float32).repeat(4, 2).repeat(4, 3)
classes = model(image=images)["logits"].argmax(1)

saliency = fg.explain.Saliency(model).attribute(images, classes)
method = fg.explain.IntegratedGradients(model)
shares = method.attribute(images, classes, n_steps=64)
print("largest gap of the shares to the score:", np.abs(method.convergence_delta(shares, images, classes)).max().round(2))

rows = [np.hstack([np.abs(a[0]) / np.abs(a).max() for a in row]) for row in (images, saliency, shares)]
picture = Path(tempfile.gettempdir(), "saliency.png")
Image.fromarray((255 * np.vstack(rows)).astype(np.uint8)).resize((8 * 96, 3 * 96), Image.Resampling.NEAREST).save(picture)
print(f"wrote {picture}: {len(images)} digits taken for {classes.tolist()}, where the score changes, what it is made of")
