"""What is being read: functions ready to be inlined, and regions whose nodes are being added to a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from onnx import AttributeProto

from flowgrad.exchange.imported_node import ImportBuilder
from flowgrad.exchange.scopes import HoistKey, Region
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Value


@dataclass
class Function:
    """A function ready to be inlined."""

    region: Region
    opsets: Mapping[str, int]
    defaults: Mapping[str, AttributeProto] = field(default_factory=dict)


@dataclass
class Frame:
    """A region while its nodes are added to the graph of ``b``.

    ``function`` is the one of the file that the nodes lie in; of the body that the standard gives for an operator, which no
    file shows, ``is_standard`` is true. A frame ``is_within`` the graph of another one if both add to the same graph; it
    ``is_branch`` if it stands for an If.
    """

    region: Region
    b: ImportBuilder
    opsets: Mapping[str, int]
    values: dict[str, Value] = field(default_factory=dict)
    hoisted: dict[HoistKey, Value] = field(default_factory=dict)
    attributes: Mapping[str, AttributeProto] | None = None
    names: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    function: str = ""
    is_standard: bool = False
    is_within: bool = False
    is_branch: bool = False
    at: int = 0
    finish: Callable[[], None] = lambda: None

    def value(self, name: str) -> Value:
        """Return what a name stands for here; ValidationError if nothing defines it."""
        if name not in self.values:
            raise ValidationError(f"nothing defines {name!r}", code="dangling", where=name)
        return self.values[name]

    def output_name(self, name: str) -> str:
        """Return what an output of this region is called in the graph."""
        if not name or not self.is_within:
            return name
        return self.names.get(name) or self.b.fresh(self.prefix + name)
