"""The derivative transforms: vjp, grad, value_and_grad, jvp, hvp."""

from __future__ import annotations

from collections.abc import Sequence

from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.reach import dependents
from flowgrad.model import Model
from flowgrad.passes.adjoint import Zero
from flowgrad.passes.differentiate import Seeds, tangent
from flowgrad.passes.refusals import check_zero
from flowgrad.passes.selection import Names, Of, Pick, find_of, find_scalar, find_value, find_wrt
from flowgrad.transforms.task import Task, check_option, stage


@stage
def vjp(model: Model, of: Of | None = None, wrt: Names = "inputs", keep: Names = (), *, seeds: Seeds = None,
        zero: Zero = "error", stabilize: bool = True) -> Model:
    """Return a model of the vector-Jacobian product: cotangents in, gradients out.

    Each y in ``of`` (default: all float outputs) gets a new input ``y_grad`` of its type; the outputs are the original
    ones, those in ``keep``, then ``x_grad`` = sum over y of (dy/dx)^T y_grad for each x in ``wrt``. Raises InputError for
    unknown names, NotDifferentiableError (naming every op and path) where no derivative may be claimed; with
    ``zero="allow"``, a derivative that is zero by piecewise constancy is zeros.

    With ``seeds`` (a number, or the name of a dim), cotangents and gradients have a new first axis, for many cotangents at
    once: the model itself is computed once for all.

    Formulas that overflow or divide zero by zero (log(sum(exp)), sqrt(sum(x^2)), ...) are differentiated after they are
    repaired, and a note says which; with ``stabilize=False`` the model and its derivative stay as they are written.
    What a selection (Where, Gather, Slice, a mask, ...) has zeroed stays zero whatever it is multiplied by; a zero that
    arithmetic made is a number, and 0 * inf is NaN then.

    Examples:
        >>> pulled = fg.vjp(model, of="logits", wrt="x")
        >>> pulled(batch, logits_grad=np.ones((2, 3), np.float32))["x_grad"].shape
        (2, 4)
        >>> many = fg.vjp(model, of="logits", wrt="x", seeds=5)
        >>> many(batch, logits_grad=np.ones((5, 2, 3), np.float32))["x_grad"].shape
        (5, 2, 4)
    """
    task = Task(model, stabilize)
    of_values, wrt_values = find_of(task.graph, of), find_wrt(task.graph, wrt)  # before cotangents become inputs
    task.repair([*(y for _, y in of_values), *wrt_values], keep)
    bars = task.fed(of_values, "cotangent", "grad", seeds)
    cotangents = [(name, y, y_bar) for (name, y), y_bar in zip(of_values, bars, strict=True)]
    task.keep(keep)
    task.gradients(cotangents, wrt_values, zero)
    return task.finish()


@stage
def grad(model: Model, of: str | Pick | None = None, wrt: Names = "inputs", keep: Names = (), *, zero: Zero = "error",
         stabilize: bool = True) -> Model:
    """Return a model of the gradient of a scalar: outputs ``x_grad`` for each x in ``wrt``, then those in ``keep``.

    ``of`` is the scalar (default: the only scalar output). Raises like ``vjp``, and InputError if ``of`` has more than one
    element.

    Examples:
        >>> fg.grad(model, of="loss", wrt="x", keep="logits")(batch).keys()
        dict_keys(['x_grad', 'logits'])
    """
    return _scalar_gradient(model, of, wrt, keep, zero, stabilize, with_value=False)


@stage
def value_and_grad(model: Model, of: str | Pick | None = None, wrt: Names = "inputs", keep: Names = (), *, zero: Zero = "error",
                   stabilize: bool = True) -> Model:
    """Return a model of a scalar and its gradient: outputs the value, ``x_grad`` for each x, then those in ``keep``.

    Raises like ``grad``.

    Examples:
        >>> fg.value_and_grad(model, of="loss", wrt=["w1", "b*"])(batch).keys()
        dict_keys(['loss', 'w1_grad', 'b1_grad', 'b2_grad'])
    """
    return _scalar_gradient(model, of, wrt, keep, zero, stabilize, with_value=True)


def _scalar_gradient(
    model: Model, of: str | Pick | None, wrt: Names, keep: Names, zero: Zero, stabilize: bool, *,
    with_value: bool
) -> Model:
    task = Task(model, stabilize)
    name, y = find_scalar(task.graph, of)
    wrt_values = find_wrt(task.graph, wrt)
    kept = task.repair([y, *wrt_values], keep)
    task.drop_outputs()
    if with_value:
        task.graph.add_output(y, name)
    task.gradients([(name, y, task.one(y))], wrt_values, zero)
    task.output_all(kept)
    return task.finish()


@stage
def jvp(model: Model, of: Of | None = None, wrt: Names = "inputs", *, seeds: Seeds = None, zero: Zero = "error",
        stabilize: bool = True) -> Model:
    """Return a model of the Jacobian-vector product: tangents in, tangents out.

    Each x in ``wrt`` gets a new input ``x_tangent`` of its type; the outputs are the original ones, then ``y_tangent`` =
    sum over x of (dy/dx) x_tangent for each y in ``of`` (default: all float outputs). With ``seeds`` (a number, or the name
    of a dim), tangents have a new first axis, for many directions at once. Raises like ``vjp``.

    Examples:
        >>> pushed = fg.jvp(model, of="logits", wrt="x")
        >>> pushed(batch, x_tangent=np.ones((2, 4), np.float32))["logits_tangent"].shape
        (2, 3)
    """
    task = Task(model, stabilize)
    values = find_of(task.graph, of)
    wrt_values = find_wrt(task.graph, wrt)
    task.repair([*wrt_values, *(y for _, y in values)])
    pairs = task.tangents([(x.name, x) for x in wrt_values], seeds)
    found = task.for_each_seed(tangent(task.graph, pairs, [v for _, v in values], in_place=seeds is None))
    if check_option(zero) != "allow":
        check_zero(task.graph, wrt_values, [y for (_, y), y_dot in zip(values, found, strict=True) if y_dot is None])
    for (name, y), y_dot in zip(values, found, strict=True):
        task.add_derivative(("tangent", name, ""), f"{name}_tangent", y, y_dot, name, "wrt")
    return task.finish()


@stage
def hvp(model: Model, of: str | Pick | None = None, wrt: Names = "inputs", *, seeds: Seeds = None, zero: Zero = "error",
        stabilize: bool = True) -> Model:
    """Return a model of the Hessian-vector product: forward over reverse.

    Inputs gain ``x_tangent`` for each x in ``wrt``; the outputs are the value, ``x_grad`` for each x, then ``x_hvp`` =
    sum over u of (d2 of / dx du) u_tangent. With ``seeds`` (a number, or the name of a dim), tangents and products have a
    new first axis, for many directions at once. Raises like ``grad``, and InputError for a value beside another that it is
    computed from: ``hessian`` has the derivatives by both.

    Examples:
        >>> product = fg.hvp(model, of="loss", wrt="x")
        >>> product(batch, x_tangent=np.ones((2, 4), np.float32)).keys()
        dict_keys(['loss', 'x_grad', 'x_hvp'])
    """
    first = value_and_grad(model, of, wrt, zero=zero, stabilize=stabilize)
    task = Task(first, stabilize)
    name = first.graph.output_entries[0].name
    wrt_values = [(w, first.roles["grad", name, w]) for r, o, w in first.roles if r == "grad" and o == name]
    wrt_values = [(w, g) for w, g in wrt_values if w in task.graph.values]
    _check_apart(task.graph, [task.graph.value(w) for w, _ in wrt_values])
    gradients = [find_value(task.graph, g) for _, g in wrt_values]
    pairs = task.tangents([(w, task.graph.value(w)) for w, _ in wrt_values], seeds)
    found = task.for_each_seed(tangent(task.graph, pairs, gradients, in_place=seeds is None))
    for (w, _), g, dot in zip(wrt_values, gradients, found, strict=True):
        task.add_derivative(("hvp", name, w), f"{w}_hvp", g, dot, name, w)
    return task.finish()


def _check_apart(graph: Graph, wrt: Sequence[Value]) -> None:
    """Check that no value in ``wrt`` is computed from another: the gradient by that one may be written in terms of it."""
    order, asked = graph.nodes(), set(wrt)
    reached = dependents([node for node in order if asked.isdisjoint(node.results)], asked)
    for node in order:
        for x in node.results:
            if x in asked and any(v in reached for v in node.operands):
                raise InputError(f"{x.name!r} is computed from another value in wrt, and the gradient by that is written in terms of "
                                 f"{x.name!r}: ask for products by one of them, or for fg.hessian, which has both", code="wrt")
