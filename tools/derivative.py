"""What the commands that differentiate share: load, differentiate, optimise, write."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from flowgrad.model import Model
from flowgrad.tools import files
from flowgrad.tools.notes import note, progress, say_json


def add_paths(parser: argparse.ArgumentParser) -> None:
    """Declare GRAPH and OUT, and how GRAPH is loaded."""
    parser.add_argument("graph", metavar="GRAPH", help=".msgpack, .onnx, IR text, or - for standard input")
    parser.add_argument("out", metavar="OUT", nargs="?", default="-", help=".msgpack, .onnx or .ir; default: - (stdout)")
    files.add_loading(parser)


def add_derivative_arguments(parser: argparse.ArgumentParser, of: str) -> None:
    """Declare the arguments that ``jacobian`` and ``hessian`` have; ``of`` says what is differentiated by default."""
    add_paths(parser)
    parser.add_argument("--of", metavar="A,B", help=f"what to differentiate (default: {of})")
    parser.add_argument("--wrt", metavar="A,B", default="inputs", help='names, globs, "inputs" (default) or "params"')
    parser.add_argument("--keep", metavar="A,B", default="", help="values to output as well")
    parser.add_argument("--sparse", action="store_true", help="values at the places that can be other than zero")
    parser.add_argument("--chunk-size", type=int, metavar="N", help="work on N unit seeds at a time, to save memory")
    parser.add_argument("--zero", choices=("error", "allow"), default="error",
                        help="a derivative that is zero by piecewise constancy: an error, or zeros")
    parser.add_argument("--passes", metavar="STR", help='pipeline to run on the result ("" for none)')
    files.add_saving(parser)


def write_derivative(arguments: argparse.Namespace, role: str, differentiate: Callable[[Model], Model]) -> int:
    """Load the graph, differentiate it, optimise what is made and write it; ``role`` is that of the outputs made."""
    quiet = arguments.quiet or arguments.json
    with progress(f"loading {arguments.graph}", quiet):
        model = files.load_graph(arguments.graph, arguments.strict, arguments.input_shapes, arguments.limits)
    with progress("differentiating", quiet):
        result = differentiate(model)
    made = [name for (kind, _, _), name in result.roles.items() if kind == role]
    note(f"{arguments.graph}: {len(model.graph)} nodes; {len(made)} derivatives: {' '.join(made[:12])}", quiet)
    return write_optimised(arguments, optimise(arguments, result), "derivatives", made)


def optimise(arguments: argparse.Namespace, model: Model) -> Model:
    """Return ``model`` after the passes that were asked for, and say what they did."""
    quiet = arguments.quiet or arguments.json
    with progress("optimising", quiet):
        optimised = model.optimized(arguments.passes)
    note(f"optimised: {len(model.graph)} -> {len(optimised.graph)} nodes", quiet)
    return optimised


def write_optimised(arguments: argparse.Namespace, optimised: Model, what: str, made: Sequence[str]) -> int:
    """Write what was made to OUT, with its notes, and say so; ``what`` the outputs ``made`` are called in JSON."""
    quiet = arguments.quiet or arguments.json
    for text in optimised.notes:
        note(f"note: {text}", quiet)
    with progress(f"writing {arguments.out}", quiet):
        wrote = files.save_graph(optimised, arguments.out, arguments.opset, arguments.emit)
    note(wrote, quiet or not wrote)
    if arguments.json and arguments.out != "-":
        say_json({"nodes": len(optimised.graph), what: list(made), "notes": list(optimised.notes), "out": arguments.out})
    return 0
