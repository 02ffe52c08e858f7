"""Differentiation as functions of a graph, and as named passes of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.ops.operands import joined
from flowgrad.ir.ops.registry import FLOWGRAD, Trait, find_op, opdef
from flowgrad.ir.types import Dim, Type
from flowgrad.passes import adjoint as reverse
from flowgrad.passes import tangent as forward
from flowgrad.passes.adjoint import Zero
from flowgrad.passes.bodies import Bodies
from flowgrad.passes.expand import expand
from flowgrad.passes.registry import pass_
from flowgrad.passes.selection import find_of, find_wrt


def adjoint(
    graph: Graph, seeds: Sequence[tuple[Value, Value]], wrt: Sequence[Value], *, zero: Zero = "error", are_units: bool = False,
) -> list[Value | None]:
    """Append the cotangents of ``wrt``, through subgraphs too: see ``passes.adjoint.adjoint``."""
    return reverse.adjoint(graph, seeds, wrt, Bodies(), zero=zero, are_units=are_units)


def tangent(
    graph: Graph, pairs: Sequence[tuple[Value, Value]], of: Sequence[Value], *, in_place: bool = True,
    are_units: bool = False,
) -> list[Value | None]:
    """Append the tangents of ``of``, through subgraphs too: see ``passes.tangent.tangent``."""
    return forward.tangent(graph, pairs, of, Bodies(), in_place=in_place, are_units=are_units)


Seeds = int | str | None
"""How many seeds: a number, the name of a dim, or None for one that has no axis."""


def seeded(type_: Type, seeds: int | str, name: str) -> Type:
    """Return ``type_`` with a new first axis for ``seeds``. InputError for what is neither a positive number nor a name."""
    is_number = isinstance(seeds, int) and not isinstance(seeds, bool) and seeds >= 1
    if not is_number and not (isinstance(seeds, str) and seeds):
        raise InputError(f"seeds is a number from 1 on or the name of a dim, got {seeds!r}", code="seeds")
    if type_.shape is None:
        raise InputError(f"the rank of {name!r} is not known, so many seeds of it have no axes", code="rank")
    return Type(type_.dtype, (Dim.named(seeds) if isinstance(seeds, str) else seeds, *type_.shape))


def fed_like(graph: Graph, values: Sequence[Value], names: Sequence[str], seeds: Seeds = None) -> list[tuple[Value, Value]]:
    """Add an input of the type of each of ``values``, called as ``names`` say; return the inputs, and what to derive with.

    With ``seeds``, each holds as many along a new first axis.

    That is the input itself where the inputs of the graph tell the shape of its value, so that feeds are checked; where only
    the run can tell, it is checked there.
    """
    told = {name for x in graph.inputs for dim in x.type.shape or () if isinstance(dim, Dim) for name in dim.names()}
    pairs = []
    for value, name in zip(values, names, strict=True):
        fed = graph.add_input(graph.unique_name(name), value.type if seeds is None else seeded(value.type, seeds, value.name))
        shape = value.type.shape
        is_checked = shape is not None and all(d.names() <= told for d in shape if isinstance(d, Dim))
        pairs.append((fed, fed if is_checked or value.type.dtype.element is not None else _checked(graph, fed, value, seeds)))
    return pairs


def _checked(graph: Graph, fed: Value, value: Value, seeds: Seeds) -> Value:
    """Return ``fed``, checked by the run to have the shape of ``value``, behind the axis of seeds if there is one."""
    b = Builder(graph, prefix=fed.name)
    shape = Builder(graph, prefix=value.name).Shape(value)
    return b.OfShape(fed, shape if seeds is None else joined(b, [b.extent(fed, 0), shape]))


class Extended(NamedTuple):
    """A copy of a graph that takes more inputs and has more outputs: their names, by the value each belongs to."""

    graph: Graph
    inputs: dict[str, str]
    outputs: dict[str, str]

    def alone(self) -> Graph:
        """Return the graph without the outputs it had before."""
        graph, added = self.graph.copy(), set(self.outputs.values())
        for entry in graph.output_entries:
            if entry.name not in added:
                graph.remove(entry)
        return graph

    def drawn(self, values: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
        """Return normal random numbers for the added inputs, like the values they belong to."""
        return {name: np.asarray(rng.standard_normal(values[of].shape)).astype(values[of].dtype)
                for of, name in self.inputs.items()}


def with_adjoint(graph: Graph, wrt: Sequence[str] | None = None, of: Sequence[str] | None = None) -> Extended:
    """Return a copy with an input ``y_ct`` for each output of ``of`` and an output ``x_grad`` for each input of ``wrt``
    that has a gradient; by default all that are floats."""
    joint = graph.copy()
    xs, ys = _floats(joint, wrt, of)
    seeds = [(y, joint.add_input(joint.unique_name(f"{name}_ct"), y.type)) for name, y in ys.items()]
    found = adjoint(joint, seeds, xs, zero="allow") if seeds and xs else [None] * len(xs)
    outputs = _added_outputs(joint, [x.name for x in xs], found, "grad")
    return Extended(joint, {name: bar.name for name, (_, bar) in zip(ys, seeds, strict=True)}, outputs)


def with_tangent(graph: Graph, wrt: Sequence[str] | None = None, of: Sequence[str] | None = None) -> Extended:
    """Return a copy with an input ``x_dot`` for each input of ``wrt`` and an output ``y_dot`` for each output of ``of``
    that depends on one; by default all that are floats."""
    joint = graph.copy()
    xs, ys = _floats(joint, wrt, of)
    pairs = [(x, joint.add_input(joint.unique_name(f"{x.name}_dot"), x.type)) for x in xs]
    outputs = _added_outputs(joint, list(ys), tangent(joint, pairs, list(ys.values())), "dot")
    return Extended(joint, {x.name: dot.name for x, dot in pairs}, outputs)


def _floats(graph: Graph, wrt: Sequence[str] | None, of: Sequence[str] | None) -> tuple[list[Value], dict[str, Value]]:
    """Return the chosen values, and the chosen outputs by name."""
    xs = [x for x in graph.inputs if x.type.dtype.is_float] if wrt is None else [graph.value(name) for name in wrt]
    entries = {e.name: e.input(0) for e in graph.output_entries if e.input(0).type.dtype.is_float}
    return xs, entries if of is None else {name: entries[name] for name in of}


def _added_outputs(graph: Graph, names: Sequence[str], found: Sequence[Value | None], suffix: str) -> dict[str, str]:
    return {name: graph.add_output(value, graph.unique_output_name(f"{name}_{suffix}")).name
            for name, value in zip(names, found, strict=True) if value is not None}


@pass_("adjoint", kind="extends")
def adjoint_pass(graph: Graph, *, wrt: tuple[str, ...] = ("inputs",), of: tuple[str, ...] = ()) -> None:
    """Append gradients: inputs ``y_grad`` for what is differentiated (none for a scalar), outputs ``x_grad``.

    ``wrt`` and ``of`` take what the transforms take: names, globs, "inputs", "params"; ``of`` is by default all float
    outputs.
    """
    pairs, values = find_of(graph, of or None), find_wrt(graph, wrt)  # before cotangents become inputs
    given = [(name, y) for name, y in pairs if y.type.size != 1]
    fed = fed_like(graph, [y for _, y in given], [f"{name}_grad" for name, _ in given])
    seeds = [(y, Builder(graph, prefix=name).filled(1, y)) for name, y in pairs if y.type.size == 1]
    seeds += [(y, y_bar) for (_, y), (_, y_bar) in zip(given, fed, strict=True)]
    for x, x_bar in zip(values, adjoint(graph, seeds, values), strict=True):
        found = x_bar or Builder(graph, prefix=x.name).zeros_like(x)
        graph.add_output(found, graph.unique_output_name(f"{x.name}_grad"))


@pass_("tangent", kind="extends")
def tangent_pass(graph: Graph, *, wrt: tuple[str, ...] = ("inputs",), of: tuple[str, ...] = ()) -> None:
    """Append tangents: inputs ``x_tangent`` for each x in ``wrt``, outputs ``y_tangent`` for each y in ``of``."""
    outputs, values = find_of(graph, of or None), find_wrt(graph, wrt)
    fed = fed_like(graph, values, [f"{x.name}_tangent" for x in values])
    pairs = [(x, x_dot) for x, (_, x_dot) in zip(values, fed, strict=True)]
    for (name, y), y_dot in zip(outputs, tangent(graph, pairs, [y for _, y in outputs]), strict=True):
        found = y_dot or Builder(graph, prefix=name).zeros_like(y)
        graph.add_output(found, graph.unique_output_name(f"{name}_tangent"))


@pass_("expand", kind="rounding")
def expand_pass(graph: Graph, *, ops: tuple[str, ...] = ()) -> None:
    """Replace ops by their expansions into plain ONNX: those in ``ops``, by default those of the flowgrad domain.

    StopGradient and Surrogate stay unless they are named: in plain ONNX they have other derivatives.
    """
    for name in ops:
        if opdef(name).expansion_rule is None:
            raise InputError(f"{name} has no expansion", code="option")
    chosen = set(ops)

    def select(op: str) -> bool:
        definition = find_op(op)
        if definition is None or definition.expansion_rule is None:
            return False
        return op in chosen if chosen else definition.domain == FLOWGRAD and Trait.MARKED not in definition.traits

    expand(graph, lambda node: node.adjoint_rule is None and select(node.op))
