"""``python -m flowgrad.tools.maintenance.page_data``: write anew the model and the pictures that the pages share.

The model is what docs/train.md trains. Its weights, and so the numbers on other pages, come out otherwise on another machine:
run ``pages`` afterwards and read the diff.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.tools.maintenance.pages import ROOT, run, text_of

FOLDER = ROOT / "docs" / "data"
COUNT, SEED = 64, 7


def main() -> int:
    """Train, and write ``shapes.onnx`` and ``shapes.npz`` (images in 0..255, labels)."""
    namespace: dict[str, Any] = {"__name__": "page"}
    with tempfile.TemporaryDirectory() as folder:
        run(text_of("docs/train.md"), namespace, folder)
        FOLDER.mkdir(exist_ok=True)
        shutil.copy(Path(folder) / "shapes.onnx", FOLDER / "shapes.onnx")
    images, labels = namespace["pictures"](COUNT, SEED)
    np.savez_compressed(FOLDER / "shapes.npz", images=np.round(images * 255).astype(np.uint8), labels=labels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
