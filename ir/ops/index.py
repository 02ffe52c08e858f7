"""Reading and writing elements at indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import normal_axis
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op
from flowgrad.ir.types import Type


@op("Gather", since=13, outputs=("output",), traits=(Trait.LINEAR, Trait.SHAPE_ARITHMETIC))
def gather(data: Array, indices: Array, *, axis: int = 0, out: Array | None = None) -> Array:
    if out is not None and data.flags.c_contiguous and indices.size and data.shape[axis]:
        low, high, extent = int(indices.min()), int(indices.max()), data.shape[axis]
        if low < -extent or high >= extent:
            raise IndexError(f"index {low if low < -extent else high} is out of bounds for extent {extent}")
        return np.take(data, indices, axis, out=out, mode="wrap")  # the modes without a check need no second buffer
    return np.asarray(np.take(data, indices, axis, out=out))


@gather.types
def _(node: Node) -> Type:
    x, indices = node.input(0).type, node.input(1).type
    if x.shape is None or indices.shape is None:
        return x.with_shape(None)
    axis = normal_axis(attr(node, "axis"), len(x.shape))
    return x.with_shape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@gather.adjoint
def _(b: Any, node: Node, y_bar: Value) -> Any:
    """x_bar = zeros, to which the parts of y_bar are added at their indices."""
    x, indices = node.input(0), node.input(1)
    return b.GatherGrad(b.shape(x), y_bar, indices, axis=attr(node, "axis")), NO_GRADIENT
