"""The stabilize pass: formulas that overflow or divide zero by zero, as operators that do not.

Values stay the same, up to rounding, wherever they were finite; gradients that were NaN or infinite become what they are
mathematically. Inner nodes of these patterns may have other users: what matters is that the hazard has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.ops.operands import known_ints
from flowgrad.ir.ops.reduction import count_of
from flowgrad.ir.ops.registry import attr
from flowgrad.passes.canonicalize import unchanged
from flowgrad.passes.registry import pass_
from flowgrad.passes.rewrite import Recorder, RewriteBuilder, apply_rules, no_match, recording, rewrite, rules_in


@pass_("stabilize", kind="repairs")
def stabilize(graph: Graph) -> None:
    """Spell log(softmax), log(sigmoid), log(sum(exp)), sqrt(x*x) and their kin as the operators that are safe."""
    apply_rules(graph, RULES)


def repair(graph: Graph) -> list[str]:
    """Run the pass and return what it did, one text a change."""
    recorder = Recorder()
    with recording(recorder):
        apply_rules(graph, RULES)
    return [str(change) for change in recorder.applied]


# ---- logarithms -----------------------------------------------------------------------------------------------------------


@rewrite("Log(Softmax(%x))", kind="repairs", shared=True)
def log_softmax(b: RewriteBuilder, node: Node, x: Value) -> Any:
    """log(softmax(x)) is finite where softmax(x) has vanished."""
    return b.LogSoftmax(x, axis=attr(node.input(0).producer, "axis"))


@rewrite("Log(Sigmoid(%x))", "Log(Logistic(%x))", kind="repairs", shared=True)
def log_sigmoid(b: RewriteBuilder, x: Value) -> Any:
    """log(sigmoid(x)) = -softplus(-x)."""
    return b.Neg(b.Softplus(b.Neg(x)))


@rewrite("Log(Sub(1, Sigmoid(%x)))", "Log(Sub(1, Logistic(%x)))", kind="repairs", shared=True)
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
    """exp(x) / sum(exp(x)) = softmax(x). Where an x is infinite the formula is NaN there and 0 beside it, softmax all NaN."""
    exponential, reduction = b.made_by(node.input(0), "Exp"), node.input(1).producer
    if exponential is None or not attr(reduction, "keepdims"):
        return no_match("it is no sum of exponentials that keeps its axis")
    x, chosen = exponential.input(0), known_ints(axes)
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
    axes = known_ints(top.optional(1))
    return z if axes is not None and [a % z.type.rank for a in axes] == [axis % z.type.rank] else x


@rewrite("Div(1, Add(Exp(Neg(%x)), 1))", "Reciprocal(Add(Exp(Neg(%x)), 1))", kind="repairs", shared=True)
def sigmoid(b: RewriteBuilder, node: Node, x: Value) -> Any:
    """1 / (1 + exp(-x)) = sigmoid(x)."""
    if x.type != node.output().type:
        return no_match("a 1 broadcasts")
    return b.Logistic(x)


@rewrite("Div(1, Add(Exp(%x), 1))", "Reciprocal(Add(Exp(%x), 1))", kind="repairs", shared=True)
def sigmoid_of_negated(b: RewriteBuilder, node: Node, x: Value) -> Any:
    """1 / (1 + exp(x)) = sigmoid(-x)."""
    if x.type != node.output().type or b.made_by(x, "Neg") is not None:
        return no_match("a 1 broadcasts, or x is negated itself")
    return b.Logistic(b.Neg(x))


@rewrite("Div(Exp(%x), Add(Exp(%x), 1))", "Div(%e, Add(%e, 1))", kind="repairs", shared=True)
def sigmoid_of_positive(b: RewriteBuilder, node: Node) -> Any:
    """exp(x) / (exp(x) + 1) = sigmoid(x)."""
    exponential = b.made_by(node.input(0), "Exp")
    if exponential is None or exponential.input(0).type != node.output().type:
        return no_match("it is no exponential, or the 1 broadcasts")
    return b.Logistic(exponential.input(0))


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


# ---- kinks that cancel ------------------------------------------------------------------------------------------------------


@rewrite("Add(%first, %second)", kind="repairs", shared=True, behind=("Softplus", "Log"))
def softplus_in_parts(b: RewriteBuilder, node: Node, first: Value, second: Value) -> Any:
    """max(z, 0) + ... + log(1 + exp(-|z|)) = softplus(z) + ...: each part has a kink at 0, their sum has none."""
    for rest, logarithm in ((first, second), (second, first)):
        replaced = _with_softplus(b, rest, logarithm)
        if replaced is not None and replaced.type == node.output().type:
            return replaced
    return no_match("these are not the parts of a softplus")


@rewrite("Sub(%first, %second)", kind="repairs", shared=True, behind=("Min",))
def log_sigmoid_in_parts(b: RewriteBuilder, node: Node, first: Value, second: Value) -> Any:
    """min(x, 0) - log(1 + exp(-|x|)) = -softplus(-x)."""
    bound = b.made_by(first, "Min")
    x = None if bound is None else _beside_zero(bound)
    magnitude = _magnitude(b, second)
    if x is None or magnitude is not x or x.type != node.output().type:
        return no_match("these are not the parts of a logarithm of a sigmoid")
    return b.Neg(b.Softplus(b.Neg(x)))


def _with_softplus(b: RewriteBuilder, rest: Value, logarithm: Value) -> Value | None:
    """Return ``rest`` with softplus(z) in place of its term max(z, 0), if ``logarithm`` is what lacks from one to the other."""
    magnitude, shift = _magnitude(b, logarithm), _shift(b, logarithm)
    if magnitude is None and shift is None:
        return None

    def smooth(term: Value) -> Value | None:
        z = _positive_part(b, term)
        if z is None:
            return None
        opposite = b.made_by(z, "Neg")
        matches = term is shift or magnitude is z or (opposite is not None and opposite.input(0) is magnitude)
        return b.Softplus(z) if matches else None

    whole = smooth(rest)
    if whole is not None:
        return whole
    outer = b.made_by(rest, "Add", "Sub")
    if outer is None:
        return None
    left, right = outer.input(0), outer.input(1)
    changed = smooth(left)
    if changed is not None:
        return b.add(outer.op, [changed, right])
    changed = smooth(right) if outer.op == "Add" else None
    return None if changed is None else b.Add(left, changed)


def _positive_part(b: RewriteBuilder, value: Value) -> Value | None:
    """Return z of max(z, 0), in any spelling."""
    node = b.made_by(value, "Relu", "Max", "Clip")
    if node is None:
        return None
    if node.op == "Relu":
        return node.input(0)
    if node.op == "Max":
        return _beside_zero(node)
    bounds = [*node.inputs[1:], None, None]
    return node.input(0) if _is_zero(bounds[0]) and bounds[1] is None else None


def _beside_zero(node: Node) -> Value | None:
    """Return the operand of a Max or Min of two whose other operand is 0."""
    if len(node.inputs) != 2:
        return None
    x, y = node.input(0), node.input(1)
    return x if _is_zero(y) else y if _is_zero(x) else None


def _is_zero(value: Value | None) -> bool:
    return value is not None and value.constant is not None and value.constant.size == 1 and not value.constant.any()


def _magnitude(b: RewriteBuilder, value: Value) -> Value | None:
    """Return x of log(1 + exp(-|x|)), in any spelling."""
    node = b.made_by(value, "Softplus", "Log")
    if node is None:
        return None
    inner = node.input(0)
    if node.op == "Log":
        total = b.made_by(inner, "Add")
        terms = () if total is None else (total.input(0), total.input(1))
        powers = [e for v in terms if (e := b.made_by(v, "Exp")) is not None]
        if len(powers) != 1 or not any(v.constant is not None and v.constant.size == 1 and v.constant.item() == 1
                                       for v in terms):
            return None
        inner = powers[0].input(0)
    negated = b.made_by(inner, "Neg")
    absolute = None if negated is None else b.made_by(negated.input(0), "Abs")
    return None if absolute is None else absolute.input(0)


def _shift(b: RewriteBuilder, value: Value) -> Value | None:
    """Return m = max(z, 0) of log(exp(-m) + exp(z - m))."""
    logarithm = b.made_by(value, "Log")
    total = None if logarithm is None else b.made_by(logarithm.input(0), "Add")
    if total is None:
        return None
    exponents = [e.input(0) for v in (total.input(0), total.input(1)) if (e := b.made_by(v, "Exp")) is not None]
    for one, other in (exponents, exponents[::-1]) if len(exponents) == 2 else ():
        negated, difference = b.made_by(one, "Neg"), b.made_by(other, "Sub")
        if negated is None or difference is None or difference.input(1) is not negated.input(0):
            continue
        shift = negated.input(0)
        if _positive_part(b, shift) is difference.input(0):
            return shift
    return None


# ---- roots of squares -------------------------------------------------------------------------------------------------------


@rewrite("Sqrt(Mul(%x, %x))", "Sqrt(Pow(%x, 2))", "Pow(Mul(%x, %x), 0.5)", "Pow(Pow(%x, 2), 0.5)", kind="repairs", shared=True)
def root_of_square(b: RewriteBuilder, node: Node, x: Value) -> Any:
    """sqrt(x x) = |x|, whose derivative at 0 is 0."""
    if x.type != node.output().type or not x.type.dtype.is_float:
        return no_match("the exponent broadcasts, or integers overflow")
    return b.Abs(x)


@rewrite("Mul(%r, %r)", "Pow(%r, %q)", "Mul(Sqrt(%x), Sqrt(%x))", "Mul(Pow(%x, %p), Pow(%x, %p))", kind="repairs", shared=True,
         behind=("Sqrt", "Pow", "Mul", "Div", "Neg"))
def power_of_root(b: RewriteBuilder, node: Node) -> Any:
    """(x^p)^q = x^(p q), also of a multiple of the root that is squared: no infinite slope at 0 times zero; NaN below."""
    outer = 2.0 if node.op == "Mul" else _number(node.input(1))
    factors, root = _unscaled(b, node.input(0))
    made = b.made_by(root, "Sqrt", "Pow")
    inner = None if made is None else 0.5 if made.op == "Sqrt" else _number(made.input(1))
    if made is None or inner is None or outer is None or not 0 < inner < 1 < outer or (factors and outer != 2):
        return no_match("it is no power of a root")
    x, power = made.input(0), inner * outer
    if not x.type.dtype.is_float:
        return no_match("integers are rounded")
    result = x if power == 1 else b.Pow(x, power)
    if power.is_integer():
        result = b.Where(b.Less(x, 0.0), b.Mul(x, float("nan")), result)
    for op, factor in (*factors, *factors):
        result = b.add(op, [result, factor])
    return unchanged(node, result, "an exponent or a factor")


def _number(value: Value) -> float | None:
    return float(value.literal.item()) if value.literal is not None and value.literal.size == 1 else None


@rewrite("Atan(Div(%y, %x))", kind="repairs", shared=True)
def angle(b: RewriteBuilder, y: Value, x: Value) -> Any:
    """atan(y / x) as one operator: its derivative is finite where x is 0."""
    if x.constant is not None and x.constant.all():
        return no_match("the divisor is never 0")
    return b.AtanOfQuotient(y, x)


@rewrite("Mul(Sub(1, %x), Add(%x, 1))", kind="repairs", shared=True)
def one_minus_square(b: RewriteBuilder, node: Node, x: Value) -> Any:
    """(1 - x) (1 + x), whose slope is one factor: divided by at 1, the slopes of two are infinity times zero."""
    if x.type != node.output().type or not x.type.dtype.is_float:
        return no_match("a 1 broadcasts, or these are integers")
    return b.OneMinusSquare(x)


@rewrite("Sqrt(ReduceSum(Mul(%x, %x), %axes?))", "Sqrt(ReduceSum(Pow(%x, 2), %axes?))", "Sqrt(ReduceSumSquare(%x, %axes?))",
         "Pow(ReduceSum(Mul(%x, %x), %axes?), 0.5)", "Pow(ReduceSum(Pow(%x, 2), %axes?), 0.5)",
         "Pow(ReduceSumSquare(%x, %axes?), 0.5)", kind="repairs", shared=True)
def euclidean_norm(b: RewriteBuilder, node: Node, x: Value, axes: Value | None) -> Any:
    """sqrt(sum(x x)) = ||x||, whose derivative at 0 is 0."""
    reduction = node.input(0).producer
    squared = reduction.input(0)
    if attr(reduction, "noop_with_empty_axes") or (reduction.op == "ReduceSum" and squared.type != x.type):
        return no_match("it may reduce nothing, or the exponent broadcasts")
    return b.ReduceL2(x, axes, keepdims=attr(reduction, "keepdims"))


@rewrite("Mul(%r, %r)", "Pow(%r, 2)", kind="repairs", shared=True, behind=("ReduceL2", "Cast", "Mul", "Div", "Neg"))
def square_of_norm(b: RewriteBuilder, node: Node, r: Value) -> Any:
    """(c ||x||)^2 = sum(c x c x), which is smooth at 0 and overflows no sooner."""
    factors, root = _unscaled(b, r, is_rounded=True)
    norm = b.made_by(root, "ReduceL2")
    if norm is None:
        return no_match("it is no norm")
    x = norm.input(0)
    for op, factor in factors:
        x = b.add(op, [x, b.cast_like(factor, x)])
    if x.type != norm.input(0).type:
        return no_match("a factor broadcasts")
    squared = b.add("ReduceSumSquare", [x, *norm.inputs[1:]], norm.attributes)
    return unchanged(node, b.cast_like(squared, r), "an exponent or a factor")


@rewrite("Sqrt(%s)", "Pow(%s, 0.5)", kind="repairs", shared=True)
def scaled_norm(b: RewriteBuilder, node: Node, s: Value) -> Any:
    """sqrt(c mean(x x)) = ||x|| sqrt(c / n), as in a standard deviation; its derivative at 0 is 0."""
    factors, reduction = _scaled(b, s)
    if reduction is None:
        return no_match("it is no multiple of a sum of squares")
    x = _squared(b, reduction)
    if x is None or attr(reduction, "noop_with_empty_axes"):
        return no_match("no squares are summed, or nothing may be reduced")
    x, wide = b.cast(x, s.type.dtype.wide), s.type.dtype.wide  # many narrow numbers have a norm that is none of them
    factors = [(op, b.cast(factor, wide)) for op, factor in factors]
    if reduction.op == "ReduceMean":
        factors = [("Div", b.cast(count_of(b, reduction), wide)), *factors]
    if not factors:
        return no_match("it is a plain norm")
    root = _root_of_product(b, factors)
    if root.constant is not None and not 0 < float(root.constant.item()) < np.inf:
        return no_match("the root of the factors is out of range")
    norm = b.ReduceL2(x, *reduction.inputs[1:], keepdims=attr(reduction, "keepdims"))
    scaled = b.cast_like(b.Mul(norm, root), s)
    return scaled if scaled.type == node.output().type else no_match("a factor broadcasts")


def _unscaled(b: RewriteBuilder, value: Value, is_rounded: bool = False) -> tuple[list[tuple[str, Value]], Value]:
    """Return what a value is multiplied with and divided by, single numbers, and what is left.

    That may be of a wider type if ``is_rounded``: scaled norms are computed there.
    """
    factors: list[tuple[str, Value]] = []
    while (node := b.made_by(value, "Cast", "Mul", "Div", "Neg")) is not None:
        x = node.input(0)
        if node.op == "Neg":
            factors.append(("Mul", b.scalar(-1, x.type.dtype)))
        elif node.op == "Cast":
            if not is_rounded or x.type.dtype != value.type.dtype.wide:
                break
        else:
            y = node.input(1)
            if node.op == "Mul" and (x.type.size == 1 and y.type.size != 1 or x.constant is not None):
                x, y = y, x
            if y.type.size != 1 or x is y:
                break
            factors.append((node.op, y))
        value = x
    return factors[::-1], value


def _scaled(b: RewriteBuilder, value: Value) -> tuple[list[tuple[str, Value]], Node | None]:
    """Return by what the result of a reduction is scaled, numbers above 0 as far as they are known, and the reduction."""
    factors, rest = _unscaled(b, value)
    if not all(y.constant is None or 0 < float(y.constant.item()) < np.inf for _, y in factors):
        return [], None
    return factors, b.made_by(rest, "ReduceSum", "ReduceMean", "ReduceSumSquare")


def _root_of_product(b: RewriteBuilder, factors: Sequence[tuple[str, Value]]) -> Value:
    """Return the square root of a product of numbers: a constant if all are."""
    product, rest = 1.0, b.scalar(1, factors[0][1].type.dtype)
    for op, factor in factors:
        if factor.literal is None:
            rest = b.add(op, [rest, factor])
        else:
            number = float(factor.literal.item())
            product = product * number if op == "Mul" else product / number
    return b.scalar(float(np.sqrt(product)), rest.type.dtype) if rest.constant is not None else b.Sqrt(b.Mul(rest, product))


def _squared(b: RewriteBuilder, reduction: Node) -> Value | None:
    """Return x of a reduction of x x."""
    if reduction.op == "ReduceSumSquare":
        return reduction.input(0)
    node = b.made_by(reduction.input(0), "Mul", "Pow")
    if node is None or node.output().type != node.input(0).type:
        return None
    if node.op == "Mul":
        return node.input(0) if node.input(0) is node.input(1) else None
    exponent = node.input(1).constant
    return node.input(0) if exponent is not None and exponent.size == 1 and exponent.item() == 2 else None


# ---- powers of sizes --------------------------------------------------------------------------------------------------------


@rewrite("Pow(Abs(%x), %p)", kind="repairs", shared=True)
def power_of_size(b: RewriteBuilder, node: Node, x: Value, p: Value) -> Any:
    """|x|^p with 0 < p < 1, whose derivative at 0 is 0 as that of |x|, where infinity times zero stood."""
    if not _is_root(p) or x.type != node.output().type:
        return no_match("the exponent is none between 0 and 1, or it broadcasts")
    return _rooted(b, x, b.Abs, p)


@rewrite("Pow(ReduceSum(Pow(Abs(%x), %p), %axes?), %q)", "Pow(ReduceSum(Pow(%x, %p), %axes?), %q)", kind="repairs", shared=True)
def norm_of_order_p(b: RewriteBuilder, node: Node, p: Value, q: Value) -> Any:
    """(sum |x|^p)^q with 0 < q < 1, whose derivative at a zero vector is 0."""
    total, exponent = node.input(0), p.constant
    is_even = exponent is not None and exponent.size == 1 and exponent.item() % 2 == 0
    powers = total.producer.input(0).producer
    if not _is_root(q) or total.type != node.output().type:
        return no_match("the root is none, or it broadcasts")
    if not is_even and b.made_by(powers.input(0), "Abs") is None:
        return no_match("a sum of odd powers may be 0 elsewhere")
    return _rooted(b, total, lambda v: v, q)


def _is_root(p: Value) -> bool:
    return p.constant is not None and p.constant.size == 1 and 0 < float(p.constant.item()) < 1


def _rooted(b: RewriteBuilder, x: Value, size: Callable[[Value], Value], p: Value) -> Value:
    """Return size(x)^p where x is not 0, and 0 with slope 0 elsewhere."""
    vanishes, dtype = b.Equal(x, 0.0), x.type.dtype
    return b.Where(vanishes, b.scalar(0, dtype), b.Pow(b.Where(vanishes, b.scalar(1, dtype), size(x)), p))


RULES = rules_in(globals())
