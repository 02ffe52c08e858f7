"""Rows for decision trees and tables of keys."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, In, const, fixed, normal

NAN = float("nan")

# Two trees: node 0 asks for feature 0, nodes 1 and 2 for feature 1; the other tree is the leaf 7.
TREES: dict[str, Any] = {
    "features": np.array([0, 1, 1, 0, 0, 0, 0, 0]), "splits": np.array([0.5, 0.0, 1.0, 0, 0, 0, 0, 0], np.float32),
    "tests": np.zeros(8, np.int64), "left": np.array([1, 3, 5, 3, 4, 5, 6, 7]), "right": np.array([2, 4, 6, 3, 4, 5, 6, 7]),
    "missing_left": np.zeros(8, bool), "roots": np.array([0, 7]), "depth": 2,
}
MIXED = {**TREES, "tests": np.array([1, 2, 0, 0, 0, 0, 0, 0]), "missing_left": np.arange(8) == 0}


def one_by_one(x: Array, *, features: Array, splits: Array, tests: Array, left: Array, right: Array, missing_left: Array,
               roots: Array, depth: int) -> Array:
    """Follow every path alone."""
    result = np.empty((len(x), len(roots)), np.int64)
    for row in range(len(x)):
        for tree, node in enumerate(roots):
            while left[node] != node:
                value, split = x[row, features[node]], splits[node]
                passes = [value <= split, value < split, value == split][tests[node]] or (np.isnan(value) and missing_left[node])
                node = left[node] if passes else right[node]
            result[row, tree] = node
    return result


ROWS = [[0.5, 0.0], [0.5, 1.0], [0.6, 1.0], [0.4, 0.0], [NAN, 0.0], [0.0, NAN], [NAN, NAN]]


def leaves(x: In, trees: dict[str, Any], name: str = "", **more: Any) -> Case:
    return Case("TreeLeaves", [x], trees, name=name, expected=one_by_one, **more)


def places(x: Array, keys: Array) -> Array:
    """Return the first place of every element among the keys."""
    same = (x[..., None] == keys) | ((x[..., None] != x[..., None]) & (keys != keys))
    first = same.argmax(-1) if len(keys) else 0
    return np.where(same.any(-1), first, len(keys)).astype(np.int64)


def table(x: Any, keys: Any, dtype: Any, name: str = "") -> Case:
    return Case("KeyIndex", [fixed(x, dtype), const(np.array(keys, dtype))], name=name, expected=places)


CASES: list[Case] = [
    leaves(normal(40, 2), TREES),
    leaves(fixed(ROWS, "float32"), TREES, "edges"),
    leaves(fixed(ROWS, "float32"), MIXED, "tests"),
    leaves(fixed(ROWS), {**MIXED, "splits": TREES["splits"].astype(np.float64)}, "doubles"),
    leaves(normal(5, 3, dtype="float16"), TREES, "half"),
    leaves(normal(0, 2), TREES, "no-rows"),
    leaves(normal(3, 2), {**TREES, "roots": np.array([7]), "depth": 0}, "leaf-alone"),
    leaves(normal(70, 2), {**TREES, "roots": np.array([0, 7] * 1000)}, "blocks"),
    table([[3, 1], [2, 9]], [1, 2, 3, 1], "int64"),
    table([1.0, NAN, 2.0, -0.0], [NAN, 1.0, 0.0, NAN], "float32", "floats"),
    table(["a", "", "b"], ["b", "a", "b"], object, "strings"),
    table(7, [7, 8], "int32", "scalar"),
    table([1, 2], [], "int64", "no-keys"),
    table(np.empty((0, 3)), [1], "int64", "empty"),
]
