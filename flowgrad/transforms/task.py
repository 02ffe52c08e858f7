"""What derivative transforms share: a copy of the graph at work, and the limits they keep to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

from flowgrad.ir.boundary import guarded
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import CONSTANT, Graph, Node, Value
from flowgrad.ir.limits import Limits, in_time
from flowgrad.ir.roles import Role
from flowgrad.model import Model
from flowgrad.passes.adjoint import Zero
from flowgrad.passes.differentiate import adjoint, fed_like
from flowgrad.passes.parameters import sharing
from flowgrad.passes.selection import Names, as_list, find_value

P = ParamSpec("P")
R = TypeVar("R")


def stage(transform: Callable[P, R]) -> Callable[P, R]:
    """Let a transform keep to the ``wall_seconds`` of its model, the first argument, and end in ResourceError without memory."""

    @wraps(transform)
    @guarded("while differentiating")
    def wrapped(*arguments: P.args, **keywords: P.kwargs) -> R:
        model = arguments[0] if arguments else keywords.get("model")
        limits = model.graph.limits if isinstance(model, Model) else Limits.default()
        return in_time(limits, transform, *arguments, **keywords)

    return wrapped


def check_option(zero: Zero) -> Zero:
    """Return ``zero``; InputError if it is none of its words."""
    if zero not in ("error", "allow"):
        raise InputError(f"zero is 'error' or 'allow', got {zero!r}", code="option")
    return zero


def shared_notes(wrt: Sequence[Value]) -> list[str]:
    """Return a remark on the parameters that several operators use, if there are any.

    Exporters store equal weights once, and those of a fresh network are equal.
    """
    shared = [(x, uses) for x in wrt if x.producer.op == CONSTANT and (uses := sharing(x))]
    if not shared:
        return []
    shown = "; ".join(f"{x.name!r} ({uses})" for x, uses in shared[:5]) + ("; ..." if len(shared) > 5 else "")
    return [f"{len(shared)} parameters are shared by several uses, and their gradient is the sum over them: {shown}"]


class Task:
    """One transform at work: a copy of the graph, and the names and notes it makes."""

    def __init__(self, model: Model, stabilize: bool) -> None:
        if not isinstance(model, Model):
            raise InputError(f"a transform takes a Model, not {type(model).__name__}: load it first, as in "
                             "fg.grad(fg.load('model.onnx'))", code="type")
        self.model = model
        self.stabilize = stabilize and model.stabilize
        self.graph: Graph = model.graph.copy()
        self.roles: dict[Role, str] = dict(model.roles)
        self.notes = list(model.notes)

    def finish(self) -> Model:
        """Return the model made."""
        made = Model(self.graph, self.roles, self.notes)
        made.stabilize = self.stabilize
        return made

    def repair(self, values: Sequence[Value], keep: Names = ()) -> list[tuple[str, Value]]:
        """Pin ``values`` and those called ``keep``, and repair what hazards the rest holds; returns the kept ones."""
        from flowgrad.passes.stabilize import repair  # loads all operators: not before they are needed

        kept = [(name, find_value(self.graph, name)) for name in as_list(keep)]
        for value in (*values, *(v for _, v in kept)):
            self.graph.pin(value)
        done = repair(self.graph) if self.stabilize else []
        if done:
            shown = ", ".join(done[:5]) + (", ..." if len(done) > 5 else "")
            self.notes.append(f"{len(done)} formulas are repaired before they are differentiated: {shown}")
        return kept

    def one(self, y: Value) -> Value:
        """Return the cotangent 1 of a scalar."""
        return Builder(self.graph, prefix=y.name).filled(1, y)

    def tangents(self, wrt: Sequence[tuple[str, Value]]) -> list[tuple[Value, Value]]:
        """Return each value with its tangent, which becomes an input."""
        fed = fed_like(self.graph, [x for _, x in wrt], [f"{name}_tangent" for name, _ in wrt])
        self.roles.update((("tangent", "", name), given.name) for (name, _), (given, _) in zip(wrt, fed, strict=True))
        return [(x, x_dot) for (_, x), (_, x_dot) in zip(wrt, fed, strict=True)]

    def drop_outputs(self) -> None:
        """Take all outputs away, and their roles; the values stay."""
        gone = {entry.name for entry in self.graph.output_entries}
        self.roles = {role: name for role, name in self.roles.items() if name not in gone}
        for entry in self.graph.output_entries:
            self.graph.remove(entry)

    def keep(self, names: Names) -> None:
        """Output the named values as well."""
        present = {e.name for e in self.graph.output_entries}
        for name in as_list(names):
            if name not in present:
                self.graph.add_output(find_value(self.graph, name), name)

    def gradients(self, seeds: Sequence[tuple[str, Value, Value]], wrt: Sequence[Value], zero: Zero) -> None:
        """Run the adjoint and add one output for each of ``wrt``."""
        check_option(zero)
        for value in (*(y for _, y, _ in seeds), *wrt):
            self.graph.pin(value)
        self.notes += shared_notes(wrt)
        found = adjoint(self.graph, [(y, y_bar) for _, y, y_bar in seeds], wrt, zero=zero)
        of = ",".join(name for name, _, _ in seeds)
        for x, x_bar in zip(wrt, found, strict=True):
            self.add_derivative(("grad", of, x.name), f"{x.name}_grad", x, x_bar, of, x.name)

    def add_derivative(self, role: Role, wanted: str, like: Value, found: Value | None, of: str, wrt: str) -> Node:
        """Output a derivative under a free name; zeros, and a note, where there is none."""
        if found is None:
            found = Builder(self.graph, prefix=like.name).zeros_like(like)
            self.notes.append(f"{of!r} does not depend on {wrt!r}, or by steps alone: its derivative is zero")
        name = self.graph.unique_output_name(wanted if wanted not in self.graph.values else self.graph.unique_name(wanted))
        self.roles[role] = name
        return self.graph.add_output(found, name)
