"""Reductions along axes: axes are constants, known only at run time, or absent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import expand_to, known_ints, known_length, normal_axes, unknown_shape
from flowgrad.ir.ops.registry import NO_GRADIENT, OpDef, Trait, attr, op
from flowgrad.ir.types import UNKNOWN, Type

Axes = tuple[int, ...] | None


def reduced_axes(axes: Array | None, noop_with_empty_axes: int) -> Axes:
    """Return the ``axis`` argument of a NumPy reduction: None for all axes."""
    given = () if axes is None else tuple(int(a) for a in np.asarray(axes).reshape(-1).tolist())
    return given if given or noop_with_empty_axes else None


def reduced_type(node: Node) -> Type:
    """The shape of the first input with the axes of the second removed, or 1 with ``keepdims``."""
    x, axes = node.input(0).type, node.inputs[1] if len(node.inputs) > 1 else None
    if x.shape is None:
        return x
    rank, keep, noop = len(x.shape), attr(node, "keepdims"), attr(node, "noop_with_empty_axes")
    known = [] if axes is None else known_ints(axes)
    if known is not None:
        chosen = set(normal_axes(known, rank) if known or noop else range(rank))
        kept = [1 if i in chosen else d for i, d in enumerate(x.shape) if keep or i not in chosen]
        return x.with_shape(kept)
    if keep:
        return x.with_shape(unknown_shape(rank))
    count = known_length(axes) if axes is not None else None
    if count is None:
        return x.with_shape(None)
    return x.with_shape((UNKNOWN,) * (rank - count if count or noop else 0))


def restored(b: Any, node: Node, value: Value) -> Value:
    """Return ``value``, of the shape of the output, with the reduced axes put back as extents of 1."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if attr(node, "keepdims") or axes is None or known_ints(axes) == []:
        return value  # without axes all or none are reduced: a scalar broadcasts
    return b.Unsqueeze(value, axes)  # type: ignore[no-any-return]


def _same_axes(b: Any, node: Node, value: Value, op_name: str = "ReduceSum") -> Value:
    """Reduce ``value`` like ``node`` does, keeping the axes where ``restored`` would put them back."""
    made = b.add(op_name, [value, *node.inputs[1:]], dict(node.attributes))
    return restored(b, node, made)


@op("ReduceSum", since=13, outputs=("reduced",), traits=(Trait.LINEAR,))
def reduce_sum(
    data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0,
    out: Array | None = None,
) -> Array:
    chosen = reduced_axes(axes, noop_with_empty_axes)
    return np.asarray(np.sum(data, axis=chosen, keepdims=bool(keepdims), dtype=data.dtype, out=out))


reduce_sum.types(reduced_type)


@reduce_sum.adjoint
def _(b: Any, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar, broadcast along the reduced axes."""
    return expand_to(b, restored(b, node, y_bar), node.input(0)), NO_GRADIENT
