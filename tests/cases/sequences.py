"""Rows for sequences and optional values; each makes containers of its inputs and reads a tensor from them.

What else they do (inputs and outputs that are containers, control flow, files, errors) is in test_containers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Node, Value
from tests.op_cases import Case, const, fixed, held, normal

Make = Callable[..., Value]


def of(make: Make) -> Any:
    """Return a build function: the node that ``make(b, *inputs)`` ends in."""

    def build(b: Builder, values: list[Value]) -> Node:
        return make(b, *values).producer

    return build


def row(op: str, inputs: list[Any], make: Make, expected: Callable[..., Any], **more: Any) -> Case:
    return Case(op, inputs, build=of(make), expected=expected, reference=False, **more)


def three(b: Builder, x: Value, y: Value) -> Value:
    return b.SequenceConstruct(x, b.Mul(x, y), y)


def joined(b: Builder, sequence: Value) -> Value:
    return b.ConcatFromSequence(sequence, axis=0)


def position(number: int) -> Any:
    return fixed(np.int64(number))


TWO = [normal(2, 3), normal(2, 3)]

CASES = [
    row("SequenceConstruct", TWO, lambda b, x, y: joined(b, three(b, x, y)), lambda x, y: np.concatenate([x, x * y, y])),
    row("SequenceConstruct", [normal(2, 3), normal(4, 3)], lambda b, x, y: joined(b, b.SequenceConstruct(x, y, x)),
        lambda x, y: np.concatenate([x, y, x]), name="of_other_extents"),
    row("SequenceEmpty", [normal(2, 3)], lambda b, x: joined(b, b.SequenceInsert(b.SequenceEmpty(dtype=11), b.Mul(x, x))),
        lambda x: x * x),
    row("SequenceAt", [*TWO, position(1)], lambda b, x, y, at: b.SequenceAt(three(b, x, y), at), lambda x, y, at: x * y),
    row("SequenceAt", [*TWO, position(-1)], lambda b, x, y, at: b.SequenceAt(three(b, x, y), at), lambda x, y, at: y,
        name="from_the_end"),
    row("SequenceAt", [*TWO, const(-3, "int32")], lambda b, x, y, at: b.SequenceAt(three(b, x, y), at),
        lambda x, y, at: x, name="int32"),
    row("SequenceInsert", [*TWO, position(1)], lambda b, x, y, at: joined(b, b.SequenceInsert(three(b, x, y), b.Sin(x), at)),
        lambda x, y, at: np.concatenate([x, np.sin(x), x * y, y])),
    row("SequenceInsert", [*TWO, position(-1)], lambda b, x, y, at: joined(b, b.SequenceInsert(three(b, x, y), b.Sin(x), at)),
        lambda x, y, at: np.concatenate([x, x * y, np.sin(x), y]), name="from_the_end"),
    row("SequenceInsert", TWO, lambda b, x, y: joined(b, b.SequenceInsert(three(b, x, y), b.Sin(x))),
        lambda x, y: np.concatenate([x, x * y, y, np.sin(x)]), name="at_the_end"),
    row("SequenceErase", [*TWO, position(0)], lambda b, x, y, at: joined(b, b.SequenceErase(three(b, x, y), at)),
        lambda x, y, at: np.concatenate([x * y, y])),
    row("SequenceErase", [*TWO, position(-2)], lambda b, x, y, at: joined(b, b.SequenceErase(three(b, x, y), at)),
        lambda x, y, at: np.concatenate([x, y]), name="from_the_end"),
    row("SequenceErase", TWO, lambda b, x, y: joined(b, b.SequenceErase(three(b, x, y))),
        lambda x, y: np.concatenate([x, x * y]), name="last"),
    row("SequenceLength", TWO, lambda b, x, y: b.SequenceLength(three(b, x, y)), lambda x, y: np.asarray(3)),
    row("ConcatFromSequence", TWO, lambda b, x, y: b.ConcatFromSequence(three(b, x, y), axis=-1),
        lambda x, y: np.concatenate([x, x * y, y], -1), name="last_axis"),
    row("ConcatFromSequence", TWO, lambda b, x, y: b.ConcatFromSequence(three(b, x, y), axis=1, new_axis=1),
        lambda x, y: np.stack([x, x * y, y], 1), name="new_axis"),
    row("ConcatFromSequence", [normal(2, 0), normal(2, 3)],
        lambda b, x, y: b.ConcatFromSequence(b.SequenceConstruct(x, y), axis=1), lambda x, y: y, name="empty_part"),
    row("SplitToSequence", [normal(5, 3), fixed([2, 0, 3]), position(2)],
        lambda b, x, split, at: b.SequenceAt(b.SplitToSequence(b.Mul(x, x), split, axis=0), at),
        lambda x, split, at: (x * x)[2:], name="sizes"),
    row("SplitToSequence", [normal(3, 5), const(2), position(2)],
        lambda b, x, split, at: b.SequenceAt(b.SplitToSequence(b.Mul(x, x), split, axis=-1), at),
        lambda x, split, at: (x * x)[:, 4:], name="equal_pieces"),
    row("SplitToSequence", [normal(3, 5), position(-1)],
        lambda b, x, at: b.SequenceAt(b.SplitToSequence(b.Mul(x, x), axis=1), at), lambda x, at: (x * x)[:, 4:]),
    row("SplitToSequence", [normal(3, 5), position(-1)],
        lambda b, x, at: b.SequenceAt(b.SplitToSequence(b.Mul(x, x), axis=0, keepdims=0), at),
        lambda x, at: (x * x)[2], name="without_the_axis"),
    row("SequenceZeros", TWO, lambda b, x, y: joined(b, b.SequenceZeros(three(b, x, y))), lambda x, y: np.zeros((6, 3))),
    row("SequenceAdd", TWO, lambda b, x, y: joined(b, b.SequenceAdd(three(b, x, y), three(b, y, x))),
        lambda x, y: np.concatenate([x + y, 2 * x * y, x + y])),
    row("SequenceAddAt", [*TWO, position(-2)],
        lambda b, x, y, at: joined(b, b.SequenceAddAt(three(b, x, y), b.Sin(x), at)),
        lambda x, y, at: np.concatenate([x, x * y + np.sin(x), y])),
    row("SequenceExtents", [held(normal(2, 3)), held(normal(4, 3))],
        lambda b, x, y: b.SequenceExtents(b.SequenceConstruct(x, y, x), axis=0), lambda x, y: np.asarray([2, 4, 2])),
    row("Optional", [normal(2, 3)], lambda b, x: b.OptionalGetElement(b.Optional(b.Mul(x, x))), lambda x: x * x),
    row("OptionalGetElement", [normal(2, 3)], lambda b, x: b.OptionalGetElement(b.Mul(x, x)), lambda x: x * x,
        name="of_a_tensor"),
    row("OptionalGetElement", TWO, lambda b, x, y: joined(b, b.OptionalGetElement(b.Optional(three(b, x, y)))),
        lambda x, y: np.concatenate([x, x * y, y]), name="of_a_sequence"),
    row("OptionalZeros", [normal(2, 3)], lambda b, x: b.OptionalGetElement(b.OptionalZeros(b.Optional(b.Mul(x, x)))),
        lambda x: np.zeros_like(x)),
    row("OptionalZeros", TWO, lambda b, x, y: joined(b, b.OptionalGetElement(b.OptionalZeros(b.Optional(three(b, x, y))))),
        lambda x, y: np.zeros((6, 3)), name="of_a_sequence"),
    row("OptionalAdd", TWO, lambda b, x, y: b.OptionalGetElement(b.OptionalAdd(b.Optional(b.Mul(x, x)), b.Optional(y))),
        lambda x, y: x * x + y),
    row("OptionalAdd", TWO,
        lambda b, x, y: joined(b, b.OptionalGetElement(b.OptionalAdd(b.Optional(three(b, x, y)), b.Optional(three(b, y, x))))),
        lambda x, y: np.concatenate([x + y, 2 * x * y, x + y]), name="of_sequences"),
    row("OptionalHasElement", [normal(2, 3)], lambda b, x: b.OptionalHasElement(b.Optional(x)), lambda x: np.asarray(True)),
]
