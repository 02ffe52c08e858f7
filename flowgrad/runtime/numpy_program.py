"""The program: a graph compiled for execution on NumPy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowgrad.ir.bulk import bulk
from flowgrad.ir.dtypes import given_back
from flowgrad.ir.errors import InputError, ResourceError, suggestion
from flowgrad.ir.feeds import Signature
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.limits import Limits, metered
from flowgrad.ir.ops.registry import Borrowed
from flowgrad.runtime.dynamic_calls import Context
from flowgrad.runtime.executor import Executor
from flowgrad.runtime.flat_graph import FlatGraph
from flowgrad.runtime.profile import Profile, node_events, session_event
from flowgrad.runtime.program import check_threads, packed, unpacked
from flowgrad.runtime.threads import available_threads


@dataclass(frozen=True)
class Plan:
    """What a run on given shapes will need.

    ``peak_bytes`` counts what a run allocates (buffers, outputs, what kernels return), not feeds and constants.
    ``complete`` is False where the extents of some values are known only during the run: those are not counted.
    """

    peak_bytes: int
    arena_bytes: int
    steps: int
    complete: bool


class NumpyProgram:
    """A graph ready to run: immutable, thread-safe, re-entrant, picklable.

    ``threads`` is the number of cores used (default: all); results are the same bits for any number. ``seed`` makes
    every run draw the same random numbers (default: fresh ones each run). Raises LimitError where a run would need
    more than ``limits`` (default: those that the graph was read with).
    """

    engine = "numpy"

    @bulk
    def __init__(self, graph: Graph, threads: int | None = None, limits: Limits | None = None, *,
                 seed: int | None = None) -> None:
        check_threads(threads)
        self.threads = available_threads() if threads is None else threads
        self.limits = graph.limits if limits is None else limits
        self.seed = seed
        self._graph, self._version, self._borrowed = graph, graph.version, Borrowed(graph)
        flat = FlatGraph(graph)
        self._executor = Executor(flat, self.threads, self.limits)
        self._signature = Signature(graph)
        self._names = list(self._signature.inputs)
        self._output_names = [name for name, _ in flat.outputs]
        self._containers = [name for name, number in flat.outputs if flat.types[number].dtype.element is not None]
        self._checked_shapes: set[tuple[Any, ...]] = set()

    @property
    def input_names(self) -> list[str]:
        """The names that every run has to feed."""
        return list(self._names)

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in order."""
        return list(self._output_names)

    @property
    def specialisations(self) -> int:
        """How often this program was specialised to new shapes."""
        return self._executor.misses

    def run(self, feeds: Mapping[str, Any], *, seed: int | None = None) -> dict[str, Array]:
        """Run on ``feeds`` (every input; parameters if they are to differ) and return the outputs by name.

        Outputs are fresh arrays. Raises InputError for a wrong name, dtype or shape, RunError where a node fails,
        LimitError and ResourceError for too much memory.
        """
        try:
            self._borrowed.check()
            context = Context(self.seed if seed is None else seed, self.limits)
            return self._outputs(metered(context.meter, self._executor.run, context, self._arrays(feeds)))
        except MemoryError as error:
            raise ResourceError(f"out of memory: {error}", code="memory") from error

    def _outputs(self, results: Sequence[Array]) -> dict[str, Array]:
        outputs: dict[str, Any] = dict(zip(self._output_names, results, strict=True))
        for name in self._containers:
            outputs[name] = given_back(outputs[name])
        return outputs

    def profile(self, feeds: Mapping[str, Any], *, runs: int = 1, seed: int | None = None) -> Profile:
        """Run ``runs`` times with a clock at every node, and return the outputs and what took how long.

        The clock adds about 0.2 us a node. Raises as ``run`` does.
        """
        executor = Executor(self._executor.flat, self.threads, self.limits, marked=True)
        arrays, events, results = self._arrays(feeds), [], []
        started = time.perf_counter_ns()
        executor.specialisation(arrays[: len(executor.given)])
        events.append(session_event("specialise", started, time.perf_counter_ns()))
        for _ in range(runs):
            context = Context(self.seed if seed is None else seed, self.limits)
            started = time.perf_counter_ns()
            results = metered(context.meter, executor.run, context, arrays)
            events += [session_event("model_run", started, time.perf_counter_ns()), *node_events(context.marks)]
        return Profile(self._outputs(results), events)

    def plan(self, shapes: Mapping[str, Sequence[int]]) -> Plan:
        """Return what a run on inputs of these shapes will need, without running.

        Inputs of known shape may be left out. Raises InputError for names or shapes that do not fit.
        """
        inputs = self._signature.inputs
        full: dict[str, tuple[int, ...]] = {}
        for name in shapes:
            if name not in inputs:
                raise InputError(f"no input {name!r}{suggestion(name, inputs)}", code="name")
        for name, type_ in inputs.items():
            if name not in shapes and not type_.is_static:
                raise InputError(f"the shape of input {name!r} is needed: {type_!r}", code="missing")
            full[name] = tuple(int(n) for n in shapes[name]) if name in shapes else type_.static_shape
        self._signature.check_shapes(full)
        shapes_given = list(full.values())
        first = (self._executor.kept(shapes_given) or self._executor.specialise(shapes_given, [None] * len(full))).first
        layout = first.layout
        return Plan(layout.peak_bytes, layout.arena_bytes, len(first.steps), not first.open)

    # ---- feeds ------------------------------------------------------------------------------------------------------

    def _arrays(self, feeds: Mapping[str, Any]) -> list[Array]:
        """Return the arrays of inputs and parameters in the order of the executor."""
        executor = self._executor
        if len(feeds) == len(self._names):
            arrays = [feeds.get(name) for name in self._names]
            for array, dtype in zip(arrays, executor.dtypes, strict=True):
                if array.__class__ is not np.ndarray or array.dtype is not dtype:
                    break
            else:
                if tuple([a.shape for a in arrays]) in self._checked_shapes:  # type: ignore[union-attr]
                    return arrays + executor.defaults  # type: ignore[return-value]
        return self._checked(feeds)

    def _checked(self, feeds: Mapping[str, Any]) -> list[Array]:
        arrays = self._signature.checked(feeds)
        inputs = [arrays[name] for name in self._names]
        if len(self._checked_shapes) > 1000:
            self._checked_shapes = set()
        if not any(dtype.hasobject for dtype in self._executor.dtypes):  # texts: the next items may be none
            self._checked_shapes.add(tuple(a.shape for a in inputs))
        defaults = zip(self._signature.parameters, self._executor.defaults, strict=True)
        return inputs + [arrays.get(name, default) for name, default in defaults]

    # ---- pickling -----------------------------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_bytes, (packed(self._graph, self._version), self.threads, self.limits, self.seed)


def _from_bytes(data: bytes, threads: int, limits: Limits, seed: int | None) -> NumpyProgram:
    return NumpyProgram(unpacked(data), threads, limits, seed=seed)
