"""``python -m flowgrad.tools.maintenance.network_costs``: what derivatives of networks cost, by the number W of their weights.

Backpropagation takes time in proportion to W, central differences of all weights in proportion to W^2: both exponents are
fitted. Then a network of 100,000 links: how long it takes to compile, and to run beside the same layers written in NumPy.
All on one thread, in seconds of the processor, so that other processes count little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import numpy as np
from threadpoolctl import threadpool_limits

from flowgrad.ir.graph import PARAMETER, Array
from flowgrad.model import Model
from flowgrad.passes.differences import central_difference
from flowgrad.transforms.derivatives import value_and_grad
from flowgrad.transforms.networks import Network, network

EXAMPLE = "example: python -m flowgrad.tools.maintenance.network_costs --json"

HIDDEN = (16, 32, 64, 128)
"""Hidden units of the networks whose exponents are fitted: 16 inputs, 16 outputs."""

LARGE = (300, 200, 150, 66)
"""Layers of a network of 100,316 links, biases among them."""

EXAMPLES = 1024
"""So many that products of matrices, not calls, take the time."""


def layered(sizes: Sequence[int]) -> nx.DiGraph[Any]:
    """Return a fully connected network with biases: tanh hidden units, linear outputs."""
    rng = np.random.default_rng(0)
    units: nx.DiGraph[Any] = nx.DiGraph()
    layers = [[(depth, i) for i in range(size)] for depth, size in enumerate(sizes)]
    units.add_nodes_from(layers[0], kind="input")
    units.add_node("bias", kind="bias")
    for earlier, later in itertools.pairwise(layers):
        units.add_nodes_from(later, activation="identity" if later is layers[-1] else "tanh")
        weights = rng.standard_normal((len(earlier) + 1, len(later))) / np.sqrt(len(earlier))
        units.add_edges_from((u, v, {"weight": weights[i, j]})
                             for i, u in enumerate(["bias", *earlier]) for j, v in enumerate(later))
    return units


def feeds(sizes: Sequence[int], examples: int = EXAMPLES) -> dict[str, Array]:
    """Return one batch of examples."""
    rng = np.random.default_rng(1)
    return {"x": rng.standard_normal((examples, sizes[0])), "t": rng.standard_normal((examples, sizes[-1]))}


def seconds(function: Callable[[], Any], least: float = 0.2) -> float:
    """Return the median time of one call, of as many as take ``least`` seconds, but three."""
    function()
    times: list[float] = []
    while sum(times) < least or len(times) < 3:
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


# ---- exponents ------------------------------------------------------------------------------------------------------------


def by_differences(made: Network, fed: dict[str, Array]) -> dict[str, Array]:
    """Return dE/dw of every weight by central differences: two forward passes a weight."""
    graph = made.graph.copy()
    for name in made.links:
        graph.set_role(graph.value(name), PARAMETER)
    for entry in graph.output_entries:
        if entry.name != "error":
            graph.remove(entry)
    run = Model(graph).compile(threads=1).run
    found = {}
    for name in made.links:
        data = graph.value(name).producer.data
        assert data is not None  # a parameter
        slopes = np.empty(data.size)
        for i in range(data.size):
            direction = np.zeros(data.size)
            direction[i] = 1
            slopes[i] = central_difference(lambda at: run({**fed, **at})["error"], {name: data},  # noqa: B023
                                           {name: direction.reshape(data.shape)}, 1e-6)
        found[name] = slopes.reshape(data.shape)
    return found


def exponents(hidden: Sequence[int]) -> dict[str, Any]:
    """Return times of both ways for networks of several sizes, and the exponents of W that fit them."""
    rows = []
    for count in hidden:
        sizes = (16, count, 16)
        made, fed = network(layered(sizes), error="sum_of_squares"), feeds(sizes)
        gradient = value_and_grad(made, "error", "params").compile(threads=1).run
        exact = gradient(fed)
        start = time.process_time()
        differences = by_differences(made, fed)
        elapsed = time.process_time() - start
        off = max(float(np.abs(differences[n] - exact[f"{n}_grad"]).max()) for n in differences)
        once = seconds(lambda: gradient(fed))  # noqa: B023
        rows.append({"weights": sum(d.size for d in differences.values()), "backpropagation": once, "differences": elapsed,
                     "apart": off / max(float(np.abs(g).max()) for g in exact.values())})
    logs = {k: np.log([row[k] for row in rows]) for k in ("weights", "backpropagation", "differences")}
    fitted = {k: float(np.polyfit(logs["weights"], logs[k], 1)[0]) for k in ("backpropagation", "differences")}
    return {"rows": rows, "exponents": fitted}


# ---- one large network -------------------------------------------------------------------------------------------------------


def by_hand(made: Network, count: int) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """Return the error and all gradients of a layered network as NumPy is written by hand."""
    data = {name: np.asarray(made.graph.value(name).producer.data) for name in made.links}
    weights = [data[f"w{i}"] for i in range(1, count + 1)]
    biases = [data[f"b{i}"] for i in range(1, count + 1)]

    def run(fed: dict[str, Array]) -> dict[str, Array]:
        z = [fed["x"]]
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            a = z[-1] @ w + b
            z.append(np.tanh(a) if i + 1 < count else a)
        delta = z[-1] - fed["t"]
        found = {"error": np.asarray(0.5 * (delta * delta).sum())}
        for i in reversed(range(count)):
            found[f"w{i + 1}_grad"], found[f"b{i + 1}_grad"] = z[i].T @ delta, delta.sum(axis=0)
            if i:
                delta = (delta @ weights[i].T) * (1 - z[i] * z[i])
        return found

    return run


def large(sizes: Sequence[int]) -> dict[str, float]:
    """Return how long a network takes to compile and to run, beside NumPy by hand."""
    units, fed = layered(sizes), feeds(sizes)
    start = time.process_time()
    made = network(units, error="sum_of_squares")
    compiled = time.process_time() - start
    gradient = value_and_grad(made, "error", "params").compile(threads=1).run
    found, hand = gradient(fed), by_hand(made, len(sizes) - 1)
    for name, wanted in hand(fed).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-9, atol=1e-9)
    ready = time.process_time() - start
    mine, theirs = [], []
    for _ in range(5):  # in turn, since the machine may do other things
        mine.append(seconds(lambda: gradient(fed)))
        theirs.append(seconds(lambda: hand(fed)))
    start = time.process_time()
    made.evaluate(fed["x"][:1], fed["t"][:1])
    return {"links": units.number_of_edges(), "compile": compiled, "first gradient": ready, "gradient": min(mine),
            "numpy": min(theirs), "ratio": min(mine) / min(theirs), "read back": time.process_time() - start}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print times and exponents."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, help="hidden units of the networks for the exponents")
    parser.add_argument("--layers", type=int, nargs="+", default=LARGE, help="layers of the large network")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    with threadpool_limits(1):
        found = {**exponents(options.hidden), "large": large(options.layers)}
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"{'weights':>8} {'backpropagation':>16} {'differences':>12}  apart")
    for row in found["rows"]:
        print(f"{row['weights']:8,} {1e3 * row['backpropagation']:13.2f} ms {row['differences']:10.2f} s  {row['apart']:.0e}")
    print("time ~ W^{backpropagation:.2f} by backpropagation, W^{differences:.2f} by differences".format(**found["exponents"]))
    print(", ".join(f"{k} {v:,}" if k == "links" else f"{k} {v:.2f}" if k == "ratio" else f"{k} {v:.4f} s"
                    for k, v in found["large"].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
