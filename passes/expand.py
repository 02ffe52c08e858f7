"""The expand pass: replaces operators by what their expansions say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flowgrad.ir.boundary import boundary
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import PassError, UnsupportedError, ValidationError
from flowgrad.ir.graph import ENTRIES, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import Refusal, Trait, opdef
from flowgrad.ir.reach import dependents, path_nodes
from flowgrad.ir.types import BOOL
from flowgrad.passes.activity import active_values
from flowgrad.passes.refusals import refusal_error, refusal_of


def expand_node(graph: Graph, node: Node, pass_name: str = "expand") -> Refusal | None:
    """Replace one node by its expansion; its output values keep name and identity.

    Returns the refusal of an expansion that does not get along with the types it meets; the node then stays.
    """
    rule = opdef(node.op).expansion_rule
    if rule is None:
        return Refusal("it has no expansion")
    b = Builder(graph, prefix=node.label, origin=graph.new_origin(pass_name, (node,)))
    try:
        with boundary(node, "the expansion of", PassError, "rule"):
            result = rule(b, node)
    except ValidationError as error:
        return refusal_of(node, error)
    if isinstance(result, Refusal):
        return result
    replace_node(graph, node, result if isinstance(result, (tuple, list)) else (result,), b)
    return None


def replace_node(graph: Graph, node: Node, results: Sequence[Value | None], b: Builder) -> None:
    """Let ``results`` take the place of the outputs of ``node``, then remove it."""
    taken: set[Value] = set()
    for old, new in zip(list(node.outputs), results, strict=False):
        if old is None:
            continue
        if new is None:
            raise PassError(f"the replacement of {node.op} has no value for %{old.name}", code="expand",
                            where=describe(node))
        if new.producer.op in ENTRIES or new in taken or new.producer is node:
            new = b.Identity(new)
        taken.add(old)
        graph.adopt(old, new)
    graph.remove(node)


def expand(graph: Graph, select: Callable[[Node], bool], pass_name: str = "expand") -> None:
    """Expand every node that ``select`` accepts, also those that expansions bring, in subgraphs too.

    Raises UnsupportedError where an expansion refuses.
    """
    for inner, node in list(graph.walk()):
        pending = [node] if node.key in inner.entries else []
        while pending:
            chosen = pending.pop()
            if chosen.op in ENTRIES or not select(chosen):
                continue
            before = inner._next_key
            refused = expand_node(inner, chosen, pass_name)
            if refused is not None:
                raise UnsupportedError(f"{chosen.op} cannot be written in other operators: {refused.reason}", code="expand",
                                       where=describe(chosen))
            pending += [inner.entries[k] for k in range(before, inner._next_key) if k in inner.entries]


def lacks_rule(node: Node, forward: bool = False) -> bool:
    """True for an op that can be differentiated (in forward mode, if ``forward``) only through its expansion."""
    definition = opdef(node.op)
    if definition.expansion_rule is None or Trait.ZERO in definition.traits or node.adjoint_rule is not None:
        return False
    if definition.adjoint_rule is not None or definition.partial_rule is not None:
        return False
    return not forward or not (definition.tangent_rule or {Trait.LINEAR, Trait.BILINEAR} & definition.traits)


class Beside(NamedTuple):
    """A node whose outputs an expansion stands in for while the graph is differentiated."""

    node: Node
    outputs: tuple[Value | None, ...]

    def restore(self, graph: Graph) -> None:
        """Let the node give its outputs again, so that they are the bits they were; remove what nothing else uses."""
        for index, value in enumerate(self.outputs):
            if value is None:
                continue
            stand_in = value.producer
            own = graph.set_output(self.node, index, graph.unique_name(value.name), value.type)
            graph.adopt(value, own)
            _remove_unused(graph, stand_in, self.node.key)


def _remove_unused(graph: Graph, node: Node, first_key: int) -> None:
    pending = [node]
    while pending:
        top = pending.pop()
        if top.op in ENTRIES or top.key < first_key or top.key not in graph.dag or any(v.uses for v in top.results):
            continue
        inputs = top.operands
        graph.remove(top)
        pending += [v.producer for v in inputs]


def _expand_beside(graph: Graph, node: Node) -> Beside | Refusal:
    """Let the expansion of a node, in the type that is computed in, stand in for its outputs."""
    rule = opdef(node.op).expansion_rule
    assert rule is not None
    b = Builder(graph, prefix=node.label, origin=graph.new_origin("expand", (node,)))
    wide = _wide_twin(b, node)
    try:
        result = rule(b, wide)
    except ValidationError as error:
        return refusal_of(node, error)
    if isinstance(result, Refusal):
        return result
    results = result if isinstance(result, (tuple, list)) else (result,)
    outputs = node.outputs
    for old, new in zip(outputs, results, strict=False):
        if old is not None:
            graph.adopt(old, b.Identity(new) if new.type.dtype == old.type.dtype else b.cast_like(new, old))
    if wide is not node:
        graph.remove(wide)
    return Beside(node, outputs)


def _wide_twin(b: Builder, node: Node) -> Node:
    """Return ``node``, or a twin that takes its narrow floats in the type that is computed in."""
    if not any(v.type.dtype.is_narrow for v in node.operands):
        return node
    inputs = [v if v is None else b.cast(v, v.type.dtype.wide) for v in node.inputs]
    names = ["" if v is None else b.fresh(v.name) for v in node.outputs]
    return b.add_node(node.op, inputs, node.attributes, outputs=names)


def expand_for_derivative(
    graph: Graph, wrt: Sequence[Value], of: Sequence[Value], *, forward: bool = False
) -> tuple[list[Node], list[Beside]]:
    """Let expansions stand in for the nodes on a path from ``wrt`` to ``of`` that only they can differentiate.

    Returns the topological order of the graph that results, and what is to be restored when the derivative is made.
    Raises NotDifferentiableError where expansions refuse.
    """
    order = graph.nodes()
    _check_hidden(order, wrt, of)
    beside: list[Beside] = []
    while True:
        chosen = [n for n in path_nodes(order, wrt, of) if lacks_rule(n, forward)]
        if not chosen:
            return order, beside[::-1]
        found = [(n, _expand_beside(graph, n)) for n in chosen]
        refusals = [(n, made.reason) for n, made in found if isinstance(made, Refusal)]
        if refusals:
            raise refusal_error(refusals, dependents(graph.nodes(), wrt))
        beside += [made for _, made in found if isinstance(made, Beside)]
        order = graph.nodes()


def _check_hidden(order: Sequence[Node], wrt: Sequence[Value], of: Sequence[Value]) -> None:
    """Raise NotDifferentiableError where integers that hold what is differentiated come to count in ``of``."""
    hiding = [n for n in order if Trait.HIDES in opdef(n.op).traits and not n.output().type.dtype.is_float]
    if not hiding:
        return
    active = active_values(order, wrt)
    found = [n for n in hiding if n.input(0) in active and _is_counted(order, n, of)]
    if found:
        raise refusal_error([(n, "the derivative of a number is not to be had from its bits") for n in found], active)


def _is_counted(order: Sequence[Node], node: Node, of: Sequence[Value]) -> bool:
    """Return whether ``of`` depends on what ``node`` gives, other than by shapes and truth values."""
    reached = dependents(order, node.results, passes=lambda n: Trait.SHAPE_ONLY not in opdef(n.op).traits,
                         keeps=lambda v: v.type.dtype != BOOL)
    return any(y in reached for y in of)
