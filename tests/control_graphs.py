"""Graphs of If, Loop and Scan, and the checks of their derivatives, that several test files share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.types import BOOL, FLOAT64, INT64, Dim, Type
from flowgrad.ir.verify import verify
from flowgrad.passes.differentiate import with_adjoint
from tests.derivative_checks import check_gradients, check_tangents

RNG = np.random.default_rng(5)
Body = Callable[..., Any]


def f64(*shape: Any) -> Type:
    return Type(FLOAT64, shape)


def branch(captures: Sequence[Value], make: Body) -> Graph:
    """Return a closed branch; ``make(b, *captures)`` returns its outputs."""
    graph = Graph("branch")
    formals = [graph.add_input(x.name, x.type) for x in captures]
    for value in make(Builder(graph), *formals):
        graph.add_output(value, value.name or "literal")
    return graph


def add_if(b: Builder, condition: Any, captures: Sequence[Value], then: Body, other: Body) -> Node:
    graphs = {"then_branch": branch(captures, then), "else_branch": branch(captures, other)}
    count = len(graphs["then_branch"].outputs)
    return b.add_node("If", [condition], outputs=count, captures=captures, subgraphs=graphs)


def add_loop(b: Builder, trips: Any, condition: Any, states: Sequence[Value], captures: Sequence[Value], make: Body,
             formals: Sequence[Type] | None = None) -> Node:
    """Add a Loop; ``make(b, i, cond, *states, *captures)`` returns (cond, *states, *scans)."""
    body = Graph("body")
    types = [v.type for v in states] if formals is None else formals
    inner = [body.add_input("i", Type(INT64, ())), body.add_input("going", Type(BOOL, ())),
             *(body.add_input(f"state{k}", t) for k, t in enumerate(types)),
             *(body.add_input(x.name, x.type) for x in captures)]
    results = make(Builder(body), *inner)
    for k, value in enumerate(results):
        body.add_output(value, f"out{k}")
    return b.add_node("Loop", [trips, condition, *states], outputs=len(results) - 1, captures=captures,
                      subgraphs={"body": body})


def add_scan(b: Builder, states: Sequence[Value], rows: Sequence[Value], captures: Sequence[Value], make: Body,
             **attributes: Any) -> Node:
    """Add a Scan; ``make(b, *states, *slices, *captures)`` returns (*states, *scans)."""
    body = Graph("body")
    axes = attributes.get("scan_input_axes", [0] * len(rows))
    inner = [body.add_input(f"state{k}", v.type) for k, v in enumerate(states)]
    for k, (x, axis) in enumerate(zip(rows, axes, strict=True)):
        shape = list(x.shape)
        del shape[axis]
        inner.append(body.add_input(f"row{k}", x.type.with_shape(shape)))
    inner += [body.add_input(x.name, x.type) for x in captures]
    results = make(Builder(body), *inner)
    for k, value in enumerate(results):
        body.add_output(value, f"out{k}")
    return b.add_node("Scan", [*states, *rows], {"num_scan_inputs": len(rows), **attributes}, outputs=len(results),
                      captures=captures, subgraphs={"body": body})


def outputs_of(graph: Graph, *values: Value | None) -> Graph:
    for k, value in enumerate(values):
        if value is not None:
            graph.add_output(value, f"y{k}")
    return graph


def check(graph: Graph, feeds: dict[str, Any], wrt: Sequence[str], *, second: bool = True) -> None:
    """Check adjoint, tangent, adjoint of adjoint and tangent of adjoint."""
    before = evaluate(graph, feeds)
    check_gradients(graph, feeds, wrt, step=1e-3, rtol=1e-8)
    check_tangents(graph, feeds, wrt, step=1e-3, rtol=1e-8)
    extended = with_adjoint(graph, wrt)
    joint, cotangents = extended.graph, extended.drawn(before, RNG)
    verify(joint)
    after = evaluate(joint, {**feeds, **cotangents})
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    if second:
        check_gradients(graph, feeds, wrt, step=1e-3, rtol=1e-7, order=2)
        check_tangents(joint, {**feeds, **cotangents}, wrt, step=1e-3, rtol=1e-7)


FEEDS: dict[str, Any] = {"h": RNG.standard_normal((2, 3)), "w": RNG.standard_normal((3, 3))}
SCANS = [
    {},
    {"scan_input_directions": (1, 0)},
    {"scan_output_directions": (1, 0)},
    {"scan_input_axes": (1, 0), "scan_output_axes": (1, 0)},
    {"scan_input_axes": (1, 0), "scan_input_directions": (1, 1), "scan_output_axes": (-1, 0),
     "scan_output_directions": (1, 1)},
]


def scan_graph(attributes: dict[str, Any], symbolic: bool) -> Graph:
    graph = Graph()
    b = Builder(graph)
    t, n = (Dim.named("T"), Dim.named("N")) if symbolic else (4, 2)
    axis = attributes.get("scan_input_axes", (0,))[0]
    h, w = graph.add_input("h", f64(n, 3)), graph.add_input("w", f64(3, 3))
    xs, ys = graph.add_input("xs", f64(*((n, t, 3) if axis else (t, n, 3)))), graph.add_input("ys", f64(t, 3))

    def body(b: Builder, h: Value, x: Value, y: Value, w: Value) -> Any:
        z = b.Tanh(b.Add(b.MatMul(h, w), b.Mul(x, y)))
        return z, b.Mul(z, x), b.ReduceSum(z, [0], keepdims=0)

    return outputs_of(graph, *add_scan(b, [h], [xs, ys], [w], body, **attributes).outputs)


def scan_feeds(attributes: dict[str, Any], length: int) -> dict[str, Any]:
    axis = attributes.get("scan_input_axes", (0,))[0]
    return {"h": FEEDS["h"], "w": FEEDS["w"], "ys": RNG.standard_normal((length, 3)),
            "xs": RNG.standard_normal((2, length, 3) if axis else (length, 2, 3))}
