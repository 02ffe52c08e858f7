"""What batching rules are handed, and the rules that many operators share.

A batching rule makes, from values that hold one array per example along a new first axis, what its operator makes of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.ops.operands import joined, known_ints, normal_axis
from flowgrad.ir.ops.registry import attr
from flowgrad.ir.types import DimLike, Type

BatchRule = Callable[..., Any]
Randomness = Literal["error", "same", "different"]


class BatchBuilder(Builder):
    """A builder for batching rules: it knows which values hold one array per example, and how many examples there are.

    ``count`` is the number of examples as an int64 vector of length 1, ``dim`` the same as an extent of a type;
    ``randomness`` says whether the examples share the random numbers that are drawn.
    """

    def __init__(self, graph: Graph, count: Value, dim: DimLike, randomness: Randomness = "error") -> None:
        super().__init__(graph)
        self.count = count
        self.dim = dim
        self.randomness = randomness
        self.batched: set[Value] = set()
        self.shared: set[Value] = set()

    def holds(self, x: Value | None) -> bool:
        """Return whether ``x`` has the axis of the examples, as its first."""
        return x in self.batched

    def same(self, x: Value) -> Value:
        """Mark a result of a rule that is one and the same for all examples, and has no axis for them."""
        self.shared.add(x)
        return x

    def lifted(self, x: Value) -> Value:
        """Return ``x`` with the axis of the examples: repeated, if it is the same for all."""
        if self.holds(x):
            return x
        shape = joined(self, [self.count, self.shape(x)])
        type_ = Type(x.type.dtype, None if x.type.shape is None else (self.dim, *x.type.shape))
        return self.add_node("Expand", [x, shape], types=[type_]).output()

    def padded(self, x: Value, rank: int) -> Value:
        """Return ``x`` so that it broadcasts, example by example, against values of ``rank`` without their first axis."""
        missing = rank + 1 - len(x.shape)
        if not self.holds(x) or missing <= 0:
            return x
        return self.Unsqueeze(x, list(range(1, 1 + missing)))

    def merged(self, x: Value) -> Value:
        """Return ``x`` with its first two axes, examples and what follows, as one."""
        first, second, *rest = x.shape
        product = self.Mul(self.extent(x, 0), self.extent(x, 1))
        if isinstance(first, int) and isinstance(second, int):
            product = self.ints([first * second])
        shape = joined(self, [product, *_tail(self, x, 2)])
        type_ = Type(x.type.dtype, (first * second, *rest))
        return self.add_node("Reshape", [x, shape], {"allowzero": 1}, types=[type_]).output()

    def unmerged(self, y: Value, second: Value, dim: DimLike) -> Value:
        """Return ``y`` with its first axis as two: the examples, and the extent ``second`` (of a type: ``dim``)."""
        shape = joined(self, [self.count, second, *_tail(self, y, 1)])
        type_ = Type(y.type.dtype, (self.dim, dim, *y.shape[1:]))
        return self.add_node("Reshape", [y, shape], {"allowzero": 1}, types=[type_]).output()


def _tail(b: Builder, x: Value, start: int) -> list[Value]:
    """Return the extents of ``x`` from an axis on as int64 vectors to join."""
    return [b.extent(x, axis) for axis in range(start, len(x.shape))]


# ---- one node per example ---------------------------------------------------------------------------------------------------


def looped(b: BatchBuilder, node: Node, *xs: Value | None) -> tuple[Value | None, ...]:
    """Run ``node`` for one example after the other: a Scan over what the examples do not share."""
    body = Graph(f"each_{node.label}", b.graph.limits)
    rows: dict[Value, Value] = {}
    captures: dict[Value, Value] = {}
    originals = [*node.inputs, *node.captures]
    formals: dict[Value, Value] = {}
    for x, original in zip(xs, originals, strict=True):
        if x is not None and original is not None and b.holds(x) and x not in rows:
            rows[x] = body.add_input(body.unique_name(original.name or "x"), original.type)
    for x, original in zip(xs, originals, strict=True):
        if x is None or original is None or x in rows or x in captures or x in formals:
            continue
        if x.constant is not None and not x.name:
            formals[x] = body.add_constant(x.constant)
            continue
        captures[x] = body.add_input(body.unique_name(original.name or "x"), x.type)
    formals.update(rows)
    formals.update(captures)
    inner = [None if x is None else formals[x] for x in xs]
    twin = body.add_node(
        node.op, inner[: len(node.inputs)],
        [None if y is None else (body.unique_name(y.name), y.type) for y in node.outputs], node.attributes,
        captures=[v for v in inner[len(node.inputs):] if v is not None],
        subgraphs={name: sub.copy() for name, sub in node.subgraphs.items()},
    )
    twin.metadata, twin.adjoint_rule = dict(node.metadata), node.adjoint_rule
    for y in twin.results:
        body.add_output(y, y.name)
    types = [None if y.type.shape is None else Type(y.type.dtype, (b.dim, *y.type.shape)) for y in node.results]
    made = b.add_node("Scan", list(rows), {"num_scan_inputs": len(rows)}, outputs=len(node.results), types=types,
                      captures=list(captures), subgraphs={"body": body})
    results = iter(made.outputs)
    return tuple(None if y is None else next(results) for y in node.outputs)


# ---- rules that many operators share ------------------------------------------------------------------------------------------


def again(b: BatchBuilder, node: Node, xs: Sequence[Value | None], **changed: Any) -> tuple[Value | None, ...]:
    """Return the outputs of the op of ``node`` on other inputs; ``changed`` attributes replace its own."""
    names = ["" if y is None else b.fresh(f"{y.name}_examples") for y in node.outputs]
    made = b.add_node(node.op, xs, {**node.attributes, **changed}, outputs=names)
    made.metadata, made.adjoint_rule = dict(node.metadata), node.adjoint_rule
    return tuple(made.outputs)


def pointwise(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """An elementwise op works on all examples at once; operands of lower rank get axes of extent 1 behind the first."""
    rank = node.output().type.rank
    if rank is None or any(v.type.rank is None for v in node.operands):
        return looped(b, node, *xs)
    return again(b, node, [x if x is None else b.padded(x, rank) for x in xs])


def alone(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """An op whose first input alone is one per example works on all at once; others are run one by one."""
    if any(b.holds(x) for x in xs[1:]):
        return looped(b, node, *xs)
    return again(b, node, xs)


def along_axis(name: str = "axis") -> BatchRule:
    """Return the rule of an op whose attribute ``name`` counts an axis of its inputs, all of one rank: it counts one more."""

    def rule(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
        rank = node.input(0).type.rank
        if not rank:
            return looped(b, node, *xs)
        axis = normal_axis(attr(node, name), rank)
        return again(b, node, [x if x is None else b.lifted(x) for x in xs], **{name: axis + 1})

    return rule


def along_axes_input(slot: int) -> BatchRule:
    """Return the rule of an op whose input ``slot`` lists axes of input 0, the only one that examples differ in."""

    def rule(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
        rank = node.input(0).type.rank
        axes = known_ints(node.optional(slot))
        if rank is None or axes is None or any(b.holds(x) for x in xs[1:]):
            return looped(b, node, *xs)
        shifted = b.ints([1 + normal_axis(a, rank) for a in axes])
        return again(b, node, [*xs[:slot], shifted, *xs[slot + 1:]])

    return rule


def within_batch(*slots: int) -> BatchRule:
    """Return the rule of an op that already has an axis of samples, the first of the inputs in ``slots`` and of all
    outputs: the examples become more samples. Inputs in other slots must be shared, or the examples are run one by one."""

    def rule(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
        others = [x for slot, x in enumerate(xs) if slot not in slots]
        if any(b.holds(x) for x in others) or any(v.type.rank is None for v in [*node.operands, *node.results]):
            return looped(b, node, *xs)
        merged = [b.merged(b.lifted(x)) if x is not None and slot in slots else x for slot, x in enumerate(xs)]
        first = next(x for slot, x in enumerate(xs) if slot in slots and x is not None)
        lead = b.extent(first, 1) if b.holds(first) else b.extent(first, 0)
        dim = node.input(min(slots)).shape[0]
        return tuple(None if y is None else b.unmerged(y, lead, dim) for y in again(b, node, merged))

    return rule


