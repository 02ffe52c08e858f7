"""If, Loop and Scan for many examples: their bodies are batched, and the states that come to differ between examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowgrad.ir.batching import BatchBuilder, looped
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.infer import infer
from flowgrad.ir.inline import inline
from flowgrad.ir.ops.control.loop_layout import Layout, dim_bindings, layout_of, outward
from flowgrad.ir.ops.operands import joined
from flowgrad.ir.ops.registry import Trait, opdef, refuse
from flowgrad.ir.types import UNKNOWN, Dim, Shape

BRANCHES = ("then_branch", "else_branch")


def if_batched(b: BatchBuilder, node: Node, xs: Sequence[Value | None]) -> Any:
    """Batch both branches if the examples share the condition; else choose from the results of both, where that is safe."""
    cond, captures = xs[0], [x for x in xs[1:] if x is not None]
    branches = [node.subgraphs[name] for name in BRANCHES]
    if any(b.holds(x) and x.type.rank is None for x in captures):
        return looped(b, node, *xs)
    if b.holds(cond):
        return _chosen(b, node, cond, captures)
    held = {i for i, x in enumerate(captures) if b.holds(x)}
    if not held:  # what is drawn inside of it differs
        return looped(b, node, *xs)
    lifted = set().union(*(b.bodies.body(b, branch, held, ())[1] for branch in branches))
    bodies = {name: b.bodies.body(b, node.subgraphs[name], held, lifted)[0] for name in node.subgraphs}
    made = b.add_node("If", [cond], node.attributes, outputs=len(node.outputs), captures=captures, subgraphs=bodies)
    return [y if i in lifted else b.same(y) for i, y in enumerate(made.outputs) if y is not None]


def _chosen(b: BatchBuilder, node: Node, cond: Value | None, captures: Sequence[Value]) -> Any:
    """Return the results of the branch that each example takes, from both branches of all if they are elementwise."""
    _make_fillers_whole(b.graph, node)
    branches = [node.subgraphs[name] for name in BRANCHES]
    types = [[y.type for y in branch.outputs] for branch in branches]
    plain = all(t.shape is not None for t in types[0]) and types[0] == types[1] and cond is not None
    if not plain and _are_mistaken(*(_shapes(node, branch) for branch in branches)):
        return refuse("its branches give different shapes, as far as types tell, and the examples may take different ones: "
                      "give the results of both one shape (Reshape); of a derivative, in which what branches keep differs, "
                      "use forward mode, forward over reverse for a second one, or differentiate what vmap makes")
    everything = set(range(len(types[0])))
    held = {i for i, x in enumerate(captures) if b.holds(x)}
    if not plain or not held or not all(_is_safe(branch) for branch in branches) or node.input(0).type.rank != 0:
        return looped(b, node, cond, *captures)
    results = []
    for branch in branches:
        body = b.bodies.body(b, branch, held, everything)[0]
        results.append(_inlined(b, body, captures))
    assert cond is not None
    return [b.Where(b.padded(cond, len(y.shape) - 1), y, z) for y, z in zip(*results, strict=True)]


def _make_fillers_whole(graph: Graph, node: Node) -> None:
    """Give empty results of a branch that stand for what the other branch keeps the shape of that.

    Then the results of all examples have one shape. They may hold anything: where the branch is taken, nothing reads them.
    """
    made = {name: branch.copy() for name, branch in node.subgraphs.items()}
    changed = False
    for name, other in (BRANCHES, BRANCHES[::-1]):
        for k, (entry, theirs) in enumerate(zip(made[name].output_entries, made[other].output_entries, strict=True)):
            stands_in = _is_filler(entry.input(0)) and not _is_filler(theirs.input(0))
            if not stands_in or not _is_unread(node.outputs[k], node.input(0), name):
                continue
            value = _filler(made[name], theirs.input(0), made[other].inputs)
            if value is not None:
                made[name].set_inputs(entry, [value])
                changed = True
    if changed:
        graph.set_subgraphs(node, made, node.captures)
    for y, type_ in zip(node.outputs, infer(node), strict=False):
        if y is not None and type_ is not None and type_.shape is not None and UNKNOWN not in type_.shape:
            graph.set_type(y, type_)


def _is_filler(y: Value) -> bool:
    """Return whether ``y`` has no elements, whatever is fed."""
    return 0 in (y.type.shape or ())


def _is_unread(y: Value | None, cond: Value | None, name: str) -> bool:
    """Return whether ``y`` is read by Ifs on the condition ``cond`` alone (and in bodies of loops), but not by branches called
    ``name`` of these."""
    if y is None:
        return True
    for (_, slot), user in y.uses.items():
        if slot >= 0 or not user.subgraphs:
            return False
        if user.op == "If" and user.input(0) is cond:
            if user.subgraphs[name].inputs[-1 - slot].uses:
                return False
            continue
        for body in user.subgraphs.values():
            formals = dict(zip(user.captures, body.inputs[len(body.inputs) - len(user.captures):], strict=True))
            if not _is_unread(formals[y], None if cond is None else formals.get(cond), name):
                return False
    return True


def _filler(branch: Graph, like: Value, formals: Sequence[Value]) -> Value | None:
    """Return zeros of the type of ``like``, a value of the other branch, whose ``formals`` are of what both capture."""
    b = Builder(branch, prefix="filler")
    parts = []
    for dim in like.type.shape or ():
        place = next(((i, axis) for i, x in enumerate(formals) for axis, d in enumerate(x.type.shape or ()) if d == dim), None)
        if isinstance(dim, int):
            parts.append(b.ints([dim]))
        elif place is not None and dim is not UNKNOWN:
            parts.append(b.extent(branch.inputs[place[0]], place[1]))
        else:
            return None
    if like.type.shape is None:
        return None
    return b.add_node("Expand", [b.scalar(0, like.type.dtype), joined(b, parts)], types=[like.type]).output()


def _shapes(node: Node, branch: Graph) -> list[Shape | None]:
    """Return the shapes of what a branch gives, in terms of the values around the node."""
    bindings = dim_bindings(branch.inputs, node.captures)
    return [outward(y.type, bindings).shape for y in branch.outputs]


def _are_mistaken(shapes: Sequence[Shape | None], others: Sequence[Shape | None]) -> bool:
    """Return whether a named extent may be taken for what the other branch has in its place."""
    return any(a != z and any(isinstance(n, Dim) for n in (*(a or ()), *(z or ()))) for a, z in zip(shapes, others, strict=True))


def _is_safe(branch: Graph) -> bool:
    """Return whether a branch can be run for examples that do not take it: it is elementwise on floats, so it cannot fail."""
    return all(Trait.ELEMENTWISE in opdef(n.op).traits and Trait.RANDOM not in opdef(n.op).traits and n.adjoint_rule is None
               and not any(v.type.dtype.is_integer for v in n.results) for n in branch.nodes())


def _inlined(b: BatchBuilder, body: Graph, captures: Sequence[Value]) -> list[Value]:
    return inline(b, body, dict(zip(body.inputs, captures, strict=True)), body.outputs)


def loop_batched(b: BatchBuilder, node: Node, xs: Sequence[Value | None]) -> Any:
    """Batch the body of a Loop or Scan; a state that an iteration makes different between the examples is lifted at once.

    Where the examples do not share the number of iterations, they are run one by one.
    """
    layout, body = layout_of(node), node.subgraphs["body"]
    lead = layout.lead_formals
    if any(b.holds(x) for x in xs[:min(lead, len(node.inputs))]) or any(b.holds(x) and x.type.rank is None for x in xs if x is not None):
        return looped(b, node, *xs)
    operands = [*xs[lead:len(node.inputs)], *xs[len(node.inputs):]]
    held = {lead + i for i, x in enumerate(operands) if b.holds(x)}
    if not held or not _stacks(layout, body):
        return looped(b, node, *xs)
    while True:
        changed = b.bodies.body(b, body, held, ())[1]
        grown = {i for i, o in layout.links if o in changed and i not in held}
        if not grown:
            break
        if any(body.inputs[i].type.rank is None for i in grown):
            return looped(b, node, *xs)
        held |= grown
    if layout.lead_outputs and 0 in changed:
        return looped(b, node, *xs)
    lifted = changed | {o for i, o in layout.links if i in held}
    batched = b.bodies.body(b, body, held, lifted)[0]
    inputs = [x if x is None or lead + i not in held else b.lifted(x) for i, x in enumerate(xs[lead:len(node.inputs)])]
    captures = [x for x in xs[len(node.inputs):] if x is not None]
    made = b.add_node(node.op, [*xs[:min(lead, len(node.inputs))], *inputs], _shifted(layout, node, body, held, lifted), outputs=len(node.outputs),
                      captures=captures, subgraphs={"body": batched})
    return _results(b, layout, node, made, lifted)


def _stacks(layout: Layout, body: Graph) -> bool:
    """Return whether it is known where the axis of the examples goes in what is stacked."""
    return all(y.type.rank is not None for y in body.outputs[layout.first_scan_output:])


def _shifted(layout: Layout, node: Node, body: Graph, held: set[int], lifted: set[int]) -> dict[str, Any]:
    """Return the attributes of a Scan, whose axes count that of the examples too."""
    if node.op == "Loop":
        return dict(node.attributes)
    first = layout.first_scan_input
    reads, writes = [], []
    for k in range(layout.scan_inputs):
        rank, axis = node.input(layout.states + k).type.rank or 0, layout.input_axis(k)
        reads.append(axis % rank + 1 if first + k in held and rank else axis)
    for k, y in enumerate(body.outputs[layout.first_scan_output:]):
        axis = layout.output_axis(k) % ((y.type.rank or 0) + 1)
        writes.append(axis + (layout.first_scan_output + k in lifted))
    return {**node.attributes, "scan_input_axes": tuple(reads), "scan_output_axes": tuple(writes)}


def _results(b: BatchBuilder, layout: Layout, node: Node, made: Node, lifted: set[int]) -> list[Value | None]:
    """Return the outputs with the axis of the examples first: a Loop stacks its iterations before it."""
    found: list[Value | None] = []
    for i, y in enumerate(made.outputs):
        if y is None or node.outputs[i] is None:
            found.append(None)
        elif layout.lead_outputs + i not in lifted:
            found.append(b.same(y))
        elif node.op == "Loop" and i >= layout.states:
            found.append(b.Transpose(y, perm=[1, 0, *range(2, len(y.shape))]))
        else:
            found.append(y)
    return found


