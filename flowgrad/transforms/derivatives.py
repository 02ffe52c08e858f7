"""The derivative transforms: vjp, grad, value_and_grad, jvp, hvp."""

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
from flowgrad.passes.differentiate import adjoint, fed_like, tangent
from flowgrad.passes.parameters import sharing
from flowgrad.passes.refusals import check_zero
from flowgrad.passes.selection import Names, Of, Pick, as_list, find_of, find_scalar, find_value, find_wrt

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


@stage
def vjp(model: Model, of: Of | None = None, wrt: Names = "inputs", keep: Names = (), *, zero: Zero = "error",
        stabilize: bool = True) -> Model:
    """Return a model of the vector-Jacobian product: cotangents in, gradients out.

    Each y in ``of`` (default: all float outputs) gets a new input ``y_grad`` of its type; the outputs are the original
    ones, those in ``keep``, then ``x_grad`` = sum over y of (dy/dx)^T y_grad for each x in ``wrt``. Raises InputError for
    unknown names, NotDifferentiableError (naming every op and path) where no derivative may be claimed; with
    ``zero="allow"``, a derivative that is zero by piecewise constancy is zeros.

    Formulas that overflow or divide zero by zero (log(sum(exp)), sqrt(sum(x^2)), ...) are differentiated after they are
    repaired, and a note says which; with ``stabilize=False`` the model and its derivative stay as they are written.
    What a selection (Where, Gather, Slice, a mask, ...) has zeroed stays zero whatever it is multiplied by; a zero that
    arithmetic made is a number, and 0 * inf is NaN then.
    """
    task = _Task(model, stabilize)
    of_values, wrt_values = find_of(task.graph, of), find_wrt(task.graph, wrt)  # before cotangents become inputs
    task.repair([*(y for _, y in of_values), *wrt_values], keep)
    fed = fed_like(task.graph, [y for _, y in of_values], [f"{name}_grad" for name, _ in of_values])
    task.roles.update((("cotangent", name, ""), given.name) for (name, _), (given, _) in zip(of_values, fed, strict=True))
    seeds = [(name, y, y_bar) for (name, y), (_, y_bar) in zip(of_values, fed, strict=True)]
    task.keep(keep)
    task.gradients(seeds, wrt_values, zero)
    return task.finish()


@stage
def grad(model: Model, of: str | Pick | None = None, wrt: Names = "inputs", keep: Names = (), *, zero: Zero = "error",
         stabilize: bool = True) -> Model:
    """Return a model of the gradient of a scalar: outputs ``x_grad`` for each x in ``wrt``, then those in ``keep``.

    ``of`` is the scalar (default: the only scalar output). Raises like ``vjp``, and InputError if ``of`` has more than one
    element.
    """
    return _scalar_gradient(model, of, wrt, keep, zero, stabilize, with_value=False)


@stage
def value_and_grad(model: Model, of: str | Pick | None = None, wrt: Names = "inputs", keep: Names = (), *, zero: Zero = "error",
                   stabilize: bool = True) -> Model:
    """Return a model of a scalar and its gradient: outputs the value, ``x_grad`` for each x, then those in ``keep``.

    Raises like ``grad``.
    """
    return _scalar_gradient(model, of, wrt, keep, zero, stabilize, with_value=True)


def _scalar_gradient(
    model: Model, of: str | Pick | None, wrt: Names, keep: Names, zero: Zero, stabilize: bool, *,
    with_value: bool
) -> Model:
    task = _Task(model, stabilize)
    name, y = find_scalar(task.graph, of)
    wrt_values = find_wrt(task.graph, wrt)
    kept = task.repair([y, *wrt_values], keep)
    task.drop_outputs()
    if with_value:
        task.graph.add_output(y, name)
    task.gradients([(name, y, task.one(y))], wrt_values, zero)
    for kept_name, value in kept:
        task.graph.add_output(value, task.graph.unique_output_name(kept_name))
    return task.finish()


@stage
def jvp(model: Model, of: Of | None = None, wrt: Names = "inputs", *, zero: Zero = "error",
        stabilize: bool = True) -> Model:
    """Return a model of the Jacobian-vector product: tangents in, tangents out.

    Each x in ``wrt`` gets a new input ``x_tangent`` of its type; the outputs are the original ones, then ``y_tangent`` =
    sum over x of (dy/dx) x_tangent for each y in ``of`` (default: all float outputs). Raises like ``vjp``.
    """
    task = _Task(model, stabilize)
    values = find_of(task.graph, of)
    wrt_values = find_wrt(task.graph, wrt)
    task.repair([*wrt_values, *(y for _, y in values)])
    pairs = task.tangents([(x.name, x) for x in wrt_values])
    found = tangent(task.graph, pairs, [v for _, v in values])
    if check_option(zero) != "allow":
        check_zero(task.graph, wrt_values, [y for (_, y), y_dot in zip(values, found, strict=True) if y_dot is None])
    for (name, y), y_dot in zip(values, found, strict=True):
        task.add_derivative(("tangent", name, ""), f"{name}_tangent", y, y_dot, name, "wrt")
    return task.finish()


@stage
def hvp(model: Model, of: str | Pick | None = None, wrt: Names = "inputs", *, zero: Zero = "error",
        stabilize: bool = True) -> Model:
    """Return a model of the Hessian-vector product: forward over reverse.

    Inputs gain ``x_tangent`` for each x in ``wrt``; the outputs are the value, ``x_grad`` for each x, then ``x_hvp`` =
    sum over u of (d2 of / dx du) u_tangent. Raises like ``grad``.
    """
    first = value_and_grad(model, of, wrt, zero=zero, stabilize=stabilize)
    task = _Task(first, stabilize)
    name = first.graph.output_entries[0].name
    wrt_values = [(w, first.roles["grad", name, w]) for r, o, w in first.roles if r == "grad" and o == name]
    wrt_values = [(w, g) for w, g in wrt_values if w in task.graph.values]
    gradients = [find_value(task.graph, g) for _, g in wrt_values]
    pairs = task.tangents([(w, task.graph.value(w)) for w, _ in wrt_values])
    for (w, _), g, dot in zip(wrt_values, gradients, tangent(task.graph, pairs, gradients), strict=True):
        task.add_derivative(("hvp", name, w), f"{w}_hvp", g, dot, name, w)
    return task.finish()


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


class _Task:
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
