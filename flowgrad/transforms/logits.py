"""Which function scores went through last: the logits behind a softmax or sigmoid, however it is written."""

from __future__ import annotations

from flowgrad.ir.graph import ENTRIES, Node, Value
from flowgrad.ir.ops.registry import OpDef, Trait, opdef

SQUASHING = ("Softmax", "Sigmoid", "HardSigmoid")


def squashed(y: Value) -> tuple[str, Value] | None:
    """Return (op, logits) if ``y`` is the softmax or sigmoid of ``logits``; None for anything else.

    What only moves elements lies between or not, and so do bounds (Clip, Max, Min with a constant), and a quotient by the sum of
    the elements, as converters of classifiers write. The quotient of Exp by its sum counts as Softmax, 1 / (1 + exp(-x)) as
    Sigmoid.
    """
    value = y
    while True:
        node = value.producer
        if node.op in SQUASHING:
            return node.op, node.input(0)
        if node.op in ENTRIES:
            return None
        if (logits := _logistic(node)) is not None:
            return "Sigmoid", logits
        whole = _share(node)
        if whole is not None and whole.producer.op == "Exp":
            return "Softmax", _unshifted(whole.producer.input(0))
        following = whole if whole is not None else _bounded(node) or _moved(node)
        if following is None:
            return None
        value = following


def _moved(node: Node) -> Value | None:
    """Return what a node gives the elements of, perhaps in another type or order."""
    return node.input(0) if _only_moves(opdef(node.op)) else None


def _only_moves(definition: OpDef) -> bool:
    return Trait.VIEW in definition.traits or (Trait.LINEAR in definition.traits and bool(definition.dtype_attributes))


def _bounded(node: Node) -> Value | None:
    """Return what a node bounds by constants."""
    if node.op == "Clip":
        return node.input(0)
    return _beside_constant(node) if node.op in ("Max", "Min") and len(node.inputs) == 2 else None


def _beside_constant(node: Node) -> Value | None:
    """Return the operand of a node that is no constant, if the other one is."""
    first, second = node.input(0), node.input(1)
    if second.constant is not None:
        return first
    return second if first.constant is not None else None


def _share(node: Node) -> Value | None:
    """Return the value that a node divides by the sum of its elements."""
    if node.op == "LpNormalization":
        return node.input(0) if node.attributes.get("p", 2) == 1 else None
    if node.op == "Div":
        return node.input(0) if _is_sum_of(node.input(1), node.input(0)) else None
    if node.op == "Mul":
        for whole, factor in ((node.input(0), node.input(1)), (node.input(1), node.input(0))):
            if factor.producer.op == "Reciprocal" and _is_sum_of(factor.producer.input(0), whole):
                return whole
    return None


def _is_sum_of(divisor: Value, whole: Value) -> bool:
    """Return whether ``divisor`` is the sum of the elements of ``whole``, perhaps guarded against 0."""
    node = divisor.producer
    while node.op not in ("ReduceSum", "ReduceL1"):
        if node.op in ENTRIES:
            return False
        guarded = node.input(2) if node.op == "Where" else node.input(0) if node.op == "Expand" else _bounded(node) or _moved(node)
        if guarded is None and node.op == "Add":
            guarded = _beside_constant(node)
        if guarded is None:
            return False
        node = guarded.producer
    summed = node.input(0)
    return summed is whole or (summed.producer.op == "Abs" and summed.producer.input(0) is whole)


def _unshifted(value: Value) -> Value:
    """Return the logits of an exponent from which their maximum was taken."""
    node = value.producer
    if node.op == "Sub" and node.input(1).producer.op == "ReduceMax" and node.input(1).producer.input(0) is node.input(0):
        return node.input(0)
    return value


def _logistic(node: Node) -> Value | None:
    """Return x of 1 / (1 + exp(-x))."""
    divisor = node.input(0) if node.op == "Reciprocal" else node.input(1) if node.op == "Div" and _is_one(node.input(0)) else None
    if divisor is None or divisor.producer.op != "Add":
        return None
    for one, power in ((divisor.producer.input(0), divisor.producer.input(1)), (divisor.producer.input(1), divisor.producer.input(0))):
        if _is_one(one) and power.producer.op == "Exp" and power.producer.input(0).producer.op == "Neg":
            return power.producer.input(0).producer.input(0)
    return None


def _is_one(value: Value) -> bool:
    return value.constant is not None and value.constant.size == 1 and bool(value.constant.reshape(()) == 1)
