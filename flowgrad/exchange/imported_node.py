"""One node of a file on its way into the graph, and the builder that keeps the file's names free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import NodeProto

from flowgrad.exchange.scopes import Region
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import ENTRIES, Graph, Value


@dataclass
class ImportedNode:
    """A node with its inputs resolved: adapters change it, then it becomes a node of the graph.

    ``version`` is the opset the file means it in; ``outputs`` are the names in the graph, "" for one left out; ``scope``
    returns what a name stands for where the node is. ``remarks`` are for whoever loads the file; without ``keeps_type``
    outputs become what the file does not declare.
    """

    op: str
    domain: str
    version: int
    inputs: list[Value | None]
    attributes: dict[str, Any]
    outputs: list[str]
    name: str
    proto: NodeProto
    subregions: Mapping[str, Region] = field(default_factory=dict)
    subgraphs: dict[str, Graph] = field(default_factory=dict)
    captures: list[Value] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    keeps_type: bool = True
    scope: Callable[[str], Value] = field(kw_only=True)

    @property
    def label(self) -> str:
        """A name for messages."""
        return next((o for o in self.outputs if o), self.name)

    def input(self, index: int) -> Value:
        """Return an input that must be present; ValidationError otherwise."""
        value = self.optional(index)
        if value is None:
            raise ValidationError(f"{self.op} needs its input {index}", code="arity", where=self.label)
        return value

    def optional(self, index: int) -> Value | None:
        """Return an input, or None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def required(self, name: str) -> Any:
        """Return an attribute that must be given; ValidationError otherwise."""
        if name not in self.attributes:
            raise ValidationError(f"{self.op} needs the attribute {name!r}", code="attribute", where=self.label)
        return self.attributes[name]

    def take(self, name: str, default: Any = None) -> Any:
        """Remove an attribute and return it."""
        return self.attributes.pop(name, default)

    def set_input(self, index: int, value: Value | None) -> None:
        """Set an input, with absent ones before it."""
        self.inputs += [None] * (index + 1 - len(self.inputs))
        self.inputs[index] = value

    def wants(self, index: int) -> bool:
        """Return whether the file names the output ``index``."""
        return index < len(self.outputs) and bool(self.outputs[index])


class ImportBuilder(Builder):
    """A builder whose own names stay clear of those in ``reserved``, which the file has yet to use.

    ``is_inner`` says that it builds the subgraph of a node.
    """

    def __init__(self, graph: Graph, reserved: set[str], is_inner: bool = False) -> None:
        super().__init__(graph)
        self.reserved = reserved
        self.is_inner = is_inner

    def fresh(self, base: str) -> str:
        """Return ``base``, or ``base_1``, ... if it is taken or reserved."""
        name = self.graph.unique_name(base)
        while name in self.reserved:
            base = f"{base}_"
            name = self.graph.unique_name(base)
        return name

    def name_results(self, results: Sequence[Value | None], names: Sequence[str], since: int) -> list[Value | None]:
        """Give the values that stand for a node's outputs the names of the file.

        Those that nodes with a key from ``since`` on produce are renamed; others pass through an Identity.
        """
        named: list[Value | None] = []
        for index, name in enumerate(names):
            value = results[index] if index < len(results) else None
            if name and value is None:
                raise ValidationError(f"no output {index} for {name!r}", code="output", where=name)
            if not name or value is None:
                named.append(None)
            elif value.producer.op in ENTRIES or value.producer.key < since or value in named:
                named.append(self.add("Identity", [value], name=name))
            else:
                self.graph.rename(value, name)
                named.append(value)
        return named
