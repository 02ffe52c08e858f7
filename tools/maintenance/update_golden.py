"""``python -m flowgrad.tools.maintenance.update_golden [NAME ...]``: rewrite the expected halves of tests/golden; read the diff."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowgrad.ir.errors import LoadError
from flowgrad.ir.files import write_text
from flowgrad.ir.graph import Graph
from flowgrad.ir.text import format_graph, parse_graph
from flowgrad.passes.manager import PassManager

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden"
SEPARATOR = "# ----\n"


@dataclass(frozen=True)
class Golden:
    """A golden test: comments, the pipeline, the graph before, and the text expected after."""

    path: Path
    head: str
    pipeline: str
    before: str
    expected: str

    def graph(self) -> Graph:
        """Return the graph before the pipeline."""
        return parse_graph(self.before)

    def got(self) -> str:
        """Run the pipeline, verifying after every pass, and return the text after it."""
        return format_graph(PassManager(self.pipeline, verify=True).run(self.graph()).model)


def read_golden(path: Path) -> Golden:
    """Read a golden test: ``# pipeline: ...``, a graph, ``# ----``, a graph. Raises LoadError."""
    before, separator, expected = path.read_text(encoding="utf-8").partition(SEPARATOR)
    lines = before.splitlines(keepends=True)
    pipelines = [n for n, line in enumerate(lines) if line.startswith("# pipeline:")]
    if len(pipelines) != 1:
        raise LoadError(f"{path.name} needs one line '# pipeline: ...'", code="golden", where=str(path))
    at = pipelines[0] + 1
    return Golden(path, "".join(lines[:at]), lines[at - 1].partition(":")[2].strip(), "".join(lines[at:]),
                  expected if separator else "")


def main(names: Sequence[str] | None = None) -> int:
    """Rewrite the golden tests called ``names`` (default: all); print what changed."""
    chosen = list(sys.argv[1:] if names is None else names)
    unknown = sorted(set(chosen) - {path.stem for path in FOLDER.glob("*.ir")})
    if unknown:
        print(f"no golden test {unknown[0]!r} in {FOLDER}", file=sys.stderr)
        return 2
    for path in sorted(FOLDER.glob("*.ir")):
        if chosen and path.stem not in chosen:
            continue
        golden = read_golden(path)
        before = format_graph(golden.graph())
        text = f"{golden.head}{before}{SEPARATOR}{golden.got()}"
        if text != path.read_text(encoding="utf-8"):
            write_text(path, text)
            print(f"updated {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
