"""Every op case through the program: the same bits as the reference evaluator, whatever is known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph, Node
from flowgrad.ir.ops.registry import Trait, all_ops, opdef
from flowgrad.runtime.kernels import bind, may_overwrite, takes_out
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.runtime.splits import Blocks
from tests.op_cases import Case, all_cases, forms

CASES = all_cases()
SEED = 7


def assert_same(got: dict[str, Array], expected: dict[str, Array]) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        mine = got[name]
        assert mine.dtype == array.dtype and mine.shape == array.shape, name
        if array.dtype == object:
            assert mine.tolist() == array.tolist(), name
        else:
            assert np.ascontiguousarray(mine).tobytes() == np.ascontiguousarray(array).tobytes(), (name, mine, array)


@pytest.mark.parametrize(("case", "symbolic"), forms(CASES))
def test_program_equals_evaluator(case: Case, symbolic: bool) -> None:
    arrays = case.arrays()
    graph, _ = case.graph(arrays, symbolic)
    feeds = case.feeds(arrays)
    expected = evaluate(graph, feeds, rng=np.random.default_rng(SEED))
    program = NumpyProgram(graph, threads=2, seed=SEED)
    for _ in range(2):  # the second run meets used buffers
        assert_same(program.run(feeds), expected)


@pytest.mark.parametrize("case", CASES, ids=[c.id for c in CASES])
def test_program_within_a_graph(case: Case) -> None:
    """Operands that lie in planned buffers, results that are used again: no buffer is overwritten too early."""
    arrays = case.arrays()
    graph, node = _surrounded(case, arrays)
    feeds = case.feeds(arrays)
    expected = evaluate(graph, feeds, rng=np.random.default_rng(SEED))
    program = NumpyProgram(graph, threads=1, seed=SEED)
    for _ in range(2):
        assert_same(program.run(feeds), expected)


def _surrounded(case: Case, arrays: list[Array | None]) -> tuple[Graph, Node]:
    graph, node = case.graph(arrays)
    b = Builder(graph)
    for fed in list(graph.inputs):
        if not fed.type.dtype.is_float or fed.type.dtype.is_narrow:
            continue
        before = b.Add(fed, b.Mul(fed, 0.0))  # a planned buffer with the bits of the input
        for user in fed.users:
            if user is node:
                graph.set_inputs(user, [before if v is fed else v for v in user.inputs],
                                 [before if v is fed else v for v in user.captures])
    for value in node.results:
        if value.type.dtype.is_float and not value.type.dtype.is_narrow:
            filler = b.Exp(b.Mul(value, 0.5))
            graph.add_output(b.Add(b.Mul(filler, value), b.Sub(value, filler)))
    return graph, node


SPECIALISED = [c for c in CASES if opdef(c.op).ufunc is not None or opdef(c.op).specialise_rule is not None]


@pytest.mark.parametrize("case", SPECIALISED, ids=[c.id for c in SPECIALISED])
def test_fast_kernels_are_the_kernels(case: Case) -> None:
    arrays = case.arrays()
    graph, node = case.graph(arrays)
    bound = bind(node, opdef(case.op), Blocks(1))
    if not bound.positional_out:
        assert opdef(case.op).specialise_rule is not None or not takes_out(node, opdef(case.op)) or _mixed(arrays)
        return
    expected = evaluate(graph, case.feeds(arrays))[node.output().name]
    out = np.empty_like(expected)
    with np.errstate(all="ignore"):
        bound.function(*arrays, out)
    assert out.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(n for n, d in all_ops().items() if d.specialise_rule is not None))
def test_specialised_kernels_are_the_kernels_in_both_widths(name: str, dtype: str) -> None:
    """Every float64 row again in float32; a rule that no row reaches proves nothing."""
    reached = 0
    for case in (c for c in CASES if c.op == name):
        arrays = [a.astype(dtype) if a is not None and a.dtype == np.float64 else a for a in case.arrays()]
        graph, node = case.graph(arrays)
        definition = opdef(name)
        rule = definition.specialise_rule
        kernel = rule(node) if rule is not None and takes_out(node, definition) else None
        if kernel is None or {a.dtype for a in arrays if a is not None and a.dtype.kind == "f"} != {np.dtype(dtype)}:
            continue
        reached += 1
        expected = evaluate(graph, case.feeds(arrays))[node.output().name]
        out = np.empty_like(expected)
        with np.errstate(all="ignore"):
            kernel(*arrays, out)
        assert out.tobytes() == np.ascontiguousarray(expected).tobytes(), case.id
    assert reached


def _mixed(arrays: list[Array | None]) -> bool:
    return len({a.dtype for a in arrays if a is not None}) > 1 or any(a is not None and a.dtype == object for a in arrays)


ALIASED = [c for c in CASES if opdef(c.op).in_place]


@pytest.mark.parametrize("case", ALIASED, ids=[c.id for c in ALIASED])
def test_in_place_kernels_may_write_over_each_operand(case: Case) -> None:
    arrays = case.arrays()
    graph, node = case.graph(arrays)
    definition = opdef(case.op)
    if not takes_out(node, definition) or not may_overwrite(node, definition):
        pytest.skip("nothing is overwritten for this dtype")
    expected = evaluate(graph, case.feeds(arrays))[node.output().name]
    bound = bind(node, definition, Blocks(1))
    for index, array in enumerate(arrays):
        if array is None or array.shape != expected.shape or array.dtype != expected.dtype:
            continue
        given = [None if a is None else a.copy() for a in arrays]
        target = given[index]
        with np.errstate(all="ignore"):
            if bound.positional_out:
                bound.function(*given, target)
            else:
                bound.function(*given, out=target, **bound.keywords)
        assert target is not None and target.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_in_place_ops_are_elementwise() -> None:
    in_place = {name for name, definition in all_ops().items() if definition.in_place}
    for name in in_place:
        assert Trait.ELEMENTWISE in opdef(name).traits, name
    assert {c.op for c in ALIASED} == in_place
