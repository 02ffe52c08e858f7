"""Jacobians: against differences and each other, in both modes, by chunks, nested, exported; many seeds at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import FlowgradError, InputError, UnsupportedError
from flowgrad.ir.graph import Graph
from flowgrad.ir.types import BOOL, FLOAT64, Dim, Type
from tests.control_graphs import add_if
from tests.exported_checks import check_files_and_runtimes

MLP = Path(__file__).parent / "data" / "mlp.onnx"


@pytest.fixture(scope="module")
def mlp() -> fg.Model:
    """x [N,4] -> hidden [N,8] -> logits [N,3], and a scalar loss."""
    return fg.load(MLP).astype("float64")


@pytest.fixture
def batch() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((2, 4)), "target": np.array([0, 2])}


def differences(run: Callable[[Any], Any], at: Any, step: float = 1e-5) -> Any:
    """Return d run / d at by central differences, with the axes of the result, then those of ``at``."""
    columns = []
    for place in np.ndindex(at.shape):
        ahead, behind = at.copy(), at.copy()
        ahead[place] += step
        behind[place] -= step
        columns.append((run(ahead) - run(behind)) / (2 * step))
    stacked = np.stack(columns, -1)
    return stacked.reshape(*stacked.shape[:-1], *at.shape)


@pytest.fixture(scope="module")
def expected(mlp: fg.Model) -> dict[str, Any]:
    """The Jacobians of the batch by differences, by name."""
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4)), "target": np.array([0, 2]), "loss_grad": 1.0}
    b1 = next(v.constant for v in mlp.graph.constants if v.name == "b1")
    inner = fg.vjp(mlp, "loss", ["x", "b1"], keep="hidden")  # outputs hidden as well, and takes b1
    found: dict[str, Any] = {}
    for x, at in (("x", feeds["x"]), ("b1", b1)):
        for y in ("logits", "hidden"):
            found[f"{y}_{x}_jacobian"] = differences(partial(_fed, inner, feeds, x, y), at)
    return found


def _fed(model: fg.Model, feeds: dict[str, Any], wrt: str, of: str, at: Any) -> Any:
    return model({**feeds, wrt: at})[of]


@pytest.mark.parametrize("mode", ["rev", "fwd", "auto"])
@pytest.mark.parametrize("chunk_size", [None, 1, 4, 100])
def test_jacobians_are_differences(mlp: fg.Model, batch: dict[str, Any], expected: dict[str, Any], mode: Any,
                                   chunk_size: int | None) -> None:
    made = fg.jacobian(mlp, ["logits", "hidden"], ["x", "b1"], keep="logits", mode=mode, chunk_size=chunk_size)
    found = made(batch)
    assert list(found) == ["logits_x_jacobian", "logits_b1_jacobian", "hidden_x_jacobian", "hidden_b1_jacobian", "logits"]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-9)
    assert made.roles["jacobian", "logits", "b1"] == "logits_b1_jacobian"


def test_auto_takes_the_side_with_fewer_elements() -> None:
    def seeds(shapes: str) -> str:
        model = fg.load(f"""graph @g (%x: f64[{shapes.split()[0]}]) -> (%y: f64[{shapes.split()[1]}]) {{
            %e: f64[{shapes.split()[0]}] = Exp(%x)
            %y: f64[{shapes.split()[1]}] = {'Tile(%e, [3])' if shapes.split()[2] == 'wide' else 'ReduceSum(%e, [0])'}
        }}""".encode())
        return " ".join(n.label for n in fg.jacobian(model).graph.nodes())

    assert "e_dot" in seeds("4 12 wide")
    assert "e_dot" not in seeds("4 1 narrow")
    assert "e_dot" in seeds("N 3*N wide")
    assert "e_dot" not in seeds("N 1 narrow")


def test_extents_may_be_known_at_run_time_alone(mlp: fg.Model) -> None:
    made = fg.jacobian(mlp, "logits", "x")
    assert made.outputs[0].shape == ("N", 3, "N", 4)
    rng = np.random.default_rng(1)
    for count in (0, 1, 3):
        x = rng.standard_normal((count, 4))
        found = made(x=x, target=np.zeros(count, np.int64))["logits_x_jacobian"]
        assert found.shape == (count, 3, count, 4)
        for i in range(count):
            for j in range(count):
                assert np.any(found[i, :, j]) == (i == j)


def test_a_derivative_that_is_zero_is_zeros_with_a_note(mlp: fg.Model, batch: dict[str, Any]) -> None:
    for mode in ("rev", "fwd"):
        made = fg.jacobian(mlp, "hidden", ["x", "w2"], mode=mode)
        assert made(batch)["hidden_w2_jacobian"].shape == (2, 8, 8, 3)
        assert not made(batch)["hidden_w2_jacobian"].any()
        assert any("'hidden' does not depend on 'w2'" in note for note in made.notes)


def test_the_jacobian_of_an_mlp_is_the_recursion_written_by_hand() -> None:
    """dy/da_j = h'(a_j) sum_l w_lj dy/da_l, started at the outputs: rows of weights, scaled, and products; no unit seeds."""
    text = """graph @g (%x: f32[4]) -> (%y: f32[3]) initializers (%w: f32[4,5] = DATA, %v: f32[5,3] = DATA) {
        %a: f32[5] = MatMul(%x, %w)
        %h: f32[5] = Tanh(%a)
        %y: f32[3] = MatMul(%h, %v)
    }"""
    rng = np.random.default_rng(0)
    for shape in ((4, 5), (5, 3)):
        rows = ",".join("[" + ",".join(f"{n:.3f}" for n in row) + "]" for row in rng.standard_normal(shape))
        text = text.replace("DATA", f"[{rows}]", 1)
    made = fg.jacobian(fg.load(text.encode()), "y", "x")
    ops = [n.op for n in made.optimized().graph.nodes() if n.origin]
    assert sorted(ops) == ["Gemm", "Mul", "Mul", "Sub", "Transpose"]


def test_jacobians_nest(mlp: fg.Model, batch: dict[str, Any]) -> None:
    first = fg.jacobian(mlp, "logits", "x")
    second = fg.jacobian(first, wrt="x")
    third = fg.jacobian(second, wrt="x", chunk_size=3)
    found = third(batch)["logits_x_jacobian_x_jacobian_x_jacobian"]
    assert found.shape == (2, 3, 2, 4, 2, 4, 2, 4)
    expected = differences(lambda v: second(x=v, target=batch["target"])["logits_x_jacobian_x_jacobian"], batch["x"])
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_one_block_for_each_example(mlp: fg.Model, batch: dict[str, Any]) -> None:
    """vmap(jacobian(unbatch(model))) is the block diagonal of the whole Jacobian."""
    blocks = fg.vmap(fg.jacobian(fg.unbatch(mlp), "logits", "x"))(batch)["logits_x_jacobian"]
    whole = fg.jacobian(mlp, "logits", "x")(batch)["logits_x_jacobian"]
    assert blocks.shape == (2, 3, 4)
    for i in range(2):
        np.testing.assert_allclose(blocks[i], whole[i, :, i], rtol=1e-12)


@pytest.mark.parametrize("make", [
    lambda m: fg.jacobian(m, "logits", ["x", "w1"]),
    lambda m: fg.jacobian(m, "logits", "x", mode="fwd", chunk_size=3),
    lambda m: fg.jacobian(fg.jacobian(m, "logits", "x"), wrt="x"),
    lambda m: fg.vmap(fg.jacobian(fg.unbatch(m), "logits", "x")),
    lambda m: fg.grad(m, "loss", "x"),
], ids=["rev", "chunks", "second", "vmap", "grad"])
def test_files_and_runtimes_agree(mlp: fg.Model, batch: dict[str, Any], make: Callable[[fg.Model], fg.Model], tmp_path: Path
                                  ) -> None:
    check_files_and_runtimes(make(mlp), batch, tmp_path, atol=1e-12)


# ---- many seeds --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [3, "K"])
def test_many_seeds_are_one_after_the_other(mlp: fg.Model, batch: dict[str, Any], seeds: int | str) -> None:
    rng = np.random.default_rng(2)
    extent = 3 if seeds == 3 else "K"
    back, one = (fg.vjp(mlp, ["logits", "loss"], ["x", "w1"], seeds=s) for s in (seeds, None))
    assert back.inputs[-1].shape == (extent,) and back.outputs[-1].shape == (extent, 4, 8)
    bars = {"logits_grad": rng.standard_normal((3, 2, 3)), "loss_grad": rng.standard_normal(3)}
    many = back(batch, **bars)
    assert many["loss"].shape == ()  # the model itself runs once
    for i in range(3):
        for name, found in one(batch, **{n: v[i] for n, v in bars.items()}).items():
            np.testing.assert_allclose(many[name][i] if name.endswith("_grad") else many[name], found, rtol=1e-12, atol=1e-15)
    ahead, one = (fg.jvp(mlp, None, ["x", "w1"], seeds=s) for s in (seeds, None))
    dots = {"x_tangent": rng.standard_normal((3, 2, 4)), "w1_tangent": rng.standard_normal((3, 4, 8))}
    many = ahead(batch, **dots)
    for i in range(3):
        for name, found in one(batch, **{n: v[i] for n, v in dots.items()}).items():
            np.testing.assert_allclose(many[name][i] if name.endswith("_tangent") else many[name], found, rtol=1e-12,
                                       atol=1e-15)


def test_zeros_have_an_axis_of_seeds(mlp: fg.Model, batch: dict[str, Any]) -> None:
    made = fg.vjp(mlp, "hidden", ["x", "w2"], seeds="K")
    found = made(batch, hidden_grad=np.ones((5, 2, 8)))
    assert found["w2_grad"].shape == (5, 8, 3) and not found["w2_grad"].any()


# ---- misuse ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "says"), [
    (lambda m: fg.jacobian(m, "logits", "x", mode="reverse"),  # type: ignore[arg-type]
     "'rev' .*few outputs.*'fwd'"),
    (lambda m: fg.jacobian(m, "logits", "x", chunk_size=0), "chunk_size is a number of seeds from 1 on"),
    (lambda m: fg.jacobian(m, "logits", "x", chunk_size=True), "chunk_size is a number of seeds from 1 on"),
    (lambda m: fg.jacobian(m, "logit", "x"), "did you mean 'logits'"),
    (lambda m: fg.jacobian(m, "logits", "hiden"), "did you mean 'hidden'"),
    (lambda m: fg.jacobian(m, "logits", "target"), "only floats have derivatives"),
    (lambda m: fg.jacobian(m, "logits", "x", zero="no"),  # type: ignore[arg-type]
     "'error' or 'allow'"),
    (lambda m: fg.vjp(m, "logits", "x", seeds=0), "seeds is a number from 1 on or the name of a dim"),
    (lambda m: fg.jvp(m, "logits", "x", seeds=""), "seeds is a number from 1 on or the name of a dim"),
    (lambda m: fg.jacobian(m, "logits", "x", sparse=True), "fixed shapes.*unbatch.*dense"),
])
def test_misuse_is_told_the_ways_out(mlp: fg.Model, call: Callable[[fg.Model], fg.Model], says: str) -> None:
    with pytest.raises(FlowgradError, match=says):
        call(mlp)


def test_values_without_axes_that_are_known_are_refused() -> None:
    model = fg.load(b"graph @g (%x: f64[*]) -> (%y: f64[*]) { %y: f64[*] = Exp(%x) }")
    with pytest.raises(InputError, match="the rank of 'y' is not known"):
        fg.jacobian(model)
    with pytest.raises(InputError, match="the rank of 'y' is not known"):
        fg.vjp(model, seeds=2)


def selected() -> fg.Model:
    """Return y = 2 x sin x or 3 x sin x, whichever ``c`` selects: an If whose output is that of the model."""
    graph = Graph("selected")
    b = Builder(graph)
    x, c = graph.add_input("x", Type(FLOAT64, (Dim.named("N"),))), graph.add_input("c", Type(BOOL, ()))
    branches = {}
    for name, scale in (("then_branch", 2.0), ("else_branch", 3.0)):
        branches[name] = Graph(name)
        inner, formal = Builder(branches[name]), branches[name].add_input("inside", x.type)
        branches[name].add_output(inner.Mul(inner.Sin(formal), inner.Mul(formal, scale)), "o")
    graph.add_output(b.add_node("If", [c], captures=[x], subgraphs=branches).output(), "y")
    return fg.Model(graph)


def test_what_a_node_with_subgraphs_computes_stays_apart_from_many_tangents() -> None:
    x, c = np.array([1.0, 2.0, 3.0]), np.array(True)
    y, slopes = 2 * x * np.sin(x), 2 * (np.sin(x) + x * np.cos(x))
    for chunk_size in (None, 2):
        made = fg.jacobian(selected(), wrt="x", keep="y", mode="fwd", chunk_size=chunk_size)
        found = made.compile().run({"x": x, "c": c})
        np.testing.assert_allclose(found["y_x_jacobian"], np.diag(slopes), rtol=1e-14)
        np.testing.assert_allclose(found["y"], y, rtol=1e-14)
    tangents = np.array([[1.0, 0, 2], [0, 1, 1]])
    found = fg.jvp(selected(), wrt="x", seeds=2).compile().run({"x": x, "c": c, "x_tangent": tangents})
    np.testing.assert_allclose(found["y_tangent"], slopes * tangents, rtol=1e-14)
    np.testing.assert_allclose(found["y"], y, rtol=1e-14)


def uneven(*shape: Any) -> fg.Model:
    """Return y = x sin(x^2) exp(x) or 2 x^2, whichever ``c`` selects: one branch keeps more for its derivative."""
    graph = Graph("uneven")
    b = Builder(graph)
    x, c = graph.add_input("x", Type(FLOAT64, shape)), graph.add_input("c", Type(BOOL, ()))
    made = add_if(b, c, [x], lambda b, x: [b.Mul(b.Sin(b.Mul(x, x)), b.Exp(x))], lambda b, x: [b.Mul(x, 2.0)])
    graph.add_output(b.Mul(made.output(), x), "y")
    return fg.Model(graph)


@pytest.mark.parametrize("shape", [(3,), (Dim.named("N"),)], ids=["static", "named"])
@pytest.mark.parametrize("transform", [
    lambda m: fg.jacobian(m, wrt="x", mode="rev"),
    lambda m: fg.jacobian(m, wrt="x", mode="rev", chunk_size=2),
    lambda m: fg.jacobian(fg.vjp(m, wrt="x"), "x_grad", "x", mode="fwd"),
], ids=["reverse", "chunks", "forward over reverse"])
def test_examples_may_take_branches_that_keep_different_values(transform: Callable[[fg.Model], fg.Model], shape: Any,
                                                                tmp_path: Path) -> None:
    """What the branch that is not taken would keep has the shape of what the other one keeps, and nothing reads it."""
    for model in (uneven(*shape), selected()):
        made = transform(model)
        rng = np.random.default_rng(0)
        feeds = {"x": rng.standard_normal((4, 3)), "c": np.array([True, False, False, True]), "y_grad": rng.standard_normal((4, 3))}
        feeds = {v.name: feeds[v.name] for v in made.inputs}
        each = fg.vmap(made)
        found = each(feeds)
        for k in range(4):
            for name, array in made({n: a[k] for n, a in feeds.items()}).items():
                np.testing.assert_allclose(found[name][k], array, rtol=1e-12)
        check_files_and_runtimes(each, feeds, tmp_path, atol=1e-12)


def test_examples_that_take_branches_of_different_shapes_are_refused_by_name() -> None:
    """An extent that only the branch itself can tell may be another one in the other branch."""
    twice = fg.jacobian(fg.vjp(uneven(3), wrt="x"), "x_grad", "x", mode="rev")
    with pytest.raises(UnsupportedError, match="forward over reverse .*, or differentiate what vmap makes"):
        fg.vmap(twice)


def test_a_jacobian_has_the_dtype_of_the_output_in_either_mode() -> None:
    model = fg.load(b"""graph @g (%x: f32[2]) -> (%y: f64[2]) {
  %d: f64[2] = Cast(%x) {to=11}
  %y: f64[2] = Mul(%d, %d)
}""")
    for mode in ("rev", "fwd"):
        found = fg.jacobian(model, mode=mode)(x=np.array([1, 3], np.float32))["y_x_jacobian"]
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, np.diag([2.0, 6.0]))


@pytest.mark.parametrize("mode", ["rev", "fwd"])
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 5])
def test_a_jacobian_without_rows_keeps_the_extents_of_what_it_is_by(mode: Any, chunk_size: int | None) -> None:
    """The Scan over chunks has no step then, and tells no extents that its body alone can name."""
    model = fg.load(b"""graph @g (%x: f64[N,3]) -> (%y: f64[M,3]) {
  %y: f64[M,3] = Slice(%x, [1], [9], [0], [1])
}""")
    made = fg.jacobian(model, mode=mode, chunk_size=chunk_size)
    for jacobian in (made, made.optimized()):
        assert jacobian(x=np.ones((1, 3)))["y_x_jacobian"].shape == (0, 3, 1, 3)
        assert jacobian(x=np.ones((0, 3)))["y_x_jacobian"].shape == (0, 3, 0, 3)
        found = jacobian(x=np.ones((3, 3)))["y_x_jacobian"]
        np.testing.assert_array_equal(found, np.eye(9).reshape(3, 3, 3, 3)[1:])


# ---- poles --------------------------------------------------------------------------------------------------------------

POLES = {"Sqrt": (0.0, np.inf), "Log": (0.0, np.inf), "Atanh": (1.0, np.inf), "Acos": (1.0, -np.inf), "Acosh": (1.0, np.inf),
         "Reciprocal": (0.0, -np.inf), "Exp": (1000.0, np.inf)}


def elementwise(op: str) -> fg.Model:
    graph = Graph("elementwise")
    b, x = Builder(graph), graph.add_input("x", Type(FLOAT64, (3,)))
    graph.add_output(b.Transpose(b.Mul(b.Reshape(b.add(op, [x]), b.ints([1, 3])), 2.0)), "y")
    return fg.Model(graph)


@pytest.mark.parametrize("options", [{"mode": "rev"}, {"mode": "fwd"}, {"chunk_size": 2}, {"mode": "fwd", "chunk_size": 2},
                                     {"sparse": True}, {"sparse": True, "mode": "fwd"}], ids=str)
@pytest.mark.parametrize("op", POLES)
def test_an_infinite_slope_stays_in_its_own_place(op: str, options: dict[str, Any]) -> None:
    pole, slope = POLES[op]
    at = np.array([pole, 1.5 if op == "Acosh" else 0.5, pole])
    with np.errstate(all="ignore"):
        found = fg.jacobian(elementwise(op), **options)(x=at)
        middle = fg.vjp(elementwise(op))(x=at, y_grad=np.ones((3, 1)))["x_grad"][1]
    made = found["y_x_jacobian"].reshape(-1)
    made = made if "sparse" in options else made.reshape(3, 3)[np.eye(3, dtype=bool)]
    np.testing.assert_array_equal(made, [slope, middle, slope])
    if "sparse" not in options:
        np.testing.assert_array_equal(found["y_x_jacobian"].reshape(3, 3)[~np.eye(3, dtype=bool)], 0)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"sparse": True}], ids=str)
def test_an_infinite_curvature_stays_in_its_own_place(options: dict[str, Any]) -> None:
    graph = Graph("powers")
    b, x = Builder(graph), graph.add_input("x", Type(FLOAT64, (2,)))
    graph.add_output(b.ReduceSum(b.Pow(x, 1.5), keepdims=0), "y")
    with np.errstate(all="ignore"):
        found = fg.hessian(fg.Model(graph), **options)(x=np.array([0.0, 0.25]))["x_x_hessian"]
    np.testing.assert_array_equal(found, [np.inf, 1.5] if options.get("sparse") else [[np.inf, 0.0], [0.0, 1.5]])
