"""Rows for the pooling operators."""

from __future__ import annotations

from tests.op_cases import Case, const, distinct, fixed, normal

CASES: list[Case] = [
    Case("MaxPool", [distinct(2, 3, 6, 5)], dict(kernel_shape=[2, 3], strides=[2, 1])),
    Case("MaxPool", [distinct(2, 2, 6, 5)], dict(kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]), outputs=2, name="indices"),
    Case("MaxPool", [distinct(1, 2, 7, 6)], dict(kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1, dilations=[2, 1]),
         name="ceil-dilated"),
    Case("MaxPool", [distinct(1, 2, 5, 6)], dict(kernel_shape=[2, 2], storage_order=1), outputs=2, name="column-major"),
    Case("MaxPool", [distinct(1, 2, 6)], dict(kernel_shape=[3], strides=[2], auto_pad="SAME_UPPER"), name="line-same"),
    Case("MaxPool", [distinct(1, 2, 5)], dict(kernel_shape=[2], strides=[2], auto_pad="SAME_LOWER"), name="same-lower"),
    Case("MaxPool", [distinct(1, 1, 4, 3, 4)], dict(kernel_shape=[2, 2, 2]), name="volume"),
    Case("MaxPool", [fixed([[[1, 3, 3, 0]]], "uint8")], dict(kernel_shape=[2]), name="bytes"),
    Case("MaxPool", [fixed([[[2.0, 2.0, 1.0, 2.0]]])], dict(kernel_shape=[2]), outputs=2, name="ties", smooth=False,
         note="a tie is a kink; the first index wins"),
    Case("MaxPoolGrad", [normal(2, 1, 2), const([[[0, 2]], [[5, 5]]]), const([2, 1, 3])], reference=False),
    Case("AveragePool", [normal(2, 3, 6, 5)], dict(kernel_shape=[2, 3], strides=[2, 1], pads=[1, 1, 0, 1])),
    Case("AveragePool", [normal(1, 2, 6, 5)], dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
         name="include-pad"),
    Case("AveragePool", [normal(1, 2, 7, 6)], dict(kernel_shape=[3, 2], strides=[3, 3], ceil_mode=1), name="ceil"),
    Case("AveragePool", [normal(1, 2, 7)], dict(kernel_shape=[3], strides=[3], ceil_mode=1, pads=[1, 1], count_include_pad=1),
         name="ceil-include-pad", reference=False),
    Case("AveragePool", [normal(1, 2, 7, 6)], dict(kernel_shape=[3, 2], dilations=[2, 2]), name="dilated"),
    Case("AveragePool", [normal(1, 2, 6, 5)], dict(kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_LOWER"), name="same-lower"),
    Case("AveragePool", [normal(1, 2, 4, 3, 4)], dict(kernel_shape=[2, 2, 2]), name="volume"),
    Case("AveragePoolGrad", [normal(1, 2, 3, 2), const([1, 2, 6, 5])],
         dict(kernel_shape=[2, 3], strides=[2, 2], pads=[0, 0, 0, 0]), reference=False),
    Case("GlobalAveragePool", [normal(2, 3, 4, 5)]),
    Case("GlobalAveragePool", [normal(2, 3, 4)], name="line"),
    Case("GlobalMaxPool", [distinct(2, 3, 4, 5)]),
]
