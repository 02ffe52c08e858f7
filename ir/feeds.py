"""What may be fed to a graph, and the checks of what was fed: names, dtypes, shapes, named dims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.dtypes import fed_container
from flowgrad.ir.errors import InputError, ValidationError, suggestion
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.types import Dim, Type


class Signature:
    """The types of what may be fed to a graph, by name: every input has to be fed, a parameter may be.

    It is taken when it is made: later edits of the graph do not reach it.
    """

    def __init__(self, graph: Graph) -> None:
        self.inputs = {v.name: v.type for v in graph.inputs}
        self.parameters = {v.name: v.type for v in graph.parameters}
        self.types = {**self.inputs, **self.parameters}

    def checked(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Return the feeds as arrays of the declared types: inputs, then parameters, each in the order of the graph.

        Raises InputError for a name that is not known (code "name"), an input without a value ("missing"), a dtype
        ("dtype"), a rank or an extent ("shape") other than declared, inputs that disagree on a named dim ("shape").
        """
        self.check_names(feeds)
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise InputError(f"no value given for input {missing[0]!r}", code="missing")
        arrays = {name: _checked_array(name, type_, feeds[name]) for name, type_ in self.types.items() if name in feeds}
        self._check_dims({name: arrays[name].shape for name in self.inputs})
        return arrays

    def check_names(self, names: Iterable[str]) -> None:
        """Raise InputError for the first of ``names`` that is neither an input nor a parameter."""
        for name in names:
            if name not in self.types:
                raise InputError(f"no input {name!r}{suggestion(name, self.types)}; inputs: {', '.join(self.types)}",
                                 code="name")

    def check_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise InputError unless ``shapes``, one for each input, are possible together."""
        for name, type_ in self.inputs.items():
            _check_shape(name, type_, shapes[name])
        self._check_dims(shapes)

    def _check_dims(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise InputError where two inputs disagree on the extent of a named dim, or on an expression of some."""
        extents: dict[str, int] = {}
        owners: dict[str, str] = {}
        composite: list[tuple[str, Dim, int]] = []
        for name, type_ in self.inputs.items():
            for dim, extent in zip(type_.shape or (), shapes[name], strict=False):
                if not isinstance(dim, Dim):
                    continue
                symbol = _only_name(dim)
                if symbol is None:
                    composite.append((name, dim, extent))
                elif extents.setdefault(symbol, extent) != extent:
                    raise InputError(f"inputs {owners[symbol]!r} and {name!r} disagree on the extent {symbol!r}: "
                                     f"{extents[symbol]} and {extent}", code="shape")
                else:
                    owners.setdefault(symbol, name)
        for name, dim, extent in composite:
            expected = _extent_of(dim, extents)
            if expected not in (None, extent):
                raise InputError(f"input {name!r} has extent {extent} where {dim!r} = {expected} is expected", code="shape")


def as_array(name: str, given: Any) -> Array:
    """Return what is fed to ``name`` as an array; InputError if it is none."""
    try:
        return np.asarray(given)
    except ValueError as error:
        raise InputError(f"input {name!r} is no array: {error}", code="feeds") from error


def _checked_array(name: str, type_: Type, given: Any) -> Array:
    if type_.dtype.element is not None:
        try:
            return fed_container(given, type_.dtype)
        except InputError as error:
            raise InputError(f"input {name!r}: {error}", code=error.code) from error
    array = as_array(name, given)
    stray = _stray(array, type_)
    if stray is not None:
        held = "is" if array.ndim == 0 else "holds"
        raise InputError(f"input {name!r} {held} {stray}; {type_!r} is expected", code="dtype" if array.ndim else "missing")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if type_.dtype.kind != "string" and array.dtype != type_.dtype.numpy:
        is_text = array.dtype.kind in "OUST"
        raise InputError(f"input {name!r} is {'string' if is_text else array.dtype.name}, expected {type_.dtype.name}; "
                         f"convert it with .astype({type_.dtype.name!r})", code="dtype")
    _check_shape(name, type_, array.shape)
    return array


def _stray(array: Array, type_: Type) -> str | None:
    """Return what of an array of Python objects is none that an input may hold."""
    if array.dtype != object:
        return None if type_.dtype.kind != "string" or array.dtype.kind in "UST" else f"numbers of type {array.dtype.name}"
    others = [v for v in array.flat if not isinstance(v, (str, bytes))]
    if any(v is None for v in others):
        return "None"
    return f"an object of type {type(others[0]).__name__}" if others else None


def _check_shape(name: str, type_: Type, shape: Sequence[int]) -> None:
    declared = type_.shape
    if declared is None:
        return
    fits = len(declared) == len(shape) and all(n == d if isinstance(d, int) else n >= 0
                                               for d, n in zip(declared, shape, strict=True))
    if not fits:
        raise InputError(f"input {name!r} has shape {list(shape)}, expected {list(declared)!r}", code="shape")


def _extent_of(dim: Dim, extents: Mapping[str, int]) -> int | None:
    """Return the value of ``dim``, or None if the extents of named dims do not tell it."""
    if not dim.names() <= set(extents):
        return None
    try:
        return dim.evaluate(extents)
    except ValidationError:  # a quotient by a dim that is 0 here: the run has to tell
        return None


def _only_name(dim: Dim) -> str | None:
    """Return the name that ``dim`` consists of, or None if it is an expression."""
    (monomial, coefficient), *rest = dim.terms
    if rest or coefficient != 1 or len(monomial) != 1 or not isinstance(monomial[0], str):
        return None
    return monomial[0]
