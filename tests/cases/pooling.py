"""Rows for the pooling operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, away, const, distinct, fixed, normal


def _windows(x: Array, made: Sequence[int], kernel: Sequence[int], strides: Sequence[int], begin: Sequence[int]) -> Any:
    """Yield output position and input positions, window by window, over an image of rank 1 or 2."""
    for at in np.ndindex(*x.shape[:2], *made):
        places = [at[:2] + tuple(o * s - p + k for o, s, p, k in zip(at[2:], strides, begin, tap, strict=True))
                  for tap in np.ndindex(*kernel)]
        yield at, [p for p in places if all(0 <= i < n for i, n in zip(p[2:], x.shape[2:], strict=True))]


def _maxima(made: Sequence[int], begin: Sequence[int]) -> Any:
    """MaxPool with column-major indices: onnx.reference counts them in another way, and rounds SAME_LOWER down."""

    def pool(x: Array, *, kernel_shape: Sequence[int], strides: Sequence[int] | None = None, **_: Any) -> tuple[Array, Array]:
        y, indices = np.empty((*x.shape[:2], *made)), np.empty((*x.shape[:2], *made), np.int64)
        size = int(np.prod(x.shape[2:]))
        for at, places in _windows(x, made, kernel_shape, strides or [1] * len(made), begin):
            best = max(places, key=lambda p: float(x[p]))
            steps = np.cumprod([1, *x.shape[2:-1]])
            y[at] = x[best]
            indices[at] = (best[0] * x.shape[1] + best[1]) * size + int(np.dot(best[2:], steps))
        return y, indices

    return pool


def _means(made: Sequence[int], begin: Sequence[int]) -> Any:
    """AveragePool without pads counted: onnx.reference is wrong where ceil_mode cuts the last window."""

    def pool(x: Array, *, kernel_shape: Sequence[int], strides: Sequence[int], **_: Any) -> Array:
        y = np.empty((*x.shape[:2], *made))
        for at, places in _windows(x, made, kernel_shape, strides, begin):
            y[at] = np.mean([x[p] for p in places])
        return y

    return pool

def _norms(made: Sequence[int], begin: Sequence[int]) -> Any:
    """LpPool with dilations: onnx.reference counts what ceil_mode adds beyond the image."""

    def pool(x: Array, *, kernel_shape: Sequence[int], strides: Sequence[int], dilations: Sequence[int], p: int, **_: Any) -> Array:
        y = np.empty((*x.shape[:2], *made))
        spread = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
        for at, _places in _windows(x, made, spread, strides, begin):
            taps = [at[2] * strides[0] - begin[0] + k * dilations[0] for k in range(kernel_shape[0])]
            y[at] = sum(abs(x[*at[:2], t]) ** p for t in taps if 0 <= t < x.shape[2]) ** (1 / p)
        return y

    return pool


CASES: list[Case] = [
    Case("MaxPool", [distinct(2, 3, 6, 5)], dict(kernel_shape=[2, 3], strides=[2, 1])),
    Case("MaxPool", [distinct(2, 2, 6, 5)], dict(kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]), outputs=2, name="indices"),
    Case("MaxPool", [distinct(1, 2, 7, 6)], dict(kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1, dilations=[2, 1]),
         name="ceil-dilated"),
    Case("MaxPool", [distinct(1, 2, 5, 6)], dict(kernel_shape=[2, 2], storage_order=1), outputs=2, name="column-major",
         expected=_maxima((4, 5), (0, 0))),
    Case("MaxPool", [distinct(1, 2, 6)], dict(kernel_shape=[3], strides=[2], auto_pad="SAME_UPPER"), name="line-same"),
    Case("MaxPool", [distinct(1, 2, 5)], dict(kernel_shape=[2], dilations=[2], auto_pad="SAME_UPPER"), name="same-dilated"),
    Case("MaxPool", [distinct(1, 2, 5)], dict(kernel_shape=[2], strides=[2], auto_pad="SAME_LOWER"), name="same-lower",
         expected=_maxima((3,), (1,))),
    Case("MaxPool", [distinct(1, 1, 4, 3, 4)], dict(kernel_shape=[2, 2, 2]), name="volume"),
    Case("MaxPool", [fixed([[[1, 3, 3, 0]]], "uint8")], dict(kernel_shape=[2]), name="bytes"),
    Case("MaxPool", [fixed([[[2.0, 2.0, 1.0, 2.0]]])], dict(kernel_shape=[2]), outputs=2, name="ties", smooth=False,
         note="a tie is a kink; the first index wins"),
    Case("MaxPoolGrad", [normal(2, 1, 2), const([[[0, 2]], [[5, 5]]]), const([2, 1, 3])], outputs=["x_bar"], reference=False),
    Case("AveragePool", [normal(2, 3, 6, 5)], dict(kernel_shape=[2, 3], strides=[2, 1], pads=[1, 1, 0, 1])),
    Case("AveragePool", [normal(1, 2, 6, 5)], dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
         name="include-pad"),
    Case("AveragePool", [normal(1, 2, 7, 6)], dict(kernel_shape=[3, 2], strides=[3, 3], ceil_mode=1), name="ceil",
         expected=_means((3, 2), (0, 0))),
    Case("AveragePool", [normal(1, 2, 7)], dict(kernel_shape=[3], strides=[3], ceil_mode=1, pads=[1, 1], count_include_pad=1),
         name="ceil-include-pad", reference=False),
    Case("AveragePool", [normal(1, 2, 7, 6)], dict(kernel_shape=[3, 2], dilations=[2, 2]), name="dilated"),
    Case("AveragePool", [normal(1, 2, 6, 5)], dict(kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_LOWER"), name="same-lower"),
    Case("AveragePool", [normal(1, 2, 4)], dict(kernel_shape=[1], strides=[3], auto_pad="SAME_LOWER"), name="same-strides-beyond"),
    Case("AveragePool", [normal(1, 2, 4, 3, 4)], dict(kernel_shape=[2, 2, 2]), name="volume"),
    Case("AveragePoolGrad", [normal(1, 2, 3, 2), const([1, 2, 6, 5])],
         dict(kernel_shape=[2, 3], strides=[2, 2], pads=[0, 0, 0, 0]), outputs=["x_bar"], reference=False),
    Case("GlobalAveragePool", [normal(2, 3, 4, 5)]),
    Case("GlobalAveragePool", [normal(2, 3, 4)], name="line"),
    Case("GlobalMaxPool", [distinct(2, 3, 4, 5)]),
    Case("LpPool", [normal(2, 2, 5, 4)], dict(kernel_shape=[2, 3], strides=[2, 1])),
    Case("LpPool", [away(1, 2, 6)], dict(kernel_shape=[2], p=3, dilations=[2], ceil_mode=1, strides=[2]), name="third",
         expected=_norms((3,), (0,))),
    Case("LpPool", [away(1, 2, 6)], dict(kernel_shape=[3], p=1, auto_pad="SAME_UPPER", strides=[2]), name="first"),
    Case("LpPool", [fixed([[[0.0, 0.0, 3.0, 4.0]]])], dict(kernel_shape=[2], strides=[2]), name="zeros", smooth=False,
         note="a norm has a kink at zero"),
    Case("GlobalLpPool", [normal(2, 3, 4, 5)], expected=lambda x, **_: np.sqrt((x**2).sum((2, 3), keepdims=True))),
    Case("GlobalLpPool", [away(2, 3, 4)], dict(p=3), name="third",
         expected=lambda x, **_: np.cbrt((np.abs(x) ** 3).sum(2, keepdims=True))),
]
