"""Attacks on classifiers by gradients, in the call shapes of torchattacks: ``PGD(model, eps=8/255)(images, labels)``.

An attack is made once for a model and called with examples and their labels (with ``targeted``, the labels wished for). It
returns examples within ``eps`` of those given, and within ``bounds``. What it climbs is ``loss``: the cross-entropy of the
logits (the only float output, or ``output``), or the margin of Carlini and Wagner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from flowgrad.input_gradient import InputGradient, as_input, the_input
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.types import INT64, Type
from flowgrad.model import Model
from flowgrad.passes.selection import find_value, only_float_output
from flowgrad.progress import bar
from flowgrad.transforms.losses import with_loss

Norm = Literal["linf", "l2"]
Climbed = Literal["cross_entropy", "margin"]

LABEL, LOSS, EACH = "attack_label", "attack_loss", "attack_loss_each"
TINY = 1e-12
"""A gradient of less than this norm has no direction."""


__all__ = ["FGSM", "PGD"]


def __dir__() -> list[str]:
    return __all__


class _Attack:
    def __init__(self, model: Model, eps: float, norm: Norm, bounds: tuple[float, float] | None, targeted: bool, loss: Climbed,
                 output: str | None, input: str | None, others: Mapping[str, Any] | None, engine: str, threads: int | None,
                 batch: int, progress: bool = False) -> None:
        _check(eps, norm, bounds, loss, batch)
        self.model, self.input = model, the_input(model, input)
        self.output = only_float_output(model.graph, output, "an attack")[0]
        self.eps, self.norm, self.bounds, self.targeted, self.batch, self.progress = eps, norm, bounds, targeted, batch, progress
        self.others = {name: np.asarray(a) for name, a in (others or {}).items()}
        self._gradient = InputGradient(_with_attacked(model, self.output, loss), LOSS, self.input, keep=(self.output, EACH), by_example=(LABEL,),
                                       engine=engine, threads=threads)

    def _evaluate(self, x: Array, labels: Array) -> tuple[Array, Array, Array]:
        """Return the gradient that the attack climbs, the loss of each example, and where the attack succeeds."""
        result = self._gradient({self.input: x, LABEL: labels, **self.others}, self.batch)
        gradient, losses = result[self._gradient.gradient], result[EACH]
        found = result[self.output].argmax(1) == labels
        return (-gradient, -losses, found) if self.targeted else (gradient, losses, ~found)

    def success(self, x: Any, labels: Any) -> Array:
        """Return for each example whether it is taken for another class than its label (targeted: for the label)."""
        return self._evaluate(*self._checked(x, labels))[2]

    def _checked(self, x: Any, labels: Any) -> tuple[Array, Array]:
        examples, classes = as_input(self.model, self.input, x), np.asarray(labels)
        if classes.dtype.kind not in "iu" or classes.shape != examples.shape[:1]:
            raise InputError(f"labels are one integer per example, got {classes.dtype.name}{list(classes.shape)} for "
                             f"{len(examples)} examples", code="labels")
        low, high = (-np.inf, np.inf) if self.bounds is None else self.bounds
        if examples.size and not (examples.min() >= low and examples.max() <= high):
            raise InputError(f"the examples go from {examples.min():.4g} to {examples.max():.4g}, beyond bounds=({low:.4g}, "
                             f"{high:.4g}): give the bounds that they have, or bounds=None", code="bounds")
        return examples, classes.astype(np.int64)

    def _within(self, x: Array, start: Array) -> Array:
        """Return ``x`` moved to where it may be: at most ``eps`` from ``start``, in ``bounds``."""
        moved = x - start
        if self.norm == "linf":
            _clip(moved, -self.eps, self.eps)
        else:
            moved *= np.minimum(1, self.eps / np.maximum(_norms(moved), TINY)).astype(x.dtype)
        moved += start
        if self.bounds is not None:
            _clip(moved, *self.bounds)
        return moved

    def _step(self, gradient: Array, size: float) -> Array:
        """Return a step of ``size`` in the direction in which the loss grows fastest, by the norm."""
        if self.norm == "linf":
            step: Array = np.sign(gradient)
            step *= size
            return step
        return np.asarray(size * gradient / np.maximum(_norms(gradient), TINY)).astype(gradient.dtype)


class FGSM(_Attack):
    """One step of the whole length against the label (or towards it).

    Examples:
        >>> attack = fg.attack.FGSM(fg.extract(model, outputs="logits"), eps=0.1, bounds=None)
        >>> np.abs(attack(batch["x"], np.array([0, 1])) - batch["x"]).max().round(4)
        np.float32(0.1)
    """

    def __init__(self, model: Model, eps: float = 8 / 255, *, norm: Norm = "linf", bounds: tuple[float, float] | None = (0, 1),
                 targeted: bool = False, loss: Climbed = "cross_entropy", output: str | None = None, input: str | None = None,
                 others: Mapping[str, Any] | None = None, engine: str = "numpy", threads: int | None = None, batch: int = 64,
                 ) -> None:
        super().__init__(model, eps, norm, bounds, targeted, loss, output, input, others, engine, threads, batch)

    def __call__(self, x: Any, labels: Any) -> Array:
        """Return x + eps sign(dL/dx) (l2: along dL/dx), of the shape of ``x``."""
        examples, classes = self._checked(x, labels)
        return self._within(examples + self._step(self._evaluate(examples, classes)[0], self.eps), examples)


class PGD(_Attack):
    """Steps along the gradient, each taken back to where the example may be; the best of ``restarts`` random starts stays.

    ``alpha`` is another name of ``step_size``, the one that torchattacks has.

    Examples:
        >>> attack = fg.attack.PGD(fg.extract(model, outputs="logits"), eps=3.0, step_size=1.0, steps=5, bounds=None)
        >>> labels = fg.extract(model, outputs="logits")(x=batch["x"])["logits"].argmax(1)
        >>> attack.success(attack(batch["x"], labels), labels)
        array([ True,  True])
    """

    def __init__(self, model: Model, eps: float = 8 / 255, step_size: float = 2 / 255, steps: int = 10, *, norm: Norm = "linf",
                 bounds: tuple[float, float] | None = (0, 1), targeted: bool = False, random_start: bool = True,
                 restarts: int = 1, seed: int = 0, loss: Climbed = "cross_entropy", output: str | None = None,
                 input: str | None = None, others: Mapping[str, Any] | None = None, engine: str = "numpy",
                 threads: int | None = None, batch: int = 64, alpha: float | None = None, progress: bool = False) -> None:
        super().__init__(model, eps, norm, bounds, targeted, loss, output, input, others, engine, threads, batch, progress)
        step_size = step_size if alpha is None else alpha
        if steps < 1 or restarts < 1 or not step_size > 0:
            raise InputError(f"steps and restarts are 1 or more and step_size above 0, got {steps}, {restarts}, {step_size!r}",
                             code="option")
        self.step_size, self.steps, self.restarts, self.random_start, self.seed = step_size, steps, restarts, random_start, seed

    def __call__(self, x: Any, labels: Any) -> Array:
        """Return the attacked examples, of the shape of ``x``: per example, one that succeeds, else the one of highest loss."""
        examples, classes = self._checked(x, labels)
        rng = np.random.default_rng(self.seed)
        if self.restarts == 1:
            return self._climb(examples, classes, rng, 0)
        best, merit = examples.copy(), np.full(len(examples), -np.inf)
        for restart in range(self.restarts):
            found = self._climb(examples, classes, rng, restart)
            _, losses, succeeds = self._evaluate(found, classes)
            worth = np.where(succeeds, np.inf, losses)
            better = worth > merit
            best[better], merit[better] = found[better], worth[better]
        return best

    def _climb(self, examples: Array, classes: Array, rng: np.random.Generator, restart: int) -> Array:
        x = self._started(examples, rng) if self.random_start else examples
        with bar(self.progress, f"steps, start {restart + 1} of {self.restarts}", self.steps) as shown:
            for number in range(self.steps):
                step = self._step(self._evaluate(x, classes)[0], self.step_size)
                step += x
                x = self._within(step, examples)
                shown(number + 1, "")
        return x

    def _started(self, examples: Array, rng: np.random.Generator) -> Array:
        """Return a uniformly random point of the ball around each example."""
        noise: Any = rng.uniform(-self.eps, self.eps, examples.shape)
        if self.norm == "l2":
            noise = rng.standard_normal(examples.shape)
            size = examples[0].size if len(examples) else 1
            share = rng.random((len(examples),) + (1,) * (examples.ndim - 1)) ** (1 / size)
            noise = noise / np.maximum(_norms(noise), TINY) * self.eps * share
        return self._within(examples + noise.astype(examples.dtype), examples)


def _clip(a: Array, low: float, high: float) -> None:
    np.maximum(a, low, out=a)
    np.minimum(a, high, out=a)


def _norms(a: Array) -> Array:
    """Return the Euclidean norm of each example, with axes of extent 1 for the others."""
    return np.asarray(np.sqrt(np.sum(np.square(a), axis=tuple(range(1, a.ndim)), keepdims=True, dtype=np.float64)))


def _with_attacked(model: Model, output: str, loss: Climbed) -> Model:
    """Return a model with the loss of each example and their sum as outputs, and the labels as an input."""
    if loss == "cross_entropy":
        made = with_loss(model, "softmax_cross_entropy", output, LABEL, reduction="none", name=EACH)
        graph = made.graph.copy()
        each = find_value(graph, EACH)
    else:
        graph = model.graph.copy()
        each = _margin(graph, find_value(graph, output))
        graph.add_output(each, EACH)
    graph.add_output(Builder(graph, prefix="attack").ReduceSum(each, keepdims=0), LOSS)
    return model.with_graph(graph)


def _margin(graph: Graph, logits: Value) -> Value:
    """Return the largest logit of another class less that of the label, for each example."""
    b = Builder(graph, prefix="attack_margin")
    labels = graph.add_input(LABEL, Type(INT64, logits.shape[:1]))
    places = b.Unsqueeze(labels, [1])
    own = b.Squeeze(b.GatherElements(logits, places, axis=1), [1])
    lowest = b.Expand(b.scalar(-np.inf, logits.type.dtype), b.shape(places))
    others = b.ReduceMax(b.ScatterElements(logits, places, lowest, axis=1), [1], keepdims=0)
    return b.Sub(others, own)


def _check(eps: float, norm: str, bounds: tuple[float, float] | None, loss: str, batch: int) -> None:
    if not eps >= 0:
        raise InputError(f"eps is 0 or more, got {eps!r}", code="option")
    for what, given, known in (("norm", norm, get_args(Norm)), ("loss", loss, get_args(Climbed))):
        if given not in known:
            raise InputError(f"{what} is {' or '.join(map(repr, known))}, got {given!r}", code="option")
    if bounds is not None and not bounds[0] <= bounds[1]:
        raise InputError(f"bounds are the least and the largest value, got {bounds!r}", code="option")
    if batch < 1:
        raise InputError(f"batch is 1 or more, got {batch}", code="option")
