"""Derivatives of Loop and Scan: a Scan over tapes in reverse, and the same node with tangents beside its states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flowgrad.ir.body_derivatives import BodyAdjoint, BodyTangent
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.dtypes import sequence_of
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.infer import infer
from flowgrad.ir.ops.control.loop_layout import Layout, invariant_bindings, layout_of
from flowgrad.ir.ops.operands import sum_of
from flowgrad.ir.ops.registry import NO_GRADIENT, Refusal, is_random, refuse
from flowgrad.ir.reach import depend_on
from flowgrad.ir.types import Type


class Stream(NamedTuple):
    """A stacked value, the axis of its slices, and whether they are read from the end (1) or the beginning (0)."""

    value: Value
    axis: int
    direction: int


# ---- adjoint ------------------------------------------------------------------------------------------------------------


def loop_adjoint(b: DerivativeBuilder, node: Node, y_bars: Sequence[Value | None]) -> list[Any]:
    """Return the cotangents of a Loop or Scan: one Scan that runs over its iterations from the last to the first."""
    layout, body = layout_of(node), node.subgraphs["body"]
    first_capture = len(body.inputs) - len(node.captures)
    operands = [*node.inputs, *node.captures]
    shift = first_capture - len(node.inputs)  # M and the condition of a Loop may be left out
    places = [i if i < len(node.inputs) else i + shift for i in range(len(operands))]
    wanted = {p for p, is_wanted in zip(places, b.wanted, strict=True) if is_wanted}
    found = b.bodies.body_adjoint(
        body,
        captures=len(node.captures),
        wanted=wanted,
        seeded={layout.lead_outputs + k for k, bar in enumerate(y_bars) if not b.is_zero(bar)},
        links=layout.links,
        given=range(layout.first_scan_input, first_capture),
        kept=[o for o in range(layout.first_scan_output, len(body.outputs))
              if node.optional_output(o - layout.lead_outputs) is not None],
        fixed_dims=invariant_bindings(node).keys(),
    )
    if isinstance(found, Refusal):
        return [found]
    by_place = {p: x for p, x in zip(places, operands, strict=True) if x is not None}
    made = _BackwardScan(b, node, layout, found, y_bars).emit(wanted, by_place) if found.states or found.cotangents else {}
    results: list[Any] = []
    for place, x in zip(places, operands, strict=True):
        if x is None or not x.type.dtype.carries:
            results.append(NO_GRADIENT)
        else:
            results.append(made[place] if place in made else b.zero(x))
    return results


class _BackwardScan:
    """The backward Scan of one Loop or Scan node, being made."""

    def __init__(self, b: DerivativeBuilder, node: Node, layout: Layout, found: BodyAdjoint,
                 y_bars: Sequence[Value | None]) -> None:
        self.b, self.node, self.layout, self.found = b, node, layout, found
        self.y_bars = y_bars
        self.graph = found.backward
        self.inner = Builder(self.graph, prefix="sum")
        self.first_capture = len(found.forward.inputs) - len(node.captures)
        self.ragged = self._set_aside()

    def _set_aside(self) -> list[Value]:
        """Take the ragged tapes out of the outputs of the forward body: nothing stacks them."""
        forward: Graph = self.found.forward
        count = sum(s.ragged for s in self.found.sources)
        entries = forward.output_entries[len(forward.outputs) - count :]
        values = [entry.input(0) for entry in entries]
        for entry in entries:
            forward.remove(entry)
        return values

    def emit(self, wanted: set[int], operands: dict[int, Value]) -> dict[int, Value]:
        """Add the Scan; return the cotangents by index among the inputs of the body."""
        formals = list(self.graph.inputs)
        bars = dict(zip(self.found.bars, formals, strict=False))
        sources = formals[len(bars) : len(bars) + len(self.found.sources)]
        captures = formals[len(bars) + len(sources) :]
        self._extend_forward(len(sources) == len(self.ragged) and not self._scan_bars())
        for entry in self.graph.output_entries:
            self.graph.remove(entry)
        places: list[int] = []
        initial: list[Value] = []
        state_formals: list[Value] = []
        for k in self.found.states:
            place, output = self.layout.links[k]
            places.append(place)
            initial.append(self._final_bar(k))
            state_formals.append(bars[output])
            x_bar = self.found.cotangents.get(place)
            self._add_output(x_bar if x_bar is not None else self.inner.zeros_like(bars[output]), place)
        for place in sorted(p for p in self.found.cotangents if p >= self.first_capture):
            places.append(place)
            initial.append(self.b.zeros_like(operands[place]))
            state_formals.append(self._accumulator(place, operands[place]))
        streams, slices = self._streams(bars, sources)
        if self.ragged:
            tapes = [formal for source, formal in zip(self.found.sources, sources, strict=True) if source.ragged]
            initial += self._keep_ragged()
            places += range(-len(tapes), 0)
            state_formals += [self._last_of(value, tape) for value, tape in zip(self.ragged, tapes, strict=True)]
        scanned = [p for p in sorted(self.found.cotangents) if self.layout.first_scan_input <= p < self.first_capture]
        for place in scanned:
            self._add_output(self.found.cotangents[place], place)
        self.graph.reorder_inputs([*state_formals, *slices, *captures])
        made = self._scan(places, initial, streams, scanned, operands)
        return {p: v for p, v in made.items() if p in wanted}

    def _scan_bars(self) -> list[int]:
        return [o for o in self.found.bars if o >= self.layout.first_scan_output]

    def _final_bar(self, state: int) -> Value:
        bar = self.y_bars[state]
        if bar is not None:
            return bar
        value = self.node.optional_output(state)
        if value is None:
            (value,) = self._add_node_outputs([(state, "state")])
        return self.b.zero(value)

    def _accumulator(self, place: int, x: Value) -> Value:
        formal = self.graph.add_input(self.graph.unique_name(f"{x.name}_sum"), x.type)
        self._add_output(sum_of(self.inner, [formal, self.found.cotangents[place]]), place)
        return formal

    def _add_output(self, value: Value, place: int) -> None:
        self.graph.add_output(value, f"{self.found.forward.inputs[place].name}_bar")

    def _keep_ragged(self) -> list[Value]:
        """Let states of the forward node collect the ragged tapes in sequences; return what these are in the end."""
        graph, forward = self.b.graph, self.found.forward
        formals, entries = list(forward.inputs), list(forward.output_entries)
        inner = Builder(forward, prefix="tape")
        kinds = [Type(sequence_of(v.type.dtype), ()) for v in self.ragged]
        so_far = [forward.add_input(forward.unique_name(f"{v.name}_so_far"), t) for v, t in zip(self.ragged, kinds, strict=True)]
        longer = [forward.add_output(inner.SequenceInsert(s, v), forward.unique_output_name(f"{v.name}_tapes"))
                  for s, v in zip(so_far, self.ragged, strict=True)]
        first, states = self.layout.first_scan_input, self.layout.states
        forward.reorder_inputs([*formals[:first], *so_far, *formals[first:]])
        first = self.layout.first_scan_output
        forward.reorder_outputs([*entries[:first], *longer, *entries[first:]])
        inputs, lead = [*self.node.inputs, *[None] * (2 - len(self.node.inputs))], self.layout.lead_formals + states
        starts = [self.b.SequenceEmpty(dtype=v.type.dtype.onnx) for v in self.ragged]
        graph.set_inputs(self.node, [*inputs[:lead], *starts, *inputs[lead:]])
        outputs = [*self.node.outputs, *[None] * (states - len(self.node.outputs))]
        made = [(graph.unique_name(f"{self.node.label}_{v.name}_tapes"), t) for v, t in zip(self.ragged, kinds, strict=True)]
        graph.arrange_outputs(self.node, [*outputs[:states], *made, *outputs[states:]])
        found = [self.node.output(states + k) for k in range(len(made))]
        self.b.residuals += found
        return found

    def _last_of(self, value: Value, tape: Value) -> Value:
        """Let the backward body take ``tape`` from the end of a sequence that is a state, and leave it without it."""
        rest = self.graph.add_input(self.graph.unique_name(f"{tape.name}s"), Type(sequence_of(value.type.dtype), ()))
        last = self.inner.add_node("SequenceAt", [rest, np.int64(-1)], types=[tape.type]).output()
        self.graph.replace_uses(tape, last)
        self.graph.remove(tape.producer)
        self.graph.add_output(self.inner.SequenceErase(rest), self.graph.unique_output_name(f"{tape.name}s_left"))
        return rest

    def _streams(self, bars: dict[int, Value], sources: Sequence[Value]) -> tuple[list[Stream], list[Value]]:
        """Return what the Scan runs over, and the matching inputs of its body."""
        streams: list[Stream] = []
        slices: list[Value] = []
        for output in self._scan_bars():
            y_bar = self.y_bars[output - self.layout.lead_outputs]
            assert y_bar is not None
            streams.append(self._reversed_output(y_bar, output))
            slices.append(bars[output])
        for source, formal in zip(self.found.sources, sources, strict=True):
            if source.ragged:
                continue
            streams.append(self._reversed_input(source.index) if source.is_input else self._kept(source.index))
            slices.append(formal)
        if not streams:
            streams.append(self._counting_stream())
            value = streams[0].value
            slices.append(self.graph.add_input(self.graph.unique_name("row"), _row_type(value, streams[0].axis)))
        return streams, slices

    def _kept(self, output: int) -> Stream:
        value = self.node.optional_output(output - self.layout.lead_outputs)
        assert value is not None
        return self._reversed_output(value, output)

    def _reversed_output(self, value: Value, output: int) -> Stream:
        k = output - self.layout.first_scan_output
        return Stream(value, self.layout.output_axis(k), 1 - self.layout.output_direction(k))

    def _reversed_input(self, place: int) -> Stream:
        k = place - self.layout.first_scan_input
        return Stream(self.node.input(place), self.layout.input_axis(k), 1 - self.layout.input_direction(k))

    def _counting_stream(self) -> Stream:
        """What tells the number of iterations where the backward part needs no forward value."""
        if self.layout.scan_inputs:
            return self._reversed_input(self.layout.first_scan_input)
        return self._kept(len(self.node.subgraphs["body"].outputs) - 1)

    def _extend_forward(self, count_trips: bool) -> None:
        """Let the forward node return the tapes; a Loop its iteration numbers, if nothing else tells how many."""
        forward: Graph = self.found.forward
        before = len(self.node.subgraphs["body"].outputs)
        if count_trips and not self.layout.scan_inputs:
            forward.add_output(forward.inputs[0], forward.unique_output_name("trip"))
        added = forward.output_entries[before:]
        self.b.graph.set_subgraphs(self.node, {"body": forward}, self.node.captures)
        if added and self.layout.output_axes:
            self._pad_attribute("scan_output_axes", self.layout.output_axes, len(forward.outputs))
        if added and self.layout.output_directions:
            self._pad_attribute("scan_output_directions", self.layout.output_directions, len(forward.outputs))
        self._add_node_outputs([(position, entry.name) for position, entry in enumerate(added, before - self.layout.lead_outputs)])

    def _pad_attribute(self, name: str, given: Sequence[int], outputs: int) -> None:
        padded = (*given, *[0] * (outputs - self.layout.states - len(given)))
        self.b.graph.set_attributes(self.node, {**self.node.attributes, name: padded})

    def _add_node_outputs(self, wanted: Sequence[tuple[int, str]]) -> list[Value]:
        """Let the forward node return its outputs with these indices, too, under these names."""
        graph, made = self.b.graph, []
        types = infer(self.node)
        for index, name in wanted:
            type_ = types[index]
            assert type_ is not None
            made.append(graph.set_output(self.node, index, graph.unique_name(f"{self.node.label}_{name}"), type_))
        self.b.residuals += made
        return made

    def _scan(self, places: Sequence[int], initial: Sequence[Value], streams: Sequence[Stream],
              scanned: Sequence[int], operands: dict[int, Value]) -> dict[int, Value]:
        ks = [p - self.layout.first_scan_input for p in scanned]
        attributes: dict[str, Any] = {
            "num_scan_inputs": len(streams),
            "scan_input_axes": _unless_zero([s.axis for s in streams]),
            "scan_input_directions": _unless_zero([s.direction for s in streams]),
            "scan_output_axes": _unless_zero([self.layout.input_axis(k) for k in ks]),
            "scan_output_directions": _unless_zero([1 - self.layout.input_direction(k) for k in ks]),
        }
        results = [*places, *scanned]
        made = self.b.add_node(
            "Scan", [*initial, *(s.value for s in streams)], attributes, outputs=len(results),
            types=[operands[p].type if p in operands else None for p in results],
            captures=[self.node.captures[c] for c in self.found.captures], subgraphs={"body": self.graph},
        )
        return {p: made.output(index) for index, p in enumerate(results)}


def _unless_zero(numbers: Sequence[int]) -> tuple[int, ...] | None:
    return tuple(numbers) if any(numbers) else None


def _row_type(value: Value, axis: int) -> Any:
    shape = value.type.shape
    if shape is None:
        return value.type
    axis %= len(shape)
    return value.type.with_shape((*shape[:axis], *shape[axis + 1 :]))


# ---- tangent ------------------------------------------------------------------------------------------------------------


def loop_tangent(b: DerivativeBuilder, node: Node, dots: Sequence[Value | None]) -> list[Any]:
    """Return the tangents of a Loop or Scan, which the node itself then computes along with its outputs."""
    layout, body = layout_of(node), node.subgraphs["body"]
    first_capture = len(body.inputs) - len(node.captures)
    shift = first_capture - len(node.inputs)
    by_place = {i if i < len(node.inputs) else i + shift: d for i, d in enumerate(dots) if d is not None}
    found = b.bodies.body_tangent(body, list(by_place), layout.links)
    if isinstance(found, Refusal):
        return [found]
    extended = _WithTangents(b, node, layout, found, by_place)
    return extended.tangents()


class _WithTangents:
    """A Loop or Scan with tangents: its inputs, attributes and outputs, in place or as a node of its own."""

    def __init__(self, b: DerivativeBuilder, node: Node, layout: Layout, found: BodyTangent, dots: dict[int, Value]) -> None:
        self.b, self.node, self.layout, self.found, self.dots = b, node, layout, found, dots
        self.body = found.graph
        self.first_capture = len(node.subgraphs["body"].inputs) - len(node.captures)
        self.count = len(node.subgraphs["body"].outputs)
        self.states = [k for k, (i, _) in enumerate(layout.links) if i in found.inputs]
        self.scans = [i for i in sorted(found.inputs) if layout.first_scan_input <= i < self.first_capture]
        self.captured = [i for i in sorted(found.inputs) if i >= self.first_capture]
        self.stacked = [o for o in sorted(found.outputs) if o >= layout.first_scan_output]

    def tangents(self) -> list[Any]:
        """Make the node; return one tangent, None or refusal per output of the original one."""
        self._arrange_body()
        inputs, captures, attributes = self._inputs(), self._captures(), self._attributes()
        if takes_in_place(self.b, self.node, [*inputs, *captures]):
            outputs = self._in_place(inputs, captures, attributes)
        elif is_random(self.node):
            return [refuse("it draws random numbers, and a tangent that depends on its own result asks for them again")]
        else:
            outputs = self._apart(inputs, captures, attributes)
        found: list[Any] = [None] * len(self.node_outputs)
        for position, k in enumerate(self.states):
            found[k] = outputs[self.layout.states + position]
        after = self.layout.states + len(self.states) + self.count - self.layout.first_scan_output
        for position, o in enumerate(self.stacked):
            found[o - self.layout.lead_outputs] = outputs[after + position]
        return found

    def _arrange_body(self) -> None:
        links, formals = self.layout.links, list(self.body.inputs)
        dotted = self.found.inputs
        entries = list(self.body.output_entries)[: self.count]
        first, last = self.layout.first_scan_input, self.first_capture
        self.body.reorder_inputs([
            *formals[:first], *(dotted[links[k][0]] for k in self.states),
            *formals[first:last], *(dotted[i] for i in self.scans),
            *formals[last : last + len(self.node.captures)], *(dotted[i] for i in self.captured),
        ])
        split = self.layout.first_scan_output
        state_dots = [self._output(links[k][1]) for k in self.states]
        scan_dots = [self._output(o) for o in self.stacked]
        self.body.reorder_outputs([*entries[:split], *state_dots, *entries[split:], *scan_dots])

    def _output(self, index: int) -> Node:
        value = self.found.outputs[index]
        return self.body.add_output(value, self.body.unique_output_name(f"{self.body.output_entries[index].name}_dot"))

    def _inputs(self) -> list[Value | None]:
        lead = [*self.node.inputs, None, None][: self.layout.lead_formals]
        rest = list(self.node.inputs[self.layout.lead_formals :])
        links = self.layout.links
        dots = [self._dot(links[k][0]) for k in self.states]
        scans = [self.dots[i] for i in self.scans]
        return [*lead, *rest[: self.layout.states], *dots, *rest[self.layout.states :], *scans]

    def _dot(self, place: int) -> Value:
        found = self.dots.get(place)
        return found if found is not None else self.b.zeros_like(self.node.input(place))

    def _captures(self) -> list[Value]:
        return [*self.node.captures, *(self.dots[i] for i in self.captured)]

    def _attributes(self) -> dict[str, Any]:
        attributes = dict(self.node.attributes)
        if not self.layout.scan_inputs:
            return attributes
        layout = self.layout
        ins = [*range(layout.scan_inputs), *(i - layout.first_scan_input for i in self.scans)]
        outs = [*range(self.count - layout.first_scan_output), *(o - layout.first_scan_output for o in self.stacked)]
        attributes["num_scan_inputs"] = len(ins)
        for name, numbers in (
            ("scan_input_axes", [layout.input_axis(k) for k in ins]),
            ("scan_input_directions", [layout.input_direction(k) for k in ins]),
            ("scan_output_axes", [layout.output_axis(k) for k in outs]),
            ("scan_output_directions", [layout.output_direction(k) for k in outs]),
        ):
            attributes.pop(name, None)
            if any(numbers):
                attributes[name] = tuple(numbers)
        return attributes

    @property
    def node_outputs(self) -> list[Value | None]:
        """The outputs of the original node, one per output of its body."""
        count = self.count - self.layout.lead_outputs
        return [*self._original, *[None] * (count - len(self._original))]

    def _in_place(self, inputs: Sequence[Value | None], captures: Sequence[Value], attributes: dict[str, Any]
                  ) -> list[Value | None]:
        graph = self.b.graph
        self._original = self.node.outputs
        old = self.node_outputs
        graph.set_attributes(self.node, attributes)
        graph.set_subgraphs(self.node, {"body": self.body}, captures)
        graph.set_inputs(self.node, inputs)
        split = self.layout.states
        blank: list[Value | None] = [None] * len(self.states)
        graph.arrange_outputs(self.node, [*old[:split], *blank, *old[split:], *[None] * len(self.stacked)])
        types = infer(self.node)
        for index, like in self._new_outputs(old):
            type_ = types[index] if like is None else like.type
            assert type_ is not None
            name = graph.unique_name(f"{like.name if like is not None else self.node.label}_dot")
            self.b.residuals.append(graph.set_output(self.node, index, name, type_))
        return list(self.node.outputs)

    def _new_outputs(self, old: Sequence[Value | None]) -> list[tuple[int, Value | None]]:
        split = self.layout.states
        states = [(split + p, old[k]) for p, k in enumerate(self.states)]
        after = len(old) + len(self.states)
        return [*states, *((after + p, old[o - self.layout.lead_outputs]) for p, o in enumerate(self.stacked))]

    def _apart(self, inputs: Sequence[Value | None], captures: Sequence[Value], attributes: dict[str, Any]
               ) -> list[Value | None]:
        self._original = self.node.outputs
        made = self.b.add_node(
            self.node.op, inputs, attributes, captures=captures, subgraphs={"body": self.body},
            outputs=self.count - self.layout.lead_outputs + len(self.states) + len(self.stacked),
        )
        return list(made.outputs)


def takes_in_place(b: DerivativeBuilder, node: Node, operands: Sequence[Value | None]) -> bool:
    """Return whether ``node`` may take ``operands``, and can without becoming its own ancestor.

    Where it draws random numbers, it takes them if it can: a node beside it would draw others.
    """
    if not b.in_place and not is_random(node):
        return False
    return b.independent or not depend_on([v for v in operands if v is not None], node)
