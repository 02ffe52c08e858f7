"""A network of continuous filters on molecules (SchNet): energy, forces and Hessian products for any number of atoms.

Pairs of atoms nearer than a cutoff are found in the graph (NonZero), their messages gathered and scattered, so the number of
atoms and of pairs are both known only at run time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import PARAMETER, Array, Graph, Value
from flowgrad.ir.types import FLOAT64, INT64, Dim, Type
from flowgrad.model import Model

SPECIES, WIDTH, BASIS, LAYERS, CUTOFF, GAMMA = 4, 8, 6, 2, 2.5, 4.0
CENTRES = np.linspace(0.0, CUTOFF, BASIS)


def weights() -> dict[str, Array]:
    """Return the embedding, filters and dense layers."""
    rng = np.random.default_rng(0)
    shapes = {"embedding": (SPECIES, WIDTH), "read1": (WIDTH, WIDTH), "read2": (WIDTH, 1)}
    for k in range(LAYERS):
        shapes |= {f"filter{k}a": (BASIS, WIDTH), f"filter{k}b": (WIDTH, WIDTH), f"in{k}": (WIDTH, WIDTH), f"out{k}": (WIDTH, WIDTH)}
    return {name: rng.standard_normal(shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}


def schnet() -> Model:
    """Return the model: positions [N, 3] and species [N] to energy []."""
    graph = Graph("schnet")
    b, atoms = Builder(graph), Dim.named("N")
    at = graph.add_input("positions", Type(FLOAT64, (atoms, 3)))
    species = graph.add_input("species", Type(INT64, (atoms,)))
    w = {name: graph.add_constant(a, name, PARAMETER) for name, a in weights().items()}

    def shifted_softplus(x: Value) -> Value:
        return b.Sub(b.Softplus(x), np.log(2.0))

    apart = b.Sub(b.Unsqueeze(at, [1]), b.Unsqueeze(at, [0]))
    squares = b.ReduceSum(b.Mul(apart, apart), [2], keepdims=0)
    other = b.Not(b.Cast(b.EyeLike(squares), to=9))
    pairs = b.NonZero(b.And(other, b.Less(squares, CUTOFF**2)))
    to, sender = b.Gather(pairs, 0, axis=0), b.Gather(pairs, 1, axis=0)
    along = b.Sub(b.Gather(at, to), b.Gather(at, sender))
    distance = b.Sqrt(b.ReduceSum(b.Mul(along, along), [1], keepdims=1))
    away = b.Sub(distance, CENTRES[None])
    basis = b.Exp(b.Mul(b.Mul(away, away), -GAMMA))
    fade = b.Mul(b.Add(b.Cos(b.Mul(distance, np.pi / CUTOFF)), 1.0), 0.5)
    x = b.Gather(w["embedding"], species)
    for k in range(LAYERS):
        filters = b.Mul(b.MatMul(shifted_softplus(b.MatMul(basis, w[f"filter{k}a"])), w[f"filter{k}b"]), fade)
        messages = b.Mul(b.Gather(b.MatMul(x, w[f"in{k}"]), sender), filters)
        gathered = b.ScatterND(b.Mul(x, 0.0), b.Unsqueeze(to, [1]), messages, reduction="add")
        x = b.Add(x, b.MatMul(shifted_softplus(gathered), w[f"out{k}"]))
    graph.add_output(b.ReduceSum(b.MatMul(b.Tanh(b.MatMul(x, w["read1"])), w["read2"]), keepdims=0), "energy")
    return Model(graph)


def energy(at: Array, species: Array, w: dict[str, Array]) -> float:
    """Return the same, atom by atom in NumPy."""
    def shifted_softplus(x: Array) -> Array:
        return np.asarray(np.logaddexp(x, 0) - np.log(2.0))

    x = [w["embedding"][s] for s in species]
    for k in range(LAYERS):
        gathered = np.zeros((len(at), WIDTH))
        for i, j in np.ndindex(len(at), len(at)):
            distance = np.linalg.norm(at[i] - at[j])
            if i != j and distance < CUTOFF:
                basis = np.exp(-GAMMA * (distance - CENTRES) ** 2)
                fade = (np.cos(np.pi * distance / CUTOFF) + 1) / 2
                gathered[i] += (x[j] @ w[f"in{k}"]) * (shifted_softplus(basis @ w[f"filter{k}a"]) @ w[f"filter{k}b"]) * fade
        x = [a + shifted_softplus(g) @ w[f"out{k}"] for a, g in zip(x, gathered, strict=True)]
    return float(sum(np.tanh(a @ w["read1"]) @ w["read2"] for a in x)[0])


def molecule(count: int) -> dict[str, Array]:
    """Return atoms near the places of a cube, so that none are close to each other; a single one has no pair at all."""
    rng = np.random.default_rng(count)
    at = 1.3 * np.stack(np.unravel_index(np.arange(count), (3, 3, 3)), 1) + rng.uniform(-0.2, 0.2, (count, 3))
    return {"positions": at, "species": rng.integers(0, SPECIES, count)}


def slopes(function: Any, at: Array, step: float) -> Array:
    """Return central differences of ``function`` by each coordinate, along new last axes."""
    moved = [np.asarray(function(at + step * e) - function(at - step * e)) / (2 * step)
             for e in np.eye(at.size).reshape(-1, *at.shape)]
    return np.stack(moved, -1).reshape(*moved[0].shape, *at.shape)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_energy_forces_and_curvature_are_right_for_any_number_of_atoms(count: int) -> None:
    given, model = molecule(count), schnet()
    at, species = given["positions"], given["species"]
    v = np.random.default_rng(1).standard_normal(at.shape)
    found = fg.hvp(model, "energy", "positions")(given, positions_tangent=v)
    np.testing.assert_allclose(found["energy"], energy(at, species, weights()), rtol=1e-12)
    by_differences = slopes(lambda p: energy(p, species, weights()), at, 1e-5)
    np.testing.assert_allclose(found["positions_grad"], by_differences, atol=1e-9)
    gradient = fg.grad(model, "energy", "positions")
    step = 1e-5
    plus, minus = (gradient(given, positions=at + s * v)["positions_grad"] for s in (step, -step))
    np.testing.assert_allclose(found["positions_hvp"], (plus - minus) / (2 * step), atol=1e-8)
    whole = fg.hessian(model, "energy", "positions")(given)["positions_positions_hessian"]
    np.testing.assert_allclose(found["positions_hvp"], np.tensordot(whole, v, 2), atol=1e-13)
    np.testing.assert_allclose(whole, whole.transpose(2, 3, 0, 1), atol=1e-13)
    np.testing.assert_allclose(whole.sum(2), 0, atol=1e-13)  # moving all together costs nothing
    if count > 1:
        assert np.abs(found["positions_grad"]).max() > 1e-3


def test_turned_and_renamed_atoms_have_turned_forces() -> None:
    given, gradient = molecule(7), fg.value_and_grad(schnet(), "energy", "positions")
    turn, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))
    order = np.random.default_rng(4).permutation(7)
    one = gradient(given)
    other = gradient(positions=(given["positions"] @ turn)[order], species=given["species"][order])
    np.testing.assert_allclose(other["energy"], one["energy"], rtol=1e-12)
    np.testing.assert_allclose(other["positions_grad"], (one["positions_grad"] @ turn)[order], atol=1e-13)


def test_one_file_gives_all_three_for_any_number_of_atoms(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    product = fg.hvp(schnet(), "energy", "positions")
    product.to_onnx(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    for count in (1, 2, 5, 9, 20):
        given = molecule(count)
        given["positions_tangent"] = np.random.default_rng(2).standard_normal((count, 3))
        expected = product(given)
        names = [o.name for o in session.get_outputs()]
        assert names == ["energy", "positions_grad", "positions_hvp"]
        for name, array in zip(names, session.run(None, given), strict=True):
            assert array.dtype == np.float64
            np.testing.assert_allclose(array, expected[name], rtol=1e-11, atol=1e-12, err_msg=f"{name} of {count} atoms")


def test_weights_are_fitted_to_forces() -> None:
    """The gradient, by the weights, of an error of forces: a second derivative through gathers and scatters."""
    given, model = molecule(4), schnet()
    product = fg.hvp(model, "energy", ["positions", "embedding", "filter0a", "out1"])
    zeros = {f"{n}_tangent": np.zeros_like(a) for n, a in weights().items() if n in ("embedding", "filter0a", "out1")}
    v = np.random.default_rng(5).standard_normal((4, 3))
    found = product(given, positions_tangent=v, **zeros)
    gradient = fg.grad(model, "energy", "positions")
    for name in ("embedding", "filter0a", "out1"):
        along = np.random.default_rng(6).standard_normal(weights()[name].shape)
        step = 1e-5
        plus, minus = (np.vdot(v, gradient(given, **{name: weights()[name] + s * along})["positions_grad"]) for s in (step, -step))
        np.testing.assert_allclose(np.vdot(found[f"{name}_hvp"], along), (plus - minus) / (2 * step), rtol=1e-6, atol=1e-9)
