"""From the representation to plain ONNX operators: own operators and residual outputs become formulas."""

from __future__ import annotations

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import SaveError
from flowgrad.ir.graph import ENTRIES, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import attr, opdef
from flowgrad.ir.ops.shape import piece_types
from flowgrad.passes.expand import expand

ROUNDS = 16
"""How often expansions may bring operators that need expanding themselves in another way."""


def lowered(graph: Graph) -> Graph:
    """Return a copy of ``graph`` in operators of the default domain alone, with the outputs the standard gives them.

    Raises SaveError with everything that has no ONNX form.
    """
    graph = graph.copy()
    for _ in range(ROUNDS):
        before = graph.version, sum(g.version for g, _ in graph.walk())
        _replace_residuals(graph)
        expand(graph, _needs_expansion, "export")
        if before == (graph.version, sum(g.version for g, _ in graph.walk())):
            break
    _complete_splits(graph)
    left = [n for _, n in graph.walk() if opdef(n.op).own or _residual_outputs(n)]
    if left:
        listed = ", ".join(f"{op}" for op in sorted({n.op for n in left}))
        raise SaveError(f"no ONNX form is known for {listed}", code="expand", where=describe(left[0]))
    return graph


def _needs_expansion(node: Node) -> bool:
    definition = opdef(node.op)
    if definition.expansion_rule is None:
        return False
    return definition.own or (node.op == "Scan" and _may_be_empty(node)) or _updates_in_place(node)


def _updates_in_place(node: Node) -> bool:
    """True for batch normalization in training mode: onnxruntime writes the running statistics over its inputs, even
    over constants that others, or the next run, use."""
    return node.op == "BatchNormalization" and bool(attr(node, "training_mode"))


def _may_be_empty(node: Node) -> bool:
    """True for a Scan over what may be a sequence of length 0, which runtimes refuse."""
    count = int(node.attributes.get("num_scan_inputs", 1))
    axes = node.attributes.get("scan_input_axes") or (0,) * count
    first = node.input(len(node.inputs) - count)
    extent = None if first.type.shape is None else first.shape[axes[0]]
    return not isinstance(extent, int) or extent == 0


def _residual_outputs(node: Node) -> list[Value]:
    definition = opdef(node.op)
    plain = len(definition.outputs) - len(definition.residuals)
    return [v for v in node.outputs[plain:] if v is not None] if definition.residuals else []


def _replace_residuals(graph: Graph) -> None:
    for inner, node in list(graph.walk()):
        for value in _residual_outputs(node):
            if not value.uses:
                inner.drop_output(value)
                continue
            definition = opdef(node.op)
            rule = definition.residual_rules.get(definition.outputs[value.index])
            if rule is None:
                continue
            b = Builder(inner, prefix=node.label, origin=inner.new_origin("export", (node,)))
            made = rule(b, node)
            if made.producer.op in ENTRIES or made.producer is node:
                made = b.Identity(made)
            inner.adopt(value, made)


def _complete_splits(graph: Graph) -> None:
    """Name every piece of every Split: runtimes take no fewer outputs than pieces, and crash at one without a name."""
    for inner, node in list(graph.walk()):
        if node.op != "Split":
            continue
        types = piece_types(node)
        for index, type_ in enumerate(types):
            if index >= len(node.outputs) or node.outputs[index] is None:
                inner.set_output(node, index, inner.unique_name(f"{node.label}_{index}"), type_)
