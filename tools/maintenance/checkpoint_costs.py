"""``python -m flowgrad.tools.maintenance.checkpoint_costs``: memory and time of a gradient with and without ``checkpoint``.

A light model of onnx (default densenet121, its weights drawn), its gradient by all weights and the image: the planned peak, the
peak of a run that Python's allocator counts, seconds of the processor, whether the bits are the same; then the same files in
onnxruntime, each in a process of its own. ``--chains`` differentiates chains of 5,000 to 100,000 nodes and says how long
``checkpoint`` takes a node.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import INITIALIZER, Array, Graph, Value
from flowgrad.ir.types import FLOAT32, Type
from flowgrad.model import Model, load
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.tools.light import cotangents, drawn_twin, models, suite_feeds
from flowgrad.transforms.checkpointing import checkpoint
from flowgrad.transforms.derivatives import value_and_grad, vjp

ROUNDS = 5
CHAINS = (5_000, 20_000, 100_000)
WIDTH = 1024

CHILD = """
import sys, time, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.enable_cpu_mem_arena = options.enable_mem_pattern = sys.argv[3] == "arena"
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = dict(numpy.load(sys.argv[2]))

def status(key):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
session.run(None, feeds)
seconds = time.process_time()
session.run(None, feeds)
print(status("VmHWM") - before, time.process_time() - seconds)
"""
"""What onnxruntime takes: bytes beside the session, as Linux counts them, and seconds of the second run."""


def measured(program: NumpyProgram, feeds: Mapping[str, Array]) -> int:
    """Return the bytes that a run takes at most, what the first one left given up in between."""
    program.run(feeds)
    for specialisation in program._executor._kept.values():
        specialisation.first.forget_frames()
    gc.collect()
    tracemalloc.start()
    program.run(feeds)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def seconds_in_turn(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Return the median processor seconds of each call, the calls in turn."""
    rounds = []
    for _ in range(ROUNDS):
        row = []
        for call in calls:
            started = time.process_time()
            call()
            row.append(time.process_time() - started)
        rounds.append(row)
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def compare(name: str) -> None:
    """Print what a light model takes."""
    model = drawn_twin(load(models(None, [name])[0]))
    plain = vjp(model, wrt=["inputs", "params"])
    pair = {"plain": plain, "checkpoint": checkpoint(plain)}
    feeds = {**suite_feeds(model), **cotangents(plain)}
    programs = {what: NumpyProgram(m.optimized().graph, threads=1) for what, m in pair.items()}
    results = [program.run(feeds) for program in programs.values()]
    same = all(results[0][k].tobytes() == results[1][k].tobytes() for k in results[0])
    peaks = {what: program.plan({}).peak_bytes for what, program in programs.items()}
    times = seconds_in_turn([lambda p=p: p.run(feeds) for p in programs.values()])  # type: ignore[misc]
    for (what, program), seconds in zip(programs.items(), times, strict=True):
        found = measured(program, feeds)
        print(f"{name} {what:10} planned {peaks[what] / 1e6:.1f} MB, measured {found / 1e6:.1f} MB "
              f"({found / peaks[what]:.3f} of it), {seconds:.3f} s", flush=True)
    print(f"{name}: peak {peaks['checkpoint'] / peaks['plain']:.3f}, time {times[1] / times[0]:.2f}, the same bits: {same}")
    for arena in ("no arena", "arena"):
        rows = [in_onnxruntime(m, feeds, arena) for m in pair.values()]
        print(f"{name} in onnxruntime, {arena}: " + ", ".join(f"{b / 1e6:.0f} MB {s:.2f} s" for b, s in rows)
              + f": peak {rows[1][0] / rows[0][0]:.3f}", flush=True)


def in_onnxruntime(model: Model, feeds: Mapping[str, Array], arena: str) -> tuple[int, float]:
    """Return bytes and seconds of the exported model in a process of its own (Linux)."""
    with tempfile.TemporaryDirectory() as folder:
        path, data = Path(folder) / "m.onnx", Path(folder) / "feeds.npz"
        model.to_onnx(path)
        np.savez(data, **feeds)  # type: ignore[arg-type]
        told = subprocess.run([sys.executable, "-c", CHILD, str(path), str(data), arena], check=True, capture_output=True, text=True)
    size, seconds = told.stdout.split()
    return int(size), float(seconds)


def chain(count: int) -> Graph:
    """Return a chain of ``count`` elementwise nodes, of which every other one has to be kept for the backward part, summed."""
    graph = Graph("chain")
    b = Builder(graph)
    value: Value = graph.add_input("x", Type(FLOAT32, (WIDTH,)))
    scale = graph.add_constant(np.full(WIDTH, 0.5, np.float32), "scale", INITIALIZER)
    for step in range(count - 1):
        value = b.Mul(value, scale) if step % 2 else b.Tanh(value)
    graph.add_output(b.ReduceSum(value, keepdims=0), "loss")
    return graph


def chains() -> None:
    """Print what checkpointing chains of growing length takes."""
    for count in CHAINS:
        plain = value_and_grad(Model(chain(count)), "loss", "x")
        started = time.process_time()
        small = checkpoint(plain)
        seconds = time.process_time() - started
        feeds = {"x": np.full(WIDTH, 0.01, np.float32)}
        results, peaks = [], []
        for model in (plain, small):
            program = NumpyProgram(model.optimized().graph, threads=1)
            results.append(program.run(feeds))
            peaks.append(program.plan({}).peak_bytes)
        same = all(results[0][k].tobytes() == a.tobytes() for k, a in results[1].items())
        print(f"chain of {count:6}: {seconds:.1f} s, {1e6 * seconds / count:.0f} us a node; peak {peaks[0] / 1e6:.2f} -> {peaks[1] / 1e6:.2f} MB, "
              f"the same bits: {same}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m flowgrad.tools.maintenance.checkpoint_costs",
                                     description="Measure gradients with and without checkpoint.")
    parser.add_argument("--models", default="densenet121", metavar="A,B", help="light models (default densenet121)")
    parser.add_argument("--chains", action="store_true", help="long chains instead")
    arguments = parser.parse_args(argv)
    if arguments.chains:
        chains()
        return 0
    for name in arguments.models.split(","):
        compare(name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
