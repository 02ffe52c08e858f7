"""A training run that is killed and goes on to the very same weights."""

import tempfile
from pathlib import Path

import numpy as np

import flowgrad as fg


def batches(epoch):
    rng = np.random.default_rng(epoch)
    for _ in range(20):
        x = rng.standard_normal((32, 4), np.float32)
        yield {"x": x, "target": (x[:, 0] > 0).astype(np.int64)}


step = fg.train_step(fg.load("tests/data/mlp.onnx"), "adam", of="loss", learning_rate=0.02)
whole = fg.fit(step, batches, epochs=3)
file = Path(tempfile.mkdtemp()) / "run.safetensors"
fg.fit(step, batches, epochs=1, checkpoint=file)          # as if the process had ended here
resumed = fg.fit(step, batches, epochs=3, checkpoint=file)
same = all(resumed.state[name].tobytes() == array.tobytes() for name, array in whole.state.items())
print(f"loss {whole.losses[0]:.3f} -> {whole.losses[-1]:.3f}; the resumed run has the same bits: {same}")
