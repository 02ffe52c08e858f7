"""Numerical checks of derivatives: Richardson central differences along random directions, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.passes.differentiate import adjoint, tangent


def directional(function: Callable[[Mapping[str, Array]], Array], at: Mapping[str, Array],
                direction: Mapping[str, Array], step: float) -> tuple[Array, Array]:
    """Return the derivative of ``function`` along ``direction`` and an estimate of its error.

    Central differences with steps h, h/2 and h/4, extrapolated twice (error of order h^6).
    """
    def difference(h: float) -> Array:
        plus = function({k: a + h * direction[k] if k in direction else a for k, a in at.items()})
        minus = function({k: a - h * direction[k] if k in direction else a for k, a in at.items()})
        return np.asarray((plus - minus) / (2 * h))

    d1, d2, d3 = difference(step), difference(step / 2), difference(step / 4)
    r1, r2 = (4 * d2 - d1) / 3, (4 * d3 - d2) / 3
    best = (16 * r2 - r1) / 15
    return best, np.abs(best - r2) + 1e-13 * np.abs(best) / step


def with_cotangents(graph: Graph, wrt: Sequence[str]) -> tuple[Graph, list[str]]:
    """Return ``graph`` extended by inputs ``<y>_ct`` for its float outputs and outputs ``<x>_grad``.

    The second result names those of ``wrt`` that have a gradient.
    """
    joint = graph.copy()
    seeds = []
    for entry in joint.output_entries:
        y = entry.input(0)
        if y.type.dtype.is_float:
            seeds.append((y, joint.add_input(f"{entry.name}_ct", y.type)))
    values = [joint.value(n) for n in wrt]
    found = adjoint(joint, seeds, values, zero="allow")
    for name, bar in zip(wrt, found, strict=True):
        if bar is not None:
            joint.add_output(bar, f"{name}_grad")
    return joint, [n for n, bar in zip(wrt, found, strict=True) if bar is not None]


def check_gradients(graph: Graph, feeds: Mapping[str, Array], wrt: Sequence[str], *, step: float, rtol: float,
                    order: int = 1, seed: int = 0, directions: int = 3) -> None:
    """Check the adjoint of ``graph`` (for ``order`` 2: of its adjoint) against central differences.

    Compares <x_bar, v> with the difference quotient of <y, y_bar> along v, for random v in all of ``wrt``.
    """
    rng = np.random.default_rng(seed + 77)
    joint, differentiable = with_cotangents(graph, wrt)
    cotangents = _cotangents(graph, joint, feeds, rng)
    if order == 2:
        graph, feeds = _gradient_only(joint), {**feeds, **cotangents}
        check_gradients(graph, feeds, [*wrt, *cotangents], step=step, rtol=rtol, seed=seed + 1, directions=directions)
        return
    gradients = evaluate(joint, {**feeds, **cotangents})
    pairing = _pairing(graph, cotangents)
    for _ in range(directions):
        direction = {n: rng.standard_normal(np.shape(feeds[n])) for n in wrt}
        expected, error = directional(pairing, feeds, direction, step)
        got = sum(float(np.sum(gradients[f"{n}_grad"] * direction[n])) for n in differentiable)
        scale = sum(float(np.sum(np.abs(gradients[f"{n}_grad"] * direction[n]))) for n in differentiable)
        bound = rtol * max(scale, 1.0) + 10 * float(error)
        assert float(error) <= 1e-4 * max(scale, 1.0), f"the differences do not converge: {error} at scale {scale}"
        assert abs(got - float(expected)) <= bound, (
            f"adjoint {got!r}, differences {float(expected)!r} (bound {bound:.2e}) wrt {list(wrt)}")


def check_tangents(graph: Graph, feeds: Mapping[str, Array], wrt: Sequence[str], *, step: float, rtol: float,
                   seed: int = 0) -> None:
    """Check the tangents of all float outputs along one random direction against central differences."""
    rng = np.random.default_rng(seed + 99)
    joint = graph.copy()
    pairs = [(joint.value(n), joint.add_input(f"{n}_dot", joint.value(n).type)) for n in wrt]
    entries = [e for e in joint.output_entries if e.input(0).type.dtype.is_float]
    for entry, dot in zip(entries, tangent(joint, pairs, [e.input(0) for e in entries]), strict=True):
        if dot is not None:
            joint.add_output(dot, f"{entry.name}_dot")
    direction = {n: np.asarray(rng.standard_normal(np.shape(feeds[n]))) for n in wrt}
    got = evaluate(joint, {**feeds, **{f"{n}_dot": d for n, d in direction.items()}})
    for entry in entries:
        expected, error = directional(lambda at, e=entry: evaluate(graph, at)[e.name], feeds, direction, step)  # type: ignore[misc]
        mine = got.get(f"{entry.name}_dot", np.zeros_like(expected))
        assert mine.shape == expected.shape, f"tangent of {entry.name}: {mine.shape}, expected {expected.shape}"
        if expected.size == 0:
            continue
        scale = max(1.0, float(np.abs(expected).max()))
        assert float(error.max()) <= 1e-4 * scale, f"the differences do not converge: {error.max()}"
        bound = rtol * scale + 10 * error
        assert np.all(np.abs(mine - expected) <= bound), f"tangent of {entry.name}: {np.abs(mine - expected).max()} off"


def _cotangents(graph: Graph, joint: Graph, feeds: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    outputs = evaluate(graph, feeds)
    names = [v.name for v in joint.inputs[len(graph.inputs):]]
    return {name: np.asarray(rng.standard_normal(outputs[name[:-3]].shape)) for name in names}


def _gradient_only(joint: Graph) -> Graph:
    graph = joint.copy()
    for entry in graph.output_entries:
        if not entry.name.endswith("_grad"):
            graph.remove(entry)
    return graph


def _pairing(graph: Graph, cotangents: Mapping[str, Array]) -> Callable[[Mapping[str, Array]], Array]:
    def pair(at: Mapping[str, Array]) -> Array:
        outputs = evaluate(graph, at)
        return np.asarray(sum(np.sum(outputs[name[:-3]] * ct) for name, ct in cotangents.items()))

    return pair


def float_inputs(graph: Graph) -> list[Value]:
    """Return the graph inputs that are float64."""
    return [v for v in graph.inputs if v.type.dtype.name == "float64"]
