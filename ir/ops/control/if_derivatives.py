"""Derivatives of If: an If on the same condition, over the tapes of the branch that was taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.body_derivatives import BodyAdjoint, BodyTangent
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.infer import infer
from flowgrad.ir.ops.control.loop_derivatives import takes_in_place
from flowgrad.ir.ops.control.loop_layout import dim_bindings, outward
from flowgrad.ir.ops.registry import NO_GRADIENT, Refusal, is_random, refuse
from flowgrad.ir.types import UNKNOWN, DType, Type, merge_types

BRANCHES = ("then_branch", "else_branch")


# ---- adjoint ------------------------------------------------------------------------------------------------------------


def if_adjoint(b: DerivativeBuilder, node: Node, y_bars: Sequence[Value | None]) -> list[Any]:
    """Return the cotangents of an If: none for the condition, one per capture."""
    wanted = [i for i, is_wanted in enumerate(b.wanted[len(node.inputs) :]) if is_wanted]
    types = {name: [y.type for y in node.subgraphs[name].outputs] for name in BRANCHES}
    y_bars = [y_bar if y_bar is None or b.is_zero(y_bar) else _fitting(b, node.output(k), [t[k] for t in types.values()], y_bar)
              for k, y_bar in enumerate(y_bars)]
    halves = []
    for name in BRANCHES:
        found = b.bodies.body_adjoint(
            node.subgraphs[name], captures=len(node.captures), wanted=wanted,
            seeded=[k for k, bar in enumerate(y_bars)
                    if bar is not None and not b.is_zero(bar) and not _never_taken(types[name][k], bar)],
            kept=[k for k, y in enumerate(node.outputs) if y is not None],
        )
        if isinstance(found, Refusal):
            return [found]
        halves.append(found)
    asked = sorted({i for half in halves for i in half.cotangents})
    made = _Backward(b, node, halves, y_bars).emit(asked) if asked else []
    by_capture = dict(zip(asked, made, strict=True))
    captured = [NO_GRADIENT if not x.type.dtype.carries else by_capture[i] if i in by_capture else b.zero(x)
                for i, x in enumerate(node.captures)]
    return [NO_GRADIENT, *captured]


def _fitting(b: Builder, y: Value, types: Sequence[Type], y_bar: Value) -> Value:
    """Return a cotangent of an output, which has ``types`` in the branches, of a type that both can take.

    Users of an output may fix extents that only one branch has; the other one is then never taken.
    """
    for type_ in types:
        if _never_taken(type_, y_bar):
            continue
        try:
            merge_types(type_, y_bar.type)
        except ValidationError:
            return b.Reshape(y_bar, b.Shape(y), allowzero=1)
    return y_bar


def _never_taken(type_: Type, y_bar: Value) -> bool:
    """Return whether users of an output demand another rank than a branch gives it, so that no run can take that branch."""
    return len({type_.rank, y_bar.type.rank} - {None}) > 1


class _Backward:
    """The backward If of one If node, being made."""

    def __init__(self, b: DerivativeBuilder, node: Node, halves: Sequence[BodyAdjoint], y_bars: Sequence[Value | None]) -> None:
        self.b, self.node, self.halves, self.y_bars = b, node, halves, y_bars
        self.before = len(node.subgraphs[BRANCHES[0]].outputs)
        self.slots: list[list[int]] = []

    def emit(self, asked: Sequence[int]) -> list[Value]:
        """Add the node; return the cotangents of the captures in ``asked``."""
        self._extend_forward()
        given = [self._operands(half, slots) for half, slots in zip(self.halves, self.slots, strict=True)]
        for half, operands in zip(self.halves, given, strict=True):
            self._complete(half, operands, asked)
        captures = list(dict.fromkeys(v for operands in given for v in operands))
        graphs = {}
        for name, half, operands in zip(BRANCHES, self.halves, given, strict=True):
            _take_all(half.backward, operands, captures)
            graphs[name] = half.backward
        made = self.b.add_node(
            "If", [self.node.input(0)], outputs=len(asked), captures=captures, subgraphs=graphs,
            types=[self.node.captures[i].type for i in asked],
        )
        return made.results

    def _extend_forward(self) -> None:
        """Let both branches return the tapes of both; those of one type, seen from outside, share an output.

        For a tape of the other branch alone, a branch returns an empty tensor, or one of the right shape where random
        numbers are drawn: a loop around this node must then be able to stack it, since nothing can be drawn again.
        """
        graphs = [half.forward for half in self.halves]
        tapes = [list(g.output_entries[self.before :]) for g in graphs]
        pairs = _paired(*([(entry, self._seen(graph, entry)) for entry in own] for graph, own in zip(graphs, tapes, strict=True)))
        whole = is_random(self.node)
        for side, graph in enumerate(graphs):
            own = [pair[side] for pair in pairs]
            place = {entry: self.before + p for p, entry in enumerate(own)}
            self.slots.append([place[entry] for entry in tapes[side]])
            other = [pair[1 - side] for pair in pairs]
            fillers = _Fillers(graph, whole)
            filled = [mine or fillers.add(theirs) for mine, theirs in zip(own, other, strict=True)]
            graph.reorder_outputs([*graph.output_entries[: self.before], *filled])
        outer = self.b.graph
        outer.set_subgraphs(self.node, dict(zip(BRANCHES, graphs, strict=True)), self.node.captures)
        types = infer(self.node)
        for index, entry in enumerate(graphs[0].output_entries[self.before :], self.before):
            type_ = types[index]
            assert type_ is not None
            value = outer.set_output(self.node, index, outer.unique_name(f"{self.node.label}_{entry.name}"), type_)
            self.b.residuals.append(value)

    def _seen(self, branch: Graph, entry: Node) -> Type:
        """Return the type of an output of a branch in terms of the extents around the node."""
        return outward(entry.input(0).type, dim_bindings(branch.inputs, self.node.captures))

    def _operands(self, half: BodyAdjoint, slots: Sequence[int]) -> list[Value]:
        """Return what the inputs of a backward branch stand for."""
        found: list[Value] = []
        for output in half.bars:
            y_bar = self.y_bars[output]
            assert y_bar is not None
            found.append(y_bar)
        for source in half.sources:
            index = source.index
            found.append(self.node.output(index if index < self.before else slots[index - self.before]))
        return [*found, *(self.node.captures[c] for c in half.captures)]

    def _complete(self, half: BodyAdjoint, operands: list[Value], asked: Sequence[int]) -> None:
        """Give a backward branch one output for each capture in ``asked``: zeros where none of its paths leads there."""
        graph = half.backward
        for entry in graph.output_entries:
            graph.remove(entry)
        inner = Builder(graph, prefix="zeros")
        for i in asked:
            x = self.node.captures[i]
            x_bar = half.cotangents.get(i)
            if x_bar is None:
                x_bar = inner.zeros_like(self._formal(half, operands, i))
            graph.add_output(x_bar, graph.unique_output_name(f"{x.name}_bar"))

    def _formal(self, half: BodyAdjoint, operands: list[Value], capture: int) -> Value:
        graph = half.backward
        if capture in half.captures:
            found: Value = graph.inputs[len(half.bars) + len(half.sources) + half.captures.index(capture)]
            return found
        x = half.forward.inputs[capture]
        half.captures.append(capture)
        operands.append(self.node.captures[capture])
        return graph.add_input(graph.unique_name(x.name), x.type)


def _paired(first: Sequence[tuple[Node, Type]], second: Sequence[tuple[Node, Type]]) -> list[tuple[Node | None, Node | None]]:
    """Put tapes of the same extents side by side, where these are known; the others stand alone."""
    waiting: dict[Type, list[Node]] = {}
    for entry, type_ in second:
        if type_.shape is not None and UNKNOWN not in type_.shape:
            waiting.setdefault(type_, []).append(entry)
    pairs: list[tuple[Node | None, Node | None]] = []
    taken: set[Node] = set()
    for entry, type_ in first:
        mates = waiting.get(type_)
        mate = mates.pop(0) if mates else None
        pairs.append((entry, mate))
        if mate is not None:
            taken.add(mate)
    return [*pairs, *((None, entry) for entry, _ in second if entry not in taken)]


class _Fillers:
    """Outputs that a branch gets in place of tapes of the other one: those of one type are one value."""

    def __init__(self, graph: Graph, whole: bool) -> None:
        self.graph = graph
        self.whole = whole
        self.made: dict[tuple[DType, tuple[int, ...]], Value] = {}

    def add(self, like: Node | None) -> Node:
        """Add an output in place of the tape ``like``."""
        assert like is not None
        type_ = like.input(0).type
        if self.whole and type_.is_static:
            shape: tuple[int, ...] = type_.static_shape
        else:
            shape = (0,) * (1 if type_.rank is None else type_.rank)
        value = self.made.get((type_.dtype, shape))
        if value is None:
            zero = self.graph.add_constant(np.zeros((), type_.dtype.numpy))
            value = Builder(self.graph, prefix="filler").Expand(zero, list(shape)) if shape else zero
            self.made[type_.dtype, shape] = value
        return self.graph.add_output(value, self.graph.unique_output_name(like.name))


def _take_all(graph: Graph, present: Sequence[Value], captures: Sequence[Value]) -> None:
    """Give a branch, whose inputs stand for ``present``, one input for each of ``captures``, in their order."""
    by_value: dict[Value, Value] = {}
    for outer, formal in zip(present, list(graph.inputs), strict=True):
        if outer in by_value:
            graph.replace_uses(formal, by_value[outer])
            graph.remove(formal.producer)
        else:
            by_value[outer] = formal
    for outer in captures:
        if outer not in by_value:
            by_value[outer] = graph.add_input(graph.unique_name(outer.name or "captured"), outer.type)
    graph.reorder_inputs([by_value[outer] for outer in captures])


# ---- tangent ------------------------------------------------------------------------------------------------------------


def if_tangent(b: DerivativeBuilder, node: Node, dots: Sequence[Value | None]) -> list[Any]:
    """Return the tangents of an If, which the node itself then computes along with its outputs."""
    dotted = [i for i, d in enumerate(dots[len(node.inputs) :]) if d is not None]
    found = []
    for name in BRANCHES:
        branch = b.bodies.body_tangent(node.subgraphs[name], dotted)
        if isinstance(branch, Refusal):
            return [branch]
        found.append(branch)
    count = len(node.subgraphs[BRANCHES[0]].outputs)
    asked = [k for k in range(count) if any(k in branch.outputs for branch in found)]
    if not asked:
        return [None] * len(node.outputs)
    for branch in found:
        _add_tangents(branch, count, asked)
    captures = [*node.captures, *(d for d in dots[len(node.inputs) :] if d is not None)]
    graphs = {name: branch.graph for name, branch in zip(BRANCHES, found, strict=True)}
    if takes_in_place(b, node, captures):
        made = _in_place(b, node, graphs, captures, count, asked)
    elif is_random(node):
        return [refuse("it draws random numbers, and a tangent that depends on its own result asks for them again")]
    else:
        extended = b.add_node("If", node.inputs, outputs=count + len(asked), captures=captures, subgraphs=graphs)
        made = extended.results[count:]
    by_output = dict(zip(asked, made, strict=True))
    return [by_output.get(k) for k in range(len(node.outputs))]


def _add_tangents(branch: BodyTangent, count: int, asked: Sequence[int]) -> None:
    graph = branch.graph
    inner = Builder(graph, prefix="zeros")
    for k in asked:
        entry = graph.output_entries[k]
        y_dot = branch.outputs.get(k)
        y_dot = y_dot if y_dot is not None else inner.zeros_like(entry.input(0))
        graph.add_output(y_dot, graph.unique_output_name(f"{entry.name}_dot"))


def _in_place(b: DerivativeBuilder, node: Node, graphs: dict[str, Graph], captures: Sequence[Value], count: int,
              asked: Sequence[int]) -> list[Value]:
    graph = b.graph
    graph.set_subgraphs(node, graphs, captures)
    made, types = [], infer(node)
    for index, k in enumerate(asked, count):
        y = node.optional_output(k)
        type_ = types[index] if y is None else y.type
        assert type_ is not None
        name = graph.unique_name(f"{node.label if y is None else y.name}_dot")
        made.append(graph.set_output(node, index, name, type_))
        b.residuals.append(made[-1])
    return made
