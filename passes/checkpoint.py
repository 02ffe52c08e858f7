"""The checkpoint pass: values of the forward part are computed again where the backward part needs them, not kept until then.

The forward part is cut into segments. What crosses a cut is kept; the rest of a segment is computed a second time when
the backward part comes to it. The copies read what is kept through ``After``, whose events are all that the backward part
computed up to then: so no order of the graph, ours or another runtime's, computes them earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import CONSTANT, Graph, Node, Value
from flowgrad.ir.reach import needed_nodes
from flowgrad.passes.dce import dce
from flowgrad.passes.registry import pass_
from flowgrad.passes.segments import (
    Cutter,
    Keeping,
    Parts,
    best_cuts,
    cuts_after,
    made_by_adjoint,
    nominal_bytes,
    record,
    split,
    tangents_beside,
)
from flowgrad.passes.selection import find_value

RECOMPUTE = "recompute"
"""The metadata key of a node that computes again what the forward part computed before: the segment it belongs to."""

NUMBERS = ("float", "int", "uint", "bool")
"""The kinds of tensors that can be waited for in any runtime."""


@pass_("checkpoint", kind="exact")
def checkpoint_pass(graph: Graph, *, keep: tuple[str, ...] = ()) -> None:
    """Recompute values of the forward part for the backward part instead of keeping them: all but about sqrt(n), or ``keep``.

    A graph that the adjoint pass has not extended stays as it is, and so does one that computes values again already.
    """
    if any(RECOMPUTE in node.metadata for node in graph.nodes()):
        return
    parts = parts_of(graph)
    if not parts.backward:
        return
    tape = record(graph, parts, nominal_bytes)
    cuts = cuts_after(tape, named(graph, parts, keep)) if keep else best_cuts(tape)
    recompute(graph, parts, Cutter(tape).keeping(cuts))


def parts_of(graph: Graph, is_backward: Callable[[Node], bool] | None = None) -> Parts:
    """Return the forward and the backward part of what the outputs need, and put the graph in their order.

    ``is_backward`` tells nodes of the backward part, by default by their origins.
    """
    order = graph.nodes()
    parts = split(needed_nodes(order, graph.outputs), is_backward or made_by_adjoint(graph))
    if parts.backward:
        parts.forward = tangents_beside(graph, parts.forward)
        ordered = {node.key for node in (*parts.forward, *parts.backward)}
        graph.reorder([*parts.forward, *parts.backward, *(n for n in order if n.key not in ordered)])
    return parts


def named(graph: Graph, parts: Parts, names: Sequence[str]) -> list[Value]:
    """Return the values of the forward part called ``names``. Raises InputError for others."""
    forward = {node.key for node in parts.forward}
    found = [find_value(graph, name) for name in names]
    for name, value in zip(names, found, strict=True):
        if value.producer.key not in forward:
            raise InputError(f"{name!r} is not computed in the forward part, so there is nothing to keep", code="name")
    return found


def recompute(graph: Graph, parts: Parts, keeping: Keeping) -> None:
    """Let the backward part use copies of all values of the forward part that are not kept, segment by segment."""
    _Copier(graph, _Phases(parts, keeping)).run()
    dce(graph)


# ---- when the backward part comes to what --------------------------------------------------------------------------------


class _Phases:
    """The phase of each node of the backward part: the segment that it works on; they go from the last to the first.

    A node belongs to the lowest segment of what it depends on. One that depends on kept values alone is delayed to the phase
    of its first user: what it makes would be held until then.
    """

    def __init__(self, parts: Parts, keeping: Keeping) -> None:
        self.parts, self.keeping = parts, keeping
        self.late = {node.key for node in parts.backward}
        used = (self._segment(v) for node in parts.backward for v in node.operands)
        self.first = max((s for s in used if s is not None), default=-1)
        self.phase: dict[int, int] = {}
        self.delayed: list[Node] = []
        for node in parts.backward:
            found = [p for v in node.operands if (p := self._anchor(v)) is not None]
            if found:
                self.phase[node.key] = min(found)
        for node in reversed(parts.backward):
            if node.key not in self.phase:
                users = [self.phase[u.key] for v in node.results for u in v.users if u.key in self.phase]
                self.phase[node.key] = max(users, default=self.first)
                self.delayed.append(node)

    def _segment(self, value: Value) -> int | None:
        return None if value in self.keeping.kept else self.keeping.segment.get(value.producer.key)

    def _anchor(self, value: Value) -> int | None:
        key = value.producer.key
        if key in self.late:
            return self.phase.get(key)
        return self.first if self.keeping.segment.get(key) == self.first else self._segment(value)

    def recomputed(self, value: Value) -> int | None:
        """Return the segment that is computed again for ``value``; None if it is there."""
        segment = self._segment(value)
        return None if segment == self.first else segment

    def events(self) -> dict[int, list[Value]]:
        """Return what each phase computes last: a result of every node that has no users in the phase."""
        by_phase: dict[int, list[Value]] = {}
        for node in self.parts.backward:
            mine = self.phase[node.key]
            if any(self.phase.get(u.key) == mine for v in node.results for u in v.users):
                continue
            result = next((v for v in node.results if v.uses and v.type.dtype.kind in NUMBERS), None)
            if result is not None:
                by_phase.setdefault(mine, []).append(result)
        return by_phase


class _Copier:
    """Makes the copies, one phase after the other."""

    def __init__(self, graph: Graph, phases: _Phases) -> None:
        self.graph, self.phases = graph, phases
        self.keeping = phases.keeping
        self.copies: dict[Value, Value] = {}
        self.gated: dict[Value, Value] = {}
        self.gate: Value | None = None
        self.pending: list[Value] = []

    def run(self) -> None:
        wanted, users = self._wanted()
        events = self.phases.events()
        delayed: dict[int, list[Node]] = {}
        for node in self.phases.delayed:
            delayed.setdefault(self.phases.phase[node.key], []).append(node)
        for phase in range(self.phases.first, -1, -1):
            if phase < self.phases.first:
                self.gated, self.gate = {}, None
                for node in wanted.get(phase, ()):
                    self._copy(node, phase)
                for node in delayed.get(phase, ()):
                    self._delay(node, phase)
            self.pending += events.get(phase, ())
        for node in users:
            self._rewire(node)

    def _wanted(self) -> tuple[dict[int, list[Node]], list[Node]]:
        """Return the nodes to copy by segment, in order, and the nodes of the backward part that take copies."""
        users = [n for n in self.phases.parts.backward if any(self.phases.recomputed(v) is not None for v in n.operands)]
        keys = {v.producer.key for n in users for v in n.operands if self.phases.recomputed(v) is not None}
        found: dict[int, list[Node]] = {}
        for node in reversed(self.phases.parts.forward):
            if node.key in keys:
                found.setdefault(self.keeping.segment[node.key], []).append(node)
                keys.update(v.producer.key for v in node.operands if self.phases.recomputed(v) is not None)
        return {segment: nodes[::-1] for segment, nodes in found.items()}, users

    def _copy(self, node: Node, phase: int) -> None:
        origin = self.graph.new_origin("checkpoint", (node,))
        inputs = [v and self.copies.get(v, v) for v in node.inputs]
        captures = [self.copies.get(v, v) for v in node.captures]
        if not any(v in self.copies for v in node.operands):
            inputs, captures = self._after(inputs, captures, phase)
        outputs = [None if v is None else (self.graph.unique_name(f"{v.name}_again"), v.type) for v in node.outputs]
        made = self.graph.add_node(node.op, inputs, outputs, node.attributes, captures=captures, origin=origin,
                                   subgraphs={name: g.copy() for name, g in node.subgraphs.items()},
                                   name=node.name and f"{node.name}_again")
        made.metadata = {**node.metadata, RECOMPUTE: str(phase + 1)}
        if node.adjoint_rule is not None:
            self.graph.set_adjoint_rule(made, node.adjoint_rule)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            if old is not None and new is not None:
                new.symbolic = old.symbolic
                self.copies[old] = new

    def _delay(self, node: Node, phase: int) -> None:
        """Let a node of the backward part that could run any time wait for its phase."""
        if any(self.phases.phase.get(v.producer.key) == phase for v in node.operands):
            return
        inputs, captures = self._after(list(node.inputs), list(node.captures), phase)
        self.graph.set_inputs(node, inputs, captures)

    def _after(self, inputs: list[Value | None], captures: list[Value], phase: int
               ) -> tuple[list[Value | None], list[Value]]:
        """Return the operands of a node, one of them behind all events: the largest that is no weight."""
        free = [v for v in (*inputs, *captures) if v is not None and self._can_wait(v)]
        if not free or not (self.pending or self.gate):
            return inputs, captures
        chosen = next((v for v in free if v in self.gated), free[0])
        if chosen not in self.gated:
            b = Builder(self.graph, prefix=chosen.name, origin=self.graph.new_origin("checkpoint", (chosen.producer,)))
            made = b.After(chosen, *([self.gate] if self.gate is not None else self.pending))
            made.producer.metadata[RECOMPUTE] = str(phase + 1)
            self.gated[chosen] = made
            if self.gate is None:
                self.gate, self.pending = made, []
        made = self.gated[chosen]
        return [made if v is chosen else v for v in inputs], [made if v is chosen else v for v in captures]

    def _can_wait(self, value: Value) -> bool:
        if value.producer.op == CONSTANT or value in self.keeping.fixed:
            return False
        return value.type.dtype.kind in NUMBERS

    def _rewire(self, node: Node) -> None:
        inputs = [v and self._taken(v) for v in node.inputs]
        self.graph.set_inputs(node, inputs, [self._taken(v) for v in node.captures])

    def _taken(self, value: Value) -> Value:
        return value if self.phases.recomputed(value) is None else self.copies[value]
