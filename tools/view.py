"""``flowgrad view GRAPH``: one page of HTML about a graph."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowgrad.report import view
from flowgrad.tools import files, samples
from flowgrad.tools.arrays import read_arrays
from flowgrad.tools.notes import note, progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "example: flowgrad view mlp_grad.msgpack -o report.html --compare mlp.onnx --values"
    parser.add_argument("graph", metavar="GRAPH", help=".msgpack, .onnx, IR text, or - for standard input")
    parser.add_argument("-o", "--out", default="report.html", metavar="F.html", help="the page (default report.html)")
    parser.add_argument("--compare", metavar="B", help="begin with what differs from this graph")
    parser.add_argument("--values", action="store_true", help="say what each value lies between, on --inputs or seeded ones")
    parser.add_argument("--inputs", action="append", default=[], metavar="F", help="F.npz, or NAME=F.npy (repeatable)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs that are made (default 0)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    files.add_loading(parser)


def run(arguments: argparse.Namespace) -> int:
    """Load and write the page."""
    quiet = arguments.quiet or arguments.json
    with progress(f"loading {arguments.graph}", quiet):
        model = files.load_graph(arguments.graph, arguments.strict, arguments.input_shapes, arguments.limits)
        other = None if arguments.compare is None else files.load_graph(arguments.compare, arguments.strict, limits=arguments.limits)
    values = None
    if arguments.values or arguments.inputs:
        given = read_arrays(arguments.inputs)
        values = {**given, **samples.sample_inputs(model.graph, arguments.seed, given)[0]}
    path = Path(arguments.out)
    replacing = path.exists()
    with progress("writing", quiet):
        view(model, other, path, values)
    note(files.wrote(path, replacing), quiet)
    if arguments.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return 0
