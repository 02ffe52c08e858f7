"""What derivative transforms share: a copy of the graph at work, and the limits they keep to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

from flowgrad.ir.arguments import is_word
from flowgrad.ir.boundary import guarded
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import CONSTANT, Graph, Node, Value
from flowgrad.ir.limits import Limits, in_time
from flowgrad.ir.ops.operands import joined
from flowgrad.ir.roles import Role
from flowgrad.ir.types import FLOAT32, FLOAT64, DType, Type
from flowgrad.model import Model
from flowgrad.passes.adjoint import Zero
from flowgrad.passes.differentiate import Seeds, adjoint, fed_like
from flowgrad.passes.parameters import sharing
from flowgrad.passes.selection import Names, as_list, find_value
from flowgrad.transforms.seeds import for_each_seed

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
    if not is_word(zero, ("error", "allow")):
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
        self.placeholders: dict[Value, Value] = {}
        """What stands for one seed while derivatives are made, by the input that takes many."""

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

    def fed(self, values: Sequence[tuple[str, Value]], role: str, suffix: str, seeds: Seeds = None) -> list[Value]:
        """Add the inputs of ``role`` for values, by name, or for as many as ``seeds`` says; return what to derive with."""
        pairs = fed_like(self.graph, [v for _, v in values], [f"{name}_{suffix}" for name, _ in values], seeds)
        for (name, _), (given, _) in zip(values, pairs, strict=True):
            self.roles[(role, name, "") if role == "cotangent" else (role, "", name)] = given.name
        if seeds is None:
            return [checked for _, checked in pairs]
        ones = [self.graph.add_input(self.graph.unique_name(f"{name}_seed"), v.type) for name, v in values]
        self.placeholders = {many: one for (_, many), one in zip(pairs, ones, strict=True)}
        return ones

    def tangents(self, wrt: Sequence[tuple[str, Value]], seeds: Seeds = None) -> list[tuple[Value, Value]]:
        """Return each value with its tangent, which becomes an input, or with what stands for one of many."""
        return [(x, x_dot) for (_, x), x_dot in zip(wrt, self.fed(wrt, "tangent", "tangent", seeds), strict=True)]

    def for_each_seed(self, found: Sequence[Value | None]) -> list[Value | None]:
        """Return what derivatives are for all seeds, if there may be many."""
        if not self.placeholders:
            return list(found)
        pairs = [(one, many) for many, one in self.placeholders.items()]
        made = iter(for_each_seed(self.graph, pairs, [v for v in found if v is not None]))
        return [None if v is None else next(made) for v in found]

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
        found = self.for_each_seed(found)
        of = ",".join(name for name, _, _ in seeds)
        for x, x_bar in zip(wrt, found, strict=True):
            self.add_derivative(("grad", of, x.name), f"{x.name}_grad", x, x_bar, of, x.name)

    def add_derivative(self, role: Role, wanted: str, like: Value, found: Value | None, of: str, wrt: str) -> Node:
        """Output a derivative under a free name; zeros, and a note, where there is none."""
        if found is None:
            found = self.zeros(like)
            self.remark_zero(of, wrt)
        return self.output(role, wanted, found)

    def zeros(self, like: Value) -> Value:
        """Return zeros of the type of ``like``, one for each seed if there may be many."""
        b = Builder(self.graph, prefix=like.name)
        for many in self.placeholders:
            shape = joined(b, [b.extent(many, 0), b.shape(like)])
            type_ = Type(like.type.dtype, (many.shape[0], *like.shape))
            return b.add_node("Expand", [b.scalar(0, like.type.dtype), shape], types=[type_]).output()
        return b.zeros_like(like)

    def add_block(self, role: Role, wanted: str, axes: Sequence[Value], found: Value | None) -> Node:
        """Output derivatives whose axes are those of ``axes``, joined, in the dtype of the first of these; zeros, and a note,
        where there are none."""
        if found is None:
            b = Builder(self.graph, prefix=wanted)
            zero, shape = b.scalar(0, axes[0].type.dtype), joined(b, [b.shape(x) for x in axes])
            found = b.add_node("Expand", [zero, shape], types=[block_type(axes)]).output()
            self.remark_zero(role[1], role[2])
        return self.output(role, wanted, Builder(self.graph, prefix=wanted).cast_like(found, axes[0]))

    def remark_zero(self, of: str, wrt: str) -> None:
        """Note that a derivative is zero."""
        self.notes.append(f"{of!r} does not depend on {wrt!r}, or by steps alone: its derivative is zero")

    def output_all(self, values: Sequence[tuple[str, Value]]) -> None:
        """Output values under their names."""
        for name, value in values:
            self.graph.add_output(value, self.graph.unique_output_name(name))

    def output(self, role: Role, wanted: str, found: Value) -> Node:
        """Output a value under a free name."""
        name = self.graph.unique_output_name(wanted if wanted not in self.graph.values else self.graph.unique_name(wanted))
        self.roles[role] = name
        return self.graph.add_output(found, name)


def common_dtype(values: Sequence[Value]) -> DType:
    """Return the dtype in which derivatives of, or by, values of several float dtypes stand beside each other."""
    dtype, *others = {v.type.dtype for v in values}
    if not others:
        return dtype
    return FLOAT64 if FLOAT64 in (dtype, *others) else FLOAT32


def block_type(axes: Sequence[Value]) -> Type:
    """Return the type of derivatives whose axes are those of ``axes``, joined."""
    return Type(axes[0].type.dtype, tuple(d for x in axes for d in x.shape))
