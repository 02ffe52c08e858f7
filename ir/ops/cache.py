"""Caches of sequences that are written piece by piece."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.batching import within_batch
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import expand_to, normal_axis, ramp, unknown_ranks
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op, refuse
from flowgrad.ir.types import INT64, UNKNOWN, Type, merge_dims

_MODES = ("linear", "circular")


@op("TensorScatter", since=24, outputs=("present_cache",), traits=(Trait.LINEAR,))
def tensor_scatter(
    past_cache: Array, update: Array, write_indices: Array | None = None, *, axis: int = -2, mode: str = "linear"
) -> Array:
    """Write the rows of ``update`` along ``axis``, from ``write_indices`` of each sample on; circular ones begin anew."""
    at = normal_axis(axis, past_cache.ndim)
    extent, count = past_cache.shape[at], update.shape[at]
    if count > extent:
        raise ValueError(f"{count} rows for a cache of {extent}")
    start = np.zeros(past_cache.shape[0], np.int64) if write_indices is None else write_indices
    rows = start[:, None] + np.arange(count)
    if mode == "circular":
        rows %= max(extent, 1)
    elif rows.size and not 0 <= rows.min() <= rows.max() < extent:
        raise ValueError(f"rows {rows.min()} to {rows.max()} of a cache of {extent}")
    result = past_cache.copy()
    np.moveaxis(result, at, 1)[np.arange(len(rows))[:, None], rows] = np.moveaxis(update, at, 1)
    return result


@tensor_scatter.types
def _(node: Node) -> Type:
    past, update = node.input(0).type, node.input(1).type
    if attr(node, "mode") not in _MODES:
        raise ValidationError(f"TensorScatter has no mode {attr(node, 'mode')!r}", code="attribute", where=node.label)
    rank = past.rank if past.rank is not None else update.rank
    if rank is None:
        return past
    at = normal_axis(attr(node, "axis"), rank)
    cache, rows = ((UNKNOWN,) * rank if t.shape is None else t.shape for t in (past, update))
    if not at or len(cache) != len(rows):
        raise ValidationError(f"TensorScatter writes {update!r} along axis {at} of {past!r}; axis 0 is that of the samples",
                              code="shape", where=node.label)
    return past.with_shape([d if i == at else merge_dims(d, rows[i]) for i, d in enumerate(cache)])


@tensor_scatter.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """past_bar = y_bar without the rows that were written; update_bar = those rows. A row is written once at most."""
    update, attributes = node.input(1), {"axis": attr(node, "axis"), "mode": attr(node, "mode")}
    found = _places(b, node)
    if found is None:
        return refuse(unknown_ranks(node))
    past_bar = b.add("TensorScatter", [y_bar, b.zero(update), node.optional(2)], attributes)
    return past_bar, b.GatherElements(y_bar, found[0], axis=found[1]), NO_GRADIENT


@tensor_scatter.expansion
def _(b: Builder, node: Node) -> Any:
    """ScatterElements, the places of the rows the same for all elements of a row."""
    found = _places(b, node)
    if found is None:
        return refuse(unknown_ranks(node))
    return b.ScatterElements(node.input(0), found[0], node.input(1), axis=found[1])


def _places(b: Builder, node: Node) -> tuple[Value, int] | None:
    """Return where along the axis each element of the update goes, and the axis; None for tensors of unknown rank."""
    past, update, start = node.input(0), node.input(1), node.optional(2)
    rank = past.type.rank if past.type.rank is not None else update.type.rank
    if rank is None:
        return None
    at = normal_axis(attr(node, "axis"), rank)
    rows: Value = b.Unsqueeze(ramp(b, b.extent(update, at)), [0])
    if start is not None:
        rows = b.Add(b.Unsqueeze(b.cast(start, INT64), [1]), rows)
    if attr(node, "mode") == "circular":
        rows = b.Mod(rows, b.extent(past, at))
    others = [i for i in range(rank) if i not in (0, at)]
    rows = b.Unsqueeze(rows, others) if others else rows
    return expand_to(b, rows, update), at


tensor_scatter.batch(within_batch(0, 1, 2))
