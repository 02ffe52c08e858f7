"""The table of passes: ``@pass_`` declares one, with its kind and its options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flowgrad.ir.errors import InputError, suggestion
from flowgrad.ir.graph import Graph
from flowgrad.ir.registry import Registry
from flowgrad.ir.registry import scoped as scoped  # users take it from here, so that scopes begin with both registries

Kind = Literal["exact", "rounding", "repairs", "extends"]
"""What a pass promises of values: bitwise the same; the same up to rounding; the same up to rounding where the old
result is finite; the old outputs bitwise the same, beside new ones."""

PassFunction = Callable[..., None]


@dataclass(frozen=True)
class Pass:
    """A pass: its name, kind, function, options with their defaults, and one line on what it does."""

    name: str
    kind: Kind
    function: PassFunction
    options: Mapping[str, Any]
    summary: str

    def run(self, graph: Graph, **options: Any) -> None:
        """Edit ``graph``. Raises InputError for an unknown option."""
        for name in options:
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise InputError(f"pass {self.name!r} has no option {name!r}{suggestion(name, self.options)}; it has: "
                                 f"{known}", code="option")
        self.function(graph, **options)


_MODULES = ("canonicalize", "checkpoint", "cse", "dce", "differentiate", "fold", "simplify", "stabilize")
"""Where passes of the project are declared; most modules bear the name of the one that they declare."""


def _load_passes() -> None:
    for module in _MODULES:
        importlib.import_module(f"flowgrad.passes.{module}")


_PASSES: Registry[Pass] = Registry("a pass", _load_passes, InputError)


def pass_(name: str, *, kind: Kind) -> Callable[[PassFunction], PassFunction]:
    """Declare a pass: the function takes the graph to edit; its keyword-only parameters are the options."""

    def declare(function: PassFunction) -> PassFunction:
        parameters = inspect.signature(function).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        _PASSES.add(name, Pass(name, kind, function, options, summary))
        return function

    return declare


def all_passes() -> dict[str, Pass]:
    """Return every pass by name, those that users declared included."""
    return _PASSES.all()


def find_pass(name: str) -> Pass:
    """Return the pass called ``name``; InputError with a suggestion if there is none.

    A pipeline that runs a graph loads its own passes alone, not those that differentiate.
    """
    if name in _MODULES:
        _PASSES.load_part(lambda: importlib.import_module(f"flowgrad.passes.{name}"))
    return _PASSES.entries.get(name) or _PASSES.get(name)
