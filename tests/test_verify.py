"""The verifier: it accepts what is whole, and finds each single thing that is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import FlowgradError, UnsupportedError, ValidationError
from flowgrad.ir.graph import Graph, Node, Origin
from flowgrad.ir.types import BOOL, FLOAT32, INT64, Dim, Type
from flowgrad.ir.verify import verify
from tests import ir_graphs
from tests.op_cases import Case, all_cases

F2 = Type(FLOAT32, (2,))


def small() -> Graph:
    """Return s = softmax(x + c) with an ONNX name, a literal, an initializer and an output."""
    graph = Graph("small")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (2, Dim.named("N"))))
    c = graph.add_constant(np.ones((2, 1), np.float32), "c", "initializer")
    h = b.add("Add", [b.Mul(x, 2.0), c], name="h")
    b.add_node("Softmax", [h], {"axis": 1}, outputs=["s"], name="/head/Softmax")
    graph.add_output(graph.value("s"))
    return graph


def node(graph: Graph, op: str) -> Node:
    return next(n for n in graph.nodes() if n.op == op)


@pytest.mark.parametrize("case", all_cases(), ids=lambda c: c.id)
def test_every_operator_is_accepted(case: Case) -> None:
    for symbolic in {False, case.symbolic}:
        verify(case.graph(case.arrays(), symbolic)[0])


@pytest.mark.parametrize("name", ir_graphs.SAMPLES)
def test_samples_are_accepted(name: str) -> None:
    verify(ir_graphs.SAMPLES[name]())
    verify(Graph())


def test_declared_types_may_be_more_or_less_precise() -> None:
    graph = small()
    graph.set_type(graph.value("h"), Type(FLOAT32, (2, 5)))
    verify(graph)
    graph.set_type(graph.value("h"), Type(FLOAT32, None))
    verify(graph)


def loosen(graph: Graph, what: str) -> None:
    """Break one thing of the bookkeeping behind the graph's back."""
    h, add = graph.value("h"), node(graph, "Add")
    source = h.producer.key
    target = node(graph, "Softmax").key
    if what == "edge":
        graph.dag.remove_edge(source, target, key=0)
    elif what == "edge value":
        graph.dag.edges[source, target, 0]["value"] = graph.value("x")
    elif what == "extra edge":
        graph.dag.add_edge(source, target, key=7, value=h)
    elif what == "use":
        h.uses.clear()
    elif what == "extra use":
        h.uses[add.key, 9] = add
    elif what == "producer":
        h.producer = node(graph, "Mul")
    elif what == "index":
        h.index = 1
    elif what == "entry":
        graph.dag.nodes[source]["entry"] = None
    elif what == "key":
        add.key = 99
    elif what == "name":
        h.name = "other"
    elif what == "no name":
        graph.values.pop("h")
        h.name = ""
    elif what == "left name":
        graph.values["ghost"] = h
    elif what == "inputs":
        add.inputs = (*add.inputs, graph.value("x"))
    elif what == "input table":
        graph._inputs.clear()
    elif what == "output table":
        graph._outputs[99] = graph.output_entries[0]
    elif what == "outputs":
        add.outputs = ()


@pytest.mark.parametrize("what", ["edge", "edge value", "extra edge", "use", "extra use", "producer", "index", "entry", "key",
                                  "name", "no name", "left name", "inputs", "input table", "output table", "outputs"])
def test_broken_bookkeeping_is_found(what: str) -> None:
    graph = small()
    verify(graph)
    loosen(graph, what)
    with pytest.raises(ValidationError):
        verify(graph)


def foreign(graph: Graph) -> None:
    stranger = small()
    add = node(graph, "Add")
    add.inputs = (stranger.value("x"), add.inputs[1])


def constant_data(data: Any) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        graph.value("c").producer.data = data

    return change


def attributes(**given: Any) -> Callable[[Graph], None]:
    return lambda graph: graph.set_attributes(node(graph, "Softmax"), given)


def strings(graph: Graph) -> None:
    graph.add_constant(np.array(["a", b"b"], object), "texts")


@pytest.mark.parametrize(("change", "message"), [
    (foreign, "another graph"), (strings, "other than strings"),
    (constant_data(None), "no data"), (constant_data(np.ones(3, np.float32)), "holds"), (constant_data(np.ones((2, 1))), "holds"),
    (lambda g: setattr(g.value("c").producer, "role", "odd"), "role"),
    (lambda g: setattr(next(v for v in g.constants if not v.name).producer, "role", "initializer"), "interned"),
    (lambda g: g._literals.clear(), "interned"),
    (attributes(axs=1), "no attribute 'axs'"), (attributes(axis=1.0), "expected int"), (attributes(axis=True), "attributes are"),
    (attributes(axis=None), "attributes are"), (attributes(axis=[1]), "attributes are"), (attributes(axis=(1, 2.0)), "attributes are"),
    (attributes(axis=np.int64(1)), "attributes are"), (attributes(axis="1"), "expected int"),
    (lambda g: g.set_inputs(node(g, "Softmax"), [g.value("h"), g.value("h")]), "at most 1 inputs"),
    (lambda g: g.set_inputs(node(g, "Softmax"), []), "needs its input"),
    (lambda g: g.set_inputs(node(g, "Add"), [None, g.value("c")]), "needs its input"),
    (lambda g: g.set_output(node(g, "Softmax"), 1, "t", F2), "at most 1 outputs"),
    (lambda g: g.set_type(g.value("h"), Type(FLOAT32, (3, Dim.named("N")))), "gives"),
    (lambda g: g.set_type(g.value("h"), Type(INT64, (2, Dim.named("N")))), "gives"),
    (lambda g: g.set_type(g.value("h"), Type(FLOAT32, (2,))), "gives"),
    (lambda g: g.set_inputs(node(g, "Mul"), [g.value("s"), g.value("c")]), "cycle"),
    (lambda g: g.add_output(g.value("h"), "s"), "two outputs"), (lambda g: setattr(g.output_entries[0], "name", ""), "no name"),
    (lambda g: g.origins.append(Origin("p", ("x",), (5,))), "later one"),
    (lambda g: setattr(node(g, "Add"), "origin", 77), "origin"), (lambda g: setattr(node(g, "Add"), "origin", -1), "origin"),
    (lambda g: node(g, "Add").subgraphs.update(body=small()), "subgraphs"),
    (lambda g: g.set_inputs(node(g, "Add"), node(g, "Add").inputs, [g.value("x")]), "captures"),
])
def test_each_broken_rule_is_found(change: Callable[[Graph], object], message: str) -> None:
    graph = small()
    change(graph)
    with pytest.raises(ValidationError, match=message):
        verify(graph)


def test_unknown_operators_are_unsupported() -> None:
    graph = small()
    graph.set_op(node(graph, "Softmax"), "Sotfmax", {})
    with pytest.raises(UnsupportedError, match="did you mean 'Softmax'"):
        verify(graph)


def test_the_place_is_the_node_as_printed_with_its_onnx_name() -> None:
    graph = small()
    graph.set_attributes(node(graph, "Softmax"), {"axis": 1.5})
    with pytest.raises(ValidationError) as caught:
        verify(graph)
    assert caught.value.where == "%s = Softmax(%h: f32[2,N])  (node '/head/Softmax')"


def inner(graph: Graph, name: str = "then_branch") -> Graph:
    return graph.nodes()[0].subgraphs[name]


def share(graph: Graph) -> None:
    subgraphs = graph.nodes()[0].subgraphs
    subgraphs["else_branch"] = subgraphs["then_branch"]


@pytest.mark.parametrize(("change", "message"), [
    (lambda g: inner(g).add_input("more", F2), "not its formal ones"),
    (lambda g: g.nodes()[0].subgraphs.pop("then_branch"), "expected"), (share, "two nodes|belongs"),
    (lambda g: inner(g, "else_branch").set_type(inner(g, "else_branch").value("v"), Type(FLOAT32, (4,))), "conflict|capture|equal"),
    (lambda g: inner(g, "else_branch").set_type(inner(g, "else_branch").value("c"), Type(BOOL, (1,))), "capture"),
    (lambda g: inner(inner(g)).set_op(inner(inner(g)).nodes()[0], "MatMul", {"axis": 1}), "axis"),
    (lambda g: inner(g).add_constant(np.ones(2), "w", "parameter"), "parameter inside"),
    (lambda g: inner(inner(g)).values.clear(), "two values|renamed"),
])
def test_broken_subgraphs_are_found(change: Callable[[Graph], object], message: str) -> None:
    graph = ir_graphs.branches()
    verify(graph)
    change(graph)
    with pytest.raises(FlowgradError, match=message):
        verify(graph)


def test_deep_subgraphs_and_long_chains_take_no_stack() -> None:
    verify(ir_graphs.chain(20_000))
    graph = ir_graphs.tiny()
    for depth in range(300):
        outer = Graph(f"level{depth}")
        b = Builder(outer)
        x = outer.add_input("x", Type(INT64, (2,)))
        twin = Graph("twin")
        twin.add_output(Builder(twin).Identity(twin.add_input("x", Type(INT64, (2,)))))
        condition = outer.add_constant(np.bool_(True))
        outer.add_output(b.add("If", [condition], captures=[x], subgraphs={"then_branch": graph, "else_branch": twin}), "y")
        graph = outer
    verify(graph)


MIXED = {
    "Gemm(%x, %w, %b)": r"Gemm takes inputs of one dtype: %b: f64\[4\], expected float32 as of %x: f32\[3,3\]\n  at %y = Gemm",
    "MatMul(%x, %b3)": "%b3: f64",
    "LayerNormalization(%x, %b3)": "%b3: f64",
    "Clip(%x, %least)": "%least: f64",
    "BatchNormalization(%x, %s3, %b3, %s3, %s3)": r"%b3: f64\[3\], expected float32 as of %s3",
}


@pytest.mark.parametrize("call", MIXED)
def test_inputs_of_the_wrong_dtype_are_named(call: str) -> None:
    text = f"""graph @g (%x: f32[3,3], %w: f32[3,4], %b: f64[4], %b3: f64[3], %s3: f32[3], %least: f64[]) -> (%y: f32[*]) {{
        %y: f32[*] = {call}
    }}"""
    with pytest.raises(ValidationError, match=MIXED[call]):
        fg.load(text.encode())
