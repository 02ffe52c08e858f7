"""Patterns, the matcher and the rewrite driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, PassError, UnsupportedError, ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.types import FLOAT32, FLOAT64, INT64, Dim, Type
from flowgrad.ir.verify import verify
from flowgrad.passes.manager import PassManager
from flowgrad.passes.patterns import matches, parse_pattern
from flowgrad.passes.rewrite import Recorder, apply_rules, no_match, recording, rewrite


def start(*shape: Any) -> tuple[Graph, Builder, Value]:
    graph = Graph("g")
    return graph, Builder(graph), graph.add_input("x", Type(FLOAT32, shape or (2, 2)))


def bound(pattern: str, value: Value, **keywords: Any) -> list[dict[str, Any]]:
    return [dict(m.bound) for m in matches(parse_pattern(pattern), value.producer, **keywords)]


# ---- patterns -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "error", "message"), [
    ("Transpos(%x)", UnsupportedError, "did you mean 'Transpose'"),
    ("Add(%x, %y, %z)", ValidationError, "at most 2"),
    ("Softmax(%x) {axes=1}", ValidationError, "no attribute 'axes'"),
    ("Add(%x %y)", ValidationError, "a comma"),
    ("Add(%x,", ValidationError, "missing"),
    ("%x", ValidationError, "one application"),
    ("Add(%x, %y) Neg(%x)", ValidationError, "one application"),
    ("Sum(*%xs, %y)", ValidationError, "only the last"),
    ("Add(%x, $)", ValidationError, "unexpected"),
    ("<SHINY>(%x)", InputError, "no trait"),
    ("Softmax(%x) {}", ValidationError, "no attribute in"),
])
def test_wrong_patterns_are_told_at_once(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_pattern(text)


def test_a_rule_binds_what_its_function_takes() -> None:
    with pytest.raises(ValidationError, match="does not bind z"):
        @rewrite("Add(%x, %y)")
        def rule(b: Builder, z: Value) -> Any:
            return z


def test_commutative_operands_match_either_way() -> None:
    _, b, x = start()
    product, other = b.MatMul(x, x), b.Exp(x)
    assert bound("Add(MatMul(%a, %w), %c)", b.Add(other, product)) == [{"a": x, "w": x, "c": other}]
    assert bound("Sub(MatMul(%a, %w), %c)", b.Sub(other, b.MatMul(x, x))) == []


def test_a_variable_stands_for_one_value() -> None:
    _, b, x = start()
    y = b.Exp(x)
    assert bound("Mul(%a, %a)", b.Mul(x, x)) == [{"a": x}]
    assert bound("Mul(%a, %a)", b.Mul(x, y)) == []


def test_numbers_match_by_value_and_zeros_by_sign() -> None:
    _, b, x = start()
    assert bound("Mul(%a, 2)", b.Mul(x, np.full((2, 1), 2, np.float32)))
    assert not bound("Mul(%a, 2)", b.Mul(x, np.array([[2], [3]], np.float32)))
    assert bound("Add(%a, -0.0)", b.Add(x, -0.0)) and not bound("Add(%a, -0.0)", b.Add(x, 0.0))
    assert not bound("Add(%a, 0.0)", b.Add(x, -0.0)) and bound("Add(%a, 0.0)", b.Add(x, 0.0))
    n = b.graph.add_input("n", Type(INT64, ()))
    assert bound("Add(%a, -0.0)", b.Add(n, 0))
    assert not bound("Mul(%a, 1)", b.Mul(b.Slice(x, [0], [1], [0]), np.ones((0, 2), np.float32)))


def test_a_parameter_is_no_number() -> None:
    graph, b, x = start()
    one = graph.add_constant(np.ones(2, np.float32), "w", "parameter")
    assert not bound("Mul(%a, 1)", b.Mul(x, one))


def test_attributes_and_optional_operands() -> None:
    _, b, x = start()
    assert bound("Transpose(%a) {perm=[1,0]}", b.Transpose(x, perm=[1, 0]))
    assert not bound("Transpose(%a) {perm=[0,1]}", b.Transpose(x, perm=[1, 0]))
    assert bound("Softmax(%a) {axis=-1}", b.Softmax(x)), "the default counts"
    assert bound("ReduceSum(%a, %axes?)", b.ReduceSum(x)) == [{"a": x, "axes": None}]
    assert not bound("ReduceSum(%a, %axes)", b.ReduceSum(x))
    assert not bound("ReduceSum(%a)", b.ReduceSum(x, [0]))
    assert bound("Sum(%a, *%rest)", b.Sum(x, x, x)) == [{"a": x, "rest": [x, x]}]
    assert bound("Relu|Tanh(%a)", b.Tanh(x)) == [{"a": x}]


def test_inner_nodes_have_one_user_are_not_pinned_and_of_one_recomputation() -> None:
    graph, b, x = start()
    inner = b.Neg(x)
    root = b.Neg(inner)
    assert bound("Neg(Neg(%a))", root)
    assert not bound("Neg(Neg(%a))", root, pinned={inner.name})
    inner.producer.metadata["recompute"] = "1"
    assert not bound("Neg(Neg(%a))", root)
    inner.producer.metadata.clear()
    b.Exp(inner)
    assert not bound("Neg(Neg(%a))", root)
    assert bound("Neg(Neg(%a))", root, shared=True)


def test_an_output_is_a_user() -> None:
    graph, b, x = start()
    inner = b.Neg(x)
    graph.add_output(inner)
    assert not bound("Neg(Neg(%a))", b.Neg(inner))


# ---- the driver -----------------------------------------------------------------------------------------------------------


@rewrite("Neg(Neg(%x))")
def double_negation(b: Builder, x: Value) -> Any:
    return x


@rewrite("Add(MatMul(%x, %w), %c)")
def gemm(b: Builder, x: Value, w: Value, c: Value) -> Any:
    """A product plus a bias is one Gemm."""
    if x.type.rank != 2 or w.type.rank != 2:
        return no_match("Gemm takes matrices only")
    return b.Gemm(x, w, c)


def test_a_replacement_keeps_name_origin_and_onnx_name() -> None:
    graph, b, x = start(Dim.named("N"), 4)
    w = graph.add_constant(np.ones((4, 3), np.float32), "w", "initializer")
    product = b.add_node("MatMul", [x, w], outputs=["z"]).output()
    node = b.add_node("Add", [product, graph.add_constant(np.ones(3, np.float32))], outputs=["y"], name="fc")
    node.metadata["scope"] = "net"
    graph.add_output(node.output(), "y")
    value = node.output()
    apply_rules(graph, [gemm])
    verify(graph)
    (made,) = graph.nodes()
    assert made.op == "Gemm" and made.output() is value and value.name == "y"
    assert (made.name, made.metadata["scope"]) == ("fc", "net")
    origin = graph.origins[made.origin]
    assert (origin.pass_name, origin.names) == ("gemm", ("z", "y"))


def test_an_output_keeps_its_name_when_it_becomes_another_value() -> None:
    graph, b, x = start()
    graph.add_output(b.Neg(b.Neg(x)), "y")
    inner = b.Exp(x)
    last = b.Neg(b.Neg(inner))
    graph.rename(last, "last")
    graph.add_output(last)
    apply_rules(graph, [double_negation])
    verify(graph)
    assert [(e.name, e.input(0).name) for e in graph.output_entries] == [("y", "x"), ("last", "last")]
    assert [n.op for n in graph.nodes()] == ["Exp"]


def test_a_pinned_value_is_not_merged_away() -> None:
    graph, b, x = start()
    y = b.Neg(b.Neg(b.Exp(x)))
    graph.rename(y, "kept")
    graph.pin(y)
    graph.add_output(b.Tanh(y), "z")
    recorder = Recorder(verbose=True)
    with recording(recorder):
        apply_rules(graph, [double_negation])
    verify(graph)
    assert len(graph) == 4 and recorder.misses == [("double_negation", "kept", "an output is pinned")]


def test_reasons_are_recorded_when_asked_for() -> None:
    graph, b, x = start(2, 3, 4)
    w = graph.add_constant(np.ones((4, 4), np.float32))
    graph.add_output(b.Add(b.MatMul(x, w), x), "y")
    recorder = Recorder(verbose=True)
    with recording(recorder):
        apply_rules(graph, [gemm])
    assert recorder.misses == [("gemm", "add", "Gemm takes matrices only")]


def test_what_a_rule_made_in_vain_is_gone() -> None:
    @rewrite("Exp(%x)")
    def hesitant(b: Builder, x: Value) -> Any:
        b.Add(b.Tanh(x), 17.0)
        return no_match("changed its mind")

    graph, b, x = start()
    graph.add_output(b.Exp(x), "y")
    apply_rules(graph, [hesitant])
    verify(graph)
    assert len(graph) == 1 and not graph.constants


def test_replacements_are_rewritten_in_turn_and_chains_collapse() -> None:
    graph, b, x = start()
    value = x
    for _ in range(1001):
        value = b.Neg(value)
    graph.add_output(value, "y")
    recorder = Recorder()
    with recording(recorder):
        apply_rules(graph, [double_negation])
    assert len(graph) == 1 and recorder.counts() == {"double_negation": 500}


def test_a_deep_pattern_is_found_when_an_inner_value_loses_a_user() -> None:
    @rewrite("Neg(Exp(Tanh(%x)))")
    def deep(b: Builder, x: Value) -> Any:
        return b.Sin(x)

    @rewrite("Cos(%x)")
    def drop(b: Builder, node: Any) -> Any:
        return b.graph.add_constant(np.zeros((2, 2), np.float32))

    graph, b, x = start()
    inner = b.Tanh(x)
    graph.add_output(b.Neg(b.Exp(inner)), "y")
    graph.add_output(b.Cos(inner), "z")
    apply_rules(graph, [deep, drop])
    verify(graph)
    assert [n.op for n in graph.nodes()] == ["Sin"]


def test_rules_that_never_end_are_named() -> None:
    @rewrite("Sin(%x)")
    def to_cos(b: Builder, x: Value) -> Any:
        return b.Cos(x)

    @rewrite("Cos(%x)")
    def to_sin(b: Builder, x: Value) -> Any:
        return b.Sin(x)

    graph, b, x = start()
    graph.add_output(b.Sin(x), "y")
    with pytest.raises(PassError, match=r"still firing: to_sin \(32 of the last 64\), to_cos"):
        apply_rules(graph, [to_cos, to_sin])


def test_a_limit_stops_after_so_many_applications() -> None:
    graph, b, x = start()
    for i in range(4):
        graph.add_output(b.Neg(b.Neg(x)), f"y{i}")
    recorder = Recorder(limit=3)
    with recording(recorder):
        apply_rules(graph, [double_negation])
    assert len(recorder.applied) == 3 and len(graph) == 2
    assert str(recorder.applied[0]) == "double_negation at %neg_1"


def test_a_rule_must_give_values_of_the_right_type() -> None:
    @rewrite("Exp(%x)")
    def narrow(b: Builder, x: Value) -> Any:
        return b.ReduceSum(x, keepdims=0)

    @rewrite("Exp(%x)")
    def nothing(b: Builder, x: Value) -> Any:
        return None

    for rule, message in ((narrow, "replaced"), (nothing, "returned None")):
        graph, b, x = start()
        graph.add_output(b.Exp(x), "y")
        with pytest.raises(PassError, match=message):
            apply_rules(graph, [rule])


def test_several_outputs_are_replaced_together() -> None:
    @rewrite("Split(%x)")
    def halves(b: Builder, node: Any, x: Value) -> Any:
        return b.Slice(x, [0], [1], [0]), b.Slice(x, [1], [2], [0])

    graph, b, x = start()
    first, second = b.add_several("Split", [x], {"axis": 0, "num_outputs": 2}, outputs=["a", "b"])
    graph.add_output(first)
    graph.add_output(second)
    apply_rules(graph, [halves])
    verify(graph)
    assert [n.op for n in graph.nodes()] == ["Slice", "Slice"] and [v.name for v in graph.outputs] == ["a", "b"]


def test_subgraphs_are_rewritten_too() -> None:
    from flowgrad.ir.types import BOOL

    graph, b, x = start()
    bodies = {}
    for name in ("then_branch", "else_branch"):
        body = Graph(name)
        inner = Builder(body)
        body.add_output(inner.Neg(inner.Neg(body.add_input("v", x.type))), "r")
        bodies[name] = body
    condition = graph.add_input("c", Type(BOOL, ()))
    graph.add_output(b.add("If", [condition], captures=[x], subgraphs=bodies), "y")
    apply_rules(graph, [double_negation])
    verify(graph)
    assert all(len(body) == 0 for n in graph.nodes() for body in n.subgraphs.values())


def test_a_recomputation_stays_one() -> None:
    graph, b, x = start()
    value = b.Add(b.MatMul(x, x), x)
    for node in graph.nodes():
        node.metadata["recompute"] = "2"
    graph.add_output(value, "y")
    apply_rules(graph, [gemm])
    (made,) = graph.nodes()
    assert made.op == "Gemm" and made.metadata["recompute"] == "2"


@pytest.mark.parametrize("formula", [
    lambda b, x, one, zero: b.Sub(zero, x),
    lambda b, x, one, zero: b.Log(b.Add(b.Exp(x), one)),
    lambda b, x, one, zero: b.Log(b.Sub(one, b.Sigmoid(x))),
    lambda b, x, one, zero: b.Div(one, b.Add(b.Exp(b.Neg(x)), one)),
], ids=["negation", "softplus", "complement", "sigmoid"])
def test_numbers_with_axes_are_kept_beside_unknown_ranks(formula: Callable[..., Value]) -> None:
    """A result of unknown rank may have the axes of a 1 or 0."""
    graph = Graph("broadcast")
    x = graph.add_input("x", Type(FLOAT64, None))
    one, zero = graph.add_constant(np.ones((1, 1))), graph.add_constant(np.zeros((1, 1)))
    graph.add_output(formula(Builder(graph), x, one, zero), "y")
    feeds = {"x": np.array([0.5, 1.0, 2.0])}
    got, expected = (evaluate(g, feeds)["y"] for g in (PassManager().run(graph).model, graph))
    assert got.shape == expected.shape == (1, 3)
    np.testing.assert_allclose(got, expected, rtol=1e-14)
