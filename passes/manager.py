"""The pass manager: runs a pipeline on a copy, verifies, times and counts, and calls hooks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flowgrad.ir.boundary import guarded
from flowgrad.ir.bulk import bulk
from flowgrad.ir.errors import FlowgradError, InputError, PassError
from flowgrad.ir.graph import Graph
from flowgrad.ir.limits import in_time
from flowgrad.ir.verify import verify
from flowgrad.passes.edits import fingerprint
from flowgrad.passes.pipeline import Stage, format_pipeline, parse_pipeline
from flowgrad.passes.registry import find_pass
from flowgrad.passes.rewrite import Recorder, recording
from flowgrad.passes.steps import Hook, Step

DEFAULT_PIPELINE = "stabilize,canonicalize,fold,cse,simplify,canonicalize,dce"
"""What ``optimized()`` runs."""

PLAIN_PIPELINE = DEFAULT_PIPELINE.removeprefix("stabilize,")
"""The same for a model that is to stay as it was written: nothing is repaired."""

RUNNING_PIPELINE = "fold{shared=true},dce"
"""What a graph that will only be run gets in addition."""

LEVELS = {0: "", 1: "canonicalize,fold,cse,dce", 2: DEFAULT_PIPELINE}
"""The pipelines of -O0, -O1 and -O2."""


@dataclass(frozen=True)
class PassResult:
    """What a pipeline made: the model (or graph) and one step per pass."""

    model: Any
    steps: tuple[Step, ...]

    @property
    def report(self) -> str:
        """One line per pass, with the rules that fired most."""
        return "\n".join(_report_line(step) for step in self.steps)

    @property
    def changed(self) -> bool:
        return any(step.changed for step in self.steps)


def _report_line(step: Step) -> str:
    rules = ", ".join(f"{name} {count}" for name, count in list(step.applied.items())[:6])
    line = f"{str(step):72} {rules}".rstrip()
    return f"{line}  [{step.note}]" if step.note else line


@dataclass
class PassManager:
    """Runs a pipeline (a string, or a list of them) on a copy of a model or graph.

    ``verify`` checks the graph before and after every pass (default: if FLOWGRAD_VERIFY is set), ``check`` holds every
    pass to its kind on seeded inputs, values and gradients; ``verbose`` records why rules did not fire. Raises
    InputError for an unknown pass or option.

    Examples:
        >>> result = fg.PassManager("fold,cse,dce").run(fg.grad(model, of="loss", wrt="params"))
        >>> [step.name for step in result.steps]
        ['fold', 'cse', 'dce']
    """

    pipeline: str | Iterable[str] = DEFAULT_PIPELINE
    hooks: Sequence[Hook] = ()
    verify: bool | None = None
    check: bool = False
    verbose: bool = False
    stages: list[Stage] = field(init=False)

    def __post_init__(self) -> None:
        self.stages = parse_pipeline(self.pipeline)
        if self.verify is None:
            self.verify = os.environ.get("FLOWGRAD_VERIFY", "0") not in ("", "0")

    def __str__(self) -> str:
        return format_pipeline(self.stages)

    @bulk
    @guarded("while passes ran")
    def run(self, model: Any, *, in_place: bool = False) -> PassResult:
        """Run the pipeline; the caller's graph stays as it is, unless ``in_place``.

        Raises PassError where a pass crashes, breaks the graph or its promise, after the hooks have seen it.
        """
        source = model if isinstance(model, Graph) else getattr(model, "graph", None)
        if not isinstance(source, Graph):
            raise InputError(f"passes run on a Model or a Graph, not on {type(model).__name__}", code="type")
        return in_time(source.limits, self._run, source, model, in_place)

    def _run(self, source: Graph, model: Any, in_place: bool) -> PassResult:
        graph = source if in_place else source.copy()
        hooks = [*self.hooks, *self._checks()]
        if self.verify:
            _verify(graph, "before the first pass")
        steps: list[Step] = []
        for index, stage in enumerate(self.stages):
            steps.append(self._run_stage(index, stage, graph, hooks))
        return PassResult(graph if source is model else model.with_graph(graph), tuple(steps))

    def _checks(self) -> list[Hook]:
        if not self.check:
            return []
        from flowgrad.passes.check import CheckKind  # loads what differentiates

        return [CheckKind()]

    def _run_stage(self, index: int, stage: Stage, graph: Graph, hooks: Sequence[Hook]) -> Step:
        for hook in hooks:
            hook.before(stage, graph)
        previous = graph.copy() if any(h.needs_previous for h in hooks) else None
        versions, nodes = fingerprint(graph), len(graph)
        recorder = Recorder(verbose=self.verbose)
        started = time.perf_counter()
        try:
            with recording(recorder):
                stage.pass_.run(graph, **stage.options)
            seconds = time.perf_counter() - started
            if self.verify:
                _verify(graph, f"after {stage}")
            step = Step(index + 1, len(self.stages), stage, fingerprint(graph) != versions, seconds, nodes, len(graph),
                        recorder.counts(), tuple(recorder.misses))
            notes = [note for hook in hooks if (note := hook.after(step, graph, previous))]
        except Exception as error:
            if isinstance(error, (MemoryError, RecursionError)):  # no fault of the pass
                raise
            for hook in hooks:
                hook.failed(stage, self.stages[index:], previous, error)
            if isinstance(error, FlowgradError):
                raise
            raise PassError(f"pass {stage} crashed ({type(error).__name__}: {error}); see --reproducer",
                            code="crash") from error
        return replace(step, note="; ".join(notes))


def _verify(graph: Graph, when: str) -> None:
    try:
        verify(graph)
    except FlowgradError as error:
        raise PassError(f"the graph is not valid {when}: {error}", code="verify", where=error.where) from error


def run_pass(name: str, graph: Graph, **options: Any) -> None:
    """Run one pass on ``graph`` itself. Raises InputError for an unknown pass or option."""
    find_pass(name).run(graph, **options)
