"""The program: specialisation, caching, memory, threads, segments, refusals, pickling."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import EngineError, InputError, LimitError, ResourceError, RunError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import INITIALIZER, PARAMETER, Array, Graph
from flowgrad.ir.limits import Limits
from flowgrad.ir.ops.registry import Trait, op
from flowgrad.ir.registry import scoped
from flowgrad.ir.types import BOOL, FLOAT32, FLOAT64, INT64, Dim, Type, dtype_of
from flowgrad.passes.differentiate import adjoint
from flowgrad.runtime import codegen, engines
from flowgrad.runtime import executor as executor_module
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.runtime.program import Program
from flowgrad.runtime.splits import SplitKernel
from flowgrad.session import InferenceSession

N, M = Dim.named("N"), Dim.named("M")


def mlp(sizes: tuple[int, ...] = (4, 16, 16, 1), *, batch: int | Dim = N, seed: int = 0, dtype: Any = FLOAT32,
        gradient: bool = True) -> Graph:
    """Return a tanh network with its squared sum, and gradients of the weights."""
    rng = np.random.default_rng(seed)
    graph = Graph("mlp")
    b = Builder(graph)
    h = graph.add_input("x", Type(dtype, (batch, sizes[0])))
    weights = []
    for i, (n, m) in enumerate(zip(sizes, sizes[1:], strict=False)):
        w = graph.add_constant(rng.standard_normal((n, m)).astype(dtype.numpy) / np.sqrt(n, dtype=dtype.numpy), f"w{i}",
                               PARAMETER if gradient else INITIALIZER)
        c = graph.add_constant(rng.standard_normal(m).astype(dtype.numpy), f"b{i}", PARAMETER if gradient else INITIALIZER)
        h = b.Add(b.MatMul(h, w), c)
        if i < len(sizes) - 2:
            h = b.Tanh(h)
        weights += [w, c]
    loss = b.ReduceSum(b.Mul(h, h), keepdims=0)
    graph.add_output(loss, "loss")
    if gradient:
        found = adjoint(graph, [(loss, graph.add_constant(np.ones((), dtype.numpy)))], weights)
        for w, w_bar in zip(weights, found, strict=True):
            assert w_bar is not None
            graph.add_output(w_bar, f"{w.name}_grad")
    return graph


def feed(n: int, k: int = 4, dtype: Any = np.float32, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((n, k)).astype(dtype)}


def assert_bitwise(got: dict[str, Array], expected: dict[str, Array]) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype, name
        assert got[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


def pointwise(op: str = "Tanh", *, shape: tuple[Any, ...] = (N, 3), dtype: Any = FLOAT64) -> Graph:
    graph = Graph("pointwise")
    graph.add_output(getattr(Builder(graph), op)(graph.add_input("x", Type(dtype, shape))), "y")
    return graph


ENGINES = ("numpy", "ort")
RUNNERS = (*ENGINES, "evaluate")


def skip_unless_ready(engine: str) -> None:
    if engines.engines()[engine] != "ready":
        pytest.skip(engines.engines()[engine])


def compiled(graph: Graph, engine: str) -> Program:
    """Return a program; skips the test where the engine cannot start."""
    skip_unless_ready(engine)
    return engines.compile_graph(graph, engine)


def runner(how: str, graph: Graph) -> Callable[[dict[str, Any]], dict[str, Array]]:
    """Return what runs ``graph`` on feeds: the program of an engine, or the evaluator."""
    return partial(evaluate, graph) if how == "evaluate" else compiled(graph, how).run


# ---- specialisation -----------------------------------------------------------------------------------------------------


def test_gradient_of_a_network_equals_the_evaluator() -> None:
    graph = mlp()
    program = NumpyProgram(graph)
    for n in (1, 5, 0, 5):
        assert_bitwise(program.run(feed(n)), evaluate(graph, feed(n)))


def test_new_shapes_specialise_and_old_ones_do_not() -> None:
    program = NumpyProgram(mlp())
    counts = []
    for n in (2, 2, 3, 2, 3, 4):
        program.run(feed(n))
        counts.append(program.specialisations)
    assert counts == [1, 1, 2, 2, 2, 3]


def test_sixteen_specialisations_are_kept_and_the_oldest_goes() -> None:
    program = NumpyProgram(pointwise())
    for n in range(16):
        program.run(feed(n, 3, np.float64))
    program.run(feed(0, 3, np.float64))
    assert program.specialisations == 16
    program.run(feed(99, 3, np.float64))  # the least recently used is n = 1
    program.run(feed(0, 3, np.float64))
    assert program.specialisations == 17
    program.run(feed(1, 3, np.float64))
    assert program.specialisations == 18


def reshaper() -> Graph:
    graph = Graph("reshaper")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (N,)))
    shape = graph.add_input("shape", Type(INT64, (2,)))
    y = b.Reshape(x, b.Mul(shape, 1))
    graph.add_output(b.Add(y, b.ReduceSum(y, keepdims=0)), "y")
    return graph


def test_values_of_shape_inputs_are_part_of_the_key() -> None:
    program = NumpyProgram(reshaper())
    x = np.arange(6, dtype=np.float32)
    for shape in ([2, 3], [3, 2], [2, 3]):
        y = program.run({"x": x, "shape": np.array(shape)})["y"]
        np.testing.assert_array_equal(y, x.reshape(shape) + x.sum())
    assert program.specialisations == 2
    specialisation = program._executor.specialisation([x, np.array([2, 3])])
    assert specialisation.first.knowledge is None  # one segment: the shape was known


def test_values_that_never_return_stop_being_part_of_the_key() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (N,)))
    start = graph.add_input("start", Type(INT64, (1,)))
    graph.add_output(b.Neg(b.Slice(x, start, [200])), "y")
    program = NumpyProgram(graph)
    x_array = np.arange(200, dtype=np.float32)
    for i in range(120):
        y = program.run({"x": x_array, "start": np.array([i])})["y"]
        np.testing.assert_array_equal(y, -x_array[i:])
    assert program.specialisations <= executor_module.MOST_VALUES + 2


def test_integer_data_is_not_part_of_the_key() -> None:
    graph = Graph()
    b = Builder(graph)
    table = graph.add_input("table", Type(FLOAT32, (M, 3)))
    rows = graph.add_input("rows", Type(INT64, (N,)))
    graph.add_output(b.Gather(table, rows), "y")
    program = NumpyProgram(graph)
    for i in range(5):
        program.run({"table": np.ones((7, 3), np.float32), "rows": np.array([i, 1])})
    assert program.specialisations == 1


def test_shape_chains_are_folded() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (N, M)))
    rows = b.Gather(b.Shape(x), [0])
    y = b.Reshape(b.Exp(x), b.Concat(rows, [-1], axis=0))
    graph.add_output(b.Mul(y, 2.0), "y")
    program = NumpyProgram(graph)
    array = np.ones((2, 3), np.float32)
    assert_bitwise(program.run({"x": array}), evaluate(graph, {"x": array}))
    assert [s.record.node.op for s in program._executor.specialisation([array]).first.steps] == ["Exp", "Reshape", "Mul"]


def test_parameters_can_be_fed_and_have_defaults() -> None:
    graph = mlp()
    program = NumpyProgram(graph)
    feeds = feed(3)
    before = program.run(feeds)
    w0 = np.zeros((4, 16), np.float32)
    assert_bitwise(program.run({**feeds, "w0": w0}), evaluate(graph, {**feeds, "w0": w0}))
    assert_bitwise(program.run(feeds), before)


# ---- feeds --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("feeds", "code", "message"), [
    ({}, "missing", "'x'"), ({"b00": 1.0}, "name", "did you mean 'b0'"),
    ({"x": np.ones((2, 3))}, "dtype", r"astype\('float32'\)"), ({"x": np.ones((2, 3), np.float32)}, "shape", "x"),
    ({"x": np.ones(4, np.float32)}, "shape", "x"), ({"x": np.ones((1, 4), np.float32), "w9": 1}, "name", "w"),
])
@pytest.mark.parametrize("how", RUNNERS)
def test_wrong_feeds(how: str, feeds: dict[str, Any], code: str, message: str) -> None:
    run = runner(how, mlp())
    run(feed(2))
    with pytest.raises(InputError, match=message) as caught:
        run(feeds)
    assert caught.value.code == code


@pytest.mark.parametrize("how", RUNNERS)
def test_two_inputs_that_disagree_on_a_named_dim(how: str) -> None:
    graph = Graph()
    b = Builder(graph)
    x, y = (graph.add_input(n, Type(FLOAT32, (N, M))) for n in "xy")
    graph.add_output(b.ReduceSum(x, keepdims=0), "a")
    graph.add_output(b.ReduceSum(y, keepdims=0), "b")
    run = runner(how, graph)
    with pytest.raises(InputError, match="'x' and 'y' disagree on the extent 'N': 2 and 3"):
        run({"x": np.ones((2, 1), np.float32), "y": np.ones((3, 1), np.float32)})


@pytest.mark.parametrize("how", RUNNERS)
def test_an_extent_that_is_an_expression_of_others(how: str) -> None:
    graph = Graph()
    b = Builder(graph)
    graph.add_output(b.Neg(graph.add_input("x", Type(FLOAT32, (N, M)))), "a")
    graph.add_output(b.Neg(graph.add_input("y", Type(FLOAT32, (N + 1, N // M)))), "b")
    run = runner(how, graph)
    x = np.ones((4, 2), np.float32)
    run({"x": x, "y": np.ones((5, 2), np.float32)})
    with pytest.raises(InputError, match=r"input 'y' has extent 4 where N\+1 = 5 is expected"):
        run({"x": x, "y": np.ones((4, 2), np.float32)})
    assert run({"x": x[:, :0], "y": np.ones((5, 7), np.float32)})["b"].shape == (5, 7)  # nothing says what 4 // 0 is


def test_lists_and_scalars_are_taken_where_the_dtype_fits() -> None:
    program = NumpyProgram(pointwise(shape=(2,)))
    np.testing.assert_array_equal(program.run({"x": [0.5, 1.0]})["y"], np.tanh([0.5, 1.0]))
    np.testing.assert_array_equal(program.run({"x": np.array([0.5, 1.0], ">f8")})["y"], np.tanh([0.5, 1.0]))


def test_runtime_failure_names_the_node() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (N,)))
    rows = graph.add_input("rows", Type(INT64, (M,)))
    y = x
    for _ in range(3 * codegen.CHUNK // 2):
        y = b.Neg(y)
    graph.add_output(b.Gather(y, rows), "picked")
    with pytest.raises(RunError, match="Gather") as caught:
        NumpyProgram(graph).run({"x": np.ones(3, np.float32), "rows": np.array([0, 7])})
    assert "Gather" in caught.value.where and "gather" in caught.value.where


def test_a_failing_step_is_named_among_steps_of_one_form() -> None:
    def kernel(x: Array, *, out: Array | None = None) -> Any:
        if x[0] > codegen.CHUNK:  # in the second of two chunks that have one text
            raise ValueError("too much")
        return np.add(x, 1, out=out)

    with scoped():
        op("Count", traits=(Trait.ELEMENTWISE,))(kernel)
        graph = Graph()
        b = Builder(graph)
        y = graph.add_input("x", Type(FLOAT32, (3,)))
        for i in range(2 * codegen.CHUNK):
            y = b.add("Count", [y], name=f"y{i}")
        graph.add_output(y)
        with pytest.raises(RunError, match="too much") as caught:
            NumpyProgram(graph).run({"x": np.zeros(3, np.float32)})
    at = codegen.CHUNK
    assert caught.value.where == f"%y{at + 1} = Count(%y{at}: f32[3])"


def test_steps_of_one_form_share_what_is_found_out_about_them() -> None:
    graph = Graph()
    b = Builder(graph)
    x, n = graph.add_input("x", Type(FLOAT32, (3,))), graph.add_input("n", Type(INT64, (3,)))
    y = b.Add(b.Mul(x, 2.0), b.Mul(b.Mul(x, x), 3.0))
    graph.add_output(b.Mul(b.Mul(y, x), 2.0), "y")
    graph.add_output(b.Mul(b.Mul(n, n), n), "m")
    program = NumpyProgram(graph)
    numbers, counts = np.array([1, 2, 3], np.float32), np.array([1, 2, 3])
    found = program.run({"x": numbers, "n": counts})
    np.testing.assert_array_equal(found["y"], [10, 64, 198])
    np.testing.assert_array_equal(found["m"], [1, 8, 27])
    steps = program._executor.specialisation([numbers, counts]).first.steps
    forms = [step.form for step in steps if step.record.node.op == "Mul"]
    # x*2 and (y x)*2; x*x and y*x; apart from them *3, and two products of integers, which may be extents
    assert len(forms) == 7 and len(set(forms)) == 5


def test_shapes_that_do_not_fit_are_a_run_error() -> None:
    graph = Graph()
    b = Builder(graph)
    x, y = graph.add_input("x", Type(FLOAT32, (N,))), graph.add_input("y", Type(FLOAT32, (M,)))
    graph.add_output(b.Add(x, y), "z")
    with pytest.raises(RunError, match="do not broadcast"):
        NumpyProgram(graph).run({"x": np.ones(2, np.float32), "y": np.ones(3, np.float32)})


# ---- memory -------------------------------------------------------------------------------------------------------------


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


# ---- segments -----------------------------------------------------------------------------------------------------------


def segmented() -> Graph:
    graph = Graph("segmented")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (N,)))
    big = b.Greater(x, 0.0)
    found = b.Compress(b.Exp(x), big)
    again = b.Compress(b.Mul(found, 2.0), b.Less(found, 2.0))
    graph.add_output(b.ReduceSum(b.Add(again, b.Mul(b.ReduceSum(found, keepdims=0), 1.0)), keepdims=0), "total")
    graph.add_output(again, "again")
    graph.add_output(b.Tanh(x), "t")
    return graph


def test_segments_follow_extents_that_the_run_finds() -> None:
    graph = segmented()
    program = NumpyProgram(graph)
    for seed in range(20):
        feeds = {"x": np.random.default_rng(seed).standard_normal(10)}
        assert_bitwise(program.run(feeds), evaluate(graph, feeds))
    assert program.specialisations == 1
    assert not program.plan({"x": (10,)}).complete


def test_segments_nothing_found() -> None:
    graph = segmented()
    feeds = {"x": -np.ones(4)}
    assert_bitwise(NumpyProgram(graph).run(feeds), evaluate(graph, feeds))


def loop_graph(trips: int | None, body_ops: int = 3) -> Graph:
    """Return h <- tanh(h * w + i) repeated, stacking h."""
    body = Graph("body")
    bb = Builder(body)
    i = body.add_input("i", Type(INT64, ()))
    going = body.add_input("going", Type(BOOL, ()))
    h = body.add_input("h", Type(FLOAT64, (4,)))
    w = body.add_input("w_in", Type(FLOAT64, (4,)))
    y = bb.Add(bb.Mul(h, w), bb.Cast(i, to=11))
    for _ in range(body_ops - 2):
        y = bb.Tanh(y)
    body.add_output(bb.Identity(going), "going_out")
    body.add_output(y, "h_out")
    body.add_output(y, "h_each")
    graph = Graph("loop")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (4,)))
    most = graph.add_constant(np.array(trips)) if trips is not None else graph.add_input("trips", Type(INT64, ()))
    captured = b.Mul(x, 0.5)
    last, each = b.add_several("Loop", [most, None, b.Exp(x)], outputs=2, captures=[captured], subgraphs={"body": body})
    graph.add_output(last, "last")
    graph.add_output(b.ReduceSum(each, [1]), "each")
    return graph


@pytest.mark.parametrize("trips", [0, 1, 7])
@pytest.mark.parametrize("known", [True, False])
def test_loops(trips: int, known: bool) -> None:
    graph = loop_graph(trips if known else None)
    feeds: dict[str, Array] = {"x": np.linspace(-1, 1, 4)}
    if not known:
        feeds["trips"] = np.array(trips)
    program = NumpyProgram(graph)
    for _ in range(2):
        assert_bitwise(program.run(feeds), evaluate(graph, feeds))


def test_loop_steps_are_limited() -> None:
    program = NumpyProgram(loop_graph(50), limits=Limits(loop_steps=50))
    program.run({"x": np.ones(4)})
    with pytest.raises(LimitError, match="loop_steps"):
        NumpyProgram(loop_graph(51), limits=Limits(loop_steps=50)).run({"x": np.ones(4)})


# ---- threads ------------------------------------------------------------------------------------------------------------


def wide() -> Graph:
    graph = Graph("wide")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (512, 700)))
    w = graph.add_input("w", Type(FLOAT32, (700, 600)))
    y = b.Tanh(b.MatMul(x, w))
    graph.add_output(b.ReduceSum(y, keepdims=0), "s")
    graph.add_output(b.Mul(b.Add(y, graph.add_constant(np.ones((600,), np.float32))), y), "z")
    t = b.Transpose(x)
    graph.add_output(b.MatMul(t, y), "g")
    graph.add_output(b.Exp(b.Neg(t)), "e")
    graph.add_output(b.Gemm(x, y, transA=1), "tn")
    graph.add_output(b.Gemm(y, w, graph.add_constant(np.ones((700,), np.float32)), transB=1), "nt")
    graph.add_output(b.Gemm(x, w, graph.add_constant(np.ones((512, 1), np.float32)), alpha=0.5, beta=2.0), "nn")
    graph.add_output(b.Gemm(w, x, transA=1, transB=1), "tt")
    return graph


def test_thread_counts_give_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    feeds = {"x": (rng.standard_normal((512, 700)) / 26).astype(np.float32),
             "w": rng.standard_normal((700, 600)).astype(np.float32)}
    graph = wide()
    one = NumpyProgram(graph, threads=1).run(feeds)
    for count in (2, 4, 7):
        assert_bitwise(NumpyProgram(graph, threads=count).run(feeds), one)
    for name, array in evaluate(graph, feeds).items():
        np.testing.assert_allclose(one[name], array, rtol=2e-4, atol=1e-3)


def test_convolutions_in_pieces() -> None:
    graph = Graph("images")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (N, 16, 40, 40)))
    w = graph.add_constant(np.random.default_rng(0).standard_normal((32, 16, 3, 3)).astype(np.float32) / 12, "w", PARAMETER)
    y = b.Tanh(b.Conv(x, w, pads=[1, 1, 1, 1]))
    loss = b.ReduceSum(b.Mul(y, y), keepdims=0)
    graph.add_output(loss, "loss")
    found = adjoint(graph, [(loss, graph.add_constant(np.ones((), np.float32)))], [x, w])
    for name, value in zip(("x_bar", "w_bar"), found, strict=True):
        assert value is not None
        graph.add_output(value, name)
    rng = np.random.default_rng(2)
    program = NumpyProgram(graph, threads=1)
    for count in (7, 2, 11):
        feeds = {"x": rng.standard_normal((count, 16, 40, 40)).astype(np.float32)}
        one = program.run(feeds)
        for threads in (2, 4):
            other = NumpyProgram(graph, threads=threads)
            assert_bitwise(other.run(feeds), one)
            assert_bitwise(other.run(feeds), one)
        for name, array in evaluate(graph, feeds).items():
            np.testing.assert_allclose(one[name], array, rtol=2e-4, atol=2e-4 * np.abs(array).max())
    splits = [f for s in [program._executor.specialisation([feeds["x"]]).first]
              for bound in s.code.bound for f in bound if isinstance(f, SplitKernel)]
    assert any(f.works[0] for f in splits)  # a convolution, with scratch for each piece


def test_forked_children_run() -> None:
    feeds = {"x": np.ones((512, 700), np.float32), "w": np.ones((700, 600), np.float32)}
    program = NumpyProgram(wide(), threads=3)
    expected = program.run(feeds)
    with multiprocessing.get_context("fork").Pool(2) as workers:
        for got in workers.map(program.run, [feeds, feeds]):
            assert_bitwise(got, expected)


def test_eight_threads_share_a_program() -> None:
    graph = mlp()
    program = NumpyProgram(graph, threads=2)
    feeds = [feed(1 + seed % 3, seed=seed) for seed in range(8)]
    expected = [evaluate(graph, f) for f in feeds]

    def work(index: int) -> None:
        for _ in range(200):
            assert_bitwise(program.run(feeds[index]), expected[index])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_threads_share_large_work_and_the_pool() -> None:
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((512, 700)).astype(np.float32), "w": rng.standard_normal((700, 600)).astype(np.float32)}
    program = NumpyProgram(wide(), threads=3)
    expected = program.run(feeds)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(3):
                assert_bitwise(program.run(feeds), expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_errors_in_pool_threads_reach_the_caller() -> None:
    from flowgrad.runtime.threads import pool

    def task(piece: int) -> None:
        if piece == 3:
            raise ValueError("piece three")

    with pytest.raises(ValueError, match="piece three"):
        pool.each(task, 8, 4)
    done: list[int] = []
    pool.each(done.append, 100, 4)
    assert sorted(done) == list(range(100))


def test_nested_pool_calls_finish() -> None:
    from flowgrad.runtime.threads import pool

    done: list[int] = []
    pool.each(lambda i: pool.each(lambda j: done.append(10 * i + j), 10, 4), 10, 4)
    assert sorted(done) == list(range(100))


def test_blas_limit_is_given_back() -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    def counts() -> list[int]:
        return [e["num_threads"] for e in threadpool_info() if e["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = counts()
        NumpyProgram(wide()).run({"x": np.ones((512, 700), np.float32), "w": np.ones((700, 600), np.float32)})
        assert counts() == before


# ---- random numbers -----------------------------------------------------------------------------------------------------


def test_seeds() -> None:
    graph = Graph()
    b = Builder(graph)
    graph.add_output(b.RandomNormal(shape=[5], dtype=1), "y")
    seeded = NumpyProgram(graph, seed=3)
    assert_bitwise(seeded.run({}), seeded.run({}))
    free = NumpyProgram(graph)
    assert free.run({})["y"].tobytes() != free.run({})["y"].tobytes()
    assert_bitwise(free.run({}, seed=3), seeded.run({}))


def test_an_engine_that_cannot_be_seeded_says_so() -> None:
    program = compiled(pointwise(), "ort")
    with pytest.raises(InputError, match="'ort' cannot be seeded") as caught:
        program.run(feed(2, 3, np.float64), seed=3)
    assert caught.value.code == "seed"


# ---- pickling, engines, session -----------------------------------------------------------------------------------------


def test_pickled_programs_run_alike() -> None:
    program = NumpyProgram(mlp(), threads=1, limits=Limits.strict(), seed=5)
    other = pickle.loads(pickle.dumps(program))
    assert (other.threads, other.limits, other.seed) == (1, Limits.strict(), 5)
    assert_bitwise(other.run(feed(3)), program.run(feed(3)))


@pytest.mark.parametrize("engine", ENGINES)
def test_programs_of_all_engines_offer_the_same(engine: str) -> None:
    program: Program = compiled(mlp(), engine)
    assert (program.engine, program.input_names, program.output_names[0]) == (engine, ["x"], "loss")
    program.input_names.clear()
    assert program.input_names == ["x"]
    results = program.run(feed(3))
    assert list(results) == program.output_names
    assert_bitwise(pickle.loads(pickle.dumps(program)).run(feed(3)), results)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("extent", [0, 3])
def test_onnxruntime_takes_and_gives_types_that_numpy_has_not(name: str, extent: int) -> None:
    graph = Graph()
    x, y = graph.add_input("x", Type(dtype_of(name), (Dim.named("N"),))), graph.add_input("y", Type(FLOAT64, (Dim.named("N"),)))
    b = Builder(graph)
    graph.add_output(b.Add(b.cast(x, FLOAT64), y), "sum")
    graph.add_output(b.Identity(x), "same")
    feeds = {"x": np.arange(extent).astype(dtype_of(name).numpy), "y": np.ones(extent)}
    assert_bitwise(compiled(graph, "ort").run(feeds), compiled(graph, "numpy").run(feeds))


def test_parameters_are_fed_where_the_engine_can() -> None:
    feeds = {**feed(2), "w0": np.zeros((4, 16), np.float32)}
    assert compiled(mlp(), "numpy").run(feeds)["loss"] != compiled(mlp(), "numpy").run(feed(2))["loss"]
    with pytest.raises(InputError, match="holds the parameter 'w0' fixed"):
        compiled(mlp(), "ort").run(feeds)


@pytest.mark.parametrize("engine", ENGINES)
def test_later_edits_of_the_graph_do_not_reach_the_program(engine: str) -> None:
    graph = pointwise()
    program = compiled(graph, engine)
    feeds = feed(2, 3, np.float64)
    before = program.run(feeds)
    graph.set_op(graph.nodes()[0], "Exp", {})
    assert_bitwise(program.run(feeds), before)
    np.testing.assert_allclose(program.run(feed(5, 3, np.float64))["y"], np.tanh(feed(5, 3, np.float64)["x"]), rtol=1e-14)
    with pytest.raises(ResourceError, match="edited"):
        pickle.dumps(program)


def test_engines() -> None:
    known = engines.engines()
    assert known["numpy"] == "ready" and "ort" in known
    with pytest.raises(EngineError, match="did you mean 'numpy'"):
        engines.compile_graph(pointwise(), "numpi")


@pytest.mark.parametrize("engine", ENGINES)
def test_session(engine: str) -> None:
    skip_unless_ready(engine)
    graph = mlp(gradient=False)
    session = InferenceSession(graph, engine=engine, providers=["CPUExecutionProvider"])
    assert [(a.name, a.type, a.shape) for a in session.get_inputs()] == [("x", "tensor(float)", ["N", 4])]
    assert [a.name for a in session.get_outputs()] == ["loss"]
    (loss,) = session.run(None, feed(3))
    np.testing.assert_allclose(loss, evaluate(graph, feed(3))["loss"], rtol=1e-5)
    assert session.run(["loss"], feed(3))[0].tobytes() == loss.tobytes()
    with pytest.raises(InputError, match="did you mean 'loss'"):
        session.run(["los"], feed(3))
    with pytest.raises(EngineError, match="CPUExecutionProvider"):
        InferenceSession(graph, providers=["CUDAExecutionProvider"])


# ---- scale --------------------------------------------------------------------------------------------------------------


def test_long_chains() -> None:
    graph = Graph()
    b = Builder(graph)
    y = x = graph.add_input("x", Type(FLOAT64, (3,)))
    for i in range(10_000):
        y = b.Tanh(b.Add(y, x)) if i % 2 else b.Mul(y, 0.5)
    graph.add_output(y, "y")
    feeds = {"x": np.ones(3)}
    program = NumpyProgram(graph)
    assert_bitwise(program.run(feeds), evaluate(graph, feeds))
    assert_bitwise(program.run(feeds), evaluate(graph, feeds))


def test_fifty_thousand_nodes_in_parallel_branches() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (2,)))
    branches = [b.Neg(b.Mul(x, float(i))) for i in range(25_000)]
    graph.add_output(b.Sum(*branches), "y")
    got = NumpyProgram(graph).run({"x": np.ones(2, np.float32)})["y"]
    np.testing.assert_allclose(got, -25_000 * 24_999 / 2, rtol=1e-3)
