"""From the representation to plain ONNX operators: those of the flowgrad domain and residual outputs become formulas."""

from __future__ import annotations

from collections.abc import Sequence

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import SaveError, UnsupportedError, ValidationError
from flowgrad.ir.graph import ENTRIES, Graph, Node, Value
from flowgrad.ir.infer import describe, infer
from flowgrad.ir.ops.registry import FLOWGRAD, opdef
from flowgrad.ir.types import Type
from flowgrad.passes.edits import fingerprint
from flowgrad.passes.expand import expand
from flowgrad.passes.refusals import refusal_of

ROUNDS = 16
"""How often expansions may bring operators that need expanding themselves in another way."""


def lowered(graph: Graph) -> Graph:
    """Return a copy of ``graph`` in operators of the default domain alone, with the outputs the standard gives them.

    Raises SaveError with everything that has no ONNX form.
    """
    graph = graph.copy()
    for _ in range(ROUNDS):
        before = fingerprint(graph)
        try:
            _replace_residuals(graph)
            expand(graph, _needs_expansion, "export")
        except UnsupportedError as error:
            raise SaveError(error.message, code=error.code, where=error.where) from error
        if before == fingerprint(graph):
            break
    _complete_outputs(graph)
    left = [n for _, n in graph.walk() if opdef(n.op).domain == FLOWGRAD or _residual_outputs(n)]
    if left:
        listed = ", ".join(f"{op}" for op in sorted({n.op for n in left}))
        raise SaveError(f"no ONNX form is known for {listed}", code="expand", where=describe(left[0]))
    return graph


def _needs_expansion(node: Node) -> bool:
    definition = opdef(node.op)
    if definition.expansion_rule is None:
        return False
    return definition.domain == FLOWGRAD or (definition.export_rule is not None and definition.export_rule(node))


def _residual_outputs(node: Node) -> Sequence[Value]:
    definition = opdef(node.op)
    if not definition.residuals:
        return ()
    return [v for v in node.outputs[len(definition.outputs) - len(definition.residuals):] if v is not None]


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
            try:
                made = rule(b, node)
            except ValidationError as error:
                raise UnsupportedError(f"the residual {definition.outputs[value.index]!r} of {node.op} cannot be written in "
                                       f"other operators: {refusal_of(node, error).reason}", code="expand",
                                       where=describe(node)) from error
            if made.producer.op in ENTRIES or made.producer is node:
                made = b.Identity(made)
            inner.adopt(value, made)


def _complete_outputs(graph: Graph) -> None:
    for inner, node in list(graph.walk()):
        for index, type_ in enumerate(_wanted_outputs(node)):
            if type_ is not None and (index >= len(node.outputs) or node.outputs[index] is None):
                inner.set_output(node, index, inner.unique_name(f"{node.label}_{index}"), type_)


def _wanted_outputs(node: Node) -> Sequence[Type | None]:
    """Return the types of the outputs that the standard or a runtime wants named, as far as some may be missing."""
    definition = opdef(node.op)
    if definition.export_outputs_rule is not None:
        return definition.export_outputs_rule(node)
    required = node.outputs[: definition.required_outputs]
    is_complete = len(required) == definition.required_outputs and None not in required
    return () if is_complete else infer(node)[: definition.required_outputs]
