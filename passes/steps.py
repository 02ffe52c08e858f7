"""What a pass did, and what may look at it: steps and hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowgrad.ir.graph import Graph
from flowgrad.passes.pipeline import Stage


@dataclass(frozen=True)
class Step:
    """One pass that ran: what it was given, what it did, how long it took."""

    index: int
    total: int
    stage: Stage
    changed: bool
    seconds: float
    nodes_before: int
    nodes_after: int
    applied: Mapping[str, int]
    misses: Sequence[tuple[str, str, str]] = ()
    note: str = ""

    @property
    def name(self) -> str:
        return self.stage.name

    def __str__(self) -> str:
        done = f"{self.nodes_before} -> {self.nodes_after} nodes" if self.changed else "no change"
        return f"{self.stage} ({self.index}/{self.total}): {done}, {self.seconds * 1e3:.1f} ms"

    @property
    def header(self) -> str:
        """The line that stands above the graph when it is printed."""
        return f"# ---- after {self} ----"


class Hook:
    """Callbacks around passes; a hook overrides what it needs.

    ``needs_previous`` asks for ``previous``, a copy of the graph as it was before the pass.
    """

    needs_previous = False

    def before(self, stage: Stage, graph: Graph) -> None:
        """Look at the graph before a pass."""

    def after(self, step: Step, graph: Graph, previous: Graph | None) -> str | None:
        """Look at the graph after a pass; a text that is returned becomes the note of the step."""
        return None

    def failed(self, stage: Stage, rest: Sequence[Stage], previous: Graph | None, error: BaseException) -> None:
        """Look at a pass that raised; ``rest`` is the pipeline from that pass on."""
