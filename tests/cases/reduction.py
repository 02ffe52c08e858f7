"""Rows for the reduce operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.registry import opdef
from tests.op_cases import Case, In, away, const, distinct, fixed, normal, positive

AXES = const([1], "int64")
RUN_TIME = fixed([-1, 0], "int64")
NONE = const([], "int64")

REDUCTIONS: list[tuple[str, Callable[..., In]]] = [
    ("ReduceMean", normal), ("ReduceMax", distinct), ("ReduceMin", distinct), ("ReduceL1", away), ("ReduceL2", away),
    ("ReduceSumSquare", normal), ("ReduceLogSum", positive), ("ReduceLogSumExp", normal), ("ReduceProd", normal),
]

CUMULATIVE: dict[str, dict[str, int]] = {
    "inclusive": {}, "exclusive": {"exclusive": 1}, "reverse": {"reverse": 1}, "both": {"exclusive": 1, "reverse": 1},
}
ZEROS = fixed([[0.0, 2.0, -1.5, 0.5], [1.5, 0.0, 3.0, -2.0], [0.5, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
LONG = In(lambda rng: rng.uniform(0.9, 1.1, (70, 2)) * (rng.uniform(size=(70, 2)) > 0.02))


def expanded(b: Builder, values: list[Value]) -> Node:
    """Return the last node of what stands for an exclusive CumProd in runtimes that do not know it."""
    node = b.add_node("CumProd", values, {"exclusive": 1})
    y = opdef("CumProd").expansion_rule(b, node)  # type: ignore[misc]
    b.graph.remove(node)
    return b.add_node("Identity", [y])


def exclusive_product(x: Array, axis: Array) -> Array:
    """Return the products of what stands before, by definition."""
    rows = np.moveaxis(x, int(axis), 0)
    made = [np.prod(rows[:k], axis=0) for k in range(len(rows))]
    return np.asarray(np.moveaxis(np.stack(made), 0, int(axis)), x.dtype)


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
    *(Case(op, [spec(3, 4, 2), AXES], {"keepdims": 0}) for op, spec in REDUCTIONS),
    *(Case(op, [spec(3, 4)], name="all") for op, spec in REDUCTIONS),
    *(Case(op, [spec(3, 4), RUN_TIME], {"keepdims": 0}, name="run-time", second=op != "ReduceProd")
      for op, spec in REDUCTIONS),
    *(Case(op, [spec(3, 2), NONE], {"noop_with_empty_axes": 1}, name="noop") for op, spec in REDUCTIONS),
    *(Case(op, [spec(0, 3), AXES], name="empty-rows") for op, spec in REDUCTIONS),
    Case("ReduceMean", [normal(0, 3)], reference=False, smooth=False, name="of-nothing", note="the mean is nan"),
    Case("ReduceMean", [fixed([[1, 2], [3, 5]], "int32"), AXES], name="int32"),
    Case("ReduceMax", [fixed([[True, False], [False, False]]), AXES], name="bool"),
    Case("ReduceMin", [fixed([[1, 2], [3, 5]], "int8"), AXES], name="int8"),
    Case("ReduceMax", [normal(2, 0), AXES], smooth=False, name="of-nothing", note="-inf"),
    Case("ReduceProd", [fixed([[0.0, 2.0, 3.0], [0.0, 1.5, 0.0]]), AXES], name="zeros"),
    Case("ReduceProd", [fixed([0.0, 2.0]), const([0], "int64")], {"keepdims": 0}, name="zero-factor"),
    Case("ReduceLogSumExp", [fixed([[1000.0, 999.0], [-1000.0, -1001.0]]), AXES], name="large"),
    Case("ReduceLogSumExp", [fixed([[-np.inf, -np.inf], [0.0, -np.inf]]), AXES], smooth=False, name="infinite",
         reference=False, note="no differences at -inf"),
    *(Case(op, [fixed([[3, 4], [30, 31], [1, 1]], kind), AXES], name=f"of_{kind}", reference=False,
           expected=lambda data, axes, wanted=wanted: np.array(wanted, data.dtype)[:, None])
      for op, wanted in (("ReduceL2", [5, 43, 1]), ("ReduceLogSum", [1, 4, 0]), ("ReduceLogSumExp", [4, 31, 1]))
      for kind in ("int32", "uint64")),
    Case("ReduceL2", [fixed([[0.0, 0.0], [3.0, 4.0]]), AXES], smooth=False, name="zero", note="a kink"),
    Case("ArgMax", [distinct(3, 4)]),
    Case("ArgMax", [fixed([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0]])], {"axis": -1, "keepdims": 0, "select_last_index": 1},
         name="last"),
    Case("ArgMin", [fixed([[3, 1, 1], [2, 2, 1]], "int32")], {"axis": 1}),
    Case("CumSum", [normal(3, 4), const(1, "int64")]),
    Case("CumSum", [normal(3, 4), const(-2, "int32")], {"exclusive": 1}, name="exclusive"),
    Case("CumSum", [normal(3, 4), fixed(0, "int64")], {"reverse": 1}, name="reverse"),
    Case("CumSum", [normal(3, 4), const(1, "int64")], {"reverse": 1, "exclusive": 1}, name="both"),
    Case("CumSum", [normal(0), const(0, "int64")], {"exclusive": 1}, name="empty"),
    *(Case("CumProd", [normal(3, 4), const(1, "int64")], flags, name=name) for name, flags in CUMULATIVE.items()),
    *(Case("CumProd", [ZEROS, const(1, "int64")], flags, name=f"zeros-{name}") for name, flags in CUMULATIVE.items()),
    *(Case("CumProd", [normal(2, 3, 2), fixed(-2, "int32")], flags, name=f"run-time-{name}")
      for name, flags in CUMULATIVE.items()),
    *(Case("CumProd", [LONG, const(0, "int64")], flags, name=f"long-{name}") for name, flags in CUMULATIVE.items()),
    Case("CumProd", [normal(5), const(-1, "int64")], name="vector"),
    Case("CumProd", [normal(2, 3, 1, 2), const(-3, "int32")], {"exclusive": 1}, name="rank-4"),
    Case("CumProd", [normal(2, 3, 4, 2), fixed(2, "int64")], {"reverse": 1}, name="run-time-rank-4"),
    Case("CumProd", [normal(3, 4), fixed(0, "int64")], name="run-time-first"),
    Case("CumProd", [normal(1, 3), const(0, "int64")], {"exclusive": 1}, name="one"),
    Case("CumProd", [normal(3, 0), const(1, "int64")], name="empty"),
    Case("CumProd", [normal(0, 3), fixed(1, "int64")], {"exclusive": 1}, name="empty-rows"),
    Case("CumProd", [normal(0), fixed(0, "int64")], {"reverse": 1}, name="empty-run-time"),
    Case("CumProd", [normal(0, 70), const(1, "int64")], name="empty-long"),
    *(Case("CumProd", [x, axis], name=f"expanded-{name}", build=expanded, expected=exclusive_product)
      for name, x, axis in (("constant", ZEROS, const(1, "int64")), ("run-time", normal(2, 3, 2), fixed(-2, "int32")),
                            ("float16", normal(3, 4, dtype="float16"), const(0, "int64")))),
    *(Case("CumProd", [fixed([[1, 2, 3], [4, 0, 6]], dtype), const(1, "int64")], {"reverse": 1}, name=dtype)
      for dtype in ("int32", "int64", "uint32", "uint64")),
    Case("CumProd", [fixed([[100000] * 4], "int32"), const(1, "int64")], name="wraps"),
    Case("CumProd", [normal(3, 4, dtype="float16"), const(1, "int64")], name="float16"),
    Case("CumProd", [fixed([0.5, 2.0, -3.0], "bfloat16"), const(0, "int64")], {"exclusive": 1}, name="bfloat16"),
    Case("CumProd", [fixed([[2.0, np.inf, -0.0, 3.0], [-0.0, -1.0, np.nan, 0.0]]), const(1, "int64")], smooth=False,
         name="special", note="no differences at inf and nan"),
    Case("TopK", [distinct(3, 5), const([2], "int64")], outputs=2),
    Case("TopK", [distinct(5, 2), fixed([3], "int64")], {"axis": 0, "largest": 0}, outputs=2, name="run-time-smallest"),
    Case("TopK", [distinct(3, 5), const([2], "int64")], outputs=["values"], name="values-only"),
    Case("TopK", [fixed([[1.0, 2.0, 2.0, 1.0]]), const([3], "int64")], outputs=2, smooth=False, name="ties",
         note="a kink", expected=lambda x, k, **_: (np.array([[2.0, 2.0, 1.0]]), np.array([[1, 2, 0]]))),
    Case("TopK", [distinct(3, 5), const([0], "int64")], outputs=2, name="none"),
]
