"""Where a model is evaluated exactly at a kink: there a derivative is a convention, not a limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import LITERAL, Graph, Node
from flowgrad.ir.infer import describe
from flowgrad.ir.names import quote
from flowgrad.ir.ops.registry import opdef
from flowgrad.ir.reach import path_nodes
from flowgrad.model import Model
from flowgrad.passes.edits import remove_dead


class Kink(NamedTuple):
    """An operator that is evaluated at a kink: its name, the value it makes, at how many places, and the first of them."""

    op: str
    value: str
    places: int
    first: tuple[int, ...]
    where: str

    def __str__(self) -> str:
        place = f", first at {list(self.first)}" if self.first else ""
        many = "1 place" if self.places == 1 else f"{self.places} places"
        return f"{self.op}, which makes {quote(self.value)}, is at a kink in {many}{place}"


def kinks(model: Model, feeds: Mapping[str, Any] | None = None, *, stabilize: bool = True, **more: Any) -> list[Kink]:
    """Return the operators that ``feeds`` brings exactly to a kink, in order: Relu and Abs at 0, ties of Max, bounds of
    Clip, Sqrt at 0 and their kin.

    There a derivative is a convention (Relu' is 0 at 0), and kinks that cancel in a formula as a whole may make it wrong:
    cos(||x||) is smooth at 0, and its second derivative there is not what that of the norm gives. Formulas are repaired
    first, as before differentiation (``stabilize``). Looked at are the operators on the way from float inputs and
    parameters to the outputs; not ties in the windows of MaxPool, nor the bodies of If, Loop and Scan. Inputs are given as
    to the model. Raises InputError and RunError like a run of it.

    Examples:
        >>> relu = fg.load(b"graph @r (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Relu(%x) }")
        >>> len(fg.kinks(relu, x=np.array([0, 1], np.float32)))
        1
    """
    graph = model.graph.copy()
    if stabilize:
        from flowgrad.passes.stabilize import repair  # loads all operators: not before they are needed

        repair(graph)
    found = _masked(graph)
    results = model.with_graph(graph)(feeds, **more)
    return [_kink(node, results[name]) for node, name in found.items() if results[name].any()]


def _masked(graph: Graph) -> dict[Node, str]:
    """Let a graph tell instead of its outputs where its nodes are at kinks; return the names of these outputs by node."""
    given = [*graph.inputs, *(v for v in graph.constants if v.producer.role != LITERAL)]
    sources = [v for v in given if v.type.dtype.is_float]
    nodes = path_nodes(graph.nodes(), sources, graph.outputs)
    for entry in graph.output_entries:
        graph.remove(entry)
    found: dict[Node, str] = {}
    for node in nodes:
        rule = opdef(node.op).kink_rule
        if rule is not None and node.operands[0].type.dtype.is_float:
            made = rule(Builder(graph, prefix=node.label), node)
            found[node] = graph.add_output(made, graph.unique_output_name(f"{node.label}_kinks")).name
    remove_dead(graph, reversed(graph.nodes()))  # before passes meet it
    return found


def _kink(node: Node, mask: Any) -> Kink:
    first = tuple(int(i) for i in np.argwhere(mask)[0])
    return Kink(node.op, node.results[0].name, int(np.count_nonzero(mask)), first, describe(node))
