"""``flowgrad-run GRAPH`` and ``flowgrad run``: run a graph and print what comes out."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.errors import InputError, suggestion
from flowgrad.ir.feeds import Signature
from flowgrad.ir.graph import Array
from flowgrad.ir.types import dtype_of
from flowgrad.model import Model
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.runtime.program import Program
from flowgrad.tools import files, samples
from flowgrad.tools.cli import add_common, run_command
from flowgrad.tools.notes import note, progress, say, say_json
from flowgrad.tools.parser import Formatter, Parser, count

MOST_OPS = 12
"""Operators whose times are said."""

SHOWN_ELEMENTS = 16
"""Arrays of at most so many elements are whole in JSON."""

EXAMPLE = "example: flowgrad-run mlp_grad.msgpack --inputs batch.npz --check-numerics"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = EXAMPLE
    parser.add_argument("graph", metavar="GRAPH", help=".msgpack, .onnx, IR text, or - for standard input")
    data = parser.add_argument_group("data")
    data.add_argument("--inputs", action="append", default=[], metavar="F", help="F.npz, or NAME=F.npy (repeatable)")
    files.add_loading(data)
    data.add_argument("--seed", type=int, default=0, help="of the inputs that are made (default 0)")
    data.add_argument("--outputs", metavar="A,B", help="only these outputs")
    data.add_argument("--save-outputs", metavar="F.npz", help="write the outputs; - is standard output")
    how = parser.add_argument_group("how to run")
    how.add_argument("--engine", default="numpy", help="numpy (default) or ort")
    how.add_argument("--threads", type=int, help="default: all cores")
    how.add_argument("--warmup", type=count, default=0, metavar="N", help="runs after the first one that are not timed")
    how.add_argument("--repeat", type=count, default=0, metavar="N", help="timed runs after these; their median is shown")
    how.add_argument("--profile", metavar="T.json", help="write a Chrome trace: time and bytes of every node in --repeat runs")
    how.add_argument("--check-numerics", action="store_true", help="exit with 1 if an output is not finite")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``flowgrad-run``; returns its exit code."""
    parser = Parser(prog="flowgrad-run", formatter_class=Formatter, description="Run a graph; without inputs, seeded ones are made.")
    parser.set_defaults(command="run")
    add_arguments(parser)
    add_common(parser)
    return run_command(parser, list(sys.argv[1:] if argv is None else argv))


def run(arguments: argparse.Namespace) -> int:
    """Load, run, print."""
    quiet = arguments.quiet or arguments.json
    with progress(f"loading {arguments.graph}", quiet):
        model = files.load_graph(arguments.graph, arguments.strict, arguments.input_shapes, arguments.limits)
    for text in model.notes:
        note(f"note: {text}", quiet)
    feeds, given = _feeds(model, arguments, quiet)
    names = _wanted(model, arguments.outputs)
    started = time.perf_counter()
    with progress("compiling", quiet):
        program = model.compile(engine=arguments.engine, threads=arguments.threads)
    times = Times(time.perf_counter() - started)
    with progress("running", quiet):
        outputs = _timed(program, feeds, arguments, times)
    outputs = tensors({name: outputs[name] for name in names}, quiet)
    if arguments.save_outputs:
        from flowgrad.tools.arrays import save_arrays

        note(save_arrays(arguments.save_outputs, outputs), quiet)
    bad = [name for name, array in outputs.items() if not _is_finite(array)]
    report = _report(model, feeds, given, outputs, times, arguments)
    if arguments.profile:
        report["ops"] = _profiled(program, feeds, arguments, quiet)
    if arguments.save_outputs == "-":
        pass  # standard output holds the arrays
    elif arguments.json:
        say_json(report)
    else:
        _print(feeds, outputs, given)
    note(f"{len(model.graph)} nodes, {times}, engine {arguments.engine}{_peak(program, feeds)}", quiet)
    if arguments.check_numerics and bad:
        note(f"not finite: {', '.join(bad)}", arguments.json)
        return 1
    return 0


def _feeds(model: Model, arguments: argparse.Namespace, quiet: bool) -> tuple[dict[str, Array], set[str]]:
    """Return the arrays for all inputs, and the names of those that were given."""
    given: dict[str, Array] = {}
    if arguments.inputs:
        from flowgrad.tools.arrays import read_arrays  # archives are not read by most runs

        given = read_arrays(arguments.inputs)
    Signature(model.graph).check_names(given)
    made, assumed = samples.sample_inputs(model.graph, arguments.seed, given)
    if made:
        note(f"made up, with seed {arguments.seed}: {', '.join(made)}", quiet)
    if assumed:
        note(f"assumed extent 1 for {', '.join(assumed)} (see --input-shapes)", quiet)
    return {**given, **made}, set(given)


def _wanted(model: Model, outputs: str | None) -> list[str]:
    known = [o.name for o in model.outputs]
    names = outputs.split(",") if outputs else known
    for name in names:
        if name not in known:
            raise InputError(f"no output {name!r}{suggestion(name, known)}; outputs: {', '.join(known)}", code="name")
    return names


def tensors(outputs: dict[str, Any], quiet: bool) -> dict[str, Array]:
    """Return outputs with the tensors of a sequence called y[0], y[1], ..."""
    tensors: dict[str, Array] = {}
    for name, output in outputs.items():
        if output is None or (isinstance(output, list) and not output):
            note(f"output {name} is {'absent' if output is None else 'an empty sequence'}", quiet)
        elif isinstance(output, list):
            tensors |= {f"{name}[{place}]": array for place, array in enumerate(output)}
        else:
            tensors[name] = output
    return tensors


@dataclass
class Times:
    """Seconds: of compiling, of the first run (which specialises the program to the shapes), of each of the timed ones."""

    compiling: float
    first: float = 0.0
    steady: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        first = f"first run {_seconds(self.first)}"
        if not self.steady:
            return first
        least, most = _seconds(min(self.steady)), _seconds(max(self.steady))
        return f"{first}, then {_seconds(float(np.median(self.steady)))} (median of {len(self.steady)}, {least} to {most})"

    def plain(self) -> dict[str, Any]:
        """Return the numbers by name."""
        median = float(np.median(self.steady)) if self.steady else None
        return {"compile": self.compiling, "first": self.first, "median": median, "all": self.steady}


def _timed(program: Program, feeds: dict[str, Array], arguments: argparse.Namespace, times: Times) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    for index in range(1 + arguments.warmup + arguments.repeat):
        started = time.perf_counter()
        outputs = program.run(feeds)
        taken = time.perf_counter() - started
        if index == 0:
            times.first = taken
        elif index > arguments.warmup:
            times.steady.append(taken)
    return outputs


def _profiled(program: Program, feeds: dict[str, Array], arguments: argparse.Namespace, quiet: bool) -> list[dict[str, Any]]:
    """Run again with a clock at every node, write the trace, and return (and say) what operators took."""
    path = Path(arguments.profile)
    replacing = path.exists()
    runs = max(arguments.repeat, 1)
    with progress("profiling", quiet):
        profile = program.profile(feeds, runs=runs)
        profile.save(path)
    note(files.wrote(path, replacing), quiet)
    by_op = profile.by_op()
    total = sum(seconds for _, seconds in by_op.values()) or 1.0
    for op, (number, seconds) in list(by_op.items())[:MOST_OPS]:
        note(f"  {op:24} {number // runs:6} nodes  {_seconds(seconds / runs):>9} a run  {seconds / total:6.1%}", quiet)
    return [{"op": op, "nodes": number // runs, "seconds": seconds / runs} for op, (number, seconds) in by_op.items()]


def _peak(program: Program, feeds: dict[str, Array]) -> str:
    """Return what a run takes beside inputs and constants, where it is planned."""
    if not isinstance(program, NumpyProgram):
        return ""
    plan = program.plan({name: feeds[name].shape for name in program.input_names})
    return f", {program.threads} threads, peak {files.size_text(plan.peak_bytes)}{'' if plan.complete else ' and more'}"


def _is_finite(array: Array) -> bool:
    return not dtype_of(array.dtype).is_float or bool(np.isfinite(array.astype(np.float64)).all())


def _print(feeds: dict[str, Array], outputs: dict[str, Array], given: set[str]) -> None:
    rows = [("input", name, _type(array), "given" if name in given else "made") for name, array in feeds.items()]
    rows += [("output", name, _type(array), summary(array)) for name, array in outputs.items()]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    for row in rows:
        say("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())


def _type(array: Array) -> str:
    return f"{dtype_of(array.dtype).name}{list(array.shape)}".replace(" ", "")


def summary(array: Array) -> str:
    """Return a line about an array: the value of a scalar, else least, greatest, norm and whether all is finite."""
    if array.size == 1:
        return f"{array.reshape(-1)[0]:.6g}" if array.dtype.kind in "fiu" else str(array.reshape(-1)[0])
    if array.size == 0:
        return "empty"
    if not dtype_of(array.dtype).is_float:
        return "" if array.dtype == object else f"min {array.min()}  max {array.max()}"
    wide = array.astype(np.float64)
    finite = "finite" if np.isfinite(wide).all() else f"{int((~np.isfinite(wide)).sum())} not finite"
    return f"min {wide.min():.4g}  max {wide.max():.4g}  l2 {np.sqrt((wide * wide).sum()):.4g}  {finite}"


def _seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _report(model: Model, feeds: dict[str, Array], given: set[str], outputs: dict[str, Array], times: Times,
            arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "graph": arguments.graph, "nodes": len(model.graph), "engine": arguments.engine,
        "inputs": {name: {**_described(array), "made": name not in given} for name, array in feeds.items()},
        "outputs": {name: _described(array) for name, array in outputs.items()},
        "seconds": times.plain(),
    }


def _described(array: Array) -> dict[str, Any]:
    """Return dtype, shape and numbers of an array: all of them if there are few, what they lie between, their norm."""
    described: dict[str, Any] = {"dtype": dtype_of(array.dtype).name, "shape": list(array.shape)}
    if array.dtype == object:
        return described
    if array.size <= SHOWN_ELEMENTS:
        described["values"] = array.tolist() if array.dtype.kind in "fiub" else array.astype(np.float64).tolist()
    if not dtype_of(array.dtype).is_float:
        return described | ({"min": array.min().item(), "max": array.max().item()} if array.size and array.dtype.kind in "iu" else {})
    wide = array.astype(np.float64)
    numbers = {"min": wide.min(), "max": wide.max(), "mean": wide.mean(), "l2": np.sqrt((wide * wide).sum())} if array.size else {}
    return described | {name: float(number) for name, number in numbers.items()} | {"finite": _is_finite(array)}


if __name__ == "__main__":
    sys.exit(main())
