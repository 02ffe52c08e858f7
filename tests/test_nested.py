"""Derivatives of derivatives of real models: ``fg.grad`` nested three times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array
from flowgrad.model import Model
from flowgrad.passes.differences import directional_derivative

ZOO = Path(__file__).resolve().parent.parent.parent / "shared" / "zoo"
DATA = Path(__file__).parent / "data"


def paired(model: Model, output: str, weights: Array, name: str) -> Model:
    """The model with <output, weights> as a scalar output called ``name``."""
    graph = model.graph.copy()
    y = next(e.input(0) for e in graph.output_entries if e.name == output)
    graph.add_output(Builder(graph).ReduceSum(Builder(graph).Mul(y, weights), keepdims=0), name)
    return model.with_graph(graph)


def nested(model: Model, output: str, wrt: str, directions: list[Array], seed: Array) -> list[Model]:
    """Models of g_k = d/dx <g_(k-1), v_(k-1)> for k = 1, 2, 3, with g_0 the output and v_0 the seed."""
    found = []
    for order, weights in enumerate([seed, *directions[:2]]):
        model = fg.grad(paired(model, output, weights, f"s{order}"), f"s{order}", wrt)
        output = model.outputs[0].name
        found.append(model)
    return found


@pytest.mark.parametrize("entry", ["mlp", "siren"])
def test_three_nested_gradients(entry: str) -> None:
    if not ZOO.is_dir():
        pytest.skip("the models are not here")
    model = fg.load(ZOO / entry / "model.onnx").astype("float64")
    with np.load(ZOO / entry / "data.npz") as data:
        x = data[f"in/{model.inputs[0].name}"].astype(np.float64)
        seed = data[f"ct/{model.outputs[0].name}"].astype(np.float64)
    check_nested(model, {model.inputs[0].name: x}, model.outputs[0].name, model.inputs[0].name, seed)


def test_three_nested_gradients_of_the_small_network() -> None:
    model = fg.load(DATA / "mlp.onnx").astype("float64")
    x = np.random.default_rng(0).standard_normal((3, 4))
    check_nested(model, {"x": x, "target": np.array([0, 1, 2])}, "loss", "x", np.array(1.0))


def check_nested(model: Model, feeds: dict[str, Array], output: str, wrt: str, seed: Array) -> None:
    rng = np.random.default_rng(3)
    directions = [np.asarray(rng.standard_normal(feeds[wrt].shape)) for _ in range(3)]
    base = paired(model, output, seed, "s0")
    lower: list[tuple[Model, str, Array]] = [(base, "s0", np.array(1.0))]
    models = nested(model, output, wrt, directions, seed)
    for order, higher in enumerate(models):
        below, name, weights = lower[-1]
        gradient = higher(feeds)[higher.outputs[0].name]
        expected, error = directional_derivative(
            lambda at, m=below, n=name, w=weights: np.sum(m(at)[n] * w),  # type: ignore[misc]
            feeds, {wrt: directions[2]}, 1e-3)
        scale = np.sum(np.abs(gradient * directions[2]))
        assert float(error) < 1e-6 * scale
        assert abs(np.sum(gradient * directions[2]) - expected) <= 1e-8 * scale + 10 * float(error), f"order {order + 1}"
        lower.append((higher, higher.outputs[0].name, directions[order]))
