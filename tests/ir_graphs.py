"""Small graphs for the tests of the representation, and random ones."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.types import BOOL, FLOAT32, INT64, Dim, Type

EVERY_DTYPE = [
    np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 0.1, 1e-45, 16777216.0], np.float32),
    np.array([0x7FC00001, 0xFFC00000, 0x7F800001], np.uint32).view(np.float32),
    np.array([0.1, -0.0, np.nan, 5e-324, 1e300]),
    np.array([0x7FF8000000000001], np.uint64).view(np.float64),
    np.array([0.1, -0.0, np.nan, 65504.0], np.float16),
    np.array([[1, -2], [3, 4]], np.int64),
    np.array([-128, 127], np.int8),
    np.array([2**64 - 1, 0], np.uint64),
    np.array([2**31 - 1, -(2**31)], np.int32),
    np.array([True, False]),
    np.array([1 + 2j, complex(-0.0, np.nan)], np.complex64),
    np.array([complex(0.1, -0.0)], np.complex128),
    np.array([0.1, -0.0, np.inf]).astype(ml_dtypes.bfloat16),
    np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)[::5].copy(),
    np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e5m2)[::5].copy(),
    np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fnuz)[::5].copy(),
    np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e5m2fnuz)[::5].copy(),
    np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu)[::5].copy(),
    np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn),
    np.arange(64, dtype=np.uint8).view(ml_dtypes.float6_e2m3fn),
    np.arange(64, dtype=np.uint8).view(ml_dtypes.float6_e3m2fn),
    np.arange(16, dtype=np.uint8).view(ml_dtypes.int4),
    np.arange(16, dtype=np.uint8).view(ml_dtypes.uint4),
    np.arange(4, dtype=np.uint8).view(ml_dtypes.int2),
    np.arange(4, dtype=np.uint8).view(ml_dtypes.uint2),
    np.array(["", "é\u202e\x00\"\\\n", "plain"], object),
    np.zeros((0, 3), np.float32),
    np.zeros((2, 0, 3), np.int32),
    np.zeros((0,), np.float64),
    np.array(2.5, np.float32),
    np.array("x", object),
]
"""Arrays of every dtype, with what is easily lost: signs of zero, NaN payloads, empty shapes, odd characters."""


def mlp(batch: Any = None) -> Graph:
    """Return two layers with a parameter, an initializer, a large weight, metadata, node names and odd value names."""
    graph = Graph("mlp")
    b = Builder(graph, prefix="h")
    x = graph.add_input("x", Type(FLOAT32, (Dim.named("N") if batch is None else batch, 4)))
    weight = graph.add_constant(np.linspace(-1, 1, 72, dtype=np.float32).reshape(4, 18), "fc1/weight", "parameter")
    bias = graph.add_constant(np.arange(18, dtype=np.float32), "b", "initializer")
    node = b.add_node("MatMul", [x, weight], {}, outputs=["/fc1/MatMul"], name="/fc1/MatMul node")
    node.metadata = {"scope": "fc1", "a \"quoted\" key": "ü"}
    b.origin = graph.new_origin("fuse", [node])
    h = b.Add(node.output(), bias)
    b.origin = graph.new_origin("adjoint", [h.producer, node])
    y = b.Mul(b.Add(h, 1.0), -0.0)
    graph.add_output(h)
    graph.add_output(y, "loss")
    graph.add_output(graph.add_constant(np.float32(0)), "zero")
    graph.metadata = {"producer": "test", "b": ""}
    return graph


def constants() -> Graph:
    """Return a graph of nothing but constants of every dtype, each an output."""
    graph = Graph("constants of every dtype")
    for index, array in enumerate(EVERY_DTYPE):
        graph.add_output(graph.add_constant(array, f"c{index}", ("literal", "initializer")[index % 2]))
        if array.dtype != object:
            graph.add_output(graph.add_constant(array), f"nameless{index}")
    return graph


def branches() -> Graph:
    """Return an If inside an If, both with captures."""
    graph = Graph("branches")
    b = Builder(graph)
    condition = graph.add_input("condition", Type(BOOL, ()))
    x = graph.add_input("x", Type(FLOAT32, (3,)))

    def leaf(name: str, factor: float) -> Graph:
        inner = Graph(name)
        value = inner.add_input("x in", Type(FLOAT32, (3,)))
        inner.add_output(Builder(inner).Mul(value, factor), "r")
        return inner

    def middle() -> Graph:
        inner = Graph("middle")
        outer_x, outer_c = inner.add_input("v", Type(FLOAT32, (3,))), inner.add_input("c", Type(BOOL, ()))
        y = Builder(inner).add("If", [outer_c], captures=[outer_x],
                               subgraphs={"then_branch": leaf("deep then", 2.0), "else_branch": leaf("deep else", 3.0)})
        inner.add_output(y, "r")
        return inner

    other = Graph("other")
    kept = other.add_input("v", Type(FLOAT32, (3,)))
    other.add_input("c", Type(BOOL, ()))
    other.add_output(Builder(other).Neg(kept), "r")
    y = b.add("If", [condition], captures=[x, condition], subgraphs={"then_branch": middle(), "else_branch": other})
    graph.add_output(y, "y")
    return graph


def absences() -> Graph:
    """Return a node without an optional input and one without its first output."""
    graph = Graph("absences")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (4, Dim.named("batch size") // 2 + 1)))
    y = b.Clip(x, None, 1.0)
    node = b.add_node("TopK", [y, [2]], {"axis": 0}, outputs=["", "places"])
    graph.add_output(node.output(1))
    return graph


def tiny() -> Graph:
    """Return a graph of one node."""
    graph = Graph("tiny")
    x = graph.add_input("x", Type(INT64, (2,)))
    graph.add_output(Builder(graph).Add(x, [1, 2]), "y")
    return graph


def chain(length: int) -> Graph:
    """Return a long chain of small nodes."""
    graph = Graph("chain")
    x = graph.add_input("x", Type(FLOAT32, (Dim.named("N"), 4)))
    b = Builder(graph, prefix="v")
    weight = graph.add_constant(np.ones(4, np.float32), "w", "initializer")
    for index in range(length):
        x = b.Add(x, weight) if index % 3 else b.Mul(x, 2.0)
    graph.add_output(x, "y")
    return graph


SAMPLES = {"mlp": mlp, "constants": constants, "branches": branches, "absences": absences, "tiny": tiny}

_NAMES = st.text(min_size=1, max_size=8).filter(lambda s: not any(0xD800 <= ord(c) < 0xE000 for c in s))
_NUMBERS = st.floats(width=32, allow_nan=True)
_UNARY = ["Neg", "Abs", "Relu", "Tanh", "Identity", "Floor"]
_BINARY = ["Add", "Mul", "Sub", "Div", "Max"]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Draw a valid graph of elementwise nodes with odd names, literals, constants, origins and metadata."""
    graph = Graph(draw(_NAMES))
    shapes: list[tuple[int | Dim, ...]] = [(), (3,), (2, 3), (Dim.named("N"), 3), (1, 1)]
    values: list[Value] = []
    for _ in range(draw(st.integers(1, 3))):
        values.append(graph.add_input(graph.unique_name(draw(_NAMES)), Type(FLOAT32, draw(st.sampled_from(shapes)))))
    for _ in range(draw(st.integers(0, 3))):
        data = np.array(draw(st.lists(_NUMBERS, min_size=3, max_size=3)), np.float32)
        role = draw(st.sampled_from(["literal", "initializer", "parameter"]))
        values.append(graph.add_constant(data, graph.unique_name(draw(_NAMES)), role))
    b = Builder(graph)
    for _ in range(draw(st.integers(0, 8))):
        op = draw(st.sampled_from(_UNARY + _BINARY))
        operands: list[Any] = [draw(st.sampled_from(values))]
        if op in _BINARY:
            literal = st.builds(np.float32, _NUMBERS)
            operands.append(draw(st.one_of(st.sampled_from(values), literal)))
        b.origin = graph.new_origin(draw(_NAMES), [operands[0].producer]) if draw(st.booleans()) else 0
        node = b.add_node(op, operands, outputs=[graph.unique_name(draw(_NAMES))],
                          name=draw(st.one_of(st.just(""), _NAMES)))
        node.metadata = draw(st.dictionaries(_NAMES, st.text(max_size=3).filter(lambda s: s.isprintable()), max_size=2))
        values.append(node.output())
    for index, value in enumerate(draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))):
        graph.add_output(value, f"{draw(_NAMES)}{index}")
    return graph
