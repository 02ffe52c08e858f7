"""The adjoint pass: appends the reverse subgraph that carries cotangents from outputs back to what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from flowgrad.ir.body_derivatives import BodyDifferentiator
from flowgrad.ir.boundary import boundary, guarded
from flowgrad.ir.bulk import bulk
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import PassError, ValidationError
from flowgrad.ir.graph import ENTRIES, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.operands import sum_of
from flowgrad.ir.ops.registry import NO_GRADIENT, OpDef, Refusal, Trait, opdef
from flowgrad.ir.types import Dim, DimLike
from flowgrad.passes.activity import active_values
from flowgrad.passes.expand import expand_for_derivative
from flowgrad.passes.refusals import check_zero, refusal_error, refusal_of

Rule = Callable[..., Any]
Zero = Literal["error", "allow"]


@bulk
@guarded("while differentiating")
def adjoint(
    graph: Graph,
    seeds: Sequence[tuple[Value, Value]],
    wrt: Sequence[Value],
    bodies: BodyDifferentiator,
    *,
    zero: Zero = "error",
    are_units: bool = False,
    pass_name: str = "adjoint",
) -> list[Value | None]:
    """Append to ``graph`` the cotangents of ``wrt`` for the outputs and cotangents in ``seeds``.

    Returns one value per entry of ``wrt``: of exactly its type, or None where no path leads to it. Reverse
    accumulation: x_bar = sum over the users of x of (dy/dx)^T y_bar. Raises NotDifferentiableError, naming every
    offending op with a path, before it returns anything. A node's own ``adjoint_rule`` goes before its op's;
    ``bodies`` differentiates subgraphs. Of cotangents that ``are_units``, unit vectors or sums of some, the zeros stay zero
    whatever they are multiplied by.
    """
    return _Reverse(graph, seeds, wrt, bodies, pass_name).run(zero, are_units)


class _Reverse:
    def __init__(self, graph: Graph, seeds: Sequence[tuple[Value, Value]], wrt: Sequence[Value],
                 bodies: BodyDifferentiator, pass_name: str) -> None:
        self.graph = graph
        self.wrt = list(wrt)
        self.literals: dict[Value, Value] = {}
        self.seeds = [(y, self._apart(y_bar)) for y, y_bar in seeds]
        self.pass_name = pass_name
        self.order, self.beside = expand_for_derivative(graph, wrt, [y for y, _ in seeds])
        self.b = DerivativeBuilder(graph, bodies)
        self.active = active_values(self.order, wrt)
        self.named = {y_bar for _, y_bar in self.seeds}
        self.bars: dict[Value, list[Value]] = {}
        self.refusals: list[tuple[Node, str]] = []

    def run(self, zero: Zero, are_units: bool) -> list[Value | None]:
        for y, y_bar in self.seeds:
            self.b.support.start(y_bar, is_unit=are_units)
            self.bars.setdefault(y, []).append(y_bar)
        for node in reversed(self.order):
            for value in node.outputs:
                if value in self.bars and value in self.active:
                    self._visit(node)
                    break
        results = [self._collect(x) if x in self.bars else None for x in self.wrt]
        if self.refusals:
            raise refusal_error(self.refusals, self.active)
        if zero != "allow":
            check_zero(self.graph, [x for x, found in zip(self.wrt, results, strict=True) if found is None],
                       [y for y, _ in self.seeds])
        self.b.sweep([*results, *(y_bar for _, y_bar in self.seeds)])
        for stand_in in self.beside:
            stand_in.restore(self.graph)
        return self._joined(results)

    def _apart(self, y_bar: Value) -> Value:
        """Return ``y_bar``; of a literal, which all equal ones share, one of its own: what is 1 elsewhere is no cotangent."""
        data = y_bar.constant
        if y_bar.name or data is None:
            return y_bar
        made = self.graph.add_constant(data, self.graph.unique_name("cotangent"))
        self.literals[made] = y_bar
        return made

    def _joined(self, results: Sequence[Value | None]) -> list[Value | None]:
        """Let the literals that were set apart be those that all equal ones share again."""
        for own, shared in self.literals.items():
            self.graph.replace_uses(own, shared)
            self.graph.remove(own.producer)
        return [self.literals.get(v, v) if v is not None else None for v in results]

    def _visit(self, node: Node) -> None:
        definition = opdef(node.op)
        operands = [*node.inputs, *node.captures]
        if self.active.isdisjoint(operands):
            return
        self.b.origin = self.graph.new_origin(self.pass_name, (node,))
        self.b.prefix = node.label
        if node.subgraphs:
            self.b.wanted = tuple(v in self.active for v in operands)
        bars = [None if v is None else self._collect(v) if v in self.bars else self._absent(v) for v in node.outputs]
        bars += [None] * (len(definition.outputs) - len(bars))
        if node.adjoint_rule is not None:
            contributions = apply_override(self.b, node.adjoint_rule, node, bars)
        else:
            contributions = apply_adjoint(self.b, definition, node, bars)
        for x, x_bar in zip(operands, contributions, strict=True):
            self._contribute(node, definition, x, x_bar)

    def _absent(self, value: Value) -> Value | None:
        return self.b.zero(value) if value.type.dtype.carries else None

    def _contribute(self, node: Node, definition: OpDef, x: Value | None, x_bar: Any) -> None:
        if x is None or x not in self.active or x_bar is NO_GRADIENT:
            return
        if isinstance(x_bar, Refusal):
            self.refusals.append((node, x_bar.reason))
            return
        if not isinstance(x_bar, Value):
            raise PassError(f"the adjoint rule of {node.op} returned {x_bar!r} for %{x.name}", code="rule",
                            where=describe(node))
        if x_bar in self.b.zeros:
            return
        if Trait.BROADCASTS in definition.traits:
            x_bar = self.b.sum_to(x_bar, x)
        check_cotangent(node, x, x_bar)
        self.bars.setdefault(x, []).append(x_bar)

    def _collect(self, x: Value) -> Value:
        parts = self.bars[x]
        if len(parts) > 1:
            parts[:] = [accumulate(self.b, parts)]
        total = parts[0]
        if total not in self.named and total.name and total.producer.op not in ENTRIES:
            self.graph.rename(total, self.graph.unique_name(f"{x.name}_bar"))
        self.named.add(total)
        return total


def apply_adjoint(b: DerivativeBuilder, definition: OpDef, node: Node, bars: Sequence[Value | None]) -> list[Any]:
    """Return what the adjoint rule of ``node`` says, one item per input and capture.

    A rule that does not get along with the types it meets refuses, like one that says so.
    """
    try:
        with boundary(node, "the adjoint rule of", PassError, "rule"):
            return _contributions(b, definition, node, bars)
    except ValidationError as error:
        return [refusal_of(node, error)] * (len(node.inputs) + len(node.captures))


def _contributions(b: DerivativeBuilder, definition: OpDef, node: Node, bars: Sequence[Value | None]) -> list[Any]:
    count = len(node.inputs) + len(node.captures)
    if Trait.ZERO in definition.traits:
        return [NO_GRADIENT] * count
    if definition.adjoint_rule is not None:
        result = definition.adjoint_rule(b, node, *bars)
        items = list(result) if isinstance(result, (tuple, list)) else [result]
        if len(items) == 1 and isinstance(items[0], Refusal):
            return items * count
        return check_items("adjoint", definition, node, items, count)
    if definition.partial_rule is not None:
        return [p if p is NO_GRADIENT or isinstance(p, Refusal) else b.Mul(bars[0], p)
                for p in partials_of(b, definition, node)]
    return [Refusal("it has no derivative rule")] * count


def partials_of(b: DerivativeBuilder, definition: OpDef, node: Node) -> Sequence[Any]:
    """Return the partial derivatives of an elementwise node, one item per input."""
    assert definition.partial_rule is not None
    return check_items("partial", definition, node, definition.partial_rule(b, node), len(node.inputs))


def check_items(kind: str, definition: OpDef, node: Node, items: Sequence[Any], count: int) -> list[Any]:
    """Return the first ``count`` of the items that a rule returned: those of absent trailing inputs may follow, not more."""
    if not count <= len(items) <= max(count, len(definition.inputs) + len(node.captures)):
        raise PassError(f"the {kind} rule of {node.op} returned {len(items)} items for {count} inputs", code="rule",
                        where=describe(node))
    return list(items[:count])


def apply_override(b: DerivativeBuilder, rule: Rule, node: Node, bars: Sequence[Value | None]) -> list[Any]:
    """Return what a user's rule says in place of the op's own; None stands for zero."""
    result = rule(b, node, *[bar for bar in bars[: len(node.outputs)]])
    items = list(result) if isinstance(result, (tuple, list)) else [result]
    count = len(node.inputs) + len(node.captures)
    items = check_items("overriding adjoint", opdef(node.op), node, items + [None] * (count - len(items)), count)
    return [NO_GRADIENT if item is None else item for item in items]


def accumulate(b: DerivativeBuilder, parts: Sequence[Value]) -> Value:
    """Return the sum of cotangents of one value, at a cost linear in what they hold."""
    groups: dict[str, list[Value]] = {}
    for part in parts:
        op = part.producer.op
        combines = op not in ENTRIES and opdef(op).combine_rule is not None and not part.uses
        groups.setdefault(op if combines else "", []).append(part)
    rest = groups.pop("", [])
    for op, values in groups.items():
        rule = opdef(op).combine_rule
        rest.append(rule(b, [v.producer for v in values]) if rule and len(values) > 1 else values[0])
    return sum_of(b, rest)


def check_cotangent(node: Node, x: Value, x_bar: Value) -> None:
    """Check that a cotangent has the dtype, rank and known extents of its value."""
    if x_bar.type is x.type:
        return
    if x_bar.type.dtype != x.type.dtype or not _same_extents(x.type.shape, x_bar.type.shape):
        raise PassError(f"the adjoint rule of {node.op} gave {x_bar.type!r} for the cotangent of {x!r}", code="rule",
                        where=describe(node))


def _same_extents(a: tuple[DimLike, ...] | None, b: tuple[DimLike, ...] | None) -> bool:
    if a is None or b is None or a == b:
        return True
    return len(a) == len(b) and all(isinstance(x, Dim) or isinstance(y, Dim) or x == y for x, y in zip(a, b, strict=True))
