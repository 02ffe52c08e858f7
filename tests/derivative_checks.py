"""Numerical checks of derivatives: extrapolated central differences along random directions, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.passes.differences import directional_derivative
from flowgrad.passes.differentiate import with_adjoint, with_tangent


def check_gradients(graph: Graph, feeds: Mapping[str, Array], wrt: Sequence[str], *, step: float, rtol: float,
                    order: int = 1, seed: int = 0, directions: int = 3) -> None:
    """Check the adjoint of ``graph`` (for ``order`` 2: of its adjoint) against central differences.

    Compares <x_bar, v> with the difference quotient of <y, y_bar> along v, for random v in all of ``wrt``.
    """
    rng = np.random.default_rng(seed + 77)
    joint = with_adjoint(graph, wrt)
    cotangents = joint.drawn(evaluate(graph, feeds), rng)
    if order == 2:
        check_gradients(joint.alone(), {**feeds, **cotangents}, [*wrt, *cotangents], step=step, rtol=rtol, seed=seed + 1,
                        directions=directions)
        return
    results = evaluate(joint.graph, {**feeds, **cotangents})
    gradients = {n: results[name] for n, name in joint.outputs.items()}
    pairing = _pairing(graph, {of: cotangents[name] for of, name in joint.inputs.items()})
    for _ in range(directions):
        direction = {n: rng.standard_normal(np.shape(feeds[n])) for n in wrt}
        expected, error = directional_derivative(pairing, feeds, direction, step)
        got = sum(float(np.sum(g * direction[n])) for n, g in gradients.items())
        scale = sum(float(np.sum(np.abs(g * direction[n]))) for n, g in gradients.items())
        bound = rtol * max(scale, 1.0) + 10 * float(error)
        assert float(error) <= 1e-4 * max(scale, 1.0), f"the differences do not converge: {error} at scale {scale}"
        assert abs(got - float(expected)) <= bound, (
            f"adjoint {got!r}, differences {float(expected)!r} (bound {bound:.2e}) wrt {list(wrt)}")


def check_tangents(graph: Graph, feeds: Mapping[str, Array], wrt: Sequence[str], *, step: float, rtol: float,
                   seed: int = 0) -> None:
    """Check the tangents of all float outputs along one random direction against central differences."""
    rng = np.random.default_rng(seed + 99)
    joint = with_tangent(graph, wrt)
    direction = {n: np.asarray(rng.standard_normal(np.shape(feeds[n]))) for n in wrt}
    got = evaluate(joint.graph, {**feeds, **{joint.inputs[n]: d for n, d in direction.items()}})
    for entry in [e for e in graph.output_entries if e.input(0).type.dtype.is_float]:
        expected, error = directional_derivative(
            lambda at, e=entry: evaluate(graph, at)[e.name], feeds, direction, step)  # type: ignore[misc]
        mine = got.get(joint.outputs.get(entry.name, ""), np.zeros_like(expected))
        assert mine.shape == expected.shape, f"tangent of {entry.name}: {mine.shape}, expected {expected.shape}"
        if expected.size == 0:
            continue
        scale = max(1.0, float(np.abs(expected).max()))
        assert float(error.max()) <= 1e-4 * scale, f"the differences do not converge: {error.max()}"
        bound = rtol * scale + 10 * error
        assert np.all(np.abs(mine - expected) <= bound), f"tangent of {entry.name}: {np.abs(mine - expected).max()} off"


def _pairing(graph: Graph, cotangents: Mapping[str, Array]) -> Callable[[Mapping[str, Array]], Array]:
    def pair(at: Mapping[str, Array]) -> Array:
        outputs = evaluate(graph, at)
        return np.asarray(sum(np.sum(outputs[of] * ct) for of, ct in cotangents.items()))

    return pair
