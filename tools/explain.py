"""``flowgrad explain GRAPH PICTURE``: what of an input speaks for a class, drawn."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad import explain
from flowgrad.input_gradient import the_input
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Array
from flowgrad.model import Model
from flowgrad.passes.selection import only_float_output
from flowgrad.tools import files, picture, samples
from flowgrad.tools.arrays import save_arrays
from flowgrad.tools.images import read_inputs
from flowgrad.tools.notes import note, progress, say, say_json
from flowgrad.tools.parser import count
from flowgrad.transforms.editing import extract

METHODS: dict[str, Callable[..., Any]] = {
    "saliency": explain.Saliency,
    "input_x_gradient": explain.InputXGradient,
    "integrated_gradients": explain.IntegratedGradients,
    "guided_backprop": explain.GuidedBackprop,
    "smooth_grad": explain.Saliency,
    "grad_cam": explain.LayerGradCam,
}
MOST = 5
"""Classes that are listed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "example: flowgrad explain classifier.onnx why.png --inputs image=digit.npy --target 2"
    parser.add_argument("graph", metavar="GRAPH", help=".msgpack, .onnx, IR text, or - for standard input")
    parser.add_argument("out", metavar="PICTURE", help=".png or .ppm: the example, and what speaks for the class (red) and against "
                                                       "it (blue)")
    data = parser.add_argument_group("data")
    data.add_argument("--inputs", action="append", default=[], metavar="F", help="F.npz, NAME=F.npy, or NAME=F.png (any image; extra "
                                                                                 "image), scaled to the input's size")
    data.add_argument("--mean", metavar="A,B,C", help="of each channel of images, which lie between 0 and 1: taken off")
    data.add_argument("--std", metavar="A,B,C", help="of each channel of images: divides them")
    files.add_loading(data)
    data.add_argument("--seed", type=int, default=0, help="of inputs that are made where none is given, and of noise")
    what = parser.add_argument_group("what")
    what.add_argument("--method", choices=METHODS, default="saliency", help="default: saliency")
    what.add_argument("--target", type=count, help="the class (default: the greatest)")
    what.add_argument("--output", metavar="NAME", help="the scores (default: the only float output)")
    what.add_argument("--input", metavar="NAME", help="the input that is explained (default: the only float one)")
    what.add_argument("--layer", metavar="NAME", help="the feature maps of grad_cam")
    what.add_argument("--example", type=count, default=0, metavar="I", help="which example of the inputs (default 0)")
    what.add_argument("--save-outputs", metavar="F.npz", help="write the attributions as well")
    what.add_argument("--engine", default="numpy", help="numpy (default) or ort")


def run(arguments: argparse.Namespace) -> int:
    """Load, explain, draw."""
    quiet = arguments.quiet or arguments.json
    path = Path(arguments.out)
    picture.check_picture(path)
    with progress(f"loading {arguments.graph}", quiet):
        model = files.load_graph(arguments.graph, arguments.strict, arguments.input_shapes, arguments.limits)
    for text in model.notes:
        note(f"note: {text}", quiet)
    feeds = _feeds(model, arguments, quiet)
    name = the_input(model, arguments.input)
    scores = _scores(model, arguments, feeds)
    one = feeds[name][_index(feeds[name], arguments.example)]
    target = int(scores.argmax()) if arguments.target is None else arguments.target
    with progress("explaining", quiet):
        found = _method(model, arguments, name, feeds)(one, target if scores.size > 1 else None)
    replacing = path.exists()
    picture.save_picture(path, picture.explained(one[0], found[0]))
    _say(arguments, scores, target, found)
    note(files.wrote(path, replacing), quiet)
    if arguments.save_outputs:
        note(save_arrays(arguments.save_outputs, {name: found}), quiet)
    return 0


def _feeds(model: Model, arguments: argparse.Namespace, quiet: bool) -> dict[str, Array]:
    given = read_inputs(model, arguments.inputs, arguments.mean, arguments.std)
    made, assumed = samples.sample_inputs(model.graph, arguments.seed, given)
    if made:
        note(f"made up, with seed {arguments.seed}: {', '.join(made)}", quiet)
    if assumed:
        note(f"assumed extent 1 for {', '.join(assumed)} (see --input-shapes)", quiet)
    return {**given, **made}


def _index(array: Array, example: int) -> slice:
    if array.ndim == 0 or example >= len(array):
        raise InputError(f"--example {example}: there are {len(array) if array.ndim else 0} examples, counted from 0", code="usage")
    return slice(example, example + 1)


def _scores(model: Model, arguments: argparse.Namespace, feeds: dict[str, Array]) -> Array:
    """Return the scores of the example that is explained."""
    output = only_float_output(model.graph, arguments.output, "an explanation")[0]
    cut = extract(model, outputs=output)
    all_scores: Array = cut.compile(arguments.engine).run({i.name: feeds[i.name] for i in cut.inputs})[output]
    return all_scores[_index(all_scores, arguments.example)].reshape(-1)


def _method(model: Model, arguments: argparse.Namespace, name: str, feeds: dict[str, Array]) -> Callable[[Array, Any], Array]:
    """Return what attributes the output to the elements of the examples it is given."""
    first = model.graph.value(name).type.shape
    others = {v.name: feeds[v.name][_index(feeds[v.name], arguments.example)] if v.type.shape and first and v.type.shape[0] == first[0]
              else feeds[v.name] for v in model.graph.inputs if v.name != name}
    keywords = {"output": arguments.output, "input": name, "others": others, "engine": arguments.engine}
    if arguments.method == "grad_cam":
        if arguments.layer is None:
            maps = [node.output().name for node in model.graph.nodes() if node.op == "Conv"]
            raise InputError(f"grad_cam needs --layer NAME, a value with feature maps; the last ones that Conv makes: "
                             f"{', '.join(maps[-4:]) or 'none'}", code="usage")
        keywords["layer"] = arguments.layer
    made = METHODS[arguments.method](model, **keywords)
    if arguments.method == "smooth_grad":
        return lambda x, target: explain.SmoothGrad(made).attribute(x, target, nt_samples=16, stdevs=0.15 * float(np.ptp(x)),
                                                                    seed=arguments.seed)
    return lambda x, target: made.attribute(x, target)


def _say(arguments: argparse.Namespace, scores: Array, target: int, found: Array) -> None:
    order = np.argsort(-scores, kind="stable")[:MOST]
    if arguments.json:
        say_json({"graph": arguments.graph, "method": arguments.method, "target": target if scores.size > 1 else None,
                  "scores": {str(i): float(scores[i]) for i in order}, "shape": list(found.shape),
                  "sum": float(found.sum(dtype=np.float64)), "picture": arguments.out})
        return
    for index in order:
        mark = "  <- explained" if index == target and scores.size > 1 else ""
        say(f"class {index:5}  {float(scores[index]):12.6g}{mark}")
