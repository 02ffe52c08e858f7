"""What rules share: integer operands known before the run, axes, and small pieces of graph."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.types import UNKNOWN, DimLike, Shape, Type

END = 2**62
"""Where a slice ends that takes all there is; ``-END`` for one that runs backward."""


def known_dims(value: Value | None) -> list[DimLike] | None:
    """Return the entries of a small integer value as integers and dims, or None where only the run can tell."""
    if value is None:
        return None
    if value.symbolic is not None:
        return list(value.symbolic.reshape(-1))
    constant = value.constant
    if constant is None or constant.dtype.kind not in "iub":
        return None
    return [int(n) for n in constant.reshape(-1)]


def known_ints(value: Value | None) -> list[int] | None:
    """Return the entries of a small integer value, or None if one of them is not known before the run."""
    dims = known_dims(value)
    if dims is None or not all(isinstance(d, (int, np.integer)) for d in dims):
        return None
    return [int(d) for d in dims]  # type: ignore[arg-type]


MOST_ENTRIES = 2**16
"""More entries than any list of axes, extents or pieces has: what declares more would have rules make room for them."""


def known_length(value: Value) -> int | None:
    """Return the number of entries of an integer vector, or None. ValidationError if it is no list of a tensor's facts."""
    shape = value.type.shape
    if shape is None:
        return None
    if not shape:
        return 1
    if not isinstance(shape[0], int):
        return None
    if shape[0] > MOST_ENTRIES:
        raise ValidationError(f"{value!r} is too long to list axes, extents or pieces", code="shape", where=value.name)
    return shape[0]


def normal_axis(axis: int, rank: int) -> int:
    """Return ``axis`` counted from the front; ValidationError if there is no such axis."""
    if not -rank <= axis < rank:
        raise ValidationError(f"no axis {axis} at rank {rank}", code="axis")
    return axis % rank


def normal_axes(axes: Sequence[int], rank: int) -> list[int]:
    """Return ``axes`` counted from the front; ValidationError if one does not exist or comes twice."""
    found = [normal_axis(a, rank) for a in axes]
    if len(set(found)) != len(found):
        raise ValidationError(f"axes {list(axes)} name an axis twice", code="axis")
    return found


def unknown_ranks(node: Node, asked: str = "") -> str:
    """Return which ranks a rule of ``node`` lacks, as the reason of a refusal; an empty string if all are known.

    That is the one of the operand called ``asked``, if there is one, else those of all operands, else of the results.
    """
    unknown = [v for v in node.operands if v.type.rank is None] or [v for v in node.results if v.type.rank is None]
    unknown = [v for v in unknown if v.name == asked] or unknown
    names = ", ".join(dict.fromkeys(f"%{v.name}" for v in unknown))
    ranks = f"ranks of {names}, which are" if "," in names else f"rank of {names}, which is"
    return f"{node.op} needs the {ranks} not known before the run" if unknown else ""


def moved_first(axes: Sequence[int], rank: int) -> list[int]:
    """Return the permutation that brings ``axes``, counted from the front, before all others."""
    return [*axes, *(i for i in range(rank) if i not in axes)]


def moved_last(axes: Sequence[int], rank: int) -> list[int]:
    """Return the permutation that brings ``axes``, counted from the front, behind all others."""
    return [*(i for i in range(rank) if i not in axes), *axes]


def inverse_of(perm: Sequence[int]) -> list[int]:
    """Return the permutation that undoes ``perm``."""
    return [perm.index(i) for i in range(len(perm))]


def permuted(b: Builder, x: Value, perm: Sequence[int]) -> Value:
    """Return ``x`` with its axes in another order, and x itself where that is the order they have.

    Some runtimes fuse a Transpose that permutes nothing with the product before it as if it swapped two axes.
    """
    return x if list(perm) == sorted(perm) else b.Transpose(x, perm=list(perm))


def unknown_shape(rank: int | None) -> tuple[DimLike, ...] | None:
    """Return a shape of ``rank`` unknown extents."""
    return None if rank is None else (UNKNOWN,) * rank


def int_list(array: Array | None) -> list[int] | None:
    """Return an integer operand of a kernel as a list of Python integers."""
    return None if array is None else [int(n) for n in np.asarray(array).reshape(-1).tolist()]


def extents(b: Builder, x: Value, start: int, end: int) -> list[Value]:
    """Return the extents ``start`` to ``end`` of ``x`` as a list of int64 vectors to concatenate (possibly empty)."""
    dims = x.shape[start:end]
    if not dims:
        return []
    if all(isinstance(d, int) for d in dims):
        return [b.ints(dims)]
    return [b.Shape(x, start=start, end=end)]


def joined(b: Builder, parts: Sequence[Value]) -> Value:
    """Return int64 vectors as one: a constant if all of them are."""
    known = [known_ints(p) for p in parts]
    if all(k is not None for k in known):
        return b.ints([n for k in known for n in k or ()])
    return concatenated(b, parts)


def reshape_to(b: Builder, value: Value, x: Value) -> Value:
    """Return ``value`` in the shape of ``x``, which has as many elements; uses no Shape node where it can."""
    shape = x.type.shape
    if shape is None:
        return b.Reshape(value, b.Shape(x), allowzero=1)
    if value.type.shape == shape:
        return value
    symbolic = [i for i, d in enumerate(shape) if not isinstance(d, int)]
    if not symbolic:
        return b.Reshape(value, b.ints(shape), allowzero=int(0 in shape) or None)
    if len(symbolic) == 1 and all(d != 0 for d in shape):
        wanted = [-1 if i == symbolic[0] else d for i, d in enumerate(shape)]
        made = b.Reshape(value, b.ints(wanted))
        if made.type.shape == shape:
            return made
    return b.Reshape(value, b.Shape(x), allowzero=1)


def expand_to(b: Builder, value: Value, x: Value) -> Value:
    """Return ``value`` broadcast to the shape of ``x``, which is at least as large everywhere."""
    if value.type.shape is not None and value.type.shape == x.type.shape:
        return value
    return b.add_node("Expand", [value, b.shape(x)], types=[Type(value.type.dtype, x.type.shape)]).output()


def slice_axis(b: Builder, vector: Value, start: int, end: int) -> Value:
    """Return ``vector[start:end]`` of an int64 vector: a constant if it is known."""
    known = known_ints(vector)
    return b.ints(known[start:end]) if known is not None else b.Slice(vector, [start], [end], [0])


def summed_to(b: Builder, value: Value, shape: Shape | None) -> Value | None:
    """Return ``value`` summed along the axes along which ``shape`` was broadcast; None where only the run can tell."""
    axes = _broadcast_axes(value.type.shape, shape)
    if axes is None:
        return None
    leading, inner = axes
    if not leading and not inner:
        return value
    summed = b.ReduceSum(value, [*range(leading), *inner], keepdims=1 if inner else 0)
    return b.Squeeze(summed, list(range(leading))) if leading and inner else summed


def _broadcast_axes(wide: Shape | None, narrow: Shape | None) -> tuple[int, list[int]] | None:
    """Return (leading axes, further axes) along which ``narrow`` was broadcast, or None where only the run can tell."""
    if wide is None or narrow is None or len(wide) < len(narrow):
        return None
    leading = len(wide) - len(narrow)
    inner = []
    for axis, (w, n) in enumerate(zip(wide[leading:], narrow, strict=True), leading):
        if w == n or (isinstance(n, int) and n != 1):
            continue
        if n != 1 and w != 1:
            return None
        if n == 1 and w != 1:
            inner.append(axis)
    return leading, inner


def concatenated(b: Builder, parts: Sequence[Value], axis: int = 0) -> Value:
    """Return one or more values joined along ``axis``."""
    return parts[0] if len(parts) == 1 else b.Concat(*parts, axis=axis)


def sum_of(b: Builder, terms: Sequence[Value]) -> Value:
    """Return the sum of one or more values."""
    if len(terms) == 1:
        return terms[0]
    if terms[0].type.dtype.kind == "sequence":
        return _sum_of_sequences(b, terms)
    if terms[0].type.dtype.kind == "optional":
        return functools.reduce(b.OptionalAdd, terms)
    return b.Add(*terms) if len(terms) == 2 else b.Sum(*terms)


def _sum_of_sequences(b: Builder, terms: Sequence[Value]) -> Value:
    """Return the sum of sequences; what is zero but for one tensor is added in its place, without the zeros."""
    single = [t.producer for t in terms if t.producer.op == "SequenceAddAt" and t.producer.input(0).producer.op == "SequenceZeros"]
    whole = [t for t in terms if t.producer not in single]
    total = functools.reduce(b.SequenceAdd, whole) if whole else single[0].input(0)
    for node in single:
        total = b.SequenceAddAt(total, node.input(1), node.input(2))
    return total


def sum_of_present(b: Builder, *terms: Value | None) -> Value | None:
    """Return the sum of the terms that are there, None if none is."""
    present = [t for t in terms if t is not None]
    return sum_of(b, present) if present else None


def divided(b: Builder, value: Value, count: Value | float) -> Value:
    """Return ``value`` / ``count``, divided in the type that is computed in: float16 counts to 65,504 only.

    A count that is a value has that type.
    """
    return b.cast_like(b.Div(b.cast(value, value.type.dtype.wide), count), value)


def ramp(b: Builder, count: Value) -> Value:
    """Return 0, 1, ... as many as ``count`` says, an int64 vector of length 1."""
    return b.Range(np.int64(0), b.Squeeze(count, [0]), np.int64(1))


def check_channels(node: Node, *slots: int) -> None:
    """Check that the inputs in ``slots`` are vectors of as many entries as input 0 has channels (axis 1).

    A vector of length 1 would broadcast, and its derivative be wrong. Raises ValidationError.
    """
    shape = node.input(0).type.shape
    for slot in slots:
        vector = node.input(slot)
        extents = vector.type.shape
        if shape is None or extents is None:
            continue
        fits = len(extents) == 1 and len(shape) > 1
        if not fits or (isinstance(shape[1], int) and isinstance(extents[0], int) and shape[1] != extents[0]):
            raise ValidationError(f"{node.op} takes one entry of {vector!r} for each channel of {node.input(0)!r}",
                                  code="shape", where=node.label)


def into(result: Array, out: Array | None) -> Array:
    """Return ``result``, copied into the buffer ``out`` if there is one."""
    if out is None or out is result:
        return result
    np.copyto(out, result)
    return out


def blank(dtype: np.dtype[Any]) -> str | int:
    """Return what an operator fills places with that nothing goes to: 0, of strings the empty one."""
    return "" if dtype.kind == "O" else 0


def mean_of(x: Array, axes: tuple[int, ...], *, keepdims: bool = True, out: Array | None = None) -> Array:
    """Return the mean along ``axes``: NaN over nothing, and without the warning that ``np.mean`` gives there."""
    total: Array = np.asarray(np.sum(x, axis=axes, keepdims=keepdims, out=out))
    count = math.prod(x.shape[a] for a in axes)
    np.divide(total, x.dtype.type(count), out=total)
    return total
