"""``flowgrad jacobian GRAPH [OUT]``: append Jacobians."""

from __future__ import annotations

import argparse

from flowgrad.tools.derivative import add_derivative_arguments, write_derivative
from flowgrad.transforms.jacobians import jacobian


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "example: flowgrad jacobian mlp.onnx mlp_jacobian.onnx --of logits --wrt x"
    add_derivative_arguments(parser, "all float outputs")
    parser.add_argument("--mode", choices=("auto", "rev", "fwd"), default="auto",
                        help="reverse (few outputs), forward (few inputs), or the smaller side (default)")


def run(arguments: argparse.Namespace) -> int:
    """Load, differentiate, optimise, write."""
    of = arguments.of.split(",") if arguments.of else None
    keep = arguments.keep.split(",") if arguments.keep else ()
    return write_derivative(arguments, "jacobian", lambda model: jacobian(
        model, of, arguments.wrt.split(","), keep, mode=arguments.mode, chunk_size=arguments.chunk_size,
        sparse=arguments.sparse, zero=arguments.zero))
