"""Convolutions cut by images: pieces of fixed size for the pool, each with scratch buffers of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.registry import OpDef
from flowgrad.ir.types import Type
from flowgrad.runtime.splits import PRODUCTS, spans
from flowgrad.runtime.threads import pool

BY_IMAGE = frozenset({"Conv", "ConvInputGrad"})
"""Ops whose first input and output have one row per image, independent of each other."""


def image_spans(node: Node) -> list[tuple[int, int]]:
    """Return the spans of images that the work of ``node`` is cut into; one or none if it is not."""
    if node.op not in BY_IMAGE or len(node.outputs) != 1 or node.outputs[0] is None or not node.outputs[0].type.is_static:
        return []
    images, kernel = node.input(0).type.static_shape, node.input(1).type.static_shape
    batch = images[0]
    positions = node.output().type.static_shape[2:] if node.op == "Conv" else images[2:]
    work = batch * int(np.prod((*positions, *kernel), dtype=object))
    if batch < 2 or work < 2 * PRODUCTS:
        return []
    return spans(batch, -(-work // PRODUCTS))


class ImageSplit:
    """A kernel called on spans of images. Scratch is kept between calls, one set per thread that was ever inside."""

    __slots__ = ("kernel", "scratch", "shapes", "spans", "threads")

    def __init__(self, node: Node, definition: OpDef, cuts: Sequence[tuple[int, int]], threads: int) -> None:
        self.kernel: Callable[..., Any] = definition.kernel
        self.spans, self.threads = list(cuts), threads
        lengths = {stop - start for start, stop in cuts}
        self.shapes = {n: _work_of_piece(node, definition, n) for n in lengths}
        self.scratch: dict[int, list[list[Array]]] = {n: [] for n in lengths}

    def __call__(self, images: Array, *rest: Any, out: Array, **keywords: Any) -> Array:
        def piece(index: int) -> None:
            start, stop = self.spans[index]
            part = out[start:stop]
            spare = self.scratch[stop - start]
            types = self.shapes[stop - start]
            if types is None:
                result = self.kernel(images[start:stop], *rest, out=part, **keywords)
            else:
                try:
                    work = spare.pop()
                except IndexError:
                    work = [np.empty(t.static_shape, t.dtype.numpy) for t in types]
                result = self.kernel(images[start:stop], *rest, out=part, work=work, **keywords)
                spare.append(work)
            if result is not part:
                part[...] = result

        pool.each(piece, len(self.spans), self.threads)
        return out


def _work_of_piece(node: Node, definition: OpDef, length: int) -> list[Type] | None:
    """Return the scratch types of the kernel on ``length`` images; None if it takes no scratch."""
    if definition.work_rule is None or "work" not in definition.special:
        return None
    part = Node(node.key, node.op)
    part.attributes = node.attributes
    first, *rest = node.inputs
    assert first is not None
    shape = first.type.static_shape
    part.inputs = (Value(first.name, first.type.with_shape((length, *shape[1:])), first.producer, first.index), *rest)
    y = node.output()
    part.outputs = (Value(y.name, y.type.with_shape((length, *y.type.static_shape[1:])), part, 0),)
    return list(definition.work_rule(part))
