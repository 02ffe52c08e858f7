"""The transform vmap: a model of one example becomes one of many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from flowgrad.ir.arguments import check_kind, is_word
from flowgrad.ir.batching import SEQUENCES, Randomness
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, UnsupportedError, suggestion
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.ops.operands import inverse_of, moved_first, permuted
from flowgrad.ir.types import Dim, Type
from flowgrad.model import Model
from flowgrad.passes.batch import batch
from flowgrad.passes.stand_ins import take_places
from flowgrad.transforms.task import stage

Axes = int | None | Mapping[str, int | None]
"""An axis for all, None for no axis, or one of both by name."""


@stage
def vmap(model: Model, in_axes: Axes = 0, out_axes: int | Mapping[str, int] = 0, *,
         randomness: Randomness = "error") -> Model:
    """Return a model that computes for many examples what ``model`` computes for one.

    ``in_axes`` says where each input gets the axis of the examples: a number for all inputs, or a mapping from names, in
    which inputs that are not named, or have None, are shared by all examples. Weights can be named too: they become inputs
    then. ``out_axes`` says where the outputs have it; what is the same for all examples is repeated. Negative axes count
    from the end. The axis has one extent for all, a dim called ``examples``. ``randomness`` says whether examples share
    ("same") the random numbers that are drawn, or not ("different").

    Raises InputError for unknown names and axes, UnsupportedError, naming the nodes, where examples would have results of
    different extents, and where random numbers are drawn and nothing is said about them.

    Examples:
        >>> each = fg.vmap(fg.grad(fg.unbatch(model), of="loss", wrt="params"))
        >>> each(batch)["w1_grad"].shape
        (2, 4, 8)
    """
    check_kind("model", model, Model)
    if not is_word(randomness, get_args(Randomness)):
        raise InputError(f"randomness is 'error', 'same' or 'different', got {randomness!r}", code="option")
    graph = model.graph.copy()
    order, names = [v.name for v in graph.inputs], {v: v.name for v in graph.values.values()}
    pairs = _split_inputs(graph, in_axes)
    entries = graph.output_entries
    places = _output_axes(graph, out_axes)
    examples = batch(graph, pairs, [e.input(0) for e in entries], randomness=randomness)
    b = Builder(graph)
    made = [(e.name, _moved(b, e.name, examples.of(e.input(0)), places[e.name])) for e in entries]
    for entry in entries:
        graph.remove(entry)
    for name, value in made:
        graph.add_output(value, name)
    take_places(graph, [x for x, _ in pairs], examples, names)
    added = [v for v in graph.inputs if v.name not in order]
    graph.reorder_inputs([*(graph.value(name) for name in order), *added])
    return model.with_graph(graph)


def _split_inputs(graph: Graph, in_axes: Axes) -> list[tuple[Value, Value]]:
    """Add an input for many examples beside each that is to be split, under its name; returns the pairs."""
    chosen = _input_axes(graph, in_axes)
    if not chosen:
        raise InputError("in_axes splits no input, so there are no examples: name one, or give an axis for all", code="axis")
    b = Builder(graph)
    dim = _new_dim(graph)
    pairs = []
    for x, axis in chosen.items():
        shape = x.type.shape
        if x.type.dtype.kind in ("sequence", "optional"):
            raise UnsupportedError(f"{x.name!r} cannot be split into examples: {SEQUENCES}", code="batch")
        if shape is None:
            raise InputError(f"the rank of {x.name!r} is not known, so it cannot be split into examples", code="rank")
        at = _axis(axis, len(shape) + 1, x.name)
        name, is_pinned = x.name, x.name in graph.pinned
        graph.pinned.pop(name, None)
        graph.rename(x, graph.unique_name(f"{name}_one"))
        many = graph.add_input(name, Type(x.type.dtype, (*shape[:at], dim, *shape[at:])))
        if is_pinned:
            graph.pin(many)
        b.prefix = name
        pairs.append((x, permuted(b, many, moved_first([at], len(shape) + 1))))
    return pairs


def _input_axes(graph: Graph, in_axes: Axes) -> dict[Value, int]:
    if in_axes is None:
        return {}
    if not isinstance(in_axes, Mapping):
        return dict.fromkeys(graph.inputs, in_axes)
    known = {v.name: v for v in (*graph.inputs, *graph.constants) if v.name}
    for name in in_axes:
        if name not in known:
            raise InputError(f"no input or weight {name!r} to split{suggestion(name, known)}", code="name")
    return {known[name]: axis for name, axis in in_axes.items() if axis is not None}


def _output_axes(graph: Graph, out_axes: int | Mapping[str, int]) -> dict[str, int]:
    names = [e.name for e in graph.output_entries]
    if not isinstance(out_axes, Mapping):
        return dict.fromkeys(names, out_axes)
    for name in out_axes:
        if name not in names:
            raise InputError(f"no output {name!r}{suggestion(name, names)}", code="name")
    return {name: out_axes.get(name, 0) for name in names}


def _axis(axis: int, rank: int, name: str) -> int:
    if isinstance(axis, bool) or not isinstance(axis, int) or not -rank <= axis < rank:
        raise InputError(f"{name!r} has no axis {axis!r} among its {rank} with that of the examples", code="axis")
    return axis % rank


def _new_dim(graph: Graph) -> Dim:
    """Return the named dim ``examples``, or ``examples_1``, ... if the graph has one of that name."""
    values = [v for g in (graph, *(sub for _, n in graph.walk() for sub in n.subgraphs.values())) for v in g.values.values()]
    dims = {d for v in values for d in v.type.shape or () if isinstance(d, Dim)}
    used = {name for dim in dims for name in dim.names()}
    count, name = 0, "examples"
    while name in used:
        count += 1
        name = f"examples_{count}"
    return Dim.named(name)


def _moved(b: Builder, name: str, y: Value, axis: int) -> Value:
    """Return ``y``, the output ``name``, with its first axis moved to ``axis``."""
    rank = y.type.rank
    if rank is None:
        if axis == 0:
            return y
        raise InputError(f"the rank of {name!r} is not known, so its axes cannot be moved", code="rank")
    b.prefix = name
    return permuted(b, y, inverse_of(moved_first([_axis(axis, rank, name)], rank)))
