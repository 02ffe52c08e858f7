"""Another float type for a whole graph: inputs, weights, casts and constants alike."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.bulk import bulk
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import ENTRIES, Graph, Node, Value
from flowgrad.ir.ops.registry import opdef
from flowgrad.ir.types import FLOAT32, DType, Type, dtype_of

COMPUTING = ("float16", "bfloat16", "float32", "float64")
"""The float types that are exchanged for one another; narrower ones are storage formats and stay."""

LIMITS = ("max", "min", "tiny", "smallest_subnormal")
"""What bounds and masks are made of: numbers that belong to a type."""


@bulk
def converted(graph: Graph, dtype: str | DType) -> Graph:
    """Return ``graph`` computing in ``dtype`` (float16, bfloat16, float32 or float64). InputError for another."""
    target = dtype_of(dtype)
    if target.name not in COMPUTING:
        raise InputError(f"astype takes one of {', '.join(COMPUTING)}, got {target.name!r}", code="dtype")
    return _convert(graph, target, True)


def _convert(graph: Graph, target: DType, is_outermost: bool) -> Graph:
    result = Graph(graph.name, graph.limits)
    result.metadata, result.origins, result._next_dim = dict(graph.metadata), list(graph.origins), graph._next_dim
    result.pinned = dict(graph.pinned)
    known: dict[Value, Value] = {}
    for value in graph.inputs:
        stays = is_outermost and _stays_float32(value)
        known[value] = result.add_input(value.name, value.type if stays else _type(value.type, target))
    for value in graph.constants:
        entry = value.producer
        data = entry.data if _stays_float32(value) else _data(entry.data, target)
        known[value] = result.add_constant(data, value.name, entry.role)
    b = Builder(result)
    for node in graph.nodes():
        _convert_node(b, node, known, target)
    for entry in graph.output_entries:
        result.add_output(known[entry.input(0)], entry.name)
    return result


def _convert_node(b: Builder, node: Node, known: dict[Value, Value], target: DType) -> None:
    inputs = [None if v is None else known[v] for v in node.inputs]
    b.origin, b.prefix = node.origin, node.label
    definition = opdef(node.op)
    for slot, value in enumerate(inputs):
        if slot in definition.float32_inputs and value is not None and value.type.dtype != FLOAT32:
            held = node.input(slot).constant
            inputs[slot] = b.cast(value, FLOAT32) if held is None else b.value(held)  # as precise as it was
    attributes = {n: d for n, d in definition.attributes.items() if isinstance(d, np.ndarray)} | node.attributes
    made = b.add_node(
        node.op,
        inputs,
        {name: _attribute(name in definition.dtype_attributes, value, target) for name, value in attributes.items()},
        outputs=["" if v is None else v.name for v in node.outputs],
        captures=[known[v] for v in node.captures],
        subgraphs={name: _convert(sub, target, False) for name, sub in node.subgraphs.items()},
        types=[None if v is None else _type(v.type, target) for v in node.outputs],
        name=node.name,
    )
    made.metadata, made.adjoint_rule = dict(node.metadata), node.adjoint_rule
    known.update((v, w) for v, w in zip(node.outputs, made.outputs, strict=True) if v is not None and w is not None)


def _stays_float32(value: Value) -> bool:
    """True for a value that only such inputs use as are float32 whatever the rest computes in."""
    return bool(value.uses) and all(
        user.op not in ENTRIES and slot in opdef(user.op).float32_inputs for (_, slot), user in value.uses.items()
    )


def _type(type_: Type, target: DType) -> Type:
    return type_.with_dtype(target) if type_.dtype.name in COMPUTING else type_


def _data(data: Any, target: DType) -> Any:
    """Return an array in another type; what stands at a limit of the old type stands at that of the new one.

    Masks and bounds are written so: the largest finite number, its negative, the smallest normal one and the smallest.
    """
    if dtype_of(data.dtype).name not in COMPUTING:
        return data
    old, new = (ml_dtypes.finfo(t) for t in (data.dtype, target.numpy))  # type: ignore[no-untyped-call]
    places = [(data == getattr(old, limit), getattr(new, limit)) for limit in LIMITS]
    others = np.where(np.logical_or.reduce([place for place, _ in places]), np.zeros((), data.dtype), data)
    converted = others.astype(target.numpy)
    for place, limit in places:
        converted[place] = limit
    return converted


def _attribute(is_dtype: bool, value: Any, target: DType) -> Any:
    if isinstance(value, np.ndarray):
        return _data(value, target)
    if is_dtype and isinstance(value, int) and value and dtype_of(value).name in COMPUTING:
        return target.onnx
    return value
