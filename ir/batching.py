"""What batching rules are handed, and the rules that many operators share.

A batching rule makes, from values that hold one array per example along a new first axis, what its operator makes of each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.ops.operands import extents, joined, known_ints, normal_axis, permuted, ramp
from flowgrad.ir.ops.registry import attr, is_random, opdef, refuse
from flowgrad.ir.types import Dim, DimLike, Type, dim_product

Key = TypeVar("Key")
BatchRule = Callable[..., Any]
Randomness = Literal["error", "same", "different"]
Results = tuple[Value | None, ...]


class BodyBatcher(Protocol):
    """Batches subgraphs for the rules of the operators that hold them."""

    def body(self, b: BatchBuilder, body: Graph, batched: Collection[int], lifted: Collection[int]) -> tuple[Graph, set[int]]:
        """Return ``body`` for many examples, and which of its outputs have the axis of the examples.

        The inputs in ``batched`` have it, and the outputs in ``lifted`` are given it.
        """


class BatchBuilder(Builder):
    """A builder for batching rules: it knows which values hold one array per example, and how many examples there are.

    ``first`` is a value that has the axis of the examples; ``count`` is the extent of that, their number, as an int64 vector
    of length 1, ``dim`` the same as an extent of a type;
    ``randomness`` says whether the examples share the random numbers that are drawn. Where an operator works on a batch
    already, the examples are more samples: such results are known in two forms, [examples, samples, ...] and, in ``rows``,
    with the first two axes as one, so that what comes next need not undo and do it again.
    """

    def __init__(self, graph: Graph, first: Value, randomness: Randomness, bodies: BodyBatcher) -> None:
        super().__init__(graph)
        self.first = first
        self.dim: DimLike = first.shape[0]
        self.randomness = randomness
        self.bodies = bodies
        self.batched: set[Value] = set()
        self.shared: set[Value] = set()
        self.rows: dict[Value, Value] = {}
        self.flat_indices: dict[Value, Value] = {}
        """By indices into one example: the same as indices into all of them."""
        self.made: list[Node] = []
        self._extents: dict[Dim, Value] = {}
        self._shapes: dict[tuple[DimLike, ...], Value] = {}

    @property
    def count(self) -> Value:
        """The number of examples."""
        return self.extent(self.first, 0)

    def extent(self, x: Value, axis: int) -> Value:
        """Return one extent of ``x`` as an int64 vector of length 1: the same one for all extents of one dim."""
        rank = x.type.rank
        if rank is None:
            return super().extent(x, axis)
        return self.measured(x.shape[axis % rank], lambda: super(BatchBuilder, self).extent(x, axis))

    def measured(self, dim: DimLike, make: Callable[[], Value]) -> Value:
        """Return a dim as a vector of length 1, which ``make()`` gives if it is not known before the run nor there yet."""
        if isinstance(dim, int):
            return self.ints([dim])
        return self._kept(self._extents, dim, make)

    def _kept(self, table: dict[Key, Value], key: Key, make: Callable[[], Value]) -> Value:
        """Return the entry of a table, made anew if there is none or if it was swept away."""
        found = table.get(key)
        if found is None or found.producer.key not in self.graph.entries:
            found = table[key] = make()
        return found

    def add_node(self, op: str, inputs: Sequence[Any], *arguments: Any, **keywords: Any) -> Node:
        """Add a node, and remember it."""
        node = super().add_node(op, inputs, *arguments, **keywords)
        self.made.append(node)
        return node

    def holds(self, x: Value | None) -> bool:
        """Return whether ``x`` has the axis of the examples, as its first."""
        return x in self.batched

    def refined(self, made: Value, shape: Sequence[DimLike] | None) -> Value:
        """Return ``made`` with the extents that are known of it by other ways than its inputs."""
        if shape is not None:
            inferred = made.type.shape or tuple(shape)
            known = tuple(m if isinstance(m, int) else d for m, d in zip(inferred, shape, strict=True))
            self.graph.set_type(made, Type(made.type.dtype, known))
        return made

    def same(self, x: Value) -> Value:
        """Mark a result of a rule that is one and the same for all examples, and has no axis for them."""
        self.shared.add(x)
        return x

    def alike(self, made: Value, x: Value) -> Value:
        """Return ``made``, which a rule made of ``x``, noting that it has the axis of the examples if that has it."""
        if self.holds(x):
            self.batched.add(made)
        return made

    def lifted(self, x: Value) -> Value:
        """Return ``x`` with the axis of the examples: repeated, if it is the same for all."""
        if self.holds(x):
            return x
        shape = joined(self, [self.count, self.shape(x)])
        type_ = Type(x.type.dtype, None if x.type.shape is None else (self.dim, *x.type.shape))
        return self.add_node("Expand", [x, shape], types=[type_]).output()

    def one(self, x: Value) -> Value:
        """Return zeros of the type of a single example of ``x``."""
        return self.Expand(self.scalar(0, x.type.dtype), self.example_shape(x))

    def example_shape(self, x: Value) -> Value:
        """Return the shape of one example of ``x``: a constant where it is known."""
        dims = x.shape[1:]
        if all(isinstance(d, int) for d in dims):
            return self.ints(dims)
        return self.Shape(x, start=1)

    def padded(self, x: Value, rank: int) -> Value:
        """Return ``x`` so that it broadcasts, example by example, against values of ``rank`` without their first axis."""
        missing = rank + 1 - len(x.shape)
        if not self.holds(x) or missing <= 0:
            return x
        return self.alike(self.Unsqueeze(x, list(range(1, 1 + missing))), x)

    def shaped(self, x: Value, dims: Sequence[DimLike], part: Callable[[int], Value]) -> Value:
        """Return ``x`` in the shape ``dims``; ``part(i)`` gives extent i, as a vector, where only the run can tell."""
        unknown = [i for i, d in enumerate(dims) if not isinstance(d, int)]
        if len(unknown) > 1 or (unknown and 0 in dims):
            parts = [self.measured(d, partial(part, i)) for i, d in enumerate(dims)]
            shape = self._kept(self._shapes, tuple(dims), lambda: joined(self, parts))
        else:
            shape = self.ints([-1 if i in unknown else d for i, d in enumerate(dims)])
        attributes = {"allowzero": 1} if len(unknown) > 1 or 0 in dims else {}
        return self.add_node("Reshape", [x, shape], attributes, types=[Type(x.type.dtype, tuple(dims))]).output()

    def merged(self, x: Value, axis: int = 0) -> Value:
        """Return ``x`` with the examples and ``axis`` of an example as one axis, in the place of that; repeated, if shared."""
        if not self.holds(x) and axis == 0 and x.shape[:1] == (1,):
            dims = (self.dim, *x.shape[1:])
            return self.add_node("Expand", [x, joined(self, [self.count, *extents(self, x, 1, len(x.shape))])],
                                 types=[Type(x.type.dtype, dims)]).output()
        x = self.lifted(x)
        if axis == 0 and x in self.rows:
            return self.rows[x]
        if axis:
            x = self.Transpose(x, perm=[*range(1, axis + 1), 0, *range(axis + 1, len(x.shape))])
        dims = (*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2:])

        def part(i: int) -> Value:
            if i == axis:
                return self.Mul(self.extent(x, axis), self.extent(x, axis + 1))
            return self.extent(x, i + (i > axis))

        made = self.shaped(x, dims, part)
        if axis == 0:
            self.rows[x] = made
        return made

    def unmerged(self, y: Value, dim: DimLike, second: Callable[[], Value], axis: int = 0) -> Value:
        """Return ``y`` with ``axis`` as two, of which the first, the examples, comes first of all.

        The other has the extent ``dim``, or ``second()`` where only the run can tell.
        """
        dims = (*y.shape[:axis], self.dim, dim, *y.shape[axis + 1:])

        def part(i: int) -> Value:
            return self.count if i == axis else second() if i == axis + 1 else self.extent(y, i - (i > axis))

        split = self.shaped(y, dims, part)
        if axis:
            return self.Transpose(split, perm=[axis, *range(axis), *range(axis + 1, len(dims))])
        self.rows[split] = y
        return split

    def numbers(self, rank: int, factor: Value | None = None) -> Value:
        """Return 0, 1, ... for the examples (times ``factor``), so that it broadcasts against values of ``rank``."""
        numbers = ramp(self, self.count)
        if factor is not None:
            numbers = self.Mul(numbers, factor)
        return self.Unsqueeze(numbers, list(range(1, rank))) if rank > 1 else numbers


# ---- one node per example ---------------------------------------------------------------------------------------------------

RAGGED = "the examples would have results of different extents"
SEQUENCES = "sequences and optional values have no axis of examples"


def looped(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """Run ``node`` for one example after the other, unless results may have different extents."""
    return refuse(RAGGED) if _is_ragged(b, node, xs) else each(b, node, *xs)


def each(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """Run ``node`` for one example after the other: a Scan over what the examples do not share.

    If results have different extents, the run says so.
    """
    if is_random(node):
        return refuse("its random numbers have no batching rule")
    body = Graph(f"each_{node.label}", b.graph.limits)
    originals = [*node.inputs, *node.captures]
    xs = tuple(xs)[:len(originals)]
    pairs = [(x, v) for x, v in zip(xs, originals, strict=False) if x is not None and v is not None]
    rows = dict.fromkeys(x for x, _ in pairs if b.holds(x))
    captures = dict.fromkeys(x for x, _ in pairs if x not in rows and (x.constant is None or x.name))
    originals_of = dict(reversed(pairs))
    formals: dict[Value, Value] = {}
    for x in (*rows, *captures):
        v = originals_of[x]
        formals[x] = body.add_input(body.unique_name(v.name or "x"), v.type if x in rows else x.type)
    for x, _ in pairs:
        if x not in formals:
            formals[x] = body.add_constant(x.constant)
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
    types = [Type(y.type.dtype, None if y.type.shape is None else (b.dim, *y.type.shape)) for y in node.results]
    made = b.add_node("Scan", list(rows), {"num_scan_inputs": len(rows)}, outputs=len(node.results), types=types,
                      captures=list(captures), subgraphs={"body": body})
    results = iter(made.outputs)
    return tuple(None if y is None else next(results) for y in node.outputs)


def _is_ragged(b: BatchBuilder, node: Node, xs: Sequence[Value | None]) -> bool:
    """Return whether integers that steer extents differ between the examples, and the types do not say that extents do not."""
    if not any(b.holds(x) for slot, x in enumerate(xs) if slot in opdef(node.op).extents):
        return False
    if any(y.type.shape is None for y in node.results):
        return True
    given = {d for v in node.operands for d in v.type.shape or ()}
    return any(isinstance(d, Dim) and d not in given for y in node.results for d in y.shape)


# ---- rules that many operators share ------------------------------------------------------------------------------------------


def again(b: BatchBuilder, node: Node, xs: Sequence[Value | None], **changed: Any) -> Results:
    """Return the outputs of the op of ``node`` on other inputs, then captures; ``changed`` attributes replace its own."""
    names = ["" if y is None else b.fresh(f"{y.name}_examples") for y in node.outputs]
    count = len(node.inputs) if node.captures else len(xs)
    made = b.add_node(node.op, xs[:count], {**node.attributes, **changed}, outputs=names,
                      captures=[x for x in xs[count:] if x is not None],
                      subgraphs={name: sub.copy() for name, sub in node.subgraphs.items()})
    made.metadata, made.adjoint_rule = dict(node.metadata), node.adjoint_rule
    return tuple(made.outputs)


def single(b: BatchBuilder, node: Node, xs: Sequence[Value | None], **changed: Any) -> Value:
    """Return the first output of the op of ``node`` on other inputs."""
    y = again(b, node, xs, **changed)[0]
    assert y is not None
    return y


def in_rows(b: BatchBuilder, node: Node, xs: Sequence[Value | None], samples: Collection[int] = (), **changed: Any
            ) -> Results | None:
    """Return the outputs of an op that treats every index of the first axis apart, where that is merged with the examples.

    Shared operands stay as they are, but for those in the slots ``samples``, which have that axis too. None where an
    operand is not known in that form, or the first axes are not the same.
    """
    held = [x for x in xs if x is not None and b.holds(x)]
    if not held or not all(x in b.rows and x.shape[1] == held[0].shape[1] for x in held):
        return None
    repeated = [x for slot, x in enumerate(xs) if x is not None and slot in samples and not b.holds(x)]
    if any(x.shape[:1] != (1,) or held[0].shape[1] != 1 for x in repeated):
        return None
    rows = [b.merged(x) if x is not None and (b.holds(x) or slot in samples) else x for slot, x in enumerate(xs)]
    return _apart(b, node, again(b, node, rows, **changed), held[0].shape[1], lambda: b.extent(held[0], 1))


def _apart(b: BatchBuilder, node: Node, made: Results, lead: DimLike, second: Callable[[], Value]) -> Results:
    """Return results of ``node`` with the examples and the first axis as two."""
    found: list[Value | None] = []
    for y, one in zip(made, node.outputs, strict=False):
        if y is not None and one is not None and one.type.shape is not None and y.type.rank is not None:
            b.refined(y, (y.shape[0], *one.shape[1:]))
        found.append(None if y is None else b.unmerged(y, lead, second))
    return tuple(found)


def pointwise(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """An elementwise op works on all examples at once; operands of lower rank get axes of extent 1 behind the first."""
    rank = node.output().type.rank
    if rank is None or any(v.type.rank is None for v in node.operands):
        return looped(b, node, *xs)
    aligned = all(len(x.shape) == rank + 1 if b.holds(x) else len(x.shape) < rank or x.shape[:1] == (1,)
                  for x in xs if x is not None)
    if aligned and (made := in_rows(b, node, xs)) is not None:
        return made
    return again(b, node, [x if x is None else b.padded(x, rank) for x in xs])


def alone(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """An op whose first input alone is one per example works on all at once; others are run one by one."""
    if any(b.holds(x) for x in xs[1:]) or node.input(0).type.rank is None:
        return looped(b, node, *xs)
    if node.input(0).type.rank and (made := in_rows(b, node, xs)) is not None:
        return made
    return again(b, node, xs)


def together(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """An elementwise op of operands of one shape works on all examples at once."""
    return again(b, node, [x if x is None else b.lifted(x) for x in xs])


def images(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """An op on the last axes, two at least, of its first input; its others must be shared."""
    if any(b.holds(x) for x in xs[1:]) or node.input(0).type.rank is None:
        return looped(b, node, *xs)
    return again(b, node, xs)


def along_axis(name: str = "axis", slots: Collection[int] | None = None) -> BatchRule:
    """Return the rule of an op whose attribute ``name`` counts an axis of its inputs, all of one rank: it counts one more.

    With ``slots``, that is so for the inputs in these, and the others must be shared.
    """

    def rule(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
        rank = node.input(0).type.rank
        chosen = range(len(xs)) if slots is None else slots
        if not rank or any(b.holds(x) for slot, x in enumerate(xs) if slot not in chosen):
            return looped(b, node, *xs)
        axis = normal_axis(attr(node, name), rank)
        if axis and (made := in_rows(b, node, xs, chosen)) is not None:
            return made
        lifted = [x if x is None or slot not in chosen else b.lifted(x) for slot, x in enumerate(xs)]
        return again(b, node, lifted, **{name: axis + 1})

    return rule


def shifted_axes(b: BatchBuilder, axes: Value, rank: int | None) -> Value:
    """Return an input that lists axes so that it counts that of the examples too; those from the end stay."""
    known = known_ints(axes)
    if known is None:
        return b.Where(b.Less(axes, 0), axes, b.Add(axes, 1))
    shifted = [a if a < 0 and rank is None else 1 + (a if rank is None else normal_axis(a, rank)) for a in known]
    return b.value(np.asarray(shifted, axes.type.dtype.numpy).reshape(() if axes.type.rank == 0 else -1))


def along_axes_input(slot: int) -> BatchRule:
    """Return the rule of an op whose input ``slot`` lists axes of input 0, the only one that examples differ in."""

    def rule(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
        rank, axes = node.input(0).type.rank, xs[slot] if slot < len(xs) else None
        if axes is None or any(b.holds(x) for x in xs[1:]):
            return looped(b, node, *xs)
        return again(b, node, [*xs[:slot], shifted_axes(b, axes, rank), *xs[slot + 1:]])

    return rule


def within(b: BatchBuilder, node: Node, xs: Sequence[Value | None], inputs: Mapping[int, int], outputs: Sequence[int]) -> Any:
    """Take the examples for more samples: ``inputs`` maps slots to the axis of samples, ``outputs`` are those of the results.

    Inputs in other slots must be shared, or the examples are run one by one.
    """
    if any(b.holds(x) for slot, x in enumerate(xs) if slot not in inputs) or any(
            v.type.rank is None for v in [*node.operands, *node.results]):
        return looped(b, node, *xs)
    return merged_again(b, node, xs, inputs, outputs)


def merged_again(b: BatchBuilder, node: Node, xs: Sequence[Value | None], inputs: Mapping[int, int], outputs: Sequence[int],
                 **changed: Any) -> Results:
    """Return the outputs of ``node`` on ``xs``, of which those that ``inputs`` lists are merged with the examples."""
    merged = [b.merged(x, inputs[slot]) if x is not None and slot in inputs else x for slot, x in enumerate(xs)]
    slot = next(slot for slot, x in enumerate(xs) if slot in inputs and x is not None)
    first, axis = xs[slot], inputs[slot]
    assert first is not None
    at = axis + 1 if b.holds(first) else axis
    made = again(b, node, merged, **changed)
    return tuple(None if y is None else b.unmerged(y, first.shape[at], lambda: b.extent(first, at), outputs[i])
                 for i, y in enumerate(made))


def within_batch(*slots: int) -> BatchRule:
    """Return the rule of an op that already has an axis of samples, the first of the inputs in ``slots`` and of all
    outputs: the examples become more samples. Inputs in other slots must be shared, or the examples are run one by one."""

    def rule(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
        return within(b, node, xs, dict.fromkeys(slots, 0), [0] * len(node.outputs))

    return rule


def ragged(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """The rule of an op whose extents depend on what it is given."""
    return refuse(RAGGED)


def first_moved(b: Builder, x: Value, axis: int) -> Value:
    """Return ``x`` with ``axis`` before all others."""
    return permuted(b, x, [axis, *(i for i in range(len(x.shape)) if i != axis)])


def volume(b: BatchBuilder, x: Value) -> Value:
    """Return the number of elements of one example of ``x``, an int64 scalar."""
    dims = x.shape[1:]
    if all(isinstance(d, int) for d in dims):
        return b.value(np.asarray(dim_product(dims), np.int64))
    return b.ReduceProd(b.Shape(x, start=1), keepdims=0)
