"""Fine-tuning the head of an ONNX classifier with nothing but onnxruntime: one file holds loss, gradients and update."""

import numpy as np
import onnxruntime

import flowgrad as fg

model = fg.load("tests/data/mlp.onnx")
step = fg.train_step(model, "adamw", of="loss", frozen=["w1", "b1"], learning_rate=0.05)
file = step.to_onnx().SerializeToString()             # or step.to_onnx("step.onnx")

options = onnxruntime.SessionOptions()
options.log_severity_level = 3  # weights are inputs that have a value: that is meant
session = onnxruntime.InferenceSession(file, options)
names, following, state = [o.name for o in session.get_outputs()], fg.next_inputs(step), {}
rng = np.random.default_rng(0)
for number in range(200):
    x = rng.standard_normal((32, 4), np.float32)
    result = dict(zip(names, session.run(None, {"x": x, "target": (x[:, 0] > 0).astype(np.int64), **state}), strict=True))
    state = {following[name]: array for name, array in result.items() if name in following}
    if number % 50 == 0 or number == 199:
        print(f"step {number}: loss {result['loss']:.3f}")
