"""Rows of the operators that read regions of images."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, const, distinct, fixed, held, normal

CORNERS = [[0.3, 0.4, 8.2, 9.1], [-3.3, 1.2, 7.1, 14.9], [2.1, 2.2, 2.9, 2.7], [5.2, 5.1, 3.3, 9.2], [7.0, 7.3, 30.1, 31.7]]
IMAGES = [0, 1, 1, 0, 1]
BINS = {"output_height": 2, "output_width": 3, "spatial_scale": 0.5}


def maxima(x: Array, rois: Array, *, pooled_shape: tuple[int, int], spatial_scale: float = 1.0) -> Array:
    """Bin by bin, as Caffe and onnxruntime do."""
    y = np.zeros((len(rois), x.shape[1], *pooled_shape), x.dtype)
    for r, (image, *corners) in enumerate(rois):
        left, top, right, bottom = (int(np.sign(c) * np.floor(abs(c) * spatial_scale + 0.5)) for c in corners)
        high, wide = max(bottom - top + 1, 1) / pooled_shape[0], max(right - left + 1, 1) / pooled_shape[1]
        for i, j in np.ndindex(*pooled_shape):
            rows = [h for h in range(x.shape[2]) if top + np.floor(i * high) <= h < top + np.ceil((i + 1) * high)]
            columns = [w for w in range(x.shape[3]) if left + np.floor(j * wide) <= w < left + np.ceil((j + 1) * wide)]
            if rows and columns:
                y[r, :, i, j] = x[int(image)][:, rows][:, :, columns].max((1, 2))
    return y


def _align(name: str, **attributes: Any) -> Case:
    return Case("RoiAlign", [normal(2, 2, 6, 5), fixed(CORNERS), const(IMAGES, "int64")], {**BINS, **attributes}, name=name)


CASES: list[Case] = [
    *(_align(f"{mode}-{shift}-{ratio}", mode=mode, coordinate_transformation_mode=shift, sampling_ratio=ratio)
      for mode, shift, ratio in itertools.product(("avg", "max"), ("half_pixel", "output_half_pixel"), (0, 2))),
    Case("RoiAlign", [normal(1, 0, 6, 5), fixed(CORNERS[:1]), fixed([0], "int64")], name="no-channels"),
    Case("RoiAlign", [normal(1, 2, 6, 5), held(fixed(np.zeros((0, 4)))), fixed([], "int64")], name="no-regions"),
    *(Case("MaxRoiPool", [distinct(2, 2, 8, 7), held(fixed(rois))], {"pooled_shape": (3, 2), "spatial_scale": scale},
           name=f"{name}-{scale}", expected=maxima)
      for name, rois in (("regions", [[0, 1, 1, 5, 6], [1, 0, 0, 13, 14.5], [1, -3.5, 2, 3, 2], [0, 6, 6, 20, 20.0]]),
                         ("beyond", [[0, 30, 30, 40, 40], [0, 6.4, 2, 6.4, 1.0]]), ("none", np.zeros((0, 5))))
      for scale in (1.0, 0.5)),
]
