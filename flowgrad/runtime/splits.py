"""Large work in pieces for the pool: the same pieces for any number of threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.registry import Cut, OpDef, Trait
from flowgrad.ir.ops.splitting import elementwise_cuts
from flowgrad.ir.types import Type
from flowgrad.runtime.threads import pool

ALIGNMENT = 64
"""Bytes of which the address of every buffer is a multiple."""

Kernel = Callable[..., Any]
Cuts = Sequence[tuple[Cut, ...]]


def cuts_of(node: Node, definition: OpDef) -> Cuts:
    """Return the pieces that the work of a node is cut into: by the rule of its op, or element by element."""
    if definition.split_rule is not None:
        return definition.split_rule(node)
    if Trait.ELEMENTWISE not in definition.traits or definition.special & {"rng", "work"}:
        return ()
    if any(v is None for v in node.inputs):
        return ()
    return elementwise_cuts([v.type.static_shape for v in node.operands], node.output().type.static_shape)


class Blocks:
    """The scratch of pieces at work: one block for each thread, which all kernels of a program share.

    A block is as large as what any piece so far took in it. Taking and giving are safe from any thread.
    """

    __slots__ = ("free", "threads")

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.free: list[Array] = []

    def take(self, nbytes: int) -> Array:
        """Return a block of at least so many bytes."""
        try:
            block = self.free.pop()
        except IndexError:
            return np.empty(nbytes, np.uint8)
        return block if block.nbytes >= nbytes else np.empty(nbytes, np.uint8)

    def give(self, block: Array) -> None:
        """Take a block back; runs side by side may have made more than are kept."""
        if len(self.free) < self.threads:
            self.free.append(block)


class SplitKernel:
    """A kernel called piece by piece: each piece is a cut of every input and of ``out``, with scratch from ``blocks``."""

    __slots__ = ("blocks", "cuts", "kernel", "sizes", "works")

    def __init__(self, node: Node, definition: OpDef, kernel: Kernel, cuts: Cuts, blocks: Blocks) -> None:
        self.kernel, self.cuts, self.blocks = kernel, cuts, blocks
        self.works = [_work_of(node, definition, cut) for cut in cuts]
        self.sizes = [_block_bytes(work) for work in self.works]

    def __call__(self, *operands: Any, out: Array | None = None, **keywords: Any) -> Array:
        arrays = operands if out is None else (*operands, out)
        target: Array = arrays[-1]
        kernel, cuts, works, blocks = self.kernel, self.cuts, self.works, self.blocks

        def piece(index: int) -> None:
            *inputs, part = (a if cut is None else a[cut] for a, cut in zip(arrays, cuts[index], strict=True))
            work = works[index]
            if work:
                block = blocks.take(self.sizes[index])
                result = kernel(*inputs, out=part, work=_carved(block, work), **keywords)
                blocks.give(block)
            else:
                result = kernel(*inputs, out=part, **keywords)
            if result is not part:
                part[...] = result

        pool.each(piece, len(cuts), blocks.threads)
        return target


def piece_bytes(node: Node, definition: OpDef, cuts: Cuts) -> int:
    """Return the bytes of the block that the largest piece of a node takes its scratch from."""
    return max((_block_bytes(_work_of(node, definition, cut)) for cut in cuts), default=0)


def _block_bytes(work: tuple[Type, ...]) -> int:
    return sum(_spaced(t) for t in work) + ALIGNMENT if work else 0


def _spaced(type_: Type) -> int:
    """Return the bytes from the beginning of one scratch array to that of the next."""
    return -(-math.prod(type_.static_shape) * type_.dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _carved(block: Array, work: tuple[Type, ...]) -> list[Array]:
    """Return the scratch arrays of a piece, one behind the other in a block."""
    start, arrays = -block.ctypes.data % ALIGNMENT, []
    for type_ in work:
        size = math.prod(type_.static_shape) * type_.dtype.itemsize
        arrays.append(block[start:start + size].view(type_.dtype.numpy).reshape(type_.static_shape))
        start += _spaced(type_)
    return arrays


def _work_of(node: Node, definition: OpDef, cuts: tuple[Cut, ...]) -> tuple[Type, ...]:
    """Return the scratch types of the kernel on one piece."""
    if definition.work_rule is None or "work" not in definition.special:
        return ()
    part = Node(node.key, node.op)
    part.attributes = node.attributes
    *inputs, output = (None if v is None else _cut_value(v, cut)
                       for v, cut in zip((*node.inputs, node.output()), cuts, strict=True))
    part.inputs, part.outputs = tuple(inputs), (output,)
    return tuple(definition.work_rule(part))


def _cut_value(value: Value, cut: Cut) -> Value:
    if cut is None:
        return value
    shape = value.type.static_shape
    lengths = [len(range(*span.indices(extent))) for span, extent in zip(cut, shape, strict=False)]
    return Value(value.name, value.type.with_shape((*lengths, *shape[len(lengths):])), value.producer, value.index)
