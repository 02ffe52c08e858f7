"""``flowgrad grad GRAPH [OUT]``: append the adjoint graph."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from flowgrad.ir.errors import InputError
from flowgrad.model import Model
from flowgrad.passes.selection import Pick, only_float_output
from flowgrad.runtime.profile import Profile
from flowgrad.tools import files
from flowgrad.tools.derivative import add_paths, optimise, write_optimised
from flowgrad.tools.notes import PHASES, note, progress
from flowgrad.transforms.checkpointing import checkpoint
from flowgrad.transforms.derivatives import grad, value_and_grad, vjp
from flowgrad.transforms.losses import with_loss

_INTEGER = re.compile(r"-?[0-9]{1,18}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "example: flowgrad grad mlp.onnx mlp_grad.onnx --of loss --wrt params"
    add_paths(parser)
    what = parser.add_argument_group("what")
    what.add_argument("--of", metavar="A,B", help="what to differentiate (default: the only scalar output; with --loss or --pick, "
                                                  "the only float output)")
    what.add_argument("--loss", metavar="NAME", help="differentiate this loss of it: softmax_cross_entropy, mean_squared_error, ...")
    what.add_argument("--target", metavar="NAME", default="target", help="the input that --loss adds (default target)")
    what.add_argument("--pick", metavar="I|argmax|NAME", help="differentiate one entry of it along the last axis: of this index, the "
                                                              "greatest, or of the index that an input of this name is fed")
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
    files.add_saving(how)
    how.add_argument("--profile", metavar="T.json", help="write a Chrome trace of what the command did")


def run(arguments: argparse.Namespace) -> int:
    """Load, differentiate, optimise, write."""
    if sum(given not in (None, False) for given in (arguments.loss, arguments.pick, arguments.vjp)) > 1:
        raise InputError("--loss, --pick and --vjp each say what is differentiated: give one of them", code="usage")
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
    code = write_optimised(arguments, optimised, "gradients", made)
    if arguments.profile:
        path = Path(arguments.profile)
        replacing = path.exists()
        Profile({}, [dict(event) for event in PHASES]).save(path)
        note(files.wrote(path, replacing), quiet)
    return code


def _differentiated(model: Model, arguments: argparse.Namespace) -> Model:
    wrt = arguments.wrt.split(",")
    keep = arguments.keep.split(",") if arguments.keep else ()
    if arguments.loss is not None:
        model = with_loss(model, arguments.loss, output=arguments.of, target=arguments.target)
    of = _of(model, arguments)
    if arguments.vjp:
        return vjp(model, arguments.of.split(",") if arguments.of else None, wrt, keep, zero=arguments.zero)
    return (grad if arguments.no_value else value_and_grad)(model, of, wrt, keep, zero=arguments.zero)


def _of(model: Model, arguments: argparse.Namespace) -> str | Pick | None:
    """Return the scalar to differentiate."""
    if arguments.loss is not None:
        return next(name for (role, _, _), name in reversed(model.roles.items()) if role == "loss")
    if arguments.pick is None:
        return arguments.of  # type: ignore[no-any-return]
    index = arguments.pick
    return Pick(only_float_output(model.graph, arguments.of, "--pick")[0], int(index) if _INTEGER.fullmatch(index) else index)


def _checkpointed(model: Model, asked: str) -> Model:
    if asked[0].isdigit() and "," not in asked:
        return checkpoint(model, memory=asked)
    return checkpoint(model, asked if asked == "sqrt" else asked.split(","))
