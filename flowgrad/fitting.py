"""A small training loop around a step of training: progress, checkpoints, and resuming as if nothing had happened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.errors import InputError, LoadError
from flowgrad.ir.files import read_file, write_file
from flowgrad.ir.graph import Array
from flowgrad.ir.limits import Limits
from flowgrad.ir.weights import safetensors_errors, safetensors_library
from flowgrad.model import Model
from flowgrad.progress import bar
from flowgrad.transforms.training import next_inputs

Batch = Mapping[str, Any]
Batches = Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""Batches of an epoch that can be gone through again, or what gives those of an epoch by its number from 0 on."""


@dataclass
class Fitted:
    """How far training has come: ``state`` is what the next step is fed besides a batch, ``losses`` has one entry per step.

    Examples:
        >>> fitted = fg.fit(fg.train_step(model, of="loss"), [batch])
        >>> sorted(fitted.weights(model))
        ['b1', 'b2', 'w1', 'w2']
    """

    state: dict[str, Array] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    def weights(self, model: Model) -> dict[str, Array]:
        """Return those of the state that are weights of ``model``: ``model.with_params(fitted.weights(model))``."""
        named = {v.name for v in model.graph.constants if v.name}
        return {name: array for name, array in self.state.items() if name in named}


def fit(
    step: Model, batches: Batches, *, epochs: int = 1, learning_rate: float | Callable[[int], float] | None = None,
    checkpoint: str | os.PathLike[str] | None = None, every: int = 100, progress: bool = False, engine: str = "numpy",
    threads: int | None = None,
) -> Fitted:
    """Run a step of training (``train_step``) on all batches, ``epochs`` times, and return state and losses.

    ``learning_rate`` is fed to each step, a number or a function of the number of the step from 0 on. With ``checkpoint``, state
    and losses are written there (safetensors; extra ``weights``) after every ``every`` steps and at the end, whole or not
    at all. If that file is there already, training goes on from it: batches that were taken are gone through
    without a run, so that the weights are those of an uninterrupted run, bit for bit, if the batches are the same.
    ``progress`` shows a bar with the loss on stderr. Raises InputError for a model that is no step, for batches that are
    no dicts or used up in the second epoch, and for a checkpoint of another step.

    Examples:
        >>> step = fg.train_step(model, "adam", of="loss", learning_rate=0.1)
        >>> losses = fg.fit(step, [batch] * 10, epochs=2).losses
        >>> len(losses), losses[-1] < losses[0]
        (20, True)
    """
    following = next_inputs(step)
    if not following:
        raise InputError("fit takes a step of training: make one by train_step(model, ...)", code="step")
    if epochs < 1 or every < 1:
        raise InputError(f"epochs and every are 1 or more, got {epochs} and {every}", code="option")
    loss = step.graph.output_entries[0].name
    path = None if checkpoint is None else Path(checkpoint)
    fitted = _resumed(path, following)
    program = step.compile(engine, threads)
    done = len(fitted.losses)
    with bar(progress, "step") as shown:
        for number, batch in _remaining(batches, epochs, done):
            feeds = {**batch, **fitted.state, **_rate(step, learning_rate, number)}
            result = program.run(feeds)
            fitted.state = {following[name]: array for name, array in result.items() if name in following}
            fitted.losses.append(float(result[loss]))
            shown(number + 1, f"loss {fitted.losses[-1]:.6g}")
            if path is not None and (number + 1) % every == 0:
                _save(path, fitted)
    if path is not None and len(fitted.losses) > done:
        _save(path, fitted)
    return fitted


def _remaining(batches: Batches, epochs: int, done: int) -> Iterator[tuple[int, Batch]]:
    """Yield the number of each step after the first ``done``, and its batch."""
    number = 0
    for epoch in range(epochs):
        first = number
        for batch in batches(epoch) if callable(batches) else batches:
            if not isinstance(batch, Mapping):
                raise InputError(f"a batch is a dict of arrays by the names of inputs, got {type(batch).__name__}", code="batches")
            if number >= done:
                yield number, batch
            number += 1
        if number == first:
            raise InputError(f"there are no batches in epoch {epoch + 1}: give a list, or a function of the number of the epoch, "
                             "not something that is used up once it was gone through", code="batches")


def _rate(step: Model, given: float | Callable[[int], float] | None, number: int) -> dict[str, Array]:
    if given is None:
        return {}
    dtype = step.graph.value("learning_rate").type.dtype.numpy
    return {"learning_rate": np.asarray(given(number) if callable(given) else given, dtype)}


# ---- checkpoints ----------------------------------------------------------------------------------------------------------


LOSSES = "flowgrad.losses"
"""The key of the losses among the metadata of a checkpoint."""


def _save(path: Path, fitted: Fitted) -> None:
    arrays = {name: np.asarray(array, order="C") for name, array in fitted.state.items()}
    losses = json.dumps([loss.hex() for loss in fitted.losses])
    write_file(path, [safetensors_library("checkpoints").save(arrays, {LOSSES: losses})])


def _resumed(path: Path | None, following: Mapping[str, str]) -> Fitted:
    """Return what a checkpoint holds, or nothing done if there is none."""
    if path is None or not path.exists():
        return Fitted()
    library = safetensors_library("checkpoints")
    data = bytes(read_file(path, Limits.default()))
    try:
        state = dict(library.load(data))
        size = int.from_bytes(data[:8], "little")
        losses = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][LOSSES])
        fitted = Fitted(state, [float.fromhex(loss) for loss in losses])
    except safetensors_errors() as error:
        raise LoadError(f"{str(path)!r} is no checkpoint of fit: {error}", code="checkpoint") from error
    expected = set(following.values())
    if set(state) != expected:
        raise InputError(f"{str(path)!r} is the checkpoint of another step: it has {', '.join(sorted(set(state) - expected)) or 'all'}"
                         f" and lacks {', '.join(sorted(expected - set(state))) or 'nothing'}; give another file, or remove it",
                         code="checkpoint")
    return fitted
