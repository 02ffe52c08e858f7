"""What a file declares of its values, and how far it is believed: shapes, and inputs that have a default value."""

from __future__ import annotations

import onnx

from flowgrad.exchange.adapters import is_unknown
from flowgrad.exchange.tensors import container_type, element_type
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import ENTRIES, Graph, Value
from flowgrad.ir.ops.registry import Trait, find_op
from flowgrad.ir.types import UNKNOWN, DimLike, Type


def refine(graph: Graph, value: Value, declared: onnx.TypeProto, trusted: bool = False) -> str:
    """Return what is wrong with the shape that the file declares for a value, "" if nothing is.

    Runtimes do not believe declared shapes, so files with wrong ones abound, and what is believed here would end in wrong
    derivatives: only a ``trusted`` file adds what nothing else tells, and never the names of extents, which exporters
    reuse. Raises ValidationError for another element type, which no runtime accepts.
    """
    if declared.WhichOneof("value") != "tensor_type":
        if declared.WhichOneof("value") is None:
            return ""
        if container_type(declared, value.name) is value.type.dtype:
            return ""
        raise ValidationError(f"{value!r} is declared as {declared.WhichOneof('value')}", code="dtype", where=value.name)
    tensor = declared.tensor_type
    if tensor.elem_type and element_type(tensor.elem_type, value.name) != value.type.dtype:
        raise ValidationError(f"{value!r} is declared as {element_type(tensor.elem_type).name}", code="dtype",
                              where=value.name)
    if not tensor.HasField("shape"):
        return ""
    dims: list[DimLike] = [int(d.dim_value) if d.HasField("dim_value") and d.dim_value >= 0 else UNKNOWN
                           for d in tensor.shape.dim]
    shape = value.type.shape
    if shape is None:
        if trusted:
            graph.set_type(value, Type(value.type.dtype, tuple(dims)))
        return ""
    if len(shape) != len(dims) or any(isinstance(a, int) and isinstance(b, int) and a != b
                                      for a, b in zip(shape, dims, strict=True)):
        shown = ["?" if d is UNKNOWN else d for d in dims]
        return f"{value!r} is declared with shape {shown}"
    if value.producer.op in ENTRIES or not trusted:
        return ""
    merged = tuple(b if is_unknown(a) and isinstance(b, int) else a for a, b in zip(shape, dims, strict=True))
    if merged != shape:
        graph.set_type(value, value.type.with_shape(merged))
    return ""


def steers_shapes(value: Value) -> bool:
    """Return whether shapes depend on a constant: an operator reads extents from it, or computes on such numbers."""
    for (_, slot), user in value.uses.items():
        definition = None if user.op in ENTRIES else find_op(user.op)
        if definition is not None and slot in definition.extents:
            return True
        if definition is not None and Trait.SHAPE_ARITHMETIC in definition.traits and value.type.dtype.is_integer and any(
            y.type.dtype.is_integer for y in user.results
        ):
            return True
    return False
