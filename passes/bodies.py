"""Bodies of If, Loop and Scan: their adjoints split into a forward and a backward part, and their tangents."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import NotDifferentiableError
from flowgrad.ir.graph import CONSTANT, INPUT, Graph, Node, Value
from flowgrad.ir.ops.registry import Refusal
from flowgrad.ir.ops.repetition import Layout, layout_of
from flowgrad.ir.ops.reversal import free_output_name
from flowgrad.ir.types import Dim
from flowgrad.passes.adjoint import active_values, adjoint
from flowgrad.passes.edits import is_random, remove_dead
from flowgrad.passes.expand import expand_for_derivative
from flowgrad.passes.tangent import tangent

Link = tuple[int, int]
"""A state: its index among the inputs and among the outputs of a body."""


@dataclass(frozen=True)
class Source:
    """Where the backward part gets a forward value from: an input that it is given again, or an output."""

    is_input: bool
    index: int


@dataclass
class BodyAdjoint:
    """The two halves of a differentiated body.

    ``forward`` has the outputs of the body, then tapes: values that ``backward`` needs. The inputs of ``backward`` are
    the cotangents of the outputs in ``bars``, the values in ``sources``, then the captures in ``captures`` (indices
    among the captures). ``cotangents`` maps input indices of the body to values of ``backward``. ``states`` are the
    states (positions in ``links``) that carry a cotangent.
    """

    forward: Graph
    backward: Graph
    states: list[int]
    bars: list[int]
    sources: list[Source]
    captures: list[int]
    cotangents: dict[int, Value]


@dataclass
class BodyTangent:
    """A body that computes tangents as well: the tangent inputs and outputs by the index of what they belong to."""

    graph: Graph
    inputs: dict[int, Value] = field(default_factory=dict)
    outputs: dict[int, Value] = field(default_factory=dict)


# ---- activity -----------------------------------------------------------------------------------------------------------


def active_inputs(body: Graph, links: Sequence[Link], wanted: Collection[int]) -> set[int]:
    """Return ``wanted`` and the inputs of those states that come to depend differentiably on them."""
    order, inputs, outputs = body.nodes(), body.inputs, body.outputs
    found = set(wanted)
    while True:
        active = active_values(order, [inputs[i] for i in found])
        more = {i for i, o in links if i not in found and outputs[o] in active and inputs[i].type.dtype.is_float}
        if not more:
            return found
        found |= more


def useful_outputs(body: Graph, links: Sequence[Link], inputs: Collection[int], seeded: Collection[int]) -> set[int]:
    """Return ``seeded`` and the outputs of those states that seeded outputs depend on in other iterations."""
    order, formals, outputs = body.nodes(), body.inputs, body.outputs
    active = active_values(order, [formals[i] for i in inputs])
    found = set(seeded)
    while True:
        needed = {outputs[o] for o in found} & active
        for node in reversed(order):
            if any(v in needed for v in node.outputs if v is not None):
                needed.update(v for v in (*node.inputs, *node.captures) if v is not None and v in active)
        more = {o for i, o in links if o not in found and formals[i] in needed}
        if not more:
            return found
        found |= more


def dependent_outputs(node: Node, reached: Collection[Value]) -> set[int]:
    """Return which outputs of an If, Loop or Scan depend, differentiably or not, on the operands in ``reached``."""
    operands = [*node.inputs, *node.captures]
    lead = 1 if node.op == "Loop" else 0
    if any(v in reached for v in operands[: {"If": 1, "Loop": 2}.get(node.op, 0)]):
        return set(range(len(node.outputs)))
    links = layout_of(node).links if node.op in ("Loop", "Scan") else []
    found: set[int] = set()
    for body in node.subgraphs.values():
        shift = len(body.inputs) - len(operands)
        places = {i if i < len(node.inputs) else i + shift for i, v in enumerate(operands) if v in reached}
        found |= _dependent(body, links, places)
    if lead and 0 in found:
        return set(range(len(node.outputs)))
    return {o - lead for o in found}


def _dependent(body: Graph, links: Sequence[Link], places: Collection[int]) -> set[int]:
    order, formals, outputs = body.nodes(), body.inputs, body.outputs
    starts = set(places)
    while True:
        reached = {formals[i] for i in starts}
        for node in order:
            if any(v in reached for v in (*node.inputs, *node.captures) if v is not None):
                reached.update(v for v in node.outputs if v is not None)
        found = {o for o, y in enumerate(outputs) if y in reached}
        more = {i for i, o in links if o in found} - starts
        if not more:
            return found
        starts |= more


# ---- adjoint ------------------------------------------------------------------------------------------------------------


def body_adjoint(
    body: Graph,
    *,
    captures: int,
    wanted: Collection[int],
    seeded: Collection[int],
    links: Sequence[Link] = (),
    given: Collection[int] = (),
    kept: Collection[int] = (),
    fixed_dims: Collection[str] | None = None,
    changing: Collection[str] = (),
) -> BodyAdjoint | Refusal:
    """Return the forward and backward parts of a body with ``captures`` captures, or why there are none.

    ``wanted`` are the inputs that cotangents are asked for, ``seeded`` the outputs that have one. The backward part is
    given the inputs in ``given`` again and can have the outputs in ``kept``; everything else that it needs becomes a
    tape. A body that is repeated has ``fixed_dims``, the names of the dims that are the same in every iteration, and
    ``changing``, those that certainly differ. Its tapes are stacked, so what may change its shape is computed again
    from what does not, and so is what depends on captures alone.
    """
    inputs = active_inputs(body, links, wanted)
    outputs = useful_outputs(body, links, inputs, seeded)
    states = [k for k, (i, o) in enumerate(links) if i in inputs and o in outputs]
    try:
        split = _Split(body, captures, fixed_dims)
        split.differentiate(sorted(inputs), sorted(outputs), [links[k][1] for k in states])
    except NotDifferentiableError as error:
        return Refusal(f"its body is {error}")
    split.find_sources(given, kept)
    reason = split.unstackable(frozenset(changing))
    if reason:
        return Refusal(reason)
    return split.parts(states)


class _Split:
    """The joint graph of a body and its adjoint on the way to being cut in two."""

    def __init__(self, body: Graph, captures: int, fixed_dims: Collection[str] | None) -> None:
        self.joint = body.copy()
        self.formals = self.joint.inputs
        self.outputs = self.joint.outputs
        self.first_capture = len(self.formals) - captures
        self.fixed_dims = None if fixed_dims is None else frozenset(fixed_dims)
        self.repeats = fixed_dims is not None
        self.bars: dict[int, Value] = {}
        self.found: dict[int, Value] = {}
        self.boundary = 0
        self.at_hand: set[Value] = set()
        self.ready: dict[Value, Source] = {}
        self.fixed_nodes: set[Node] = set()
        self.copied: set[Node] = set()
        self.sources: dict[Value, Source] = {}
        self.tapes: list[Value] = []

    def differentiate(self, inputs: Sequence[int], outputs: Sequence[int], states: Collection[int]) -> None:
        """Append the adjoint for ``outputs``; the cotangents of ``states`` are inputs even where nothing uses them."""
        joint = self.joint
        wrt = [self.formals[i] for i in inputs]
        active = active_values(joint.nodes(), wrt)
        chosen = [o for o in outputs if o in states or self.outputs[o] in active]
        expand_for_derivative(joint, wrt, [self.outputs[o] for o in chosen])
        self.boundary = joint._next_key
        for o in chosen:
            y = self.outputs[o]
            self.bars[o] = joint.add_input(joint.unique_name(f"{y.name or 'constant'}_bar"), y.type)
        self.at_hand = {*self.bars.values(), *self.formals[self.first_capture :]}
        seeds = [(self.outputs[o], bar) for o, bar in self.bars.items() if self.outputs[o] in active]
        found = adjoint(joint, seeds, wrt, zero="allow") if seeds else []
        self.found = {i: bar for i, bar in zip(inputs, found, strict=bool(seeds)) if bar is not None}

    def find_sources(self, given: Collection[int], kept: Collection[int]) -> None:
        """Find the forward values that the backward part uses, and where each comes from."""
        for i in given:
            self.ready[self.formals[i]] = Source(True, i)
        for o in sorted(kept, reverse=True):
            self.ready.setdefault(self.outputs[o], Source(False, o))
        crossing, shapes = self._crossing()
        for value in crossing:
            self._need(value)
        for shape in shapes:
            if shape.input(0) in self.sources:
                self.copied.add(shape)
            else:
                self._need(shape.output())

    def _crossing(self) -> tuple[list[Value], list[Node]]:
        """Return the values that cross from the forward to the backward part, and Shape nodes of forward values."""
        self.fixed_nodes = self._invariant_nodes() if self.repeats else set()
        crossing: dict[Value, None] = {}
        shapes: dict[Node, None] = {}
        stack = list(self.found.values())
        seen = set(stack)
        while stack:
            value = stack.pop()
            node = value.producer
            if self._is_at_hand(value):
                continue
            if self._is_forward(value) and not self._is_repeated(value):
                crossing[value] = None
                continue
            if node.op == "Shape" and not self._is_at_hand(node.input(0)) and self._is_forward(node.input(0)):
                shapes[node] = None
                continue
            self.copied.add(node)
            for operand in (*node.inputs, *node.captures):
                if operand is not None and operand not in seen:
                    seen.add(operand)
                    stack.append(operand)
        return list(crossing), list(shapes)

    def _is_at_hand(self, value: Value) -> bool:
        return value.producer.op == CONSTANT or value in self.at_hand

    def _is_forward(self, value: Value) -> bool:
        node = value.producer
        return node.op == INPUT or (node.key < self.boundary and node not in self.fixed_nodes)

    def _is_repeated(self, value: Value) -> bool:
        """True for a forward value whose extents may change between iterations: it is computed again from others."""
        if self.fixed_dims is None or value in self.ready or value.producer.op == INPUT or is_random(value.producer):
            return False
        if value.type.shape is None:
            return True
        return any(isinstance(d, Dim) and not d.names() <= self.fixed_dims for d in value.type.shape)

    def _invariant_nodes(self) -> set[Node]:
        """Return the forward nodes that depend on captures and constants alone, and draw no random numbers."""
        fixed = set(self.formals[self.first_capture :])
        found: set[Node] = set()
        for node in self.joint.nodes():
            operands = [v for v in (*node.inputs, *node.captures) if v is not None]
            is_fixed = node.key < self.boundary and all(v in fixed or v.producer.op == CONSTANT for v in operands)
            if is_fixed and not is_random(node):
                found.add(node)
                fixed.update(v for v in node.outputs if v is not None)
        return found

    def _need(self, value: Value) -> None:
        source = self.ready.get(value)
        if source is None:
            source = Source(False, len(self.outputs) + len(self.tapes))
            self.tapes.append(value)
        self.sources[value] = source

    def unstackable(self, changing: frozenset[str]) -> str:
        """Return why a source cannot be kept for all iterations, or an empty string."""
        for value, source in self.sources.items():
            names = {n for d in value.type.shape or () if not isinstance(d, int) for n in d.names()}
            if not source.is_input and names & changing:
                return (f"%{value.name}: {value.type!r} in its body changes its shape from one iteration to the next, so "
                        "what the backward pass needs cannot be stacked")
        return ""

    def parts(self, states: list[int]) -> BodyAdjoint:
        """Cut the joint graph."""
        backward, inputs, cotangents = self._backward()
        captures = [i for i, v in inputs.items() if i >= self.first_capture and v.uses]
        for i, v in inputs.items():
            if not (i >= self.first_capture and v.uses):
                backward.remove(v.producer)
        order = [*(backward.value(v.name) for v in self.bars.values()), *self.source_inputs,
                 *(inputs[i] for i in captures)]
        backward.reorder_inputs(order)
        return BodyAdjoint(
            self._forward(), backward, states, list(self.bars), list(self.sources.values()),
            [i - self.first_capture for i in captures], cotangents,
        )

    def _backward(self) -> tuple[Graph, dict[int, Value], dict[int, Value]]:
        graph = self.joint.copy()
        graph.name = f"{self.joint.name}_adjoint"
        entries = graph.dag.nodes

        def twin(value: Value) -> Value:
            found: Value = entries[value.producer.key]["entry"].outputs[value.index]
            return found

        for entry in graph.output_entries:
            graph.remove(entry)
        cotangents = {i: twin(v) for i, v in self.found.items()}
        kept = {entries[n.key]["entry"] for n in self.copied}
        self.source_inputs: list[Value] = []
        for value in self.sources:
            old = twin(value)
            new = graph.add_input(graph.unique_name(f"{value.name}_tape"), value.type)
            new.symbolic = old.symbolic
            graph.replace_uses(old, new, only=kept.__contains__)
            cotangents = {i: new if v is old else v for i, v in cotangents.items()}
            self.source_inputs.append(new)
        for i, value in cotangents.items():
            graph.add_output(value, f"{self.formals[i].name}_bar")
        sweep(graph)
        return graph, {i: twin(v) for i, v in enumerate(self.formals)}, cotangents

    def _forward(self) -> Graph:
        graph = self.joint
        for value in self.tapes:
            graph.add_output(value, free_output_name(graph, f"{value.name}_tape"))
        sweep(graph)
        for bar in self.bars.values():
            graph.remove(bar.producer)
        return graph


def sweep(graph: Graph) -> None:
    """Remove all nodes that no output needs, and unused constants; inputs stay."""
    remove_dead(graph, reversed(graph.nodes()))
    for value in graph.constants:
        if not value.uses:
            graph.remove(value.producer)


# ---- tangent ------------------------------------------------------------------------------------------------------------


def body_tangent(body: Graph, dotted: Collection[int], links: Sequence[Link] = ()) -> BodyTangent | Refusal:
    """Return a body that takes tangents of the inputs in ``dotted`` as well, and returns those of its outputs.

    A state that comes to depend on them gets tangents too: zeros where an iteration gives none.
    """
    result = BodyTangent(body.copy())
    graph = result.graph
    formals, outputs = graph.inputs, graph.outputs
    for i in sorted(active_inputs(graph, links, dotted)):
        x = formals[i]
        result.inputs[i] = graph.add_input(graph.unique_name(f"{x.name}_dot"), x.type)
    wanted = [o for o, y in enumerate(outputs) if y.type.dtype.is_float]
    pairs = [(formals[i], x_dot) for i, x_dot in result.inputs.items()]
    try:
        found = tangent(graph, pairs, [outputs[o] for o in wanted])
    except NotDifferentiableError as error:
        return Refusal(f"its body is {error}")
    result.outputs = {o: y_dot for o, y_dot in zip(wanted, found, strict=True) if y_dot is not None}
    b = Builder(graph)
    for i, o in links:
        if i in result.inputs and o not in result.outputs:
            result.outputs[o] = b.zeros_like(outputs[o])
    return result


# ---- pruning --------------------------------------------------------------------------------------------------------------


def prune_subgraphs(graph: Graph, node: Node) -> None:
    """Drop outputs, states, scan inputs and captures of an If, Loop or Scan that nothing needs, with what computes them."""
    if node.op == "If":
        _prune_branches(graph, node)
    elif node.op in ("Loop", "Scan"):
        _prune_repetition(graph, node)
    for subgraph in node.subgraphs.values():
        sweep(subgraph)
    _prune_captures(graph, node)


def _is_used(graph: Graph, node: Node, index: int) -> bool:
    value = node.outputs[index] if index < len(node.outputs) else None
    return value is not None and (bool(value.uses) or value.name in graph.pinned)


def _prune_branches(graph: Graph, node: Node) -> None:
    count = len(node.subgraphs["then_branch"].outputs)
    kept = [k for k in range(count) if _is_used(graph, node, k)]
    if not kept or len(kept) == count:
        return
    for branch in node.subgraphs.values():
        _keep_outputs(branch, kept)
    graph.arrange_outputs(node, [node.outputs[k] for k in kept])


def _keep_outputs(subgraph: Graph, kept: Collection[int]) -> None:
    for k, entry in enumerate(subgraph.output_entries):
        if k not in kept:
            subgraph.remove(entry)


def _prune_repetition(graph: Graph, node: Node) -> None:
    layout, body = layout_of(node), node.subgraphs["body"]
    first_capture = len(body.inputs) - len(node.captures)
    lead = layout.lead_outputs
    used = {o for o in range(lead, len(body.outputs)) if _is_used(graph, node, o - lead)}
    if not used:
        return
    needed, live = _needed_outputs(body, layout.links, {*range(lead), *used})
    states = [k for k, (_, o) in enumerate(layout.links) if o in needed]
    scanned = [k for k in range(layout.scan_inputs) if body.inputs[layout.first_scan_input + k] in live]
    scanned = scanned or [0] * bool(layout.scan_inputs)
    stacked = [o - layout.first_scan_output for o in sorted(needed) if o >= layout.first_scan_output]
    if len(needed) == len(body.outputs) and len(scanned) == layout.scan_inputs:
        return
    formals, inputs, outputs = body.inputs, node.inputs, node.outputs
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


def _needed_outputs(body: Graph, links: Sequence[Link], used: Collection[int]) -> tuple[set[int], set[Value]]:
    """Return the outputs that ``used`` ones need over all iterations, and the values these are computed from."""
    order, formals, outputs = body.nodes(), body.inputs, body.outputs
    needed = set(used)
    while True:
        live = {outputs[o] for o in needed}
        for node in reversed(order):
            if any(v in live for v in node.outputs if v is not None):
                live.update(v for v in (*node.inputs, *node.captures) if v is not None)
        more = {o for i, o in links if o not in needed and formals[i] in live}
        if not more:
            return needed, live
        needed |= more


def _prune_captures(graph: Graph, node: Node) -> None:
    """Drop captures that no subgraph uses, and let one stand for all captures of the same value."""
    first: dict[Value, int] = {}
    formals = {name: g.inputs[len(g.inputs) - len(node.captures) :] for name, g in node.subgraphs.items()}
    kept: list[int] = []
    for c, value in enumerate(node.captures):
        uses = any(formals[name][c].uses for name in formals)
        if uses and value not in first:
            first[value] = c
            kept.append(c)
    if len(kept) == len(node.captures):
        return
    captures = node.captures
    for name, subgraph in node.subgraphs.items():
        for c, formal in enumerate(formals[name]):
            if c not in kept:
                if formal.uses:
                    subgraph.replace_uses(formal, formals[name][first[captures[c]]])
                subgraph.remove(formal.producer)
    graph.set_inputs(node, node.inputs, [captures[c] for c in kept])
