"""Bodies of If, Loop and Scan: their adjoints split into a forward and a backward part, and their tangents."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flowgrad.ir.body_derivatives import BodyAdjoint, BodyDifferentiator, BodyTangent, Link, Source
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import NotDifferentiableError
from flowgrad.ir.graph import CONSTANT, INPUT, Graph, Node, Value
from flowgrad.ir.ops.registry import Refusal, Trait, is_random, opdef
from flowgrad.ir.reach import dependents
from flowgrad.ir.types import Dim
from flowgrad.passes.activity import active_inputs, active_values, useful_outputs
from flowgrad.passes.adjoint import adjoint
from flowgrad.passes.edits import sweep
from flowgrad.passes.expand import expand_for_derivative
from flowgrad.passes.tangent import tangent


class Bodies(BodyDifferentiator):
    """Differentiates bodies with the adjoint and the tangent pass, and bodies inside them with itself."""

    def body_adjoint(
        self,
        body: Graph,
        *,
        captures: int,
        wanted: Collection[int],
        seeded: Collection[int],
        links: Sequence[Link] = (),
        given: Collection[int] = (),
        kept: Collection[int] = (),
        fixed_dims: Collection[str] | None = None,
    ) -> BodyAdjoint | Refusal:
        inputs = active_inputs(body, links, wanted)
        outputs = useful_outputs(body, links, inputs, seeded)
        states = [k for k, (i, o) in enumerate(links) if i in inputs and o in outputs]
        try:
            split = _Split(body, captures, fixed_dims)
            split.differentiate(sorted(inputs), sorted(outputs), [links[k][1] for k in states], self)
        except NotDifferentiableError as error:
            return Refusal(f"its body is {error}")
        split.find_sources(given, kept)
        reason = split.unstackable()
        if reason:
            return Refusal(reason)
        return split.parts(states)

    def body_tangent(self, body: Graph, dotted: Collection[int], links: Sequence[Link] = ()) -> BodyTangent | Refusal:
        result = BodyTangent(body.copy())
        graph = result.graph
        formals, outputs = graph.inputs, graph.outputs
        for i in sorted(active_inputs(graph, links, dotted)):
            x = formals[i]
            result.inputs[i] = graph.add_input(graph.unique_name(f"{x.name}_dot"), x.type)
        wanted = [o for o, y in enumerate(outputs) if y.type.dtype.carries]
        pairs = [(formals[i], x_dot) for i, x_dot in result.inputs.items()]
        try:
            found = tangent(graph, pairs, [outputs[o] for o in wanted], self)
        except NotDifferentiableError as error:
            return Refusal(f"its body is {error}")
        result.outputs = {o: y_dot for o, y_dot in zip(wanted, found, strict=True) if y_dot is not None}
        b = Builder(graph)
        for i, o in links:
            if i in result.inputs and o not in result.outputs:
                result.outputs[o] = b.zeros_like(outputs[o])
        return result


class _Split:
    """The joint graph of a body and its adjoint on the way to being cut in two."""

    def __init__(self, body: Graph, captures: int, fixed_dims: Collection[str] | None) -> None:
        self.joint = body.copy(deep=False)  # what replaces ``body`` takes its subgraphs over
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
        self.ragged: list[Value] = []
        self.reads: set[Value] = set()

    def differentiate(self, inputs: Sequence[int], outputs: Sequence[int], states: Collection[int],
                      bodies: BodyDifferentiator) -> None:
        """Append the adjoint for ``outputs``; the cotangents of ``states`` are inputs even where nothing uses them."""
        joint = self.joint
        wrt = [self.formals[i] for i in inputs]
        active = active_values(joint.nodes(), wrt)
        chosen = [o for o in outputs if o in states or self.outputs[o] in active]
        _, beside = expand_for_derivative(joint, wrt, [self.outputs[o] for o in chosen])
        self.boundary = joint._next_key
        for o in chosen:
            y = self.outputs[o]
            self.bars[o] = joint.add_input(joint.unique_name(f"{y.name or 'constant'}_bar"), y.type)
        self.at_hand = {*self.bars.values(), *self.formals[self.first_capture :]}
        seeds = [(self.outputs[o], bar) for o, bar in self.bars.items() if self.outputs[o] in active]
        found = adjoint(joint, seeds, wrt, bodies, zero="allow") if seeds else []
        self.found = {i: bar for i, bar in zip(inputs, found, strict=bool(seeds)) if bar is not None}
        for stand_in in beside:
            stand_in.restore(joint)

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
        if self.repeats:
            self.fixed_nodes = self._invariant_nodes()
            self.reads = self._reads()
        crossing: dict[Value, None] = {}
        shapes: dict[Node, None] = {}
        stack = list(self.found.values())
        seen = set(stack)
        while stack:
            value = stack.pop()
            node = value.producer
            if self._is_at_hand(value):
                continue
            if value in self.reads or (self._is_forward(value) and not self._is_repeated(value)):
                crossing[value] = None
                continue
            if Trait.SHAPE_ONLY in opdef(node.op).traits and self._is_kept(node.input(0)):
                shapes[node] = None
                continue
            self.copied.add(node)
            for operand in node.operands:
                if operand not in seen:
                    seen.add(operand)
                    stack.append(operand)
        return list(crossing), list(shapes)

    def _is_at_hand(self, value: Value) -> bool:
        return value.producer.op == CONSTANT or value in self.at_hand

    def _is_kept(self, value: Value) -> bool:
        return not self._is_at_hand(value) and self._is_forward(value)

    def _is_forward(self, value: Value) -> bool:
        node = value.producer
        return node.op == INPUT or (node.key < self.boundary and node not in self.fixed_nodes)

    def _is_repeated(self, value: Value) -> bool:
        """True for a forward value whose extents may change between iterations: it is computed again from others.

        So are sequences: there are none of sequences to keep them in.
        """
        if self.fixed_dims is None or value in self.ready or value.producer.op == INPUT or is_random(value.producer):
            return False
        if value.type.dtype.element is not None:
            return True
        if value.type.shape is None:
            return True
        return any(isinstance(d, Dim) and not d.names() <= self.fixed_dims for d in value.type.shape)

    def _invariant_nodes(self) -> set[Node]:
        """Return the forward nodes that depend on captures and constants alone, and draw no random numbers."""
        fixed = set(self.formals[self.first_capture :])
        found: set[Node] = set()
        for node in self.joint.nodes():
            is_fixed = node.key < self.boundary and all(v in fixed or v.producer.op == CONSTANT for v in node.operands)
            if is_fixed and not is_random(node):
                found.add(node)
                fixed.update(node.results)
        return found

    def _reads(self) -> set[Value]:
        """Return the tensors, and their shapes, that come out of states that are sequences, whatever the cotangents are."""
        states = [v for v in self.formals[: self.first_capture] if v.type.dtype.element is not None]
        if not states:
            return set()
        order = self.joint.nodes()
        carried = dependents(order, states, keeps=lambda v: v.type.dtype.element is not None)
        backward = dependents(order, self.bars.values())
        found: set[Value] = set()
        for node in order:
            shows = Trait.SHAPE_ONLY in opdef(node.op).traits and node.input(0) in found
            if shows or any(v in carried for v in node.operands):
                found.update(v for v in node.results if v not in carried and v not in backward)
        return found

    def _need(self, value: Value) -> None:
        source = self.ready.get(value)
        if source is None:
            source = self._kept_ragged(value) if self._is_ragged(value) else self._kept_stacked(value)
        self.sources[value] = source

    def _kept_stacked(self, value: Value) -> Source:
        self.tapes.append(value)
        return Source(False, len(self.outputs) + len(self.tapes) - 1)

    def _kept_ragged(self, value: Value) -> Source:
        self.ragged.append(value)
        return Source(False, len(self.ragged) - 1, ragged=True)

    def _is_ragged(self, value: Value) -> bool:
        """Return whether a tensor may have another shape in another iteration."""
        if self.fixed_dims is None or value.type.dtype.element is not None:
            return False
        names = {n for d in value.type.shape or () if not isinstance(d, int) for n in d.names()}
        return value.type.shape is None or not names <= self.fixed_dims

    def unstackable(self) -> str:
        """Return why a source cannot be kept for all iterations, or an empty string."""
        for value in self.tapes if self.repeats else ():
            if value.type.dtype.element is not None:
                return (f"%{value.name}: {value.type!r} in its body is a sequence that the backward pass needs as a whole, "
                        "and there is no sequence of sequences to keep it in for every iteration")
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
        forward = self._forward()
        _separate(backward, forward)
        return BodyAdjoint(
            forward, backward, states, list(self.bars), list(self.sources.values()),
            [i - self.first_capture for i in captures], cotangents,
        )

    def _backward(self) -> tuple[Graph, dict[int, Value], dict[int, Value]]:
        graph = self.joint.copy(deep=False)
        graph.name = f"{self.joint.name}_adjoint"
        entries = graph.entries

        def twin(value: Value) -> Value:
            return entries[value.producer.key].output(value.index)

        for entry in graph.output_entries:
            graph.remove(entry)
        cotangents = {i: twin(v) for i, v in self.found.items()}
        kept = {entries[n.key] for n in self.copied}
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
        for value in (*self.tapes, *self.ragged):
            graph.add_output(value, graph.unique_output_name(f"{value.name}_tape"))
        sweep(graph)
        for bar in self.bars.values():
            graph.remove(bar.producer)
        return graph


def _separate(graph: Graph, other: Graph) -> None:
    """Give ``graph`` subgraphs of its own in the nodes that ``other`` has, too."""
    for node in graph.nodes():
        if node.subgraphs and node.key in other.entries:
            graph.set_subgraphs(node, {name: sub.copy() for name, sub in node.subgraphs.items()}, node.captures)
