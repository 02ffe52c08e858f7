"""Find the pass, then the single rewrite, that first changes values or gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowgrad.ir.errors import FlowgradError
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.verify import verify
from flowgrad.passes.check import compare
from flowgrad.passes.manager import PassManager
from flowgrad.passes.pipeline import Stage
from flowgrad.passes.rewrite import Applied, Recorder, recording

Judge = Callable[[Graph, Graph, Stage], str]


@dataclass(frozen=True)
class Culprit:
    """The first pass that breaks its promise, and in it the first application that does, with what went wrong.

    ``application`` counts from 1; it is 0, with ``applied`` None, where the pass fails before it applies anything.
    """

    index: int
    stage: Stage
    application: int
    applied: Applied | None
    difference: str
    before: Graph
    after: Graph | None

    def __str__(self) -> str:
        where = f"application {self.application}, {self.applied}" if self.applied else "before any application"
        return f"pass {self.stage} (number {self.index}), {where}: {self.difference}"


def bisect(pipeline: str, model: Any, feeds: Mapping[str, Array] | None = None, judge: Judge | None = None
           ) -> Culprit | None:
    """Return the first pass of ``pipeline`` and its first application that changes values or gradients, else None.

    ``judge(before, after, stage)`` says what is wrong, "" for nothing; by default, what the pass's kind forbids.
    """
    graph = model if isinstance(model, Graph) else model.graph
    decide = judge or (lambda before, after, stage: compare(before, after, stage.pass_.kind, feeds).difference)
    current = graph.copy()
    for index, stage in enumerate(PassManager(pipeline).stages, 1):
        after, recorder, difference = _attempt(current, stage, None, decide)
        if difference:
            return _first_application(index, stage, current, recorder, difference, decide)
        assert after is not None
        current = after
    return None


def _attempt(before: Graph, stage: Stage, limit: int | None, judge: Judge) -> tuple[Graph | None, Recorder, str]:
    after = before.copy()
    recorder = Recorder(limit)
    try:
        with recording(recorder):
            stage.pass_.run(after, **stage.options)
        verify(after)
        return after, recorder, judge(before, after, stage)
    except FlowgradError as error:
        return None, recorder, f"{type(error).__name__}: {error}"


def _first_application(index: int, stage: Stage, before: Graph, recorder: Recorder, difference: str, judge: Judge
                       ) -> Culprit:
    """Search the smallest number of applications that is wrong; 0 applications are right, all of them are wrong."""
    right, wrong = -1, len(recorder.applied)
    after: Graph | None = None
    while wrong - right > 1:
        middle = (right + wrong) // 2
        made, _, found = _attempt(before, stage, middle, judge)
        if found:
            wrong, after, difference = middle, made, found
        else:
            right = middle
    if after is None:
        after, recorder, difference = _attempt(before, stage, wrong, judge)
    applied = recorder.applied[wrong - 1] if wrong else None
    return Culprit(index, stage, wrong, applied, difference, before, after)
