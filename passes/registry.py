"""The table of passes: ``@pass_`` declares one, with its kind and its options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flowgrad.ir.errors import InputError, suggestion
from flowgrad.ir.graph import Graph

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


_PASSES: dict[str, Pass] = {}
_MODULES = ("canonicalize", "cse", "dce", "derive", "fold", "simplify", "stabilize")


def pass_(name: str, *, kind: Kind) -> Callable[[PassFunction], PassFunction]:
    """Declare a pass: the function takes the graph to edit; its keyword-only parameters are the options."""

    def declare(function: PassFunction) -> PassFunction:
        if name in _PASSES and _PASSES[name].function.__module__ != function.__module__:
            raise InputError(f"there is a pass {name!r} already", code="pass")
        parameters = inspect.signature(function).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        _PASSES[name] = Pass(name, kind, function, options, summary)
        return function

    return declare


def all_passes() -> dict[str, Pass]:
    """Return every pass by name, those that users declared included."""
    for module in _MODULES:
        importlib.import_module(f"flowgrad.passes.{module}")
    return dict(sorted(_PASSES.items()))


def find_pass(name: str) -> Pass:
    """Return the pass called ``name``; InputError with a suggestion if there is none."""
    passes = all_passes()
    if name not in passes:
        raise InputError(f"no pass {name!r}{suggestion(name, passes)}; passes: {', '.join(passes)}", code="pass")
    return passes[name]
