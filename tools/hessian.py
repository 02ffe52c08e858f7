"""``flowgrad hessian GRAPH [OUT]``: append Hessians."""

from __future__ import annotations

import argparse

from flowgrad.tools.derivative import add_derivative_arguments, write_derivative
from flowgrad.transforms.hessians import hessian


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "example: flowgrad hessian mlp.onnx mlp_hessian.onnx --of loss --wrt x"
    add_derivative_arguments(parser, "the only scalar output")
    parser.add_argument("--diagonal", action="store_true", help="the diagonal alone")


def run(arguments: argparse.Namespace) -> int:
    """Load, differentiate, optimise, write."""
    keep = arguments.keep.split(",") if arguments.keep else ()
    return write_derivative(arguments, "hessian_diagonal" if arguments.diagonal else "hessian", lambda model: hessian(
        model, arguments.of, arguments.wrt.split(","), keep, diagonal=arguments.diagonal, chunk_size=arguments.chunk_size,
        sparse=arguments.sparse, zero=arguments.zero))
