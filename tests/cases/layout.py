"""Rows for the operators that rearrange elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.op_cases import Case, const, fixed, held, normal


def ints(*numbers: int, run_time: bool = False) -> Any:
    """An int64 vector, constant or fed."""
    return (fixed if run_time else const)(list(numbers), "int64")


CASES: list[Case] = [
    Case("Tile", [normal(2, 3), ints(2, 3)]),
    Case("Tile", [normal(2, 3), ints(1, 2, run_time=True)], name="run-time"),
    Case("Tile", [normal(2, 3), ints(2, 0)], name="zero"),
    Case("Tile", [normal(0, 3), ints(2, 2)], name="empty"),
    Case("Tile", [normal(), const([], "int64")], name="scalar"),
    Case("Pad", [normal(3, 4), ints(1, 0, 2, 3)]),
    Case("Pad", [normal(3, 4), ints(1, -1, -1, 2), normal()], name="negative", reference=False),
    *(Case("Pad", [normal(2, 3), ints(*pads), normal()], expected=lambda x, pads, number: np.full((1, 3), number),
           name=f"{name}-takes-all", reference=False) for name, pads in (("start", (-3, 0, 2, 0)), ("end", (2, 0, -3, 0)))),
    Case("Pad", [normal(3, 4), ints(1, 0, run_time=True), normal(), ints(-1, run_time=True)], name="run-time"),
    Case("Pad", [normal(3, 4), ints(1, 2), None, ints(1)], {"mode": "edge"}, name="edge"),
    Case("Pad", [normal(3, 4), ints(1, 2, 3, 0)], {"mode": "reflect"}, name="reflect"),
    Case("Pad", [normal(2, 3), ints(4, 0, 0, 5)], {"mode": "reflect"}, name="reflect-twice"),
    Case("Pad", [normal(3, 4), ints(1, 2, 3, 0, run_time=True)], {"mode": "wrap"}, name="wrap-run-time"),
    Case("Pad", [normal(3, 4), ints(1, -1, 2, 2)], {"mode": "edge"}, name="edge-negative", reference=False),
    Case("Pad", [normal(3, 4), ints(1, 2, run_time=True), normal(), ints(-1)], name="run-time-pads"),
    Case("Pad", [normal(3, 4), ints(0, 0), held(normal()), ints(0)], name="nothing"),
    Case("Pad", [normal(3, 4), ints(1, 1, run_time=True), None, ints(0, run_time=True)], {"mode": "reflect"},
         name="run-time-axes", refuses=True),
    Case("DepthToSpace", [normal(2, 8, 2, 3)], {"blocksize": 2}),
    Case("DepthToSpace", [normal(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}, name="crd"),
    Case("SpaceToDepth", [normal(2, 2, 4, 6)], {"blocksize": 2}),
    Case("SpaceToDepth", [normal(1, 3, 4, 2)], {"blocksize": 2, "mode": "CRD"}, name="crd"),
    Case("Trilu", [normal(2, 3, 4)]),
    Case("Trilu", [normal(4, 3), fixed(-1, "int64")], {"upper": 0}, name="lower"),
    Case("Trilu", [normal(3, 3), const(7, "int64")], name="nothing"),
    Case("EyeLike", [normal(3, 4)], {"k": 1}, expected=lambda x, k: np.eye(3, 4, k)),
    Case("EyeLike", [fixed([[1, 2]], "int32")], {"dtype": 11}, name="dtype", expected=lambda x, dtype: np.eye(1, 2)),
    Case("ReverseSequence", [normal(4, 3, 2), const([4, 0, 3], "int64")]),
    Case("ReverseSequence", [normal(3, 4), fixed([1, 2, 4], "int64")], {"batch_axis": 0, "time_axis": 1},
         name="run-time"),
    Case("CenterCropPad", [normal(5, 4), ints(2, 7)]),
    Case("CenterCropPad", [normal(5, 4, 2), ints(8, run_time=True)], {"axes": [-2]}, name="run-time"),
]
