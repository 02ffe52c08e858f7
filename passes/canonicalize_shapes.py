"""Canonical forms of what moves elements: reshapes, transposes, broadcasts, slices, and what types say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import FlowgradError
from flowgrad.ir.graph import CONSTANT, Node, Value
from flowgrad.ir.infer import draft, infer
from flowgrad.ir.ops.operands import known_ints, permuted, summed_to
from flowgrad.ir.ops.registry import Trait, attr, find_op
from flowgrad.ir.types import Shape
from flowgrad.passes.rewrite import RewriteBuilder, no_match, rewrite, rules_in


def same_type(a: Value, b: Value) -> bool:
    """Return whether two values surely have the same shape and dtype."""
    return a.type.shape is not None and a.type == b.type


# ---- what changes nothing -----------------------------------------------------------------------------------------------


@rewrite("Reshape(%x, %s)", "Expand(%x, %s)", "Flatten(%x)", "Squeeze(%x, %s?)", "Unsqueeze(%x, %s)", "Tile(%x, %s)",
         "SumTo(%x, %s)")
def drop_same_shape(b: Builder, node: Node, x: Value) -> Any:
    """What keeps the order of elements and gives the shape that x has is x."""
    return x if same_type(x, node.output()) else no_match(f"{x.type!r} becomes {node.output().type!r}")


@rewrite("Slice(%x, %starts, %ends, %axes?, %steps?)")
def drop_whole_slice(b: Builder, node: Node, x: Value, steps: Value | None) -> Any:
    """A slice with steps of 1 that takes as many elements as there are takes all."""
    if steps is not None and (known_ints(steps) is None or any(n != 1 for n in known_ints(steps) or ())):
        return no_match("the steps are not 1")
    return x if same_type(x, node.output()) else no_match("it takes a part, or only the run can tell")


@rewrite("Pad(%x, %pads, %value?, %axes?)")
def drop_empty_pad(b: Builder, x: Value, pads: Value) -> Any:
    """A pad of nothing is x."""
    found = known_ints(pads)
    return x if found is not None and not any(found) else no_match("there are pads, or only the run can tell")


@rewrite("Transpose(%x)")
def drop_still_transpose(b: Builder, node: Node, x: Value) -> Any:
    """A permutation that moves nothing is none."""
    perm = permutation(node)
    return x if perm is not None and perm == sorted(perm) else no_match("it moves axes")


@rewrite("Concat(%x)")
def drop_single_concat(b: Builder, x: Value) -> Any:
    """The concatenation of one tensor is that tensor."""
    return x


@rewrite("ReduceSum|ReduceMean|ReduceMax|ReduceMin|ReduceProd(%x, %axes?)")
def drop_empty_reduction(b: Builder, node: Node, x: Value, axes: Value | None) -> Any:
    """A reduction along no axis is x."""
    if not attr(node, "noop_with_empty_axes") or (axes is not None and known_ints(axes) != []):
        return no_match("it reduces, or only the run can tell")
    return x


# ---- chains -------------------------------------------------------------------------------------------------------------


@rewrite("Reshape(%y, %s)", "Flatten(%y)", "Squeeze(%y, %s?)", "Unsqueeze(%y, %s)")
def return_to_shape(b: RewriteBuilder, node: Node, y: Value) -> Any:
    """Regrouping elements and then going back is nothing."""
    before = b.made_with(y, Trait.REGROUPS)
    if before is None:
        return no_match(f"%{y.name} does not regroup elements")
    x = before.input(0)
    return x if same_type(x, node.output()) else no_match(f"{x.type!r} becomes {node.output().type!r}")


@rewrite("Reshape(Reshape|Squeeze|Unsqueeze(%x, %a?), %s)", "Reshape(Flatten(%x), %s)", shared=True)
def join_reshapes(b: Builder, node: Node, x: Value, s: Value) -> Any:
    """Of two reshapes in a row the second decides, unless its shape copies extents of the first by zeros."""
    wanted = s.constant
    if wanted is None:
        return no_match("the shape is known only at run time, and a 0 in it would copy an extent")
    if np.all(wanted != 0) or attr(node, "allowzero"):
        return b.add("Reshape", [x, s], node.attributes)
    if not node.output().type.is_static or 0 in node.output().type.static_shape:
        return no_match("the shape copies extents of what comes between")
    return b.Reshape(x, list(node.output().type.static_shape))


@rewrite("Transpose(Transpose(%x))", shared=True)
def join_transposes(b: Builder, node: Node, x: Value) -> Any:
    """Two permutations are one."""
    first, second = permutation(node.input(0).producer), permutation(node)
    if first is None or second is None:
        return no_match("the rank is not known")
    return permuted(b, x, [first[axis] for axis in second])


@rewrite("Expand(Expand(%x, %a), %s)", shared=True)
def join_expands(b: Builder, node: Node, x: Value, s: Value) -> Any:
    """Of two broadcasts in a row the second suffices if it alone gives the shape."""
    if _shape_of("Expand", [x, s], node) != node.output().type.shape:
        return no_match("both are needed, or only the run can tell")
    return b.Expand(x, s)


@rewrite("Concat(*%parts)")
def undo_split(b: RewriteBuilder, node: Node, parts: Sequence[Value]) -> Any:
    """The parts of a Split, put together again in order, are what was split."""
    split = b.made_by(parts[0], "Split") if parts else None
    if split is None or list(split.outputs) != list(parts) or any(b.made_by(v, "Split") is None for v in parts):
        return no_match("these are not all parts of one Split, in order")
    whole = split.input(0)
    rank = whole.type.rank
    if rank is None or attr(split, "axis") % rank != attr(node, "axis") % rank:
        return no_match("the axes differ")
    return whole if same_type(whole, node.output()) else no_match("the types differ")


def permutation(node: Node) -> list[int] | None:
    """Return the permutation of a Transpose, None if it is the default and the rank is not known."""
    perm = attr(node, "perm")
    if perm is not None:
        return [int(axis) for axis in perm]
    rank = node.input(0).type.rank
    return None if rank is None else list(range(rank))[::-1]


# ---- broadcasts ---------------------------------------------------------------------------------------------------------


MOST_TRIED = 16
"""Where an op needs more than one Expand of its operands, so many are tried one by one: each costs as much as the op is wide."""


@rewrite("<BROADCASTS>(*%operands)", behind=("Expand", "Reshape", "Flatten", "Squeeze", "Unsqueeze"))
def drop_redundant_expand(b: RewriteBuilder, node: Node, operands: Sequence[Value | None]) -> Any:
    """An operand need not be broadcast beforehand where the op broadcasts it to the same shape."""
    shape = node.output().type.shape
    bare = {index: narrow for index, v in enumerate(operands) if (narrow := _before_expand(b, v)) is not None}
    if shape is None or not bare:
        return no_match("no operand is an Expand")
    listed = list(bare.items())
    chosen = [listed, listed[:-1], *([item] for item in listed[:MOST_TRIED])] if len(listed) > 1 else [listed]
    for dropped in map(dict, chosen):
        inputs = [dropped.get(index, v) for index, v in enumerate(operands)]
        if _shape_of(node.op, inputs, node) == shape:
            return b.add(node.op, inputs, node.attributes)
    return no_match("no operand is an Expand that the op makes needless")


def _before_expand(b: RewriteBuilder, value: Value | None) -> Value | None:
    """Return what ``value`` is a broadcast of: the operand of an Expand, a single number also behind a regrouping."""
    expand = b.made_by(value, "Expand")
    if expand is not None:
        return expand.input(0)
    regrouped = b.made_with(value, Trait.REGROUPS)
    expand = b.made_by(regrouped.input(0), "Expand") if regrouped is not None else None
    return expand.input(0) if expand is not None and expand.input(0).type.rank == 0 else None


@rewrite("Expand(Unsqueeze|Squeeze|Reshape(Expand(%x, %a), %c?), %s)", shared=True)
def join_expands_of_number(b: Builder, node: Node, x: Value, s: Value) -> Any:
    """A single number that is broadcast, regrouped and broadcast again is broadcast once."""
    if x.type.rank != 0 or _shape_of("Expand", [x, s], node) != node.output().type.shape:
        return no_match("it is no single number, or only the run can tell the shape")
    return b.Expand(x, s)


@rewrite("Neg(Expand(%x, %s))")
def negate_before_expand(b: Builder, x: Value, s: Value) -> Any:
    """A single number is negated before it is broadcast."""
    return b.Expand(b.Neg(x), s) if x.type.rank == 0 else no_match("it is no single number")


@rewrite("Mul(Expand(%x, %s), %y)")
def multiply_before_expand(b: Builder, x: Value, s: Value, y: Value) -> Any:
    """Of a single number that is broadcast, a multiple is computed before."""
    return b.Expand(b.Mul(x, y), s) if x.type.rank == y.type.rank == 0 else no_match("these are no single numbers")


def _shape_of(op: str, inputs: Sequence[Value | None], node: Node) -> Shape | None:
    """Return the shape that an op with other inputs would give."""
    try:
        found = infer(draft(op, inputs, node.attributes, count=len(node.outputs)))[0]
    except FlowgradError:
        return None
    return None if found is None else found.shape


@rewrite("SumTo(%x, %s)")
def decide_sum_to(b: Builder, node: Node, x: Value, s: Value) -> Any:
    """SumTo along axes that types tell is a ReduceSum."""
    summed = summed_to(b, x, node.output().type.shape)
    if summed is None:
        return no_match("only the run can tell which axes are summed")
    return no_match("the types differ only in what is known of them") if summed is x else summed


# ---- shapes as values -----------------------------------------------------------------------------------------------------


@rewrite("Shape(%x)", "Size(%x)")
def decide_shape(b: Builder, node: Node) -> Any:
    """A shape that types tell is a constant."""
    known = known_ints(node.output())
    if known is None:
        return no_match("only the run can tell")
    return b.graph.add_constant(np.asarray(known, np.int64).reshape(node.output().type.static_shape))


@rewrite("Shape(%x)", "Size(%x)")
def shape_of_operand(b: Builder, node: Node, x: Value) -> Any:
    """The shape of an elementwise result is that of an operand of the same shape: the result itself may not be needed."""
    producer = x.producer
    definition = find_op(producer.op)
    if definition is None or Trait.ELEMENTWISE not in definition.traits:
        return no_match(f"%{x.name} is not elementwise")
    for operand in producer.inputs:
        if operand is not None and x.type.shape is not None and operand.type.shape == x.type.shape and (
            operand.producer.op != CONSTANT
        ):
            return b.add(node.op, [operand], node.attributes)
    return no_match("no operand has the same shape")


RULES = rules_in(globals())
