"""The tangent pass: appends the subgraph that carries tangents forward from inputs to outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowgrad.ir.body_derivatives import BodyDifferentiator
from flowgrad.ir.boundary import boundary, guarded
from flowgrad.ir.bulk import bulk
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import PassError, ValidationError
from flowgrad.ir.graph import CONSTANT, ENTRIES, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.inline import inline
from flowgrad.ir.ops.operands import sum_of, sum_of_present
from flowgrad.ir.ops.registry import NO_GRADIENT, OpDef, Refusal, Trait, opdef
from flowgrad.ir.reach import needed_nodes, path_nodes
from flowgrad.passes.activity import active_values, is_flat
from flowgrad.passes.adjoint import adjoint, apply_adjoint, partials_of
from flowgrad.passes.expand import expand_for_derivative
from flowgrad.passes.refusals import refusal_error, refusal_of

Tangent = Value | None


@bulk
@guarded("while differentiating")
def tangent(
    graph: Graph, pairs: Sequence[tuple[Value, Value]], of: Sequence[Value], bodies: BodyDifferentiator, *,
    in_place: bool = True, are_units: bool = False, pass_name: str = "tangent",
) -> list[Tangent]:
    """Append to ``graph`` the tangents of ``of`` for the values and tangents in ``pairs``.

    Forward accumulation: y_dot = sum over the inputs x of (dy/dx) x_dot. Returns one value per entry of ``of``, of
    exactly its type, or None where it does not depend on any x. Raises NotDifferentiableError like ``adjoint``,
    and where a path crosses a node with an adjoint rule of its own, whose tangent nobody gave. ``bodies`` differentiates
    subgraphs. Without ``in_place``, nodes with subgraphs stay as they are, and tangents come from nodes beside them: what
    is computed without tangents does not depend on them then, as is needed where these are about to be many at once.
    Of tangents that ``are_units``, unit vectors or sums of some, the zeros stay zero whatever they are multiplied by.
    """
    wrt = [x for x, _ in pairs]
    order, beside = expand_for_derivative(graph, wrt, of, forward=True)
    active = active_values(order, wrt)
    b = DerivativeBuilder(graph, bodies)
    b.in_place = in_place
    b.independent = all(x_dot.producer.op in ENTRIES for _, x_dot in pairs)
    dots: dict[Value, Value] = {}
    for x, x_dot in pairs:
        b.support.start(x_dot, is_unit=are_units)
        dots[x] = b.Add(dots[x], x_dot) if x in dots else x_dot
    given = dict(dots)
    refusals: list[tuple[Node, str]] = []
    for node in path_nodes(order, wrt, of):
        operands = [dots.get(v) if v is not None else None for v in (*node.inputs, *node.captures)]
        if is_flat(node) or all(d is None for d in operands):
            continue
        if node.adjoint_rule is not None:
            refusals.append((node, "its adjoint is overridden, so forward mode has no rule for it"))
            continue
        b.origin = graph.new_origin(pass_name, (node,))
        b.prefix = node.label
        for y, y_dot in zip(node.outputs, _node_tangents(b, node, operands), strict=False):
            if isinstance(y_dot, Refusal):
                refusals.append((node, y_dot.reason))
            elif y is not None and y_dot is not None and y_dot not in b.zeros:
                dots[y] = _named(b, y, _fitted(b, node, y, y_dot), given)
    if refusals:
        raise refusal_error(refusals, active)
    results = [dots.get(y) for y in of]
    b.sweep([*results, *(x_dot for _, x_dot in pairs)])
    for stand_in in beside:
        stand_in.restore(graph)
    return results


def _named(b: DerivativeBuilder, y: Value, y_dot: Value, given: dict[Value, Value]) -> Value:
    if y in given:
        return b.Add(y_dot, given[y])
    if y_dot.producer.key in {n.key for n in b.made[-1:]}:
        b.graph.rename(y_dot, b.graph.unique_name(f"{y.name}_dot"))
    return y_dot


def _fitted(b: DerivativeBuilder, node: Node, y: Value, y_dot: Value) -> Value:
    """Return ``y_dot`` with the shape of ``y``: a product with one broadcast operand may lack axes."""
    if y_dot.type.dtype != y.type.dtype:
        raise PassError(f"the tangent rule of {node.op} gave {y_dot.type!r} for {y!r}", code="rule", where=describe(node))
    definition = opdef(node.op)
    is_whole = definition.tangent_rule is None and Trait.LINEAR in definition.traits  # made of as many operands as y
    if is_whole or Trait.BROADCASTS not in definition.traits:
        return y_dot
    if y.type.shape is not None and y_dot.type.shape == y.type.shape:  # of unknown rank, equal types may differ in shape
        return y_dot
    return b.Expand(y_dot, b.shape(y))


def _node_tangents(b: DerivativeBuilder, node: Node, dots: Sequence[Tangent]) -> list[Any]:
    """Return one tangent, None (zero) or refusal per output of ``node``."""
    try:
        with boundary(node, "the tangent rule of", PassError, "rule"):
            return _tangents(b, node, dots)
    except ValidationError as error:
        return [refusal_of(node, error)] * len(node.outputs)


def _tangents(b: DerivativeBuilder, node: Node, dots: Sequence[Tangent]) -> list[Any]:
    definition = opdef(node.op)
    if definition.tangent_rule is not None:
        count = len(node.outputs)  # a rule may give the node more
        result = definition.tangent_rule(b, node, *dots)
        items = list(result) if isinstance(result, (tuple, list)) else [result]
        if len(items) == 1 and isinstance(items[0], Refusal):
            return items * len(node.outputs)
        if not count <= len(items) <= max(len(node.outputs), len(definition.outputs)):
            raise PassError(f"the tangent rule of {node.op} returned {len(items)} items for {count} outputs", code="rule",
                            where=describe(node))
        return items
    if Trait.LINEAR in definition.traits:
        return _linear(b, node, dots)
    if Trait.BILINEAR in definition.traits:
        return [_bilinear(b, node, dots)]
    if definition.partial_rule is not None:
        return [_by_partials(b, node, definition, dots)]
    if definition.adjoint_rule is not None:
        return transposed(b, node, dots)
    return [Refusal("it has no derivative rule")] * len(node.outputs)


def _linear(b: DerivativeBuilder, node: Node, dots: Sequence[Tangent]) -> list[Tangent]:
    inputs: list[Value | None] = []
    for x, x_dot in zip(node.inputs, dots, strict=False):
        is_operand = x is not None and x.type.dtype.carries
        inputs.append(x_dot if x_dot is not None else b.zero(x) if is_operand and x is not None else x)
    if not any(v.type.dtype.carries for v in node.results):
        return [None] * len(node.outputs)
    made = b.add_node(node.op, inputs, node.attributes, outputs=len(node.outputs))
    return list(made.outputs)


def _bilinear(b: DerivativeBuilder, node: Node, dots: Sequence[Tangent]) -> Tangent:
    x, y, *rest = node.inputs
    x_dot, y_dot = dots[:2]
    parts = []
    if x_dot is not None:
        parts.append(b.add(node.op, [x_dot, y, *rest], node.attributes))
    if y_dot is not None:
        parts.append(b.add(node.op, [x, y_dot, *rest], node.attributes))
    return sum_of(b, parts)


def _by_partials(b: DerivativeBuilder, node: Node, definition: OpDef, dots: Sequence[Tangent]) -> Any:
    parts = []
    for x_dot, partial in zip(dots, partials_of(b, definition, node), strict=True):
        if x_dot is None or partial is NO_GRADIENT:
            continue
        if isinstance(partial, Refusal):
            return partial
        parts.append(b.Mul(x_dot, partial))
    return sum_of_present(b, *parts)


def transposed(b: DerivativeBuilder, node: Node, dots: Sequence[Tangent]) -> list[Any]:
    """Return the tangents of ``node`` by transposing its adjoint, which is linear in y_bar.

    With x_bar = A(y_bar), the tangent is y_dot = A^T(x_dot): the adjoint of the adjoint with respect to y_bar. It is
    made in a graph of its own, so that the cost does not depend on the rest of the graph, then copied over.
    """
    scratch, twin, inside = _isolated(b.graph, node)
    inner = DerivativeBuilder(scratch, b.bodies)
    inner.prefix = node.label
    inner.wanted = tuple(d is not None for d in dots)
    bars = [scratch.add_input(scratch.unique_name(f"{y.name}_bar"), y.type)
            if y is not None and y.type.dtype.carries else None for y in twin.outputs]
    definition = opdef(node.op)
    padded = [*bars, *[None] * (len(definition.outputs) - len(bars))]
    seeds: list[tuple[Value, Value]] = []
    for x, x_bar, x_dot in zip((*twin.inputs, *twin.captures), apply_adjoint(inner, definition, twin, padded), dots,
                               strict=True):
        if x is None or x_dot is None or x_bar is NO_GRADIENT:
            continue
        if isinstance(x_bar, Refusal):
            return [x_bar] * len(node.outputs)
        if Trait.BROADCASTS in definition.traits:
            x_bar = inner.sum_to(x_bar, x)
        slot = scratch.add_input(scratch.unique_name(f"{x.name}_dot"), x.type)
        inside[slot] = x_dot
        seeds.append((x_bar, slot))
    present = [y_bar for y_bar in bars if y_bar is not None]
    found = adjoint(scratch, seeds, present, b.bodies, zero="allow") if seeds else [None] * len(present)
    _mirror_residuals(b, node, twin, inside)
    for y, y_bar in zip(twin.outputs, bars, strict=False):
        if y is not None and y_bar is not None:
            inside[y_bar] = inside[y]
    wanted = [v for v in found if v is not None]
    _check_transposed(scratch, node, wanted, present)
    copies = iter(inline(b, scratch, inside, wanted, skip=lambda n: n is twin))
    by_bar = {y_bar: next(copies) if v is not None else None for y_bar, v in zip(present, found, strict=True)}
    return [by_bar.get(y_bar) if y_bar is not None else None for y_bar in bars][: len(node.outputs)]


def _isolated(graph: Graph, node: Node) -> tuple[Graph, Node, dict[Value, Value]]:
    """Return a graph that holds a twin of ``node`` alone, the twin, and its values mapped to the originals."""
    scratch = Graph("transposition", graph.limits)
    scratch._next_dim = graph._next_dim
    copies: dict[Value, Value] = {}
    for x in dict.fromkeys(node.operands):
        if x.producer.op == CONSTANT and x.constant is not None:
            copies[x] = scratch.add_constant(x.constant, x.name)
        else:
            copies[x] = scratch.add_input(x.name or scratch.unique_name("x"), x.type)
            copies[x].symbolic = x.symbolic
    twin = scratch.add_node(
        node.op, [v and copies[v] for v in node.inputs],
        [None if y is None else (scratch.unique_name(y.name), y.type) for y in node.outputs], node.attributes,
        captures=[copies[v] for v in node.captures], subgraphs={k: g.copy() for k, g in node.subgraphs.items()},
    )
    inside = {copy: x for x, copy in copies.items()}
    inside.update((t, y) for t, y in zip(twin.outputs, node.outputs, strict=True) if t is not None and y is not None)
    return scratch, twin, inside


def _mirror_residuals(b: DerivativeBuilder, node: Node, twin: Node, inside: dict[Value, Value]) -> None:
    for index, value in enumerate(twin.outputs):
        if value is not None and value not in inside:
            inside[value] = b.residual(node, opdef(node.op).outputs[index])


def _check_transposed(scratch: Graph, node: Node, wanted: Sequence[Value], bars: Sequence[Value]) -> None:
    """Check that the transposed rule needs y_bar for its shape only: any other use means it is not linear in it."""
    # what only shapes depend on may be computed from y, which has the shape of y_bar
    order = [n for n in scratch.nodes() if Trait.SHAPE_ONLY not in opdef(n.op).traits]
    for user in reversed(needed_nodes(order, wanted)):
        if any(v in bars for v in user.operands):
            raise PassError(f"the adjoint rule of {node.op} is not linear in its cotangent ({describe(user)})", code="rule",
                            where=describe(node))
