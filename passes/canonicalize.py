"""The canonicalize pass: one form for what can be written in several, bit for bit the same values.

Rules here only ever make a graph smaller or swap an op for a simpler one, so they come to an end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.inline import inline
from flowgrad.ir.ops.registry import attr
from flowgrad.ir.types import DType
from flowgrad.passes import canonicalize_shapes
from flowgrad.passes.registry import pass_
from flowgrad.passes.rewrite import RewriteBuilder, apply_rules, no_match, rewrite, rules_in


@pass_("canonicalize", kind="exact")
def canonicalize(graph: Graph) -> None:
    """Drop what does nothing, join what follows on itself, decide what types decide."""
    apply_rules(graph, RULES)


def unchanged(node: Node, x: Value, what: str) -> Any:
    """Return ``x`` if it has exactly the type of the output of ``node``."""
    if x.type.shape is None or x.type != node.output().type:
        return no_match(f"{what} changes {x.type!r} to {node.output().type!r}")
    return x


# ---- what does nothing --------------------------------------------------------------------------------------------------


@rewrite("Identity(%x)")
def drop_identity(b: Builder, x: Value) -> Any:
    """Identity(x) = x."""
    return x


@rewrite("Neg(Neg(%x))", "Not(Not(%x))", shared=True)
def drop_double_negation(b: Builder, x: Value) -> Any:
    """-(-x) = x."""
    return x


@rewrite("Mul(%x, 1)", "Div(%x, 1)", "Pow(%x, 1)")
def drop_unit(b: Builder, node: Node, x: Value) -> Any:
    """x * 1 = x / 1 = x ** 1 = x."""
    return unchanged(node, x, "broadcasting")


@rewrite("Mul(%x, -1)", "Div(%x, -1)")
def negate(b: Builder, node: Node, x: Value) -> Any:
    """x * -1 = x / -1 = -x."""
    return b.Neg(x) if x.type == node.output().type else no_match("broadcasting changes the shape")


@rewrite("Add(%x, -0.0)", "Sub(%x, 0.0)")
def drop_zero_term(b: Builder, node: Node, x: Value) -> Any:
    """x + -0.0 = x - 0.0 = x; the other two zeros would turn -0.0 into 0.0."""
    return unchanged(node, x, "broadcasting")


@rewrite("Relu|Abs|Floor|Ceil|Round|Sign(%y)")
def drop_idempotent(b: RewriteBuilder, node: Node, y: Value) -> Any:
    """f(f(x)) = f(x)."""
    return y if b.made_by(y, node.op) else no_match(f"{y.producer.op} is another op")


@rewrite("Sum|Mean|Max|Min(%x)")
def drop_single_operand(b: Builder, x: Value) -> Any:
    """The sum, mean, maximum or minimum of one tensor is that tensor."""
    return x


@rewrite("Dropout(%x, %ratio?, %training?)")
def drop_idle_dropout(b: Builder, node: Node, x: Value, training: Value | None) -> Any:
    """Dropout outside training is x."""
    if training is not None and (training.constant is None or bool(training.constant.any())):
        return no_match("it may be training")
    return x if len(node.outputs) == 1 else no_match("its mask is asked for")


# ---- signs and sums -------------------------------------------------------------------------------------------------------


@rewrite("Sum(%x, %y)")
def add_two(b: Builder, x: Value, y: Value) -> Any:
    """A sum of two is an Add."""
    return b.Add(x, y)


@rewrite("Add(%x, Neg(%y))")
def subtract_negated(b: Builder, node: Node, x: Value, y: Value) -> Any:
    """x + (-y) = x - y."""
    return b.Sub(x, y)


@rewrite("Sub(%x, Neg(%y))")
def add_negated(b: Builder, x: Value, y: Value) -> Any:
    """x - (-y) = x + y."""
    return b.Add(x, y)


@rewrite("Mul(Neg(%x), Neg(%y))", "Div(Neg(%x), Neg(%y))")
def drop_common_sign(b: Builder, node: Node, x: Value, y: Value) -> Any:
    """(-x) (-y) = x y, and the same for a quotient of floats."""
    if not x.type.dtype.is_float:
        return no_match("integers wrap around")
    return b.add(node.op, [x, y])


# ---- selection --------------------------------------------------------------------------------------------------------------


@rewrite("Where(%c, %x, %y)")
def decide_where(b: Builder, node: Node, c: Value, x: Value, y: Value) -> Any:
    """Where(c, x, y) with a condition that is the same everywhere is x or y."""
    if x is y:
        return unchanged(node, x, "broadcasting")
    if c.constant is None or not c.constant.size:
        return no_match("the condition is not constant")
    first = bool(c.constant.flat[0])
    if not np.all(c.constant == first):
        return no_match("the condition is not the same everywhere")
    return unchanged(node, x if first else y, "broadcasting")


@rewrite("If(%c)")
def decide_if(b: Builder, node: Node, c: Value) -> Any:
    """If with a constant condition is one of its branches."""
    if c.constant is None or c.constant.size != 1:
        return no_match("the condition is not constant")
    branch = node.subgraphs["then_branch" if bool(c.constant.flat[0]) else "else_branch"]
    pairs = [(y.type.rank, made.type.rank) for y, made in zip(node.outputs, branch.outputs, strict=False) if y is not None]
    if any(None not in pair and len(set(pair)) > 1 for pair in pairs):
        return no_match("the branch has not the rank that is demanded of it: the run will say so")
    mapping = dict(zip(branch.inputs, node.captures, strict=True))
    return tuple(inline(b, branch, mapping, branch.outputs))


# ---- conversions ------------------------------------------------------------------------------------------------------------

_EXACT = {
    "bool": {"uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"},
    "int8": {"int16", "int32", "int64"}, "int16": {"int32", "int64"}, "int32": {"int64"},
    "uint8": {"int16", "int32", "int64"}, "uint16": {"int32", "int64"}, "uint32": {"int64"},
    "float16": {"float32", "float64"}, "bfloat16": {"float32", "float64"}, "float32": {"float64"},
}
"""The conversions that keep every value, from each dtype."""


@rewrite("Cast(%x)", "CastLike(%x, %like)")
def drop_cast(b: Builder, node: Node, x: Value) -> Any:
    """A conversion to the dtype that x has is x."""
    return unchanged(node, x, "the conversion")


@rewrite("CastLike(%x, %like)")
def name_dtype(b: Builder, node: Node, x: Value) -> Any:
    """CastLike is a Cast to a dtype that is known."""
    if attr(node, "saturate") != 1:
        return no_match("it does not saturate")
    return b.Cast(x, to=node.output().type.dtype.onnx)


@rewrite("Cast(Cast(%x))", shared=True)
def join_casts(b: Builder, node: Node, x: Value) -> Any:
    """A conversion after one that keeps every value is one conversion; back to the first dtype, it is none."""
    first, middle, last = x.type.dtype, node.input(0).type.dtype, node.output().type.dtype
    if middle.name not in _EXACT.get(first.name, ()):
        return no_match(f"{first.name} to {middle.name} may lose something")
    if last == first:
        return x
    if _keeps_kind(first, last):
        return b.add("Cast", [x], {k: v for k, v in node.attributes.items() if k != "recompute"})
    return no_match(f"{first.name} to {last.name} may not round the same way")


def _keeps_kind(first: DType, last: DType) -> bool:
    plain = {"float16", "bfloat16", "float32", "float64"}
    return first.name in plain and last.name in plain or last.name in _EXACT.get(first.name, ())


# All rules, those on shapes included.
RULES = [*rules_in(globals()), *canonicalize_shapes.RULES]
