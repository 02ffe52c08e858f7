"""Tangent graphs are of about the size of JAX's jaxprs, fit the adjoints, and are right where JAX is there."""

from __future__ import annotations

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.types import FLOAT32, FLOAT64
from flowgrad.tools.maintenance.beside_jax import LARGER, MATRICES, compare_sizes, compare_times
from flowgrad.tools.maintenance.twin_models import TWINS, Twin

JAX = {
    "perceptron": 59, "lenet": 66, "transformer": 166, "llama": 138, "residual": 40, "residual_training": 82, "convnext": 64,
    "siren": 29, "lennard_jones": 41, "gated": 180, "filters": 99,
}
"""Equations of the jaxprs of the Jacobian-vector products, by JAX 0.10 (``beside_jax --sizes``)."""


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_a_tangent_graph_is_small_and_fits_the_adjoint(twin: Twin) -> None:
    model = twin.graph()
    pushed = fg.jvp(model)
    assert len(pushed.optimized().graph) <= LARGER * JAX[twin.name]
    rng = np.random.default_rng(1)
    x, v = 0.3 * rng.standard_normal(twin.shape), rng.standard_normal(twin.shape)
    found = pushed(x=x, x_tangent=v)
    y_bar = rng.standard_normal(found["y"].shape)
    pulled = fg.vjp(model)(x=x, y_grad=y_bar)["x_grad"]
    np.testing.assert_allclose(np.vdot(y_bar, found["y_tangent"]), np.vdot(pulled, v), rtol=1e-9)


def test_jax_agrees() -> None:
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        for twin in TWINS:
            assert "larger" not in compare_sizes(twin)
        for dtype, bound in ((FLOAT32, 1e-6), (FLOAT64, 1e-12)):
            told = compare_times(MATRICES[0], dtype)
            assert float(told.partition("off by ")[2].partition(",")[0]) <= bound, told
    finally:
        jax.config.update("jax_enable_x64", before)
