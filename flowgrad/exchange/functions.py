"""Functions: those of the model, counted before they are expanded, and the bodies the standard gives for operators."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
from onnx import FunctionProto, NodeProto, defs

from flowgrad.exchange.scopes import Region
from flowgrad.exchange.tensors import type_proto
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.limits import Limits
from flowgrad.ir.types import DType, Type

Key = tuple[str, str, str]  # domain, name, overload


def domain_of(name: str) -> str:
    """Return the name of a domain; the default one has two."""
    return "" if name == "ai.onnx" else name


def key_of(node: NodeProto) -> Key:
    """Return what a node calls."""
    return domain_of(node.domain), node.op_type, node.overload


def check_calls(main: Region, functions: Mapping[Key, Region], limits: Limits) -> set[Key]:
    """Return the functions that ``main`` reaches.

    Raises ValidationError where functions call each other in a circle, LimitError if calls are nested too deeply or
    the model would have too many nodes with all of them expanded. Nothing is expanded for that.
    """
    calls = {key: _callees(region.walk(), functions) for key, region in functions.items()}
    wanted = _callees(main.walk(), functions)
    order = _callees_first(list(dict.fromkeys(wanted)), calls)
    size: dict[Key, int] = {}
    depth: dict[Key, int] = {}
    for key in order:
        size[key] = sum(1 for _ in functions[key].walk()) + sum(size[k] for k in calls[key])
        depth[key] = 1 + max((depth[k] for k in calls[key]), default=0)
    total = sum(1 for _ in main.walk()) + sum(size[k] for k in wanted)
    limits.check("expanded_nodes", total)
    limits.check("function_depth", max(depth.values(), default=0))
    return set(order)


def _callees(nodes: Iterable[NodeProto], functions: Mapping[Key, Region]) -> list[Key]:
    return [] if not functions else [key for node in nodes if (key := key_of(node)) in functions]


def _callees_first(roots: Sequence[Key], calls: Mapping[Key, Sequence[Key]]) -> list[Key]:
    done: dict[Key, None] = {}
    open_: set[Key] = set()
    stack: list[tuple[Key, list[Key]]] = [(k, list(dict.fromkeys(calls[k]))) for k in roots]
    while stack:
        key, left = stack[-1]
        if key in done:
            stack.pop()
            continue
        open_.add(key)
        if not left:
            stack.pop()
            open_.discard(key)
            done[key] = None
            continue
        callee = left.pop()
        if callee in open_:
            raise ValidationError(f"the function {callee[1]!r} calls itself", code="cycle", where=callee[1])
        if callee not in done:
            stack.append((callee, list(dict.fromkeys(calls[callee]))))
    return list(done)


@functools.cache
def schema_of(op: str, version: int, domain: str = "") -> Any:
    """Return the schema of an operator in an opset of its domain, None if there is none."""
    try:
        return defs.get_schema(op, version, domain)
    except defs.SchemaError:
        return None


def has_body(op: str, version: int) -> bool:
    """Return whether the standard says what an operator is by a function."""
    schema = schema_of(op, version)
    return schema is not None and bool(schema.has_function or schema.has_context_dependent_function)


def schema_defaults(op: str, version: int) -> dict[str, onnx.AttributeProto]:
    """Return the attributes of an operator that have a default, as protos."""
    schema = schema_of(op, version)
    return {k: a.default_value for k, a in schema.attributes.items() if a.default_value.name}


def kind_conflict(op: str, version: int, name: str, kind: int, domain: str = "") -> str:
    """Return what the standard has against an attribute of this type, or an empty string."""
    schema = schema_of(op, version, domain)
    declared = None if schema is None else schema.attributes.get(name)
    if declared is None or int(declared.type.value) == kind:
        return ""
    given = onnx.AttributeProto.AttributeType.Name(kind) if kind in onnx.AttributeProto.AttributeType.values() else kind
    return f"the attribute {name!r} of {op} is of type {given}, expected {declared.type.name}"


@functools.cache
def type_conflict(op: str, version: int, given: tuple[DType | None, ...], domain: str = "") -> str:
    """Return what the standard has against inputs of these dtypes, or an empty string."""
    schema = schema_of(op, version, domain)
    if schema is None or not schema.inputs:
        return ""
    bound: dict[str, DType] = {}
    for index, dtype in enumerate(given):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        if dtype is None:
            continue
        if index >= len(schema.inputs) and formal.option != onnx.defs.OpSchema.FormalParameterOption.Variadic:
            return f"{op} takes {len(schema.inputs)} inputs, got {len(given)}"
        if dtype.onnx_type not in formal.types:
            return f"{op} of opset {version} takes no {dtype.name} as its input {formal.name!r}"
        varies = formal.option == onnx.defs.OpSchema.FormalParameterOption.Variadic and not formal.is_homogeneous
        if not varies and bound.setdefault(formal.type_str, dtype) != dtype:
            return f"{op} takes inputs of one type, got {bound[formal.type_str].name} and {dtype.name}"
    return ""


@functools.cache
def plain_body(op: str, version: int) -> FunctionProto | None:
    """Return the body of an operator that needs to know no types, or None."""
    schema = schema_of(op, version)
    return schema.function_body if schema is not None and schema.has_function else None


def body_for(node: NodeProto, version: int, types: Sequence[Type | None]) -> FunctionProto | None:
    """Return the function body of a node in an opset, made for the types of its inputs if it depends on them."""
    plain = plain_body(node.op_type, version)
    schema = schema_of(node.op_type, version)
    if plain is not None or schema is None or not schema.has_context_dependent_function:
        return plain
    protos = [type_proto(t).SerializeToString() if t is not None else b"" for t in types]
    if schema.context_dependent_function_opset_versions:
        fits = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        wanted = max(fits, default=min(schema.context_dependent_function_opset_versions))
        data = schema.get_context_dependent_function_with_opset_version(wanted, node.SerializeToString(), protos)
    else:
        data = schema.get_context_dependent_function(node.SerializeToString(), protos)
    return FunctionProto.FromString(data) if data else None
