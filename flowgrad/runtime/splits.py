"""Cutting large work into pieces of fixed size for the pool: the same pieces for any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array, Node
from flowgrad.ir.ops.registry import Trait, attr, opdef
from flowgrad.runtime.threads import pool

Kernel = Callable[..., Any]
Cut = tuple[slice, ...] | None

ELEMENTS = 1 << 16
"""Elements of one piece of elementwise work; less than four pieces are not worth waking a thread."""

PRODUCTS = 1 << 24
"""Multiplications of one piece of a matrix product."""


class SplitKernel:
    """A kernel called piece by piece: each piece is a cut of every operand and of ``out``."""

    __slots__ = ("cuts", "kernel", "threads")

    def __init__(self, kernel: Kernel, cuts: Sequence[tuple[Cut, ...]], threads: int) -> None:
        self.kernel, self.cuts, self.threads = kernel, cuts, threads

    def __call__(self, *operands: Any, out: Array | None = None, **keywords: Any) -> Array:
        *inputs, target = operands if out is None else (*operands, out)
        arrays = (*inputs, target)
        kernel, cuts = self.kernel, self.cuts

        def piece(index: int) -> None:
            *parts, part = (a if cut is None else a[cut] for a, cut in zip(arrays, cuts[index], strict=True))
            result = kernel(*parts, out=part, **keywords)
            if result is not part:
                part[...] = result

        pool.each(piece, len(cuts), self.threads)
        return target  # type: ignore[no-any-return]


def split_kernel(node: Node, kernel: Kernel, threads: int) -> SplitKernel | None:
    """Return ``kernel`` in pieces if the work of ``node`` is large enough and can be cut, else None."""
    if any(v is None for v in node.inputs):
        return None
    if node.op == "MatMul":
        cuts = _product_cuts(node)
    elif node.op == "Gemm":
        cuts = _gemm_cuts(node)
    elif Trait.ELEMENTWISE in opdef(node.op).traits:
        cuts = _elementwise_cuts(node)
    else:
        return None
    return SplitKernel(kernel, cuts, threads) if len(cuts) > 1 else None


def _elementwise_cuts(node: Node) -> list[tuple[Cut, ...]]:
    shape = node.output().type.static_shape
    size = int(np.prod(shape, dtype=object))
    if size < 4 * ELEMENTS:
        return []
    axis = next((i for i, n in enumerate(shape) if n >= 16), int(np.argmax(shape)))
    shapes = [v.type.static_shape for v in node.inputs if v is not None]
    return [tuple(_cut(s, len(shape), axis, span, shape[axis]) for s in (*shapes, shape))
            for span in spans(shape[axis], -(-size // ELEMENTS))]


def spans(extent: int, pieces: int, unit: int = 1) -> list[tuple[int, int]]:
    """Cut range(extent) into at most ``pieces`` spans of equal length, a multiple of ``unit`` (the last may be shorter)."""
    length = -(-extent // max(1, pieces))
    length = -(-length // unit) * unit
    return [(start, min(start + length, extent)) for start in range(0, extent, max(length, 1))]


def _cut(shape: Sequence[int], rank: int, axis: int, span: tuple[int, int], extent: int) -> Cut:
    """Return the part of a broadcast operand that the span of the result's axis needs; None for all of it."""
    own = axis - rank + len(shape)
    if own < 0 or shape[own] != extent:
        return None
    return (*(slice(None),) * own, slice(*span))


def _product_cuts(node: Node) -> list[tuple[Cut, ...]]:
    a, b = (v.type.static_shape for v in node.inputs if v is not None)
    shape = node.output().type.static_shape
    if len(a) < 2 or len(b) < 2:
        return []
    rows, columns = shape[-2:]
    batch = int(np.prod(shape[:-2], dtype=object))
    work = batch * rows * columns * a[-1]
    if work < 2 * PRODUCTS:
        return []
    pieces = -(-work // PRODUCTS)
    if batch > 1 and shape[0] > 1:
        return [tuple(_cut(s, len(shape), 0, span, shape[0]) for s in (a, b, shape)) for span in spans(shape[0], pieces)]
    if rows >= columns:
        return [(_at(len(a), -2, span), None, _at(len(shape), -2, span)) for span in spans(rows, pieces, 64)]
    return [(None, _at(len(b), -1, span), _at(len(shape), -1, span)) for span in spans(columns, pieces, 64)]


def _gemm_cuts(node: Node) -> list[tuple[Cut, ...]]:
    flips = bool(attr(node, "transA")), bool(attr(node, "transB"))
    rows, columns = shape = node.output().type.static_shape
    inner = node.input(0).type.static_shape[0 if flips[0] else 1]
    work = rows * columns * inner
    if work < 2 * PRODUCTS:
        return []
    by_rows = rows >= columns
    cuts = []
    for span in spans(max(rows, columns), -(-work // PRODUCTS), 64):
        first = _at(2, -1 if flips[0] else -2, span) if by_rows else None
        second = None if by_rows else _at(2, -2 if flips[1] else -1, span)
        rest = [_cut(v.type.static_shape, 2, 0 if by_rows else 1, span, max(rows, columns))
                for v in node.inputs[2:] if v is not None]
        cuts.append((first, second, *rest, _cut(shape, 2, 0 if by_rows else 1, span, max(rows, columns))))
    return cuts


def _at(rank: int, axis: int, span: tuple[int, int]) -> Cut:
    return (*(slice(None),) * (rank + axis), slice(*span))
