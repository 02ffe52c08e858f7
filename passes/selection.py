"""What ``of``, ``wrt`` and ``keep`` mean: names, globs and words to values of a graph."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, suggestion
from flowgrad.ir.graph import CONSTANT, DEFAULT, ENTRIES, PARAMETER, Graph, Value
from flowgrad.ir.types import INT64, DType, Type
from flowgrad.passes.edits import BYPASSED
from flowgrad.passes.parameters import candidates, parameters


@dataclass(frozen=True)
class Pick:
    """The sum of one picked entry along the last axis of a value: see ``pick``."""

    value: str
    index: str | int


GREATEST = "argmax"
"""The index of a Pick that stands for the greatest entry, unless an input is called so."""


Names = str | Sequence[str]
Of = str | Pick | Sequence[str | Pick]


def find_value(graph: Graph, name: str, words: Sequence[str] = ()) -> Value:
    """Return the output, value or node's first output called ``name``; ``words`` may be suggested as well.

    Raises InputError, with a suggestion, if there is none or if a node name is not unique.
    """
    if not isinstance(name, str):
        raise InputError(f"of, wrt and keep take names, not {type(name).__name__}: a transform makes a model, and feeds go to "
                         f"that, as in grad(model, of='loss', wrt='x')(feeds); inputs here: {_listing(graph.inputs)}; outputs: "
                         f"{_listing(graph.outputs)}", code="name")
    for entry in graph.output_entries:
        if entry.name == name:
            return entry.input(0)
    if name in graph.values:
        return graph.values[name]
    nodes = [n for n in graph.nodes() if n.name == name]
    if len(nodes) == 1:
        return nodes[0].output()
    if nodes:
        raise InputError(f"{len(nodes)} nodes are called {name!r}; name one of their outputs instead", code="name")
    known = [*words, *(e.name for e in graph.output_entries), *graph.values, *(n.name for n in graph.nodes() if n.name)]
    raise InputError(f"no output, value or node {name!r} in {graph.name!r}{suggestion(name, known)}", code="name")


def check_whole(value: Value) -> Value:
    """Return ``value`` if all that it once reached still goes through it; InputError if a pass let some go round it."""
    by = value.producer.metadata.get(BYPASSED)
    if by is None:
        return value
    raise InputError(f"{value.name!r} no longer stands for what it did: {by!r} led users of it, or of its equals, another way, "
                     "so a derivative there would be a part or a sum; transform the model before it is optimised",
                     code="bypassed")


def find_wrt(graph: Graph, wrt: Names) -> list[Value]:
    """Return the values that ``wrt`` names: names, globs, "inputs" (all float ones), "params", or a list of these.

    Sequences and optional values of floats are taken by name. Constants become parameters. Raises InputError for what is unknown, not a float, or matches nothing.
    """
    chosen: dict[Value, None] = {}
    for item in as_list(wrt):
        chosen.update(dict.fromkeys(_matches(graph, item)))
    for value in chosen:
        if not value.type.dtype.carries:
            raise InputError(f"{value.name!r} is {value.type.dtype.name}: only floats have derivatives; name a float that is made of "
                             "it, such as the output of a Cast or the rows of an embedding", code="dtype")
        check_whole(value)
        if value.producer.op == CONSTANT and value.producer.role != DEFAULT:
            graph.set_role(value, PARAMETER)
    if not chosen:
        raise InputError(f"wrt={wrt!r} names nothing; float inputs: {_listing(float_inputs(graph))}; "
                         f"parameters: {_listing(parameters(graph))}{_left_out(graph)}", code="name")
    return list(chosen)


def _matches(graph: Graph, item: str) -> list[Value]:
    if not isinstance(item, str) or item in graph.values or any(e.name == item for e in graph.output_entries):
        return [find_value(graph, item)]
    if item == "inputs":
        return float_inputs(graph)
    if item == "params":
        return parameters(graph)
    if not any(c in item for c in "*?["):
        return [find_value(graph, item, words=("inputs", "params"))]
    named = [v for v in (*graph.inputs, *graph.constants) if v.name and v.type.dtype.is_float]
    found = [v for v in named if fnmatch.fnmatchcase(v.name, item)]
    found = found or [v for n, v in graph.values.items() if v.type.dtype.is_float and fnmatch.fnmatchcase(n, item)]
    if not found:
        raise InputError(f"no float value matches {item!r}{suggestion(item, graph.values)}", code="name")
    return found


def find_of(graph: Graph, of: Of | None) -> list[tuple[str, Value]]:
    """Return (name, value) for what is differentiated; None stands for all float outputs.

    Raises InputError for what is unknown or not a float.
    """
    if of is None:
        pairs = [(e.name, e.input(0)) for e in graph.output_entries if e.input(0).type.dtype.is_float]
        if not pairs:
            raise InputError(f"{graph.name!r} has no float output: name an inner float value in of=", code="of")
        return pairs
    items: list[Any] = list(of) if isinstance(of, (list, tuple)) else [of]
    pairs = [_named(graph, item) for item in items]
    if not pairs:
        raise InputError("of= is empty: name what is to be differentiated", code="of")
    names = [item for item in items if isinstance(item, str)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"of= names {twice!r} twice: each derivative is made once", code="of")
    for name, value in pairs:
        if not value.type.dtype.carries:
            raise InputError(f"{name!r} is {value.type.dtype.name}: only floats can be differentiated", code="dtype")
    return pairs


def _named(graph: Graph, item: str | Pick) -> tuple[str, Value]:
    if isinstance(item, Pick):
        value = picked(graph, item)
        return value.name, value
    return item, find_value(graph, item)


def picked(graph: Graph, wanted: Pick) -> Value:
    """Append the scalar that a Pick stands for and return it."""
    value = find_value(graph, wanted.value)
    b = Builder(graph, prefix=value.name, origin=graph.new_origin("pick", (value.producer,)))
    if isinstance(wanted.index, int):
        return b.ReduceSum(b.Gather(value, b.scalar(wanted.index, INT64), axis=-1), keepdims=0)
    if wanted.index == GREATEST and all(v.name != GREATEST for v in graph.inputs):
        return b.ReduceSum(b.GatherElements(value, b.ArgMax(value, axis=-1, keepdims=1), axis=-1), keepdims=0)
    shape = value.shape
    index = find_input(graph, wanted.index, INT64) or add_named_input(graph, wanted.index, Type(INT64, shape[:-1]))
    chosen = b.GatherElements(value, b.Unsqueeze(index, [-1]), axis=-1)
    return b.ReduceSum(chosen, keepdims=0)


def find_input(graph: Graph, name: str, dtype: DType) -> Value | None:
    """Return the input called ``name``, or None; InputError if it has another dtype."""
    existing = next((v for v in graph.inputs if v.name == name), None)
    if existing is not None and existing.type.dtype != dtype:
        raise InputError(f"input {name!r} is {existing.type!r}, expected {dtype.name}", code="dtype")
    return existing


def only_float_output(graph: Graph, name: str | None, what: str) -> tuple[str, Value]:
    """Return (name, value) of the output or inner value called ``name``, by default the only float output, for ``what``.

    Raises InputError for what is unknown, not a float, or not said where there are several.
    """
    if name is not None:
        value = find_value(graph, name)
        if not value.type.dtype.is_float:
            raise InputError(f"{name!r} is {value.type!r}: {what} takes floats", code="dtype")
        return name, value
    floats = [e for e in graph.output_entries if e.input(0).type.dtype.is_float]
    if len(floats) != 1:
        raise InputError(f"output= must say what {what} is of: {graph.name!r} has {len(floats)} float outputs "
                         f"({', '.join(e.name for e in floats)})", code="output")
    return floats[0].name, floats[0].input(0)


def add_named_input(graph: Graph, name: str, type_: Type) -> Value:
    """Append an input called ``name``, an inner value of that name giving way; a name of an output or constant stays taken."""
    taken = graph.values.get(name)
    if taken is not None and taken.producer.op not in ENTRIES and all(e.name != name for e in graph.output_entries):
        graph.rename(taken, graph.unique_name(name))
    return graph.add_input(graph.unique_name(name), type_)


def find_scalar(graph: Graph, of: str | Pick | None) -> tuple[str, Value]:
    """Return (name, value) of the scalar to differentiate: ``of``, or the only scalar output.

    Raises InputError, naming the ways to get a scalar, if it has more than one element.
    """
    if of is None:
        pairs = [(n, v) for n, v in find_of(graph, None) if v.type.size == 1]
        if len(pairs) != 1:
            raise InputError(
                f"of= must name what to differentiate: {graph.name!r} has {len(pairs)} scalar float outputs "
                f"({_listing(graph.outputs)}). Name a scalar, add a loss (with_loss, on the command line --loss), "
                "or use vjp, which takes a cotangent for any output.",
                code="of")
        return pairs[0]
    chosen = find_of(graph, of)
    if len(chosen) != 1:
        raise InputError(f"of= names one scalar, got {len(chosen)} names: {', '.join(name for name, _ in chosen) or 'none'}; their sum, or "
                         "one of them, can be differentiated", code="of")
    ((name, value),) = chosen
    if value.type.size != 1 or not value.type.dtype.is_float:
        raise InputError(f"{name!r} is {value.type!r}, not a scalar: name a scalar, choose an entry with pick, add a loss "
                         "with with_loss, or use vjp, which takes a cotangent, or jacobian for all derivatives", code="of")
    return name, value


def float_inputs(graph: Graph) -> list[Value]:
    """Return the graph inputs with a float dtype."""
    return [v for v in graph.inputs if v.type.dtype.is_float]


def as_list(names: Names) -> list[str]:
    """Return names as a list; what is no name is refused by ``find_value``, an array as a whole."""
    return list(names) if isinstance(names, (list, tuple, set, frozenset)) else [names]  # type: ignore[list-item]


def _left_out(graph: Graph) -> str:
    """Return the candidates that are no parameters, as what an error says of them."""
    left = [c.value for c in candidates(graph) if not c.included]
    return f"; constants that are none unless named (model.params says why): {_listing(left)}" if left else ""


def _listing(values: Iterable[Value]) -> str:
    shown = [f"{v.name}: {v.type!r}" for v in values]
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "") or "none"
