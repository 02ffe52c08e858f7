"""What a notebook shows of a graph: a table of inputs and outputs, and what it consists of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape

from flowgrad.ir.errors import safe_line
from flowgrad.ir.graph import Graph, Value

MOST_ROWS = 20
"""Of more inputs, outputs or operators the first ones are shown."""


def html_of(graph: Graph, notes: Sequence[str] = ()) -> str:
    """Return a short description of a graph in HTML. All text from its file is escaped, so that a name is never markup."""
    counts = Counter(node.op for node in graph.nodes()).most_common()
    operators = ", ".join(f"{_safe(op)} {count}" for op, count in counts[:MOST_ROWS]) + _rest(len(counts))
    size = sum(value.producer.data.nbytes for value in graph.constants if value.producer.data is not None)
    rows = [*_rows("input", [(v.name, v) for v in graph.inputs]),
            *_rows("output", [(entry.name, entry.input(0)) for entry in graph.output_entries])]
    listed = "".join(f"<li>{_safe(note)}</li>" for note in notes)
    return (f"<div><b>{_safe(graph.name)}</b>: {len(graph)} nodes, {size:,} bytes of constants"
            f"<table><tr><th></th><th>name</th><th>type</th></tr>{''.join(rows)}</table>"
            f"<div>{operators}</div>{f'<ul>{listed}</ul>' if listed else ''}</div>")


def _rows(kind: str, named: list[tuple[str, Value]]) -> Iterator[str]:
    for name, value in named[:MOST_ROWS]:
        yield f"<tr><td>{kind}</td><td>{_safe(name)}</td><td>{_safe(repr(value.type))}</td></tr>"
    if rest := _rest(len(named)):
        yield f"<tr><td>{kind}</td><td>{rest}</td><td></td></tr>"


def _rest(count: int) -> str:
    return f" and {count - MOST_ROWS} more" if count > MOST_ROWS else ""


def _safe(text: str) -> str:
    return escape(safe_line(text, 200))
