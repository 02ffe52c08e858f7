"""Hooks of the pass manager: printing, dumping, counting, and a reproducer where a pass fails."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flowgrad.ir.errors import safe_text
from flowgrad.ir.files import write_text
from flowgrad.ir.graph import INLINE_ELEMENTS, LITERAL, Graph
from flowgrad.passes.edits import all_graphs
from flowgrad.passes.pipeline import Stage, format_pipeline
from flowgrad.passes.steps import Hook, Step

Writer = Callable[[str], object]


def to_stderr(text: str) -> None:
    """Write a text and a line end to stderr."""
    print(text, file=sys.stderr)


def text_of(graph: Graph) -> str:
    """Return the text form of a graph."""
    from flowgrad.ir.text import format_graph

    return format_graph(graph)


class PrintBefore(Hook):
    """Prints the graph before the passes called ``names``."""

    def __init__(self, names: Sequence[str], write: Writer = to_stderr) -> None:
        self.names = frozenset(names)
        self.write = write

    def before(self, stage: Stage, graph: Graph) -> None:
        """Print the graph."""
        if stage.name in self.names:
            self.write(f"# ---- before {stage} ----\n{text_of(graph)}")


class PrintAfter(Hook):
    """Prints the graph after the passes called ``names`` (None: after all)."""

    def __init__(self, names: Sequence[str] | None = None, write: Writer = to_stderr) -> None:
        self.names = None if names is None else frozenset(names)
        self.write = write

    def after(self, step: Step, graph: Graph, previous: Graph | None) -> str | None:
        """Print the graph."""
        if self.names is None or step.name in self.names:
            self.write(f"{step.header}\n{text_of(graph)}")
        return None


class PrintAfterChange(Hook):
    """Prints the graph after every pass that changed it, with ``diff`` as a unified diff."""

    needs_previous = True

    def __init__(self, diff: bool = False, write: Writer = to_stderr) -> None:
        self.diff = diff
        self.write = write

    def after(self, step: Step, graph: Graph, previous: Graph | None) -> str | None:
        """Print what changed."""
        if step.changed and previous is not None:
            text = text_diff(text_of(previous), text_of(graph)) if self.diff else text_of(graph)
            self.write(f"{step.header}\n{text}")
        return None


def text_diff(before: str, after: str, names: tuple[str, str] = ("before", "after")) -> str:
    """Return the unified diff of two texts."""
    return "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), *names, lineterm=""))


class Dump(Hook):
    """Writes the graph before the first pass and after every pass to ``folder``: ``00-input.ir``, ``01-cse.ir``, ..."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started = False

    def before(self, stage: Stage, graph: Graph) -> None:
        """Write the input graph."""
        if not self.started:
            self.started = True
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "00-input.ir", text_of(graph))

    def after(self, step: Step, graph: Graph, previous: Graph | None) -> str | None:
        """Write the graph."""
        name = re.sub(r"[^A-Za-z0-9_-]", "_", step.name)
        write_text(self.folder / f"{step.index:02}-{name}.ir", f"{step.header}\n{text_of(graph)}")
        return None


class Timing(Hook):
    """Collects the seconds of every pass; ``table()`` shows them, slowest first."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def after(self, step: Step, graph: Graph, previous: Graph | None) -> str | None:
        """Add the time of the pass."""
        self.seconds[step.name] = self.seconds.get(step.name, 0.0) + step.seconds
        return None

    def table(self) -> str:
        """Return one line per pass and the total."""
        total = sum(self.seconds.values())
        lines = [f"{t * 1e3:10.1f} ms  {100 * t / total if total else 0:5.1f} %  {name}"
                 for name, t in sorted(self.seconds.items(), key=lambda item: -item[1])]
        return "\n".join([*lines, f"{total * 1e3:10.1f} ms  100.0 %  total"])


class Statistics(Hook):
    """Counts how often every rule of every pass fired; ``table()`` shows it."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}

    def after(self, step: Step, graph: Graph, previous: Graph | None) -> str | None:
        """Add the counts of the pass."""
        for rule, count in step.applied.items():
            self.counts[step.name, rule] = self.counts.get((step.name, rule), 0) + count
        return None

    def table(self) -> str:
        """Return one line per pass and rule."""
        return "\n".join(f"{count:8}  {name}: {rule}" for (name, rule), count in self.counts.items())


PIPELINE, WITH_DATA = "# pipeline:", "# graph with its data:"
"""How lines of a reproducer begin."""


class Reproducer(Hook):
    """Where a pass fails, writes a file with the graph before it, the rest of the pipeline, and the error.

    A graph whose constants are too large for text goes into a ``.msgpack`` file of the same name beside it.
    """

    needs_previous = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def failed(self, stage: Stage, rest: Sequence[Stage], previous: Graph | None, error: BaseException) -> None:
        """Write the reproducer."""
        if previous is None:
            return
        shown = safe_text(f"{type(error).__name__}: {error}", 2_000).replace("\n", "\n#   ")
        lines = [f"{PIPELINE} {format_pipeline(rest)}", f"# error: {shown}"]
        if _needs_data(previous):
            from flowgrad.ir.pack import save

            data = self.path.with_suffix(".msgpack")
            save(previous, data)
            lines.append(f"{WITH_DATA} {safe_text(data.name)}")
        write_text(self.path, "\n".join([*lines, text_of(previous)]))


def _needs_data(graph: Graph) -> bool:
    return any(v.producer.data is not None and (v.producer.data.size > INLINE_ELEMENTS or v.producer.role != LITERAL)
               for g in all_graphs(graph) for v in g.constants)
