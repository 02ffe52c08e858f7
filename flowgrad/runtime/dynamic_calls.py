"""Calls that are more than a kernel: steps whose extents only the run can tell, and subgraphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flowgrad.ir.evaluate import bind_kernel, fitted, kernel_keywords
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.infer import infer
from flowgrad.ir.limits import Limits, Meter
from flowgrad.ir.ops.control.loop_layout import Subgraph
from flowgrad.ir.types import Type
from flowgrad.runtime.flat_graph import KEYED_ELEMENTS, constant_twin, input_twin
from flowgrad.runtime.specialise import Step, check_tensor

if TYPE_CHECKING:
    from flowgrad.runtime.executor import Executor

Runner = Callable[..., list[Array]]


class Context:
    """What belongs to one run: its random generator, and what it has used of its limits."""

    __slots__ = ("_rng", "marks", "meter", "seed")

    def __init__(self, seed: int | None, limits: Limits) -> None:
        self.seed = seed
        self.meter = Meter(limits)
        self._rng: np.random.Generator | None = None
        self.marks: list[tuple[int, Step | None, Sequence[Any]]] = []

    def mark(self, step: Step | None, *made: Any) -> None:
        """Note when a step of a program that is profiled had ended; None starts the clock."""
        self.marks.append((time.perf_counter_ns(), step, made))

    @property
    def rng(self) -> np.random.Generator:
        """The generator of this run, made at first use."""
        if self._rng is None:
            self._rng = np.random.default_rng(self.seed)
        return self._rng


class SubgraphCalls:
    """Makes the callables that kernels of If, Loop and Scan get for their subgraphs."""

    def __init__(self, make: Callable[[Graph, dict[int, Array]], Executor], limits: Limits) -> None:
        self._make = make
        self.limits = limits

    def binder(self, step: Step) -> Binder:
        """Return what makes the callables of a step from its captured arrays; constant captures are built in."""
        known = {i: v.constant for i, v in enumerate(step.twin.captures) if v.constant is not None}
        executors = {}
        for name, graph in step.record.subgraphs.items():
            formals = len(graph.inputs) - len(step.record.captures)
            executors[name] = self._make(graph, {formals + i: array for i, array in known.items()})
        kept = [i for i in range(len(step.record.captures)) if i not in known]
        return Binder(step.record.subgraphs, executors, kept)


class Binder:
    """Closes the subgraphs of a node over the captures of a run."""

    __slots__ = ("executors", "graphs", "kept")

    def __init__(self, graphs: Mapping[str, Graph], executors: dict[str, Executor], kept: list[int]) -> None:
        self.graphs, self.executors, self.kept = graphs, executors, kept

    def __call__(self, context: Context, captures: Sequence[Array]) -> dict[str, Subgraph]:
        given = tuple(captures[i] for i in self.kept)
        return {name: Subgraph(self.graphs[name], captures, self._runner(executor, context, given), context.meter)
                for name, executor in self.executors.items()}

    def _runner(self, executor: Executor, context: Context, captures: tuple[Array, ...]) -> Runner:
        call, count = executor.call, context.meter.step

        def run(*arrays: Any) -> list[Array]:
            count()
            return call(context, (*arrays, *captures))

        return run


class OpenCall:
    """Runs a step whose extents only the run can tell.

    The type rule runs once more with small operands as constants, so that a tensor beyond the limits is refused
    before it is allocated.
    """

    __slots__ = ("binder", "kernel", "keywords", "limits", "step", "types")

    def __init__(self, step: Step, calls: SubgraphCalls) -> None:
        definition = step.record.definition
        self.step = step
        self.limits = calls.limits
        self.types = [(i, v.type.dtype) for i, v in enumerate(step.twin.outputs) if v is not None]
        self.kernel = bind_kernel(step.twin, definition)
        self.keywords = kernel_keywords(step.twin, definition)
        self.binder = calls.binder(step) if "subgraphs" in definition.special else None

    def __call__(self, context: Context, inputs: Sequence[Array | None], captures: Sequence[Array]) -> list[Array]:
        if self.binder is None:
            self._check(inputs)
        keywords = self.keywords
        if self.binder is not None:
            keywords = {**keywords, "subgraphs": self.binder(context, captures)}
        if "rng" in self.step.record.definition.special:
            keywords = {**keywords, "rng": context.rng}
        results = self.kernel(*inputs, **keywords)
        if not isinstance(results, (tuple, list)):
            results = (results,)
        return [fitted(results[i], dtype) for i, dtype in self.types]

    def _check(self, inputs: Sequence[Array | None]) -> None:
        old = self.step.twin
        node = Node(old.key, old.op)
        node.name, node.attributes = old.name, old.attributes
        node.inputs = tuple(None if a is None or v is None else _known(v, a)
                            for v, a in zip(old.inputs, inputs, strict=True))
        node.outputs = (None,) * len(old.outputs)
        for type_ in infer(node):
            if type_ is not None and type_.is_static:
                check_tensor(type_, self.limits, node)


def _known(value: Value, array: Array) -> Value:
    if value.type.dtype.element is None and array.size <= KEYED_ELEMENTS:
        return constant_twin(value.name, array)
    return input_twin(value.name, Type(value.type.dtype, array.shape))
