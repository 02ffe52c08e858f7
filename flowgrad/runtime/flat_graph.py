"""The flat, frozen form of a graph that specialisation reads: lists indexed by value number, no edges."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from flowgrad.ir.graph import CONSTANT, INPUT, LITERAL, Array, Graph, Node, Value, symbolic_of
from flowgrad.ir.ops.registry import OpDef, Trait, opdef
from flowgrad.ir.reach import needed_nodes
from flowgrad.ir.types import Type, type_of

ABSENT = -1
KEYED_ELEMENTS = 64
"""Integer inputs of at most this many elements may be part of a program's key."""


class Record(NamedTuple):
    """One node: its op, attributes, and the numbers of its values (ABSENT for one left out).

    ``key`` is what nodes share that have one form if their operands do; None for one that has a form of its own.
    """

    node: Node
    definition: OpDef
    attributes: Mapping[str, object]
    inputs: tuple[int, ...]
    captures: tuple[int, ...]
    outputs: tuple[int, ...]
    subgraphs: Mapping[str, Graph]
    key: Hashable | None


_NONE: Mapping[str, Any] = MappingProxyType({})


class FlatGraph:
    """What the outputs of a graph need, in topological order. Later edits of the graph do not reach it."""

    def __init__(self, graph: Graph) -> None:
        names: list[str] = []
        types: list[Type] = []
        numbers: dict[Value, int] = {}
        self.names, self.types = names, types

        def number(value: Value | None) -> int:
            if value is None:
                return ABSENT
            known = numbers.get(value)
            if known is None:
                known = numbers[value] = len(numbers)
                names.append(value.name)
                types.append(value.type)
            return known

        self.inputs = tuple(number(v) for v in graph.inputs)
        self.parameters = {number(v): v.producer.data for v in graph.parameters if v.producer.data is not None}
        self.constants: dict[int, Array] = {}
        self.records: list[Record] = []
        kept = needed_nodes(graph.nodes(), graph.outputs)
        for value in graph.constants:
            data = value.constant
            if data is not None and value.uses:
                self.constants[number(value)] = data
        for node in kept:
            definition = opdef(node.op)
            self.records.append(Record(
                node, definition, dict(node.attributes) if node.attributes else _NONE,
                tuple([number(v) for v in node.inputs]), tuple([number(v) for v in node.captures]) if node.captures else (),
                tuple([number(v) for v in node.outputs]), dict(node.subgraphs) if node.subgraphs else _NONE,
                _key(node, definition),
            ))
        self.outputs = tuple((entry.name, number(entry.input(0))) for entry in graph.output_entries)
        self.constant_twins = {n: constant_twin(self.names[n], data) for n, data in self.constants.items()}

    def __len__(self) -> int:
        return len(self.names)


def _key(node: Node, definition: OpDef) -> Hashable | None:
    if node.subgraphs or len(node.outputs) != 1 or None in node.inputs or node.outputs[0] is None:
        return None
    attributes = attributes_key(node.attributes)
    return None if attributes is None else (definition, attributes)


def attributes_key(attributes: Mapping[str, Any]) -> Hashable | None:
    """Return what equal attributes share; None for floats, of which different ones may be equal, and arrays."""
    if not attributes:
        return ()
    for value in attributes.values():
        if not all(type(item) in (int, str) for item in (value if isinstance(value, tuple) else (value,))):
            return None
    return tuple(attributes.items())


def constant_twin(name: str, data: Array) -> Value:
    """Return a value that type rules see as a constant with these data."""
    producer = Node(-1, CONSTANT)
    data = data.view()
    data.flags.writeable = False  # whoever is handed it as a result copies it
    producer.data, producer.role = data, LITERAL
    value = Value(name, type_of(data), producer, 0)
    value.symbolic = symbolic_of(data)
    producer.outputs = (value,)
    return value


def input_twin(name: str, type_: Type) -> Value:
    """Return a value that type rules see as a graph input."""
    producer = Node(-1, INPUT)
    value = Value(name, type_, producer, 0)
    producer.outputs = (value,)
    return value


def shape_inputs(flat: FlatGraph) -> tuple[int, ...]:
    """Return the small integer inputs that steer extents: shapes, axes, starts given at run time."""
    sources = {n: frozenset((n,)) for n in flat.inputs if _may_be_keyed(flat.types[n])}
    if not sources:
        return ()
    steering: set[int] = set()
    for record in flat.records:
        definition = record.definition
        reaching = [sources.get(n, frozenset()) for n in record.inputs]
        steering.update(*(found for slot, found in enumerate(reaching) if slot in definition.extents))
        first = record.outputs[0] if record.outputs else ABSENT
        carries = Trait.SHAPE_ARITHMETIC in definition.traits or definition.value_rule is not None
        if carries and first != ABSENT and flat.types[first].dtype.is_integer and any(reaching):
            sources[first] = frozenset().union(*reaching)
    return tuple(n for n in flat.inputs if n in steering)


def _may_be_keyed(type_: Type) -> bool:
    if not type_.dtype.is_integer or type_.rank not in (0, 1):
        return False
    size = type_.size
    return not isinstance(size, int) or size <= KEYED_ELEMENTS
