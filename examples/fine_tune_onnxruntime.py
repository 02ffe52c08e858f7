"""A new head on a trained network by nothing but onnxruntime: loss, gradients and update of the weights are one file."""

import numpy as np
import onnxruntime

import flowgrad as fg

head = {"fc.weight": np.float32(np.random.default_rng(0).standard_normal((2, 32)) / 8), "fc.bias": np.zeros(2, np.float32)}
odd = fg.load("examples/data/resnet18.onnx").with_params(head)
step = fg.train_step(fg.with_loss(odd, "softmax_cross_entropy", target="odd"), "adamw", wrt=["fc.*"], learning_rate=0.01)
following, state = fg.next_inputs(step), {}

options = onnxruntime.SessionOptions()
options.log_severity_level = 3  # weights are inputs that have a value: that is meant
session = onnxruntime.InferenceSession(step.to_onnx().SerializeToString(), options)
names, digits = [o.name for o in session.get_outputs()], np.load("examples/data/digits.npz")
pytorch = np.load("examples/data/head_losses.npy")  # what PyTorch's AdamW makes of the same batches
gap = 0.0
for number in range(200):
    rows = np.arange(32 * number, 32 * number + 32) % 1437
    image = (digits["images"][rows, None] / 16).astype(np.float32).repeat(4, 2).repeat(4, 3)
    result = dict(zip(names, session.run(None, {"image": image, "odd": digits["labels"][rows] % 2, **state}), strict=True))
    state, gap = {following[n]: a for n, a in result.items() if n in following}, max(gap, abs(result["loss"] - pytorch[number]))
print(f"step 199: loss {result['loss']:.3f}, at most {gap:.0e} from PyTorch's curve")
