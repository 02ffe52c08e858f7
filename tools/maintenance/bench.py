"""``python -m flowgrad.tools.maintenance.bench``: gradients of small networks timed beside PyTorch, in one process."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import PARAMETER, Array, Graph, Value
from flowgrad.ir.types import FLOAT32, INT64, Type
from flowgrad.model import Model
from flowgrad.passes.differentiate import adjoint

EXAMPLE = "example: python -m flowgrad.tools.maintenance.bench --threads 2 --json"


@dataclass(frozen=True)
class Network:
    """A fully connected network with a loss: "squares" of the outputs, or "classes" (softmax cross-entropy)."""

    name: str
    sizes: tuple[int, ...]
    batch: int
    activation: str
    loss: str


NETWORKS = (
    Network("tiny", (4, 16, 16, 1), 1, "Tanh", "squares"),
    Network("small", (32, 64, 64, 32), 16, "Tanh", "squares"),
    Network("digits", (784, 512, 512, 10), 128, "Relu", "classes"),
    Network("wide", (1024,) * 9, 256, "Tanh", "squares"),
)


def parameters(network: Network) -> list[Array]:
    """Return weights and biases in turn."""
    rng = np.random.default_rng(0)
    found: list[Array] = []
    for n, m in zip(network.sizes, network.sizes[1:], strict=False):
        found += [(rng.standard_normal((n, m)) / np.sqrt(n)).astype(np.float32), np.zeros(m, np.float32)]
    return found


def batch(network: Network) -> dict[str, Array]:
    """Return one batch: ``x``, and ``labels`` for classes."""
    rng = np.random.default_rng(1)
    feeds: dict[str, Array] = {"x": rng.standard_normal((network.batch, network.sizes[0])).astype(np.float32)}
    if network.loss == "classes":
        feeds["labels"] = rng.integers(0, network.sizes[-1], network.batch)
    return feeds


def gradient_graph(network: Network) -> Graph:
    """Return the graph of the loss and the gradients of all parameters."""
    graph = Graph(network.name)
    b = Builder(graph)
    h = graph.add_input("x", Type(FLOAT32, (network.batch, network.sizes[0])))
    held = [graph.add_constant(a, f"p{i}", PARAMETER) for i, a in enumerate(parameters(network))]
    for i in range(0, len(held), 2):
        h = b.Add(b.MatMul(h, held[i]), held[i + 1])
        h = b.add(network.activation, [h]) if i + 2 < len(held) else h
    loss = _loss(graph, b, network, h)
    graph.add_output(loss, "loss")
    one = graph.add_constant(np.ones((), np.float32))
    for value, cotangent in zip(held, adjoint(graph, [(loss, one)], held), strict=True):
        if cotangent is not None:
            graph.add_output(cotangent, f"{value.name}_grad")
    return graph


def _loss(graph: Graph, b: Builder, network: Network, h: Value) -> Value:
    if network.loss == "squares":
        return b.ReduceSum(b.Mul(h, h), keepdims=0)
    labels = graph.add_input("labels", Type(INT64, (network.batch,)))
    return b.SoftmaxCrossEntropyLoss(h, labels)


def torch_step(network: Network, threads: int) -> Callable[[], list[Any]]:
    """Return the same computation in PyTorch eager: a function giving the loss and the gradients."""
    import torch

    torch.set_num_threads(threads)
    held = [torch.from_numpy(a.copy()).requires_grad_() for a in parameters(network)]
    feeds = {name: torch.from_numpy(a) for name, a in batch(network).items()}
    activation = {"Tanh": torch.tanh, "Relu": torch.relu}[network.activation]

    def step() -> list[Any]:
        h = feeds["x"]
        for i in range(0, len(held), 2):
            h = torch.addmm(held[i + 1], h, held[i])
            h = activation(h) if i + 2 < len(held) else h
        loss = (h * h).sum() if network.loss == "squares" else torch.nn.functional.cross_entropy(h, feeds["labels"])
        return [loss, *torch.autograd.grad(loss, held)]

    return step


def interleaved(steps: Sequence[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """Time each step in turn for about ``seconds`` in all; returns seconds a call, at least five times each."""
    for step in steps:
        step()
    once = [_timed(step, 3) for step in steps]
    counts = [max(1, int(2e-3 / t)) for t in once]
    times: list[list[float]] = [[] for _ in steps]
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times[0]) < 5:
        for found, step, count in zip(times, steps, counts, strict=True):
            found.append(_timed(step, count))
    return times


def _timed(step: Callable[[], Any], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - started) / count


def measure(network: Network, threads: int, seconds: float, peer: bool) -> dict[str, Any]:
    """Return milliseconds (median and least) of a step here and, with ``peer``, in PyTorch, and whether results agree."""
    graph = gradient_graph(network)
    program = Model(graph).compile(threads=threads)
    feeds = batch(network)
    steps: list[Callable[[], Any]] = [lambda: program.run(feeds)]
    row: dict[str, Any] = {"network": network.name, "nodes": len(graph)}
    if peer:
        steps.append(torch_step(network, threads))
        theirs = [np.asarray(t.detach()) for t in steps[1]()]
        mine = list(program.run(feeds).values())
        row["largest_difference"] = max(float(np.abs(a - b).max() / (np.abs(b).max() + 1e-30))
                                        for a, b in zip(mine, theirs, strict=True))
    for name, found in zip(("flowgrad", "torch"), interleaved(steps, seconds), strict=False):
        row[f"{name}_ms"] = 1e3 * statistics.median(found)
        row[f"{name}_least_ms"] = 1e3 * min(found)
    if peer:
        row["ratio"] = row["flowgrad_ms"] / row["torch_ms"]
    return row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = EXAMPLE
    parser.add_argument("--threads", type=int, default=1, help="of both sides (default 1)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing for each network (default 3)")
    parser.add_argument("--networks", default=",".join(n.name for n in NETWORKS), metavar="A,B", help="which ones")
    parser.add_argument("--no-peer", action="store_true", help="leave PyTorch out")


def run(arguments: argparse.Namespace) -> int:
    """Time and print."""
    wanted = arguments.networks.split(",")
    rows = [measure(n, arguments.threads, arguments.seconds, not arguments.no_peer) for n in NETWORKS if n.name in wanted]
    if getattr(arguments, "json", False):
        print(json.dumps(rows))
        return 0
    for row in rows:
        print("  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark as a program of its own."""
    parser = argparse.ArgumentParser(prog="python -m flowgrad.tools.maintenance.bench", description="Time gradients beside PyTorch.")
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
