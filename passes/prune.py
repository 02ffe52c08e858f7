"""Pruning of subgraphs: outputs, states, scan inputs and captures that nothing needs, with what computes them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.ops.control.loop_layout import Layout, layout_of
from flowgrad.passes.activity import needed_outputs
from flowgrad.passes.edits import sweep


def prune_subgraphs(graph: Graph, node: Node) -> None:
    """Drop outputs, states, scan inputs and captures of an If, Loop or Scan that nothing needs, with what computes them."""
    if "body" in node.subgraphs:
        _prune_loop(graph, node)
    elif node.subgraphs:
        _prune_branches(graph, node)
    for subgraph in node.subgraphs.values():
        sweep(subgraph)
    _prune_captures(graph, node)


def _is_used(graph: Graph, node: Node, index: int) -> bool:
    value = node.optional_output(index)
    return value is not None and (bool(value.uses) or value.name in graph.pinned)


def _prune_branches(graph: Graph, node: Node) -> None:
    count = len(next(iter(node.subgraphs.values())).outputs)
    kept = [k for k in range(count) if _is_used(graph, node, k)]
    if not kept or len(kept) == count:
        return
    for branch in node.subgraphs.values():
        _keep_outputs(branch, set(kept))
    graph.arrange_outputs(node, [node.outputs[k] for k in kept])


def _keep_outputs(subgraph: Graph, kept: Collection[int]) -> None:
    for k, entry in enumerate(subgraph.output_entries):
        if k not in kept:
            subgraph.remove(entry)


def _prune_loop(graph: Graph, node: Node) -> None:
    layout, body = layout_of(node), node.subgraphs["body"]
    formals, inputs, outputs = body.inputs, node.inputs, node.outputs
    first_capture = len(formals) - len(node.captures)
    lead = layout.lead_outputs
    used = {o for o in range(lead, len(body.outputs)) if _is_used(graph, node, o - lead)}
    if not used:
        return
    needed, live = needed_outputs(body, layout.links, {*range(lead), *used})
    states = [k for k, (_, o) in enumerate(layout.links) if o in needed]
    scanned = [k for k in range(layout.scan_inputs) if formals[layout.first_scan_input + k] in live]
    scanned = scanned or [0] * bool(layout.scan_inputs)
    stacked = [o - layout.first_scan_output for o in sorted(needed) if o >= layout.first_scan_output]
    if len(needed) == len(body.outputs) and len(scanned) == layout.scan_inputs:
        return
    _keep_outputs(body, needed)
    sweep(body)
    kept = {*range(layout.lead_formals), *(layout.links[k][0] for k in states),
            *(layout.first_scan_input + k for k in scanned), *range(first_capture, len(formals))}
    for i, formal in enumerate(formals):
        if i not in kept:
            body.remove(formal.producer)
    graph.set_inputs(node, [x for i, x in enumerate(inputs) if i in kept])
    if layout.scan_inputs:
        graph.set_attributes(node, {**node.attributes, **_scan_attributes(node, layout, scanned, stacked)})
    padded = [*outputs, *[None] * (len(needed) + len(outputs))]
    graph.arrange_outputs(node, [padded[o - lead] for o in sorted(needed) if o >= lead])


def _scan_attributes(node: Node, layout: Layout, scanned: Sequence[int], stacked: Sequence[int]) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "scan_input_axes": tuple(layout.input_axis(k) for k in scanned),
        "scan_input_directions": tuple(layout.input_direction(k) for k in scanned),
        "scan_output_axes": tuple(layout.output_axis(k) for k in stacked),
        "scan_output_directions": tuple(layout.output_direction(k) for k in stacked),
    }
    return {"num_scan_inputs": len(scanned), **{name: v for name, v in chosen.items() if name in node.attributes}}


def _prune_captures(graph: Graph, node: Node) -> None:
    """Drop captures that no subgraph uses, and let one stand for all captures of the same value."""
    first: dict[Value, int] = {}
    formals = {name: g.inputs[len(g.inputs) - len(node.captures) :] for name, g in node.subgraphs.items()}
    for c, value in enumerate(node.captures):
        if value not in first and any(formals[name][c].uses for name in formals):
            first[value] = c
    kept = set(first.values())
    if len(kept) == len(node.captures):
        return
    captures = node.captures
    for name, subgraph in node.subgraphs.items():
        for c, formal in enumerate(formals[name]):
            if c not in kept:
                if formal.uses:
                    subgraph.replace_uses(formal, formals[name][first[captures[c]]])
                subgraph.remove(formal.producer)
    graph.set_inputs(node, node.inputs, list(first))
