"""``flowgrad diff A B``: what differs between two graphs; with inputs, what their outputs differ by."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from flowgrad.ir.differences import differences, distance
from flowgrad.ir.graph import Array
from flowgrad.ir.types import dtype_of
from flowgrad.model import Model
from flowgrad.tools import files, samples
from flowgrad.tools.arrays import read_arrays
from flowgrad.tools.notes import note, progress, say, say_json
from flowgrad.tools.run import tensors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "example: flowgrad diff mlp.onnx mlp_grad.msgpack"
    parser.add_argument("first", metavar="A", help=".msgpack, .onnx, IR text, or - for standard input")
    parser.add_argument("second", metavar="B", help="the graph to compare it with")
    parser.add_argument("--inputs", action="append", default=[], metavar="F",
                        help="F.npz, or NAME=F.npy (repeatable): compare the outputs that both have")
    parser.add_argument("--run", action="store_true", help="compare the outputs on seeded inputs that are made")
    parser.add_argument("--seed", type=int, default=0, help="of these (default 0)")
    parser.add_argument("--rtol", type=float, default=1e-5, help="relative tolerance of outputs (default 1e-5)")
    parser.add_argument("--atol", type=float, default=1e-6, help="absolute tolerance of outputs (default 1e-6)")
    files.add_loading(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare; exit code 1 if the graphs differ, or, where outputs are compared, if these do."""
    quiet = arguments.quiet or arguments.json
    models = []
    for path in (arguments.first, arguments.second):
        with progress(f"loading {path}", quiet):
            models.append(files.load_graph(path, arguments.strict, arguments.input_shapes, arguments.limits))
    first, second = models
    lines = list(differences(first.graph, second.graph))
    outputs = _outputs(first, second, arguments, quiet) if arguments.inputs or arguments.run else []
    if arguments.json:
        say_json({"same": not lines, "differences": lines, "outputs": outputs})
    else:
        for line in lines:
            say(line)
        for output in outputs:
            say(f"output {output['name']}  {'ok' if output['close'] else 'DIFFERS'}  {output['reason']}")
    note("the graphs are the same" if not lines else f"{len(lines)} differences", quiet)
    return int(not all(o["close"] for o in outputs) if outputs else bool(lines))


def _outputs(first: Model, second: Model, arguments: argparse.Namespace, quiet: bool) -> list[dict[str, Any]]:
    """Return for each output of the first model whether the second has one like it."""
    given = read_arrays(arguments.inputs)
    made, _ = samples.sample_inputs(first.graph, arguments.seed, given)
    feeds = {**given, **made}
    with progress("running", quiet):
        mine, others = (tensors(m({i.name: feeds[i.name] for i in m.inputs if i.name in feeds}), quiet) for m in (first, second))
    return [{"name": name, **_compared(array, others.get(name), arguments.rtol, arguments.atol)} for name, array in mine.items()]


def _compared(x: Array, y: Array | None, rtol: float, atol: float) -> dict[str, Any]:
    if y is None:
        return {"close": False, "reason": "only the first graph has it"}
    if x.shape != y.shape or x.dtype != y.dtype:
        return {"close": False, "reason": f"{x.dtype.name}{list(x.shape)} and {y.dtype.name}{list(y.shape)}"}
    if not dtype_of(x.dtype).is_float:
        return {"close": bool((x == y).all()), "reason": distance(x, y)}
    p, q = x.astype(np.float64), y.astype(np.float64)
    close = bool(np.allclose(p, q, rtol=rtol, atol=atol, equal_nan=True))
    off = np.abs(p - q)
    return {"close": close, "reason": f"off by up to {np.nanmax(off, initial=0):.4g}, largest element {np.nanmax(np.abs(p), initial=0):.4g}"}
