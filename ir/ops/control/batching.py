"""If, Loop and Scan for many examples: their bodies are batched, and the states that come to differ between examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowgrad.ir.batching import BatchBuilder, looped
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.inline import inline
from flowgrad.ir.ops.control.loop_layout import Layout, dim_bindings, layout_of, outward
from flowgrad.ir.ops.registry import Trait, opdef, refuse
from flowgrad.ir.types import Dim, Shape


def if_batched(b: BatchBuilder, node: Node, xs: Sequence[Value | None]) -> Any:
    """Batch both branches if the examples share the condition; else choose from the results of both, where that is safe."""
    cond, captures = xs[0], [x for x in xs[1:] if x is not None]
    branches = [node.subgraphs[name] for name in ("then_branch", "else_branch")]
    if any(b.holds(x) and x.type.rank is None for x in captures):
        return looped(b, node, *xs)
    if b.holds(cond):
        return _chosen(b, node, branches, cond, captures)
    held = {i for i, x in enumerate(captures) if b.holds(x)}
    if not held:  # what is drawn inside of it differs
        return looped(b, node, *xs)
    lifted = set().union(*(b.bodies.body(b, branch, held, ())[1] for branch in branches))
    bodies = {name: b.bodies.body(b, node.subgraphs[name], held, lifted)[0] for name in node.subgraphs}
    made = b.add_node("If", [cond], node.attributes, outputs=len(node.outputs), captures=captures, subgraphs=bodies)
    return [y if i in lifted else b.same(y) for i, y in enumerate(made.outputs) if y is not None]


def _chosen(b: BatchBuilder, node: Node, branches: Sequence[Graph], cond: Value | None, captures: Sequence[Value]) -> Any:
    """Return the results of the branch that each example takes, from both branches of all if they are elementwise."""
    types = [[y.type for y in branch.outputs] for branch in branches]
    plain = all(t.shape is not None for t in types[0]) and types[0] == types[1] and cond is not None
    if not plain and _are_mistaken(*(_shapes(node, branch) for branch in branches)):
        return refuse("its branches give different shapes (of a derivative in reverse mode: what each keeps), and the examples may take "
                      "different ones: use forward mode, or differentiate what vmap makes")
    if not plain or not all(_is_safe(branch) for branch in branches) or node.input(0).type.rank != 0:
        return looped(b, node, cond, *captures)
    everything = set(range(len(types[0])))
    held = {i for i, x in enumerate(captures) if b.holds(x)}
    if not held:
        return looped(b, node, cond, *captures)
    results = []
    for branch in branches:
        body = b.bodies.body(b, branch, held, everything)[0]
        results.append(_inlined(b, body, captures))
    assert cond is not None
    return [b.Where(b.padded(cond, len(y.shape) - 1), y, z) for y, z in zip(*results, strict=True)]


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


