"""``python -m flowgrad.tools.maintenance.scale``: time of every stage on chains and wide graphs of growing size.

Everything runs with a recursion limit of 200. The last column is the total time a node, relative to the first row of its
kind: 1.0 means linear.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.types import FLOAT32, Type
from flowgrad.model import Model, load
from flowgrad.transforms.derivatives import value_and_grad


def chain(count: int) -> Graph:
    """Return a chain of ``count`` elementwise nodes over a vector, summed."""
    graph = Graph("chain")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (8,)))
    scale = graph.add_constant(np.full(8, 0.5, np.float32), "scale", "initializer")
    value: Value = x
    for step in range(count - 1):
        value = b.Tanh(value) if step % 3 == 0 else b.Mul(value, scale) if step % 3 == 1 else b.Add(value, x)
    graph.add_output(b.ReduceSum(value, keepdims=0), "loss")
    return graph


def ladder(count: int) -> Graph:
    """Return a graph of ``count`` nodes with 64 chains that mix with their neighbours at every rung."""
    graph = Graph("ladder")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (4,)))
    rails: list[Value] = [b.Mul(x, float(i + 1) / 64) for i in range(64)]
    made = 64
    while made + 128 < count:
        mixed = [b.Add(rails[i], rails[i - 1]) for i in range(64)]
        rails = [b.Tanh(value) for value in mixed]
        made += 128
    graph.add_output(b.ReduceSum(b.Sum(*rails), keepdims=0), "loss")
    return graph


def slices(count: int) -> Graph:
    """Return ``count`` one-row slices of one [count,256] value, each squared and summed."""
    graph = Graph("slices")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (count, 256)))
    rows = [b.Tanh(b.Slice(x, [i], [i + 1], [0])) for i in range(count)]
    graph.add_output(b.ReduceSum(b.Sum(*rows), keepdims=0), "loss")
    return graph


KINDS: dict[str, tuple[Callable[[int], Graph], tuple[int, ...]]] = {
    "chain": (chain, (5_000, 10_000, 20_000)),
    "ladder": (ladder, (25_000, 50_000, 100_000)),
    "slices": (slices, (500, 1_000, 2_000)),
}


def measure(make: Callable[[int], Graph], count: int) -> dict[str, float]:
    """Return seconds of each stage."""
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[[], object]) -> object:
        started = time.perf_counter()
        result = function()
        seconds[name] = time.perf_counter() - started
        return result

    with tempfile.TemporaryDirectory() as folder:
        path, saved = Path(folder) / "g.msgpack", Path(folder) / "grad.msgpack"
        Model(make(count)).save(path)
        model = timed("load", lambda: load(path))
        assert isinstance(model, Model)
        gradient = timed("differentiate", lambda: value_and_grad(model, "loss", "x"))
        assert isinstance(gradient, Model)
        optimised = timed("optimise", gradient.optimized)
        assert isinstance(optimised, Model)
        timed("save", lambda: optimised.save(saved))
        program = timed("compile", optimised.compile)
        x = optimised.graph.inputs[0]
        feeds = {"x": np.full(x.type.static_shape, 0.01, np.float32)}
        timed("first run", lambda: program.run(feeds))  # type: ignore[attr-defined]
        timed("run", lambda: program.run(feeds))  # type: ignore[attr-defined]
    seconds["nodes"] = len(optimised.graph)
    return seconds


def main() -> int:
    """Print one row for each kind and size."""
    parser = argparse.ArgumentParser(prog="python -m flowgrad.tools.maintenance.scale", description=__doc__)
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    sys.setrecursionlimit(200)
    for kind in arguments.kinds.split(","):
        make, counts = KINDS[kind]
        first = 0.0
        for count in counts:
            row = measure(make, count)
            nodes = row.pop("nodes")
            total = sum(row.values()) / count
            first = first or total
            stages = "  ".join(f"{name} {value:.2f}" for name, value in row.items())
            print(f"{kind:7} {count:7} nodes -> {int(nodes):7} optimised  {stages}  per node x{total / first:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
