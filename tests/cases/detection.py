"""Rows of what detectors do with boxes, and of decoding images, as far as that needs no further package."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.op_cases import Case, In, const, fixed

BOXES = [[[0.0, 0.0, 1.0, 1.0], [0.0, 0.1, 1.0, 1.1], [0.0, -0.1, 1.0, 0.9], [0.0, 10.0, 1.0, 11.0],
          [1.0, 11.1, 0.0, 10.1], [0.0, 100.0, 1.0, 101.0]]]
SCORES = [[[0.9, 0.75, 0.6, 0.95, 0.5, 0.3], [0.3, 0.3, 0.9, 0.3, 0.2, 0.1]]]


def _boxes(name: str, most: int, overlap: float, score: float | None = 0.4, **attributes: Any) -> Case:
    limits = [const([most], "int64"), const([overlap], "float32"), None if score is None else const([score], "float32")]
    return Case("NonMaxSuppression", [fixed(BOXES, "float32"), fixed(SCORES, "float32"), *limits], attributes, name=name)


def random_boxes(*shape: int) -> In:
    """Boxes by centre, width and height."""
    return In(lambda rng: np.concatenate([rng.uniform(0, 2, (*shape, 2)), rng.uniform(0.2, 1, (*shape, 2))], -1).astype("f4"))


CASES: list[Case] = [
    _boxes("overlap", 3, 0.5),
    _boxes("few", 1, 0.5, None),
    _boxes("touching", 6, 0.0, 0.0),
    Case("NonMaxSuppression", [random_boxes(2, 20), In(lambda rng: rng.random((2, 3, 20)).astype("f4")), fixed([8], "int64"),
                               fixed([0.3], "float32"), fixed([0.1], "float32")], {"center_point_box": 1}, name="random",
         symbolic=False),
    Case("NonMaxSuppression", [fixed(BOXES, "float32"), fixed(SCORES, "float32")], name="nothing-wanted",
         expected=lambda *_, **__: np.zeros((0, 3), np.int64)),
    Case("ImageDecoder", [fixed([], "uint8")], expected=lambda *_: np.zeros((0, 0, 3), np.uint8)),
    Case("ImageDecoder", [fixed([], "uint8")], {"pixel_format": "Grayscale"}, name="gray",
         expected=lambda *_, **__: np.zeros((0, 0, 1), np.uint8)),
]
