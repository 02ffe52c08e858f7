"""Fine-tuning on NumPy in a process that is killed: what goes on from its checkpoint has the same weights, bit for bit."""

import os
import subprocess
import sys
import tempfile

import numpy as np

import flowgrad as fg

digits, victim = np.load("examples/data/digits.npz"), sys.argv[1:]
checkpoint = victim[0] if victim else os.path.join(tempfile.mkdtemp(), "run.safetensors")

def batches(epoch):
    for number, rows in enumerate(np.random.default_rng(epoch).permutation(1437)[:1408].reshape(22, 64)):
        if victim and (epoch, number) == (1, 15):
            os.kill(os.getpid(), 9)
        yield {"image": (digits["images"][rows, None] / 16).astype(np.float32), "y": digits["labels"][rows]}

step = fg.train_step(fg.with_loss(fg.load("examples/data/cnn.onnx"), "softmax_cross_entropy", target="y"), "adam", frozen="0.*")
killed = victim or subprocess.run([sys.executable, __file__, checkpoint])
resumed, whole = (fg.fit(step, batches, epochs=3, checkpoint=file, every=10).state for file in (checkpoint, None))
print(f"killed with {killed.returncode}; same bits:", all(resumed[n].tobytes() == a.tobytes() for n, a in whole.items()))
