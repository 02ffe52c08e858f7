"""Attributes of nodes: proto to Python value and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from flowgrad.exchange.external import ExternalFolder
from flowgrad.exchange.tensors import array_of, container_type, dense_of, tensor_of, text_of, type_proto
from flowgrad.ir.errors import SaveError, UnsupportedError, ValidationError
from flowgrad.ir.limits import Limits
from flowgrad.ir.types import Type, dtype_of

_FIELDS = {AttributeProto.FLOAT: "f", AttributeProto.INT: "i", AttributeProto.STRING: "s", AttributeProto.TENSOR: "t",
           AttributeProto.SPARSE_TENSOR: "sparse_tensor", AttributeProto.GRAPH: "g", AttributeProto.FLOATS: "floats",
           AttributeProto.INTS: "ints", AttributeProto.STRINGS: "strings"}


def kind_of(attribute: AttributeProto) -> int:
    """Return the type of an attribute, which old files leave to be guessed from the field that is set."""
    if attribute.type != AttributeProto.UNDEFINED:
        return attribute.type
    for kind, name in _FIELDS.items():
        filled = getattr(attribute, name) if kind >= AttributeProto.FLOATS else attribute.HasField(name)
        if kind != AttributeProto.SPARSE_TENSOR and filled:
            return kind
    return AttributeProto.INTS


def value_of(attribute: AttributeProto, folder: ExternalFolder, limits: Limits) -> Any:
    """Return the value of an attribute that is no graph: a number, text, an array or a tuple."""
    kind = kind_of(attribute)
    if kind == AttributeProto.FLOAT:
        return float(attribute.f)
    if kind == AttributeProto.INT:
        return int(attribute.i)
    if kind == AttributeProto.STRING:
        return text_of(attribute.s, attribute.name)
    if kind == AttributeProto.TENSOR:
        return array_of(attribute.t, folder, limits)
    if kind == AttributeProto.SPARSE_TENSOR:
        return dense_of(attribute.sparse_tensor, folder, limits)
    if kind == AttributeProto.FLOATS:
        return tuple(float(x) for x in attribute.floats)
    if kind == AttributeProto.INTS:
        return tuple(int(x) for x in attribute.ints)
    if kind == AttributeProto.STRINGS:
        return tuple(text_of(s, attribute.name) for s in attribute.strings)
    if kind == AttributeProto.TYPE_PROTO:
        return container_type(attribute.tp, attribute.name).name
    if kind in (AttributeProto.TENSORS, AttributeProto.SPARSE_TENSORS, AttributeProto.TYPE_PROTOS):
        raise UnsupportedError(f"the attribute {attribute.name!r} holds a list of types or tensors", code="attribute",
                               where=attribute.name)
    raise ValidationError(f"the attribute {attribute.name!r} has the unknown type {kind}", code="attribute",
                          where=attribute.name)


def constant_value(value: Any, name: str) -> Any:
    """Return what the attribute ``name`` of a Constant node stands for, as an array."""
    if name in ("value", "sparse_value"):
        return value
    dtype = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64,
             "value_string": object, "value_strings": object}.get(name)
    if dtype is None:
        raise ValidationError(f"Constant has no attribute {name!r}", code="attribute", where=name)
    return np.asarray(value, dtype)


def attribute_of(name: str, value: Any, kind: int) -> AttributeProto:
    """Return the proto of an attribute whose schema says type ``kind``; SaveError if the value does not fit."""
    if kind == AttributeProto.TENSOR:
        return onnx.helper.make_attribute(name, tensor_of(np.asarray(value)))
    if kind == AttributeProto.TYPE_PROTO:
        return onnx.helper.make_attribute(name, type_proto(Type(dtype_of(value), None)))
    try:
        return onnx.helper.make_attribute(name, _converted(value, kind), attr_type=kind)
    except (TypeError, ValueError) as error:
        raise SaveError(f"the attribute {name}={value!r} cannot be written: {error}", code="attribute") from error


def _converted(value: Any, kind: int) -> Any:
    if kind == AttributeProto.FLOAT:
        return float(value)
    if kind == AttributeProto.INT:
        return int(value)
    if kind == AttributeProto.FLOATS:
        return [float(x) for x in value]
    if kind == AttributeProto.INTS:
        return [int(x) for x in value]
    return list(value) if isinstance(value, tuple) else value
