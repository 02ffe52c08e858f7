"""The program: specialisation, caching, segments, refusals, pickling."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import EngineError, InputError, LimitError, ResourceError, RunError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.limits import Limits
from flowgrad.ir.ops.registry import Trait, op
from flowgrad.ir.registry import scoped
from flowgrad.ir.types import BOOL, FLOAT32, FLOAT64, INT64, Dim, Type, dtype_of
from flowgrad.runtime import codegen, engines
from flowgrad.runtime import executor as executor_module
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.runtime.program import Program
from flowgrad.session import InferenceSession
from tests.runtime_graphs import (
    ENGINES,
    RUNNERS,
    M,
    N,
    assert_bitwise,
    compiled,
    feed,
    mlp,
    pointwise,
    runner,
    skip_unless_ready,
)

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
