"""Control flow: If, Loop and Scan, whose closed subgraphs take the formal inputs, then what the node captures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import RunError, ValidationError
from flowgrad.ir.graph import INPUT, Array, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.limits import Meter
from flowgrad.ir.names import quote
from flowgrad.ir.ops.control.batching import if_batched, loop_batched
from flowgrad.ir.ops.control.if_derivatives import if_adjoint, if_tangent
from flowgrad.ir.ops.control.loop_derivatives import loop_adjoint, loop_tangent
from flowgrad.ir.ops.control.loop_layout import (
    carried_types,
    dim_bindings,
    invariant_bindings,
    layout_of,
    outward,
    slice_type,
)
from flowgrad.ir.ops.control.scan_as_loop import scan_as_loop
from flowgrad.ir.ops.registry import op
from flowgrad.ir.types import BOOL, INT64, STRING, UNKNOWN, Dim, DimLike, Type

FIRST_CAPACITY = 16
"""How many iterations a scan output has room for at first, where their number is not known beforehand."""

FIRST_BYTES = 2**24
"""How much memory a scan output of a Loop takes at first, if so many iterations are allowed."""


# ---- If -----------------------------------------------------------------------------------------------------------------


@op("If", since=11, outputs=("outputs",), variadic_outputs=True, subgraphs=("then_branch", "else_branch"),
    deciding=("cond",))
def if_(cond: Array, *, subgraphs: Any) -> list[Array]:
    return list(subgraphs["then_branch" if bool(np.all(cond)) else "else_branch"]())


@if_.types
def _(node: Node) -> list[Type]:
    """Each output has what the types of both branches agree on."""
    taken, other = node.subgraphs["then_branch"], node.subgraphs["else_branch"]
    condition = node.input(0)
    if condition.type.dtype != BOOL:
        raise ValidationError(f"the condition of If is {condition.type!r}", code="dtype", where=describe(node))
    for branch in (taken, other):
        _check_count(node, "inputs of a branch", len(branch.inputs), len(node.captures))
    _check_count(node, "outputs of the else branch", len(other.outputs), len(taken.outputs))
    envs = [dim_bindings(g.inputs, node.captures) for g in (taken, other)]
    seen = [[outward(y.type, env) for y in g.outputs] for g, env in zip((taken, other), envs, strict=True)]
    return [agreed(a, b) for a, b in zip(*seen, strict=True)]


@if_.formals
def _(node: Node) -> list[Type]:
    """A branch takes captures alone."""
    return []


def agreed(a: Type, b: Type) -> Type:
    """Return the most precise type that both have; ValidationError if the dtypes differ."""
    if a.dtype != b.dtype:
        raise ValidationError(f"an output is {a!r} in one branch and {b!r} in the other", code="dtype")
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return Type(a.dtype, None)
    return Type(a.dtype, tuple(x if x is not UNKNOWN and x == y else UNKNOWN for x, y in zip(a.shape, b.shape, strict=True)))


def _check_count(node: Node, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValidationError(f"{node.op} has {found} {what}, expected {expected}", code="arity", where=describe(node))


# ---- Loop ---------------------------------------------------------------------------------------------------------------


class Stack:
    """A scan output being filled: one array per iteration along a new axis, in order or (``reverse``) backwards.

    ``most`` bounds the iterations; if it is ``exact``, the output is laid out at once. Axis and order need that.
    """

    def __init__(self, name: str, meter: Meter, most: int | None, exact: bool = False, axis: int = 0,
                 reverse: bool = False) -> None:
        self.meter = meter
        self.name = name
        self.most = most
        self.exact = exact
        self.axis = axis
        self.reverse = reverse
        self.count = 0
        self.result: Array | None = None
        self.rows: Array = np.empty(0)

    def append(self, array: Array) -> None:
        """Add the array of the next iteration; RunError if its shape is not that of the others."""
        if self.result is None:
            self._begin(array)
        elif self.rows.shape[1:] != array.shape:
            raise RunError(f"{self.name} has shape {list(self.rows.shape[1:])}, then {list(array.shape)}: iterations that "
                           "are stacked must agree", code="shape")
        elif self.count == len(self.rows):
            self._grow()
        self.rows[self.count, ...] = array  # an array of rank 0 would become an element of one of strings
        self.count += 1

    def finish(self, empty: Array | None) -> Array:
        """Return the stacked array; ``empty`` is what one iteration would have given, if there was none."""
        if self.result is None:
            assert empty is not None
            self.most = 0
            self._begin(empty)
        assert self.result is not None
        self.meter.give(self.result.nbytes)  # it is the caller's from here on
        return self.result if self.exact else self.result[: self.count]

    def _begin(self, like: Array) -> None:
        capacity = self.most if self.exact and self.most is not None else self._capacity(like.nbytes)
        axis = self.axis if self.axis >= 0 else self.axis + like.ndim + 1
        self._check_room(capacity * like.nbytes)
        self.result = np.empty((*like.shape[:axis], capacity, *like.shape[axis:]), like.dtype)
        self.rows = np.moveaxis(self.result, axis, 0)[:: -1 if self.reverse else 1]

    def _check_room(self, nbytes: int) -> None:
        """Raise LimitError before more is allocated than a tensor may have, or than is left for all."""
        self.meter.limits.check("tensor_bytes", nbytes, self.name)
        self.meter.take(nbytes, self.name)

    def _capacity(self, row_bytes: int) -> int:
        room = FIRST_CAPACITY if self.most is None else max(FIRST_CAPACITY, FIRST_BYTES // max(1, row_bytes))
        return room if self.most is None else min(self.most, room)

    def _grow(self) -> None:
        capacity = 2 * self.count if self.most is None else min(self.most, 2 * self.count)
        self._check_room(capacity * self.rows[0].nbytes)
        grown = np.empty((capacity, *self.rows.shape[1:]), self.rows.dtype)
        grown[: self.count] = self.rows
        self.meter.give(self.rows.nbytes)
        self.result = self.rows = grown


def _finished(stacks: Sequence[Stack], body: Any, first: int, formals: Sequence[Array]) -> list[Array]:
    """Return all scan outputs; if there was no iteration, types and the shapes of ``formals`` give their extents."""
    if not stacks or stacks[0].count:
        return [s.finish(None) for s in stacks]
    empty = body.empty(*formals)
    return [s.finish(empty[first + i]) for i, s in enumerate(stacks)]


@op("Loop", since=11, outputs=("outputs",), variadic_outputs=True, subgraphs=("body",), extents=("m",),
    deciding=("m", "cond"))
def loop(m: Array | None = None, cond: Array | None = None, *states: Array, count: int, subgraphs: Any) -> list[Array]:
    body = subgraphs["body"]
    most = None if m is None else int(np.reshape(m, ()))
    going = cond is None or bool(np.all(cond))
    carried = list(states)
    entries = body.graph.output_entries[1 + len(states) : 1 + count]
    stacks = [Stack(f"scan output {i} of Loop, {quote(entry.name)},", body.meter, most) for i, entry in enumerate(entries)]
    if going and most is not None and _never_stops(body.graph):
        body.meter.foresee(most, f"Loop of {most:,} steps")
    trip = 0
    while going and (most is None or trip < most):
        results = body(np.asarray(trip, np.int64), np.asarray(going), *carried)
        going = bool(np.all(results[0]))
        carried = list(results[1 : 1 + len(states)])
        for stack, array in zip(stacks, results[1 + len(states) :], strict=False):
            stack.append(np.asarray(array))
        trip += 1
    formals = [np.zeros((), np.int64), np.zeros((), bool), *carried]
    return [*carried, *_finished(stacks, body, 1 + len(states), formals)]


@loop.types
def _(node: Node) -> list[Type]:
    """A state has what initial value and body agree on; a scan output gains a leading extent."""
    layout = layout_of(node)
    _check_layout(node)
    for value, dtype in zip(node.inputs[:2], (INT64, BOOL), strict=False):
        if value is not None and value.type.dtype != dtype:
            raise ValidationError(f"Loop takes {dtype.name} here, got {value!r}", code="dtype", where=describe(node))
    body = node.subgraphs["body"]
    env = invariant_bindings(node)
    states = carried_types(node, env)
    trips = _trip_extent(node)
    scans = [outward(y.type, env) for y in body.outputs[layout.first_scan_output :]]
    return [*states, *(s if s.shape is None else s.with_shape((trips, *s.shape)) for s in scans)]


@loop.formals
def _(node: Node) -> list[Type]:
    """The number of the iteration, the condition, the states."""
    return [Type(INT64, ()), Type(BOOL, ()), *(v.type for v in node.inputs[2:] if v is not None)]


def _trip_extent(node: Node) -> DimLike:
    """The number of iterations if the type can say it: M is known and the condition never turns false."""
    most, start = node.optional(0), node.optional(1)
    if most is None or most.symbolic is None or most.symbolic.size != 1:
        return UNKNOWN
    stays = _never_stops(node.subgraphs["body"])
    extent = most.symbolic.reshape(-1)[0]
    if not stays or not (start is None or is_true(start)):
        return UNKNOWN
    known = extent.is_nonnegative if isinstance(extent, Dim) else extent >= 0
    return extent if known else UNKNOWN


def _never_stops(body: Graph) -> bool:
    """Return whether a condition that holds at first holds after every iteration."""
    return is_true(body.outputs[0]) or root(body.outputs[0]) is body.inputs[1]


def root(value: Value) -> Value:
    """Return what ``value`` is the identity of."""
    while value.producer.op == "Identity":
        value = value.producer.input(0)
    return value


def is_true(value: Value) -> bool:
    """Return whether a condition is constantly true."""
    data = root(value).constant
    return data is not None and bool(np.all(data))


def _check_layout(node: Node) -> None:
    layout = layout_of(node)
    body = node.subgraphs["body"]
    formals = layout.lead_formals + layout.states + layout.scan_inputs
    _check_count(node, "inputs of the body", len(body.inputs), formals + len(node.captures))
    if len(body.outputs) < layout.first_scan_output:
        raise ValidationError(f"the body of {node.op} returns {len(body.outputs)} values for {layout.states} states",
                              code="arity", where=describe(node))


# ---- Scan ---------------------------------------------------------------------------------------------------------------


@op("Scan", since=11, outputs=("outputs",), variadic_outputs=True, subgraphs=("body",))
def scan(
    *operands: Array,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] = (),
    scan_input_directions: Sequence[int] = (),
    scan_output_axes: Sequence[int] = (),
    scan_output_directions: Sequence[int] = (),
    count: int,
    subgraphs: Any,
) -> list[Array]:
    body = subgraphs["body"]
    states = len(operands) - num_scan_inputs
    carried = list(operands[:states])
    axes = [*scan_input_axes, *[0] * (num_scan_inputs - len(scan_input_axes))]
    rows = [np.moveaxis(x, axis, 0) for x, axis in zip(operands[states:], axes, strict=True)]
    lengths = sorted({len(r) for r in rows})
    if len(lengths) != 1:
        raise RunError(f"the scan inputs have lengths {lengths}; they must agree", code="shape")
    length = lengths[0]
    rows = [r[::-1] if flip else r for r, flip in zip(rows, _padded(scan_input_directions, len(rows)), strict=True)]
    outputs = count - states
    stacks = [
        Stack(f"scan output {i} of Scan", body.meter, length, True, axis, bool(flip))
        for i, (axis, flip) in enumerate(zip(_padded(scan_output_axes, outputs), _padded(scan_output_directions, outputs),
                                             strict=True))
    ]
    for t in range(length):
        results = body(*carried, *(r[t, ...] for r in rows))  # a slice is an array, a string by itself is none
        carried = list(results[:states])
        for stack, array in zip(stacks, results[states:], strict=False):
            stack.append(np.asarray(array))
    slices = [np.empty(r.shape[1:], r.dtype) for r in rows]
    return [*carried, *_finished(stacks, body, states, [*carried, *slices])]


def _padded(given: Sequence[int], count: int) -> list[int]:
    return [*given[:count], *[0] * (count - len(given))]


@scan.types
def _(node: Node) -> list[Type]:
    """A state has what initial value and body agree on; a scan output gains the extent of the scan inputs."""
    layout = layout_of(node)
    if layout.scan_inputs < 1 or layout.states < 0:
        raise ValidationError(f"Scan has {len(node.inputs)} inputs, {layout.scan_inputs} of them scanned", code="arity",
                              where=describe(node))
    _check_layout(node)
    body = node.subgraphs["body"]
    env = invariant_bindings(node)
    states = carried_types(node, env)
    length = layout.length(node)
    scans = []
    for k, y in enumerate(body.outputs[layout.first_scan_output :]):
        inner = outward(y.type, env)
        if inner.shape is None:
            scans.append(inner)
            continue
        axis = layout.output_axis(k) % (len(inner.shape) + 1)
        scans.append(inner.with_shape((*inner.shape[:axis], length, *inner.shape[axis:])))
    return [*states, *scans]


@scan.formals
def _(node: Node) -> list[Type]:
    """The states, a slice of each scan input."""
    layout = layout_of(node)
    if layout.scan_inputs < 1 or layout.states < 0:
        raise ValidationError(f"num_scan_inputs={layout.scan_inputs} with {len(node.inputs)} inputs", code="attribute",
                              where=node.label)
    if len(layout.input_axes) not in (0, layout.scan_inputs):
        raise ValidationError("scan_input_axes does not fit num_scan_inputs", code="attribute", where=node.label)
    types = [node.input(i).type for i in range(len(node.inputs))]
    return [*types[: layout.states], *(slice_type(t, layout.input_axis(k)) for k, t in enumerate(types[layout.states :]))]


# ---- derivatives --------------------------------------------------------------------------------------------------------


@if_.adjoint
def _(b: DerivativeBuilder, node: Node, *y_bars: Value | None) -> Any:
    """x_bar = (d branch / d x)^T y_bar of the branch taken, for every captured x; zero where that branch has no x."""
    return if_adjoint(b, node, y_bars)


@if_.tangent
def _(b: DerivativeBuilder, node: Node, *dots: Value | None) -> Any:
    """y_dot = (d branch / d x) x_dot of the branch taken."""
    return if_tangent(b, node, dots)


@loop.adjoint
def _(b: DerivativeBuilder, node: Node, *y_bars: Value | None) -> Any:
    """v_bar[t] = (d body[t] / d v)^T (v_bar[t+1], scan_bar[t]) from the last iteration to the first; captures sum."""
    return loop_adjoint(b, node, y_bars)


@loop.tangent
def _(b: DerivativeBuilder, node: Node, *dots: Value | None) -> Any:
    """v_dot[t+1] = (d body[t] / d (v, captures)) (v_dot[t], captures_dot), beside v."""
    return loop_tangent(b, node, dots)


@scan.adjoint
def _(b: DerivativeBuilder, node: Node, *y_bars: Value | None) -> Any:
    """v_bar[t] = (d body[t] / d v)^T (v_bar[t+1], scan_bar[t]), x_bar[t] likewise, against the direction; captures sum."""
    return loop_adjoint(b, node, y_bars)


@scan.tangent
def _(b: DerivativeBuilder, node: Node, *dots: Value | None) -> Any:
    """v_dot[t+1] = (d body[t] / d (v, x, captures)) (v_dot[t], x_dot[t], captures_dot), beside v."""
    return loop_tangent(b, node, dots)


# ---- many examples ----------------------------------------------------------------------------------------------------------


@if_.batch
def _(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """Both branches for all examples, of which one is run if they share the condition."""
    return if_batched(b, node, xs)


@loop.batch
def _(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """As many iterations, each for all examples."""
    return loop_batched(b, node, xs)


@scan.batch
def _(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """As many iterations, each for all examples."""
    return loop_batched(b, node, xs)


# ---- what runtimes do otherwise ------------------------------------------------------------------------------------------


def _kept_strings(node: Node) -> list[int]:
    """Return which outputs of the body are strings that are stacked as the body was given them."""
    body, first = node.subgraphs["body"], layout_of(node).first_scan_output
    return [k for k, y in enumerate(body.outputs) if k >= first and y.type.dtype == STRING and root(y).producer.op == INPUT]


@loop.expands_on_export
def _(node: Node) -> bool:
    """onnxruntime moves strings out of what a body is given when it stacks them: what is left of them is empty."""
    return bool(_kept_strings(node))


@loop.expansion
def _(b: Builder, node: Node) -> Any:
    """Each of these strings is made anew, with nothing behind it."""
    body = node.subgraphs["body"].copy()
    inner = Builder(body)
    for k in _kept_strings(node):
        entry = body.output_entries[k]
        body.set_inputs(entry, [inner.StringConcat(entry.input(0), np.array("", object))])
    return b.add_node("Loop", node.inputs, node.attributes, outputs=len(node.outputs), captures=node.captures,
                      subgraphs={"body": body}).outputs


# ---- Scan as a Loop -------------------------------------------------------------------------------------------------------


@scan.expansion
def _(b: Builder, node: Node) -> Any:
    """A Loop over the indices of the slices; runtimes run a Loop without iterations, and refuse such a Scan."""
    return scan_as_loop(b, node)


@scan.expands_on_export
def _(node: Node) -> bool:
    """True where the sequence may have length 0, or slices that are stacked along a later axis may have no elements.

    onnxruntime refuses the former, and divides by the size of the latter, which ends the process. The standard lets
    the states of a Loop be sequences, those of a Scan not.
    """
    layout = layout_of(node)
    if any(v.type.dtype.element is not None for v in node.operands):
        return True
    first = node.input(layout.states)
    extent = None if first.type.shape is None else first.shape[layout.input_axis(0)]
    stacked = [v for k, v in enumerate(node.outputs[layout.states :]) if v is not None and layout.output_axis(k)]
    return _may_be_zero(extent) or any(_may_be_zero(d) for v in stacked for d in v.type.shape or ())


def _may_be_zero(extent: DimLike | None) -> bool:
    return not isinstance(extent, int) or extent == 0
