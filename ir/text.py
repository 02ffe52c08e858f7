"""The text form: what ``print(graph)`` shows. ``parse_graph`` reads it back to an equal graph."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowgrad.ir import OPSET
from flowgrad.ir.canonical import subgraph_names
from flowgrad.ir.graph import (
    BUFFER,
    DEFAULT,
    INITIALIZER,
    INLINE_ELEMENTS,
    LITERAL,
    PARAMETER,
    Array,
    Graph,
    Node,
    Value,
)
from flowgrad.ir.literals import digest_of, elements, float_text, literal
from flowgrad.ir.names import quote, quote_bytes
from flowgrad.ir.parse import parse_graph

__all__ = ["format_graph", "format_node", "large_constants", "parse_graph"]

FROM_COLUMN = 66
"""Where ``from`` stands: fixed, so that a new line never moves its neighbours."""

HEADER_WIDTH = 120
ROLE_WORDS = {PARAMETER: "params", DEFAULT: "defaults", INITIALIZER: "initializers", BUFFER: "buffers", LITERAL: "literals"}

_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")
_PLAIN_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


def format_graph(graph: Graph) -> str:
    """Return the text form of ``graph``.

    Constants of more than 64 elements print as a digest; ``parse_graph`` then needs them as ``data``.
    """
    lines: list[str] = []
    pending: list[Any] = [(graph, "", "")]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            lines.append(item)
            continue
        current, indent, prefix = item
        lines.extend(_header(current, indent, prefix, is_top=current is graph))
        lines.append(indent + "{")
        body: list[Any] = []
        for node in current.nodes():
            body.append(_line(node, current, indent + "  "))
            body += [(node.subgraphs[name], indent + "    ", f"{_word(name)} = ") for name in subgraph_names(node)]
        pending.append(indent + "}")
        pending.extend(reversed(body))
    return "\n".join(lines) + "\n"


def format_node(node: Node) -> str:
    """Return one node as the text form prints it, without its origin and subgraphs."""
    return _statement(node)


def large_constants(graph: Graph) -> dict[str, Array]:
    """Return the constants that ``format_graph`` prints as digests, by digest: the ``data`` of ``parse_graph``."""
    found: dict[str, Array] = {}
    pending = [graph]
    while pending:
        current = pending.pop()
        for value in current.constants:
            data = value.producer.data
            if data is not None and value.name and data.size > INLINE_ELEMENTS:
                found[digest_of(data)] = data
        pending.extend(g for node in current.nodes() for g in node.subgraphs.values())
    return found


# ---- the header -----------------------------------------------------------------------------------------------------------


def _header(graph: Graph, indent: str, prefix: str, is_top: bool) -> list[str]:
    start = f"{indent}{prefix}graph @{_value_word(graph.name)} "
    inner = indent + "    "
    lines = _list(start, [f"%{_value_word(v.name)}: {v.type!r}" for v in graph.inputs], inner)
    lines += _list(f"{inner}-> ", [_output(n) for n in graph.output_entries], inner)
    for role, word in ROLE_WORDS.items():
        held = [v for v in graph.constants if v.producer.role == role and v.name]
        if held:
            lines += _list(f"{inner}{word} ", [_constant(v) for v in held], inner)
    if is_top:
        lines.append(f"{inner}opset {OPSET}")
    if graph.metadata:
        lines.append(f"{inner}metadata {_metadata(graph.metadata)}")
    return lines


def _list(start: str, items: list[str], indent: str) -> list[str]:
    line = f"{start}({', '.join(items)})"
    if len(line) <= HEADER_WIDTH or len(items) < 2:
        return [line]
    return [f"{start}(", *(f"{indent}  {item}," for item in items[:-1]), f"{indent}  {items[-1]}", f"{indent})"]


def _output(entry: Node) -> str:
    value = entry.input(0)
    if value.name and value.name == entry.name:
        return _typed(value)
    return f"%{_value_word(entry.name)} = {_operand(value)}: {value.type!r}"


def _constant(value: Value) -> str:
    data = value.producer.data
    if data is None:
        return _typed(value)
    shown = elements(data) if data.size <= INLINE_ELEMENTS else f"<blake2b:{digest_of(data)}>"
    return f"{_typed(value)} = {shown}"


# ---- nodes ----------------------------------------------------------------------------------------------------------------


def _line(node: Node, graph: Graph, indent: str) -> str:
    text = indent + _statement(node)
    if not node.origin:
        return text
    origin = graph.origins[node.origin]
    names = ", ".join(f"%{_value_word(n)}" for n in origin.names)
    return f"{text.ljust(FROM_COLUMN - 2)}  from {_word(origin.pass_name)}({names})"


def _statement(node: Node) -> str:
    outputs = ", ".join("_" if v is None else _typed(v) for v in node.outputs) or "()"
    text = f"{outputs} = {_word(node.op)}({', '.join(_operand(v) for v in node.inputs)})"
    if node.attributes:
        text += " {" + ", ".join(f"{_word(k)}={_attribute(a)}" for k, a in sorted(node.attributes.items())) + "}"
    if node.captures:
        text += f" captures ({', '.join(_operand(v) for v in node.captures)})"
    if node.name:
        text += f" @{_value_word(node.name)}"
    if node.metadata:
        text += f" metadata {_metadata(node.metadata)}"
    return text


def _typed(value: Value) -> str:
    return f"%{_value_word(value.name)}: {value.type!r}"


def _operand(value: Value | None) -> str:
    if value is None:
        return "_"
    data = value.producer.data
    return literal(data) if not value.name and data is not None else f"%{_value_word(value.name)}"


def _attribute(given: Any) -> str:
    if isinstance(given, np.ndarray):
        return literal(given, explicit=True)
    if isinstance(given, tuple):
        return "[" + ",".join(_scalar(item) for item in given) + "]"
    return _scalar(given)


def _scalar(given: Any) -> str:
    if isinstance(given, float):
        return float_text(given)
    if isinstance(given, str):
        return quote(given)
    return quote_bytes(given) if isinstance(given, bytes) else str(given)


def _metadata(metadata: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{quote(k)}={quote(v)}" for k, v in sorted(metadata.items())) + "}"


def _word(text: str) -> str:
    return text if _PLAIN_WORD.fullmatch(text) else quote(text)


def _value_word(text: str) -> str:
    return text if _PLAIN_VALUE.fullmatch(text) else quote(text)

