"""Shapes that a caller fixes: inputs get the extents that were given, and all that depends on them follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowgrad.ir.errors import InputError, ValidationError, suggestion
from flowgrad.ir.graph import Graph, Node
from flowgrad.ir.infer import infer, symbolic_value
from flowgrad.ir.types import UNKNOWN, Dim, Shape, Type, merge_types

Shapes = Mapping[str, "Sequence[int | None] | int"]
"""The shape of an input by its name (None keeps an extent), or the extent of a named dim by the name of the dim (a
number, or a sequence of one)."""


@dataclass(frozen=True)
class FixedShapes:
    """The types of the inputs with the extents that were given, and what that says of named dims."""

    types: dict[str, Type]
    extents: dict[str, int]


def fixed_shapes(types: Mapping[str, Type], shapes: Shapes) -> FixedShapes:
    """Return the types of inputs with the extents that ``shapes`` gives; a named dim has one extent everywhere.

    Raises InputError, with the input and what the file says of it, for a name that is neither an input nor a dim ("name"), a
    wrong rank, an extent that the file has otherwise, or two that contradict each other ("shape").
    """
    binding = _Binding(types)
    for name, given in shapes.items():
        if _is_extent(given):
            binding.dim(name, int(given))  # type: ignore[arg-type]
        elif binding.is_dim(name) and isinstance(given, (list, tuple)) and len(given) == 1 and _is_extent(given[0]):
            binding.dim(name, int(given[0]))  # type: ignore[arg-type]
        else:
            binding.input(name, given)
    fixed = {name: binding.fixed(name, type_) for name, type_ in types.items()}
    return FixedShapes(fixed, binding.extents)


def fix_shapes(graph: Graph, shapes: Shapes) -> None:
    """Give the inputs of ``graph`` the extents in ``shapes``, and every value the type that follows.

    Raises InputError as ``fixed_shapes`` does, and where an operator cannot have what follows.
    """
    fixed = fixed_shapes({v.name: v.type for v in graph.inputs}, shapes)
    graphs = [graph, *(sub for _, node in graph.walk() for sub in node.subgraphs.values())]
    for each in graphs:
        for value in each.values.values():
            each.set_type(value, _with_extents(value.type, fixed.extents))
    for value in graph.inputs:
        graph.set_type(value, fixed.types[value.name])
    for each in reversed(graphs):  # a body before its node
        for node in each.nodes():
            _retype(each, node)


def _retype(graph: Graph, node: Node) -> None:
    try:
        for value, type_ in zip(node.outputs, infer(node), strict=False):
            if value is not None and type_ is not None:
                graph.set_type(value, merge_types(value.type, type_))
    except ValidationError as error:
        raise InputError(f"the shapes that were given do not fit {node.op}: {error.message}", code="shape",
                         where=error.where or node.label) from error
    first = node.outputs[0] if node.outputs else None
    if first is not None:
        first.symbolic = symbolic_value(node, first.type)


def _with_extents(type_: Type, extents: Mapping[str, int]) -> Type:
    if type_.shape is None or type_.is_static:
        return type_
    return type_.with_shape([d.substitute(extents) if isinstance(d, Dim) else d for d in type_.shape])


@dataclass
class _Binding:
    """What the shapes read so far say of each input and each named dim, and who said it."""

    types: Mapping[str, Type]
    given: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    extents: dict[str, int] = field(default_factory=dict)
    said_by: dict[str, str] = field(default_factory=dict)

    def dims(self) -> list[str]:
        """Return the names of all dims of the inputs."""
        return sorted({n for t in self.types.values() for d in t.shape or () if isinstance(d, Dim) for n in d.names()})

    def is_dim(self, name: str) -> bool:
        """Return whether ``name`` is that of a dim and of no input."""
        return name not in self.types and name in self.dims()

    def dim(self, name: str, extent: int) -> None:
        known = self.dims()
        if name in self.types:
            raise InputError(f"input {name!r} is {self._declared(name)}: give its shape as a sequence, got {extent}", code="shape")
        if name not in known:
            raise InputError(f"no input and no dim {name!r}{suggestion(name, [*known, *self.types])}; {self._listed(known)}",
                             code="name")
        self._bind(name, extent, f"the entry {name!r} of shapes")

    def input(self, name: str, given: Any) -> None:
        if name not in self.types:
            raise InputError(f"no input {name!r}{suggestion(name, self.types)}; {self._listed(())}", code="name")
        type_ = self.types[name]
        shape = _shape(name, given)
        if type_.dtype.element is not None:
            raise InputError(f"input {name!r} is {self._declared(name)}, which has no shape; got {_shown(shape)}", code="shape")
        if type_.rank not in (None, len(shape)):
            raise InputError(f"input {name!r} is {self._declared(name)}, of rank {type_.rank}; got {_shown(shape)}, of rank "
                             f"{len(shape)}", code="shape")
        self.given[name] = shape
        for dim, extent in zip(type_.shape or (), shape, strict=False):
            if extent is None:
                continue
            if isinstance(dim, int) and dim != extent:
                raise InputError(f"input {name!r} is {self._declared(name)}; got {_shown(shape)}: an extent that is a number in "
                                 "the file cannot be another", code="shape")
            if isinstance(dim, Dim) and dim in (Dim.named(n) for n in dim.names()):
                self._bind(next(iter(dim.names())), extent, f"the shape {_shown(shape)} of input {name!r}")

    def _bind(self, name: str, extent: int, by: str) -> None:
        if extent < 0:
            raise InputError(f"{by} is given the extent {extent}", code="shape")
        if self.extents.setdefault(name, extent) != extent:
            raise InputError(f"{by} makes the dim {name!r} {extent}, {self.said_by[name]} makes it {self.extents[name]}: a named "
                             "dim has one extent in the file", code="shape")
        self.said_by.setdefault(name, by)

    def fixed(self, name: str, type_: Type) -> Type:
        """Return the type of an input with all that is known of its extents."""
        follows, shape = _with_extents(type_, self.extents), self.given.get(name)
        if shape is None:
            return follows
        if follows.shape is None:
            return follows.with_shape([UNKNOWN if n is None else n for n in shape])
        for dim, extent in zip(follows.shape, shape, strict=True):
            if extent is not None and dim != extent:
                known = "; give the dims that it is made of" if isinstance(dim, Dim) else ""
                raise InputError(f"input {name!r} is {self._declared(name)}; got {_shown(shape)} where {dim!r} is expected{known}",
                                 code="shape")
        return follows

    def _declared(self, name: str) -> str:
        return f"{self.types[name]!r} in the file"

    def _listed(self, dims: Iterable[str]) -> str:
        listed = ", ".join(f"{n}: {t!r}" for n, t in list(self.types.items())[:8]) or "none"
        return f"inputs of the file: {listed}{'; dims: ' if dims else ''}{', '.join(list(dims)[:8])}"


def _is_extent(given: object) -> bool:
    return isinstance(given, (int, np.integer)) and not isinstance(given, bool)


def _shape(name: str, given: Any) -> tuple[int | None, ...]:
    """Return a shape as integers and None. Raises InputError for what is none."""
    if isinstance(given, (list, tuple)) and all(n is None or (_is_extent(n) and n >= 0) for n in given):
        return tuple(None if n is None else int(n) for n in given)
    raise InputError(f"the shape of input {name!r} is a sequence of extents, None for one that stays open, got {given!r}",
                     code="shape")


def _shown(shape: Shape | tuple[int | None, ...]) -> str:
    return f"[{','.join('?' if n is None else str(n) for n in shape)}]"
