"""The expand pass: replaces operators by what their expansions say."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import PassError
from flowgrad.ir.graph import ENTRIES, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import Trait, opdef


def expand_node(graph: Graph, node: Node, pass_name: str = "expand") -> None:
    """Replace one node by its expansion; its output values keep name and identity."""
    rule = opdef(node.op).expansion_rule
    if rule is None:
        raise PassError(f"{node.op} has no expansion", code="expand", where=describe(node))
    b = Builder(graph, prefix=node.label, origin=graph.new_origin(pass_name, (node,)))
    result = rule(b, node)
    replace_node(graph, node, result if isinstance(result, (tuple, list)) else (result,), b)


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
    """Expand every node that ``select`` accepts, also those that expansions bring, in subgraphs too."""
    for inner, node in list(graph.walk()):
        if node.key not in inner.dag or not select(node):
            continue
        before = inner._next_key
        expand_node(inner, node, pass_name)
        fresh = [n for key in range(before, inner._next_key) if key in inner.dag and (n := inner.dag.nodes[key]["entry"])]
        while fresh:
            made = fresh.pop()
            if made.op in ENTRIES or not select(made):
                continue
            before = inner._next_key
            expand_node(inner, made, pass_name)
            fresh += [inner.dag.nodes[k]["entry"] for k in range(before, inner._next_key) if k in inner.dag]


def lacks_rule(node: Node, forward: bool = False) -> bool:
    """True for an op that can be differentiated (in forward mode, if ``forward``) only through its expansion."""
    definition = opdef(node.op)
    if definition.expansion_rule is None or Trait.ZERO in definition.traits:
        return False
    if definition.adjoint_rule is not None or definition.partial_rule is not None:
        return False
    return not forward or not (definition.tangent_rule or {Trait.LINEAR, Trait.BILINEAR} & definition.traits)


def expand_for_derivative(
    graph: Graph, wrt: Sequence[Value], of: Sequence[Value], *, forward: bool = False, keep: Collection[int] = ()
) -> list[Node]:
    """Expand the nodes on a path from ``wrt`` to ``of`` that only their expansion can differentiate, except the
    keys in ``keep``.

    Returns the topological order of the graph that results.
    """
    order = graph.nodes()
    while True:
        chosen = [n for n in path_nodes(order, wrt, of) if lacks_rule(n, forward) and n.key not in keep]
        if not chosen:
            return order
        for node in chosen:
            expand_node(graph, node)
        order = graph.nodes()


def path_nodes(order: Sequence[Node], wrt: Sequence[Value], of: Sequence[Value]) -> list[Node]:
    """Return the nodes on a path from ``wrt`` to ``of``, in order."""
    reached = set(wrt)
    forward = []
    for node in order:
        if any(v in reached for v in (*node.inputs, *node.captures) if v is not None):
            forward.append(node)
            reached.update(v for v in node.outputs if v is not None)
    needed = set(of)
    path = []
    for node in reversed(forward):
        if any(v in needed for v in node.outputs if v is not None):
            path.append(node)
            needed.update(v for v in (*node.inputs, *node.captures) if v is not None)
    return path[::-1]
