"""What is known too little of differentiates right or refuses by name: nothing else escapes from a rule.

Every row of the table of cases meets its rules with ranks, extents and constants that are known only at run time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flowgrad.exchange.writer import write_onnx
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import NotDifferentiableError, PassError, SaveError, UnsupportedError, ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.ops.registry import FLOWGRAD, OpDef, like_first, op, opdef, refuse
from flowgrad.ir.registry import scoped
from flowgrad.ir.types import BOOL, FLOAT32, INT64, Type, type_of
from flowgrad.passes.differentiate import adjoint, expand_pass, tangent
from tests.op_cases import Case, In, all_cases, symbolic_type

Derivatives = tuple[Graph, dict[str, Value]]
"""A graph with derivatives appended, and these by name."""
Way = Callable[[Graph, Sequence[str]], Derivatives]


# ---- every operator -----------------------------------------------------------------------------------------------------


def fed_slots(case: Case) -> list[int]:
    """Return the inputs that a run gives."""
    return [i for i, spec in enumerate(case.inputs) if spec is not None and not spec.constant]


def float_slots(case: Case) -> list[int]:
    arrays = case.arrays()
    return [i for i in fed_slots(case) if (a := arrays[i]) is not None and type_of(a).dtype.is_float]


def wrt_slots(case: Case) -> list[int]:
    """Return the inputs that a row asks derivatives for."""
    arrays = case.arrays()
    return [i for i in fed_slots(case) if case.inputs[i].differentiable and arrays[i].dtype == np.float64]  # type: ignore[union-attr]


def rows(accept: Callable[[Case], Any]) -> pytest.MarkDecorator:
    chosen = [c for c in CASES if accept(c)]
    return pytest.mark.parametrize("case", chosen, ids=[c.id for c in chosen])


CASES = [c for c in all_cases() if wrt_slots(c)]


@rows(lambda case: True)
def test_floats_of_unknown_rank(case: Case) -> None:
    check_with(case, loosened(case, float_slots(case), without_rank))


@rows(lambda case: len(float_slots(case)) > 1)
def test_each_float_of_unknown_rank(case: Case) -> None:
    for slot in float_slots(case):
        check_with(case, loosened(case, [slot], without_rank), FIRST)


@rows(lambda case: float_slots(case) != fed_slots(case))
def test_everything_of_unknown_rank(case: Case) -> None:
    check_with(case, loosened(case, fed_slots(case), without_rank))


@rows(lambda case: not case.symbolic)
def test_symbolic_extents_where_the_row_has_static_ones(case: Case) -> None:
    check_with(case, loosened(case, fed_slots(case), symbolic_type))


@rows(lambda case: any(s is not None and s.constant for s in case.inputs))
def test_constants_that_are_fed(case: Case) -> None:
    fed = case
    for slot, spec in enumerate(case.inputs):
        if spec is not None and spec.constant:
            more = replace(fed, inputs=[*fed.inputs[:slot], In(spec.make, differentiable=False), *fed.inputs[slot + 1 :]])
            fed = more if is_well_typed(more, ()) else fed
    check_derivatives(fed, fed.graph(fed.arrays())[0], case)


def without_rank(array: Array, _slot: int) -> Type:
    return type_of(array).with_shape(None)


def loosened(case: Case, slots: Sequence[int], loose: Callable[[Array, int], Type]) -> list[Type | None]:
    """Return the types of the inputs, those in ``slots`` loosened one after the other as far as the op allows."""
    arrays = case.arrays()
    types: list[Type | None] = [None if a is None else type_of(a) for a in arrays]
    for slot in slots:
        array = arrays[slot]
        assert array is not None
        looser = [loose(array, slot) if i == slot else t for i, t in enumerate(types)]
        types = looser if is_well_typed(case, looser) else types
    return types


def is_well_typed(case: Case, types: Sequence[Type | None]) -> bool:
    try:
        case.graph(case.arrays(), types=types)
    except ValidationError:
        return False
    return True


# ---- derivatives --------------------------------------------------------------------------------------------------------


def check_with(case: Case, types: Sequence[Type | None], ways: Sequence[Way] | None = None) -> None:
    check_derivatives(case, case.graph(case.arrays(), types=types)[0], case, ways)


def check_derivatives(case: Case, graph: Graph, known: Case, ways: Sequence[Way] | None = None) -> None:
    """Check that every derivative of ``graph`` is that of the graph of ``known``, all of whose shapes are, or is refused."""
    wrt = [f"x{i}" for i in wrt_slots(case)]
    static, _ = known.graph(known.arrays())
    for way in ways or (*FIRST, by_adjoint_twice):
        try:
            derivatives = way(graph, wrt)
        except NotDifferentiableError as error:
            assert_says_why(case, str(error), first_order=way is not by_adjoint_twice)
            continue
        got = run(graph, case.feeds(case.arrays()), derivatives)
        assert_equal_results(got, run(static, known.feeds(known.arrays()), way(static, wrt)))


def by_adjoint(graph: Graph, wrt: Sequence[str]) -> Derivatives:
    """Return a copy of ``graph`` with the gradients appended that there are, and these."""
    joint = graph.copy()
    return joint, gradients(joint, {v.name: v for v in joint.outputs if v.type.dtype.is_float}, wrt)


def by_adjoint_twice(graph: Graph, wrt: Sequence[str]) -> Derivatives:
    joint, firsts = by_adjoint(graph, wrt)
    cotangents = [v.name for v in joint.inputs if v.name.endswith("_ct")]
    return joint, gradients(joint, {f"{n}_grad": v for n, v in firsts.items()}, [*wrt, *cotangents])


def gradients(joint: Graph, outputs: Mapping[str, Value], wrt: Sequence[str]) -> dict[str, Value]:
    values = [joint.value(n) for n in wrt]
    seeds = [(y, joint.add_input(f"{name}_ct", y.type)) for name, y in outputs.items()]
    return {n: x_bar for n, x_bar in zip(wrt, adjoint(joint, seeds, values, zero="allow"), strict=True) if x_bar is not None}


def by_tangent(graph: Graph, wrt: Sequence[str]) -> Derivatives:
    joint = graph.copy()
    outputs = [v for v in joint.outputs if v.type.dtype.is_float]
    pairs = [(x, joint.add_input(f"{x.name}_dot", x.type)) for x in map(joint.value, wrt)]
    return joint, {y.name: y_dot for y, y_dot in zip(outputs, tangent(joint, pairs, outputs), strict=True) if y_dot is not None}


FIRST: tuple[Way, ...] = (by_adjoint, by_tangent)


def run(forward: Graph, feeds: Mapping[str, Array], derivatives: Derivatives) -> dict[str, Array]:
    """Return the derivatives; each cotangent and tangent is a random array of its own, in the shape of its value."""
    joint, found = derivatives
    arrays = {**feeds, **evaluate(forward, feeds, rng=np.random.default_rng(1))}
    given = {v.name: feeds[v.name] for v in forward.inputs}
    for value in joint.inputs[len(given) :]:
        like = arrays[re.sub(r"(_grad)?_ct$|_dot$", "", value.name)]
        given[value.name] = np.random.default_rng(list(value.name.encode())).standard_normal(like.shape).astype(like.dtype)
    results = evaluate(joint, given, rng=np.random.default_rng(1), fetch=list(found.values()))
    return {name: results[value.name] for name, value in found.items()}


def assert_equal_results(got: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    for name in {**got, **expected}:
        some = got[name] if name in got else expected[name]
        mine, theirs = got.get(name, np.zeros_like(some)), expected.get(name, np.zeros_like(some))
        if mine.size == theirs.size == 0:
            continue  # what no iteration has given has no shape that one could know
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9, err_msg=name)
        assert mine.shape == theirs.shape, name


def assert_says_why(case: Case, message: str, first_order: bool) -> None:
    """Check that a refusal names the op, a reason in terms of what the op is applied to, and a path."""
    described = re.findall(r"\n  (%.*) = (\w+)\((.*)\)\n    (.*); reached by .+", message)
    assert described, message
    assert not first_order or case.op in {name for _, name, _, _ in described} or f" = {case.op}(" in message
    for _, name, operands, reason in described:
        opdef(name)
        for asked in re.findall(r"needs the ranks? of (.*), which", reason):
            assert all(f"{n}:" in operands for n in asked.split(", ")), message


# ---- rules and expansions that refuse -----------------------------------------------------------------------------------


REASONS = {"refuses": "the moon is full", "raises": "Lunar needs the rank of %x, which is not known before the run"}


@pytest.fixture(params=sorted(REASONS))
def lunar(request: pytest.FixtureRequest) -> Any:
    """An op of the flowgrad domain whose expansion refuses, or asks for a rank that is not known; yields the reason."""
    with scoped():
        definition: OpDef = op("Lunar", domain=FLOWGRAD)(lambda x: x)
        definition.types(like_first)
        if request.param == "refuses":
            definition.expansion(lambda b, node: refuse("the moon is full"))
        else:
            definition.expansion(lambda b, node: b.Transpose(b.Neg(node.input(0)), perm=range(len(b.Neg(node.input(0)).shape))))
        yield REASONS[request.param]


def applied(name: str = "Lunar") -> Graph:
    graph = Graph("moon")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, None))
    graph.add_output(b.add(name, [x], name="y"))
    return graph


def test_an_expansion_refuses_to_be_differentiated(lunar: str) -> None:
    for way in FIRST:
        with pytest.raises(NotDifferentiableError, match=rf"%y = Lunar\(%x: f32\[\*\]\)\n    {re.escape(lunar)}; reached by x -> y"):
            way(applied(), ["x"])


def test_an_expansion_refuses_the_pass(lunar: str) -> None:
    graph = applied()
    for options in ({}, {"ops": ("Lunar",)}):
        with pytest.raises(UnsupportedError, match=f"Lunar .*{re.escape(lunar)}"):
            expand_pass(graph, **options)


def test_an_expansion_refuses_export(lunar: str) -> None:
    with pytest.raises(SaveError, match=f"Lunar .*{re.escape(lunar)}"):
        write_onnx(applied())


def in_body(outer: str, name: str) -> Graph:
    """Return a graph whose If or Loop applies an op in its body; the outer node makes %y."""
    graph = Graph("outer")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, None))
    body = Graph("body")
    inside = Builder(body)
    if outer == "Loop":
        _, going = body.add_input("i", Type(INT64, ())), body.add_input("going", Type(BOOL, ()))
        body.add_output(going)
    h = body.add_input("x", x.type)
    body.add_output(inside.add(name, [h], name="z"))
    if outer == "Loop":
        graph.add_output(b.add("Loop", [np.int64(3), None, x], name="y", subgraphs={"body": body}))
        return graph
    chosen = graph.add_input("chosen", Type(BOOL, ()))
    branches = {"then_branch": body, "else_branch": body.copy()}
    graph.add_output(b.add("If", [chosen], name="y", captures=[x], subgraphs=branches))
    return graph


@pytest.mark.parametrize("outer", ["If", "Loop"])
def test_a_body_refuses_with_its_outer_node(outer: str, lunar: str) -> None:
    said = rf"%y = {outer}\((?s:.*)its body is not differentiable:\n.*%z = Lunar\((?s:.*){re.escape(lunar)}(?s:.*)reached by x -> y"
    for way in FIRST:
        with pytest.raises(NotDifferentiableError, match=said):
            way(in_body(outer, "Lunar"), ["x"])
    for act, error in ((expand_pass, UnsupportedError), (write_onnx, SaveError)):
        with pytest.raises(error, match=f"Lunar .*{re.escape(lunar)}"):
            act(in_body(outer, "Lunar"))


@pytest.mark.parametrize("outer", ["If", "Loop"])
def test_a_rule_in_a_body_that_lacks_a_rank_refuses_with_its_outer_node(outer: str) -> None:
    for way in FIRST:
        with pytest.raises(NotDifferentiableError, match=rf"(?s)= {outer}\(.*GlobalMaxPool needs the rank of %x,.*reached by x -> y"):
            way(in_body(outer, "GlobalMaxPool"), ["x"])


def test_rules_refuse_like_those_that_say_so() -> None:
    """A rule that meets types it does not get along with refuses; a rule that is wrong is a defect, and not hidden."""
    with scoped():
        made: OpDef = op("Made")(lambda x: x)
        made.types(like_first).adjoint(lambda b, node, y_bar: b.MatMul(y_bar, np.ones((7, 7, 7), np.float32)))
        graph = Graph()
        x = graph.add_input("x", Type(FLOAT32, (2, 3)))
        graph.add_output(Builder(graph).add("Made", [x], name="y"))
        with pytest.raises(NotDifferentiableError, match=r"%y = Made\(.*\n.*3 and 7.*reached by x -> y"):
            by_adjoint(graph, ["x"])
        made.adjoint(lambda b, node, y_bar: len(None))  # type: ignore[arg-type]
        with pytest.raises(PassError, match="the adjoint rule of Made failed .TypeError"):
            by_adjoint(applied("Made"), ["x"])


def test_a_recurrence_of_an_unknown_activation_refuses() -> None:
    graph = Graph()
    x = graph.add_input("x", Type(FLOAT32, (3, 2, 4)))
    w, r = np.ones((1, 3, 4), np.float32), np.ones((1, 3, 3), np.float32)
    graph.add_output(Builder(graph).add("RNN", [x, w, r], {"hidden_size": 3, "activations": ("Tang",)}, name="y"))
    for way in FIRST:
        with pytest.raises(NotDifferentiableError, match=r"(?s)%y = RNN\(.*no activation 'Tang'.*reached by x -> y"):
            way(graph, ["x"])


# ---- export of what is known too little of ------------------------------------------------------------------------------


@rows(lambda case: True)
def test_export_without_ranks_succeeds_or_says_why_not(case: Case) -> None:
    graph, _ = case.graph(case.arrays(), types=loosened(case, fed_slots(case), without_rank))
    graphs = [graph]
    for way in FIRST:
        try:
            joint, found = way(graph, [f"x{i}" for i in wrt_slots(case)])
        except NotDifferentiableError:
            continue
        for name, value in found.items():
            joint.add_output(value, f"{name}_result")
        graphs.append(joint)
    for exported in graphs:
        try:
            write_onnx(exported)
        except SaveError as error:
            assert re.match(r"\w+ cannot be written in other operators: ", str(error)), error


def test_a_residual_without_a_rank_refuses_export() -> None:
    graph = Graph()
    x = graph.add_input("x", Type(FLOAT32, None))
    scale = graph.add_input("scale", Type(FLOAT32, (3,)))
    b = Builder(graph)
    node = b.add_node("RMSNormalization", [x, scale], {}, outputs=2)
    graph.add_output(b.Neg(node.output(1)))
    with pytest.raises(SaveError, match="'inv_rms' of RMSNormalization .*needs the rank of %x, which"):
        write_onnx(graph)
