"""Rows for the reduce operators."""

from __future__ import annotations

from tests.op_cases import Case, const, fixed, normal

AXES = const([1], "int64")
RUN_TIME = fixed([-1, 0], "int64")
NONE = const([], "int64")

CASES: list[Case] = [
    Case("ReduceSum", [normal(3, 4, 2), AXES]),
    Case("ReduceSum", [normal(3, 4, 2), AXES], {"keepdims": 0}, name="dropped"),
    Case("ReduceSum", [normal(3, 4, 2)], name="all"),
    Case("ReduceSum", [normal(3, 4, 2)], {"keepdims": 0}, name="all-dropped"),
    Case("ReduceSum", [normal(3, 4, 2), RUN_TIME], name="run-time"),
    Case("ReduceSum", [normal(3, 4, 2), RUN_TIME], {"keepdims": 0}, name="run-time-dropped"),
    Case("ReduceSum", [normal(3, 4), NONE], {"keepdims": 0}, name="no-axes"),
    Case("ReduceSum", [normal(3, 4), NONE], {"noop_with_empty_axes": 1}, name="noop"),
    Case("ReduceSum", [normal(3, 4), fixed([], "int64")], {"keepdims": 0}, name="no-run-time-axes"),
    Case("ReduceSum", [normal(3, 4), fixed([], "int64")], {"keepdims": 0, "noop_with_empty_axes": 1},
         name="run-time-noop"),
    Case("ReduceSum", [normal(3, 0, 2), AXES], {"keepdims": 0}, name="empty"),
    Case("ReduceSum", [normal()], name="scalar"),
    Case("ReduceSum", [fixed([[1, 2], [3, 4]], "int32"), AXES], name="int32"),
]
