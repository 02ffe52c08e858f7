"""The expand pass: replaces operators by what their expansions say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import PassError, UnsupportedError, ValidationError
from flowgrad.ir.graph import ENTRIES, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import Refusal, Trait, opdef
from flowgrad.ir.reach import dependents, path_nodes
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


def expand_for_derivative(
    graph: Graph, wrt: Sequence[Value], of: Sequence[Value], *, forward: bool = False
) -> list[Node]:
    """Expand the nodes on a path from ``wrt`` to ``of`` that only their expansion can differentiate.

    Returns the topological order of the graph that results. Raises NotDifferentiableError where expansions refuse.
    """
    order = graph.nodes()
    while True:
        chosen = [n for n in path_nodes(order, wrt, of) if lacks_rule(n, forward)]
        if not chosen:
            return order
        refusals = [(n, refused.reason) for n in chosen if (refused := expand_node(graph, n)) is not None]
        if refusals:
            raise refusal_error(refusals, dependents(graph.nodes(), wrt))
        order = graph.nodes()
