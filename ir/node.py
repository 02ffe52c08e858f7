"""Nodes and values: what a graph is made of, and where each came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.names import LITERAL_NAME
from flowgrad.ir.types import DimLike, Type, dtype_of

if TYPE_CHECKING:
    from flowgrad.ir.graph import Graph

Array = np.ndarray[Any, Any]
Attribute = Any  # int, float, str, bytes, Array, or a tuple of ints, floats, strings or bytes

INPUT, CONSTANT, OUTPUT = "Input", "Constant", "Output"
ENTRIES = (INPUT, CONSTANT, OUTPUT)
LITERAL, INITIALIZER, PARAMETER, DEFAULT, BUFFER = "literal", "initializer", "parameter", "default", "buffer"
"""The roles of constants: a buffer is an initializer that its file says is not trained."""

FEEDABLE = (PARAMETER, DEFAULT)
"""The roles of constants that a run may replace: named in ``wrt``, or an input of the file that has a default value."""

INLINE_ELEMENTS = 64
"""Literals of at most this many elements need no name: they are interned, and printed where they are used."""

SYMBOLIC_ELEMENTS = 1024
"""Integer values with at most this many elements are propagated as symbolic values."""


class Origin(NamedTuple):
    """Where nodes come from: the pass, the names of the nodes it worked on, and the origins of those."""

    pass_name: str
    names: tuple[str, ...]
    parents: tuple[int, ...]


class Value:
    """A named, typed edge: produced by one entry, used by any number.

    ``symbolic`` holds, for a small integer value that shapes depend on, an object array of integers and dims.
    ``members`` is what the tensors of a sequence have in common, once somebody has asked. An anonymous literal has the name "".
    """

    __slots__ = ("index", "members", "name", "producer", "symbolic", "type", "uses")

    def __init__(self, name: str, type_: Type, producer: Node, index: int) -> None:
        self.name = name
        self.type = type_
        self.producer = producer
        self.index = index
        self.symbolic: Array | None = None
        self.members: Type | None = None
        self.uses: dict[tuple[int, int], Node] = {}

    @property
    def constant(self) -> Array | None:
        """The array of a literal or initializer; None for anything that a run can change."""
        producer = self.producer
        return None if producer.data is None or producer.role in FEEDABLE else producer.data

    @property
    def literal(self) -> Array | None:
        """The array of a constant that is a number of a formula; None for a weight, which may get other values later."""
        array = self.constant
        if array is None or self.producer.role == LITERAL or (not array.ndim and LITERAL_NAME.fullmatch(self.name)):
            return array
        return None

    @property
    def users(self) -> list[Node]:
        """The entries that use this value, Output entries included, each once, in order of first use."""
        return list(dict.fromkeys(self.uses.values()))

    @property
    def shape(self) -> tuple[DimLike, ...]:
        """The shape; ValidationError if the rank is unknown."""
        if self.type.shape is None:
            raise ValidationError(f"the rank of %{self.name} is not known", code="rank", where=self.name)
        return self.type.shape

    @property
    def dtype(self) -> Any:
        return self.type.dtype

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type!r}"


class Node:
    """One application of an op, or the Input, Constant or Output entry of a graph.

    ``inputs`` holds None for an absent optional input; ``outputs`` holds None for one that nobody asked for.
    ``captures`` are the outer values that the closed ``subgraphs`` take after their formal inputs.
    ``name`` and ``metadata`` are what the ONNX file called the node; for an Output entry, the name of the output.
    ``adjoint_rule`` stands in place of the op's own; it lives in memory, not in files.
    """

    __slots__ = ("adjoint_rule", "attributes", "captures", "data", "inputs", "key", "metadata", "name", "op", "origin",
                 "outputs", "role", "subgraphs")

    def __init__(self, key: int, op: str) -> None:
        self.key = key
        self.op = op
        self.attributes: dict[str, Attribute] = {}
        self.inputs: tuple[Value | None, ...] = ()
        self.outputs: tuple[Value | None, ...] = ()
        self.captures: tuple[Value, ...] = ()
        self.subgraphs: dict[str, Graph] = {}
        self.origin = 0
        self.name = ""
        self.metadata: dict[str, str] = {}
        self.data: Array | None = None
        self.role = ""
        self.adjoint_rule: Callable[..., Any] | None = None

    @property
    def label(self) -> str:
        """A short name for messages and origins: the first output's name, else the node's own."""
        for value in self.outputs:
            if value is not None and value.name:
                return value.name
        return self.name

    @property
    def operands(self) -> list[Value]:
        """The inputs that are there, then the captures."""
        present = list(self.inputs) if None not in self.inputs else [v for v in self.inputs if v is not None]
        return present + list(self.captures) if self.captures else present  # type: ignore[return-value]

    @property
    def slots(self) -> list[tuple[int, Value]]:
        """The operands with the slots they feed: inputs count 0, 1, ..., captures -1, -2, ..."""
        found = [(i, v) for i, v in enumerate(self.inputs) if v is not None]
        return found + [(-1 - i, v) for i, v in enumerate(self.captures)] if self.captures else found

    @property
    def results(self) -> list[Value]:
        """The outputs that are there."""
        return list(self.outputs) if None not in self.outputs else [v for v in self.outputs if v]  # type: ignore[arg-type]

    def output(self, index: int = 0) -> Value:
        """Return an output that must be present."""
        value = self.outputs[index] if index < len(self.outputs) else None
        if value is None:
            raise ValidationError(f"{self.op} has no output {index}", code="output", where=self.label)
        return value

    def input(self, index: int) -> Value:
        """Return an input that must be present."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise ValidationError(f"{self.op} has no input {index}", code="input", where=self.label)
        return value

    def optional(self, index: int) -> Value | None:
        """Return an input, or None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def optional_output(self, index: int) -> Value | None:
        """Return an output, or None where it is absent."""
        return self.outputs[index] if index < len(self.outputs) else None

    def twin(self, mapping: dict[Value, Value]) -> Node:
        """Return a node like this one but for subgraphs, whose operands ``mapping`` knows, and note its outputs there."""
        key = self.key
        twin = Node(key, self.op)
        if self.attributes:
            twin.attributes = dict(self.attributes)
        if self.metadata:
            twin.metadata = dict(self.metadata)
        twin.origin, twin.name, twin.data, twin.role = self.origin, self.name, self.data, self.role
        twin.adjoint_rule = self.adjoint_rule
        inputs: list[Value | None] = []
        for slot, value in enumerate(self.inputs):
            operand = None if value is None else mapping[value]
            if operand is not None:
                operand.uses[key, slot] = twin
            inputs.append(operand)
        twin.inputs = tuple(inputs)
        if self.captures:
            twin.captures = tuple([mapping[v] for v in self.captures])
            for index, operand in enumerate(twin.captures):
                operand.uses[key, -1 - index] = twin
        outputs: list[Value | None] = []
        for value in self.outputs:
            if value is None:
                outputs.append(None)
                continue
            copied = mapping[value] = Value(value.name, value.type, twin, value.index)
            copied.symbolic = value.symbolic
            outputs.append(copied)
        twin.outputs = tuple(outputs)
        return twin

    def __repr__(self) -> str:
        return f"<{self.op} {self.label}>"


def symbolic_of(array: Array) -> Array | None:
    """Return the symbolic value of a constant: an object array if it is a small integer array of rank 0 or 1."""
    if array.dtype.kind not in "iu" or array.ndim > 1 or array.size > SYMBOLIC_ELEMENTS:
        return None
    return np.array(array.tolist(), dtype=object).reshape(array.shape)


def frozen(array: Array) -> Array:
    """Return ``array`` read-only; what others could still write to is copied."""
    if array.flags.writeable:
        array = array.copy() if array.base is not None else array.view()
        array.flags.writeable = False
    return array


def same_array(a: Array, b: Array) -> bool:
    """Return whether two arrays have the same dtype, shape and bytes (so NaN equals NaN and 0.0 differs from -0.0)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(np.array_equal(a, b)) if dtype_of(a.dtype).kind == "string" else a.tobytes() == b.tobytes()
