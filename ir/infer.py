"""Types and symbolic values of a node's outputs, from the rules of its op."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.attribute_kinds import kind_conflict
from flowgrad.ir.errors import FlowgradError, RunError, ValidationError
from flowgrad.ir.graph import SYMBOLIC_ELEMENTS, Array, Node, Value
from flowgrad.ir.limits import check_time
from flowgrad.ir.ops.registry import OpDef, Trait, opdef
from flowgrad.ir.types import Dim, Type, is_dim

SYMBOLIC_WORK = 2**13
"""Elements times size of their expressions that a kernel may compute on symbolically."""

_INT64 = 2**63


def draft(
    op: str,
    inputs: Sequence[Value | None],
    attributes: dict[str, Any],
    *,
    captures: Sequence[Value] = (),
    subgraphs: Mapping[str, Any] | None = None,
    count: int = 0,
) -> Node:
    """Return a node that belongs to no graph, for type rules to look at; ``count`` outputs are asked for."""
    node = Node(-1, op)
    node.inputs, node.attributes, node.captures = tuple(inputs), attributes, tuple(captures)
    node.subgraphs = dict(subgraphs) if subgraphs else {}
    node.outputs = (None,) * count
    return node


def infer(node: Node) -> list[Type | None]:
    """Return the types of the declared outputs of ``node`` (UNKNOWN extents unresolved).

    Raises ValidationError where inputs, attributes or types do not fit the op.
    """
    if not node.attributes and not node.subgraphs and (known := known_types(node.op, node.inputs, len(node.outputs))):
        return list(known)
    return _inferred(node)


def known_types(op: str, inputs: Sequence[Value | None], count: int) -> tuple[Type | None, ...]:
    """Return the types of ``count`` outputs of an op without attributes, where the types of the inputs tell them.

    Nothing is returned where extents are read from what inputs hold, where an input is a container (what made it may
    tell more than its type), or where something does not fit: see ``infer``.
    """
    definition = opdef(op)
    if definition.extents or definition.subgraphs:
        return ()
    return _types_by_types(definition, definition.type_rule, tuple([v and v.type for v in inputs]), count)


@functools.lru_cache(maxsize=4096)
def _types_by_types(
    definition: OpDef, rule: Callable[[Node], Any] | None, types: tuple[Type | None, ...], count: int,
) -> tuple[Type | None, ...]:
    """Return what ``rule`` says of inputs of which nothing but the types is known."""
    if any(t is not None and t.dtype.element is not None for t in types):
        return ()
    source = Node(-1, definition.name)
    inputs = [t and Value(f"input {i}", t, source, i) for i, t in enumerate(types)]
    try:
        return tuple(_inferred(draft(definition.name, inputs, {}, count=count)))
    except FlowgradError:
        return ()


def _inferred(node: Node) -> list[Type | None]:
    check_time()
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
    return [found] if isinstance(found, Type) else list(found)


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
    if len({v.type.dtype for v in node.inputs if v is not None}) > 1 and not definition.subgraphs:
        _check_dtypes(node, definition)
    for name, given in node.attributes.items():
        if name not in definition.attributes:
            raise ValidationError(f"{node.op} has no attribute {name!r}", code="attribute", where=describe(node))
        if expected := kind_conflict(definition.kinds[name], given):
            raise ValidationError(f"the attribute {name!r} of {node.op} is {_shown(given)}, expected {expected}",
                                  code="attribute", where=describe(node))
    for name in definition.required_attributes:
        definition.attribute(node, name)


def _check_dtypes(node: Node, definition: OpDef) -> None:
    """Check that floats have one dtype where the op does not say otherwise."""
    first: Value | None = None
    checked = node.inputs[: len(definition.inputs)] if definition.mixes_rest else node.inputs
    for slot, value in enumerate(checked):
        if value is None or slot in definition.float32_inputs:
            continue
        dtype = value.type.dtype
        if slot in definition.new_dtypes:
            first = None
        if dtype.kind != "float" or dtype.itemsize < 2:
            continue
        if first is None:
            first = value
        elif dtype != first.type.dtype:
            raise ValidationError(f"{node.op} takes inputs of one dtype: {value!r}, expected {first.type.dtype.name} as of {first!r}",
                                  code="dtype", where=describe(node))


def _shown(given: Any) -> str:
    return repr(given) if not isinstance(given, int) or abs(given) < 2**64 else "an integer of more than 64 bits"


def describe(node: Node) -> str:
    """Return a one-line picture of a node for messages."""
    ins = ", ".join(repr(v) if v is not None else "-" for v in node.inputs)
    outs = ", ".join(f"%{v.name}" for v in node.results)
    name = f"  (node {node.name!r})" if node.name else ""
    return f"{outs} = {node.op}({ins}){name}" if outs else f"{node.op}({ins}){name}"


def symbolic_value(node: Node, type_: Type) -> Array | None:
    """Return the symbolic value of the first output, which has the inferred type ``type_``; None where it has none."""
    if not _may_be_symbolic(type_):
        return None
    definition = opdef(node.op)
    if definition.value_rule is not None:
        return _value_by_rule(definition, node)
    operands = _operands(node, definition)
    return None if operands is None else run_symbolic(definition, node, operands, type_)


def stored_symbolic_value(node: Node) -> Array | None:
    """Return the symbolic value of a node from a file, whose declared types nobody has checked yet.

    Kernels run on what is inferred alone: a file may declare four elements for what makes a billion.
    """
    first = node.outputs[0] if node.outputs else None
    if first is None or not _may_be_symbolic(first.type):
        return None
    definition = opdef(node.op)
    if definition.value_rule is not None:
        return _value_by_rule(definition, node)
    if _operands(node, definition) is None:
        return None
    try:
        inferred = infer(node)
    except FlowgradError:
        return None  # for verification to report
    return symbolic_value(node, inferred[0]) if inferred and inferred[0] is not None else None


def _may_be_symbolic(type_: Type) -> bool:
    if not type_.dtype.is_integer or (type_.rank or 0) > 1:
        return False
    return not type_.is_static or math.prod(type_.static_shape) <= SYMBOLIC_ELEMENTS


def _value_by_rule(definition: OpDef, node: Node) -> Array | None:
    try:
        return _bounded(definition.value_rule(node))  # type: ignore[misc]  # asked for where there is one
    except (ArithmeticError, LookupError, TypeError, ValueError, ValidationError):
        return None  # attributes or types that do not fit: verification reports them


def _operands(node: Node, definition: OpDef) -> list[Array | None] | None:
    """Return the symbolic values of all inputs if the op can compute on them."""
    if Trait.SHAPE_ARITHMETIC not in definition.traits:
        return None
    operands = [_operand(v) for v in node.inputs]
    if any(o is None and v is not None for o, v in zip(operands, node.inputs, strict=True)):
        return None
    return operands


def _operand(value: Value | None) -> Array | None:
    if value is None:
        return None
    if value.symbolic is not None:
        return value.symbolic
    constant = value.constant
    return constant if constant is not None and constant.dtype.kind in "iub" else None


def run_symbolic(definition: OpDef, node: Node, operands: Sequence[Array | None], type_: Type) -> Array | None:
    """Run a kernel on object arrays; None where it meets a question that only the run can answer, or much work."""
    count = math.prod(type_.static_shape) if type_.is_static else 1
    if count * sum(_largest(o) for o in operands if o is not None) > SYMBOLIC_WORK:
        return None
    keywords = {name: definition.attribute(node, name) for name in definition.attributes}
    # plain numbers as plain integers: an index of dtype object would be refused
    operands = [o if o is None or o.dtype != object or _has_symbols(o) else o.astype(np.int64) for o in operands]
    try:
        result = definition.kernel(*operands, **keywords)
    except (ArithmeticError, LookupError, RunError, TypeError, ValueError, ValidationError):
        return None  # an index or divisor is a symbol: the value is not known before the run
    result = np.asarray(result[0] if isinstance(result, (tuple, list)) else result)
    return _bounded(result if result.dtype == object else np.array(result.tolist(), dtype=object).reshape(result.shape))


def _bounded(symbolic: Array | None) -> Array | None:
    """Return a symbolic value if it is small, and every entry of it an int64 or a dim."""
    if symbolic is None or symbolic.size > SYMBOLIC_ELEMENTS or symbolic.ndim > 1:
        return None
    fits = all(is_dim(x) and (isinstance(x, Dim) or -_INT64 <= x < _INT64) for x in symbolic.flat)
    return symbolic if fits else None


def _largest(array: Array) -> int:
    """Return the largest size of an entry; a plain integer counts 1."""
    if array.dtype != object:
        return 1
    return max((x.size for x in array.flat if isinstance(x, Dim)), default=1)


def _has_symbols(array: Array) -> bool:
    return array.dtype == object and any(isinstance(x, Dim) for x in array.flat)
