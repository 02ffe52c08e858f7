"""Sequences of tensors: each operator gives a new sequence, and sequences share their tensors.

What goes in and comes out is copied: a run may reuse the memory of any other value, and write over it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.dtypes import boxed, content_of, sequence_of
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.limits import check_scratch
from flowgrad.ir.ops.control.operators import agreed
from flowgrad.ir.ops.operands import normal_axis
from flowgrad.ir.ops.registry import FLOWGRAD, NO_GRADIENT, REQUIRED, Trait, attr, op
from flowgrad.ir.types import BOOL, INT64, UNKNOWN, DType, Type, dtype_of


def tensor_type(node: Node, slot: int = 0) -> DType:
    """Return the element type of the sequence in input ``slot``. Raises ValidationError if that is no sequence."""
    dtype = node.input(slot).type.dtype
    if dtype.kind != "sequence" or dtype.element is None:
        raise ValidationError(f"{node.op} takes a sequence, got {node.input(slot)!r}", code="dtype", where=describe(node))
    return dtype.element


def _same_sequence(node: Node) -> Type:
    return Type(sequence_of(tensor_type(node)), ())


def _sequence(tensors: Sequence[Array]) -> Array:
    """Return a sequence of tensors as it is held; LimitError if they take more memory together than one tensor may."""
    check_scratch(sum(t.nbytes for t in tensors), "a sequence")
    return boxed(tuple(tensors))


def member_type(sequence: Value) -> Type:
    """Return what the tensors of a sequence have in common, as far as the operators that made it tell.

    Of unknown rank where a sequence comes from outside or from control flow. The answer is kept, so that a chain of
    operators is walked once.
    """
    chain: list[tuple[Value, list[Type]]] = []
    value: Value | None = sequence
    while value is not None and value.members is None:
        rule = _MEMBERS.get(value.producer.op)
        added, before = rule(value.producer) if rule else ([Type(_element(value), None)], None)
        chain.append((value, added))
        value = before
    known = [] if value is None else [value.members]
    for made, added in reversed(chain):
        known = [functools.reduce(agreed, [t for t in (*known, *added) if t is not None])] if known or added else []
        if known:
            made.members = known[0]
    return sequence.members or Type(_element(sequence), None)


def _element(sequence: Value) -> DType:
    dtype = sequence.type.dtype.element
    assert dtype is not None
    return dtype


def _pieces(node: Node) -> Type:
    """Return the type of what SplitToSequence cuts an input into."""
    type_ = node.input(0).type
    if type_.shape is None:
        return type_
    at = normal_axis(attr(node, "axis"), len(type_.shape))
    single = node.optional(1) is None
    middle = (() if not attr(node, "keepdims") else (1,)) if single else (UNKNOWN,)
    return type_.with_shape((*type_.shape[:at], *middle, *type_.shape[at + 1:]))


_MEMBERS: dict[str, Callable[[Node], tuple[list[Type], Value | None]]] = {
    "SequenceConstruct": lambda node: ([v.type for v in node.operands], None),
    "SplitToSequence": lambda node: ([_pieces(node)], None),
    "SequenceEmpty": lambda node: ([], None),
    "SequenceInsert": lambda node: ([node.input(1).type], node.input(0)),
    "SequenceErase": lambda node: ([], node.input(0)),
    "SequenceZeros": lambda node: ([], node.input(0)),
    "SequenceAdd": lambda node: ([], node.input(0)),
    "SequenceAddAt": lambda node: ([], node.input(0)),
    "Identity": lambda node: ([], node.input(0)),
}
"""What each operator puts into the sequence it gives, and the sequence that it takes the rest from."""


def _place(position: Array | None, count: int, default: int, extra: int = 0) -> int:
    """Return a position counted from the start; IndexError if it is not in [-count, count - 1 + extra]."""
    if position is None:
        return default
    place = int(np.reshape(position, ()))
    if not -count <= place < count + extra:
        raise IndexError(f"position {place} in a sequence of {count}")
    return place + count if place < 0 else place


# ---- making -------------------------------------------------------------------------------------------------------------


@op("SequenceEmpty", since=11, dtype_attributes=("dtype",), traits=(Trait.ZERO,))
def sequence_empty(*, dtype: int = 1) -> Array:
    return boxed(())


@sequence_empty.types
def _(node: Node) -> Type:
    return Type(sequence_of(dtype_of(attr(node, "dtype"))), ())


@op("SequenceConstruct", since=11, traits=(Trait.LINEAR,))
def sequence_construct(*inputs: Array) -> Array:
    return _sequence([x.copy() for x in inputs])


@sequence_construct.types
def _(node: Node) -> Type:
    """A sequence of the dtype that all inputs have."""
    dtypes = {v.type.dtype for v in node.operands}
    if len(dtypes) != 1:
        raise ValidationError("SequenceConstruct takes tensors of one element type", code="dtype", where=describe(node))
    return Type(sequence_of(dtypes.pop()), ())


@sequence_construct.adjoint
def _(b: DerivativeBuilder, node: Node, s_bar: Value) -> Any:
    """x_bar[k] = s_bar[k], in the shape of x[k]."""
    return tuple(_shaped_like(b, b.SequenceAt(s_bar, np.int64(k)), node.input(k)) for k in range(len(node.inputs)))


def _shaped_like(b: Builder, value: Value, like: Value) -> Value:
    """Return a tensor that was read from a sequence, whose shape no type tells, in the shape that it has."""
    return b.Reshape(value, b.shape(like), allowzero=1)


@op("SplitToSequence", since=11, outputs=("output_sequence",), traits=(Trait.LINEAR,))
def split_to_sequence(x: Array, split: Array | None = None, *, axis: int = 0, keepdims: int = 1) -> Array:
    at = normal_axis(axis, x.ndim)
    extent = x.shape[at]
    if split is None:
        rows = [x[(slice(None),) * at + (slice(k, k + 1),)] for k in range(extent)]
        return _sequence([(r if keepdims else r.squeeze(at)).copy() for r in rows])
    sizes = [int(n) for n in np.atleast_1d(split)]
    if not np.ndim(split):
        if sizes[0] <= 0:
            raise ValueError(f"pieces of {sizes[0]} elements")
        sizes = [min(sizes[0], extent - start) for start in range(0, extent, sizes[0])]
    if min(sizes, default=0) < 0 or sum(sizes) != extent:
        raise ValueError(f"pieces of {sizes} elements of an axis of {extent}")
    ends = np.cumsum(sizes)
    return _sequence([x[(slice(None),) * at + (slice(end - n, end),)].copy() for n, end in zip(sizes, ends, strict=True)])


@split_to_sequence.types
def _(node: Node) -> Type:
    rank = node.input(0).type.rank
    if rank is not None:
        normal_axis(attr(node, "axis"), rank)
    return Type(sequence_of(node.input(0).type.dtype), ())


@split_to_sequence.adjoint
def _(b: DerivativeBuilder, node: Node, s_bar: Value) -> Any:
    """x_bar = the pieces of s_bar, joined again."""
    x, axis = node.input(0), int(attr(node, "axis"))
    single = node.optional(1) is None and not attr(node, "keepdims")
    if not single:  # an axis of extent 0 has no pieces: there is always an empty one to join
        s_bar = b.SequenceInsert(s_bar, b.Slice(x, [0], [0], [axis]), np.int64(0))
    joined = b.ConcatFromSequence(s_bar, axis=axis, new_axis=int(single))
    return _shaped_like(b, joined, node.input(0)), NO_GRADIENT


# ---- reading ------------------------------------------------------------------------------------------------------------


@op("SequenceLength", since=11, traits=(Trait.ZERO, Trait.SHAPE_ONLY))
def sequence_length(s: Array) -> Array:
    return np.asarray(len(content_of(s)), np.int64)


@sequence_length.types
def _(node: Node) -> Type:
    tensor_type(node)
    return Type(INT64, ())


@op("SequenceAt", since=11, traits=(Trait.LINEAR,))
def sequence_at(s: Array, position: Array) -> Array:
    items = content_of(s)
    found: Array = items[_place(position, len(items), 0)]
    return found.copy()


@sequence_at.types
def _(node: Node) -> Type:
    """What the tensors of the sequence have in common: they may differ in shape, and in rank."""
    tensor_type(node)
    return member_type(node.input(0))


@sequence_at.adjoint
def _(b: DerivativeBuilder, node: Node, x_bar: Value) -> Any:
    """s_bar = zeros but for x_bar at the position; beside other cotangents of s, x_bar is added to theirs (sum_of)."""
    s, position = node.input(0), node.input(1)
    return b.SequenceAddAt(b.SequenceZeros(s), x_bar, position), NO_GRADIENT


def _counted_from_start(b: Builder, s: Value, position: Value) -> Value:
    """Return a position that may count from the end as one that does not: erasing changes the length."""
    at = b.cast(position, INT64)
    return b.Where(b.Less(at, np.int64(0)), b.Add(at, b.SequenceLength(s)), at)


@op("ConcatFromSequence", since=11, outputs=("concat_result",), traits=(Trait.LINEAR,))
def concat_from_sequence(s: Array, *, axis: int = REQUIRED, new_axis: int = 0) -> Array:
    items = content_of(s)
    if not items:
        raise ValueError("an empty sequence has nothing to concatenate")
    return np.stack(items, axis) if new_axis else np.concatenate(items, axis)


@concat_from_sequence.types
def _(node: Node) -> Type:
    tensor_type(node)
    member, is_new = member_type(node.input(0)), int(attr(node, "new_axis"))
    if member.shape is None:
        return member
    at = normal_axis(attr(node, "axis"), len(member.shape) + is_new)
    return member.with_shape((*member.shape[:at], UNKNOWN, *member.shape[at + 1 - is_new:]))


@concat_from_sequence.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """s_bar[k] = the part of y_bar that s[k] became."""
    s, axis = node.input(0), int(attr(node, "axis"))
    if attr(node, "new_axis"):
        return b.SplitToSequence(y_bar, axis=axis, keepdims=0)
    return b.SplitToSequence(y_bar, b.SequenceExtents(s, axis=axis), axis=axis)


# ---- changing -----------------------------------------------------------------------------------------------------------


@op("SequenceInsert", since=11, traits=(Trait.LINEAR,))
def sequence_insert(s: Array, tensor: Array, position: Array | None = None) -> Array:
    items = content_of(s)
    at = _place(position, len(items), len(items), extra=1)
    return _sequence((*items[:at], tensor.copy(), *items[at:]))


@sequence_insert.types
def _(node: Node) -> Type:
    if tensor_type(node) != node.input(1).type.dtype:
        raise ValidationError(f"{node.input(1)!r} into {node.input(0)!r}", code="dtype", where=describe(node))
    return _same_sequence(node)


@sequence_insert.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """s_bar = y_bar without the place, tensor_bar = what stands there."""
    s, position = node.input(0), node.optional(2)
    length = b.SequenceLength(s)
    at = length if position is None else _counted_from_start(b, s, position)
    return b.SequenceErase(y_bar, at), _shaped_like(b, b.SequenceAt(y_bar, at), node.input(1)), NO_GRADIENT


@op("SequenceErase", since=11, traits=(Trait.LINEAR,))
def sequence_erase(s: Array, position: Array | None = None) -> Array:
    items = content_of(s)
    if not items:
        raise ValueError("an empty sequence has nothing to erase")
    at = _place(position, len(items), len(items) - 1)
    return boxed((*items[:at], *items[at + 1:]))


@sequence_erase.types
def _(node: Node) -> Type:
    return _same_sequence(node)


@sequence_erase.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """s_bar = y_bar with zeros at the place that was erased."""
    s, position = node.input(0), node.optional(1)
    last = b.Sub(b.SequenceLength(s), np.int64(1))
    at = last if position is None else _counted_from_start(b, s, position)
    return b.SequenceInsert(y_bar, b.zeros_like(b.SequenceAt(s, at)), at), NO_GRADIENT


# ---- what derivatives need ----------------------------------------------------------------------------------------------


@op("SequenceZeros", since=13, domain=FLOWGRAD, traits=(Trait.ZERO,))
def sequence_zeros(s: Array) -> Array:
    """Zeros in the shapes of the tensors of a sequence."""
    return _sequence([np.zeros_like(x) for x in content_of(s)])


@sequence_zeros.types
def _(node: Node) -> Type:
    return _same_sequence(node)


@sequence_zeros.expansion
def _(b: Builder, node: Node) -> Any:
    return _mapped(b, node.inputs, lambda inner, items: inner.zeros_like(items[0]))


@op("SequenceAdd", since=13, domain=FLOWGRAD, traits=(Trait.LINEAR,))
def sequence_add(s: Array, t: Array) -> Array:
    """The sums of the tensors of two sequences that agree in their shapes."""
    pairs = list(zip(content_of(s), content_of(t), strict=True))
    for x, y in pairs:
        if x.shape != y.shape:
            raise ValueError(f"tensors of shapes {list(x.shape)} and {list(y.shape)} in the same place")
    return _sequence([np.add(x, y) for x, y in pairs])


@sequence_add.types
def _(node: Node) -> Type:
    if tensor_type(node, 0) != tensor_type(node, 1):
        raise ValidationError("sequences of different element types cannot be added", code="dtype", where=describe(node))
    return _same_sequence(node)


@sequence_add.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """s_bar = t_bar = y_bar."""
    return y_bar, y_bar


@sequence_add.expansion
def _(b: Builder, node: Node) -> Any:
    return _mapped(b, node.inputs, lambda inner, items: inner.Add(*items))


@op("SequenceAddAt", since=13, domain=FLOWGRAD, traits=(Trait.LINEAR,))
def sequence_add_at(s: Array, x: Array, position: Array) -> Array:
    """A sequence with ``x`` added to the tensor at a position; the others are shared."""
    items = content_of(s)
    at = _place(position, len(items), 0)
    if items[at].shape != x.shape:
        raise ValueError(f"tensors of shapes {list(items[at].shape)} and {list(x.shape)} in the same place")
    return _sequence((*items[:at], np.add(items[at], x), *items[at + 1:]))


@sequence_add_at.types
def _(node: Node) -> Type:
    if tensor_type(node) != node.input(1).type.dtype:
        raise ValidationError(f"{node.input(1)!r} added to {node.input(0)!r}", code="dtype", where=describe(node))
    return _same_sequence(node)


@sequence_add_at.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """s_bar = y_bar, x_bar = what stands at the position."""
    return y_bar, _shaped_like(b, b.SequenceAt(y_bar, node.input(2)), node.input(1)), NO_GRADIENT


@sequence_add_at.expansion
def _(b: Builder, node: Node) -> Any:
    s, x = node.input(0), node.input(1)
    at = _counted_from_start(b, s, node.input(2))
    return b.SequenceInsert(b.SequenceErase(s, at), b.Add(b.SequenceAt(s, at), x), at)


@op("SequenceExtents", since=13, domain=FLOWGRAD, traits=(Trait.ZERO, Trait.SHAPE_ONLY))
def sequence_extents(s: Array, *, axis: int = REQUIRED) -> Array:
    """The extents of the tensors of a sequence along one axis, an int64 vector."""
    return np.asarray([x.shape[axis] for x in content_of(s)], np.int64).reshape(-1)


@sequence_extents.types
def _(node: Node) -> Type:
    tensor_type(node)
    return Type(INT64, (UNKNOWN,))


@sequence_extents.expansion
def _(b: Builder, node: Node) -> Any:
    axis = int(attr(node, "axis"))
    last = {} if axis == -1 else {"end": axis + 1}
    each = _mapped(b, node.inputs, lambda inner, items: inner.Shape(items[0], start=axis, **last), INT64)
    return b.Reshape(b.ConcatFromSequence(each, axis=0), [-1])


def _mapped(b: Builder, sequences: Sequence[Value | None], function: Any, dtype: DType | None = None) -> Value:
    """Return the sequence of ``function(builder, items)`` over the items of sequences of one length: a Loop that appends."""
    given = [s for s in sequences if s is not None]
    element = given[0].type.dtype.element
    assert element is not None
    made = dtype or element
    body = Graph("each")
    inner = Builder(body)
    index = body.add_input("index", Type(INT64, ()))
    going = body.add_input("going", Type(BOOL, ()))
    so_far = body.add_input("so_far", Type(sequence_of(made), ()))
    formals = [body.add_input(f"sequence_{k}", s.type) for k, s in enumerate(given)]
    result = function(inner, [inner.SequenceAt(f, index) for f in formals])
    body.add_output(inner.Identity(going), "going_on")
    body.add_output(inner.SequenceInsert(so_far, result), "longer")
    start = b.SequenceEmpty(dtype=made.onnx)
    return b.add("Loop", [b.SequenceLength(given[0]), True, start], captures=given, subgraphs={"body": body})
