"""Which opset a node needs, and how its attributes look there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from flowgrad import ir
from flowgrad.exchange.attributes import attribute_of
from flowgrad.exchange.functions import schema_of, type_conflict
from flowgrad.ir.errors import SaveError
from flowgrad.ir.graph import Graph, Node, Value, same_array
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import REQUIRED, opdef
from flowgrad.ir.types import DType

LOWEST_STAMP = 18


class Stamps:
    """Finds opsets and remembers them by the form of the node."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], int] = {}

    def lowest(self, graph: Graph) -> int:
        """Return the lowest opset that is right for every node of ``graph``, 18 at least. Raises SaveError."""
        return max((self.of(n) for _, n in graph.walk()), default=LOWEST_STAMP)

    def of(self, node: Node) -> int:
        """Return the lowest opset, from 18 on, in which this node says what it means."""
        form = _form(node)
        if form not in self._known:
            self._known[form] = _lowest(node)
        return self._known[form]


def _form(node: Node) -> tuple[Any, ...]:
    given = node.attributes
    attributes = tuple(sorted([(k, v if isinstance(v, str) else _is_default(node, k)) for k, v in given.items()])) if given else ()
    return (node.op, attributes, tuple([v and v.type.dtype for v in node.inputs]),
            tuple([v and v.type.dtype for v in node.outputs]))


def _is_default(node: Node, name: str) -> bool:
    return _same(node.attributes[name], opdef(node.op).attributes.get(name, REQUIRED))


def _lowest(node: Node) -> int:
    definition = opdef(node.op)
    first = max(LOWEST_STAMP, definition.since)
    for (name, value), since in definition.values_since.items():
        if definition.attribute(node, name) == value:
            first = max(first, since)
    for version in range(first, ir.OPSET + 1):
        schema = schema_of(node.op, version)
        if schema is not None and (version == first or schema.since_version == version) and _fits(node, schema):
            return version
    types = ", ".join("-" if v is None else v.type.dtype.name for v in node.inputs)
    raise SaveError(f"no opset up to {ir.OPSET} has {node.op} in this form for ({types})", code="opset",
                    where=describe(node))


def _fits(node: Node, schema: Any) -> bool:
    if schema.deprecated or _count(node.inputs) > schema.max_input or _count(node.outputs) > schema.max_output:
        return False
    if any(k not in schema.attributes and not _is_default(node, k) for k in node.attributes):
        return False
    if type_conflict(node.op, schema.since_version, tuple(v and v.type.dtype for v in node.inputs)):
        return False
    return all(t.onnx_type in formal.types for t, formal in _typed(node.outputs, schema.outputs))


def _count(values: Sequence[Value | None]) -> int:
    return max((i for i, v in enumerate(values, 1) if v is not None), default=0)


def _typed(values: Iterable[Any], formals: Any) -> list[tuple[DType, Any]]:
    return [(v.type.dtype, formals[min(i, len(formals) - 1)]) for i, v in enumerate(values) if v is not None]


def attributes_of(node: Node, opset: int) -> list[AttributeProto]:
    """Return the attributes of a node as protos in an opset: those at a default it shares are left out if absent."""
    schema, definition = schema_of(node.op, opset), opdef(node.op)
    protos = []
    for name, default in definition.attributes.items():
        declared = schema.attributes.get(name)
        if declared is None:
            continue
        given = node.attributes.get(name)
        told = schema.has_function or not _same(_schema_default(declared), default)
        if given is None and default not in (None, REQUIRED) and told:
            given = default  # shape inference loses the defaults of an operator with a function body
        if given is not None and not (isinstance(given, tuple) and given == default == ()):
            protos.append(attribute_of(name, given, int(declared.type.value)))
    return protos


def _schema_default(attribute: Any) -> Any:
    proto = attribute.default_value
    if not proto.name:
        return None
    value = onnx.helper.get_attribute_value(proto)
    return value.decode() if isinstance(value, bytes) else tuple(value) if isinstance(value, list) else value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and same_array(a, b)
    if isinstance(a, float) and isinstance(b, (int, float)):
        return bool(np.float32(a) == np.float32(b))
    return bool(a == b)


def ir_version_for(opset: int) -> int:
    """Return the lowest IR version that may import an opset."""
    return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))
