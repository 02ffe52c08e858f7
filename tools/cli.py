"""The command line: ``flowgrad SUBCOMMAND``."""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import importlib
import os
import sys
from collections.abc import Sequence

from flowgrad import __version__
from flowgrad.ir.errors import FlowgradError, safe_line, suggestion
from flowgrad.tools.notes import PHASES, note
from flowgrad.tools.parser import Formatter, Parser

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

SUBCOMMANDS = {
    "run": "run a graph; without inputs, seeded ones are made",
    "grad": "append the adjoint graph: gradients of a scalar",
    "jacobian": "append Jacobians: all derivatives of outputs by inputs",
    "hessian": "append Hessians: all second derivatives of a scalar",
    "opt": "run passes and look at what they do",
    "inspect": "show inputs, outputs, operators and what cannot be differentiated",
    "diff": "show what differs between two graphs",
    "view": "write a page of HTML about a graph",
    "explain": "draw what of an input speaks for a class",
    "train": "train the weights of a model on arrays of examples",
    "completion": "print what makes a shell complete commands and options",
    "zoo": "check models that have reference gradients",
    "light": "check the light models that come with onnx",
    "gradcheck": "compare gradients with differences, and with a second engine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (0 fine, 1 the answer is no, 2 usage, 3 and up: see errors)."""
    parser = Parser(
        prog="flowgrad", description="Exact derivatives of ONNX models, as graphs.",
        epilog="example: flowgrad grad mlp.onnx mlp_grad.onnx --of loss --wrt params",
    )
    parser.add_argument("--version", action="version", version=f"flowgrad {__version__}")
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] and given[0] in SUBCOMMANDS:
        return run_command(parser_of(given[0]), given[1:])
    if given and not given[0].startswith("-"):
        note(f"flowgrad: no command {safe_line(given[0])!r}; commands: {', '.join(SUBCOMMANDS)}{suggestion(given[0], SUBCOMMANDS)}")
        return 2
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in SUBCOMMANDS.items():
        commands.add_parser(name, help=summary)
    return run_command(parser, given)


def parser_of(name: str) -> Parser:
    """Return the parser of a subcommand."""
    summary = SUBCOMMANDS[name]
    parser = Parser(prog=f"flowgrad {name}", description=summary[0].upper() + summary[1:] + ".",
                    formatter_class=Formatter)
    parser.set_defaults(command=name)
    importlib.import_module(f"flowgrad.tools.{name}").add_arguments(parser)
    add_common(parser)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command has."""
    parser.add_argument("--strict", action="store_true", help="refuse files that declare shapes which are not true")
    group = parser.add_argument_group("messages")
    group.add_argument("-q", "--quiet", action="store_true", help="no notes on stderr")
    group.add_argument("-v", "--verbose", action="store_true", help="say more")
    group.add_argument("--json", action="store_true", help="print one JSON object")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run_command(parser: Parser, argv: Sequence[str]) -> int:
    """Parse, dispatch, and turn every expected error into one message and an exit code."""
    PHASES.clear()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # the process ends: nothing is worth looking for cycles in any more
    try:
        arguments = parser.parse(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        code = int(importlib.import_module(f"flowgrad.tools.{arguments.command}").run(arguments))
        sys.stdout.flush()
        return code
    except FlowgradError as error:
        if arguments.debug:
            raise
        note(f"{type(error).__name__}: {error}")
        return error.exit_code
    except MemoryError as error:
        note(f"ResourceError: out of memory: {error}")
        return 5
    except BrokenPipeError:
        _abandon_stdout()
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # a defect of the product: said in one line, shown whole with --debug
        if arguments.debug:
            raise
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            _abandon_stdout()
            note(f"SaveError: cannot write to standard output: {error.strerror}")
            return 7
        note(f"internal error: {type(error).__name__}: {error}; --debug shows where")
        return 70


def _abandon_stdout() -> None:
    """Let what is still to be written at the end of the process go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
