"""Rows for the index operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, const, fixed, held, normal


def scattered(data: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none") -> Array:
    """Data with updates, one by one."""
    result = data.copy()
    for place in np.ndindex(indices.shape):
        where: list[Any] = list(place)
        where[axis] = indices[place]
        result[tuple(where)] = updates[place] + (result[tuple(where)] if reduction == "add" else 0)
    return result

CASES: list[Case] = [
    Case("Gather", [normal(5, 3), const([[0, 4], [-1, 0]], "int64")]),
    Case("Gather", [normal(5, 3), fixed([2, -3, 2, 2], "int32")], {"axis": -1}, name="last-run-time"),
    Case("Gather", [normal(5, 3, 2), const(1, "int64")], {"axis": 1}, name="scalar-index"),
    Case("Gather", [normal(5), fixed(-2, "int64")], name="vector-scalar"),
    Case("Gather", [normal(5, 3), const(0 * [1], "int64")], name="no-indices"),
    Case("Gather", [normal(5, 0), const([1, 1], "int64")], name="empty-rows"),
    Case("GatherElements", [normal(3, 4), const([[0, -1, 2, 2], [1, 1, 0, -3]], "int64")]),
    Case("GatherElements", [normal(3, 4), fixed([[3], [-4]], "int32")], {"axis": 1}, reference=False, name="narrow"),
    Case("GatherND", [normal(3, 4, 2), const([[0, 1], [-1, 2], [0, 1]], "int64")]),
    Case("GatherND", [normal(2, 3, 2), fixed([[1], [-1]], "int64")], {"batch_dims": 1}, name="batch", symbolic=False),
    Case("GatherND", [normal(2, 3, 4), fixed([[[[0], [1]]] * 3] * 2, "int64")], {"batch_dims": 2}, name="batch-two"),
    Case("GatherND", [normal(3, 4), fixed([[0, 1], [2, 3]], "int64")], name="elements"),
    *(Case("ScatterElements", [normal(3, 4), const([[0, 1, 2, 0], [1, 2, 0, 2]], "int64"), normal(2, 4)],
           {"reduction": r}, name=r) for r in ("none", "add", "min", "max")),
    Case("ScatterElements", [normal(3, 4), fixed([[-1, 0], [3, -4]], "int64"), normal(2, 2)], {"axis": 1},
         name="run-time", expected=scattered),
    Case("ScatterElements", [normal(3), const([1, 1, -2], "int64"), normal(3)], {"reduction": "add"}, name="repeated",
         expected=scattered),
    Case("ScatterElements", [normal(3), const([1, 1, 1], "int64"), normal(3)], {"reduction": "max"},
         name="repeated-max"),
    Case("ScatterElements", [normal(3), const([1, 1, 2], "int64"), held(normal(3))], {"reduction": "mul"}, name="mul"),
    Case("ScatterElements", [normal(3), const([1, 1, 2], "int64"), normal(3)], {"reduction": "mul"}, name="mul-updates"),
    Case("ScatterElements", [normal(3), const([1, 1, 1], "int64"), fixed([0.5, 0.0, -2.0])], {"reduction": "mul"},
         name="mul-zero"),
    Case("ScatterElements", [fixed([1.0, 0.0]), fixed([1, 1, -2, -1], "int64"), fixed([0.5, 0.0, -2.0, 3.0])],
         {"reduction": "mul"}, name="mul-zeros"),
    Case("ScatterElements", [normal(3, 2), const([[2, 0], [0, 1]], "int64"), normal(2, 2)], {"reduction": "mul"},
         name="mul-apart"),
    Case("ScatterElements", [normal(3), const([1, 1, -2], "int64"), const([5.0, 5.0, 5.0])], name="repeated-constant"),
    Case("ScatterElements", [normal(3), const([1, 1, -2], "int64"), normal(3)], name="replaced", expected=scattered),
    Case("ScatterElements", [normal(2, 3), fixed([[1, 1, 0, 1], [-1, 2, 1, -1]], "int64"), normal(2, 4)], {"axis": -1},
         name="replaced-run-time", expected=lambda x, i, u, **_: scattered(x, i, u, axis=1)),
    *(Case("ScatterND", [normal(4, 3), const([[0], [2]], "int64"), normal(2, 3)], {"reduction": r}, name=r)
      for r in ("none", "add", "min", "max")),
    Case("ScatterND", [normal(4, 3), fixed([[0, 1], [0, 1], [3, 2]], "int64"), normal(3)], {"reduction": "add"},
         name="repeated-run-time"),
    Case("ScatterND", [normal(4, 3), fixed([[[0, 1], [0, -2]], [[3, 2], [0, 1]]], "int64"), normal(2, 2)], name="replaced"),
    Case("ScatterND", [normal(4, 3), fixed([[0], [2], [0]], "int64"), normal(3, 3)], name="replaced-rows"),
    Case("ScatterND", [normal(4, 3), const([[0], [2], [0]], "int64"), normal(3, 3)], name="replaced-constant"),
    Case("ScatterND", [normal(4, 3), const([[1], [1]], "int64"), held(normal(2, 3))], {"reduction": "mul"}, name="mul"),
    Case("ScatterND", [normal(4), const([[1], [1]], "int64"), normal(2)], {"reduction": "mul"}, name="mul-updates"),
    Case("ScatterND", [normal(4, 2), fixed([[1], [3], [1]], "int64"), normal(3, 2)], {"reduction": "mul"}, name="mul-rows"),
    Case("ScatterND", [normal(4), const([[1], [3]], "int64"), normal(2)], {"reduction": "mul"}, name="mul-apart"),
    Case("ScatterND", [normal(4), const(np.zeros((0, 1)), "int64"), normal(0)], name="nothing"),
    Case("OneHot", [const([[0, 2], [-1, 5]], "int64"), const(3, "int64"), normal(2)],
         expected=lambda i, d, v, **_: np.where((i % 3)[..., None] == np.where(i < 3, 0, 9)[..., None] + np.arange(3),
                                                v[1], v[0])),
    Case("OneHot", [fixed([0, 2], "int32"), const([3], "int64"), normal(2)], {"axis": 0}, name="first-axis",
         expected=lambda i, d, v, **_: v[(np.arange(3)[:, None] == i).astype(int)]),
    Case("OneHot", [fixed([2**64 - 1, 0], "uint64"), fixed(2, "int64"), fixed([0.5, 2.0])], name="unsigned"),
    Case("OneHot", [held(fixed([1.0, 0.0])), fixed(2, "int64"), fixed([0.5, 2.0])], name="float-indices"),
    Case("NonZero", [fixed([[1.0, 0.0], [2.0, 3.0]])]),
    Case("NonZero", [fixed([False, False])], name="nothing"),
    Case("NonZero", [fixed([[np.nan, -0.0], [0.0, -1.0]], "float32")], name="float32"),
    Case("NonZero", [fixed([[np.nan, -0.0], [5e-324, -1.0]])], name="odd-numbers"),
    Case("NonZero", [fixed(3.0)], name="scalar", reference=False),
    Case("Compress", [normal(3, 4), fixed([True, False, True])], {"axis": 0}),
    Case("Compress", [normal(3, 4), fixed([False, True])], {"axis": -1}, name="short"),
    Case("Compress", [normal(3, 2), fixed([False, True, False, True, True])], name="flat"),
    Case("Compress", [normal(3, 2), const([False, False, False])], {"axis": 0}, name="nothing"),
    Case("Unique", [fixed([2.0, 1.0, 1.0, 3.0, 4.0, 3.0])], outputs=4, smooth=False, note="equal elements would part"),
    Case("Unique", [fixed([2.0, 1.0, 1.0, 3.0, 4.0, 3.0])], {"sorted": 0}, outputs=4, name="unsorted", smooth=False),
    Case("Unique", [normal(2, 3)], outputs=["y"], name="flat"),
    Case("Unique", [normal(2, 3)], {"sorted": 0}, outputs=["y", "", "place"], name="flat-unsorted",
         expected=lambda x, sorted: (x.reshape(-1), np.arange(6))),
    Case("Unique", [normal(2, 4, 2)], {"axis": -2}, outputs=4, name="slices"),
    Case("Unique", [normal(3, 2)], {"axis": 1, "sorted": 0}, outputs=4, name="slices-unsorted",
         expected=lambda x, axis, sorted: (x, np.arange(2), np.arange(2), np.ones(2, np.int64))),
    Case("Unique", [normal()], outputs=4, name="scalar"),
    Case("Unique", [normal(0)], outputs=4, name="nothing"),
    Case("Unique", [fixed([[1, 0, 0], [1, 0, 0], [2, 3, 4]], "int64")], {"axis": 0}, outputs=4, name="rows"),
]
