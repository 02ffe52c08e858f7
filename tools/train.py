"""``flowgrad train GRAPH OUT``: train the weights of a model on arrays of examples."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.fitting import Fitted, fit
from flowgrad.ir.errors import InputError, SaveError
from flowgrad.ir.feeds import Signature
from flowgrad.ir.graph import Array
from flowgrad.ir.text import large_constants
from flowgrad.model import Model
from flowgrad.tools import files
from flowgrad.tools.arrays import read_arrays
from flowgrad.tools.notes import note, progress, say, say_json
from flowgrad.tools.parser import count
from flowgrad.transforms.losses import with_loss
from flowgrad.transforms.training import OPTIMIZERS, train_step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = ("example: flowgrad train classifier.onnx trained.onnx --data digits.npz --loss softmax_cross_entropy "
                     "--epochs 3")
    parser.add_argument("graph", metavar="GRAPH", help=".msgpack, .onnx, IR text, or - for standard input")
    parser.add_argument("out", metavar="OUT", help=".msgpack or .onnx: the same model with trained weights")
    data = parser.add_argument_group("data")
    data.add_argument("--data", action="append", required=True, metavar="F", help="F.npz, or NAME=F.npy (repeatable): an array for each "
                                                                                  "input, axis 0 that of the examples")
    data.add_argument("--batch", type=count, default=32, metavar="N", help="examples of a step (default 32)")
    data.add_argument("--epochs", type=count, default=1, metavar="N", help="times that all are gone through (default 1)")
    data.add_argument("--seed", type=count, default=0, help="of the order of the examples (default 0)")
    files.add_loading(data)
    what = parser.add_argument_group("what")
    what.add_argument("--of", metavar="NAME", help="the loss (default: the only scalar output); with --loss, the output that it is of")
    what.add_argument("--loss", metavar="NAME", help="add this loss: softmax_cross_entropy, mean_squared_error, ...")
    what.add_argument("--target", metavar="NAME", default="target", help="the input that --loss adds (default target)")
    what.add_argument("--wrt", metavar="A,B", default="params", help='weights: names, globs, "params" (default)')
    what.add_argument("--frozen", metavar="A,B", default="", help="weights that stay as they are: names, globs")
    how = parser.add_argument_group("how")
    how.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="default: adam")
    how.add_argument("--learning-rate", type=float, default=1e-3, metavar="R", help="default 0.001")
    how.add_argument("--set", action="append", default=[], metavar="NAME=X", help="a setting of the optimizer: momentum=0.9 (repeatable)")
    how.add_argument("--clip-norm", type=float, metavar="X", help="scale gradients down to this norm")
    how.add_argument("--checkpoint", metavar="F.safetensors", help="write the state there, and go on from it if it is there")
    how.add_argument("--engine", default="numpy", help="numpy (default) or ort")
    files.add_saving(how)


def run(arguments: argparse.Namespace) -> int:
    """Load, train, write."""
    quiet = arguments.quiet or arguments.json
    form = files.form_of(arguments.out, arguments.emit)
    with progress(f"loading {arguments.graph}", quiet):
        model = files.load_graph(arguments.graph, arguments.strict, arguments.input_shapes, arguments.limits)
    for text in model.notes:
        note(f"note: {text}", quiet)
    _check_out(model, arguments.out, form)
    step = _step(model, arguments)
    batches = Batches(step, read_arrays(arguments.data), arguments.batch, arguments.seed)
    note(f"{batches.count} examples, {len(batches)} steps an epoch, optimizer {arguments.optimizer}", quiet)
    with progress("training", quiet):
        fitted = fit(step, batches, epochs=arguments.epochs, checkpoint=arguments.checkpoint, engine=arguments.engine)
    trained = model.with_params(fitted.weights(model))
    losses = _by_epoch(fitted, len(batches))
    if arguments.out != "-" and not arguments.json:
        for epoch, loss in enumerate(losses):
            say(f"epoch {epoch + 1:4}  loss {loss:.6g}")
    note(files.save_graph(trained, arguments.out, arguments.opset, arguments.emit), quiet)
    if arguments.json and arguments.out != "-":
        say_json({"steps": len(fitted.losses), "losses": losses, "out": arguments.out})
    return 0


def _check_out(model: Model, out: str, form: str) -> None:
    """Refuse, before the time is spent, an OUT that cannot be written or would not hold the weights."""
    if form == "ir" and large_constants(model.graph):
        raise InputError(f"the text form leaves out the data of large constants, and {out!r} would lack trained weights: end OUT in "
                         ".onnx or .msgpack, or give --emit", code="file")
    if out != "-" and not Path(out).parent.is_dir():
        raise SaveError("there is no such folder", code="destination", where=str(Path(out).parent))


def _step(model: Model, arguments: argparse.Namespace) -> Model:
    of = arguments.of
    if arguments.loss is not None:
        model = with_loss(model, arguments.loss, output=of, target=arguments.target)
        of = next(name for (role, _, _), name in reversed(model.roles.items()) if role == "loss")
    frozen = arguments.frozen.split(",") if arguments.frozen else ()
    return train_step(model, arguments.optimizer, of, arguments.wrt.split(","), frozen, clip_norm=arguments.clip_norm,
                      learning_rate=arguments.learning_rate, **dict(map(_setting, arguments.set)))


def _setting(item: str) -> tuple[str, Any]:
    name, _, text = item.partition("=")
    try:
        return name, float(text)
    except ValueError as error:
        raise InputError(f"--set takes NAME=NUMBER, got {item!r}", code="usage") from error


class Batches:
    """The batches of an epoch, by its number: all examples in an order that seed and number decide."""

    def __init__(self, step: Model, arrays: dict[str, Array], size: int, seed: int) -> None:
        Signature(step.graph).check_names(arrays)
        missing = [v.name for v in step.graph.inputs if v.name not in arrays]
        if missing:
            raise InputError(f"--data has nothing for the input {', '.join(map(repr, missing))}", code="missing")
        counts = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
        if len(set(counts.values())) != 1 or not min(counts.values()) or not size:
            raise InputError(f"every array of --data has one entry per example, and a batch at least one; got "
                             f"{', '.join(f'{name}: {n}' for name, n in counts.items())}, batch {size}", code="data")
        self.arrays, self.size, self.seed, self.count = arrays, size, seed, next(iter(counts.values()))
        whole = any(v.type.shape and isinstance(v.type.shape[0], int) for v in step.graph.inputs)
        self.stops = range(0, self.count - (self.count % size if whole else 0), size)
        if not self.stops:
            raise InputError(f"the model takes {size} examples at a time, and there are {self.count}", code="data")

    def __len__(self) -> int:
        return len(self.stops)

    def __call__(self, epoch: int) -> Iterator[dict[str, Array]]:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        for start in self.stops:
            chosen = order[start : start + self.size]
            yield {name: array[chosen] for name, array in self.arrays.items()}


def _by_epoch(fitted: Fitted, steps: int) -> list[float]:
    """Return the mean loss of each epoch."""
    return [float(np.mean(fitted.losses[at : at + steps])) for at in range(0, len(fitted.losses), steps)]
