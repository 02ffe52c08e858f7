"""Hessians and what stands for them: against differences, closed forms and each other, nested and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.errors import FlowgradError
from tests.exported_checks import check_files_and_runtimes

MLP = Path(__file__).parent / "data" / "mlp.onnx"
PARAMS = ("w1", "b1", "w2", "b2")


@pytest.fixture(scope="module")
def mlp() -> fg.Model:
    """x [N,4] -> hidden [N,8] -> logits [N,3], and a scalar loss."""
    return fg.load(MLP).astype("float64")


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).standard_normal((2, 4)), "target": np.array([0, 2])}


@pytest.fixture(scope="module")
def whole(mlp: fg.Model, batch: dict[str, Any]) -> dict[str, Any]:
    return fg.hessian(mlp, "loss", ["x", "w1", "b2"])(batch)


def matrix(found: dict[str, Any], names: tuple[str, ...], suffix: str) -> Any:
    """Return the blocks of all names as one matrix."""
    sides = {a: int(np.sqrt(found[f"{a}_{a}_{suffix}"].size)) for a in names}
    return np.block([[found[f"{a}_{b}_{suffix}"].reshape(sides[a], sides[b]) for b in names] for a in names])


def test_hessians_are_differences_of_gradients_and_symmetric(mlp: fg.Model, batch: dict[str, Any], whole: dict[str, Any]
                                                            ) -> None:
    gradient = fg.grad(mlp, "loss", ["x", "w1", "b2"])
    ats = {"x": batch["x"], **{v.name: v.producer.data for v in mlp.graph.constants}}
    names = ("x", "w1", "b2")
    found = matrix(whole, names, "hessian")
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    columns = []
    for name in names:
        for place in np.ndindex(ats[name].shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = ats[name].copy()
                moved[place] += step
                result = gradient({**batch, name: moved})
                ends.append(np.concatenate([result[f"{n}_grad"].reshape(-1) for n in names]))
            columns.append((ends[0] - ends[1]) / 2e-5)
    np.testing.assert_allclose(found, np.stack(columns, 1), atol=1e-9)
    assert whole["x_w1_hessian"].shape == (2, 4, 4, 8)


@pytest.mark.parametrize("chunk_size", [1, 5, 32])
def test_chunks_change_nothing(mlp: fg.Model, batch: dict[str, Any], whole: dict[str, Any], chunk_size: int) -> None:
    found = fg.hessian(mlp, "loss", ["x", "w1", "b2"], chunk_size=chunk_size)(batch)
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_diagonal_is_that_of_the_whole(mlp: fg.Model, batch: dict[str, Any], whole: dict[str, Any], chunk_size: int | None
                                           ) -> None:
    found = fg.hessian(mlp, "loss", ["x", "w1"], keep="loss", diagonal=True, chunk_size=chunk_size)(batch)
    assert list(found) == ["x_hessian_diagonal", "w1_hessian_diagonal", "loss"]
    for name, shape in (("x", (2, 4)), ("w1", (4, 8))):
        side = int(np.prod(shape))
        expected = np.diagonal(whole[f"{name}_{name}_hessian"].reshape(side, side)).reshape(shape)
        np.testing.assert_allclose(found[f"{name}_hessian_diagonal"], expected, rtol=1e-12, atol=1e-15)


def test_of_two_mirrored_blocks_one_is_computed(mlp: fg.Model) -> None:
    """Unit tangents are made for the smaller variable; the other has those of its own block alone."""
    graph = fg.hessian(mlp, "loss", ["w1", "b2"]).graph
    entries = {e.name: e.input(0) for e in graph.output_entries}
    assert entries["w1_b2_hessian"].producer.op == "Transpose"
    assert entries["w1_b2_hessian"].producer.input(0) is entries["b2_w1_hessian"]


def test_inner_values_are_cut_from_their_ancestors() -> None:
    """f = sum of 3 h^2 with h = tanh(x): d2f/dh2 = 6, d2f/dx dh = 6 h', by x alone the total derivative."""
    model = fg.load(b"""graph @g (%x: f64[2]) -> (%f: f64[]) {
        %h: f64[2] = Tanh(%x)
        %s: f64[2] = Mul(%h, %h)
        %t: f64[2] = Mul(%s, f64(3.0))
        %f: f64[] = ReduceSum(%t) {keepdims=0}
    }""")
    x = np.array([0.3, -0.7])
    h, slope = np.tanh(x), 1 - np.tanh(x) ** 2
    found = fg.hessian(model, "f", ["h", "x"])(x=x)
    np.testing.assert_allclose(found["h_h_hessian"], np.diag([6.0, 6.0]), atol=1e-14)
    np.testing.assert_allclose(found["h_x_hessian"], np.diag(6 * slope), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(found["x_h_hessian"], np.diag(6 * slope), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(found["x_x_hessian"], np.diag(6 * slope**2 - 12 * h**2 * slope), rtol=1e-12, atol=1e-15)


def test_what_is_linear_has_a_hessian_of_zeros() -> None:
    model = fg.load(b"graph @g (%x: f64[3], %u: f64[N]) -> (%f: f64[]) { %f: f64[] = ReduceSum(%x) {keepdims=0} }")
    made = fg.hessian(model, "f", ["x", "u"])
    found = made(x=np.ones(3), u=np.ones(2))
    assert {n: v.shape for n, v in found.items()} == {"x_x_hessian": (3, 3), "x_u_hessian": (3, 2), "u_x_hessian": (2, 3),
                                                     "u_u_hessian": (2, 2)}
    assert not any(v.any() for v in found.values())
    assert made.notes


def test_one_block_for_each_example(mlp: fg.Model, batch: dict[str, Any]) -> None:
    """Of a sum over examples, vmap(hessian(unbatch(model))) is the block diagonal; the rest is zero."""
    total = fg.load(b"""graph @g (%x: f64[N,3]) -> (%f: f64[N]) {
        %e: f64[N,3] = Exp(%x)
        %p: f64[N] = ReduceProd(%e, [1]) {keepdims=0}
        %f: f64[N] = Sin(%p)
    }""")
    x = np.random.default_rng(1).standard_normal((4, 3)) / 3
    blocks = fg.vmap(fg.hessian(fg.unbatch(total)))(x=x)["x_x_hessian"]
    whole = fg.jacobian(fg.jacobian(total), wrt="x")(x=x)["f_x_jacobian_x_jacobian"]
    assert blocks.shape == (4, 3, 3)
    for n in range(4):
        np.testing.assert_allclose(blocks[n], whole[n, n, :, n], rtol=1e-11)


@pytest.mark.parametrize("make", [
    lambda m: fg.jacobian(fg.grad(m, "loss", "x"), "x_grad", "x"),
    lambda m: fg.jacobian(fg.grad(m, "loss", "x"), "x_grad", "x", mode="fwd", chunk_size=3),
    lambda m: fg.vjp(fg.vjp(m, "loss", "x"), "x_grad", "x", seeds="K"),
    lambda m: fg.jvp(fg.vjp(m, "loss", "x"), "x_grad", "x", seeds="K"),
    lambda m: fg.vjp(fg.jvp(m, "loss", "x"), "loss_tangent", "x", seeds="K"),
    lambda m: fg.hvp(m, "loss", "x", seeds=8),
], ids=["rev-rev", "fwd-rev", "vjp-vjp", "jvp-vjp", "vjp-jvp", "hvp"])
def test_all_nestings_agree(mlp: fg.Model, batch: dict[str, Any], whole: dict[str, Any], make: Callable[[fg.Model], fg.Model]
                            ) -> None:
    model = make(mlp)
    units = np.eye(8).reshape(8, 2, 4)
    feeds = dict(batch)
    for v in model.inputs:
        if v.name not in feeds:
            feeds[v.name] = 1.0 if v.shape == () else units
    if "loss_tangent_grad" in feeds:  # the vjp of <gradient, tangent> with as many cotangents, one tangent at a time
        columns = [model({**feeds, "x_tangent": u, "loss_tangent_grad": np.ones(1)})["x_grad"][0] for u in units]
        found = np.stack(columns)
    else:
        found = model(feeds)[model.outputs[-1].name]
    np.testing.assert_allclose(found.reshape(8, 8), whole["x_x_hessian"].reshape(8, 8), rtol=1e-11, atol=1e-14)


def test_third_derivatives(mlp: fg.Model, batch: dict[str, Any]) -> None:
    """jacobian(hessian) is symmetric in all three."""
    found = fg.jacobian(fg.hessian(mlp, "loss", "x"), wrt="x")(batch)["x_x_hessian_x_jacobian"].reshape(8, 8, 8)
    np.testing.assert_allclose(found, found.transpose(2, 1, 0), atol=1e-14)
    np.testing.assert_allclose(found, found.transpose(0, 2, 1), atol=1e-14)
    assert np.abs(found).max() > 1e-3


@pytest.mark.parametrize("make", [
    lambda m: fg.hessian(m, "loss", ["x", "b2"]),
    lambda m: fg.hessian(m, "loss", ["x", "b2"], chunk_size=3),
    lambda m: fg.hessian(m, "loss", "w1", diagonal=True, chunk_size=7),
    lambda m: fg.jacobian(fg.hessian(m, "loss", "b2"), wrt="x"),
    lambda m: fg.inverse_outer_product(m, "logits", ["b1", "b2"], damping=0.5),
    lambda m: fg.outer_product(m, "logits", ["b1", "b2"], link="logistic"),
], ids=["whole", "chunks", "diagonal", "third", "inverse", "outer"])
def test_files_and_runtimes_agree(mlp: fg.Model, batch: dict[str, Any], make: Callable[[fg.Model], fg.Model], tmp_path: Path
                                  ) -> None:
    check_files_and_runtimes(make(mlp), batch, tmp_path, atol=1e-13)


LENNARD_JONES = b"""graph @lennard_jones (%positions: f64[N,3]) -> (%energy: f64[]) {
    %from: f64[N,1,3] = Unsqueeze(%positions, [1])
    %to: f64[1,N,3] = Unsqueeze(%positions, [0])
    %apart: f64[N,N,3] = Sub(%from, %to)
    %squares: f64[N,N,3] = Mul(%apart, %apart)
    %distance: f64[N,N] = ReduceSum(%squares, [2]) {keepdims=0}
    %itself: f64[N,N] = EyeLike(%distance)
    %other: bool[N,N] = Equal(%itself, f64(0.0))
    %inverse: f64[N,N] = Reciprocal(%distance)
    %sixth: f64[N,N] = Pow(%inverse, f64(3.0))
    %twelfth: f64[N,N] = Mul(%sixth, %sixth)
    %pair: f64[N,N] = Sub(%twelfth, %sixth)
    %counted: f64[N,N] = Where(%other, %pair, f64(0.0))
    %total: f64[] = ReduceSum(%counted) {keepdims=0}
    %energy: f64[] = Mul(%total, f64(2.0))
}"""


def test_energy_forces_and_hessian_product_of_any_number_of_atoms_in_one_file(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = fg.load(LENNARD_JONES)
    fg.hvp(model, "energy", "positions").to_onnx(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    whole, gradient = fg.hessian(model, "energy", "positions"), fg.grad(model, "energy", "positions")
    rng = np.random.default_rng(4)
    for count in (2, 5, 9):
        at = 1.1 * np.stack(np.unravel_index(np.arange(count), (3, 3, 3)), 1) + rng.uniform(-0.1, 0.1, (count, 3))
        v = rng.standard_normal((count, 3))
        energy, slope, product = session.run(None, {"positions": at, "positions_tangent": v})
        matrix = whole(positions=at)["positions_positions_hessian"].reshape(3 * count, 3 * count)
        bound = 1e-12 * np.abs(matrix).max()
        np.testing.assert_allclose(energy, model(positions=at)["energy"], rtol=1e-12)
        np.testing.assert_allclose(slope, gradient(positions=at)["positions_grad"], rtol=1e-10, atol=bound)
        np.testing.assert_allclose(product.reshape(-1), matrix @ v.reshape(-1), rtol=1e-10, atol=10 * bound)
        np.testing.assert_allclose(matrix, matrix.T, atol=bound)
        np.testing.assert_allclose(matrix.reshape(-1, count, 3).sum(1), 0, atol=10 * bound)  # moving all together costs nothing


# ---- approximations ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(mlp: fg.Model, batch: dict[str, Any]) -> Any:
    """The Jacobian of the logits by all weights, 6 rows."""
    found = fg.jacobian(mlp, "logits", list(PARAMS))(batch)
    return np.concatenate([found[f"logits_{n}_jacobian"].reshape(6, -1) for n in PARAMS], 1)


def directions(mlp: fg.Model, count: int) -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng(3)
    shapes = {v.name: v.type.static_shape for v in mlp.graph.constants}
    parts = {n: rng.standard_normal((count, *shapes[n])) for n in PARAMS}
    return ({f"{n}_tangent": v for n, v in parts.items()},
            np.concatenate([v.reshape(count, -1) for v in parts.values()], 1))


def flat(found: dict[str, Any], suffix: str, count: int) -> Any:
    return np.concatenate([found[f"{n}_{suffix}"].reshape(count, -1) for n in PARAMS], 1)


def test_gauss_newton_is_j_transposed_h_j(mlp: fg.Model, batch: dict[str, Any], rows: Any) -> None:
    inner = fg.hessian(mlp, "loss", "logits")(batch)["logits_logits_hessian"].reshape(6, 6)
    expected = rows.T @ inner @ rows
    dots, v = directions(mlp, 3)
    made = fg.gauss_newton(mlp, "loss", at="logits", seeds=3)
    found = made(batch, **dots)
    assert list(found) == ["loss", *(f"{n}_ggn" for n in PARAMS)]
    np.testing.assert_allclose(flat(found, "ggn", 3), v @ expected, atol=1e-13)
    one = fg.gauss_newton(mlp, "loss", at="logits")(batch, **{n: d[0] for n, d in dots.items()})
    np.testing.assert_allclose(flat(one, "ggn", 1), v[:1] @ expected, atol=1e-13)


@pytest.mark.parametrize("link", ["identity", "logistic"])
def test_outer_products_their_products_and_their_inverse(mlp: fg.Model, batch: dict[str, Any], rows: Any, link: Any) -> None:
    """H ~ sum of weight_n b_n b_n^T; the recursion over n inverts it."""
    y = 1 / (1 + np.exp(-mlp(batch)["logits"].reshape(-1)))
    weights = y * (1 - y) if link == "logistic" else np.ones(6)
    expected = rows.T @ (weights[:, None] * rows)
    dots, v = directions(mlp, 1)
    product = fg.fisher(mlp, "logits", link=link)(batch, **{n: d[0] for n, d in dots.items()})
    np.testing.assert_allclose(flat(product, "fisher", 1), v @ expected, atol=1e-13)
    found = matrix(fg.outer_product(mlp, "logits", link=link)(batch), PARAMS, "outer_product")
    np.testing.assert_allclose(found, expected, atol=1e-13)
    for chunk_size in (None, 4):
        inverse = fg.inverse_outer_product(mlp, "logits", damping=0.1, link=link, chunk_size=chunk_size)(batch)
        inverted = matrix(inverse, PARAMS, "inverse_outer_product")
        np.testing.assert_allclose(inverted @ (expected + 0.1 * np.eye(len(expected))), np.eye(len(expected)), atol=1e-11)


# ---- misuse ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "says"), [
    (lambda m: fg.hessian(m, "logits", "x"), "not a scalar: name a scalar"),
    (lambda m: fg.hessian(m, "los", "x"), "did you mean 'loss'"),
    (lambda m: fg.hessian(m, "loss", "y"), "no output, value or node 'y'"),
    (lambda m: fg.hessian(m, "loss", "target"), "only floats have derivatives"),
    (lambda m: fg.hessian(m, "loss", "x", chunk_size=0), "chunk_size is a number of seeds from 1 on"),
    (lambda m: fg.hessian(m, "loss", "x", diagonal=True, sparse=True), "diagonal=True or sparse=True, not both"),
    (lambda m: fg.hessian(m, "loss", "x", sparse=True), "fixed shapes.*unbatch.*dense"),
    (lambda m: fg.outer_product(m, "logits", link="probit"),  # type: ignore[arg-type]
     "'identity' .*'logistic'"),
    (lambda m: fg.inverse_outer_product(m, "logits", damping=0), "damping is the positive number"),
    (lambda m: fg.hvp(m, "loss", "x", seeds=-1), "seeds is a number from 1 on"),
])
def test_misuse_is_told_the_ways_out(mlp: fg.Model, call: Callable[[fg.Model], fg.Model], says: str) -> None:
    with pytest.raises(FlowgradError, match=says):
        call(mlp)


@pytest.mark.parametrize("link", ["identity", "logistic"])
def test_outer_products_of_several_dtypes(link: Any) -> None:
    model = fg.load(b"""graph @g (%x: f64[2], %w: f32[3]) -> (%y: f64[2], %z: f32[3]) {
  %y: f64[2] = Mul(%x, %x)
  %v: f32[3] = Sin(%w)
  %c: f32[2] = Cast(%x) {to=1}
  %s: f32[] = ReduceSum(%c) {keepdims=0}
  %z: f32[3] = Mul(%v, %s)
}""")
    feeds, names = {"x": np.array([0.5, 2.0]), "w": np.array([1, 2, 3], np.float32)}, ["x", "w"]
    found = fg.outer_product(model, ["y", "z"], names, link=link)(feeds)
    inverse = fg.inverse_outer_product(model, ["y", "z"], names, damping=0.5, link=link)(feeds)
    whole, inverted = (np.block([[arrays[f"{x}_{u}_{kind}"] for u in names] for x in names])
                       for arrays, kind in ((found, "outer_product"), (inverse, "inverse_outer_product")))
    np.testing.assert_allclose(inverted @ (whole + 0.5 * np.eye(5)), np.eye(5), atol=1e-6)
    assert [found[f"{x}_w_outer_product"].dtype for x in names] == [np.float64, np.float32]
