"""``flowgrad inspect GRAPH``: what a graph holds, and what of it cannot be differentiated."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from flowgrad.ir.graph import Graph
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import Trait, opdef
from flowgrad.model import Model, ValueInfo
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.runtime.threads import available_threads
from flowgrad.tools import files
from flowgrad.tools.notes import note, progress, say, say_json

SHOWN = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "example: flowgrad inspect mlp.onnx --nodes"
    parser.add_argument("graph", metavar="GRAPH", help=".msgpack, .onnx, IR text, or - for standard input")
    files.add_loading(parser)
    parser.add_argument("--nodes", action="store_true", help="print the graph in its text form")
    parser.add_argument("--params", action="store_true", help="list every parameter candidate with the reason")
    parser.add_argument("--origins", action="store_true", help="print, for each node that a pass made, the whole chain")


def run(arguments: argparse.Namespace) -> int:
    """Inspect."""
    with progress(f"loading {arguments.graph}", arguments.quiet or arguments.json):
        model = files.load_graph(arguments.graph, arguments.strict, arguments.input_shapes, arguments.limits)
    for text in model.notes:
        note(f"note: {text}", arguments.quiet or arguments.json)
    report = describe_model(model) | {"peak_bytes": peak_bytes(model)}
    if arguments.json:
        say_json(report)
        return 0
    _print(report, arguments.params)
    if arguments.nodes:
        print(f"\n{model}")  # text of a graph quotes what is not plain
    if arguments.origins:
        _print_origins(model.graph)
    return 0


def describe_model(model: Model) -> dict[str, Any]:
    """Return all that the command prints, as plain data."""
    params = model.params
    constants = model.graph.constants
    return {
        "name": model.graph.name,
        "inputs": [_plain(i) for i in model.inputs],
        "outputs": [_plain(o) for o in model.outputs],
        "nodes": sum(1 for _ in model.graph.walk()),
        "ops": dict(sorted(Counter(n.op for _, n in model.graph.walk()).items())),
        "constants": {"count": len(constants),
                      "bytes": sum(v.producer.data.nbytes for v in constants if v.producer.data is not None)},
        "params": {"count": sum(p.included for p in params), "all": [_plain(p) for p in params]},
        "not_differentiable": not_differentiable(model.graph),
    }


def peak_bytes(model: Model) -> int | None:
    """Return the bytes that a run takes beside constants, or None where an extent of an input is open."""
    if not all(v.type.is_static for v in model.graph.inputs):
        return None
    plan = NumpyProgram(model.optimized().graph).plan({v.name: v.type.static_shape for v in model.graph.inputs})
    return int(plan.peak_bytes) if plan.complete else None


def not_differentiable(graph: Graph) -> list[dict[str, str]]:
    """Return the nodes through which floats pass and no derivative does, with the reason."""
    found = []
    for _, node in graph.walk():
        definition = opdef(node.op)
        floats = any(v.type.dtype.is_float for v in node.operands)
        if not floats:
            continue
        if not any(v.type.dtype.is_float for v in node.results):
            if definition.value_rule is None and any(v.type.dtype.is_integer for v in node.results):
                found.append({"op": node.op, "where": node.label, "reason": "its result is an integer: no derivative passes"})
            continue
        if Trait.ZERO in definition.traits:
            found.append({"op": node.op, "where": node.label, "reason": "piecewise constant: its derivative is zero"})
        elif not definition.is_differentiable():
            found.append({"op": node.op, "where": describe(node), "reason": "it has no derivative rule"})
    return found


def _plain(info: ValueInfo) -> dict[str, Any]:
    plain: dict[str, Any] = {"name": info.name, "dtype": info.dtype, "shape": info.shape and list(info.shape)}
    if info.reason:
        plain |= {"included": info.included, "reason": info.reason}
    return plain


def _print(report: dict[str, Any], all_params: bool) -> None:
    say(f"graph    {report['name']}: {report['nodes']} nodes, {report['constants']['count']} constants "
          f"({files.size_text(report['constants']['bytes'])})")
    for kind in ("inputs", "outputs"):
        for info in report[kind]:
            say(f"{kind[:-1]:8} {_shown(info)}")
    ops = ", ".join(f"{name} {count}" for name, count in report["ops"].items())
    say(f"ops      {ops or 'none'}")
    say(f"params   {report['params']['count']} of {len(report['params']['all'])} candidates")
    if all_params:
        for info in report["params"]["all"]:
            say(f"  {'in ' if info['included'] else 'out'}  {_shown(info)}  {info['reason']}")
    for info in report["params"]["all"]:
        if info["included"] and "; shared by " in info["reason"]:
            say(f"shared   {info['name']}: {info['reason'].partition('; shared by ')[2]}")
    if report["peak_bytes"] is not None:
        say(f"peak     {files.size_text(report['peak_bytes'])} of values in a run on {available_threads()} threads, beside the constants")
    for stop in report["not_differentiable"][:SHOWN]:
        say(f"stops    {stop['op']} at {stop['where']}: {stop['reason']}")
    more = len(report["not_differentiable"]) - SHOWN
    if more > 0:
        say(f"stops    and {more} more (see --json)")


def _shown(info: dict[str, Any]) -> str:
    shape = "*" if info["shape"] is None else ",".join(str(d) for d in info["shape"])
    return f"{info['name']}: {info['dtype']}[{shape}]"


def _print_origins(graph: Graph) -> None:
    for node in graph.nodes():
        chain, at = [], node.origin
        while at:
            origin = graph.origins[at]
            chain.append(f"{origin.pass_name}({', '.join('%' + n for n in origin.names)})")
            at = origin.parents[0] if origin.parents else 0
        if chain:
            say(f"%{node.label}  from {' <- '.join(chain)}")
