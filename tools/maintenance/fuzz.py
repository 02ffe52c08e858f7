"""``python -m flowgrad.tools.maintenance.fuzz``: random graphs through evaluator, program, passes,
derivatives, transforms, files and ONNX.

Every failure is shrunk and printed as IR text with the seed that makes it.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowgrad.ir.evaluate import evaluate, run_values
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.text import format_graph
from flowgrad.ir.types import Dim, Type
from flowgrad.passes.edits import remove_dead
from flowgrad.tools.maintenance.fuzz_checks import CHECKS, Feeds
from flowgrad.tools.maintenance.fuzz_transforms import COMPARED, TRANSFORMS
from flowgrad.tools.maintenance.random_graphs import random_graph

ALL = {**CHECKS, **TRANSFORMS}

# ---- shrinking ------------------------------------------------------------------------------------------------------------


@dataclass
class Failure:
    """A check that failed on a graph."""

    seed: int
    check: str
    error: str
    graph: Graph
    feeds: list[Feeds]

    def __str__(self) -> str:
        fed = "\n".join(f"#   {k} = {a.tolist()}" for k, a in self.feeds[0].items() if a.size < 30)
        return f"# ---- seed {self.seed}, {self.check}: {self.error}\n{fed}\n{format_graph(self.graph)}"


def run_check(name: str, graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> tuple[str, str | None]:
    """Return (kind of failure or "", message or reason to skip) of one check."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return "", ALL[name][0](graph, feeds, smooth)
    except Exception as error:
        return _signature(error), f"{type(error).__name__}: {str(error)[:3000]}"


def _signature(error: Exception) -> str:
    """Return what tells one kind of failure from another: the error, and the first words of its message."""
    words = "".join(c if c.isalpha() else " " for c in str(error).partition("\n")[0]).split()
    return f"{type(error).__name__} {' '.join(words[:2] if isinstance(error, AssertionError) else words[-3:])}"


def shrink(graph: Graph, feeds: Sequence[Feeds], fails: Callable[[Graph, Sequence[Feeds]], bool], seconds: float = 20.0
           ) -> tuple[Graph, list[Feeds]]:
    """Return a smaller graph that still fails: fewer outputs, and nodes cut out, their results fed instead."""
    best, given = graph, [dict(f) for f in feeds]
    end = time.monotonic() + seconds
    progress = True
    while progress and time.monotonic() < end:
        progress = False
        for candidate, fed in _smaller(best, given):
            if time.monotonic() >= end:
                break
            if fails(candidate, fed):
                best, given, progress = candidate, fed, True
                break
    return best, given


def _smaller(graph: Graph, feeds: list[Feeds]) -> Iterator[tuple[Graph, list[Feeds]]]:
    entries = len(graph.output_entries)
    for k in range(entries if entries > 1 else 0):
        copy = graph.copy()
        for i, entry in enumerate(copy.output_entries):
            if i != k:
                copy.remove(entry)
        yield _trimmed(copy, feeds)
    for k in range(entries if entries > 2 else 0):
        copy = graph.copy()
        copy.remove(copy.output_entries[k])
        yield _trimmed(copy, feeds)
    for node in reversed(graph.nodes()):
        copy = graph.copy()
        yield _trimmed(*_cut(copy, copy.entries[node.key], feeds))
    for node in graph.nodes():
        copy = graph.copy()
        twin: Node = copy.entries[node.key]
        for entry in copy.output_entries:
            copy.remove(entry)
        for value in twin.results:
            copy.add_output(value)
        yield _trimmed(copy, feeds)


def _cut(graph: Graph, node: Node, feeds: list[Feeds]) -> tuple[Graph, list[Feeds]]:
    values = node.results
    fed = [dict(f) for f in feeds]
    arrays = [run_values(graph, {v: f[v.name] for v in graph.inputs}, values, np.random.default_rng(0)) for f in feeds]
    for index, value in enumerate(values):
        stand_in = graph.add_input(graph.unique_name("cut"), Type(value.type.dtype, _plain(value, arrays, index)))
        graph.replace_uses(value, stand_in)
        for world, found in enumerate(arrays):
            fed[world][stand_in.name] = np.asarray(found[index])
    return graph, fed


def _plain(value: Value, arrays: list[list[Array]], index: int) -> Any:
    """Return a shape with fresh names where the worlds differ."""
    if value.type.shape is not None and not any(n.startswith("_d") for d in value.type.shape if isinstance(d, Dim)
                                                for n in d.names()):
        return value.type.shape
    shapes = [a[index].shape for a in arrays]
    return tuple(e if len({s[i] for s in shapes}) == 1 else Dim.named(f"{value.name}_{i}") for i, e in enumerate(shapes[0]))


def _trimmed(graph: Graph, feeds: list[Feeds]) -> tuple[Graph, list[Feeds]]:
    remove_dead(graph, graph.nodes())
    for value in graph.inputs:
        if not value.uses:
            graph.remove(value.producer)
    names = {v.name for v in graph.inputs}
    return graph, [{k: a for k, a in f.items() if k in names} for f in feeds]


# ---- the run ----------------------------------------------------------------------------------------------------------------


@dataclass
class Summary:
    """What a run saw."""

    graphs: int = 0
    nodes: int = 0
    failures: list[Failure] = field(default_factory=list)
    ops: collections.Counter[str] = field(default_factory=collections.Counter)
    done: collections.Counter[str] = field(default_factory=collections.Counter)
    skipped: collections.Counter[str] = field(default_factory=collections.Counter)


def fuzz_one(seed: int, most: int, names: Sequence[str], summary: Summary, *, shrinking: float = 20.0,
             thorough: bool = False, favour: Sequence[str] = ()) -> list[Failure]:
    """Make the graph of a seed, check it, and return its failures, shrunk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sample = random_graph(seed, most, favour)
    summary.graphs += 1
    summary.nodes += len(sample.graph.nodes())
    summary.ops.update(n.op for n in sample.graph.nodes())
    rng = np.random.default_rng(seed + 12345)
    found = []
    for name in names:
        if rng.random() > ALL[name][1] and not thorough:
            continue
        signature, message = run_check(name, sample.graph, sample.feeds, sample.smooth)
        summary.done[name] += not message
        if message and not signature:
            summary.skipped[f"{name}: {message}"] += 1
        if not signature:
            continue

        def fails(graph: Graph, feeds: Sequence[Feeds], name: str = name, signature: str = signature) -> bool:
            try:
                for given in feeds:
                    evaluate(graph, given)
            except Exception:  # a candidate that does not run says nothing
                return False
            return run_check(name, graph, feeds, sample.smooth)[0] == signature

        graph, feeds = shrink(sample.graph, sample.feeds, fails, shrinking)
        found.append(Failure(seed, name, run_check(name, graph, feeds, sample.smooth)[1] or str(message), graph, feeds))
    summary.failures += found
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz and return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m flowgrad.tools.maintenance.fuzz",
                                     description="Check random graphs in every way.")
    parser.add_argument("--graphs", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first graph (default 0)")
    parser.add_argument("--minutes", type=float, default=5.0, help="stop after this time (default 5)")
    parser.add_argument("--nodes", type=int, default=40, help="the most nodes of a graph (default 40)")
    parser.add_argument("--checks", help=f"some of: {', '.join(ALL)} (default: all)")
    parser.add_argument("--shrink", type=float, default=20.0, help="seconds to spend on making a failure small (default 20)")
    parser.add_argument("--thorough", action="store_true", help="every check on every graph")
    parser.add_argument("--favour", default="", help="ways to add nodes to take ten times as often, as in branch,loop,scan")
    parser.add_argument("--quiet", action="store_true", help="no summary")
    given = parser.parse_args(argv)
    names = [n.strip() for n in given.checks.split(",")] if given.checks else list(ALL)
    unknown = [n for n in names if n not in ALL]
    if unknown:
        parser.error(f"no check {unknown[0]!r}; checks: {', '.join(ALL)}")
    favour = [n.strip() for n in given.favour.split(",") if n.strip()]
    summary = Summary()
    started = time.monotonic()
    for seed in range(given.seed, given.seed + given.graphs):
        if time.monotonic() - started > 60 * given.minutes:
            break
        for failure in fuzz_one(seed, given.nodes, names, summary, shrinking=given.shrink, thorough=given.thorough,
                                favour=favour):
            print(failure, flush=True)
    if not given.quiet:
        _report(summary, time.monotonic() - started)
    return 1 if summary.failures else 0


def _report(summary: Summary, seconds: float) -> None:
    print(f"{summary.graphs} graphs, {summary.nodes} nodes of {len(summary.ops)} operators, "
          f"{len(summary.failures)} failures, {seconds:.0f} s", file=sys.stderr)
    print("checked: " + ", ".join(f"{n} {c}" for n, c in summary.done.items()), file=sys.stderr)
    if COMPARED:
        print("arrays compared: " + ", ".join(f"{n} {c}" for n, c in COMPARED.items()), file=sys.stderr)
    print("left out: " + "; ".join(f"{n} {c}" for n, c in summary.skipped.most_common()), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
