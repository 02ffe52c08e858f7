"""Golden IR: every file of tests/golden holds a pipeline, a graph, and the graph it must become."""

from __future__ import annotations

import difflib
from dataclasses import replace

import pytest

from flowgrad.ir.text import format_graph, parse_graph
from flowgrad.passes.canonicalize import RULES as CANONICAL
from flowgrad.passes.check import compare
from flowgrad.passes.manager import PassManager
from flowgrad.passes.rewrite import apply_rules
from flowgrad.passes.simplify import RULES as SIMPLIFYING
from flowgrad.passes.stabilize import RULES as STABILIZING
from flowgrad.tools.maintenance.update_golden import FOLDER, Golden, read_golden

GOLDEN = [read_golden(path) for path in sorted(FOLDER.glob("*.ir"))]
IDS = [g.path.stem for g in GOLDEN]
assert GOLDEN, f"no golden files in {FOLDER}"


@pytest.mark.parametrize("golden", GOLDEN, ids=IDS)
def test_golden(golden: Golden) -> None:
    got = golden.got()
    diff = "\n".join(difflib.unified_diff(golden.expected.splitlines(), got.splitlines(), "expected", "got", lineterm=""))
    assert got == golden.expected, f"before:\n{golden.before}\n\ngot:\n{got}\n\nexpected:\n{golden.expected}\n\n{diff}"


@pytest.mark.parametrize("golden", GOLDEN, ids=IDS)
def test_golden_is_printed_as_it_is_read(golden: Golden) -> None:
    assert format_graph(parse_graph(golden.before)) == golden.before
    assert format_graph(parse_graph(golden.expected)) == golden.expected


@pytest.mark.parametrize("golden", GOLDEN, ids=IDS)
def test_golden_keeps_values_and_gradients(golden: Golden) -> None:
    before = golden.graph()
    for stage in PassManager(golden.pipeline).stages:
        after = PassManager(str(stage), verify=True).run(before).model
        verdict = compare(before, after, stage.pass_.kind)
        assert not verdict.difference, verdict.difference
        before = after


@pytest.mark.parametrize("golden", GOLDEN, ids=IDS)
def test_a_second_run_changes_nothing(golden: Golden) -> None:
    manager = PassManager(golden.pipeline, verify=True)
    if any(stage.pass_.kind == "extends" for stage in manager.stages):
        pytest.skip("it appends every time")
    once = manager.run(golden.graph()).model
    again = manager.run(once)
    assert not [str(step) for step in again.steps if step.applied]


def test_every_rule_has_a_golden_test() -> None:
    fired: set[str] = set()
    for golden in GOLDEN:
        for step in PassManager(golden.pipeline).run(golden.graph()).steps:
            fired |= set(step.applied)
    assert not sorted({r.name for r in (*CANONICAL, *SIMPLIFYING, *STABILIZING)} - fired)


@pytest.mark.parametrize("golden", GOLDEN, ids=IDS)
def test_looking_behind_the_operands_leaves_out_nothing(golden: Golden) -> None:
    rules = [*STABILIZING, *CANONICAL, *SIMPLIFYING]
    assert any(rule.behind for rule in rules)
    quick, thorough = golden.graph(), golden.graph()
    apply_rules(quick, rules)
    apply_rules(thorough, [replace(rule, behind=frozenset()) for rule in rules])
    assert format_graph(quick) == format_graph(thorough)
