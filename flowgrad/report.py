"""A graph as one page of HTML that needs no network: what goes in and out, a drawing, and every node with where it comes from."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.boundary import guarded
from flowgrad.ir.differences import differences
from flowgrad.ir.errors import safe_line
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.files import write_text
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.text import format_node
from flowgrad.ir.types import dtype_of
from flowgrad.model import Model

MOST_DRAWN = 400
"""Larger graphs are listed, not drawn."""

MOST_LISTED = 20_000
BOX, LAYER = (96, 22), 54

STYLE = """:root{color-scheme:light dark;--line:#8888;--made:#3b82f633;--plain:#8882}
body{font:14px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:1200px;padding:0 1rem}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid var(--line);padding:.15rem .5rem;text-align:left;vertical-align:top}
code{font:12px/1.4 ui-monospace,monospace;overflow-wrap:anywhere}pre{overflow-x:auto}input{font:inherit;width:20rem;max-width:100%}
svg{max-width:100%;height:auto;border:1px solid var(--line)}rect{fill:var(--plain);stroke:var(--line)}.made rect{fill:var(--made)}
svg text{font:11px ui-monospace,monospace;fill:currentColor;text-anchor:middle}path{stroke:var(--line);fill:none}tr:target{background:#fa04}"""

SCRIPT = """const q=document.getElementById('q');q.addEventListener('input',()=>{const w=q.value.toLowerCase();
for(const r of document.querySelectorAll('#nodes tr'))r.hidden=!r.textContent.toLowerCase().includes(w);});"""


@guarded("while a page was made")
def view(model: Model, compare: Model | None = None, path: str | os.PathLike[str] = "report.html",
         values: Mapping[str, Any] | None = None) -> None:
    """Write a page about a model: inputs, outputs, operators, parameters, a drawing (up to 400 nodes), and all nodes.

    With ``compare``, the page begins with what differs from that model. With ``values``, arrays for the inputs, each node says what
    lay between which numbers. Raises SaveError, and as a run does.

    Examples:
        >>> fg.view(model, path="/tmp/report.html", values=batch)
    """
    arrays = {} if values is None else _inner_values(model.graph, values)
    write_text(Path(path), "".join(_page(model, compare, arrays)))


def _inner_values(graph: Graph, feeds: Mapping[str, Any]) -> dict[str, Array]:
    """Return the arrays of all values that nodes make, by name."""
    return evaluate(graph, dict(feeds), fetch=[v for node in graph.nodes() for v in node.results if v.name])


def _page(model: Model, compare: Model | None, arrays: Mapping[str, Array]) -> Iterator[str]:
    graph, nodes = model.graph, list(model.graph.nodes())
    yield (f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{_safe(graph.name)}"
           f"</title><style>{STYLE}</style><h1>{_safe(graph.name)}</h1>")
    counts = ", ".join(f"{_safe(op)} {count}" for op, count in Counter(n.op for n in nodes).most_common())
    yield f"<p>{len(nodes)} nodes: {counts or 'none'}</p>"
    yield from (f"<p>note: {_safe(note)}</p>" for note in model.notes)
    if compare is not None:
        lines = [safe_line(line) for line in differences(compare.graph, graph)]
        yield f"<h2>{len(lines)} differences</h2><pre><code>{escape(chr(10).join(lines[:MOST_LISTED]))}</code></pre>"
    yield "<h2>Inputs, outputs, parameters</h2><table><tr><th></th><th>name</th><th>type</th><th></th></tr>"
    yield from _row_of_infos("input", model.inputs)
    yield from _row_of_infos("output", model.outputs)
    yield from _row_of_infos("parameter", [p for p in model.params if p.included])
    yield "</table>"
    if len(nodes) <= MOST_DRAWN:
        yield f"<h2>Drawing</h2><p>What a pass made is tinted; a box leads to its node.</p>{_drawing(nodes)}"
    yield "<h2>Nodes</h2><p><input id=q placeholder='filter: an operator, a name, a pass' aria-label=filter></p>"
    yield f"<table><thead><tr><th>node</th><th>from</th>{'<th>values</th>' if arrays else ''}</tr></thead><tbody id=nodes>"
    for node in nodes[:MOST_LISTED]:
        yield _row_of_node(graph, node, arrays)
    rest = len(nodes) - MOST_LISTED
    yield f"</tbody></table>{f'<p>and {rest} more</p>' if rest > 0 else ''}<script>{SCRIPT}</script></html>\n"


def _row_of_infos(kind: str, infos: Sequence[Any]) -> Iterator[str]:
    for info in infos:
        shape = "*" if info.shape is None else ",".join(map(str, info.shape))
        yield (f"<tr><td>{kind}</td><td><code>{_safe(info.name)}</code></td><td><code>{_safe(f'{info.dtype}[{shape}]')}</code></td>"
               f"<td>{_safe(info.reason)}</td></tr>")


def _row_of_node(graph: Graph, node: Node, arrays: Mapping[str, Array]) -> str:
    chain, at = [], node.origin
    while at:
        origin = graph.origins[at]
        chain.append(f"{origin.pass_name}({', '.join('%' + n for n in origin.names)})")
        at = origin.parents[0] if origin.parents else 0
    numbers = "; ".join(_numbers(arrays[v.name]) for v in node.results if v.name in arrays)
    shown = f"<td>{_safe(numbers)}</td>" if arrays else ""
    return f"<tr id=n{node.key}><td><code>{_safe(format_node(node))}</code></td><td>{_safe(' ← '.join(chain))}</td>{shown}</tr>"


def _numbers(array: Any) -> str:
    """Return what an array lies between, and what of it is not finite."""
    if not isinstance(array, np.ndarray) or array.dtype == object or not array.size:
        return ""
    wide = array.astype(np.float64) if dtype_of(array.dtype).kind != "complex" else np.abs(array)
    bad = int((~np.isfinite(wide)).sum())
    spread = f"{wide.min():.4g}" if array.size == 1 else f"{wide.min():.4g} to {wide.max():.4g}"
    return f"{spread}{f', {bad} not finite' if bad else ''}"


# ---- the drawing ----------------------------------------------------------------------------------------------------------


def _drawing(nodes: Sequence[Node]) -> str:
    """Return an SVG picture: nodes in layers by the longest way from an input, each below what it reads."""
    layers: dict[Node, int] = {}
    for node in nodes:
        layers[node] = 1 + max((layers[v.producer] for v in node.operands if v.producer in layers), default=-1)
    rows: dict[int, list[Node]] = {}
    for node, layer in layers.items():
        rows.setdefault(layer, []).append(node)
    widest = max((len(row) for row in rows.values()), default=1)
    width, height = widest * (BOX[0] + 12), max(len(rows), 1) * LAYER
    middle: dict[Node, float] = {}
    for layer in sorted(rows):
        row = sorted(rows[layer], key=lambda node: _mean([middle[v.producer] for v in node.operands if v.producer in middle]))
        for index, node in enumerate(row):
            middle[node] = (index + 0.5) * width / len(row)
    edges = "".join(_edge(v, node, middle, layers) for node in nodes for v in node.operands if v.producer in middle)
    boxes = "".join(_box(node, middle[node], layers[node]) for node in nodes)
    return f"<svg width='{width}' height='{height}' viewBox='0 0 {width} {height}' role=img aria-label='the graph'>{edges}{boxes}</svg>"


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def _edge(value: Value, node: Node, middle: Mapping[Node, float], layers: Mapping[Node, int]) -> str:
    x, y = middle[value.producer], layers[value.producer] * LAYER + BOX[1]
    u, v = middle[node], layers[node] * LAYER
    return f"<path d='M{x:.0f} {y}C{x:.0f} {y + 16} {u:.0f} {v - 16} {u:.0f} {v}'/>"


def _box(node: Node, x: float, layer: int) -> str:
    made = " class=made" if node.origin else ""
    return (f"<a href='#n{node.key}'><g{made}><title>{_safe(format_node(node))}</title><rect x='{x - BOX[0] / 2:.0f}' y='{layer * LAYER}' "
            f"width='{BOX[0]}' height='{BOX[1]}' rx=4 /><text x='{x:.0f}' y='{layer * LAYER + 15}'>{_safe(node.op[:13])}</text></g></a>")


def _safe(text: str) -> str:
    return escape(safe_line(text, 400))


