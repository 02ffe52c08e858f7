"""Rows for If, Loop and Scan; what needs more than one node is in test_control.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.types import BOOL, INT64, Type
from tests.op_cases import Case, const, fixed, normal


def closed(types: list[Type], make: Any) -> Graph:
    """Return a subgraph; ``make(b, *inputs)`` returns its outputs."""
    graph = Graph("body")
    inputs = [graph.add_input(f"in{k}", t) for k, t in enumerate(types)]
    for k, value in enumerate(make(Builder(graph), *inputs)):
        graph.add_output(value, f"out{k}")
    return graph


# ---- If -----------------------------------------------------------------------------------------------------------------


def build_if(b: Builder, values: list[Value]) -> Node:
    condition, x, w = values
    types = [x.type, w.type]
    graphs = {
        "then_branch": closed(types, lambda b, x, w: [b.Tanh(b.MatMul(x, w)), b.ReduceSum(x, [0], keepdims=0)]),
        "else_branch": closed(types, lambda b, x, w: [b.MatMul(b.Sin(x), w), b.ReduceSum(b.Mul(x, x), [0], keepdims=0)]),
    }
    return b.add_node("If", [condition], outputs=2, captures=[x, w], subgraphs=graphs)


def expected_if(condition: Array, x: Array, w: Array) -> list[Array]:
    if condition:
        return [np.tanh(x @ w), x.sum(axis=0)]
    return [np.sin(x) @ w, (x * x).sum(axis=0)]


# ---- Loop ---------------------------------------------------------------------------------------------------------------


def build_loop(counts: bool = False) -> Any:
    """A Loop that stops after five iterations, or (``counts``) when their number is reached."""

    def body(b: Builder, i: Value, going: Value, h: Value, w: Value) -> list[Value]:
        y = b.Tanh(b.MatMul(h, w))
        return [going if counts else b.And(going, b.Less(i, 4)), y, b.Mul(y, b.Cast(i, to=11)), i]

    def build(b: Builder, values: list[Value]) -> Node:
        trips, going, h, w = values
        types = [Type(INT64, ()), Type(BOOL, ()), h.type, w.type]
        return b.add_node("Loop", [trips, going, h], outputs=3, captures=[w], subgraphs={"body": closed(types, body)})

    return build


def expected_loop(trips: Array, going: Array, h: Array, w: Array) -> list[Array]:
    count = min(int(trips), 5) if going else 0
    rows = []
    for i in range(count):
        h = np.tanh(h @ w)
        rows.append(h * i)
    return [h, np.asarray(rows).reshape(count, *h.shape), np.arange(count)]


# ---- Scan ---------------------------------------------------------------------------------------------------------------


def build_scan(**attributes: Any) -> Any:
    def build(b: Builder, values: list[Value]) -> Node:
        h, xs, w = values
        axis = attributes.get("scan_input_axes", (0,))[0]
        row = xs.type.with_shape([d for k, d in enumerate(xs.shape) if k != axis])

        def body(b: Builder, h: Value, x: Value, w: Value) -> list[Value]:
            y = b.Tanh(b.Add(b.MatMul(h, w), x))
            return [y, b.Mul(y, x)]

        graph = closed([h.type, row, w.type], body)
        return b.add_node("Scan", [h, xs], {"num_scan_inputs": 1, **attributes}, outputs=2, captures=[w],
                          subgraphs={"body": graph})

    return build


def expected_scan(**attributes: Any) -> Any:
    def run(h: Array, xs: Array, w: Array) -> list[Array]:
        in_axis, in_turned = (attributes.get(f"scan_input_{k}", (0,))[0] for k in ("axes", "directions"))
        out_axis, out_turned = (attributes.get(f"scan_output_{k}", (0,))[0] for k in ("axes", "directions"))
        rows = []
        for x in np.moveaxis(xs, in_axis, 0)[:: -1 if in_turned else 1]:
            h = np.tanh(h @ w + x)
            rows.append(h * x)
        return [h, np.stack(rows[::-1] if out_turned else rows, axis=out_axis)]

    return run


def scan_row(name: str, *shape: int, **attributes: Any) -> Case:
    """Return a row of Scan over an input of the given shape."""
    return Case("Scan", [normal(2, 3), normal(*shape), normal(3, 3)], name=name, reference=False,
                build=build_scan(**attributes), expected=expected_scan(**attributes))


CASES: list[Case] = [
    *(Case("If", [fixed(c, "bool"), normal(2, 3), normal(3, 3)], name=f"{c}".lower(), reference=False, build=build_if,
           expected=expected_if) for c in (True, False)),
    *(Case("Loop", [fixed(trips, "int64"), fixed(going, "bool"), normal(2, 3), normal(3, 3)], name=name, reference=False,
           build=build_loop(), expected=expected_loop)
      for name, trips, going in (("counted", 3, True), ("ended", 9, True), ("no_trips", 0, True), ("never", 3, False))),
    Case("Loop", [const(3, "int64"), const(True, "bool"), normal(2, 3), normal(3, 3)], name="known", reference=False,
         build=build_loop(counts=True), expected=expected_loop),
    scan_row("plain", 4, 2, 3),
    scan_row("one", 1, 2, 3),
    scan_row("backward", 4, 2, 3, scan_input_directions=(1,)),
    scan_row("turned", 4, 2, 3, scan_output_directions=(1,)),
    scan_row("axes", 2, 4, 3, scan_input_axes=(1,), scan_output_axes=(1,)),
    scan_row("all", 2, 3, 4, scan_input_axes=(2,), scan_input_directions=(1,), scan_output_axes=(-1,),
             scan_output_directions=(1,)),
]
