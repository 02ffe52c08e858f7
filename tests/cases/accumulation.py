"""Rows for the operators of the flowgrad domain that undo broadcasting, slicing and gathering."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, const, fixed, normal


def unbroadcast(x: Array, shape: Array) -> Array:
    """The sum that undoes broadcasting, one axis at a time."""
    while x.ndim > len(shape):
        x = x.sum(0)
    for axis, extent in enumerate(shape):
        if extent == 1 and x.shape[axis] != 1:
            x = x.sum(axis, keepdims=True)
    return x


def placed_slices(shape: Array, *pieces: Array, **_: Any) -> Array:
    """Zeros with pieces added at slices."""
    total = np.zeros(shape)
    for i in range(0, len(pieces), 5):
        piece, starts, ends, axes, steps = pieces[i : i + 5]
        index: list[Any] = [slice(None)] * total.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            index[axis] = slice(start, end, step)
        total[tuple(index)] += piece
    return total


def placed_rows(shape: Array, *pieces: Array, axis: int = 0) -> Array:
    """Zeros with pieces added at indices, one after the other."""
    total = np.zeros(shape)
    for i in range(0, len(pieces), 2):
        piece, indices = pieces[i : i + 2]
        at = axis % total.ndim
        for place in np.ndindex(indices.shape):
            where: tuple[Any, ...] = (slice(None),) * at
            total[(*where, int(indices[place]))] += piece[(*where, *place)]
    return total


def ints(*numbers: int) -> Any:
    """A constant int64 vector."""
    return const(list(numbers), "int64")


def others(x: Array, axes: Array | None = None, noop_with_empty_axes: int = 0) -> Array:
    """The product of the other elements, one by one."""
    chosen = None if axes is None and not noop_with_empty_axes else () if axes is None else tuple(axes)
    result = np.empty_like(x)
    for place in np.ndindex(x.shape):
        rest = x.copy()
        rest[place] = 1
        result[place] = np.broadcast_to(np.prod(rest, axis=chosen, keepdims=True), x.shape)[place]
    return result


CASES: list[Case] = [
    Case("OfShape", [normal(2, 3), ints(2, 3)], expected=lambda x, shape: x),
    Case("OfShape", [normal(0, 3), fixed([0, 3], "int64")], expected=lambda x, shape: x, name="run-time"),
    Case("OfShape", [normal(), ints()], expected=lambda x, shape: x, name="scalar"),
    Case("SumTo", [normal(2, 3, 4), ints(3, 1)], expected=unbroadcast),
    Case("SumTo", [normal(2, 3), fixed([3], "int64")], expected=unbroadcast, name="run-time"),
    Case("SumTo", [normal(2, 3), ints()], expected=unbroadcast, name="scalar"),
    Case("SumTo", [normal(2, 3), fixed([2, 3], "int64")], expected=unbroadcast, name="equal"),
    Case("SumTo", [normal(0, 3), ints(1, 3)], expected=unbroadcast, name="empty"),
    Case("SliceGrad", [ints(5, 6), normal(2, 6), ints(1), ints(3), ints(0), ints(1)], outputs=["y"], expected=placed_slices),
    Case("SliceGrad", [fixed([5, 6], "int64"), normal(3, 2), ints(4, 1), ints(-9, 5), ints(0, 1), ints(-2, 2),
                       normal(5, 6), ints(0), ints(9), ints(1), ints(1)], outputs=["y"], expected=placed_slices, name="two"),
    Case("ProdOfOthers", [normal(2, 4), ints(1)], expected=others),
    Case("ProdOfOthers", [normal(2, 3, 2), ints(-1, 0)], expected=others, name="two-axes"),
    Case("ProdOfOthers", [normal(2, 2)], expected=others, name="all"),
    Case("ProdOfOthers", [fixed([[0.0, 2.0, 3.0], [0.0, 0.0, 1.5]]), ints(1)], expected=others, name="zeros"),
    Case("ProdOfOthers", [normal(2, 2), fixed([0], "int64")], expected=others, refuses=True, name="run-time"),
    Case("ProdOfOthers", [normal(3, 0), ints(1)], expected=others, name="empty"),
    Case("GatherGrad", [ints(4, 3), normal(3, 3), const([1, -1, 1], "int64")], outputs=["y"], expected=placed_rows),
    Case("GatherGrad", [fixed([4, 3], "int64"), normal(4, 2, 2), fixed([[0, 2], [1, 1]], "int64"), normal(4),
                        const(-3, "int64")], {"axis": 1}, outputs=["y"], expected=placed_rows, name="two"),
]
