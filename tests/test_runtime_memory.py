"""The memory of programs: what is reused, planned, bounded and handed out."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, LimitError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import INITIALIZER, PARAMETER, Array, Graph
from flowgrad.ir.limits import Limits
from flowgrad.ir.types import FLOAT32, INT64, Type
from flowgrad.runtime.numpy_program import NumpyProgram
from tests.runtime_graphs import N, assert_bitwise, feed, mlp, pointwise


def test_outputs_alias_nothing() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (N, 4)))
    w = graph.add_constant(np.ones((4, 4), np.float32), "w", INITIALIZER)
    p = graph.add_constant(np.ones((2, 2), np.float32), "p", PARAMETER)
    y = b.Mul(x, 2.0)
    t = b.Transpose(y)
    for name, value in (("x_again", x), ("w_again", w), ("p_again", p), ("y", y), ("y_twice", y), ("t", t),
                        ("r", b.Reshape(y, [-1])), ("i", b.Identity(x)), ("s", b.Slice(x, [0], [1])),
                        ("e", b.Expand(b.ReduceSum(x, keepdims=0), [3, 3])), ("flat", b.Reshape(b.Neg(y), [-1]))):
        graph.add_output(value, name)
    program = NumpyProgram(graph)
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    expected = evaluate(graph, feeds)
    first = program.run(feeds)
    kept = {k: v.copy() for k, v in first.items()}
    assert_bitwise(first, expected)
    everything = [feeds["x"], w.constant, p.producer.data, *first.values()]
    for i, a in enumerate(everything):
        for other in everything[:i]:
            assert a is not None and other is not None and not np.shares_memory(a, other)
    for array in first.values():
        array[...] = 7.0
    assert_bitwise(program.run(feeds), kept)
    second = program.run({"x": feeds["x"] + 1})
    for name, array in first.items():
        assert not np.shares_memory(array, second[name])
        assert (array == 7.0).all()


def test_a_chain_needs_few_buffers() -> None:
    graph = Graph()
    b = Builder(graph)
    y = graph.add_input("x", Type(FLOAT32, (1024,)))
    for _ in range(50):
        y = b.Tanh(b.Mul(y, 2.0))
    graph.add_output(y, "y")
    plan = NumpyProgram(graph).plan({})
    assert plan.arena_bytes == 4096 and plan.peak_bytes == 8192 and plan.complete


def test_steady_state_allocates_only_outputs() -> None:
    graph = mlp((64, 256, 256, 8), batch=64)
    program = NumpyProgram(graph, threads=1)
    feeds = feed(64, 64)
    result = program.run(feeds)
    outputs = sum(a.nbytes for a in result.values())
    del result
    tracemalloc.start()
    try:
        base = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        program.run(feeds)
        peak = tracemalloc.get_traced_memory()[1] - base
    finally:
        tracemalloc.stop()
    buffers = program.plan({"x": (64, 64)}).arena_bytes
    assert buffers > 100_000
    assert peak < outputs + 40_000


def test_plan_predicts_what_a_run_allocates() -> None:
    program = NumpyProgram(mlp((64, 256, 256, 8)), threads=1)
    plan = program.plan({"x": (128, 64)})
    feeds = feed(128, 64)
    tracemalloc.start()
    try:
        base = tracemalloc.get_traced_memory()[0]
        program.run(feeds)
        peak = tracemalloc.get_traced_memory()[1] - base
    finally:
        tracemalloc.stop()
    assert plan.complete and plan.steps > 10
    assert 0.7 * plan.peak_bytes < peak < plan.peak_bytes + 600_000  # code and types of the specialisation come on top


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_plan_counts_the_scratch_that_each_thread_has_for_its_pieces(threads: int) -> None:
    graph = Graph()
    b = Builder(graph)
    y = graph.add_input("x", Type(FLOAT32, (N, 16, 96, 96)))
    for k in range(4):
        w = graph.add_constant(np.full((16, 16, 3, 3), 0.01, np.float32), f"w{k}", INITIALIZER)
        y = b.Relu(b.Conv(y, w, pads=[1, 1, 1, 1]))
    graph.add_output(b.ReduceSum(y, keepdims=0), "y")
    program = NumpyProgram(graph, threads=threads)
    feeds = {"x": np.ones((8, 16, 96, 96), np.float32)}
    plan = program.plan({"x": (8, 16, 96, 96)})
    scratch = plan.peak_bytes - plan.arena_bytes
    assert scratch > threads * 1e5
    tracemalloc.start()
    try:
        base = tracemalloc.get_traced_memory()[0]
        for _ in range(3):
            program.run(feeds)
        peak = tracemalloc.get_traced_memory()[1] - base
    finally:
        tracemalloc.stop()
    assert peak <= plan.peak_bytes + 600_000  # code and types of the specialisation come on top
    if threads == 1:
        assert peak > 0.95 * plan.peak_bytes


@pytest.mark.parametrize(("shapes", "code"), [
    ({}, "missing"), ({"y": (1,)}, "name"), ({"x": (1, 5)}, "shape"), ({"x": (-1, 4)}, "shape"), ({"x": (4,)}, "shape"),
])
def test_plan_checks_its_shapes(shapes: dict[str, tuple[int, ...]], code: str) -> None:
    with pytest.raises(InputError) as caught:
        NumpyProgram(mlp()).plan(shapes)
    assert caught.value.code == code


def _bomb_static() -> tuple[Graph, dict[str, Array]]:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (1,)))
    graph.add_output(b.ReduceSum(b.Expand(x, [1 << 20, 1 << 20])), "y")
    return graph, {"x": np.ones(1, np.float32)}


def _bomb_shape_input() -> tuple[Graph, dict[str, Array]]:
    graph = Graph()
    b = Builder(graph)
    shape = graph.add_input("shape", Type(INT64, (2,)))
    graph.add_output(b.ReduceSum(b.ConstantOfShape(shape)), "y")
    return graph, {"shape": np.array([1 << 20, 1 << 20])}


def _bomb_computed() -> tuple[Graph, dict[str, Array]]:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (2,)))
    graph.add_output(b.ReduceSum(b.ConstantOfShape(b.Cast(x, to=7))), "y")
    return graph, {"x": np.array([1 << 20, 1 << 20], np.float32)}


def _bomb_doubling() -> tuple[Graph, dict[str, Array]]:
    graph = Graph()
    b = Builder(graph)
    y = graph.add_input("x", Type(FLOAT32, (1,)))
    for _ in range(40):
        y = b.Concat(y, y, axis=0)
    graph.add_output(y, "y")
    return graph, {"x": np.ones(1, np.float32)}


@pytest.mark.parametrize("bomb", [_bomb_static, _bomb_shape_input, _bomb_computed, _bomb_doubling])
def test_bombs_are_refused_before_anything_is_allocated(bomb: Any) -> None:
    graph, feeds = bomb()
    program = NumpyProgram(graph)
    tracemalloc.start()
    try:
        with pytest.raises(LimitError) as caught:
            program.run(feeds)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == "tensor_bytes" and caught.value.where
    assert peak < 10_000_000


def test_limits_hold_exactly() -> None:
    graph = pointwise("Neg", shape=(1024,))
    feeds = {"x": np.ones(1024)}
    NumpyProgram(graph, limits=Limits(tensor_bytes=8192)).run(feeds)
    with pytest.raises(LimitError, match="tensor_bytes"):
        NumpyProgram(graph, limits=Limits(tensor_bytes=8191)).run(feeds)
    needed = NumpyProgram(graph).plan({}).peak_bytes
    NumpyProgram(graph, limits=Limits(live_bytes=needed)).run(feeds)
    with pytest.raises(LimitError, match="live_bytes"):
        NumpyProgram(graph, limits=Limits(live_bytes=needed - 1)).run(feeds)
