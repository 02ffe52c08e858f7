"""Gradients by one input of a scalar per example, in batches: what explanations and attacks are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Array
from flowgrad.model import Model
from flowgrad.passes.selection import Pick
from flowgrad.transforms.derivatives import value_and_grad


class InputGradient:
    """The gradient of ``of``, a sum over the examples in input ``x``, by ``wrt`` (``x``, or an inner value), on an engine.

    Calling it takes arrays by name and returns the outputs by name: ``value``, ``gradient``, then those in ``keep``. Where a
    file has a fixed batch extent, the examples go through in portions of that: ``x``, the inputs in ``by_example``, and those whose
    first extent is that of ``x``.
    """

    def __init__(self, model: Model, of: str | Pick, x: str, wrt: str = "", *, keep: tuple[str, ...] = (), by_example: tuple[str, ...] = (),
                 engine: str = "numpy", threads: int | None = None) -> None:
        self.model = value_and_grad(model, of, wrt or x, keep)
        self.x = x
        self.value, self.gradient = (e.name for e in self.model.graph.output_entries[:2])
        self.program = self.model.compile(engine, threads)
        shape = self.model.graph.value(x).type.shape
        self.fixed = shape[0] if shape and isinstance(shape[0], int) else None
        alike = {v.name for v in self.model.graph.inputs if v.type.shape and shape and v.type.shape[0] == shape[0]}
        self.by_example = alike | {x, *by_example}

    def __call__(self, feeds: dict[str, Array], limit: int | None = None) -> dict[str, Array]:
        """Return the outputs for all examples: arrays joined along axis 0, the scalar summed.

        ``limit`` is the largest number of examples that run at once.
        """
        count = len(feeds[self.x])
        split = {name for name in feeds if name in self.by_example and len(feeds[name]) == count}
        parts = [self.program.run({name: a[where] if name in split else a for name, a in feeds.items()})
                 for where in self._portions(count, limit)]
        if len(parts) == 1:
            return parts[0]
        return {name: np.asarray(sum(p[name] for p in parts)) if parts[0][name].ndim == 0
                else np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _portions(self, count: int, limit: int | None) -> Iterator[slice]:
        size = self.fixed or limit or max(count, 1)
        if self.fixed and count % self.fixed:
            raise InputError(f"{self.x!r} takes {self.fixed} examples at a time, and {count} are no multiple of that; export the "
                             "model with a dynamic batch axis", code="shape")
        return (slice(start, start + size) for start in range(0, max(count, 1), size))


def the_input(model: Model, name: str | None) -> str:
    """Return ``name``, or the only float input. InputError if there are several."""
    floats = [v.name for v in model.graph.inputs if v.type.dtype.is_float]
    if name is not None:
        if name not in floats:
            raise InputError(f"no float input {name!r}; there are: {', '.join(floats)}", code="name")
        return name
    if len(floats) != 1:
        raise InputError(f"input= must say which of the float inputs is meant: {', '.join(floats) or 'there is none'}", code="name")
    return floats[0]


def as_input(model: Model, name: str, array: Any) -> Array:
    """Return examples for an input in its dtype."""
    return np.asarray(array, model.graph.value(name).type.dtype.numpy)
