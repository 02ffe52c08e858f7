"""The operator of the flowgrad domain that says when something is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowgrad.ir.batching import BatchBuilder, single
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.registry import FLOWGRAD, NO_GRADIENT, STANDS_FOR, Trait, like_first, op
from flowgrad.ir.types import FLOAT32, INT64


@op("After", new_dtypes=("events",), since=14, domain=FLOWGRAD, traits=(Trait.VIEW,))
def after(x: Array, *events: Array) -> Array:
    """x, once the events are computed: what is made of the result cannot run before them, in any order of the graph."""
    return x


after.types(like_first)


@after.symbolic
def _(node: Node) -> Any:
    return node.input(0).symbolic


@after.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar; no value depends on when the events are computed."""
    return (y_bar, *[NO_GRADIENT] * (len(node.inputs) - 1))


@after.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, *events: Value | None) -> Any:
    """y_dot = x_dot."""
    return x_dot


@after.support
def _(b: DerivativeBuilder, node: Node, masks: Sequence[Value | None]) -> Value | None:
    """Where x may be other than zero."""
    return masks[0]


@after.batch
def _(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """All examples of x, once all of the events are computed."""
    made = single(b, node, xs)
    return made if b.holds(xs[0]) else b.same(made)


@after.expansion
def _(b: Builder, node: Node) -> Any:
    """y = x reshaped to its own shape plus a zero, that of counting the first elements of events that are less than they are.

    No runtime sees through that, and none copies anything. The mark lets a reader know what it stands for.
    """
    x, events = node.input(0), node.operands[1:]
    first = [b.Slice(b.Reshape(b.cast(e, FLOAT32), [-1]), [0], [1], [0]) for e in events]
    joined = b.Concat(*first, axis=0) if len(first) > 1 else first[0]
    zero = b.ReduceSum(b.Cast(b.Less(joined, joined), to=INT64.onnx), keepdims=0)
    y = b.add("Reshape", [x, b.Add(b.Shape(x), zero)], {"allowzero": 1})
    b.graph.set_type(y, x.type)
    y.producer.metadata[STANDS_FOR] = node.op
    return y


def read_after(x: Value, shape: Value) -> Value | None:
    """Return the event of an After that was written as a Reshape of ``x`` to ``shape``; None if it is another Reshape."""
    total = shape.producer
    if total.op != "Add" or len(total.operands) != 2:
        return None
    own, zero = total.operands
    if own.producer.op != "Shape" or own.producer.attributes or own.producer.operands != [x]:
        return None
    steps = [zero.producer]
    for wanted in ("ReduceSum", "Cast", "Less"):
        if steps[-1].op != wanted:
            return None
        steps.append(steps[-1].input(0).producer)
    less = steps[2]
    return zero if less.input(0) is less.input(1) and zero.type.rank == 0 else None
