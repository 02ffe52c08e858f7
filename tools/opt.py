"""``flowgrad opt GRAPH [OUT]``: run passes, and look at what they do."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from flowgrad.ir.errors import FlowgradError, InputError, LoadError, PassError
from flowgrad.ir.registry import scoped
from flowgrad.model import Model
from flowgrad.passes import available
from flowgrad.passes.bisect import bisect
from flowgrad.passes.hooks import Dump, PrintAfter, PrintAfterChange, PrintBefore, Reproducer, Statistics, Timing
from flowgrad.passes.manager import LEVELS, PassManager, PassResult
from flowgrad.passes.steps import Hook
from flowgrad.tools import files
from flowgrad.tools.notes import note, progress, say, say_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "example: flowgrad opt mlp_grad.msgpack - --passes fold,cse,dce --print-ir-after-change=diff"
    parser.add_argument("graph", metavar="GRAPH", nargs="?", help=".msgpack, .onnx, IR text, or -")
    parser.add_argument("out", metavar="OUT", nargs="?", default="-", help=".msgpack, .onnx or .ir; default: - (stdout)")
    files.add_loading(parser)
    what = parser.add_argument_group("what to run")
    what.add_argument("--passes", metavar="STR", help='a pipeline, e.g. "fold{limit=1MiB},cse,dce"')
    for level in LEVELS:
        passes = LEVELS[level].count(",") + 1 if LEVELS[level] else 0
        what.add_argument(f"-O{level}", dest="level", action="store_const", const=level, help=f"{passes} standard passes")
    what.add_argument("--skip", action="append", default=[], metavar="P", help="leave a pass out (repeatable)")
    what.add_argument("--load", action="append", default=[], metavar="F.py", help="a file of your own that declares passes")
    files.add_saving(what)
    what.add_argument("--list", action="store_true", help="list the passes")
    look = parser.add_argument_group("what to show")
    look.add_argument("--print-ir-before", action="append", default=[], metavar="P")
    look.add_argument("--print-ir-after", action="append", default=[], metavar="P")
    look.add_argument("--print-ir-after-all", action="store_true")
    look.add_argument("--print-ir-after-change", nargs="?", const="ir", choices=("ir", "diff"), metavar="diff")
    look.add_argument("--dump-dir", metavar="D", help="write the graph after every pass there")
    look.add_argument("--timing", action="store_true", help="seconds of each pass")
    look.add_argument("--statistics", action="store_true", help="how often each rule fired")
    find = parser.add_argument_group("what to find")
    find.add_argument("--check", action="store_true", help="hold each pass to its kind: values and gradients")
    find.add_argument("--bisect", action="store_true", help="name the first pass, then the first rewrite, that is wrong")
    find.add_argument("--reproducer", metavar="F", help="where a pass fails, write graph and remaining pipeline there")


def run(arguments: argparse.Namespace) -> int:
    """Run the passes, those of the user's own files among them; what these declare ends with the command."""
    with scoped():
        for path in arguments.load:
            _load_passes(path)
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _list(arguments.json)
    if arguments.graph is None:
        raise InputError("GRAPH is missing: flowgrad opt GRAPH [OUT], or --list", code="usage")
    quiet = arguments.quiet or arguments.json
    found, source = files.reproducer(arguments.graph)
    asked = arguments.passes is not None or arguments.level is not None
    pipeline = _pipeline(arguments, None if asked else found)
    note(f"{arguments.graph}: the pipeline is that of the file: {found}", quiet or asked or found is None)
    with progress(f"loading {source}", quiet):
        model = files.load_graph(source, arguments.strict, arguments.input_shapes, arguments.limits)
    for text in model.notes:
        note(f"note: {text}", quiet)
    if arguments.bisect:
        return _bisect(pipeline, model, arguments)
    timing, statistics = Timing(), Statistics()
    hooks = [*_hooks(arguments), timing, statistics]
    with progress("running passes", quiet):
        try:
            result = PassManager(pipeline, hooks, check=arguments.check, verbose=arguments.verbose).run(model)
        except PassError as error:
            if error.code != "check":
                raise
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
    note(result.report, quiet)
    if arguments.timing:
        note(timing.table())
    if arguments.statistics:
        note(statistics.table())
    if arguments.verbose:
        _print_misses(result)
    wrote = files.save_graph(result.model, arguments.out, arguments.opset, arguments.emit)
    note(wrote, quiet or not wrote)
    if arguments.json and arguments.out != "-":
        say_json([{"pass": str(s.stage), "changed": s.changed, "seconds": s.seconds, "nodes": s.nodes_after,
                           "applied": dict(s.applied), "note": s.note} for s in result.steps])
    return 0


def _pipeline(arguments: argparse.Namespace, found: str | None) -> str:
    level = LEVELS[2 if arguments.level is None else arguments.level]
    text = next((given for given in (found, arguments.passes) if given is not None), level)
    stages = PassManager(text).stages
    known = {stage.name for stage in stages}
    for name in arguments.skip:
        if name not in known:
            raise InputError(f"--skip {name}: not in the pipeline ({', '.join(sorted(known))})", code="name")
    return ",".join(str(stage) for stage in stages if stage.name not in arguments.skip)


def _hooks(arguments: argparse.Namespace) -> list[Hook]:
    hooks: list[Hook] = []
    names = available()
    for name in (*arguments.print_ir_before, *arguments.print_ir_after):
        if name not in names:
            raise InputError(f"no pass {name!r}; passes: {', '.join(names)}", code="name")
    if arguments.print_ir_before:
        hooks.append(PrintBefore(arguments.print_ir_before))
    if arguments.print_ir_after or arguments.print_ir_after_all:
        hooks.append(PrintAfter(None if arguments.print_ir_after_all else arguments.print_ir_after))
    if arguments.print_ir_after_change:
        hooks.append(PrintAfterChange(diff=arguments.print_ir_after_change == "diff"))
    if arguments.dump_dir:
        hooks.append(Dump(Path(arguments.dump_dir)))
    if arguments.reproducer:
        hooks.append(Reproducer(Path(arguments.reproducer)))
    return hooks


def _bisect(pipeline: str, model: Model, arguments: argparse.Namespace) -> int:
    with progress("bisecting", arguments.quiet or arguments.json):
        culprit = bisect(pipeline, model)
    if arguments.json:
        say_json({"culprit": str(culprit) if culprit else None})
    else:
        say(culprit or "every pass keeps its promise")
    return 1 if culprit else 0


def _list(as_json: bool) -> int:
    passes = available()
    if as_json:
        say_json([{"name": p.name, "kind": p.kind, "options": {k: str(v) for k, v in p.options.items()},
                           "summary": p.summary} for p in passes.values()])
        return 0
    for found in passes.values():
        options = ", ".join(f"{name}={value}" for name, value in found.options.items())
        say(f"{found.name:14} {found.kind:9} {found.summary}{f'  ({options})' if options else ''}")
    return 0


def _print_misses(result: PassResult) -> None:
    for step in result.steps:
        for rule, where, reason in step.misses:
            note(f"{step.name}: {rule} did not fire at {where}: {reason}")


def _load_passes(path: str) -> None:
    """Run a user's file, so that the passes it declares can be named. Raises LoadError if it cannot be run."""
    try:
        runpy.run_path(path)
    except FlowgradError:
        raise
    except Exception as error:
        raise LoadError(f"cannot load passes from {path!r} ({type(error).__name__}: {error})", code="file") from error
