"""Transforms that change what is differentiated: picked scalars, stopped gradients, other adjoint rules, composition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flowgrad.ir.arguments import check_kind, check_mapping, is_whole
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, suggestion
from flowgrad.ir.graph import ENTRIES, Graph, Node, Value
from flowgrad.ir.inline import inline
from flowgrad.ir.ops.registry import opdef
from flowgrad.ir.reach import needed_nodes
from flowgrad.ir.types import Shape, Type, merge_types
from flowgrad.model import Model
from flowgrad.passes.selection import Names, Pick, as_list, check_whole, find_value
from flowgrad.transforms.quantization import pass_quantization

Rule = Callable[..., Any]


def pick(value: str, index: str | int = "target") -> Pick:
    """Return a scalar to differentiate: the sum of one picked entry along the last axis of ``value``.

    With a name, ``index`` becomes an int64 input of the shape of ``value`` without its last axis (an input of that name
    is used if there is one); with a number, that entry is picked everywhere, and with ``"argmax"`` the greatest one (the first
    of several).

    Examples:
        >>> picked = fg.grad(model, of=fg.pick("logits", index="label"), wrt="x")
        >>> picked(batch, label=np.array([0, 2]))["x_grad"].shape
        (2, 4)
    """
    if not is_whole(index) and not (isinstance(index, str) and index):
        raise InputError(f"index is the name of an input or a number, got {index!r}", code="option")
    return Pick(value, index)


def stop_gradient(model: Model, names: Names) -> Model:
    """Return a model through whose values ``names`` no derivative passes. InputError for an unknown name.

    Examples:
        >>> product = fg.load(b'''graph @p (%x: f32[]) -> (%y: f32[]) {
        ...     %s: f32[] = Sin(%x)
        ...     %y: f32[] = Mul(%s, %x)
        ... }''')
        >>> fg.grad(fg.stop_gradient(product, "s"))(x=np.float32(0.5))["x_grad"].round(4)    # sin(x), and no x cos(x)
        np.float32(0.4794)
    """
    check_kind("model", model, Model)
    graph = model.graph.copy()
    b = Builder(graph)
    for name in as_list(names):
        value = check_whole(find_value(graph, name))
        b.prefix, b.origin = value.name, graph.new_origin("stop_gradient", (value.producer,))
        stopped = b.StopGradient(value)
        graph.replace_uses(value, stopped, only=lambda n, made=stopped.producer: n is not made)  # type: ignore[misc]
    return model.with_graph(graph)


def straight_through(b: Builder, node: Node, y_bar: Value) -> Any:
    """An adjoint rule for ``override_adjoint``: x_bar = y_bar, as if the op were the identity.

    Examples:
        >>> signs = fg.load(b"graph @s (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Sign(%x) }")
        >>> through = fg.override_adjoint(signs, fg.straight_through, op="Sign")
        >>> fg.vjp(through)(x=np.array([3, -4], np.float32), y_grad=np.array([5, 6], np.float32))["x_grad"]
        array([5., 6.], dtype=float32)
    """
    return (y_bar, *[None] * (len(node.inputs) - 1))


def guided(b: Builder, node: Node, y_bar: Value) -> Any:
    """An adjoint rule for ``override_adjoint`` on Relu: only positive cotangents pass, where the input was positive.

    Examples:
        >>> classifier = fg.load("docs/data/shapes.onnx")
        >>> guided = fg.override_adjoint(classifier, fg.guided, op="Relu")
        >>> fg.grad(guided, of=fg.pick("logits", 0), wrt="x")(x=np.zeros((1, 1, 16, 16), np.float32))["x_grad"].shape
        (1, 1, 16, 16)
    """
    zero = b.filled(0, y_bar)
    passes = b.And(b.Greater(node.input(0), zero), b.Greater(y_bar, zero))
    return (b.Where(passes, y_bar, zero),)


def override_adjoint(model: Model, rule: Rule, *, op: str = "", names: Names = ()) -> Model:
    """Return a model whose nodes of ``op`` (those in subgraphs too), or those that make the values ``names``, have another
    adjoint rule.

    ``rule(b, node, *y_bars)`` returns one cotangent, or None for zero, per input: ``straight_through``, ``guided``, or
    your own. The rule lives in memory, not in files: differentiate first, then save. Tangents are refused there.
    ``straight_through`` of operators that quantize does for these what ``through_quantization`` does for all.
    Raises InputError if nothing matches.

    Examples:
        >>> rounded = fg.load(b"graph @r (%x: f32[]) -> (%y: f32[]) { %y: f32[] = Round(%x) }")
        >>> through = fg.override_adjoint(rounded, fg.straight_through, op="Round")
        >>> fg.grad(through)(x=np.float32(0.3))["x_grad"]
        array(1., dtype=float32)
    """
    if not callable(rule):
        raise InputError(f"an adjoint rule is a function rule(b, node, *y_bars), not {type(rule).__name__}", code="type")
    if not op and not names:
        raise InputError("override_adjoint needs op= or names=: whose adjoint to override", code="name")
    graph = model.graph.copy()
    chosen = [(graph, check_whole(find_value(graph, n)).producer) for n in as_list(names)]
    chosen += [(inner, node) for inner, node in graph.walk() if op and node.op == op]
    if not chosen:
        raise InputError(f"no node of op {op!r}{suggestion(op, {n.op for _, n in graph.walk()})}", code="name")
    if rule is straight_through and all(_rounds(node) for _, node in chosen):
        pass_quantization(graph, [node for _, node in chosen])
        return model.with_graph(graph)
    for inner, node in chosen:
        if node.op in ENTRIES:
            raise InputError(f"{node.label!r} is computed by no node: it has no adjoint rule", code="name")
        if not any(v.type.dtype.is_float for v in node.results):
            raise InputError(f"{node.op} at {node.label!r} gives no floats, so no cotangent reaches it; "
                             "through_quantization passes what is quantized", code="name")
        inner.set_adjoint_rule(node, rule)
    return model.with_graph(graph)


def _rounds(node: Node) -> bool:
    """Return whether a node gives integers that stand for reals."""
    integers = not any(v.type.dtype.is_float for v in node.results)
    return integers and node.op not in ENTRIES and opdef(node.op).unrounded_rule is not None


def compose(first: Model, second: Model, wires: Mapping[str, str]) -> Model:
    """Return ``second`` fed by ``first``: ``wires`` maps outputs of ``first`` to inputs of ``second``.

    The inputs are those of ``first``, then the unwired ones of ``second``; the outputs those of ``second``, then the
    unwired ones of ``first``. Raises InputError for unknown names, ValidationError for types that conflict.

    Examples:
        >>> square = fg.load(b"graph @s (%a: f32[N,3]) -> (%b: f32[N,3]) { %b: f32[N,3] = Mul(%a, %a) }")
        >>> fg.compose(model, square, {"logits": "a"})(batch)["b"].shape
        (2, 3)
    """
    check_kind("first", first, Model)
    check_kind("second", second, Model)
    check_mapping("wires", wires, "outputs of the first model to inputs of the second")
    graph = first.graph.copy()
    outputs = {e.name: e for e in graph.output_entries}
    inputs = {v.name: v for v in second.graph.inputs}
    mapping: dict[Value, Value] = {}
    for source, target in wires.items():
        if source not in outputs:
            raise InputError(f"no output {source!r} in the first model{suggestion(source, outputs)}", code="name")
        if target not in inputs:
            raise InputError(f"no input {target!r} in the second model{suggestion(target, inputs)}", code="name")
        value = outputs[source].input(0)
        merge_types(value.type, inputs[target].type)
        mapping[inputs[target]] = value
    for name, value in inputs.items():
        if value not in mapping:
            mapping[value] = graph.add_input(graph.unique_name(name), value.type)
    b = Builder(graph)
    entries = second.graph.output_entries
    found = inline(b, second.graph, mapping, [e.input(0) for e in entries])
    kept = [e for e in graph.output_entries if e.name not in wires]
    for entry in graph.output_entries:
        if entry.name in wires:
            graph.remove(entry)
    added = [graph.add_output(v, graph.unique_output_name(e.name)) for e, v in zip(entries, found, strict=True)]
    graph.reorder_outputs([*added, *kept])
    made = Model(graph, first.roles, [*first.notes, *second.notes])
    made.stabilize = first.stabilize and second.stabilize
    return made


def extract(model: Model, inputs: Names | None = None, outputs: Names | None = None) -> Model:
    """Return the part of a model from ``inputs`` to ``outputs``, which may be inner values: an embedding can be fed so.

    By default the inputs are those of the model that are needed, the outputs all of it. Names, types, weights and the roles
    of what stays are kept. Raises InputError for unknown names, and, naming them, for inputs that are needed as well.

    Examples:
        >>> fg.extract(model, inputs="hidden", outputs="logits")
        <Model mlp: (hidden) -> (logits), 1 nodes>
    """
    check_kind("model", model, Model)
    source = model.graph
    entries = {e.name: e.input(0) for e in source.output_entries}
    wanted = entries if outputs is None else {n: find_value(source, n) for n in _names(outputs)}
    if not wanted:
        raise InputError("outputs= names nothing: a model has an output", code="name")
    chosen = source.inputs if inputs is None else [find_value(source, n) for n in _names(inputs)]
    needed = needed_nodes(source.nodes(), wanted.values(), given=chosen)
    used = {v for node in needed for v in node.operands} | set(wanted.values())
    missing = [v for v in source.inputs if v in used and v not in chosen]
    if missing:
        raise InputError(f"{', '.join(map(repr, wanted))} need {', '.join(repr(v.name) for v in missing)} as well: add it to "
                         "inputs", code="name")
    graph = Graph(source.name, source.limits)
    graph.metadata, graph.origins = dict(source.metadata), list(source.origins)
    kept = chosen if inputs is not None else [v for v in chosen if v in used]
    mapping = {v: graph.add_input(v.name or graph.unique_name("x"), v.type) for v in kept}
    made = inline(Builder(graph), source, mapping, list(wanted.values()))
    for name, value in zip(wanted, made, strict=True):
        graph.add_output(value, name)
    result = model.with_graph(graph)
    names = {v.name for v in graph.inputs} | set(wanted)
    result.roles = {role: name for role, name in model.roles.items() if name in names}
    return result


def _names(names: Names) -> list[str]:
    """Return names as a list; InputError for what is none."""
    for name in (listed := as_list(names)):
        if not isinstance(name, str):
            raise InputError(f"inputs and outputs are names, not {type(name).__name__}", code="name")
    return listed


def unbatch(model: Model, axis: int = 0) -> Model:
    """Return a model of one sample: every input and output loses its batch axis, which inside has the extent 1.

    Inputs of rank 0 stay as they are. Raises InputError if an input or an output does not have the axis, has a fixed extent
    there, or a rank that only the run can tell.

    Examples:
        >>> fg.unbatch(model)(x=np.ones(4, np.float32), target=0)["logits"].shape
        (3,)
    """
    check_kind("model", model, Model)
    graph = Graph(model.graph.name, model.graph.limits)
    graph.metadata = dict(model.graph.metadata)
    b = Builder(graph)
    mapping: dict[Value, Value] = {}
    for value in model.graph.inputs:
        if value.type.rank == 0:
            mapping[value] = graph.add_input(value.name, value.type)
            continue
        shape = _with_axis("input", value.name, value, axis)
        if isinstance(shape[axis], int) and shape[axis] != 1:
            raise InputError(f"input {value.name!r} has a fixed batch extent {shape[axis]}", code="shape")
        at = axis % len(shape)
        one = graph.add_input(value.name, Type(value.type.dtype, shape[:at] + shape[at + 1:]))
        mapping[value] = b.add("Unsqueeze", [one, [at]], name=graph.unique_name(f"{value.name}_batch"))
    entries = model.graph.output_entries
    for entry, value in zip(entries, inline(b, model.graph, mapping, [e.input(0) for e in entries]), strict=True):
        extent = 1 if value.type.rank == 0 else _with_axis("output", entry.name, value, axis)[axis]
        if isinstance(extent, int) and extent != 1:
            raise InputError(f"output {entry.name!r} has the extent {extent} along axis {axis}, not the batch's", code="shape")
        graph.add_output(b.Squeeze(value, [axis]) if value.type.rank else value, entry.name)
    return model.with_graph(graph)


def _with_axis(kind: str, name: str, value: Value, axis: int) -> Shape:
    """Return the shape of a value that has an axis."""
    shape = value.type.shape
    if shape is None:
        raise InputError(f"{kind} {name!r} has a rank that only the run can tell: load the model with shapes=", code="shape")
    if not is_whole(axis) or not -len(shape) <= axis < len(shape):
        raise InputError(f"{kind} {name!r} is {value.type!r}, which has no axis {axis!r} to be that of the batch", code="axis")
    return shape
