"""vmap: a model of many examples gives what the model of one gives for each."""

from __future__ import annotations

import numpy as np
import pytest

import flowgrad as fg


@pytest.fixture
def mlp() -> fg.Model:
    return fg.load("tests/data/mlp.onnx")


def test_gradients_of_many_examples_are_those_of_each(mlp: fg.Model) -> None:
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((5, 2, 4), np.float32), rng.integers(0, 3, (5, 2))
    one = fg.grad(mlp, of="loss", wrt="params")
    many = fg.vmap(one)(x=x, target=target)
    for i in range(5):
        for name, found in one(x=x[i], target=target[i]).items():
            np.testing.assert_allclose(many[name][i], found, rtol=1e-6, atol=1e-7)
