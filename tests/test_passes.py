"""Passes, the manager, its hooks, checking and bisecting; every pass over the graph of every op case."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad.passes.registry as registry
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, PassError, RunError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import INITIALIZER, Graph, Value
from flowgrad.ir.registry import scoped
from flowgrad.ir.text import format_graph, parse_graph
from flowgrad.ir.types import BOOL, FLOAT32, FLOAT64, Dim, Type
from flowgrad.passes import available, fold
from flowgrad.passes.bisect import bisect
from flowgrad.passes.check import CheckKind, compare, gradients
from flowgrad.passes.differentiate import adjoint
from flowgrad.passes.edits import fingerprint, is_shared
from flowgrad.passes.hooks import Dump, PrintAfter, PrintAfterChange, PrintBefore, Reproducer, Statistics, Timing
from flowgrad.passes.manager import DEFAULT_PIPELINE, PassManager, run_pass
from flowgrad.passes.pipeline import format_pipeline, parse_pipeline
from flowgrad.passes.registry import pass_
from tests.op_cases import Case, all_cases, forms

CASES = all_cases()
IDS = [c.id for c in CASES]
PASSES = ("stabilize", "canonicalize", "fold", "cse", "simplify", "dce", "expand")


def small() -> Graph:
    """y = -(-(x * 1)) + 0.5, with a dead node."""
    graph = Graph("small")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (Dim.named("N"), 3)))
    b.Exp(x)
    graph.add_output(b.Add(b.Neg(b.Neg(b.Mul(x, 1.0))), 0.5), "y")
    return graph


@pytest.fixture
def declare() -> Iterator[Callable[..., None]]:
    """Declare passes that are forgotten after the test."""

    def add(name: str, kind: registry.Kind, function: Callable[[Graph], None]) -> None:
        pass_(name, kind=kind)(function)

    with scoped():
        yield add


# ---- semantics ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "symbolic"), forms(CASES))
def test_every_pass_keeps_every_op(case: Case, symbolic: bool) -> None:
    """Alone on the case and its adjoint, together on the case; running twice equals running once."""
    arrays = case.arrays()
    graph, _ = case.graph(arrays, symbolic)
    feeds = case.feeds(arrays)
    joint = with_gradients(graph)
    for name in PASSES:
        if name != "expand" or has_plain_form(joint):
            keeps(joint, feeds, name, derivatives=False)
    keeps(graph, feeds, DEFAULT_PIPELINE, derivatives=True)


def has_plain_form(graph: Graph) -> bool:
    """Return whether the rank of everything is known: some ops of the flowgrad domain have no plain form otherwise."""
    return all(v is None or v.type.rank is not None for n in graph.nodes() for v in (*n.inputs, *n.outputs))


def with_gradients(graph: Graph) -> Graph:
    """Return ``graph`` with the gradients of the sum of its float outputs, or ``graph`` if it has none."""
    joint = graph.copy()
    b = Builder(joint)
    seeds = [(y, b.filled(1.0, y)) for y in joint.outputs if y.type.dtype.is_float]
    wrt = [x for x in joint.inputs if x.type.dtype.is_float]
    try:
        found = adjoint(joint, seeds, wrt, zero="allow") if seeds and wrt else []
    except Exception as error:
        if type(error).__name__ != "NotDifferentiableError":
            raise
        return graph
    for x, x_bar in zip(wrt, found, strict=True) if found else ():
        if x_bar is not None:
            joint.add_output(x_bar, f"{x.name}_grad")
    return joint


def keeps(graph: Graph, feeds: dict[str, np.ndarray], pipeline: str, *, derivatives: bool) -> None:
    current = graph
    for stage in PassManager(pipeline).stages:
        result = PassManager(str(stage), verify=True).run(current)
        if not result.changed:
            continue
        after = result.model
        verdict = compare(current, after, stage.pass_.kind, feeds, derivatives=derivatives)
        assert not verdict.difference, f"{stage}: {verdict.difference}\n{format_graph(current)}\n{format_graph(after)}"
        again = PassManager(str(stage), verify=True).run(after)
        assert not [s.applied for s in again.steps if s.applied], format_graph(after)
        current = after


def test_the_caller_keeps_its_graph() -> None:
    graph = small()
    text, version = format_graph(graph), fingerprint(graph)
    result = PassManager(DEFAULT_PIPELINE, verify=True).run(graph)
    assert (format_graph(graph), fingerprint(graph)) == (text, version)
    assert len(result.model) < len(graph)
    assert [n.name for n in result.model.output_entries] == ["y"]


def test_a_graph_that_nobody_else_holds_may_be_edited_itself() -> None:
    graph = small()
    wanted = format_graph(PassManager(DEFAULT_PIPELINE).run(graph).model)
    result = PassManager(DEFAULT_PIPELINE).run(graph, in_place=True)
    assert result.model is graph
    assert format_graph(graph) == wanted


def test_changed_is_read_off_the_version(declare: Callable[..., None]) -> None:
    def idle(graph: Graph) -> None:
        """Do nothing."""

    declare("idle", "exact", idle)
    steps = PassManager("idle,canonicalize,canonicalize").run(small()).steps
    assert [s.changed for s in steps] == [False, True, False]


# ---- single passes --------------------------------------------------------------------------------------------------------


def test_cse_keeps_initializers_and_pinned_values_apart() -> None:
    graph = Graph("g")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (2,)))
    ws = [graph.add_constant(np.zeros(2, np.float32), name, INITIALIZER) for name in ("w1", "w2")]
    first, second = b.Exp(x), b.Exp(x)
    graph.pin(second)
    graph.add_output(b.Sum(first, second, b.Add(x, ws[0]), b.Add(x, ws[1])), "y")
    run_pass("cse", graph)
    assert len(graph) == 5
    assert second.producer.op == "Exp" and second.uses


def test_cse_tells_zeros_apart_and_nan_alike() -> None:
    graph = Graph("g")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, ()))
    terms = [b.Mul(x, float(c)) for c in (0.0, -0.0, np.nan, np.nan, 1.0)]
    graph.add_output(b.Sum(*terms), "y")
    run_pass("cse", graph)
    assert sum(n.op == "Mul" for n in graph.nodes()) == 4


def test_cse_keeps_recomputations_apart() -> None:
    graph = Graph("g")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (2,)))
    again = b.Exp(x)
    again.producer.metadata["recompute"] = "1"
    graph.add_output(b.Add(b.Exp(x), again), "y")
    run_pass("cse", graph)
    assert len(graph) == 3


def test_fold_leaves_parameters_pinned_values_and_failures() -> None:
    graph = Graph("g")
    b = Builder(graph)
    p = graph.add_constant(np.ones(2, np.float32), "p", "parameter")
    pinned = b.Sqrt(graph.add_constant(np.float32(4)))
    graph.rename(pinned, "kept")
    graph.pin(pinned)
    fails = b.Div(graph.add_constant(np.int64(1)), graph.add_constant(np.int64(0)))
    for name, value in (("a", b.Exp(p)), ("b", b.Neg(pinned)), ("c", fails)):
        graph.add_output(value, name)
    run_pass("fold", graph)
    assert sorted(n.op for n in graph.nodes()) == ["Div", "Exp", "Neg", "Sqrt"]
    with pytest.raises(RunError):
        evaluate(graph)


def test_fold_counts_the_users_of_a_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting them at every user took time in the square of their number."""
    graph = Graph("g")
    b = Builder(graph)
    weight = graph.add_constant(np.ones(2, np.float32), "w", "initializer")
    for index in range(50):
        graph.add_output(b.Exp(weight), f"y{index}")
    counted: list[Value] = []

    def counting(value: Value, **keywords: Any) -> bool:
        counted.append(value)
        return is_shared(value, **keywords)

    monkeypatch.setattr(fold, "is_shared", counting)
    run_pass("fold", graph)
    assert counted == [weight] and len(graph) == 50


def test_fold_refuses_bombs_before_it_allocates() -> None:
    graph = Graph("g")
    b = Builder(graph)
    huge = b.Expand(graph.add_constant(np.float32(1)), [2**20, 2**20])
    graph.add_output(b.ReduceSum(huge, keepdims=0), "y")
    run_pass("fold", graph)
    assert len(graph) == 2


def test_fold_holds_no_more_than_the_frontier() -> None:
    graph = Graph("g")
    b = Builder(graph)
    value = graph.add_constant(np.ones(100, np.float32), "c")
    for _ in range(50):
        value = b.Add(value, 1.0)
    graph.add_output(value, "y")
    run_pass("fold", graph)
    run_pass("dce", graph)
    assert len(graph) == 0 and len(graph.constants) == 1
    assert evaluate(graph)["y"][0] == 51


def test_dce_reaches_into_subgraphs_and_keeps_inputs_and_pinned_values() -> None:
    graph = Graph("g")
    b = Builder(graph)
    x, c = graph.add_input("x", Type(FLOAT32, (2,))), graph.add_input("c", Type(BOOL, ()))
    bodies = {}
    for name in ("then_branch", "else_branch"):
        body = Graph(name)
        inner = Builder(body)
        v = body.add_input("v", x.type)
        inner.Exp(v)
        body.add_output(inner.Neg(v), "r")
        bodies[name] = body
    graph.add_output(b.add("If", [c], captures=[x], subgraphs=bodies), "y")
    kept = b.Tanh(x)
    graph.pin(kept)
    unused = graph.add_input("unused", x.type)
    run_pass("dce", graph)
    assert all(len(body) == 1 for n in graph.nodes() for body in n.subgraphs.values())
    assert kept.name in graph.values and unused in graph.inputs


def test_adjoint_and_tangent_as_passes() -> None:
    graph = small()
    result = PassManager("adjoint,canonicalize,dce", verify=True, check=True).run(graph).model
    assert [e.name for e in result.output_entries] == ["y", "x_grad"]
    x = np.ones((2, 3), np.float32)
    assert np.array_equal(evaluate(result, {"x": x, "y_grad": 2 * x})["x_grad"], 2 * x)
    forward = PassManager("tangent", verify=True, check=True).run(graph).model
    assert np.array_equal(evaluate(forward, {"x": x, "x_tangent": 3 * x})["y_tangent"], 3 * x)
    with pytest.raises(InputError, match="did you mean 'x'"):
        PassManager("adjoint{wrt=xx}").run(graph)


HAZARDS = {
    "log_softmax": "Log(Softmax(x))", "log_sigmoid": "-Log(Sigmoid(x))", "log_sum_exp": "Log(ReduceSum(Exp(x)))",
    "softplus": "Log(Exp(x) + 1)", "sigmoid": "1 / (1 + Exp(-x))", "root": "Sqrt(x * x)", "softmax": "Exp(x) / sum",
    "norm": "Sqrt(ReduceSum(x * x))", "tanh": "(Exp(x) - Exp(-x)) / (Exp(x) + Exp(-x))", "binary": "cross entropy",
}


def hazard(name: str) -> Graph:
    graph = Graph(name)
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (3,)))
    one = graph.add_constant(np.float64(1))
    e = b.Exp(x)
    built: dict[str, Callable[[], Any]] = {
        "log_softmax": lambda: b.Log(b.Softmax(x)),
        "log_sigmoid": lambda: b.Neg(b.Log(b.Sigmoid(x))),
        "log_sum_exp": lambda: b.Log(b.ReduceSum(e, [0])),
        "softplus": lambda: b.Log(b.Add(e, 1.0)),
        "sigmoid": lambda: b.Div(one, b.Add(one, b.Exp(b.Neg(x)))),
        "root": lambda: b.Sqrt(b.Mul(x, x)),
        "softmax": lambda: b.Div(e, b.ReduceSum(e, [0], keepdims=1)),
        "norm": lambda: b.Sqrt(b.ReduceSum(b.Mul(x, x), [0])),
        "tanh": lambda: _tanh(b, e, b.Exp(b.Neg(x))),
        "binary": lambda: b.Add(b.Log(b.Sigmoid(x)), b.Log(b.Sub(one, b.Sigmoid(x)))),
    }
    graph.add_output(built[name](), "y")
    return graph


def _tanh(b: Builder, p: Value, q: Value) -> Any:
    return b.Div(b.Sub(p, q), b.Add(p, q))


@pytest.mark.parametrize("name", HAZARDS)
@pytest.mark.parametrize("at", [-1000.0, 0.0, 1000.0])
def test_stabilize_makes_hazards_finite(name: str, at: float) -> None:
    graph = hazard(name)
    feeds = {"x": np.array([at, at if name in ("root", "norm") else 0.0, at])}
    stable = PassManager("stabilize,dce", verify=True, check=True).run(graph).model
    assert np.isfinite(evaluate(stable, feeds)["y"]).all()
    assert np.isfinite(gradients(stable, feeds, ["y"], ["x"])["x"]).all()
    mild = {"x": np.array([-0.5, 0.25, 1.5])}
    np.testing.assert_allclose(evaluate(stable, mild)["y"], evaluate(graph, mild)["y"], rtol=1e-12)


def test_the_hazards_are_hazards() -> None:
    """Without the pass, at least these have a value or gradient that is not finite."""
    broken = set()
    for name in HAZARDS:
        for at in (-1000.0, 0.0, 1000.0):
            feeds = {"x": np.array([at, at if name in ("root", "norm") else 0.0, at])}
            graph = hazard(name)
            values = [evaluate(graph, feeds)["y"], gradients(graph, feeds, ["y"], ["x"])["x"]]
            if not all(np.isfinite(v).all() for v in values):
                broken.add(name)
    assert {"log_softmax", "log_sigmoid", "log_sum_exp", "softplus", "softmax", "tanh"} <= broken


# ---- the manager ----------------------------------------------------------------------------------------------------------


def test_available_lists_every_pass_with_kind_and_options() -> None:
    found = available()
    assert set(PASSES) <= set(found)
    assert found["fold"].options == {"limit": 2**20, "shared": False} and found["cse"].kind == "exact"
    assert all(p.summary for p in found.values())


def test_pipelines_read_and_print() -> None:
    stages = parse_pipeline(' fold{limit=1MiB}, adjoint{wrt=["a b",w],of=loss} ,dce')
    assert [s.options for s in stages] == [{"limit": 2**20}, {"wrt": ("a b", "w"), "of": ("loss",)}, {}]
    assert parse_pipeline(format_pipeline(stages)) == stages
    assert parse_pipeline(["cse,dce", "fold"]) == parse_pipeline("cse,dce,fold")
    assert parse_pipeline("") == []


@pytest.mark.parametrize(("text", "message"), [
    ("canonicalise", "did you mean 'canonicalize'"), ("fold{limits=3}", "did you mean 'limit'"),
    ("fold{limit=big}", "a number like 64 or 1MiB"), ("fold{limit", "expected '='"), ("cse dce", "expected ','"),
    ("fold{limit=[1,2]}", "takes one value"), ("cse{}{", "expected ','"), ('cse,"', "unexpected"), ("fold{limit=}", "missing"),
])
def test_wrong_pipelines_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PassManager(text)


def test_the_report_names_passes_and_rules() -> None:
    result = PassManager("canonicalize,dce", verify=True).run(small())
    assert "canonicalize (1/2): 5 -> 2 nodes" in result.report
    assert "drop_double_negation 1" in result.report
    assert result.changed


def test_a_pass_that_breaks_the_graph_is_caught(declare: Callable[..., None]) -> None:
    def break_type(graph: Graph) -> None:
        """Give a value a wrong type."""
        graph.nodes()[0].output().type = Type(FLOAT64, (1,))
        graph.version += 1

    declare("break_type", "exact", break_type)
    with pytest.raises(PassError, match="not valid after break_type"):
        PassManager("break_type", verify=True).run(small())


def halve(graph: Graph) -> None:
    """Miscompile: 0.5 becomes 0.25."""
    node = next(n for n in graph.nodes() if n.op == "Add")
    graph.set_inputs(node, [node.inputs[0], graph.add_constant(np.float32(0.25))])


def test_check_holds_passes_to_their_kind(declare: Callable[..., None]) -> None:
    declare("halve", "exact", halve)
    with pytest.raises(PassError, match="declared 'exact', and output 'y' differs by 0.25"):
        PassManager("canonicalize,halve", check=True).run(small())
    assert PassManager(DEFAULT_PIPELINE, check=True).run(small()).changed


def test_check_compares_gradients(declare: Callable[..., None]) -> None:
    """A pass may keep every value and still break a gradient."""

    def cut(graph: Graph) -> None:
        """Stop the gradient."""
        for node in graph.nodes():
            if node.op == "Identity":
                graph.set_op(node, "StopGradient", {})

    declare("cut", "exact", cut)
    graph = Graph("g")
    b = Builder(graph)
    graph.add_output(b.Exp(b.Identity(graph.add_input("x", Type(FLOAT64, (2,))))), "y")
    with pytest.raises(PassError, match="the gradient with respect to 'x' differs by"):
        PassManager("cut", check=True).run(graph)


def test_check_says_what_it_could_not_check() -> None:
    graph = Graph("g")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (2,)))
    graph.add_output(b.Identity(b.RandomUniformLike(x)), "y")
    (step,) = PassManager("canonicalize", check=True).run(graph).steps
    assert "draws random numbers" in step.note


def test_bisect_names_the_pass_and_the_application(declare: Callable[..., None]) -> None:
    declare("halve", "exact", halve)
    culprit = bisect("canonicalize,halve,dce", small())
    assert culprit is not None and (culprit.index, culprit.stage.name, culprit.application) == (2, "halve", 0)
    assert bisect(DEFAULT_PIPELINE, small()) is None


def test_bisect_names_the_rewrite(declare: Callable[..., None]) -> None:
    from flowgrad.passes.rewrite import apply_rules, rewrite

    @rewrite("Neg(%x)")
    def right(b, x):  # type: ignore[no-untyped-def]
        return b.Sub(b.graph.add_constant(np.float32(0)), x)

    @rewrite("Exp(%x)")
    def wrong(b, x):  # type: ignore[no-untyped-def]
        return b.Cosh(x)

    declare("swap", "rounding", lambda graph: apply_rules(graph, [right, wrong]))
    graph = Graph("g")
    b = Builder(graph)
    v = graph.add_input("x", Type(FLOAT32, (3,)))
    for _ in range(5):
        v = b.Neg(v)
    v = b.Exp(v)
    graph.rename(v, "bad")
    for _ in range(5):
        v = b.Neg(v)
    graph.add_output(v, "y")
    culprit = bisect("canonicalize,swap", PassManager("cse").run(graph).model)
    assert culprit is not None and culprit.applied is not None
    assert (culprit.applied.rule, culprit.applied.node) == ("wrong", "bad")
    assert "pass swap (number 2)" in str(culprit)


def test_hooks_print_dump_time_and_count(tmp_path: Path) -> None:
    said: list[str] = []
    timing, statistics = Timing(), Statistics()
    hooks = [PrintBefore(["dce"], said.append), PrintAfter(["canonicalize"], said.append),
             PrintAfterChange(diff=True, write=said.append), Dump(tmp_path / "dump"), timing, statistics]
    PassManager("canonicalize,cse,dce", hooks).run(small())
    assert said[0].startswith("# ---- after canonicalize (1/3): 5 -> 2 nodes")
    assert any("-  %" in text and "@@" in text for text in said)
    assert any(text.startswith("# ---- before dce ----\ngraph @small") for text in said)
    assert sorted(p.name for p in (tmp_path / "dump").iterdir()) == [
        "00-input.ir", "01-canonicalize.ir", "02-cse.ir", "03-dce.ir"]
    assert len(parse_graph((tmp_path / "dump" / "01-canonicalize.ir").read_text())) == 2
    assert set(timing.seconds) == {"canonicalize", "cse", "dce"} and "total" in timing.table()
    assert statistics.counts["canonicalize", "drop_unit"] == 1 and "drop_unit" in statistics.table()


def test_a_crash_leaves_a_reproducer(tmp_path: Path, declare: Callable[..., None]) -> None:
    def crash(graph: Graph) -> None:
        """Fail."""
        raise PassError("on purpose", code="test")

    declare("crash", "exact", crash)
    path = tmp_path / "crash.ir"
    with pytest.raises(PassError, match="on purpose"):
        PassManager("canonicalize,crash,dce", [Reproducer(path)]).run(small())
    text = path.read_text()
    assert text.startswith("# pipeline: crash,dce\n# error: PassError: on purpose\n")
    assert len(parse_graph(text)) == 2


def test_verbose_records_why_rules_did_not_fire() -> None:
    (step,) = PassManager("canonicalize", verbose=True).run(small()).steps
    assert all(reason for _, _, reason in step.misses)


def test_a_hook_sees_the_graph_before_and_after() -> None:
    seen: list[int] = []

    class Counting(CheckKind):
        def after(self, step, graph, previous):  # type: ignore[no-untyped-def]
            seen.extend((len(previous), len(graph)))
            return super().after(step, graph, previous)

    PassManager("canonicalize", [Counting()]).run(small())
    assert seen == [5, 2]


# ---- scale --------------------------------------------------------------------------------------------------------------


def long_chain(n: int) -> Graph:
    graph = Graph("chain")
    b = Builder(graph)
    value = graph.add_input("x", Type(FLOAT32, (2, 2)))
    for _ in range(n // 10):
        value = b.Mul(b.Neg(b.Neg(value)), 1.0)
        value = b.Add(b.Exp(value), b.Exp(value))
        value = b.Transpose(b.Transpose(value, perm=[1, 0]), perm=[1, 0])
        value = b.Log(b.Softmax(value))
    graph.add_output(value, "y")
    return graph


def wide_sum(n: int) -> Graph:
    graph = Graph("wide")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (2,)))
    graph.add_output(b.Sum(*(b.Identity(b.Neg(x)) for _ in range(n // 2))), "y")
    return graph


@pytest.mark.parametrize("make", [long_chain, wide_sum])
@pytest.mark.parametrize("name", [p for p in PASSES if p != "expand"])
def test_passes_are_linear(make: Callable[[int], Graph], name: str) -> None:
    """Four times the nodes take at most five times as many calls."""
    few, many = (calls_of(name, make(n)) for n in (1_000, 4_000))
    assert many < 5 * few + 1_000


def calls_of(name: str, graph: Graph) -> int:
    """Return how many functions, built-in ones included, a pass calls."""
    count = 0

    def watch(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    run_pass(name, Graph("empty"))
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        run_pass(name, graph)
    finally:
        sys.setprofile(before)
    return count
