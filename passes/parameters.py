"""Which values count as parameters, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flowgrad.ir.graph import BUFFER, CONSTANT, LITERAL, OUTPUT, PARAMETER, Graph, Node, Value
from flowgrad.ir.names import LITERAL_NAME
from flowgrad.ir.ops.registry import Trait, opdef
from flowgrad.ir.reach import dependents
from flowgrad.passes.untrained import passes_no_change, untrained


@dataclass(frozen=True)
class Candidate:
    """A float value that could be a parameter, whether it counts as one, and why."""

    value: Value
    included: bool
    reason: str


@dataclass(frozen=True)
class _Use:
    """A node that uses a value, and whether it takes it as a setting rather than as an operand."""

    node: Node
    is_setting: bool


def candidates(graph: Graph) -> list[Candidate]:
    """Return every parameter candidate of ``graph``: its named float constants, then computed frontier values.

    The frontier lies between what depends on no graph input and what does; an output that depends on none lies on it
    too, so that a model without inputs has parameters. Constant nodes hold the numbers of formulas, matrices apart, unless a
    model has most of its matrices there: then those of more than one element are weights too. A frontier value that is
    computed from named float constants stands for those; one computed from none stands for itself: that is a weight only where
    most matrices of a model are such (made by ConstantOfShape), else a mask, a grid, or a first state.
    Scalars count, unless their name is one that exporters give to literals. Masks and tables of angles do not count.
    Linear in nodes.
    """
    order = graph.nodes()
    fed = dependents(order, graph.inputs)
    uses = _uses_of_candidates(graph, order, fed)
    judged = {value: _judge(value, use) for value, use in uses.items()}
    judged |= {v: Candidate(v, True, f"a weight of {use.node.op} at {use.node.label!r}, in a Constant node")
               for v, use in _literal_weights(uses, judged).items()}
    judged |= {v: Candidate(v, False, "made of numbers of the graph alone, where weights are stored") for v in _made(uses, judged)}
    found = _without_untrained(judged)
    for value in graph.constants:
        if value.name and value.type.dtype.is_float and value not in found:
            found[value] = Candidate(value, value.producer.role == PARAMETER, "no output needs it")
    places = {v: i for i, v in enumerate(graph.constants)}
    return sorted(found.values(), key=lambda c: (places.get(c.value, len(places)), c.value.producer.key))


def _without_untrained(found: dict[Value, Candidate]) -> dict[Value, Candidate]:
    """Return the candidates with those out that no training gives, unless they were named before."""
    weights = [v for v, c in found.items() if c.included and v.producer.role != PARAMETER]
    return found | {v: Candidate(v, False, reason) for v, reason in untrained(weights).items()}


def parameters(graph: Graph) -> list[Value]:
    """Return the values that ``"params"`` stands for."""
    return [c.value for c in candidates(graph) if c.included]


def _uses_of_candidates(graph: Graph, order: Sequence[Node], fed: set[Value]) -> dict[Value, _Use]:
    """Return the candidates that outputs need, each with the use that speaks most for it."""
    named = [v for v in graph.constants if v.name and v.type.dtype.is_float]
    sources = [v for v in named if v.producer.role != LITERAL or v.type.size != 1]
    computed = dependents(order, sources, keeps=lambda v: v.type.dtype.carries)
    uses: dict[Value, _Use] = {}
    for value, use in _frontier(graph, order, fed):
        _note(uses, value, use)
    for node in reversed(order):  # from the frontier back to the constants that its values are computed from
        restores = Trait.RESTORES in opdef(node.op).traits
        made = [uses[v] if restores and not uses[v].is_setting else uses.pop(v)
                for v in node.results if v in uses and v in computed]
        if made:
            whole = next((use for use in made if not use.is_setting), made[0])
            for value, use in _uses(node):
                if value in computed:
                    _note(uses, value, use if use.is_setting else whole)
    return {v: use for v, use in uses.items() if v.name and v.type.dtype.is_float}


def _note(uses: dict[Value, _Use], value: Value, use: _Use) -> None:
    known = uses.get(value)
    if known is None or (known.is_setting and not use.is_setting):
        uses[value] = use


def _frontier(graph: Graph, order: Sequence[Node], fed: set[Value]) -> Iterable[tuple[Value, _Use]]:
    """Return the floats, and sequences of them, that depend on no input, each with what uses it that does, or is an output."""
    for node in order:
        if any(v in fed for v in node.results):
            yield from ((v, use) for v, use in _uses(node) if v not in fed)
    for entry in graph.output_entries:
        if entry.input(0) not in fed and entry.input(0).type.dtype.carries:
            yield entry.input(0), _Use(entry, is_setting=False)


def _uses(node: Node) -> list[tuple[Value, _Use]]:
    """Return the operands of a node that carry floats; what only comparisons and steps take is a setting too.

    So is what is chosen only where it equals something: that passes on no change.
    """
    definition = opdef(node.op)
    steps = Trait.ZERO in definition.traits
    operands = [*enumerate(node.inputs), *((-1, v) for v in node.captures)]
    return [(v, _Use(node, steps or slot in definition.settings or passes_no_change(node, slot)))
            for slot, v in operands if v is not None and v.type.dtype.carries]


def _literal_weights(uses: Mapping[Value, _Use], judged: Mapping[Value, Candidate]) -> dict[Value, _Use]:
    """Return the contents of Constant nodes that are weights.

    Those are matrices that something else than an elementwise operator takes, one number all over apart. Where a file has more
    of these in Constant nodes than elsewhere, or no other weights, all that have several elements are.
    """
    several = {v: use for v, use in uses.items() if _is_literal(v) and v.type.size != 1 and not use.is_setting}
    matrices = {v: use for v, use in several.items() if _is_matrix(v, use) and not _is_filled(v)}
    elsewhere = sum(c.included and _is_matrix(v, uses[v]) for v, c in judged.items() if v.producer.op == CONSTANT)
    others = any(c.included for c in judged.values())
    return several if len(matrices) > elsewhere or not others else matrices


def _made(uses: Mapping[Value, _Use], judged: Mapping[Value, Candidate]) -> list[Value]:
    """Return what is computed from numbers of the graph alone, where at least as many matrices that count as weights are stored."""
    made, stored = [], 0
    for value, candidate in judged.items():
        if candidate.included and value.producer.op != CONSTANT:
            made.append(value)
        elif candidate.included:
            stored += _is_matrix(value, uses[value])
    return made if stored >= max(1, sum(_is_matrix(v, uses[v]) for v in made)) else []


def _is_literal(value: Value) -> bool:
    return value.producer.op == CONSTANT and value.producer.role == LITERAL


def _is_filled(value: Value) -> bool:
    data = value.producer.data
    return data is not None and data.size > 0 and bool((data == data.flat[0]).all())


def _is_matrix(value: Value, use: _Use) -> bool:
    """Return whether a value has several axes, and an operator sums or gathers along them."""
    axes = sum(n != 1 for n in value.type.shape or ())
    return axes > 1 and use.node.op != OUTPUT and Trait.BROADCASTS not in opdef(use.node.op).traits


def sharing(value: Value) -> str:
    """Return the uses of a value that has several, as text; "" for one that has one."""
    uses = [(user, slot) for (_, slot), user in value.uses.items() if user.op != OUTPUT and not _asks_shape(user)]
    if len(uses) < 2:
        return ""
    shown = ", ".join(f"{_slot_name(user, slot)} at {user.label!r}" for user, slot in uses[:4])
    return f"{len(uses)} uses: {shown}{', ...' if len(uses) > 4 else ''}"


def _asks_shape(user: Node) -> bool:
    return not any(v.type.dtype.is_float for v in user.results)


def _slot_name(user: Node, slot: int) -> str:
    names = opdef(user.op).inputs
    return f"{user.op} as {names[slot]}" if 0 <= slot < len(names) else user.op


def _judge(value: Value, use: _Use) -> Candidate:
    found = _judged(value, use)
    uses = sharing(value) if found.included else ""
    return Candidate(value, True, f"{found.reason}; shared by {uses}") if uses else found


def _judged(value: Value, use: _Use) -> Candidate:
    entry, user = value.producer, use.node
    if entry.role == PARAMETER:
        return Candidate(value, True, "named in wrt before")
    if entry.role == BUFFER:
        return Candidate(value, False, "a buffer: the file says that it is not trained")
    if entry.op == CONSTANT and entry.role == LITERAL:
        return Candidate(value, False, "a literal of the graph")
    if use.is_setting:
        return Candidate(value, False, f"a setting of {user.op} at {user.label!r}, not a weight")
    if value.type.rank == 0 and LITERAL_NAME.fullmatch(value.name):
        return Candidate(value, False, "a single number with a name that exporters give to literals")
    if user.op == OUTPUT:
        return Candidate(value, True, f"the output {user.name!r} itself")
    return Candidate(value, True, f"a weight of {user.op} at {user.label!r}")
