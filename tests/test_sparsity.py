"""Sparse derivatives: patterns hold every entry that is not zero, few sweeps suffice, and values are those of dense ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import FlowgradError, InputError, UnsupportedError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Graph
from flowgrad.ir.ops.operands import sum_of
from flowgrad.ir.types import BOOL, FLOAT64, INT64, Type
from flowgrad.passes.coloring import color_count, column_colors, star_colors, symmetric_places
from flowgrad.passes.differentiate import with_tangent
from flowgrad.passes.sparsity import Pattern, dependencies
from flowgrad.tools.maintenance.optimal_control import Problem, pendulum
from tests.control_graphs import RNG, SCANS, add_if, add_loop, add_scan, f64, outputs_of, scan_feeds, scan_graph
from tests.op_cases import Case, all_cases

MOST_ELEMENTS = 64
"""Cases with more input elements are left out: each element is a run."""


def _is_fixed(case: Case) -> bool:
    return not any(spec is not None and spec.differentiable for spec in case.inputs)


CASES = [c for c in all_cases() if not c.refuses and not _is_fixed(c) and not c.id.endswith(("edges", "nan"))]
"""Edges and NaN: what is not finite has no derivative that could be zero."""


@pytest.mark.parametrize("case", CASES[::5], ids=lambda c: c.id)
def test_patterns_hold_all_that_is_not_zero(case: Case) -> None:
    arrays = case.arrays()
    graph, _ = case.graph(arrays)
    feeds = case.feeds(arrays)
    names = [n for n, a in feeds.items() if a.dtype == np.float64 and case.inputs[int(n[1:])].differentiable]  # type: ignore[union-attr]
    outputs = [e.name for e in graph.output_entries if e.input(0).type.dtype.name == "float64"]
    if not names or not outputs or sum(feeds[n].size for n in names) > MOST_ELEMENTS:
        pytest.skip("nothing to differentiate, or too much for a quick test")
    if not all(np.isfinite(feeds[n]).all() for n in names):
        pytest.skip("zeros of a tangent times infinity are no zeros")
    try:
        pattern = _pattern(graph, names, outputs)
    except UnsupportedError as error:
        assert error.code == "shape"
        pytest.skip("extents are known at run time alone")
    joint = with_tangent(graph, names, outputs)
    places = [(n, i) for n in names for i in range(feeds[n].size)]
    for column in np.random.default_rng(0).permutation(len(places))[:4]:
        name, place = places[column]
        dots = {dot: np.zeros_like(feeds[n]) for n, dot in joint.inputs.items()}
        dots[joint.inputs[name]].reshape(-1)[place] = 1
        found = evaluate(joint.graph, {**feeds, **dots})
        tangents = [np.asarray(found[joint.outputs[y]]) if y in joint.outputs else np.zeros(found[y].shape) for y in outputs]
        moved = np.nonzero(np.concatenate([t.reshape(-1) for t in tangents]))[0]
        held = pattern.rows[pattern.columns == column]
        assert set(moved) <= set(held), f"element {place} of {name} moves {sorted(set(moved) - set(held))}"


def _pattern(graph: Any, xs: list[str], ys: list[str]) -> Pattern:
    copy = graph.copy()
    entries = {e.name: e.input(0) for e in copy.output_entries}
    return dependencies(copy, [copy.value(x) for x in xs], [entries[y] for y in ys])


@pytest.mark.parametrize(("body", "expected"), [
    ("%y: f64[2,3] = Exp(%x)", "1.....,.1....,..1...,...1..,....1.,.....1"),
    ("%y: f64[3,2] = Transpose(%x) {perm=[1,0]}", "1.....,...1..,.1....,....1.,..1...,.....1"),
    ("%y: f64[2] = ReduceSum(%x, [1]) {keepdims=0}", "111...,...111"),
    ("%y: f64[2,3] = Softmax(%x)", "111...,111...,111...,...111,...111,...111"),
    ("%y: f64[2,2] = Gather(%x, [2,0]) {axis=1}", "..1...,1.....,.....1,...1.."),
    ("%y: f64[2,2] = MatMul(%x, f64([[1,0],[0,0],[0,2]]))", "1.....,..1...,...1..,.....1"),
    ("%y: f64[2,3] = Mul(%x, f64([1,0,2]))", "1.....,......,..1...,...1..,......,.....1"),
    ("%y: f64[2,3] = Where([[true,false,true]], %x, f64(0))", "1.....,......,..1...,...1..,......,.....1"),
    ("%y: f64[4,3] = Pad(%x, [1,0,1,0])", "......,......,......,1.....,.1....,..1...,...1..,....1.,.....1,......,......,......"),
    ("%y: f64[2,3] = CumSum(%x, 1)", "1.....,11....,111...,...1..,...11.,...111"),
])
def test_patterns_of_operators(body: str, expected: str) -> None:
    name, _, type_ = body.partition("=")[0].partition(":")
    model = fg.load(f"graph @g (%x: f64[2,3]) -> ({name}:{type_}) {{ {body} }}".encode())
    pattern = _pattern(model.graph, ["x"], ["y"])
    assert _lines(pattern) == expected


def test_weights_that_can_change_are_not_zero_by_themselves() -> None:
    """A constant that was named in wrt, so that it can be fed, counts as any number."""
    model = fg.load(b"""graph @g (%x: f64[2]) -> (%y: f64[2]) initializers (%w: f64[2] = [0.0,1.0]) {
        %y: f64[2] = Mul(%x, %w)
    }""")
    assert _pattern(model.graph, ["x"], ["y"]).entries.size == 1
    assert _pattern(fg.vjp(model, wrt=["x", "w"]).graph, ["x"], ["y"]).entries.size == 2


def test_the_iterations_of_a_scan_stay_apart() -> None:
    model = fg.load(b"""graph @g (%x: f64[4]) -> (%y: f64[4]) {
        %z: f64[4] = Scan(%x) {num_scan_inputs=1}
            body = graph @b (%e: f64[]) -> (%f: f64[]) { %f: f64[] = Sin(%e) }
        %y: f64[4] = Exp(%z)
    }""")
    assert _pattern(model.graph, ["x"], ["y"]).entries.tolist() == [0, 5, 10, 15]


def _lines(pattern: Pattern) -> str:
    full = np.full((pattern.height, pattern.width), ".")
    full[pattern.rows, pattern.columns] = "1"
    return ",".join("".join(row) for row in full)


def test_what_a_loop_carries_is_followed_until_nothing_is_added() -> None:
    """Each iteration shifts by one; how many there are is not known."""
    graph = Graph()
    b = Builder(graph)
    x, k = graph.add_input("x", f64(3)), graph.add_input("k", Type(INT64, ()))
    made = add_loop(b, k, None, [x], [], lambda b, i, going, s: (going, b.Pad(b.Slice(s, [1], [3], [0]), [0, 1]), s))
    graph.add_output(made.output(0), "y")
    graph.add_output(b.ReduceSum(made.output(1), [0], keepdims=0), "z")
    assert _lines(_pattern(graph, ["x"], ["y"])) == "111,.11,..1"
    assert _lines(_pattern(graph, ["x"], ["z"])) == "111,111,111"  # what is summed has extents that are not known


def _branches() -> tuple[Graph, list[dict[str, Any]]]:
    graph = Graph()
    b = Builder(graph)
    x, c = graph.add_input("x", f64(4)), graph.add_input("c", Type(BOOL, ()))
    made = add_if(b, c, [x], lambda b, x: [b.Mul(b.Sin(x), x)], lambda b, x: [b.Slice(b.Mul(x, b.Exp(x)), [-1], [-9], [0], [-1])])
    return outputs_of(graph, made.output()), [{"x": RNG.standard_normal(4), "c": np.array(c)} for c in (True, False)]


def _loops() -> tuple[Graph, list[dict[str, Any]]]:
    graph = Graph()
    b = Builder(graph)
    x, k = graph.add_input("x", f64(3)), graph.add_input("k", Type(INT64, ()))
    made = add_loop(b, k, None, [x], [x], lambda b, i, going, s, x: (going, b.Mul(b.Sin(s), x), b.Mul(s, s)))
    outputs_of(graph, made.output(0), b.ReduceSum(made.output(1), [0], keepdims=0))
    return graph, [{"x": RNG.standard_normal(3), "k": np.array(k)} for k in (0, 1, 3)]


def _stages() -> tuple[Graph, list[dict[str, Any]]]:
    graph = Graph()
    b = Builder(graph)
    s, u = graph.add_input("s", f64(5, 2)), graph.add_input("u", f64(5, 1))
    made = add_scan(b, [], [s, u], [], lambda b, s, u: [b.Add(b.Sin(s), b.Mul(s, u))])
    return outputs_of(graph, made.output()), [{"s": RNG.standard_normal((5, 2)), "u": RNG.standard_normal((5, 1))}]


def _scans(attributes: dict[str, Any]) -> tuple[Graph, list[dict[str, Any]]]:
    return scan_graph(attributes, False), [scan_feeds(attributes, 4)]


@pytest.mark.parametrize("make", [_branches, _loops, _stages, partial(_scans, SCANS[0]), partial(_scans, SCANS[-1])],
                         ids=["if", "loop", "stages", "scan", "scan by other axes"])
def test_sparse_derivatives_through_control_flow_are_the_dense_ones(make: Any) -> None:
    graph, runs = make()
    b = Builder(graph)
    terms = [b.ReduceSum(b.Sin(e.input(0)), keepdims=0) for e in graph.output_entries]
    graph.add_output(sum_of(b, terms), "s")
    model = fg.Model(graph)
    wrt = [v.name for v in graph.inputs if v.type.dtype == FLOAT64][:2]
    for transform, of in ((fg.jacobian, "y0"), (fg.hessian, "s")):
        sparse, dense = transform(model, of, wrt, sparse=True), transform(model, of, wrt)
        for feeds in runs:
            given = {v.name: feeds[v.name] for v in dense.graph.inputs}
            found, expected = sparse(given), dense(given)
            for name, array in expected.items():
                np.testing.assert_allclose(sparse.sparsity[name].dense(found[name]).reshape(array.shape), array, rtol=1e-10, atol=1e-12)


def test_stages_in_a_scan_share_sweeps() -> None:
    graph, _ = _stages()
    assert fg.jacobian(fg.Model(graph), sparse=True).notes[-1].endswith("they take 2 sweeps")


# ---- colours -----------------------------------------------------------------------------------------------------------------


def test_columns_of_one_colour_share_no_row() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        pattern = Pattern.of(15, 12, rng.integers(0, 15, 30), rng.integers(0, 12, 30))
        colors = column_colors(pattern)
        assert len(set(zip(pattern.rows, colors[pattern.columns], strict=True))) == pattern.entries.size


def test_star_colours_tell_every_entry() -> None:
    """A matrix is compressed by the colours and recovered from what is left."""
    rng = np.random.default_rng(1)
    for size in (1, 2, 9, 20):
        for count in (0, size, 3 * size):
            half = Pattern.of(size, size, rng.integers(0, size, count), rng.integers(0, size, count))
            pattern = Pattern.joined(size, size, [half, half.transposed()])
            full = np.zeros((size, size))
            full[pattern.rows, pattern.columns] = rng.standard_normal(pattern.entries.size)
            full = full + full.T
            colors = star_colors(pattern)
            swept = np.array([full[:, colors == c].sum(1) for c in range(color_count(colors))]).reshape(-1, size)
            sweep, row = symmetric_places(pattern, colors)
            np.testing.assert_array_equal(swept[sweep, row], full[pattern.rows, pattern.columns])


def test_an_arrow_takes_few_sweeps_by_symmetry() -> None:
    """A full row and column and a diagonal: without symmetry as many sweeps as columns, with it two."""
    n = 30
    indices = np.arange(n)
    pattern = Pattern.of(n, n, np.concatenate([indices, indices, 0 * indices]), np.concatenate([indices, 0 * indices, indices]))
    assert color_count(column_colors(pattern)) == n
    assert color_count(star_colors(pattern)) == 2


# ---- derivatives -------------------------------------------------------------------------------------------------------------

CHAIN = b"""graph @g (%x: f32[9], %u: f32[1]) -> (%y: f32[8], %s: f32[]) {
    %a: f32[8] = Slice(%x, [0], [8])
    %b: f32[8] = Slice(%x, [1], [9])
    %c: f32[8] = Mul(%a, %b)
    %y: f32[8] = Sin(%c)
    %q: f32[8] = Mul(%y, %u)
    %e: f32[8] = Exp(%q)
    %s: f32[] = ReduceSum(%e) {keepdims=0}
}"""


@pytest.mark.parametrize("mode", ["auto", "rev", "fwd"])
def test_sparse_values_are_those_of_the_dense(mode: Any, tmp_path: Path) -> None:
    model = fg.load(CHAIN).astype("float64")
    feeds = {"x": np.random.default_rng(0).standard_normal(9), "u": np.array([0.7])}
    made = fg.jacobian(model, ["y", "s"], ["x", "u"], keep="s", mode=mode, sparse=True)
    assert list(made(feeds))[:4] == ["y_x_jacobian", "y_x_jacobian_rows", "y_x_jacobian_cols", "y_x_jacobian_shape"]
    dense = fg.jacobian(model, ["y", "s"], ["x", "u"])(feeds)
    made.save(tmp_path / "m.msgpack")
    made.to_onnx(tmp_path / "m.onnx")
    for held in (made, fg.load(tmp_path / "m.msgpack"), fg.load(tmp_path / "m.onnx")):
        found = held(feeds)
        assert set(held.sparsity) == set(dense)
        for name, value in dense.items():
            pattern = held.sparsity[name]
            np.testing.assert_allclose(pattern.dense(found[name]).reshape(value.shape), value, rtol=1e-12, atol=1e-14)
            np.testing.assert_array_equal(found[f"{name}_rows"], pattern.rows)
    assert made.sparsity["y_x_jacobian"].rows.size == 16
    assert fg.jacobian(model, "y", "x", sparse=True).notes[-1].endswith("they take 2 sweeps")


def test_sparse_hessians_are_the_dense_ones() -> None:
    scipy = pytest.importorskip("scipy.sparse")
    model = fg.load(CHAIN).astype("float64")
    feeds = {"x": np.random.default_rng(0).standard_normal(9), "u": np.array([0.7])}
    made = fg.hessian(model, "s", ["x", "u"], sparse=True)
    found, dense = made(feeds), fg.hessian(model, "s", ["x", "u"])(feeds)
    for name, value in dense.items():
        matrix = made.sparsity[name].matrix(found[name])
        assert scipy.issparse(matrix)
        np.testing.assert_allclose(matrix.toarray().reshape(value.shape), value, rtol=1e-12, atol=1e-14)
    assert made.sparsity["x_x_hessian"].rows.size == 25
    assert int(made.notes[-1].split()[-2]) <= 4  # three for the band and one for what meets all


def test_sparse_derivatives_run_in_onnxruntime() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    feeds = {"x": np.random.default_rng(0).standard_normal(9).astype(np.float32), "u": np.array([0.7], np.float32)}
    made = fg.hessian(fg.load(CHAIN), "s", ["x", "u"], sparse=True)
    session = onnxruntime.InferenceSession(made.to_onnx().SerializeToString())
    for found, expected in zip(session.run(None, feeds), made(feeds).values(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_stages_of_optimal_control_take_as_many_sweeps_as_a_stage() -> None:
    """2 states and 1 control a stage: the Hessian of the Lagrangian has blocks of 3, whatever the number of stages."""
    problem = Problem(12)
    z = np.random.default_rng(0).standard_normal(3 * 12 + 2)
    feeds = problem.feeds(z, np.random.default_rng(1).standard_normal(24), 0.5)
    pattern = problem.curvature.sparsity["z_z_hessian"]
    most = int(np.bincount(pattern.rows).max())
    assert int(problem.curvature.notes[-1].split()[-2]) <= most + 1 == 4
    model = pendulum(12)
    dense = fg.hessian(model, "lagrangian", "z")(feeds)["z_z_hessian"]
    np.testing.assert_allclose(pattern.dense(problem.curvature(feeds)["z_z_hessian"]), dense, rtol=1e-12, atol=1e-14)
    slopes = problem.slopes.sparsity["defects_z_jacobian"].dense(problem.slopes(feeds)["defects_z_jacobian"])
    dense = fg.jacobian(model, "defects", "z")(feeds)["defects_z_jacobian"].reshape(24, -1)
    np.testing.assert_allclose(slopes, dense, rtol=1e-12, atol=1e-14)


def test_shapes_known_at_run_time_alone_are_refused_with_the_ways_out() -> None:
    model = fg.load(b"graph @g (%x: f64[N]) -> (%y: f64[N]) { %y: f64[N] = Exp(%x) }")
    with pytest.raises(FlowgradError, match="fixed shapes .* unbatch, .* chunk_size"):
        fg.jacobian(model, sparse=True)


def test_other_weights_may_not_fill_the_zeros_that_a_pattern_counts_on() -> None:
    model = fg.load(b"""graph @g (%x: f64[3]) -> (%y: f64[3])
  initializers (%w: f64[3] = [2.0,0.0,3.0])
{
  %y: f64[3] = Mul(%x, %w)
}""")
    sparse = fg.jacobian(model, sparse=True)
    assert sparse(x=np.ones(3))["y_x_jacobian"].size == 2
    np.testing.assert_array_equal(sparse.with_params({"w": np.array([4.0, 0.0, 0.0])})(x=np.ones(3))["y_x_jacobian"], [4, 0])
    with pytest.raises(InputError, match="counts on what 'w' is"):
        sparse.with_params({"w": np.ones(3)})
    assert fg.jacobian(model.with_params({"w": np.ones(3)}), sparse=True)(x=np.ones(3))["y_x_jacobian"].size == 3


def test_values_of_subgraphs_do_not_count_as_tangents() -> None:
    graph, branches = Graph("scaled"), {}
    b = Builder(graph)
    x, w, c = (graph.add_input(name, type_) for name, type_ in
               (("x", Type(FLOAT64, (1, 3))), ("w", Type(FLOAT64, (3, 2))), ("c", Type(BOOL, ()))))
    for name, scale in (("then_branch", 2.0), ("else_branch", 3.0)):
        branches[name] = Graph(name)
        inner, formal = Builder(branches[name]), branches[name].add_input("inside", x.type)
        branches[name].add_output(inner.Mul(inner.Sin(formal), inner.Mul(formal, scale)), "o")
    selected = b.add_node("If", [c], captures=[x], subgraphs=branches).output()
    graph.add_output(b.MatMul(selected, w), "y")
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((1, 3)), "w": rng.standard_normal((3, 2)), "c": np.array(False)}
    model = fg.Model(graph)
    dense = fg.jacobian(model, wrt=["x", "w"]).compile().run(feeds)
    made = fg.jacobian(model, wrt=["x", "w"], sparse=True)
    values = made.compile().run(feeds)
    for name, expected in dense.items():
        found = np.zeros(values[f"{name}_shape"])
        found[values[f"{name}_rows"], values[f"{name}_cols"]] = values[name]
        np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-12)


@pytest.mark.parametrize("mode", ["rev", "fwd"])
def test_sparse_derivatives_of_several_dtypes_have_those_of_the_dense(mode: Any) -> None:
    model = fg.load(b"""graph @g (%x: f64[2], %w: f32[3]) -> (%y: f64[2], %z: f32[3], %s: f64[]) {
  %y: f64[2] = Mul(%x, %x)
  %z: f32[3] = Sin(%w)
  %v: f64[3] = Cast(%z) {to=11}
  %a: f64[] = ReduceSum(%y) {keepdims=0}
  %c: f64[3] = Mul(%v, %v)
  %d: f64[] = ReduceSum(%c) {keepdims=0}
  %s: f64[] = Mul(%a, %d)
}""")
    feeds = {"x": np.array([0.5, 2.0]), "w": np.array([1, 2, 3], np.float32)}
    for made, dense in ((fg.jacobian(model, ["y", "z"], mode=mode, sparse=True), fg.jacobian(model, ["y", "z"])),
                        (fg.hessian(model, "s", sparse=True), fg.hessian(model, "s"))):
        found = made(feeds)
        for name, expected in dense(feeds).items():
            assert found[name].dtype == expected.dtype
            values = made.sparsity[name].dense(found[name])
            np.testing.assert_allclose(values.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)
