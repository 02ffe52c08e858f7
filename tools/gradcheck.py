"""``flowgrad gradcheck GRAPH``: gradients against differences, and a second engine against the first."""

from __future__ import annotations

import argparse

from flowgrad.tools import files, samples
from flowgrad.tools.arrays import read_arrays
from flowgrad.tools.notes import note, progress, say, say_json
from flowgrad.transforms.gradcheck import Check, compare_engines, gradcheck
from flowgrad.transforms.kinks import kinks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "example: flowgrad gradcheck mlp.onnx --wrt params --against ort"
    parser.add_argument("graph", metavar="GRAPH", help=".msgpack, .onnx, IR text, or - for standard input")
    parser.add_argument("--of", metavar="A,B", help="what to differentiate (default: all float outputs)")
    parser.add_argument("--wrt", metavar="A,B", default="inputs", help='names, globs, "inputs" (default) or "params"')
    parser.add_argument("--samples", type=int, default=3, help="random directions (default 3)")
    parser.add_argument("--against", metavar="ENGINE", help="also compare the gradients of this engine (ort)")
    parser.add_argument("--inputs", action="append", default=[], metavar="F", help="F.npz, or NAME=F.npy (repeatable)")
    files.add_loading(parser)
    parser.add_argument("--seed", type=int, default=0, help="of inputs and directions (default 0)")
    parser.add_argument("--eps", type=float, default=1e-6, help="step of the differences (default 1e-6)")
    parser.add_argument("--atol", type=float, default=1e-5, help="absolute tolerance (default 1e-5)")
    parser.add_argument("--rtol", type=float, default=1e-3, help="relative tolerance (default 1e-3)")


def run(arguments: argparse.Namespace) -> int:
    """Check; exit code 1 if a check fails."""
    quiet = arguments.quiet or arguments.json
    with progress(f"loading {arguments.graph}", quiet):
        model = files.load_graph(arguments.graph, arguments.strict, arguments.input_shapes, arguments.limits)
    for text in model.notes:
        note(f"note: {text}", quiet)
    given = read_arrays(arguments.inputs)
    made, _ = samples.sample_inputs(model.graph, arguments.seed, given)
    feeds = {**given, **made}
    of = arguments.of.split(",") if arguments.of else None
    wrt = arguments.wrt.split(",")
    with progress("checking", quiet):
        checks = gradcheck(model, feeds, of, wrt, eps=arguments.eps, atol=arguments.atol, rtol=arguments.rtol,
                           samples=arguments.samples, seed=arguments.seed).checks
        if arguments.against:
            checks += compare_engines(model, feeds, of, wrt, arguments.against, seed=arguments.seed)
        met = kinks(model, feeds)
    failed = [c for c in checks if not c.passed]
    if arguments.json:
        say_json({"passed": not failed, "checks": [c.__dict__ for c in checks], "kinks": [str(kink) for kink in met]})
    else:
        _print(checks)
    for kink in met:
        note(f"{kink}: derivatives there are conventions", quiet)
    note(f"{len(checks) - len(failed)} of {len(checks)} checks passed", quiet)
    return 1 if failed else 0


def _print(checks: list[Check]) -> None:
    width = max(len(c.what) for c in checks)
    for check in checks:
        verdict = "FAILED" if not check.passed else "kink" if check.kink else "ok"
        say(f"{check.what.ljust(width)}  {verdict:6}  got {check.got:.8g}  expected {check.expected:.8g}  "
              f"off {abs(check.got - check.expected):.2g} (allowed {check.allowed:.2g})")
