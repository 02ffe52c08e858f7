"""What depends differentiably on what, through subgraphs and over the iterations of loops."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from flowgrad.ir.body_derivatives import Link
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.ops.control.loop_layout import layout_of
from flowgrad.ir.ops.registry import Trait, opdef
from flowgrad.ir.reach import ancestors, dependents


def active_values(order: Sequence[Node], wrt: Iterable[Value]) -> set[Value]:
    """Return the values of floats, containers among them, that depend differentiably on ``wrt``, ``wrt`` included."""
    return dependents(order, wrt, passes=lambda node: not is_flat(node), keeps=lambda value: value.type.dtype.carries)


def is_flat(node: Node) -> bool:
    """Return whether no derivative passes a node: its op is piecewise constant, and no other adjoint rule is given."""
    return Trait.ZERO in opdef(node.op).traits and node.adjoint_rule is None


def active_inputs(body: Graph, links: Sequence[Link], wanted: Collection[int]) -> set[int]:
    """Return ``wanted`` and the inputs of those states that come to depend differentiably on them."""
    order, inputs, outputs = body.nodes(), body.inputs, body.outputs
    found = set(wanted)
    while True:
        active = active_values(order, [inputs[i] for i in found])
        more = {i for i, o in links if i not in found and outputs[o] in active and inputs[i].type.dtype.carries}
        if not more:
            return found
        found |= more


def useful_outputs(body: Graph, links: Sequence[Link], inputs: Collection[int], seeded: Collection[int]) -> set[int]:
    """Return ``seeded`` and the outputs of those states that seeded outputs depend on in other iterations."""
    order, formals, outputs = body.nodes(), body.inputs, body.outputs
    active = active_values(order, [formals[i] for i in inputs])
    found = set(seeded)
    while True:
        needed = ancestors(order, {outputs[o] for o in found} & active, within=active)
        more = {o for i, o in links if o not in found and formals[i] in needed}
        if not more:
            return found
        found |= more


def needed_outputs(body: Graph, links: Sequence[Link], used: Collection[int]) -> tuple[set[int], set[Value]]:
    """Return the outputs that ``used`` ones need over all iterations, and the values these are computed from."""
    order, formals, outputs = body.nodes(), body.inputs, body.outputs
    needed = set(used)
    while True:
        live = ancestors(order, [outputs[o] for o in needed])
        more = {o for i, o in links if o not in needed and formals[i] in live}
        if not more:
            return needed, live
        needed |= more


def dependent_outputs(node: Node, reached: Collection[Value]) -> set[int]:
    """Return which outputs of an If, Loop or Scan depend, differentiably or not, on the operands in ``reached``."""
    operands = [*node.inputs, *node.captures]
    definition = opdef(node.op)
    if any(v in reached for i, v in enumerate(node.inputs) if i in definition.deciding):
        return set(range(len(node.outputs)))
    layout = layout_of(node) if "body" in definition.subgraphs else None
    lead = 0 if layout is None else layout.lead_outputs
    found: set[int] = set()
    for body in node.subgraphs.values():
        shift = len(body.inputs) - len(operands)
        places = {i if i < len(node.inputs) else i + shift for i, v in enumerate(operands) if v in reached}
        found |= _dependent(body, () if layout is None else layout.links, places)
    if lead and 0 in found:
        return set(range(len(node.outputs)))
    return {o - lead for o in found}


def _dependent(body: Graph, links: Sequence[Link], places: Collection[int]) -> set[int]:
    order, formals, outputs = body.nodes(), body.inputs, body.outputs
    starts = set(places)
    while True:
        reached = dependents(order, [formals[i] for i in starts])
        found = {o for o, y in enumerate(outputs) if y in reached}
        more = {i for i, o in links if o in found} - starts
        if not more:
            return found
        starts |= more


def blocking_nodes(graph: Graph, wrt: Sequence[Value], of: Sequence[Value]) -> list[Node]:
    """Return the nodes at which derivatives stop on the paths from ``wrt`` to ``of``; none where only shapes matter."""
    order = graph.nodes()
    reached = dependents(order, wrt, passes=lambda node: Trait.SHAPE_ONLY not in opdef(node.op).traits)
    if not any(y in reached for y in of):
        return []
    needed, active = ancestors(order, of), active_values(order, wrt)
    stops = [node for node in order if any(v in needed for v in node.results)
             and any(v in active for v in node.operands) and any(v in reached for v in node.results)
             and not any(v in active for v in node.results)]
    return stops or _blocking_subgraphs(order, reached, needed)


def _blocking_subgraphs(order: Sequence[Node], reached: set[Value], needed: set[Value]) -> list[Node]:
    """Return the nodes in whose subgraphs derivatives must have stopped, if they stopped nowhere else."""
    found = []
    for node in order:
        if node.subgraphs:
            dependent = dependent_outputs(node, reached)
            if any(y in needed for k, y in enumerate(node.outputs) if y is not None and k in dependent):
                found.append(node)
    return found
