"""Operators on shapes and the layout of elements: what moves elements without computing on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, in_rows, looped, shifted_axes, volume
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import (
    int_list,
    into,
    inverse_of,
    joined,
    known_dims,
    known_ints,
    known_length,
    normal_axes,
    reshape_to,
    unknown_shape,
)
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op
from flowgrad.ir.support import turned
from flowgrad.ir.types import (
    INT64,
    UNKNOWN,
    DimLike,
    Type,
    broadcast_shapes,
    dim_product,
    merge_dims,
)

MOVES = (Trait.LINEAR, Trait.SHAPE_ARITHMETIC)
VIEWS = (Trait.LINEAR, Trait.SHAPE_ARITHMETIC, Trait.VIEW)


# ---- Shape and Size -----------------------------------------------------------------------------------------------------


@op("Shape", since=15, outputs=("shape",), traits=(Trait.ZERO, Trait.SHAPE_ONLY))
def shape(data: Array, *, start: int = 0, end: int | None = None) -> Array:
    return np.asarray(data.shape[start:end], np.int64)


@shape.types
def _(node: Node) -> Type:
    dims = _shape_dims(node)
    return Type(INT64, (UNKNOWN if dims is None else len(dims),))


@shape.symbolic
def _(node: Node) -> Array | None:
    dims = _shape_dims(node)
    return None if dims is None else _objects(dims)


@shape.batch
def _(b: BatchBuilder, node: Node, xs: Value) -> Any:
    """The shape that every example has."""
    rank = node.input(0).type.rank
    if rank is None:
        return looped(b, node, xs)
    start, end, _ = slice(attr(node, "start"), attr(node, "end")).indices(rank)
    dims = xs.shape[1 + start : 1 + max(start, end)]
    known = all(isinstance(d, int) for d in dims)
    return b.same(b.ints(dims) if known else b.Shape(xs, start=1 + start, end=1 + max(start, end)))


def _shape_dims(node: Node) -> Sequence[DimLike] | None:
    found = node.input(0).type.shape
    return None if found is None else found[attr(node, "start") : attr(node, "end")]


def _objects(dims: Sequence[Any]) -> Array:
    array = np.empty(len(dims), object)
    array[:] = dims
    return array


@op("Size", since=13, outputs=("size",), traits=(Trait.ZERO, Trait.SHAPE_ONLY))
def size(data: Array) -> Array:
    return np.asarray(data.size, np.int64)


@size.types
def _(node: Node) -> Type:
    return Type(INT64, ())


@size.symbolic
def _(node: Node) -> Array | None:
    total = node.input(0).type.size
    return None if total is None else _objects([total]).reshape(())


@size.batch
def _(b: BatchBuilder, node: Node, xs: Value) -> Any:
    """The number of elements that every example has."""
    return looped(b, node, xs) if xs.type.rank is None else b.same(volume(b, xs))


# ---- Reshape, Flatten, Squeeze, Unsqueeze -------------------------------------------------------------------------------


@op("Reshape", since=14, outputs=("reshaped",), traits=(*VIEWS, Trait.REGROUPS), extents=("shape",))
def reshape(data: Array, shape: Array, *, allowzero: int = 0) -> Array:
    return data.reshape(_reshaped(data.shape, int_list(shape) or [], allowzero))


def _reshaped(old: Sequence[Any], wanted: Sequence[Any], allowzero: int) -> tuple[Any, ...]:
    """Return the new shape; extents copied by a 0 cancel, so that a -1 beside them is known even if they are 0."""
    copied = [i for i, d in enumerate(wanted) if isinstance(d, int) and d == 0 and not allowzero]
    inferred = [i for i, d in enumerate(wanted) if isinstance(d, int) and d == -1]
    if any(i >= len(old) for i in copied) or len(inferred) > 1:
        raise ValidationError(f"cannot reshape {list(old)} to {list(wanted)}", code="shape")
    new = [old[i] if i in copied else d for i, d in enumerate(wanted)]
    if inferred:
        whole = dim_product(d for i, d in enumerate(old) if i not in copied)
        others = dim_product(d for i, d in enumerate(wanted) if i not in copied and i not in inferred)
        if others == 0:
            raise ValidationError(f"the -1 of the shape {list(wanted)} can be any number", code="shape")
        new[inferred[0]] = whole // others
    if all(isinstance(d, int) for d in (*old, *new)) and dim_product(old) != dim_product(new):
        raise ValidationError(f"cannot reshape {list(old)} to {list(wanted)}", code="shape")
    return tuple(new)


@reshape.types
def _(node: Node) -> Type:
    x, wanted = node.input(0).type, known_dims(node.input(1))
    if wanted is None:
        return x.with_shape(unknown_shape(known_length(node.input(1))))
    if x.shape is None:
        return x.with_shape([UNKNOWN if isinstance(d, int) and d < 1 else d for d in wanted])
    return x.with_shape(_reshaped(x.shape, wanted, attr(node, "allowzero")))


@reshape.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar in the shape of x."""
    return reshape_to(b, y_bar, node.input(0)), NO_GRADIENT


@reshape.batch
def _(b: BatchBuilder, node: Node, data: Value, shape: Value) -> Any:
    """The same shape behind the axis of the examples, which a 0 copies."""
    wanted, x, y = known_ints(shape), node.input(0).type.shape, node.output().type.shape
    if b.holds(shape) or known_length(node.input(1)) is None:
        return looped(b, node, data, shape)
    if attr(node, "allowzero") and (wanted is None or 0 in wanted):
        return again(b, node, [data, joined(b, [b.count, shape])])
    if wanted and x and y and x[0] == y[0]:
        rows = b.ints([0, *wanted[1:]])
        if (made := in_rows(b, node, [data, rows], allowzero=None)) is not None:
            return made
    return again(b, node, [data, joined(b, [b.ints([0]), shape])], allowzero=None)


@op("Flatten", since=13, outputs=("output",), traits=(Trait.LINEAR, Trait.VIEW, Trait.REGROUPS))
def flatten(input: Array, *, axis: int = 1) -> Array:
    at = axis + input.ndim if axis < 0 else axis
    rows = int(np.prod(input.shape[:at], dtype=np.int64))
    columns = int(np.prod(input.shape[at:], dtype=np.int64))
    return input.reshape(rows, columns)


@flatten.types
def _(node: Node) -> Type:
    x, axis = node.input(0).type, attr(node, "axis")
    if x.shape is None:
        return x.with_shape((UNKNOWN, UNKNOWN))
    at = axis + len(x.shape) if axis < 0 else axis
    if not 0 <= at <= len(x.shape):
        raise ValidationError(f"no axis {axis} at rank {len(x.shape)}", code="axis")
    return x.with_shape((dim_product(x.shape[:at]), dim_product(x.shape[at:])))


@flatten.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar in the shape of x."""
    return reshape_to(b, y_bar, node.input(0))


@flatten.batch
def _(b: BatchBuilder, node: Node, data: Value) -> Any:
    """Two axes behind that of the examples."""
    rank, axis = node.input(0).type.rank, attr(node, "axis")
    if rank is None:
        return looped(b, node, data)
    at = axis + rank if axis < 0 else axis
    if at == 1 and (made := in_rows(b, node, [data])) is not None:
        return made

    def part(i: int) -> Value:
        axes = (slice(0, 1), slice(1, 1 + at), slice(1 + at, None))[i]
        return b.count if i == 0 else b.ReduceProd(b.Shape(data, start=axes.start, end=axes.stop), keepdims=1)

    return b.shaped(data, (b.dim, *node.output().shape), part)


@op("Squeeze", since=13, outputs=("squeezed",), traits=(*VIEWS, Trait.REGROUPS), extents=("axes",))
def squeeze(data: Array, axes: Array | None = None) -> Array:
    given = int_list(axes)
    return np.squeeze(data, None if given is None else tuple(given))


@squeeze.types
def _(node: Node) -> Type:
    x, axes = node.input(0).type, node.optional(1)
    if x.shape is None:
        return x
    if axes is None:
        return x.with_shape([d for d in x.shape if d != 1] if x.is_static else None)
    known = known_ints(axes)
    if known is None:
        count = known_length(axes)
        return x.with_shape(unknown_shape(None if count is None else len(x.shape) - count))
    chosen = normal_axes(known, len(x.shape))
    for axis in chosen:
        merge_dims(x.shape[axis], 1)
    return x.with_shape([d for i, d in enumerate(x.shape) if i not in chosen])


@squeeze.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar in the shape of x."""
    axes = known_ints(node.optional(1))
    x_bar = b.Unsqueeze(y_bar, axes) if axes else reshape_to(b, y_bar, node.input(0))
    return x_bar, NO_GRADIENT


@squeeze.batch
def _(b: BatchBuilder, node: Node, data: Value, axes: Value | None = None) -> Any:
    """The same axes behind that of the examples."""
    x = node.input(0).type
    if b.holds(axes) or (axes is None and not x.is_static):
        return looped(b, node, data, axes)
    listed = known_ints(axes) if axes is not None else [i for i, d in enumerate(x.static_shape) if d == 1]
    if axes is not None and (listed is None or x.rank is None):
        return again(b, node, [data, shifted_axes(b, axes, x.rank)])
    chosen = normal_axes(listed or [], x.rank or 0)
    if 0 in chosen and data in b.rows:
        rest = [a for a in chosen if a]
        return b.Squeeze(b.rows[data], rest) if rest else b.rows[data]
    if not chosen:
        return b.Identity(data)
    if 0 not in chosen and (made := in_rows(b, node, [data, b.ints(chosen)])) is not None:
        return made
    return again(b, node, [data, b.ints([1 + a for a in chosen])])


@op("Unsqueeze", since=13, outputs=("expanded",), traits=(*VIEWS, Trait.REGROUPS), extents=("axes",))
def unsqueeze(data: Array, axes: Array) -> Array:
    chosen = int_list(axes) or []
    new = set(normal_axes(chosen, data.ndim + len(chosen)))
    old = iter(data.shape)
    return data.reshape([1 if i in new else next(old) for i in range(data.ndim + len(chosen))])


@unsqueeze.types
def _(node: Node) -> Type:
    x, axes = node.input(0).type, node.input(1)
    known, count = known_ints(axes), known_length(axes)
    if x.shape is None or count is None:
        return x.with_shape(None)
    if known is None:
        return x.with_shape(unknown_shape(len(x.shape) + count))
    new = set(normal_axes(known, len(x.shape) + len(known)))
    old = iter(x.shape)
    return x.with_shape([1 if i in new else next(old) for i in range(len(x.shape) + len(known))])


@unsqueeze.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar in the shape of x."""
    axes = known_ints(node.input(1))
    x_bar = b.Squeeze(y_bar, axes) if axes else reshape_to(b, y_bar, node.input(0))
    return x_bar, NO_GRADIENT


@unsqueeze.batch
def _(b: BatchBuilder, node: Node, data: Value, axes: Value) -> Any:
    """The same axes behind that of the examples; a first one makes every example one sample."""
    if b.holds(axes):
        return looped(b, node, data, axes)
    rank = node.output().type.rank
    chosen = None if rank is None else known_ints(axes)
    chosen = None if chosen is None else normal_axes(chosen, rank or 0)
    if chosen and 0 not in chosen and (made := in_rows(b, node, [data, b.ints(chosen)])) is not None:
        return made
    made = again(b, node, [data, shifted_axes(b, axes, rank)])
    if chosen == [0]:
        b.rows[made[0]] = data  # type: ignore[index]
    return made


# ---- Transpose, Expand --------------------------------------------------------------------------------------------------


@op("Transpose", since=13, outputs=("transposed",), traits=(Trait.LINEAR, Trait.VIEW))
def transpose(data: Array, *, perm: Sequence[int] | None = None) -> Array:
    return np.transpose(data, perm)


@transpose.types
def _(node: Node) -> Type:
    x, perm = node.input(0).type, attr(node, "perm")
    if x.shape is None:
        return x.with_shape(unknown_shape(None if perm is None else len(perm)))
    order = range(len(x.shape))[::-1] if perm is None else perm
    if sorted(order) != list(range(len(x.shape))):
        raise ValidationError(f"perm={list(order)} does not permute {len(x.shape)} axes", code="axis")
    return x.with_shape([x.shape[i] for i in order])


@transpose.ranks
def _(node: Node) -> list[int | None]:
    """A permutation says how many axes there are."""
    perm = attr(node, "perm")
    return [None if perm is None else len(perm)]


@transpose.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar with the axes permuted back."""
    perm = attr(node, "perm")
    return b.Transpose(y_bar, perm=None if perm is None else inverse_of(perm))


@transpose.batch
def _(b: BatchBuilder, node: Node, data: Value) -> Any:
    """The other axes permuted."""
    perm, rank = attr(node, "perm"), node.input(0).type.rank
    if perm is None and rank is None:
        return looped(b, node, data)
    order = list(range(rank or 0))[::-1] if perm is None else list(perm)
    if not order:
        return b.Identity(data)
    if order[0] == 0 and (made := in_rows(b, node, [data], perm=tuple(order))) is not None:
        return made
    return again(b, node, [data], perm=(0, *(1 + i for i in order)))


for _turning in (squeeze, unsqueeze, transpose):
    _turning.support(turned)


@op("Expand", since=13, outputs=("output",), traits=VIEWS, extents=("shape",))
def expand(input: Array, shape: Array, *, out: Array | None = None) -> Array:
    wanted = np.broadcast_shapes(input.shape, tuple(int_list(shape) or ()))
    return into(np.broadcast_to(input, wanted), out)


@expand.types
def _(node: Node) -> Type:
    x, wanted = node.input(0).type, known_dims(node.input(1))
    if wanted is not None:
        return x.with_shape(broadcast_shapes(x.shape, tuple(wanted)))
    count = known_length(node.input(1))
    if count is None or x.shape is None:
        return x.with_shape(None)
    return x.with_shape(broadcast_shapes(x.shape, unknown_shape(count)))


@expand.support
def _(b: DerivativeBuilder, node: Node, masks: Sequence[Value | None]) -> Value | None:
    """A mask broadcasts as well."""
    return masks[0]


@expand.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar summed along the axes that were broadcast."""
    return b.sum_to(y_bar, node.input(0)), NO_GRADIENT


@expand.batch
def _(b: BatchBuilder, node: Node, data: Value, shape: Value) -> Any:
    """The shape behind the axis of the examples, which is not expanded."""
    count, rank = known_length(node.input(1)), node.input(0).type.rank
    if b.holds(shape) or count is None or rank is None:
        return looped(b, node, data, shape)
    ones = b.ints([1] * (1 + max(rank - count, 0)))
    return again(b, node, [b.padded(data, max(rank, count)), joined(b, [ones, shape])])
