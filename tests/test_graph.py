"""Edits of a graph: each keeps it valid, names and identities included."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrad.ir.builder import Builder
from flowgrad.ir.compare import same_graph
from flowgrad.ir.errors import InputError, ValidationError
from flowgrad.ir.graph import CONSTANT, ENTRIES, Graph, Node, Value
from flowgrad.ir.types import FLOAT32, INT64, UNKNOWN, Dim, Type
from flowgrad.ir.verify import verify
from tests import ir_graphs

F2 = Type(FLOAT32, (2,))


def pair() -> tuple[Graph, Value, Value, Value]:
    """Return y = -x, z = y + y, with both as outputs."""
    graph = Graph("pair")
    b = Builder(graph)
    x = graph.add_input("x", F2)
    y = b.add("Neg", [x], name="y")
    z = b.add("Add", [y, y], name="z")
    graph.add_output(y)
    graph.add_output(z, "result")
    return graph, x, y, z


def test_values_know_producers_and_users() -> None:
    graph, x, y, z = pair()
    assert [n.op for n in graph.nodes()] == ["Neg", "Add"]
    assert len(graph) == 2
    assert [u.op for u in y.users] == ["Add", "Output"]
    assert len(y.uses) == 3
    assert z.producer.inputs == (y, y)
    assert x.users == [y.producer]
    assert nx.is_directed_acyclic_graph(graph.dag)


def test_uses_are_replaced_everywhere_or_where_wanted() -> None:
    graph, x, y, z = pair()
    graph.replace_uses(y, x, only=lambda n: n.op == "Add")
    verify(graph)
    assert z.producer.inputs == (x, x)
    assert graph.outputs == [y, z]
    graph.replace_uses(y, x)
    verify(graph)
    assert graph.outputs == [x, z]
    assert [e.name for e in graph.output_entries] == ["y", "result"]


def test_adopting_keeps_name_and_identity() -> None:
    graph, x, y, z = pair()
    new = Builder(graph).Mul(x, -1.0)
    node = y.producer
    graph.adopt(y, new)
    verify(graph)
    assert y.producer.op == "Mul" and graph.value("y") is y and new.name not in graph.values
    graph.remove(node)
    verify(graph)
    assert [n.op for n in graph.nodes()] == ["Mul", "Add"]
    with pytest.raises(ValidationError):
        graph.adopt(y, x)


def test_removing_needs_unused_outputs() -> None:
    graph, _, y, z = pair()
    with pytest.raises(ValidationError, match="still used"):
        graph.remove(y.producer)
    graph.remove(graph.output_entries[1])
    graph.remove(z.producer)
    verify(graph)
    assert list(graph.values) == ["x", "y"]


def test_small_literals_are_shared_and_large_ones_named() -> None:
    graph = Graph("g")
    one = graph.add_constant(np.float32(1))
    assert graph.add_constant(np.float32(1)) is one and one.name == ""
    assert graph.add_constant(np.float64(1)) is not one
    assert graph.add_constant(np.float32(0)) is not graph.add_constant(np.float32(-0.0))
    assert graph.add_constant(np.zeros(65)).name == "constant"
    assert graph.add_constant(np.zeros(65)).name == "constant_1"
    assert graph.add_constant(np.array("text", object)).name == "constant_2"
    graph.set_role(one, "parameter", "w")
    verify(graph)
    assert graph.add_constant(np.float32(1)) is not one
    assert graph.parameters == [one] and one.constant is None


def test_a_removed_literal_is_made_anew() -> None:
    graph = Graph("g")
    one = graph.add_constant(np.float32(1))
    graph.remove(one.producer)
    again = graph.add_constant(np.float32(1))
    assert again is not one
    verify(graph)


def test_constants_do_not_change_behind_the_graph() -> None:
    graph = Graph("g")
    data = np.zeros(3, np.float32)
    value = graph.add_constant(data, "w", "initializer")
    held = value.producer.data
    assert held is not None
    with pytest.raises(ValueError, match="read-only"):
        held[0] = 1
    graph.set_data(value, np.zeros((2, 2), np.int64))
    assert repr(value) == "%w: i64[2,2]"
    verify(graph)


def test_names_are_unique_and_found() -> None:
    graph, x, y, _ = pair()
    assert graph.unique_name("y") == "y_1"
    assert graph.unique_name("new") == "new"
    with pytest.raises(ValidationError, match="two values"):
        graph.add_input("y", F2)
    with pytest.raises(ValidationError, match="two values"):
        graph.rename(x, "y")
    with pytest.raises(InputError, match="did you mean"):
        graph.value("yy")
    graph.rename(y, "middle")
    verify(graph)
    assert graph.output_entries[0].name == "y"


def test_outputs_of_nodes_come_and_go() -> None:
    graph = Graph("g")
    x = graph.add_input("x", Type(FLOAT32, (3, Dim.named("N"))))
    node = Builder(graph).add_node("TopK", [x, graph.add_constant(np.array([2]))], {"axis": 0}, outputs=["a", "b"])
    graph.drop_output(node.output(1))
    assert len(node.outputs) == 1
    graph.set_output(node, 1, "again", Type(INT64, (2, UNKNOWN)))
    assert repr(node.output(1)) == "%again: i64[2,_d1]"
    graph.drop_output(node.output(0))
    verify(graph)
    assert node.outputs[0] is None and node.label == "again"
    with pytest.raises(ValidationError):
        graph.set_output(node, 1, "more", x.type)


def test_every_edit_raises_the_version() -> None:
    graph, x, y, z = pair()
    versions = [graph.version]
    for edit in (lambda: graph.rename(y, "m"), lambda: graph.replace_uses(y, x), lambda: graph.add_output(x, "more"),
                 lambda: graph.set_type(z, Type(FLOAT32, (2,)).with_shape((Dim.named("N"),))),
                 lambda: graph.reorder_outputs(graph.output_entries[::-1]), lambda: graph.set_op(y.producer, "Abs", {}),
                 lambda: graph.remove(y.producer)):
        edit()
        versions.append(graph.version)
    assert versions == sorted(set(versions))


def test_a_cycle_is_found_not_run_into() -> None:
    graph, _, y, z = pair()
    graph.set_inputs(y.producer, [z])
    with pytest.raises(ValidationError, match="cycle"):
        graph.nodes()


@settings(deadline=None, max_examples=40)
@given(ir_graphs.graphs())
def test_copies_are_equal_and_independent(graph: Graph) -> None:
    copy = graph.copy()
    verify(copy)
    assert same_graph(graph, copy) is None
    assert not {id(v) for v in graph.values.values()} & {id(v) for v in copy.values.values()}
    copy.add_input(copy.unique_name("fresh"), F2)
    assert same_graph(graph, copy) is not None
    verify(graph)


@pytest.mark.parametrize("name", ir_graphs.SAMPLES)
def test_samples_copy(name: str) -> None:
    graph = ir_graphs.SAMPLES[name]()
    copy = graph.copy()
    verify(copy)
    assert same_graph(graph, copy) is None
    literals = [v for v in copy.constants if not v.name]
    assert all(copy.add_constant(v.producer.data) is v for v in literals)


def test_walking_visits_subgraphs() -> None:
    graph = ir_graphs.branches()
    assert [(g.name, n.op) for g, n in graph.walk()] == [
        ("branches", "If"), ("middle", "If"), ("deep then", "Mul"), ("deep else", "Mul"), ("other", "Neg")]


def test_differences_are_told() -> None:
    assert same_graph(*(pair()[0] for _ in "ab")) is None
    changes: dict[str, Callable[[Graph], Any]] = {
        "called": lambda g: setattr(g, "name", "other"), "metadata": lambda g: g.metadata.update(a="b"),
        "inputs differ at 1": lambda g: g.add_input("more", F2), "outputs differ at 2": lambda g: g.add_output(g.value("x")),
        "has the constant": lambda g: g.add_constant(np.zeros(3), "w"), "operators": lambda g: g.set_op(g.nodes()[0], "Abs", {}),
        "attributes": lambda g: g.set_attributes(g.nodes()[0], {"a": 1}), "a node": lambda g: Builder(g).Neg(g.value("x")),
        "node names": lambda g: setattr(g.nodes()[0], "name", "n"),
        "origins": lambda g: setattr(g.nodes()[0], "origin", g.new_origin("p", [])),
        "%z = Add|inputs differ": lambda g: g.set_inputs(g.nodes()[1], [g.value("x"), g.value("y")]),
    }
    for message, change in changes.items():
        a, b = pair()[0], pair()[0]
        change(b)
        difference = same_graph(a, b)
        assert difference is not None and any(m in difference for m in message.split("|")), (message, difference)


def test_long_chains_sort_and_copy() -> None:
    graph = ir_graphs.chain(20_000)
    assert len(graph.copy().nodes()) == 20_000
    assert sum(1 for v in graph.constants if v.producer.op == CONSTANT) == 2


def test_nodes_come_in_the_order_that_is_asked_for() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (3,)))
    late, early = b.Exp(x), b.Tanh(x)
    graph.add_output(b.Add(b.Mul(late, early), graph.add_constant(np.ones(3, np.float32), "one", "initializer")), "y")
    before = graph.version
    assert nx.number_of_edges(graph.dag) == 7
    exp, tanh, *rest = graph.nodes()
    graph.reorder([tanh, exp, *rest])
    assert graph.nodes() == [tanh, exp, *rest] and graph.version > before
    assert [n.key for n in graph.nodes()] == sorted(n.key for n in graph.nodes())
    assert set(graph.dag.edges) == {(v.producer.key, n.key, s) for n in graph.entries.values() for s, v in n.slots}
    assert late.users == [rest[0]] and list(late.uses) == [(rest[0].key, 0)]
    verify(graph)
    with pytest.raises(ValidationError, match="ordered"):
        graph.reorder([tanh, exp])


@settings(deadline=None, max_examples=25)
@given(ir_graphs.graphs(), st.randoms(use_true_random=False))
def test_the_order_is_the_same_however_the_graph_came_about(graph: Graph, draw: Random) -> None:
    graph.nodes()
    for _ in range(12):
        _edit(graph, draw)
        if draw.random() < 0.5:
            assert graph.nodes() == _least_keys_first(graph)
    assert graph.nodes() == _least_keys_first(graph)


def _edit(graph: Graph, draw: Random) -> None:
    """Add a node, a constant or an output, remove a node that nobody uses, or let a new node take another's place."""
    value = draw.choice(list(graph.values.values()))
    b, what = Builder(graph), draw.randrange(5)
    if what == 0:
        b.Identity(value)
    elif what == 1:
        graph.add_constant(np.zeros(3), graph.unique_name("c"))
    elif what == 2:
        graph.add_output(value, graph.unique_output_name("o"))
    elif what == 3:
        unused = [n for n in graph.nodes() if not any(v.uses for v in n.results)]
        for node in unused[:1]:
            graph.remove(node)
    elif value.producer.op not in ENTRIES and len(value.producer.results) == 1 and not value.producer.subgraphs:
        old = value.producer
        twin = graph.add_node(old.op, old.inputs, [(graph.unique_name("twin"), value.type)], old.attributes)
        graph.adopt(value, twin.output())
        graph.remove(old)


def _least_keys_first(graph: Graph) -> list[Node]:
    left, done = dict(sorted(graph.entries.items())), list[Node]()
    while left:
        key = next(k for k, n in left.items() if not any(v.producer.key in left for v in n.operands))
        done.append(left.pop(key))
    return [n for n in done if n.op not in ENTRIES]
