"""``python -m flowgrad.tools.maintenance.random_networks``: random networks against an interpreter that goes unit by unit.

The interpreter is plain Python and knows nothing of graphs of operators: forward propagation in topological order, then
delta_j = h'(a_j) sum_k w_kj delta_k, and dE_n/dw_ji = delta_j z_i.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from flowgrad.ir.graph import Array
from flowgrad.model import Model, load
from flowgrad.transforms import network_layers
from flowgrad.transforms.derivatives import grad
from flowgrad.transforms.networks import Network, network

EXAMPLE = "example: python -m flowgrad.tools.maintenance.random_networks --count 1000"

TOLERANCE = 1e-12
"""How far numbers may be apart, relative to the greatest of their kind or 1."""

Activation = tuple[Callable[[float], float], Callable[[float], float]]


def _logistic(a: float) -> float:
    return 1 / (1 + math.exp(-a)) if a > 0 else math.exp(a) / (1 + math.exp(a))


def _normal(a: float) -> float:
    return (1 + math.erf(a / math.sqrt(2))) / 2


SQUARES = load(b"graph @squares (%a: f64[N]) -> (%z: f64[N]) { %m: f64[N] = Mul(%a, %a)\n %z: f64[N] = Mul(%m, f64(0.25)) }")
"""An activation that is a Model: a^2 / 4."""

QUARTIC = load(b"""graph @quartic (%y: f64[N,K], %t: f64[N,K]) -> (%e: f64[N]) {
    %d: f64[N,K] = Sub(%y, %t)
    %s: f64[N,K] = Mul(%d, %d)
    %e: f64[N] = ReduceSumSquare(%s, [1]) {keepdims=0}
}""")
"""An error that is a Model: sum_k (y_k - t_k)^4."""

ACTIVATIONS: dict[Any, Activation] = {
    "identity": (lambda a: a, lambda a: 1.0),
    "tanh": (math.tanh, lambda a: 1 - math.tanh(a) ** 2),
    "logistic": (_logistic, lambda a: _logistic(a) * _logistic(-a)),
    "sigmoid": (_logistic, lambda a: _logistic(a) * _logistic(-a)),
    "relu": (lambda a: max(a, 0.0), lambda a: float(a > 0)),
    "softplus": (lambda a: max(a, 0.0) + math.log1p(math.exp(-abs(a))), _logistic),
    "gelu": (lambda a: a * _normal(a), lambda a: _normal(a) + a * math.exp(-a * a / 2) / math.sqrt(2 * math.pi)),
    "silu": (lambda a: a * _logistic(a), lambda a: _logistic(a) * (1 + a * _logistic(-a))),
    "sin": (math.sin, math.cos),
    SQUARES: (lambda a: a * a / 4, lambda a: a / 2),
}
"""What units of a random network compute, and its derivative; softmax besides."""


@dataclass(frozen=True)
class Example:
    """A network in networkx, its error, and examples."""

    units: nx.DiGraph[Any]
    error: str | Model
    x: Array
    t: Array


# ---- random networks ------------------------------------------------------------------------------------------------------


def random_example(seed: int) -> Example:
    """Return a random network of up to 40 units with skip links, several outputs, shared weights and softmax groups."""
    rng = np.random.default_rng(seed)
    errors: list[str | Model] = [*network_layers.ERRORS, QUARTIC]
    error = errors[int(rng.integers(3))]
    units: nx.DiGraph[Any] = nx.DiGraph()
    nodes = [f"x{i}" for i in range(int(rng.integers(1, 5)))]
    units.add_nodes_from(nodes, kind="input")
    count, outputs = int(rng.integers(1, 41 if seed % 5 == 0 else 13)), int(rng.integers(1, 5))
    reach = int(rng.integers(2, 15)) if rng.random() < 0.5 else count + len(nodes)
    for i in range(count):
        chosen = list(ACTIVATIONS)[int(rng.integers(len(ACTIVATIONS)))]
        group = {"group": f"g{i // 4}"} if rng.random() < 0.1 else {}
        units.add_node(f"h{i}", activation="softmax" if group else chosen, **group)
        _link(units, rng, f"h{i}", nodes[-reach:])
        if not group or rng.random() < 0.3:  # the rest of a group is made later, and may not follow on it
            nodes.append(f"h{i}")
    _undo_loops(units)
    inner = [n for n in units if units.nodes[n].get("activation") != "softmax"]
    is_softmax = error == "cross_entropy" and rng.random() < 0.5
    for k in range(outputs):
        chosen = "logistic" if error == "cross_entropy" else list(ACTIVATIONS)[int(rng.integers(len(ACTIVATIONS)))]
        units.add_node(f"y{k}", activation="softmax" if is_softmax else chosen, kind="output",
                       **({"group": "out"} if is_softmax else {}))
        earlier = [n for n in inner if n[0] != "y"] + ([] if is_softmax else [f"y{j}" for j in range(k)])
        _link(units, rng, f"y{k}", earlier)
    if rng.random() < 0.8:
        units.add_node("one", kind="bias")
        for name in [n for n in units if "activation" in units.nodes[n] and rng.random() < 0.7]:
            _add_link(units, rng, "one", name)
    _share(units, rng)
    examples = int(rng.integers(1, 5))
    x = rng.standard_normal((examples, sum(n[0] == "x" for n in units)))
    t = rng.random((examples, outputs))
    return Example(units, error, x, t / t.sum(axis=1, keepdims=True) if is_softmax else t)


def _link(units: nx.DiGraph[Any], rng: np.random.Generator, target: str, earlier: Sequence[str]) -> None:
    """Link a random part of what comes earlier to a unit."""
    count = int(rng.integers(1, min(len(earlier), 8) + 1))
    for i in rng.choice(len(earlier), count, replace=False):
        _add_link(units, rng, earlier[i], target)


def _add_link(units: nx.DiGraph[Any], rng: np.random.Generator, source: str, target: str) -> None:
    units.add_edge(source, target, weight=float(rng.standard_normal() / 2))


def _undo_loops(units: nx.DiGraph[Any]) -> None:
    """Let units of softmax be groups of one where their groups are linked to themselves."""
    if not nx.is_directed_acyclic_graph(_by_group(units)):
        for name, data in units.nodes(data=True):
            if "group" in data:
                data["group"] = name


def _by_group(units: nx.DiGraph[Any]) -> nx.DiGraph[Any]:
    """Return the graph of groups: each softmax group is one node, every other node one by itself; a loop inside stays."""
    heads = {n: ("group", d["group"]) if "group" in d else n for n, d in units.nodes(data=True)}
    grouped: nx.DiGraph[Any] = nx.DiGraph()
    grouped.add_nodes_from(heads.values())
    grouped.add_edges_from((heads[u], heads[v]) for u, v in units.edges)
    return grouped


def _share(units: nx.DiGraph[Any], rng: np.random.Generator) -> None:
    """Let some links share a few parameters."""
    if rng.random() < 0.5:
        return
    values = {f"shared{i}": float(rng.standard_normal() / 2) for i in range(int(rng.integers(1, 4)))}
    for *_, data in units.edges(data=True):
        if rng.random() < 0.3:
            data["parameter"] = list(values)[int(rng.integers(len(values)))]
            data["weight"] = values[data["parameter"]]


# ---- the interpreter --------------------------------------------------------------------------------------------------------


@dataclass
class Propagation:
    """What the interpreter finds for one example: a, z and delta of units, the gradient of links, and E_n."""

    a: dict[str, float]
    z: dict[str, float]
    delta: dict[str, float]
    gradient: dict[tuple[str, str], float]
    error: float


def propagate(units: nx.DiGraph[Any], error: str | Model, x: Sequence[float], t: Sequence[float]) -> Propagation:
    """Propagate one example forwards and backwards, one unit at a time."""
    found = Propagation({}, {}, {}, {}, 0.0)
    inputs = [n for n in units if units.nodes[n].get("kind") == "input"]
    found.z.update(zip(inputs, x, strict=True))
    found.z.update((n, 1.0) for n in units if units.nodes[n].get("kind") == "bias")
    together = {("group", d["group"]): [m for m in units if units.nodes[m].get("group") == d["group"]]
                for _, d in units.nodes(data=True) if "group" in d}
    order = [together.get(head, [head]) for head in nx.topological_sort(_by_group(units))]
    order = [members for members in order if "activation" in units.nodes[members[0]]]
    for members in order:
        for j in members:
            found.a[j] = sum(units.edges[i, j]["weight"] * found.z[i] for i in units.predecessors(j))
        found.z.update(_activated(units, members, found.a))
    outputs = [n for n in units if units.nodes[n].get("kind") == "output"]
    targets = dict(zip(outputs, t, strict=True))
    by_output, by_link, found.error = _error(units, error, targets, found)
    for members in reversed(order):
        back = {j: by_output.get(j, 0.0) + sum(units.edges[j, k]["weight"] * found.delta[k] for k in units.successors(j))
                for j in members}
        if units.nodes[members[0]]["activation"] == "softmax":
            mean = sum(found.z[j] * back[j] for j in members)
            found.delta.update((j, found.z[j] * (back[j] - mean)) for j in members)
        else:
            (j,) = members
            found.delta[j] = ACTIVATIONS[units.nodes[j]["activation"]][1](found.a[j]) * back[j]
        for j in members:
            found.delta[j] += by_link.get(j, 0.0)
    found.gradient = {(i, j): found.delta[j] * found.z[i] for i, j in units.edges}
    return found


def _activated(units: nx.DiGraph[Any], members: Sequence[str], a: dict[str, float]) -> dict[str, float]:
    if units.nodes[members[0]]["activation"] != "softmax":
        return {j: ACTIVATIONS[units.nodes[j]["activation"]][0](a[j]) for j in members}
    top = max(a[j] for j in members)
    total = sum(math.exp(a[j] - top) for j in members)
    return {j: math.exp(a[j] - top) / total for j in members}


def _error(units: nx.DiGraph[Any], error: str | Model, targets: dict[str, float], found: Propagation
           ) -> tuple[dict[str, float], dict[str, float], float]:
    """Return dE_n/dz of the outputs, or dE_n/da = y - t where the link is canonical, and E_n."""
    off = {k: found.z[k] - t for k, t in targets.items()}
    if error == "sum_of_squares":
        return off, {}, sum(d * d for d in off.values()) / 2
    if error is QUARTIC:
        return {k: 4 * d ** 3 for k, d in off.items()}, {}, sum(d ** 4 for d in off.values())
    first = next(iter(targets))
    if units.nodes[first]["activation"] == "softmax":
        return {}, off, -sum(t * math.log(found.z[k]) for k, t in targets.items())
    return {}, off, -sum(t * math.log(found.z[k]) + (1 - t) * math.log(_logistic(-found.a[k])) for k, t in targets.items())


# ---- comparing --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def forms(seed: int) -> Iterator[None]:
    """Compile with other limits: single links where there would be matrices, joined layers where there would be few."""
    before = network_layers.DENSE, network_layers.FEW_LAYERS
    network_layers.DENSE = 0 if seed & 1 else before[0]
    network_layers.FEW_LAYERS = 1 if seed & 2 else before[1]
    try:
        yield
    finally:
        network_layers.DENSE, network_layers.FEW_LAYERS = before


def differences(seed: int) -> list[str]:
    """Return what a random network and the interpreter disagree on."""
    case = random_example(seed)
    with forms(seed):
        made = network(case.units, error=case.error)
    expected = [propagate(case.units, case.error, x.tolist(), t.tolist()) for x, t in zip(case.x, case.t, strict=True)]
    got = made.evaluate(case.x, case.t)
    pairs: list[tuple[str, Any, Any]] = [("errors", got.graph["errors"], [e.error for e in expected])]
    for what in ("a", "z", "delta"):
        pairs += [(f"{what} of {n}", d[what], [getattr(e, what)[n] for e in expected])
                  for n, d in got.nodes(data=True) if what in d]
    pairs += [(f"gradient of {i}->{j}", d["gradient"], [e.gradient[i, j] for e in expected])
              for i, j, d in got.edges(data=True)]
    if seed % 3 == 0:  # a second graph to compile
        pairs += _by_parameters(made, case, expected)
    return [f"{what}: {found}, expected {wanted}" for what, found, wanted in pairs if not _near(found, wanted)]


def _by_parameters(made: Network, case: Example, expected: Sequence[Propagation]) -> list[tuple[str, Any, Any]]:
    """Return the gradients of E by the parameters, and the sums of those of their links over the examples."""
    found = grad(made, "error", list(made.links))(x=case.x, t=case.t)
    pairs: list[tuple[str, Any, Any]] = []
    for name, links in made.links.items():
        sums = np.array([sum(e.gradient[str(i), str(j)] for e in expected) for i, j in links])
        shared = any(case.units.edges[link].get("parameter") == name for link in links)
        pairs.append((f"{name}_grad", found[f"{name}_grad"].reshape(-1), [sums.sum()] if shared else sums))
    return pairs


def _near(found: Any, wanted: Any) -> bool:
    wanted = np.asarray(wanted)
    allowed = TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    return found.shape == wanted.shape and bool(np.all(np.abs(found - wanted) <= allowed))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare random networks; return 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="how many networks (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    options = parser.parse_args(arguments)
    started, failed = time.monotonic(), 0
    for seed in range(options.seed, options.seed + options.count):
        found = differences(seed)
        failed += bool(found)
        for line in found[:3]:
            print(f"seed {seed}: {line}")
    print(f"{options.count} networks, {failed} differ, {time.monotonic() - started:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
