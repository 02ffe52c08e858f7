"""The flat, frozen form of a graph that specialisation reads: lists indexed by value number, no edges."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from flowgrad.ir.errors import FlowgradError
from flowgrad.ir.graph import CONSTANT, INPUT, LITERAL, Array, Graph, Node, Value, symbolic_of
from flowgrad.ir.infer import infer
from flowgrad.ir.ops.registry import OpDef, Trait, opdef
from flowgrad.ir.types import Type, type_of

ABSENT = -1
KEYED_ELEMENTS = 64
"""Integer inputs of at most this many elements may be part of a program's key."""


@dataclass(slots=True, frozen=True)
class Record:
    """One node: its op, attributes, and the numbers of its values (ABSENT for one left out)."""

    node: Node
    definition: OpDef
    attributes: Mapping[str, object]
    inputs: tuple[int, ...]
    captures: tuple[int, ...]
    outputs: tuple[int, ...]
    subgraphs: Mapping[str, Graph]


class Snapshot:
    """What the outputs of a graph need, in topological order. Later edits of the graph do not reach it."""

    def __init__(self, graph: Graph) -> None:
        self.names: list[str] = []
        self.types: list[Type] = []
        numbers: dict[Value, int] = {}

        def number(value: Value | None) -> int:
            if value is None:
                return ABSENT
            if value not in numbers:
                numbers[value] = len(self.names)
                self.names.append(value.name)
                self.types.append(value.type)
            return numbers[value]

        self.inputs = tuple(number(v) for v in graph.inputs)
        self.parameters = {number(v): v.producer.data for v in graph.parameters if v.producer.data is not None}
        self.constants: dict[int, Array] = {}
        self.records: list[Record] = []
        kept = _needed(graph)
        for value in graph.constants:
            data = value.constant
            if data is not None and value.uses:
                self.constants[number(value)] = data
        for node in kept:
            self.records.append(Record(
                node, opdef(node.op), dict(node.attributes), tuple(number(v) for v in node.inputs),
                tuple(number(v) for v in node.captures), tuple(number(v) for v in node.outputs), dict(node.subgraphs),
            ))
        self.outputs = tuple((entry.name, number(entry.input(0))) for entry in graph.output_entries)
        self.constant_twins = {n: constant_twin(self.names[n], data) for n, data in self.constants.items()}

    def __len__(self) -> int:
        return len(self.names)


def _needed(graph: Graph) -> list[Node]:
    keys = {v.producer.key for v in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes()):
        if node.key in keys:
            kept.append(node)
            keys.update(v.producer.key for v in (*node.inputs, *node.captures) if v is not None)
    return kept[::-1]


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


class _Watched(Value):
    """A twin that notes when a type rule asks for its integers."""

    __slots__ = ("_symbolic", "log", "sources")

    def __init__(self, name: str, type_: Type, sources: frozenset[int], log: set[int]) -> None:
        self.sources, self.log = sources, log
        super().__init__(name, type_, Node(-1, INPUT), 0)

    @property
    def symbolic(self) -> Array | None:
        self.log |= self.sources
        return self._symbolic

    @symbolic.setter
    def symbolic(self, array: Array | None) -> None:
        self._symbolic = array

    @property
    def constant(self) -> Array | None:
        self.log |= self.sources
        return None


def shape_inputs(snapshot: Snapshot) -> tuple[int, ...]:
    """Return the small integer inputs whose values type rules ask for: shapes, axes, starts given at run time."""
    sources = {n: frozenset((n,)) for n in snapshot.inputs if _may_be_keyed(snapshot.types[n])}
    if not sources:
        return ()
    log: set[int] = set()
    for record in snapshot.records:
        reaching = frozenset().union(*(sources.get(n, frozenset()) for n in record.inputs))
        if not reaching:
            continue
        twin = Node(-1, record.node.op)
        twin.attributes = dict(record.attributes)
        twin.subgraphs = dict(record.subgraphs)
        twin.outputs = (None,) * len(record.outputs)
        twin.inputs = tuple(_watched(snapshot, n, sources, log) for n in record.inputs)
        twin.captures = tuple(input_twin(snapshot.names[n], snapshot.types[n]) for n in record.captures)
        with contextlib.suppress(FlowgradError):  # the same rule runs again, on real extents, when a key is specialised
            infer(twin)
        definition = record.definition
        if Trait.SHAPE_ARITHMETIC in definition.traits or definition.value_rule is not None:
            first = record.outputs[0]
            if first != ABSENT and snapshot.types[first].dtype.is_integer:
                sources[first] = reaching
    return tuple(n for n in snapshot.inputs if n in log)


def _may_be_keyed(type_: Type) -> bool:
    if not type_.dtype.is_integer or type_.rank not in (0, 1):
        return False
    size = type_.size
    return not isinstance(size, int) or size <= KEYED_ELEMENTS


def _watched(snapshot: Snapshot, number: int, sources: Mapping[int, frozenset[int]], log: set[int]) -> Value | None:
    if number == ABSENT:
        return None
    if number in snapshot.constant_twins:
        return snapshot.constant_twins[number]
    if number in sources:
        return _Watched(snapshot.names[number], snapshot.types[number], sources[number], log)
    return input_twin(snapshot.names[number], snapshot.types[number])
