"""Random operators: seeds repeat, runs differ, moments are right, and gradients see the mask of the forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.types import FLOAT64, Type
from flowgrad.passes.differentiate import adjoint, tangent

SIZE = 20_000


def draw(op: str, given: list[Array], attributes: dict[str, Any], seed: int = 0) -> Array:
    """Return the first output of one node run with a generator of its own."""
    graph = Graph("draw")
    b = Builder(graph)
    graph.add_output(b.add(op, [graph.add_constant(a) for a in given], attributes), "y")
    return evaluate(graph, rng=np.random.default_rng(seed))["y"]


ONES = np.ones(SIZE)
DRAWS: dict[str, tuple[list[Array], dict[str, Any], float, float]] = {
    "RandomNormal": ([], {"shape": (SIZE,), "mean": 2.0, "scale": 3.0}, 2.0, 3.0),
    "RandomUniform": ([], {"shape": (SIZE,), "low": -1.0, "high": 3.0}, 1.0, 4 / np.sqrt(12)),
    "RandomNormalLike": ([ONES], {"mean": 2.0, "scale": 3.0}, 2.0, 3.0),
    "RandomUniformLike": ([ONES], {"low": -1.0, "high": 3.0}, 1.0, 4 / np.sqrt(12)),
    "Bernoulli": ([0.3 * ONES], {}, 0.3, np.sqrt(0.21)),
    "Multinomial": ([np.log([[0.2, 0.3, 0.5]])], {"sample_size": SIZE}, 1.3, np.sqrt(0.61)),
    "Dropout": ([ONES, np.array(0.2), np.array(True)], {}, 1.0, 0.5),
}


@pytest.mark.parametrize("op", DRAWS)
def test_moments_of_draws(op: str) -> None:
    given, attributes, mean, deviation = DRAWS[op]
    drawn = draw(op, given, attributes).astype(np.float64)
    assert abs(drawn.mean() - mean) < 5 * deviation / np.sqrt(SIZE)
    assert abs(drawn.std() - deviation) < 0.03 * deviation


@pytest.mark.parametrize("op", DRAWS)
def test_a_seed_repeats_and_runs_without_differ(op: str) -> None:
    given, attributes, _, _ = DRAWS[op]
    seeded = {**attributes, "seed": 7 if op == "Dropout" else 7.0}
    assert np.array_equal(draw(op, given, seeded, seed=1), draw(op, given, seeded, seed=2))
    other = {**attributes, "seed": 8 if op == "Dropout" else 8.0}
    assert not np.array_equal(draw(op, given, seeded), draw(op, given, other))
    assert not np.array_equal(draw(op, given, attributes, seed=1), draw(op, given, attributes, seed=2))
    assert np.array_equal(draw(op, given, attributes, seed=1), draw(op, given, attributes, seed=1))


@pytest.mark.parametrize("mode", ["adjoint", "tangent"])
def test_the_derivative_of_dropout_uses_the_mask_of_its_own_run(mode: str) -> None:
    graph = Graph("dropout")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (50,)))
    y = b.Dropout(x, 0.25, b.value(True))
    one = b.filled(1.0, y)
    (found,) = adjoint(graph, [(y, one)], [x]) if mode == "adjoint" else tangent(graph, [(x, one)], [y])
    assert found is not None
    graph.add_output(y, "y")
    graph.add_output(found, "slope")
    for seed in range(3):
        results = evaluate(graph, {"x": np.full(50, 3.0)}, rng=np.random.default_rng(seed))
        np.testing.assert_allclose(results["y"], 3.0 * results["slope"], rtol=1e-15)
        assert set(np.round(results["slope"], 12)) == {0.0, round(4 / 3, 12)}
