"""Large work in pieces for the pool: the same pieces for any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.registry import Cut, OpDef, Trait
from flowgrad.ir.ops.splitting import elementwise_cuts
from flowgrad.ir.types import Type
from flowgrad.runtime.threads import pool

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


class SplitKernel:
    """A kernel called piece by piece: each piece is a cut of every input and of ``out``.

    Scratch is kept between calls, one set per thread that was ever inside.
    """

    __slots__ = ("cuts", "kernel", "scratch", "threads", "works")

    def __init__(self, node: Node, definition: OpDef, kernel: Kernel, cuts: Cuts, threads: int) -> None:
        self.kernel, self.cuts, self.threads = kernel, cuts, threads
        self.works = [_work_of(node, definition, cut) for cut in cuts]
        self.scratch: dict[tuple[Type, ...], list[list[Array]]] = {w: [] for w in self.works if w}

    def __call__(self, *operands: Any, out: Array | None = None, **keywords: Any) -> Array:
        arrays = operands if out is None else (*operands, out)
        target: Array = arrays[-1]
        kernel, cuts, works = self.kernel, self.cuts, self.works

        def piece(index: int) -> None:
            *inputs, part = (a if cut is None else a[cut] for a, cut in zip(arrays, cuts[index], strict=True))
            work = works[index]
            if work:
                buffers = self._take(work)
                result = kernel(*inputs, out=part, work=buffers, **keywords)
                self.scratch[work].append(buffers)
            else:
                result = kernel(*inputs, out=part, **keywords)
            if result is not part:
                part[...] = result

        pool.each(piece, len(cuts), self.threads)
        return target

    def _take(self, work: tuple[Type, ...]) -> list[Array]:
        try:
            return self.scratch[work].pop()
        except IndexError:
            return [np.empty(t.static_shape, t.dtype.numpy) for t in work]


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
