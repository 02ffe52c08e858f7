"""The batch pass: appends the subgraph that computes for many examples what a graph computes for one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from flowgrad.ir.batching import (
    SEQUENCES,
    BatchBuilder,
    BatchRule,
    BodyBatcher,
    Randomness,
    again,
    alone,
    looped,
    pointwise,
    ragged,
)
from flowgrad.ir.boundary import boundary, guarded
from flowgrad.ir.bulk import bulk
from flowgrad.ir.errors import PassError, UnsupportedError
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import OpDef, Refusal, Trait, is_random, opdef, refuse
from flowgrad.ir.reach import needed_nodes
from flowgrad.ir.types import Dim, Type
from flowgrad.passes.edits import sweep

MOST_NAMED = 20
"""How many nodes a refusal names."""


class Examples:
    """What stands for the values of one example: ``known`` maps them, ``builder`` knows which have the new axis."""

    def __init__(self, builder: BatchBuilder, known: dict[Value, Value]) -> None:
        self.builder = builder
        self.known = known
        self.swept: set[Value] = set()
        self.rows: dict[Value, Value] = {}
        """By values whose stand-in nothing needed: the same with examples and first axis as one."""

    def of(self, y: Value) -> Value:
        """Return ``y`` for all examples, along a new first axis; repeated, if it is the same for all.

        Raises PassError for a value that was not asked for and that nothing needed.
        """
        if y in self.swept:
            raise PassError(f"{y!r} for many examples was not asked for, and is gone", code="batch")
        return self.builder.lifted(self.known.get(y, y))

    def holds(self, y: Value) -> bool:
        """Return whether ``y`` may differ between the examples."""
        return y in self.swept or self.builder.holds(self.known.get(y, y))

    def sweep(self, keep: Sequence[Value]) -> None:
        """Remove what the rules made and nothing came to use, but for what stands for ``keep``."""
        b = self.builder
        kept = {self.known.get(y, y) for y in keep}
        for node in reversed(b.made):
            if node.key in b.graph.entries and not any(v.uses or v in kept for v in node.results):
                b.graph.remove(node)
        b.made = []
        for y, many in list(self.known.items()):
            if many.producer.key in b.graph.entries:
                continue
            del self.known[y]
            self.swept.add(y)
            if many in b.rows and b.rows[many].producer.key in b.graph.entries:
                self.rows[y] = b.rows[many]


@bulk
@guarded("while batching")
def batch(
    graph: Graph, pairs: Sequence[tuple[Value, Value]], of: Sequence[Value], *, randomness: Randomness = "error",
) -> Examples:
    """Append to ``graph`` what ``of`` are for many examples.

    In ``pairs``, each value stands beside one that holds an array of its type per example, along a new first axis, of
    the same extent for all. Returns what stands for each of ``of``, for each pinned value that they depend on, and for
    what lies on the way; the old nodes stay. Raises UnsupportedError, naming every offending node, where results would
    be ragged, where sequences would have to be batched, and where random numbers are drawn and ``randomness`` does not
    say whether all examples share them.
    """
    b = BatchBuilder(graph, pairs[0][1], randomness, Bodies())
    examples = Examples(b, dict(pairs))
    b.batched.update(xs for _, xs in pairs)
    refusals: list[tuple[Node, str]] = []
    lost: set[Value] = set()
    for node in needed_nodes(graph.nodes(), of, given=examples.known):
        made = _made(examples, node, lost)
        if isinstance(made, Refusal):
            refusals.append((node, made.reason))
            lost.update(node.results)
    if refusals:
        lines = "".join(f"\n  {describe(node)}\n    {reason}" for node, reason in refusals[:MOST_NAMED])
        more = f"\n  and {len(refusals) - MOST_NAMED} more" if len(refusals) > MOST_NAMED else ""
        raise UnsupportedError(f"not to be batched:{lines}{more}", code="batch")
    examples.sweep([*of, *(graph.value(name) for name in graph.pinned)])
    return examples


def _made(examples: Examples, node: Node, lost: set[Value]) -> Refusal | None:
    """Add what stands for the outputs of ``node``; what depends on values that are ``lost`` to a refusal is lost too."""
    b, known = examples.builder, examples.known
    drawn = is_random(node) and b.randomness != "same"
    if any(v in lost for v in node.operands):
        lost.update(node.results)
        return None
    if not drawn and not any(v in known for v in node.operands):
        return None
    if drawn and b.randomness == "error":
        return Refusal("it draws random numbers: say randomness='same' or 'different' for all examples")
    b.origin = b.graph.new_origin("batch", (node,))
    b.prefix = node.label
    xs = [v and known.get(v, v) for v in (*node.inputs, *node.captures)]
    if not drawn and not any(b.holds(x) for x in xs):
        made = again(b, node, xs)
        known.update({y: new for y, new in zip(node.outputs, made, strict=True) if y is not None and new is not None})
        return None
    with boundary(node, "the batching rule of", PassError, "rule"):
        result = rule_of(node, opdef(node.op))(b, node, *xs)
    if isinstance(result, Refusal):
        return result
    items = list(result) if isinstance(result, (tuple, list)) else [result]
    for y, new in zip(node.outputs, items, strict=False):
        if y is None:
            continue
        if new not in b.shared:
            _check(b, node, y, new)
            b.refined(new, None if y.type.shape is None else (b.dim, *y.type.shape))
            b.batched.add(new)
        known[y] = new
    return None


def rule_of(node: Node, definition: OpDef) -> BatchRule:
    """Return the batching rule of a node: the op's own, that of a trait, or one example after the other."""
    traits = definition.traits
    if any(v.type.dtype.kind in ("sequence", "optional") for v in (*node.operands, *node.results)):
        return lambda *_: refuse(SEQUENCES)
    if node.adjoint_rule is not None and Trait.ELEMENTWISE not in traits:
        return looped  # the rule is written for one example
    if definition.batch_rule is not None:
        return definition.batch_rule
    if Trait.BROADCASTS in traits:
        return pointwise
    if Trait.ELEMENTWISE in traits:
        return alone
    if Trait.BOUNDED in traits:
        return ragged
    return looped


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


# ---- the subgraphs of nodes ------------------------------------------------------------------------------------------------


class Bodies(BodyBatcher):
    """Batches bodies of If, Loop and Scan with the pass itself."""

    def body(self, b: BatchBuilder, body: Graph, batched: Collection[int], lifted: Collection[int]) -> tuple[Graph, set[int]]:
        graph = body.copy()
        old, entries = graph.inputs, graph.output_entries
        pairs = []
        formals = list(old)
        for i in sorted(batched):
            shape = old[i].type.shape
            name = old[i].name
            graph.rename(old[i], graph.unique_name(f"{name}_one"))
            many = graph.add_input(name, Type(old[i].type.dtype, None if shape is None else (b.dim, *shape)))
            pairs.append((old[i], many))
            formals[i] = many
        outputs = [e.input(0) for e in entries]
        examples = batch(graph, pairs, outputs, randomness=b.randomness)
        held = {i for i, y in enumerate(outputs) if examples.holds(y) or i in lifted}
        results = [(e.name, examples.of(y) if i in held else examples.known.get(y, y))
                   for i, (e, y) in enumerate(zip(entries, outputs, strict=True))]
        for entry in entries:
            graph.remove(entry)
        for name, value in results:
            graph.add_output(value, name)
        sweep(graph)
        for x, _ in pairs:
            graph.remove(x.producer)
        graph.reorder_inputs(formals)
        return graph, held
