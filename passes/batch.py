"""The batch pass: appends the subgraph that computes for many examples what a graph computes for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from flowgrad.ir.batching import BatchBuilder, BatchRule, Randomness, again, alone, looped, pointwise
from flowgrad.ir.boundary import boundary, guarded
from flowgrad.ir.builder import Builder
from flowgrad.ir.bulk import bulk
from flowgrad.ir.errors import PassError, UnsupportedError
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import OpDef, Refusal, Trait, is_random, opdef
from flowgrad.ir.reach import needed_nodes
from flowgrad.ir.types import Dim


class Examples(NamedTuple):
    """What stands for the values of one example: ``known`` maps them, ``builder`` knows which have the new axis."""

    builder: BatchBuilder
    known: dict[Value, Value]

    def of(self, y: Value) -> Value:
        """Return ``y`` for all examples, along a new first axis; repeated, if it is the same for all."""
        return self.builder.lifted(self.known.get(y, y))

    def holds(self, y: Value) -> bool:
        """Return whether ``y`` may differ between the examples."""
        return self.builder.holds(self.known.get(y, y))


@bulk
@guarded("while batching")
def batch(
    graph: Graph, pairs: Sequence[tuple[Value, Value]], of: Sequence[Value], *, randomness: Randomness = "error",
) -> Examples:
    """Append to ``graph`` what ``of`` are for many examples.

    In ``pairs``, each value stands beside one that holds an array of its type per example, along a new first axis, of
    the same extent for all. Returns what stands for each value that depends on those; the old nodes stay. Raises
    UnsupportedError, naming every offending node, where results would be ragged, and where random numbers are drawn and
    ``randomness`` does not say whether all examples share them.
    """
    first = pairs[0][1]
    b = BatchBuilder(graph, Builder(graph).extent(first, 0), first.shape[0], randomness)
    known = dict(pairs)
    b.batched.update(xs for _, xs in pairs)
    refusals: list[tuple[Node, str]] = []
    for node in needed_nodes(graph.nodes(), of, given=known):
        drawn = randomness != "same" and is_random(node)
        if not drawn and not any(v in known for v in node.operands):
            continue
        b.origin = graph.new_origin("batch", (node,))
        b.prefix = node.label
        if drawn and randomness == "error":
            refusals.append((node, "it draws random numbers: say randomness='same' or 'different' for all examples"))
            continue
        xs = [v and known.get(v, v) for v in (*node.inputs, *node.captures)]
        made = _batched(b, node, xs)
        if isinstance(made, Refusal):
            refusals.append((node, made.reason))
            continue
        known.update(made)
    if refusals:
        lines = "".join(f"\n  {describe(node)}\n    {reason}" for node, reason in refusals[:20])
        raise UnsupportedError(f"not to be batched:{lines}", code="batch")
    return Examples(b, known)


def _batched(b: BatchBuilder, node: Node, xs: Sequence[Value | None]) -> dict[Value, Value] | Refusal:
    """Return what stands for each output of ``node``."""
    definition = opdef(node.op)
    if not any(b.holds(x) for x in xs) and not is_random(node):
        made = again(b, node, xs[: len(node.inputs)]) if not node.subgraphs else _rebuilt(b, node, xs)
        return {y: new for y, new in zip(node.outputs, made, strict=True) if y is not None and new is not None}
    with boundary(node, "the batching rule of", PassError, "rule"):
        result = rule_of(node, definition)(b, node, *xs)
    if isinstance(result, Refusal):
        return result
    items = list(result) if isinstance(result, (tuple, list)) else [result]
    found: dict[Value, Value] = {}
    for y, new in zip(node.outputs, items, strict=False):
        if y is None:
            continue
        if new not in b.shared:
            _check(b, node, y, new)
            b.batched.add(new)
        found[y] = new
    return found


def rule_of(node: Node, definition: OpDef) -> BatchRule:
    """Return the batching rule of a node: the op's own, that of a trait, or one example after the other."""
    traits = definition.traits
    if node.adjoint_rule is not None and Trait.ELEMENTWISE not in traits:
        return looped  # the rule is written for one example
    if definition.batch_rule is not None:
        return definition.batch_rule
    if Trait.BROADCASTS in traits:
        return pointwise
    if Trait.ELEMENTWISE in traits:
        return alone
    if is_random(node):
        return lambda *_: Refusal("its random numbers have no batching rule")
    if Trait.BOUNDED in traits:
        return lambda *_: Refusal("the examples would have results of different extents")
    return looped


def _rebuilt(b: BatchBuilder, node: Node, xs: Sequence[Value | None]) -> tuple[Value | None, ...]:
    count = len(node.inputs)
    names = ["" if y is None else b.fresh(f"{y.name}_examples") for y in node.outputs]
    made = b.add_node(node.op, xs[:count], node.attributes, outputs=names, captures=[x for x in xs[count:] if x is not None],
                      subgraphs={name: sub.copy() for name, sub in node.subgraphs.items()})
    return tuple(made.outputs)


def _check(b: BatchBuilder, node: Node, y: Value, new: Any) -> None:
    """Check that a result has the type of ``y`` with one more axis."""
    if not isinstance(new, Value):
        raise PassError(f"the batching rule of {node.op} returned {new!r} for %{y.name}", code="rule", where=describe(node))
    wanted, found = y.type.shape, new.type.shape
    fits = wanted is None or found is None or (len(found) == len(wanted) + 1 and all(
        isinstance(a, Dim) or isinstance(c, Dim) or a == c for a, c in zip((b.dim, *wanted), found, strict=True)))
    if not fits or new.type.dtype != y.type.dtype:
        raise PassError(f"the batching rule of {node.op} gave {new.type!r} for the examples of {y!r}", code="rule",
                        where=describe(node))
