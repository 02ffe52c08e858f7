"""Scan written as a Loop: each iteration gathers its slices by their index."""

from __future__ import annotations

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.ops.control.loop_layout import Layout, layout_of
from flowgrad.ir.ops.operands import END, inverse_of, moved_first
from flowgrad.ir.types import BOOL, INT64, Type


def scan_as_loop(b: Builder, node: Node) -> tuple[Value | None, ...]:
    """Return the outputs of a Scan from a Loop over its length; scan outputs are turned and moved to their axes."""
    layout = layout_of(node)
    rows = [node.input(layout.states + k) for k in range(layout.scan_inputs)]
    length = b.Squeeze(b.extent(rows[0], layout.input_axis(0)), [0])
    backward = any(layout.input_direction(k) for k in range(layout.scan_inputs))
    last = b.Sub(length, 1) if backward else None
    extra = [last] if last is not None else []
    body = _loop_body(node, layout, rows, last)
    count = len(body.outputs) - 1
    names = ["" if node.optional_output(k) is None else b.graph.unique_name(f"{node.label}_loop{k}")
             for k in range(count)]
    while names and not names[-1]:
        names.pop()
    made = b.add_node("Loop", [length, True, *node.inputs[: layout.states]], outputs=names,
                      captures=[*rows, *extra, *node.captures], subgraphs={"body": body})
    results: list[Value | None] = list(made.outputs)
    for k in range(count - layout.states):
        value = results[layout.states + k] if layout.states + k < len(results) else None
        if value is not None:
            results[layout.states + k] = _placed(b, value, layout.output_axis(k), layout.output_direction(k))
    return tuple(results)


def _loop_body(node: Node, layout: Layout, rows: list[Value], last: Value | None) -> Graph:
    body: Graph = node.subgraphs["body"].copy()
    formals, entries = list(body.inputs), list(body.output_entries)
    inner = Builder(body, prefix="row")
    trip = body.add_input(body.unique_name("trip"), Type(INT64, ()))
    going = body.add_input(body.unique_name("going"), Type(BOOL, ()))
    whole = [body.add_input(body.unique_name(x.name), x.type) for x in rows]
    final = [] if last is None else [body.add_input(body.unique_name(last.name), last.type)]
    for k, x in enumerate(whole):
        index = inner.Sub(final[0], trip) if layout.input_direction(k) else trip
        formal = formals[layout.first_scan_input + k]
        row = inner.Gather(x, index, axis=layout.input_axis(k))
        body.replace_uses(formal, row)
        body.remove(formal.producer)
    first_capture = layout.first_scan_input + layout.scan_inputs
    body.reorder_inputs([trip, going, *formals[: layout.states], *whole, *final, *formals[first_capture:]])
    body.reorder_outputs([body.add_output(inner.Identity(going), "going_out"), *entries])
    return body


def _placed(b: Builder, value: Value, axis: int, backward: int) -> Value:
    """Return stacked slices turned round if ``backward``, their first axis moved to ``axis``."""
    if backward:
        value = b.Slice(value, [-1], [-END], [0], [-1])
    if axis == 0:
        return value
    rank = len(value.shape)
    return b.Transpose(value, perm=inverse_of(moved_first([axis % rank], rank)))
