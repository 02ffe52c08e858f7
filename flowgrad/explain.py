"""Explanations of classifiers by gradients, in the call shapes of Captum: ``Saliency(model).attribute(x, target=3)``.

A target is a class for all examples, or one per example. What is explained is the entry of ``output`` at the target
along the last axis (default: the only float output; of a model with one number per example, without target, that).
Every method takes ``engine``, ``threads``, ``batch``, the largest number of examples that run at once, and ``progress``, which
shows a bar on stderr where many runs make an attribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from flowgrad.input_gradient import InputGradient, as_input, the_input
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Array
from flowgrad.model import Model
from flowgrad.passes.selection import Pick, find_value, only_float_output
from flowgrad.progress import bar
from flowgrad.transforms.editing import guided, override_adjoint

TARGET = "attribution_target"
"""The input that holds the classes, if its name is free."""


__all__ = ["GuidedBackprop", "InputXGradient", "IntegratedGradients", "LayerConductance", "LayerGradCam", "Saliency", "SmoothGrad"]


def __dir__() -> list[str]:
    return __all__


class Method(Protocol):
    """What attributes the output to the elements of an input."""

    def attribute(self, x: Any, target: Any = None) -> Array:
        """Return an array of the shape of ``x``."""


class _Explained:
    """A model prepared once: the scalar that is explained, and its gradient by an input or (``layer``) an inner value."""

    def __init__(self, model: Model, output: str | None = None, input: str | None = None, *, others: Mapping[str, Any] | None = None,
                 engine: str = "numpy", threads: int | None = None, batch: int | None = None, progress: bool = False,
                 layer: str = "") -> None:
        self.model, self.input = model, the_input(model, input)
        self.output, value = only_float_output(model.graph, output, "an explanation")
        self.others = {name: np.asarray(a) for name, a in (others or {}).items()}
        self.batch, self.progress = batch, progress
        self.picks = value.type.rank is None or value.type.rank > 1
        explained = model if self.picks else _summed(model, self.output)
        self._made = InputGradient(explained, Pick(self.output, TARGET) if self.picks else SUM, self.input, layer,
                                   keep=(layer,) if layer else (), by_example=(TARGET,), engine=engine, threads=threads)

    def _feeds(self, x: Array, target: Any) -> dict[str, Array]:
        feeds = {self.input: x, **self.others}
        if not self.picks:
            if target is not None:
                raise InputError(f"{self.output!r} has one number per example: there is no class to pick", code="target")
            return feeds
        if target is None:
            raise InputError(f"target= must say which entry of {self.output!r} is explained: a class, or one per example",
                             code="target")
        classes = np.asarray(target, np.int64)
        extent = (find_value(self.model.graph, self.output).type.shape or (None,))[-1]
        if isinstance(extent, int) and classes.size and not (classes.min() >= 0 and classes.max() < extent):
            raise InputError(f"target={target!r} lies outside 0..{extent - 1}, the entries of {self.output!r}", code="target")
        wanted = self._made.model.graph.value(TARGET).type.rank or 1
        if classes.ndim == 0:
            classes = np.full((len(x),) * (wanted > 0) + (1,) * (wanted - 1), classes)
        return {**feeds, TARGET: classes}

    def gradients(self, x: Any, target: Any) -> tuple[Array, Array]:
        """Return the examples in the dtype of the input, and the gradients by them."""
        examples = as_input(self.model, self.input, x)
        made = self._made
        return examples, made(self._feeds(examples, target), self.batch)[made.gradient]


SUM = "attribution_sum"


def _summed(model: Model, output: str) -> Model:
    """Return a model with one more output: the sum over all examples of a number that each has."""
    graph = model.graph.copy()
    graph.add_output(Builder(graph, prefix=output).ReduceSum(find_value(graph, output), keepdims=0), SUM)
    return model.with_graph(graph)


class Saliency(_Explained):
    """The absolute value of the gradient (with ``absolute=False``, the gradient).

    Examples:
        >>> saliency = fg.explain.Saliency(model, output="logits", others={"target": batch["target"]})
        >>> saliency.attribute(batch["x"], target=2).shape
        (2, 4)
    """

    def attribute(self, x: Any, target: Any = None, *, absolute: bool = True) -> Array:
        """Return |dy_t/dx|, of the shape of ``x``."""
        gradient = self.gradients(x, target)[1]
        return np.abs(gradient) if absolute else gradient


class InputXGradient(_Explained):
    """Each element times the derivative by it.

    Examples:
        >>> method = fg.explain.InputXGradient(fg.extract(model, outputs="logits"))
        >>> method.attribute(batch["x"], target=[0, 2]).shape
        (2, 4)
    """

    def attribute(self, x: Any, target: Any = None) -> Array:
        """Return x dy_t/dx, of the shape of ``x``."""
        examples, gradient = self.gradients(x, target)
        return np.asarray(examples * gradient)


class IntegratedGradients(_Explained):
    """Gradients along the straight line from a baseline to the example, averaged, times the difference.

    Examples:
        >>> method = fg.explain.IntegratedGradients(fg.extract(model, outputs="logits"))
        >>> shares = method.attribute(batch["x"], target=0, n_steps=20)
        >>> bool(np.abs(method.convergence_delta(shares, batch["x"], target=0)).max() < 1e-3)
        True
    """

    def attribute(self, x: Any, target: Any = None, baselines: Any = 0, *, n_steps: int = 50,
                  multiply_by_inputs: bool = True) -> Array:
        """Return (x - b) times the integral of dy_t/dx along b + a (x - b), a from 0 to 1, by Gauss-Legendre quadrature.

        ``baselines`` broadcasts to ``x``. The sum over the elements of an example is y_t(x) - y_t(b), up to quadrature.
        """
        if n_steps < 1:
            raise InputError(f"n_steps is 1 or more, got {n_steps}", code="option")
        examples = as_input(self.model, self.input, x)
        start = np.broadcast_to(as_input(self.model, self.input, baselines), examples.shape)
        nodes, weights = np.polynomial.legendre.leggauss(n_steps)
        total = np.zeros(examples.shape, np.float64)
        with bar(self.progress, "integrated gradients", n_steps) as shown:
            for step, (place, weight) in enumerate(zip((1 + nodes) / 2, weights / 2, strict=True)):
                point = start + examples.dtype.type(place) * (examples - start)
                total += weight * self.gradients(point, target)[1]
                shown(step + 1, "")
        mean = total.astype(examples.dtype)
        return np.asarray((examples - start) * mean) if multiply_by_inputs else mean

    def convergence_delta(self, attributions: Any, x: Any, target: Any = None, baselines: Any = 0) -> Array:
        """Return by how much the sum of each example's attributions misses y_t(x) - y_t(b)."""
        examples = as_input(self.model, self.input, x)
        start = np.broadcast_to(as_input(self.model, self.input, baselines), examples.shape)
        values = [np.array([float(self._value(array[i : i + 1], target, i)) for i in range(len(examples))])
                  for array in (examples, start)]
        return np.asarray(np.asarray(attributions).reshape(len(examples), -1).sum(1) - (values[0] - values[1]))

    def _value(self, x: Array, target: Any, index: int) -> Array:
        one = target if np.ndim(target) == 0 else np.asarray(target)[index : index + 1]
        return self._made(self._feeds(x, one), self.batch)[self._made.value]


class GuidedBackprop(_Explained):
    """The gradient, with only positive cotangents passing each Relu.

    Examples:
        >>> method = fg.explain.GuidedBackprop(fg.load("docs/data/shapes.onnx"))
        >>> method.attribute(np.zeros((1, 1, 16, 16), np.float32), target=1).shape
        (1, 1, 16, 16)
    """

    def __init__(self, model: Model, *arguments: Any, **keywords: Any) -> None:
        super().__init__(override_adjoint(model, guided, op="Relu"), *arguments, **keywords)

    def attribute(self, x: Any, target: Any = None) -> Array:
        """Return the guided gradient, of the shape of ``x``."""
        return self.gradients(x, target)[1]


class LayerGradCam(_Explained):
    """Which places of a layer of feature maps speak for the target: the maps, weighted by their mean derivatives.

    Examples:
        >>> method = fg.explain.LayerGradCam(fg.load("docs/data/shapes.onnx"), layer="maps")
        >>> method.attribute(np.zeros((1, 1, 16, 16), np.float32), target=1).shape
        (1, 1, 8, 8)
    """

    def __init__(self, model: Model, layer: str, output: str | None = None, input: str | None = None, **keywords: Any) -> None:
        self.layer = layer
        shape = find_value(model.graph, layer).type.shape
        if shape is not None and len(shape) < 3:
            raise InputError(f"{layer!r} has shape {list(shape)}: a layer of feature maps has examples, channels, and places",
                             code="layer")
        super().__init__(model, output, input, layer=layer, **keywords)

    def attribute(self, x: Any, target: Any = None, *, relu_attributions: bool = False) -> Array:
        """Return sum_c mean_places(dy_t/da_c) a_c for each place of the layer a: [N, 1, ...]."""
        examples = as_input(self.model, self.input, x)
        result = self._made(self._feeds(examples, target), self.batch)
        gradient, maps = result[self._made.gradient], result[self.layer]
        places = tuple(range(2, maps.ndim))
        found = (gradient.mean(places, keepdims=True) * maps).sum(1, keepdims=True)
        return np.asarray(np.maximum(found, 0) if relu_attributions else found)


class LayerConductance(_Explained):
    """How much of what the output rises by, on the line from a baseline to the example, goes through each element of a layer.

    Examples:
        >>> method = fg.explain.LayerConductance(fg.extract(model, outputs="logits"), "hidden")
        >>> method.attribute(batch["x"], target=[0, 2], n_steps=20).shape
        (2, 8)
    """

    def __init__(self, model: Model, layer: str, output: str | None = None, input: str | None = None, **keywords: Any) -> None:
        self.layer = layer
        super().__init__(model, output, input, layer=layer, **keywords)

    def attribute(self, x: Any, target: Any = None, baselines: Any = 0, *, n_steps: int = 50) -> Array:
        """Return the sum of dy_t/da times what the layer a rises by from each point to the next, of the shape of the layer.

        The ``n_steps`` + 1 points are those of Gauss-Legendre quadrature, as Captum takes them; a derivative is that at the first
        of two. ``baselines`` broadcasts to ``x``.
        """
        if n_steps < 1:
            raise InputError(f"n_steps is 1 or more, got {n_steps}", code="option")
        examples = as_input(self.model, self.input, x)
        start = np.broadcast_to(as_input(self.model, self.input, baselines), examples.shape)
        before: dict[str, Array] = {}
        total: Any = 0.0
        with bar(self.progress, "layer conductance", n_steps + 1) as shown:
            for step, place in enumerate((1 + np.polynomial.legendre.leggauss(n_steps + 1)[0]) / 2):
                point = start + examples.dtype.type(place) * (examples - start)
                here = self._made(self._feeds(point, target), self.batch)
                if before:
                    total = total + (here[self.layer] - before[self.layer]).astype(np.float64) * before[self._made.gradient]
                before = here
                shown(step + 1, "")
        return np.asarray(total, here[self.layer].dtype)


class SmoothGrad:
    """Any method, averaged over noisy copies of the example.

    Examples:
        >>> method = fg.explain.SmoothGrad(fg.explain.Saliency(fg.extract(model, outputs="logits")))
        >>> method.attribute(batch["x"], target=0, nt_samples=3, stdevs=0.1).shape
        (2, 4)
    """

    def __init__(self, method: Method, *, progress: bool = False) -> None:
        self.method, self.progress = method, progress

    def attribute(self, x: Any, target: Any = None, *, nt_samples: int = 5, stdevs: float = 1.0, seed: int = 0,
                  **keywords: Any) -> Array:
        """Return the mean of the attributions of ``x`` + ``stdevs`` times normal noise, over ``nt_samples`` draws."""
        if nt_samples < 1:
            raise InputError(f"nt_samples is 1 or more, got {nt_samples}", code="option")
        rng = np.random.default_rng(seed)
        array = np.asarray(x)
        total = np.zeros(array.shape, np.float64)
        with bar(self.progress, "samples", nt_samples) as shown:
            for sample in range(nt_samples):
                noisy = array + (stdevs * rng.standard_normal(array.shape)).astype(array.dtype)
                total += self.method.attribute(noisy, target, **keywords)
                shown(sample + 1, "")
        return (total / nt_samples).astype(array.dtype)
