"""Another float type for a whole graph: inputs, weights, casts and constants alike.

A narrow type counts in float32: derivatives, whose sums and counts are those of many elements, and what is made of
integers or of numbers that the narrow type does not have, are computed there and rounded where others use them.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.bulk import bulk
from flowgrad.ir.dtypes import optional_of, sequence_of
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import ENTRIES, Graph, Node, Value
from flowgrad.ir.ops.registry import Trait, opdef
from flowgrad.ir.types import FLOAT32, DType, Type, dtype_of

COMPUTING = ("float16", "bfloat16", "float32", "float64")
"""The float types that are exchanged for one another; narrower ones are storage formats and stay."""

LIMITS = ("max", "min", "tiny", "smallest_subnormal")
"""What bounds and masks are made of: numbers that belong to a type."""


DERIVING = ("adjoint", "tangent", "expand")
"""The passes whose nodes are derivatives, or the parts that operators are taken into before."""


@bulk
def converted(graph: Graph, dtype: str | DType) -> Graph:
    """Return ``graph`` computing in ``dtype`` (float16, bfloat16, float32 or float64).

    InputError for another type, and for a number that the type does not have where no float32 can stand for it.
    """
    target = dtype_of(dtype)
    if target.name not in COMPUTING:
        raise InputError(f"astype takes one of {', '.join(COMPUTING)}, got {target.name!r}", code="dtype")
    return _Conversion(graph, target).run(is_outermost=True)


class _Conversion:
    """A graph on its way to another type: its values in that type and, those that are needed so, in float32."""

    def __init__(self, graph: Graph, target: DType) -> None:
        self.graph, self.target = graph, target
        self.result = result = Graph(graph.name, graph.limits)
        result.metadata, result.origins, result._next_dim = dict(graph.metadata), list(graph.origins), graph._next_dim
        result.pinned = dict(graph.pinned)
        self.b = Builder(result, prefix=_unused_prefix(graph))
        self.in_target: dict[Value, Value] = {}
        self.in_float32: dict[Value, Value] = {}
        self.wide, self.held = _computed_in_float32(graph, target)

    def run(self, is_outermost: bool) -> Graph:
        """Return the converted graph."""
        for value in self.graph.inputs:
            stays = is_outermost and _stays_float32(value)
            known = self.in_float32 if stays else self.in_target
            known[value] = self.result.add_input(value.name, value.type if stays else _type(value.type, self.target))
        for value in self.graph.constants:
            self._add_constant(value)
        for node in self.graph.nodes():
            self._add_node(node)
        for entry in self.graph.output_entries:
            self.result.add_output(self._to_target(entry.input(0)), entry.name)
        return self.result

    def _add_constant(self, value: Value) -> None:
        entry = value.producer
        if _stays_float32(value):
            self.in_float32[value] = self.result.add_constant(entry.data, value.name, entry.role)
        elif _computes(value) and (value in self.held or value.literal is not None and not self._is_used_in_target(value)):
            self.in_float32[value] = self.result.add_constant(_data(entry.data, FLOAT32), value.name, entry.role)
        elif _overflows(entry.data, self.target):
            raise self._too_large(value)
        else:
            self.in_target[value] = self.result.add_constant(_data(entry.data, self.target), value.name, entry.role)

    def _add_node(self, node: Node) -> None:
        is_wide, definition = node in self.wide, opdef(node.op)
        own, b = FLOAT32 if is_wide else self.target, self.b
        b.origin = node.origin
        defaults = {n: d for n, d in definition.attributes.items()
                    if isinstance(d, np.ndarray) or (n == "dtype" and n in definition.dtype_attributes and d)}
        made = b.add_node(
            node.op,
            [None if v is None else self._to_float32(v, slot in definition.float32_inputs)
             if is_wide or slot in definition.float32_inputs else self._to_target(v) for slot, v in enumerate(node.inputs)],
            {name: _attribute(name in definition.dtype_attributes, value, own)
             for name, value in (defaults | node.attributes).items()},
            outputs=["" if v is None else self._name(v, is_wide) for v in node.outputs],
            captures=[self._to_float32(v) if is_wide else self._to_target(v) for v in node.captures],
            subgraphs={name: _Conversion(sub, own).run(is_outermost=False) for name, sub in node.subgraphs.items()},
            name=node.name,
        )
        made.metadata, made.adjoint_rule = dict(node.metadata), node.adjoint_rule
        for old, new in zip(node.outputs, made.outputs, strict=True):
            if old is None or new is None:
                continue
            self.result.set_type(new, old.type.with_dtype(new.type.dtype))  # extents keep their names
            if new.name == old.name:
                known = self.in_float32 if _computes(old) and new.type.dtype == FLOAT32 else self.in_target
                known[old] = new
                continue
            (self.in_target[old],) = b.add_node("Cast", [new], {"to": self.target.onnx}, outputs=[old.name]).results
            if old in self.held:
                self.in_float32[old] = new

    def _name(self, value: Value, is_wide: bool) -> str:
        """Return the name of an output: its own, unless that is what its value in the new type will be called."""
        takes_two = is_wide and _computes(value) and (value not in self.held or self._is_used_in_target(value))
        return self.b.fresh(f"{self.b.prefix}_{value.name}") if takes_two else value.name

    def _is_used_in_target(self, value: Value) -> bool:
        return value.name in self.graph.pinned or not value.uses or any(
            user not in self.wide and (user.op in ENTRIES or slot not in opdef(user.op).float32_inputs)
            for (_, slot), user in value.uses.items())

    def _to_target(self, value: Value) -> Value:
        if value not in self.in_target:
            if value in self.held and value.constant is not None:
                raise self._too_large(value)
            self.in_target[value] = self.b.cast(self.in_float32[value], self.target)
        return self.in_target[value]

    def _to_float32(self, value: Value, is_exact: bool = False) -> Value:
        """Return a value in float32; a constant as precise as it was, if ``is_exact`` or it is a number of a formula."""
        if not _computes(value):
            return self.in_target[value]
        if value not in self.in_float32:
            constant = value.constant if is_exact else value.literal
            self.in_float32[value] = (self.b.cast(self.in_target[value], FLOAT32) if constant is None
                                      else self.b.value(_data(constant, FLOAT32)))
        return self.in_float32[value]

    def _too_large(self, value: Value) -> InputError:
        users = ", ".join(sorted({user.op for user in value.users if user not in self.wide}))
        return InputError(f"{self.target.name} does not have the numbers of the constant {value.name!r}, which {users} takes: "
                          f"its largest is {float(ml_dtypes.finfo(self.target.numpy).max):g}",  # type: ignore[no-untyped-call]
                          code="dtype")


def _unused_prefix(graph: Graph) -> str:
    """Return what no name of the graph begins with."""
    prefix, names = "wide", [v.name for entry in graph.entries.values() for v in entry.results]
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    return prefix


def _computed_in_float32(graph: Graph, target: DType) -> tuple[set[Node], set[Value]]:
    """Return the nodes that compute in float32 instead of a narrow ``target``, and the values that stay in it."""
    if target.wide == target:
        return set(), set()
    is_derivative: list[bool] = []
    for origin in graph.origins:
        is_derivative.append(origin.pass_name in DERIVING or any(is_derivative[p] for p in origin.parents))
    wide: set[Node] = set()
    held = {v for v in graph.constants if v.literal is not None and _overflows(v.producer.data, target)}
    for node in graph.nodes():
        floats = [v for v in node.operands if _computes(v) and (v.constant is None or v in held)]
        starts = is_derivative[node.origin] or _is_count(node, target)
        stays = bool(floats) and not node.subgraphs and all(v in held for v in floats)
        mixes = Trait.ELEMENTWISE in opdef(node.op).traits and any(v in held for v in floats)
        if starts or stays or mixes:
            wide.add(node)
        if starts or stays:
            held.update(v for v in node.results if _computes(v))
    return wide, held


def _is_count(node: Node, target: DType) -> bool:
    """Return whether a node makes floats of integers, or of an attribute, that the type may not have."""
    if any(_computes(v) for v in node.operands):
        return False
    integers = [v for v in node.operands if v.type.dtype.is_integer and v.type.dtype.itemsize > 1]
    return Trait.ELEMENTWISE in opdef(node.op).traits and bool(integers) or any(
        isinstance(d, np.ndarray) and _overflows(d, target) for d in node.attributes.values())


def _overflows(data: Any, target: DType) -> bool:
    """Return whether a finite number becomes infinite."""
    if dtype_of(data.dtype).name not in COMPUTING:
        return False
    with np.errstate(over="ignore"):
        return bool((np.isfinite(data) & ~np.isfinite(_data(data, target))).any())


def _computes(value: Value) -> bool:
    return value.type.dtype.name in COMPUTING


def _stays_float32(value: Value) -> bool:
    """True for a value that only such inputs use as are float32 whatever the rest computes in."""
    return bool(value.uses) and all(
        user.op not in ENTRIES and slot in opdef(user.op).float32_inputs for (_, slot), user in value.uses.items()
    )


def _type(type_: Type, target: DType) -> Type:
    return type_.with_dtype(_dtype(type_.dtype, target))


def _dtype(dtype: DType, target: DType) -> DType:
    """Return what stands for a type: of a container, one of the target."""
    if dtype.element is None:
        return target if dtype.name in COMPUTING else dtype
    element = _dtype(dtype.element, target)
    return sequence_of(element) if dtype.kind == "sequence" else optional_of(element)


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
    if is_dtype and isinstance(value, str) and value:
        return _dtype(dtype_of(value), target).name
    return value
