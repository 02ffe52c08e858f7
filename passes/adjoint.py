"""The adjoint pass: appends the reverse subgraph that carries cotangents from outputs back to what is asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from flowgrad.ir.builder import Builder
from flowgrad.ir.bulk import bulk
from flowgrad.ir.errors import FlowgradError, NotDifferentiableError, PassError
from flowgrad.ir.graph import ENTRIES, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import NO_GRADIENT, OpDef, Refusal, Trait, opdef
from flowgrad.ir.types import Dim, DimLike
from flowgrad.passes.expand import expand_for_derivative

if TYPE_CHECKING:
    from flowgrad.passes.bodies import BodyAdjoint, BodyTangent

Zero = Literal["error", "allow"]


class DerivativeBuilder(Builder):
    """A builder for derivative rules: it knows which values are symbolic zeros, so that products with them vanish."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.zeros: set[Value] = set()
        self.made: list[Node] = []
        self.residuals: list[Value] = []
        self.wanted: tuple[bool, ...] = ()
        """For rules of ops with subgraphs: which inputs, then which captures, need a cotangent."""
        self.independent = False
        """For tangent rules of ops with subgraphs: no tangent depends on a value of the graph, so that a forward node
        can take tangents as inputs without a cycle."""

    def zero(self, like: Value) -> Value:
        """Return a symbolic zero of the type of ``like``."""
        value = self.zeros_like(like)
        self.zeros.add(value)
        return value

    def is_zero(self, value: Value | None) -> bool:
        """Return whether ``value`` is absent or a symbolic zero."""
        return value is None or value in self.zeros

    def residual(self, node: Node, name: str) -> Value:
        """Return the residual ``name`` of a forward node, remembering it if it is new."""
        before = self.graph.version
        value = super().residual(node, name)
        if self.graph.version != before:
            self.residuals.append(value)
        return value

    def add_node(self, op: str, inputs: Sequence[Any], *arguments: Any, **keywords: Any) -> Node:
        """Add a node, noting whether its output is a symbolic zero."""
        node = super().add_node(op, inputs, *arguments, **keywords)
        self.made.append(node)
        if node.outputs and self._vanishes(node):
            self.zeros.update(v for v in node.outputs if v is not None)
        return node

    def add(self, op: str, inputs: Sequence[Any], *arguments: Any, **keywords: Any) -> Any:
        """Add a node and return its outputs; adding a symbolic zero returns the other operand."""
        if op in ("Add", "Sub") and len(inputs) == 2:
            x, y = inputs
            if isinstance(x, Value) and isinstance(y, Value):
                if y in self.zeros and x.type == y.type:
                    return x
                if op == "Add" and x in self.zeros and x.type == y.type:
                    return y
        return super().add(op, inputs, *arguments, **keywords)

    def _vanishes(self, node: Node) -> bool:
        traits = opdef(node.op).traits
        floats = [v for v in node.inputs if v is not None and v.type.dtype.is_float]
        if Trait.BILINEAR in traits:
            return any(v in self.zeros for v in floats[:2])
        return Trait.LINEAR in traits and bool(floats) and all(v in self.zeros for v in floats)

    def body_adjoint(self, body: Graph, **options: Any) -> BodyAdjoint | Refusal:
        """Return the forward and backward parts of a subgraph: see ``bodies.body_adjoint``."""
        from flowgrad.passes.bodies import body_adjoint

        return body_adjoint(body, **options)

    def body_tangent(self, body: Graph, dotted: Collection[int], links: Sequence[tuple[int, int]] = ()
                     ) -> BodyTangent | Refusal:
        """Return a subgraph extended by its tangents: see ``bodies.body_tangent``."""
        from flowgrad.passes.bodies import body_tangent

        return body_tangent(body, dotted, links)

    def sum_to(self, value: Value, x: Value) -> Value:
        """Sum the axes of ``value`` along which ``x`` was broadcast, down to the shape of ``x``."""
        axes = _broadcast_axes(value, x)
        if axes is None:
            return self.SumTo(value, self.shape(x))  # type: ignore[no-any-return]
        leading, inner = axes
        if leading or inner:
            summed = [*range(leading), *inner]
            value = self.ReduceSum(value, summed, keepdims=1 if inner else 0)
            if leading and inner:
                value = self.Squeeze(value, list(range(leading)))
        return value

    def sweep(self, keep: Sequence[Value | None]) -> None:
        """Remove the nodes this builder made, and residuals it asked for, that nothing uses."""
        kept = {v for v in keep if v is not None}
        for node in reversed(self.made):
            if node.key in self.graph.dag and not any(v is not None and (v.uses or v in kept) for v in node.outputs):
                self.graph.remove(node)
        for value in self.residuals:
            if not value.uses and value not in kept:
                self.graph.drop_output(value)
        self.made, self.residuals = [], []


def _broadcast_axes(value: Value, x: Value) -> tuple[int, list[int]] | None:
    """Return (leading axes, further axes) to sum, or None where only the run can tell."""
    wide, narrow = value.type.shape, x.type.shape
    if wide is None or narrow is None or len(wide) < len(narrow):
        return None
    leading = len(wide) - len(narrow)
    inner = []
    for axis, (w, n) in enumerate(zip(wide[leading:], narrow, strict=True)):
        if w == n or (isinstance(n, int) and n != 1):
            continue
        if n != 1 and w != 1:
            return None
        if n == 1 and w != 1:
            inner.append(axis + leading)
    return leading, inner


@bulk
def adjoint(
    graph: Graph,
    seeds: Sequence[tuple[Value, Value]],
    wrt: Sequence[Value],
    *,
    zero: Zero = "error",
    pass_name: str = "adjoint",
    overrides: Mapping[int, Any] | None = None,
) -> list[Value | None]:
    """Append to ``graph`` the cotangents of ``wrt`` for the outputs and cotangents in ``seeds``.

    Returns one value per entry of ``wrt``: of exactly its type, or None where no path leads to it. Reverse
    accumulation: x_bar = sum over the users of x of (dy/dx)^T y_bar. Raises NotDifferentiableError, naming every
    offending op with a path, before it returns anything. ``overrides`` maps node keys to other adjoint rules.
    """
    return _Reverse(graph, seeds, wrt, pass_name, overrides or {}).run(zero)


class _Reverse:
    def __init__(self, graph: Graph, seeds: Sequence[tuple[Value, Value]], wrt: Sequence[Value], pass_name: str,
                 overrides: Mapping[int, Any]) -> None:
        self.graph = graph
        self.overrides = overrides
        self.wrt = list(wrt)
        self.seeds = list(seeds)
        self.b = DerivativeBuilder(graph)
        self.pass_name = pass_name
        self.order = expand_for_derivative(graph, wrt, [y for y, _ in seeds], keep=overrides)
        self.active = active_values(self.order, wrt, overrides)
        self.named = {y_bar for _, y_bar in seeds}
        self.bars: dict[Value, list[Value]] = {}
        self.refusals: list[tuple[Node, str]] = []
        self.blocked: dict[Node, None] = {}

    def run(self, zero: Zero) -> list[Value | None]:
        for y, y_bar in self.seeds:
            self.bars.setdefault(y, []).append(y_bar)
        for node in reversed(self.order):
            if any(v in self.bars and v in self.active for v in node.outputs if v is not None):
                self._visit(node)
        results = [self._collect(x) if x in self.bars else None for x in self.wrt]
        if self.refusals:
            raise refusal_error(self.refusals, self.active)
        self._check_zero(results, zero)
        self.b.sweep([*results, *(y_bar for _, y_bar in self.seeds)])
        return results

    def _visit(self, node: Node) -> None:
        definition = opdef(node.op)
        operands = [*node.inputs, *node.captures]
        if not any(v in self.active for v in operands if v is not None):
            return
        self.b.origin = self.graph.new_origin(self.pass_name, (node,))
        self.b.prefix = node.label
        self.b.wanted = tuple(v in self.active for v in operands)
        bars = [None if v is None else self._collect(v) if v in self.bars else self._absent(v) for v in node.outputs]
        bars += [None] * (len(definition.outputs) - len(bars))
        contributions = apply_override(self.b, self.overrides[node.key], node, bars) if node.key in self.overrides \
            else apply_adjoint(self.b, definition, node, bars)
        for x, x_bar in zip(operands, contributions, strict=True):
            self._contribute(node, definition, x, x_bar)

    def _absent(self, value: Value) -> Value | None:
        return self.b.zero(value) if value.type.dtype.is_float else None

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

    def _check_zero(self, results: Sequence[Value | None], zero: Zero) -> None:
        if zero == "allow" or any(r is not None for r in results):
            return
        blocked = blocking_nodes(self.graph, self.wrt, [y for y, _ in self.seeds])
        if blocked:
            listing = "; ".join(f"{n.op} at {n.label!r}" for n in blocked[:10])
            raise NotDifferentiableError(
                f"every path from {names_of(self.wrt)} to {names_of([y for y, _ in self.seeds])} crosses integer or "
                f"piecewise-constant operators ({listing}): the derivative is zero. zero='allow' gives zeros.",
                code="zero",
            )


def apply_adjoint(b: DerivativeBuilder, definition: OpDef, node: Node, bars: Sequence[Value | None]) -> list[Any]:
    """Return what the adjoint rule of ``node`` says, one item per input and capture."""
    count = len(node.inputs) + len(node.captures)
    if Trait.ZERO in definition.traits:
        return [NO_GRADIENT] * count
    if definition.adjoint_rule is not None:
        result = definition.adjoint_rule(b, node, *bars)
        items = list(result) if isinstance(result, (tuple, list)) else [result]
        if len(items) == 1 and isinstance(items[0], Refusal):
            return items * count
        if len(items) < count or (len(items) > count and not definition.inputs):
            raise PassError(f"the adjoint rule of {node.op} returned {len(items)} items for {count} inputs", code="rule")
        return items[:count]
    if definition.partial_rule is not None:
        return [p if p is NO_GRADIENT or isinstance(p, Refusal) else b.Mul(bars[0], p)
                for p in definition.partial_rule(b, node)][:count]
    return [Refusal("it has no derivative rule")] * count


def apply_override(b: DerivativeBuilder, rule: Any, node: Node, bars: Sequence[Value | None]) -> list[Any]:
    """Return what a user's rule says in place of the op's own; None stands for zero."""
    result = rule(b, node, *[bar for bar in bars[: len(node.outputs)]])
    items = list(result) if isinstance(result, (tuple, list)) else [result]
    items += [None] * (len(node.inputs) + len(node.captures) - len(items))
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
    if len(rest) == 1:
        return rest[0]
    return b.Add(*rest) if len(rest) == 2 else b.Sum(*rest)  # type: ignore[no-any-return]


def active_values(order: Sequence[Node], wrt: Sequence[Value], overrides: Collection[int] = ()) -> set[Value]:
    """Return the float values that depend differentiably on ``wrt``, ``wrt`` included."""
    active = set(wrt)
    for node in order:
        if not any(v in active for v in (*node.inputs, *node.captures) if v is not None):
            continue
        if Trait.ZERO not in opdef(node.op).traits or node.key in overrides:
            active.update(v for v in node.outputs if v is not None and v.type.dtype.is_float)
    return active


def blocking_nodes(graph: Graph, wrt: Sequence[Value], of: Sequence[Value]) -> list[Node]:
    """Return the nodes at which derivatives stop on the paths from ``wrt`` to ``of``."""
    order = graph.nodes()
    reached = set(wrt)
    for node in order:
        if any(v in reached for v in (*node.inputs, *node.captures) if v is not None):
            reached.update(v for v in node.outputs if v is not None)
    needed = set(of)
    active = active_values(order, wrt)
    stops: list[Node] = []
    for node in reversed(order):
        if not any(v in needed for v in node.outputs if v is not None):
            continue
        operands = [v for v in (*node.inputs, *node.captures) if v is not None]
        needed.update(operands)
        if any(v in active for v in operands) and not any(v in active for v in node.outputs if v is not None):
            stops.append(node)
    if not any(y in reached for y in of):
        return []
    return stops[::-1] or _blocking_subgraphs(order, reached, needed)


def _blocking_subgraphs(order: Sequence[Node], reached: set[Value], needed: set[Value]) -> list[Node]:
    """Return the nodes in whose subgraphs derivatives must have stopped, if they stopped nowhere else."""
    from flowgrad.passes.bodies import dependent_outputs

    found = []
    for node in order:
        if node.subgraphs:
            dependent = dependent_outputs(node, reached)
            if any(y in needed for k, y in enumerate(node.outputs) if y is not None and k in dependent):
                found.append(node)
    return found


def check_cotangent(node: Node, x: Value, x_bar: Value) -> None:
    """Check that a cotangent has the dtype, rank and known extents of its value."""
    if x_bar.type.dtype != x.type.dtype or not _same_extents(x.type.shape, x_bar.type.shape):
        raise PassError(f"the adjoint rule of {node.op} gave {x_bar.type!r} for the cotangent of {x!r}", code="rule",
                        where=describe(node))


def _same_extents(a: tuple[DimLike, ...] | None, b: tuple[DimLike, ...] | None) -> bool:
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(isinstance(x, Dim) or isinstance(y, Dim) or x == y for x, y in zip(a, b, strict=True))


def refusal_error(refusals: Sequence[tuple[Node, str]], active: set[Value]) -> FlowgradError:
    """Return the error that names all refusing nodes, each with its reason and one path from ``wrt``."""
    lines = []
    for node, reason in list(dict.fromkeys(refusals))[:20]:
        lines.append(f"\n  {describe(node)}\n    {reason}; reached by {_path(node, active)}")
    return NotDifferentiableError(f"not differentiable:{''.join(lines)}", code="refused")


def _path(node: Node, active: set[Value]) -> str:
    steps = [node.label]
    while True:
        back = next((v for v in (*node.inputs, *node.captures) if v in active), None)
        if back is None:
            break
        steps.append(back.name)
        node = back.producer
    shown = steps[::-1]
    return " -> ".join(shown if len(shown) <= 8 else [*shown[:4], "...", *shown[-3:]])


def names_of(values: Sequence[Value]) -> str:
    """Return the names of values for a message."""
    return ", ".join(repr(v.name) for v in values[:8]) + (", ..." if len(values) > 8 else "")
