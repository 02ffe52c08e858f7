"""Rows for the convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, const, normal


def _transposed(
    x: Array, w: Array, bias: Array | None = None, *, made: Sequence[int], begin: Sequence[int],
    strides: Sequence[int] = (1, 1), dilations: Sequence[int] = (1, 1), group: int = 1, **_: Any,
) -> Array:
    """Scatter every input element over its window: onnx.reference does not know groups."""
    per_group = w.shape[1]
    y = np.zeros((x.shape[0], per_group * group, *made))
    for n, c, i, j in np.ndindex(*x.shape):
        for m, k, h in np.ndindex(*w.shape[1:]):
            row, column = i * strides[0] + k * dilations[0] - begin[0], j * strides[1] + h * dilations[1] - begin[1]
            if 0 <= row < made[0] and 0 <= column < made[1]:
                y[n, c // (x.shape[1] // group) * per_group + m, row, column] += x[n, c, i, j] * w[c, m, k, h]
    return y if bias is None else y + bias[:, None, None]


def _made(made: Sequence[int], begin: Sequence[int]) -> Any:
    return lambda *arrays, **attributes: _transposed(*arrays, made=made, begin=begin, **attributes)


CASES: list[Case] = [
    Case("Conv", [normal(2, 3, 5, 6), normal(4, 3, 3, 3)]),
    Case("Conv", [normal(2, 3, 5, 6), normal(4, 3, 3, 2), normal(4)], dict(pads=[1, 0, 1, 2]), name="bias-pads"),
    Case("Conv", [normal(2, 4, 7, 6), normal(6, 2, 3, 3), normal(6)],
         dict(group=2, strides=[2, 3], dilations=[2, 1], pads=[1, 2, 2, 1]), name="group"),
    Case("Conv", [normal(2, 3, 6, 5), normal(6, 1, 3, 3)], dict(group=3, pads=[1, 1, 1, 1]), name="depthwise"),
    Case("Conv", [normal(2, 3, 6, 5), normal(3, 1, 2, 3), normal(3)], dict(group=3, strides=[2, 2]), name="depthwise-strided"),
    Case("Conv", [normal(2, 3, 4, 5), normal(4, 3, 1, 1), normal(4)], name="pointwise"),
    Case("Conv", [normal(2, 4, 4, 5), normal(4, 2, 1, 1)], dict(group=2, strides=[2, 1]), name="pointwise-strided"),
    Case("Conv", [normal(2, 2, 6), normal(3, 2, 3)], dict(strides=[2], auto_pad="SAME_UPPER"), name="line-same-upper"),
    Case("Conv", [normal(1, 2, 6, 5), normal(3, 2, 3, 2)], dict(strides=[2, 3], auto_pad="SAME_LOWER"), name="same-lower"),
    Case("Conv", [normal(1, 2, 4, 5), normal(3, 2, 2, 2)], dict(auto_pad="SAME_LOWER"), name="same-stride-1"),
    Case("Conv", [normal(1, 2, 6, 5), normal(3, 2, 3, 2)], dict(strides=[2, 3], dilations=[2, 2], auto_pad="SAME_UPPER"),
         name="same-dilated"),
    Case("Conv", [normal(1, 2, 4, 5), normal(3, 2, 2, 2)], dict(auto_pad="VALID", pads=[0, 0, 0, 0]), name="valid"),
    Case("Conv", [normal(1, 2, 4, 3, 4), normal(2, 2, 2, 3, 2)], dict(strides=[1, 2, 2], pads=[0, 1, 1, 1, 1, 0]), name="volume"),
    Case("Conv", [normal(0, 2, 4, 5), normal(3, 2, 2, 2)], name="no-images", smooth=False, note="nothing to differ"),
    Case("ConvInputGrad", [normal(2, 4, 3, 2), normal(4, 3, 3, 3), const([2, 3, 6, 6])],
         dict(strides=[2, 3], pads=[1, 0, 0, 1]), outputs=["x_bar"], reference=False),
    Case("ConvWeightGrad", [normal(2, 4, 6, 6), normal(2, 6, 3, 2), const([6, 2, 3, 3])],
         dict(strides=[2, 3], pads=[1, 0, 0, 1], group=2), outputs=["w_bar"], reference=False),
    Case("ConvTranspose", [normal(2, 3, 4, 3), normal(3, 2, 3, 2), normal(2)],
         expected=_made((6, 4), (0, 0))),
    Case("ConvTranspose", [normal(2, 4, 3, 3), normal(4, 2, 3, 3), normal(4)],
         dict(group=2, strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 2]), name="group",
         expected=_made((7, 10), (1, 0))),
    Case("ConvTranspose", [normal(1, 2, 3, 3), normal(2, 2, 2, 3)], dict(dilations=[2, 1], strides=[1, 2], pads=[0, 1, 1, 0]),
         name="dilated", expected=_made((4, 6), (0, 1))),
    Case("ConvTranspose", [normal(1, 2, 3, 3), normal(2, 2, 3, 3)], dict(strides=[2, 2], auto_pad="SAME_UPPER"),
         name="same-upper", expected=_made((6, 6), (0, 0))),
    Case("ConvTranspose", [normal(1, 2, 3, 3), normal(2, 2, 4, 3)], dict(strides=[2, 2], auto_pad="SAME_LOWER"),
         name="same-lower", expected=_made((6, 6), (1, 1))),
    Case("ConvTranspose", [normal(1, 2, 3, 3), normal(2, 1, 3, 3)], dict(strides=[3, 2], output_shape=[10, 8]),
         name="output-shape", expected=_made((10, 8), (0, 0))),
    Case("ConvTranspose", [normal(1, 2, 3, 3), normal(2, 1, 3, 3)], dict(strides=[2, 2], output_shape=[6, 5], auto_pad="SAME_UPPER"),
         name="output-shape-cut", expected=_made((6, 5), (0, 1))),
    Case("ConvTranspose", [normal(1, 2, 3), normal(2, 2, 3)], dict(dilations=[3], output_padding=[2]), name="wide-padding",
         reference=False),
    Case("ConvTranspose", [normal(1, 2, 2, 3, 2), normal(2, 1, 2, 2, 3)], dict(strides=[2, 1, 1], pads=[0, 1, 0, 1, 0, 1]),
         name="volume"),
]
