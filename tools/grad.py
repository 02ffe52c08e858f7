"""``flowgrad grad GRAPH [OUT]``: append the adjoint graph."""

from __future__ import annotations

import argparse

from flowgrad.model import Model
from flowgrad.tools import files
from flowgrad.tools.derivative import add_paths, optimise, write_optimised
from flowgrad.tools.notes import note, progress
from flowgrad.transforms.checkpointing import checkpoint
from flowgrad.transforms.derivatives import grad, value_and_grad, vjp


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "example: flowgrad grad mlp.onnx mlp_grad.onnx --of loss --wrt params"
    add_paths(parser)
    what = parser.add_argument_group("what")
    what.add_argument("--of", metavar="A,B", help="what to differentiate (default: the only scalar output)")
    what.add_argument("--wrt", metavar="A,B", default="inputs", help='names, globs, "inputs" (default) or "params"')
    what.add_argument("--keep", metavar="A,B", default="", help="values to output as well")
    what.add_argument("--vjp", action="store_true", help="take a cotangent as input instead of differentiating a scalar")
    what.add_argument("--no-value", action="store_true", help="leave the value itself out")
    how = parser.add_argument_group("how")
    how.add_argument("--passes", metavar="STR", help='pipeline to run on the result ("" for none)')
    how.add_argument("--checkpoint", metavar="sqrt|BYTES|A,B", default="",
                     help="compute values of the forward part again instead of keeping them: all but about sqrt(n), as many as "
                          "fit into 2GiB, or all but those named")
    what.add_argument("--zero", choices=("error", "allow"), default="error",
                      help="a derivative that is zero by piecewise constancy: an error, or zeros")
    how.add_argument("--opset", type=int, help="opset stamp of an .onnx file, if higher than needed")


def run(arguments: argparse.Namespace) -> int:
    """Load, differentiate, optimise, write."""
    quiet = arguments.quiet or arguments.json
    with progress(f"loading {arguments.graph}", quiet):
        model = files.load_graph(arguments.graph, arguments.strict, arguments.input_shapes, arguments.limits)
    note(f"{arguments.graph}: {len(model.graph)} nodes, {len(model.graph.constants)} constants", quiet)
    with progress("differentiating", quiet):
        result = _differentiated(model, arguments)
    made = [name for (role, _, _), name in result.roles.items() if role == "grad"]
    note(f"adjoint: +{len(result.graph) - len(model.graph)} nodes, {len(made)} gradients: {' '.join(made[:12])}", quiet)
    optimised = optimise(arguments, result)
    if arguments.checkpoint:
        with progress("checkpointing", quiet):
            optimised = _checkpointed(optimised, arguments.checkpoint)
    return write_optimised(arguments, optimised, "gradients", made)


def _differentiated(model: Model, arguments: argparse.Namespace) -> Model:
    wrt = arguments.wrt.split(",")
    keep = arguments.keep.split(",") if arguments.keep else ()
    if arguments.vjp:
        return vjp(model, arguments.of.split(",") if arguments.of else None, wrt, keep, zero=arguments.zero)
    return (grad if arguments.no_value else value_and_grad)(model, arguments.of, wrt, keep, zero=arguments.zero)


def _checkpointed(model: Model, asked: str) -> Model:
    if asked[0].isdigit() and "," not in asked:
        return checkpoint(model, memory=asked)
    return checkpoint(model, asked if asked == "sqrt" else asked.split(","))
