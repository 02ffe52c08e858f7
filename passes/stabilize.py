"""The stabilize pass: formulas that overflow or divide zero by zero, as operators that do not.

Values stay the same, up to rounding, wherever they were finite; gradients that were NaN or infinite become what they are
mathematically. Inner nodes of these patterns may have other users: what matters is that the hazard has none.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.ops.registry import attr
from flowgrad.passes.canonicalize import unchanged
from flowgrad.passes.canonicalize_shapes import ints
from flowgrad.passes.registry import pass_
from flowgrad.passes.rewrite import Recorder, RewriteBuilder, apply_rules, no_match, recording, rewrite, rules_in


@pass_("stabilize", kind="repairs")
def stabilize(graph: Graph) -> None:
    """Spell log(softmax), log(sigmoid), log(sum(exp)), sqrt(x*x) and their kin as the operators that are safe."""
    apply_rules(graph, RULES)


def repair(graph: Graph, keep: Collection[int] = ()) -> list[str]:
    """Run the pass and return what it did, one text a change; nodes with a key in ``keep`` stay as they are."""
    recorder = Recorder()
    with recording(recorder):
        apply_rules(graph, RULES, keep=keep)
    return [str(change) for change in recorder.applied]


# ---- logarithms -----------------------------------------------------------------------------------------------------------


@rewrite("Log(Softmax(%x))", kind="repairs", shared=True)
def log_softmax(b: RewriteBuilder, node: Node, x: Value) -> Any:
    """log(softmax(x)) is finite where softmax(x) has vanished."""
    return b.LogSoftmax(x, axis=attr(node.input(0).producer, "axis"))


@rewrite("Log(Sigmoid(%x))", kind="repairs", shared=True)
def log_sigmoid(b: RewriteBuilder, x: Value) -> Any:
    """log(sigmoid(x)) = -softplus(-x)."""
    return b.Neg(b.Softplus(b.Neg(x)))


@rewrite("Log(Sub(1, Sigmoid(%x)))", kind="repairs", shared=True)
def log_complement(b: RewriteBuilder, node: Node, x: Value) -> Any:
    """log(1 - sigmoid(x)) = -softplus(x)."""
    if x.type != node.output().type:
        return no_match("the 1 broadcasts")
    return b.Neg(b.Softplus(x))


@rewrite("Log(Add(Exp(%x), 1))", kind="repairs", shared=True)
def softplus(b: RewriteBuilder, node: Node, x: Value) -> Any:
    """log(exp(x) + 1) = softplus(x)."""
    if x.type != node.output().type:
        return no_match("the 1 broadcasts")
    return b.Softplus(x)


@rewrite("Log(Exp(%x))", kind="repairs", shared=True)
def log_of_exp(b: RewriteBuilder, node: Node, x: Value) -> Any:
    """log(exp(x)) = x."""
    return unchanged(node, x, "the type")


@rewrite("Log(ReduceSum(Exp(%x), %axes?))", "ReduceLogSum(Exp(%x), %axes?)", kind="repairs", shared=True)
def log_sum_exp(b: RewriteBuilder, node: Node, x: Value, axes: Value | None) -> Any:
    """log(sum(exp(x))) without overflow."""
    reduction = node if node.op == "ReduceLogSum" else node.input(0).producer
    if attr(reduction, "noop_with_empty_axes"):
        return no_match("it may reduce nothing")
    return b.ReduceLogSumExp(x, axes, keepdims=attr(reduction, "keepdims"))


# ---- quotients of exponentials ------------------------------------------------------------------------------------------------


@rewrite("Div(%e, ReduceSum(%e, %axes)) ", "Div(Exp(%x), ReduceSum(Exp(%x), %axes))", kind="repairs", shared=True)
def softmax(b: RewriteBuilder, node: Node, axes: Value) -> Any:
    """exp(x) / sum(exp(x)) = softmax(x)."""
    exponential, reduction = b.made_by(node.input(0), "Exp"), node.input(1).producer
    if exponential is None or not attr(reduction, "keepdims"):
        return no_match("it is no sum of exponentials that keeps its axis")
    x, chosen = exponential.input(0), ints(axes)
    if chosen is None or len(chosen) != 1 or x.type != node.output().type:
        return no_match("Softmax takes one axis")
    return b.Softmax(_unshifted(b, x, chosen[0]), axis=chosen[0])


def _unshifted(b: RewriteBuilder, x: Value, axis: int) -> Value:
    """Return z where x = z - max(z) along ``axis``: Softmax subtracts the maximum itself."""
    difference = b.made_by(x, "Sub")
    if difference is None:
        return x
    z, top = difference.input(0), b.made_by(difference.input(1), "ReduceMax")
    if top is None or top.input(0) is not z or not attr(top, "keepdims") or z.type.rank is None:
        return x
    axes = ints(top.inputs[1] if len(top.inputs) > 1 else None)
    return z if axes is not None and [a % z.type.rank for a in axes] == [axis % z.type.rank] else x


@rewrite("Div(1, Add(Exp(Neg(%x)), 1))", "Reciprocal(Add(Exp(Neg(%x)), 1))", kind="repairs", shared=True)
def sigmoid(b: RewriteBuilder, node: Node, x: Value) -> Any:
    """1 / (1 + exp(-x)) = sigmoid(x)."""
    if x.type != node.output().type:
        return no_match("a 1 broadcasts")
    return b.Sigmoid(x)


@rewrite("Div(Exp(%x), Add(Exp(%x), 1))", "Div(%e, Add(%e, 1))", kind="repairs", shared=True)
def sigmoid_of_positive(b: RewriteBuilder, node: Node) -> Any:
    """exp(x) / (exp(x) + 1) = sigmoid(x)."""
    exponential = b.made_by(node.input(0), "Exp")
    if exponential is None or exponential.input(0).type != node.output().type:
        return no_match("it is no exponential, or the 1 broadcasts")
    return b.Sigmoid(exponential.input(0))


@rewrite("Div(Sub(Exp(%x), Exp(Neg(%x))), Add(Exp(%x), Exp(Neg(%x))))", "Div(Sub(%p, %q), Add(%p, %q))",
         kind="repairs", shared=True)
def tanh(b: RewriteBuilder, node: Node) -> Any:
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x)) = tanh(x)."""
    plus, minus = (b.made_by(v, "Exp") for v in node.input(0).producer.inputs)
    if plus is None or minus is None:
        return no_match("these are no exponentials")
    x, negated = plus.input(0), b.made_by(minus.input(0), "Neg")
    if negated is None or negated.input(0) is not x:
        return no_match("the exponents are not opposite")
    return b.Tanh(x)


# ---- roots of squares -------------------------------------------------------------------------------------------------------


@rewrite("Sqrt(Mul(%x, %x))", "Sqrt(Pow(%x, 2))", kind="repairs", shared=True)
def root_of_square(b: RewriteBuilder, node: Node, x: Value) -> Any:
    """sqrt(x x) = |x|, whose derivative at 0 is 0."""
    if x.type != node.output().type:
        return no_match("the exponent broadcasts")
    return b.Abs(x)


@rewrite("Sqrt(ReduceSum(Mul(%x, %x), %axes?))", "Sqrt(ReduceSum(Pow(%x, 2), %axes?))", "Sqrt(ReduceSumSquare(%x, %axes?))",
         kind="repairs", shared=True)
def euclidean_norm(b: RewriteBuilder, node: Node, x: Value, axes: Value | None) -> Any:
    """sqrt(sum(x x)) = ||x||, whose derivative at 0 is 0."""
    reduction = node.input(0).producer
    squared = reduction.input(0)
    if attr(reduction, "noop_with_empty_axes") or (reduction.op == "ReduceSum" and squared.type != x.type):
        return no_match("it may reduce nothing, or the exponent broadcasts")
    return b.ReduceL2(x, axes, keepdims=attr(reduction, "keepdims"))


RULES = rules_in(globals())
