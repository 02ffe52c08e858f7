"""Types and symbolic values of a node's outputs, from the rules of its op."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.errors import FlowgradError, RunError, ValidationError
from flowgrad.ir.graph import SYMBOLIC_ELEMENTS, Array, Node, Value
from flowgrad.ir.ops.registry import OpDef, Trait, opdef
from flowgrad.ir.types import Dim, Type, is_dim


def draft(
    op: str,
    inputs: Sequence[Value | None],
    attributes: dict[str, Any],
    *,
    captures: Sequence[Value] = (),
    subgraphs: dict[str, Any] | None = None,
    count: int = 0,
) -> Node:
    """Return a node that belongs to no graph, for type rules to look at; ``count`` outputs are asked for."""
    node = Node(-1, op)
    node.inputs, node.attributes, node.captures = tuple(inputs), attributes, tuple(captures)
    node.subgraphs = subgraphs or {}
    node.outputs = (None,) * count
    return node


def infer(node: Node) -> list[Type | None]:
    """Return the types of the declared outputs of ``node`` (UNKNOWN extents unresolved).

    Raises ValidationError where inputs, attributes or types do not fit the op.
    """
    definition = opdef(node.op)
    check_signature(node, definition)
    if definition.type_rule is None:
        raise ValidationError(f"{node.op} has no type rule", code="op")
    try:
        found = definition.type_rule(node)
    except FlowgradError:
        raise
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValidationError(
            f"{node.op} does not fit its inputs ({type(error).__name__}: {error})", code="type", where=describe(node)
        ) from error
    return list(found) if isinstance(found, (list, tuple)) else [found]


def check_signature(node: Node, definition: OpDef) -> None:
    """Check arity and attribute names of ``node`` against its op."""
    most = len(definition.inputs)
    if len(node.inputs) > most and not definition.variadic:
        raise ValidationError(f"{node.op} takes at most {most} inputs, got {len(node.inputs)}", code="arity",
                              where=describe(node))
    for index in range(definition.required_inputs):
        if index >= len(node.inputs) or node.inputs[index] is None:
            raise ValidationError(f"{node.op} needs its input {definition.inputs[index]!r}", code="arity",
                                  where=describe(node))
    for name in node.attributes:
        if name not in definition.attributes:
            raise ValidationError(f"{node.op} has no attribute {name!r}", code="attribute", where=describe(node))
    for name in definition.attributes:
        definition.attribute(node, name)


def describe(node: Node) -> str:
    """Return a one-line picture of a node for messages."""
    ins = ", ".join(repr(v) if v is not None else "-" for v in node.inputs)
    outs = ", ".join(f"%{v.name}" for v in node.results)
    name = f"  (node {node.name!r})" if node.name else ""
    return f"{outs} = {node.op}({ins}){name}" if outs else f"{node.op}({ins}){name}"


def symbolic_value(node: Node, type_: Type) -> Array | None:
    """Return the symbolic value of the first output, or None where it has none."""
    if not type_.dtype.is_integer or (type_.rank or 0) > 1:
        return None
    if type_.is_static and math.prod(type_.static_shape) > SYMBOLIC_ELEMENTS:
        return None
    definition = opdef(node.op)
    if definition.value_rule is not None:
        return definition.value_rule(node)  # type: ignore[no-any-return]
    if Trait.SHAPE_ARITHMETIC not in definition.traits:
        return None
    operands = [_operand(v) for v in node.inputs]
    if any(o is None and v is not None for o, v in zip(operands, node.inputs, strict=True)):
        return None
    return run_symbolic(definition, node, operands)


def _operand(value: Value | None) -> Array | None:
    if value is None:
        return None
    if value.symbolic is not None:
        return value.symbolic
    constant = value.constant
    return constant if constant is not None and constant.dtype.kind in "iub" else None


def run_symbolic(definition: OpDef, node: Node, operands: Sequence[Array | None]) -> Array | None:
    """Run a kernel on object arrays; None where it meets a question that only the run can answer."""
    keywords = {name: definition.attribute(node, name) for name in definition.attributes}
    # plain numbers as plain integers: an index of dtype object would be refused
    operands = [o if o is None or o.dtype != object or _has_symbols(o) else o.astype(np.int64) for o in operands]
    try:
        result = definition.kernel(*operands, **keywords)
    except (ArithmeticError, RunError, TypeError, ValueError, ValidationError):
        return None  # an index or divisor is a symbol: the value is not known before the run
    result = np.asarray(result[0] if isinstance(result, (tuple, list)) else result)
    if result.size > SYMBOLIC_ELEMENTS or result.ndim > 1:
        return None
    symbolic = result if result.dtype == object else np.array(result.tolist(), dtype=object).reshape(result.shape)
    return symbolic if all(is_dim(x) for x in symbolic.flat) else None


def _has_symbols(array: Array) -> bool:
    return array.dtype == object and any(isinstance(x, Dim) for x in array.flat)
