"""Rows for the shape operators."""

from __future__ import annotations

from tests.op_cases import Case, In, const, fixed, normal


def ints(*numbers: int, run_time: bool = False) -> In:
    """An int64 vector, constant or fed."""
    return (fixed if run_time else const)(list(numbers), "int64")


CASES: list[Case] = [
    Case("Shape", [normal(3, 4, 2)]),
    Case("Shape", [normal(3, 4, 2)], {"start": -2, "end": 2}, name="part"),
    Case("Size", [normal(3, 4, 2)]),
    Case("Reshape", [normal(3, 4), ints(2, 6)]),
    Case("Reshape", [normal(3, 4), ints(0, 2, -1)], name="copy-infer"),
    Case("Reshape", [normal(3, 4), ints(-1)], name="flat"),
    Case("Reshape", [normal(3, 4), ints(2, -1, run_time=True)], name="run-time"),
    Case("Reshape", [normal(0, 4), ints(4, 0)], {"allowzero": 1}, name="allowzero"),
    Case("Reshape", [normal(0, 4), ints(0, -1)], reference=False, name="empty-infer"),
    Case("Reshape", [normal(1, 1), const([], "int64")], name="to-scalar"),
    Case("Flatten", [normal(3, 4, 2)]),
    Case("Flatten", [normal(3, 4, 2)], {"axis": 0}, name="all"),
    Case("Flatten", [normal(3, 4, 2)], {"axis": -1}, name="last"),
    Case("Flatten", [normal()], {"axis": 0}, name="scalar"),
    Case("Flatten", [normal(0, 4, 2)], {"axis": 2}, reference=False, name="empty"),
    Case("Squeeze", [normal(1, 3, 1)]),
    Case("Squeeze", [normal(1, 3, 1), ints(-1)], name="last"),
    Case("Squeeze", [normal(1, 3, 1), ints(2, 0, run_time=True)], name="run-time"),
    Case("Squeeze", [normal(1, 3), const([], "int64")], name="no-axes"),
    Case("Unsqueeze", [normal(3, 2), ints(0, -1)]),
    Case("Unsqueeze", [normal(3, 2), ints(1, 3, run_time=True)], name="run-time"),
    Case("Unsqueeze", [normal(), ints(0)], name="scalar"),
    Case("Unsqueeze", [normal(2, 3), const([], "int64")], name="no-axes"),
    Case("Transpose", [normal(3, 4, 2)]),
    Case("Transpose", [normal(3, 4, 2)], {"perm": [1, 2, 0]}, name="perm"),
    Case("Transpose", [normal()], name="scalar"),
    Case("Expand", [normal(3, 1), ints(2, 1, 4)]),
    Case("Expand", [normal(3, 1), ints(1)], name="smaller"),
    Case("Expand", [normal(3, 1), ints(2, 3, 4, run_time=True)], name="run-time"),
    Case("Expand", [normal(), ints(0, 3)], name="empty"),
    Case("Concat", [normal(2, 3), normal(2, 1), normal(2, 0)], {"axis": -1}),
    Case("Concat", [normal(2)], {"axis": 0}, name="one"),
    Case("Split", [normal(5, 3)], {"num_outputs": 3}, outputs=3),
    Case("Split", [normal(3, 6), ints(1, 0, 5)], {"axis": -1}, outputs=3, name="sizes"),
    Case("Split", [normal(3, 6), ints(1, 5, run_time=True)], {"axis": 1}, outputs=2, name="run-time"),
    Case("Split", [normal(3, 6), ints(1, 2, 3)], {"axis": 1}, outputs=["a", "", "c"], name="absent"),
    Case("Split", [normal(7)], {"num_outputs": 3}, outputs=["a", "b", ""], name="absent-uneven"),
    Case("Split", [normal(3, 6), ints(1, 2, 3, run_time=True)], {"axis": 1}, outputs=["", "b", "c"],
         name="absent-run-time"),
    Case("Split", [normal(3, 6), ints(1, 2, 3)], {"axis": 1}, outputs=2, reference=False, name="fewer"),
    Case("Split", [normal(3, 6), ints(1, 2, 3, run_time=True)], {"axis": 1}, outputs=["", "b"], reference=False,
         name="fewer-run-time"),
    Case("Split", [normal(7)], {"num_outputs": 4}, outputs=1, reference=False, name="fewer-even"),
    Case("Slice", [normal(5, 6), ints(1), ints(4)]),
    Case("Slice", [normal(5, 6), ints(-1, 4), ints(-(2**63), 0), ints(0, -1), ints(-1, -2)], name="backwards"),
    Case("Slice", [normal(5, 6), ints(1, 1), ints(2**63 - 1, 5), ints(-1, 0), ints(2, 3)], name="strided"),
    Case("Slice", [normal(5, 6), ints(0, 1, run_time=True), ints(-1, 99, run_time=True)], name="run-time"),
    Case("Slice", [normal(5, 6), ints(4, run_time=True), ints(-9, run_time=True), ints(1, run_time=True),
                   ints(-2, run_time=True)], name="all-run-time"),
    Case("Slice", [normal(5), ints(3), ints(1)], name="nothing"),
    Case("Slice", [normal(3, 2), ints(-5), ints(-9), ints(0), ints(-1)], expected=lambda x, *_: x[:1], name="from-before"),
    Case("Slice", [normal(3, 2), ints(-5, run_time=True), ints(-9, run_time=True), ints(0, run_time=True),
                   ints(-2, run_time=True)], expected=lambda x, *_: x[:1], name="run-time-from-before"),
    Case("Slice", [fixed([3, 1, 2], "int64"), ints(-2), ints(99)], name="integers"),
]
