"""The gradient of a network in the runtime of browsers: what is written here is run by onnxruntime_web.mjs, in Node."""

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import flowgrad as fg

model = fg.with_loss(fg.load("examples/data/cnn.onnx"), "softmax_cross_entropy", target="label")
gradient = fg.value_and_grad(model, of="loss", wrt="image")
file = Path(tempfile.mkdtemp(), "gradient.onnx")
gradient.to_onnx(file)

image = (np.load("examples/data/digits.npz")["images"][:1, None] / 16).astype(np.float32)
script, digit = Path(__file__).with_suffix(".mjs"), json.dumps({"image": image.ravel().tolist(), "label": 4})
theirs = json.loads(subprocess.run(["node", script, file], input=digit, stdout=subprocess.PIPE, text=True, check=True).stdout)
ours = gradient(image=image, label=[4])
gap = np.abs(ours["image_grad"].ravel() - theirs["image_grad"]).max() / np.abs(ours["image_grad"]).max()
print(f"loss {theirs['loss']:.3f} in onnxruntime-web, {ours['loss']:.3f} here; gradients differ by {gap:.0e}")
