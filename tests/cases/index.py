"""Rows for the index operators."""

from __future__ import annotations

from tests.op_cases import Case, const, fixed, normal

CASES: list[Case] = [
    Case("Gather", [normal(5, 3), const([[0, 4], [-1, 0]], "int64")]),
    Case("Gather", [normal(5, 3), fixed([2, -3, 2, 2], "int32")], {"axis": -1}, name="last-run-time"),
    Case("Gather", [normal(5, 3, 2), const(1, "int64")], {"axis": 1}, name="scalar-index"),
    Case("Gather", [normal(5), fixed(-2, "int64")], name="vector-scalar"),
    Case("Gather", [normal(5, 3), const(0 * [1], "int64")], name="no-indices"),
    Case("Gather", [normal(5, 0), const([1, 1], "int64")], name="empty-rows"),
]
