"""Rows of the operators that put windows back into an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.op_cases import Case, const, fixed, normal


def _blocks(shape: tuple[int, ...], image: list[int], block: list[int], name: str, **attributes: Any) -> Case:
    return Case("Col2Im", [normal(*shape), const(image, "int64"), const(block, "int64")], attributes, name=name)


INDICES = [[[[5, 7], [13, 15]]]]

CASES: list[Case] = [
    _blocks((2, 10, 5), [5, 5], [1, 5], "rows"),
    _blocks((1, 8, 6), [4, 4], [2, 2], "strides", strides=[2, 1]),
    _blocks((1, 12, 12), [3, 4], [3, 2], "pads", pads=[1, 0, 1, 1]),
    _blocks((2, 4, 9), [5, 5], [2, 2], "dilations", dilations=[2, 2]),
    _blocks((1, 4, 4), [5, 7], [2, 2], "uncovered", strides=[2, 4], dilations=[1, 2]),
    _blocks((1, 16, 4), [3, 2, 3], [2, 2, 2], "3d"),
    _blocks((2, 3, 4), [6], [3], "1d"),
    Case("Col2Im", [normal(0, 4, 4), const([3, 3], "int64"), const([2, 2], "int64")], name="no-images",
         expected=lambda *_: np.zeros((0, 1, 3, 3))),
    Case("Col2Im", [normal(1, 4, 6), fixed([3, 4], "int64"), fixed([2, 2], "int64")], name="run-time", symbolic=False),
    Case("MaxUnpool", [normal(1, 1, 2, 2), const(INDICES, "int64")], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("MaxUnpool", [normal(1, 1, 2, 2), const(INDICES, "int64"), const([1, 1, 5, 6], "int64")],
         {"kernel_shape": [2, 2], "strides": [2, 2]}, name="wanted"),
    Case("MaxUnpool", [normal(2, 2, 3), fixed([[[0, 2, 4], [5, 8, 9]], [[11, 12, 14], [15, 18, 19]]], "int64")],
         {"kernel_shape": [2], "strides": [2], "pads": [0, 1]}, name="pads"),
    Case("MaxUnpool", [normal(1, 1, 2, 2), fixed([[[[4, 4], [4, 0]]]], "int64")], {"kernel_shape": [2, 2]}, name="repeated"),
    Case("MaxUnpool", [normal(1, 1, 2, 2), fixed(INDICES, "int64"), fixed([1, 2, 5, 6], "int64")],
         {"kernel_shape": [2, 2], "strides": [2, 2]}, name="run-time", symbolic=False),
]
