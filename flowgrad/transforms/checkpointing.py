"""Checkpointing: less memory for more time, by computing parts of the forward pass again."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from flowgrad.ir.errors import FlowgradError, InputError, LimitError, suggestion
from flowgrad.ir.fixed_shapes import Shapes, fixed_shapes
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.reach import needed_nodes
from flowgrad.ir.types import Type
from flowgrad.model import Model
from flowgrad.passes.checkpoint import RECOMPUTE, named, parts_of, recompute
from flowgrad.passes.pipeline import bytes_from
from flowgrad.passes.segments import (
    NOMINAL_EXTENT,
    Cutter,
    Parts,
    best_cuts,
    bytes_of,
    cuts_after,
    record,
    steps_of_keeping,
)
from flowgrad.passes.selection import as_list, find_value
from flowgrad.runtime.forecast import Forecast, forecast
from flowgrad.transforms.task import stage


@stage
def checkpoint(model: Model, policy: str | Sequence[str] = "sqrt", *, memory: int | str | None = None,
               shapes: Shapes | None = None) -> Model:
    """Return a model that computes the same, bit for bit, in less memory: what its backward part needs of the forward part
    is computed again when it comes to it, instead of being kept until then.

    ``model`` holds a gradient: what ``grad``, ``value_and_grad``, ``vjp`` or ``hvp`` returned. It is optimised first, since
    only what will run can be planned. ``policy`` says what is kept:

    - ``"sqrt"``: what crosses about sqrt(n) cuts, chosen by bytes; the forward part is computed at most twice;
    - names of values of the forward part: those, and what else crosses the graph where they are made.

    With ``memory`` (bytes, or text like ``"2GiB"``) as much is kept as fits: the planned peak of a run, beside feeds and
    weights, is at most that. ``shapes`` gives the shapes of inputs whose extents are not known, ``{"x": (512, 4)}``, or the extents
    of named dims, ``{"N": 512}``; without them, extents with names count alike, and ``memory`` cannot be asked for. Random numbers are drawn once, and kept.

    Raises InputError for a model without a gradient and for unknown names, LimitError with the least peak that can be reached
    if ``memory`` is less.

    Examples:
        >>> gradient = fg.value_and_grad(model, of="loss", wrt="params")
        >>> small = fg.checkpoint(gradient, ["hidden"])
        >>> small(batch)["w1_grad"].tobytes() == gradient(batch)["w1_grad"].tobytes()
        True
    """
    if not isinstance(model, Model):
        raise InputError(f"checkpoint takes a Model that holds a gradient, not {type(model).__name__}", code="type")
    names = _names(policy)
    if memory is not None and names:
        raise InputError("memory decides by itself what is kept: give it without names", code="option")
    task = _Checkpointing(model, names, shapes or {})
    if memory is not None:
        return task.within(bytes_from("memory", memory))
    return task.with_cuts(cuts_after(task.tape, named(task.graph, task.parts, names)) if names else best_cuts(task.tape))


def _names(policy: str | Sequence[str]) -> list[str]:
    if isinstance(policy, str) and policy == "sqrt":
        return []
    if not isinstance(policy, (list, tuple)) or not policy:
        raise InputError(f"no policy {policy!r}{suggestion(str(policy), ['sqrt'])}; it is \"sqrt\" or a list of names to keep; "
                         "a budget is given as memory=", code="option")
    return list(as_list(policy))


class _Checkpointing:
    """One model at work: its optimised graph, what is known of its sizes, and its forward part."""

    def __init__(self, model: Model, names: Sequence[str], shapes: Shapes) -> None:
        if names:
            graph = model.graph.copy()
            for name in names:
                graph.pin(find_value(graph, name))
            model = model.with_graph(graph)
        self.model = model.optimized()
        types = fixed_shapes({v.name: v.type for v in self.model.graph.inputs}, shapes).types
        self.open = [name for name, type_ in types.items() if not type_.is_static]
        self.shapes = {name: _guessed(type_) for name, type_ in types.items()}
        self.before = self.judged(self.model.graph)
        self.graph = self.model.graph.copy()
        self.parts = _parts(self.graph, model)
        known = self.before.types if self.before is not None else {}
        self.bytes = {v: bytes_of(known.get(v.name, v.type)) for v in self.graph.values.values()}
        self.tape = record(self.graph, self.parts, self.size)
        self.cutter = Cutter(self.tape)

    def size(self, value: Value) -> int:
        """Return the bytes of a value."""
        return self.bytes.get(value, 0)

    def judged(self, graph: Graph) -> Forecast | None:
        """Return what a run will need; None where extents with names had to be guessed and do not fit each other."""
        try:
            return forecast(graph, self.shapes)
        except FlowgradError:
            if self.open:
                return None
            raise

    def tried(self, cuts: Sequence[int], extra: Collection[Value] = ()) -> tuple[Graph, Forecast | None]:
        """Return the graph with these cuts, ``extra`` being kept as well, and what a run of it will need."""
        graph = self.graph.copy()
        recompute(graph, self.parts.on(graph), self.cutter.keeping(cuts, extra).on(graph))
        return graph, self.judged(graph)

    def with_cuts(self, cuts: Sequence[int]) -> Model:
        """Return the model cut there; as it was, with a note, if that takes no less memory."""
        graph, after = self.tried(cuts)
        if self.before is not None and after is not None and after.peak_bytes >= self.before.peak_bytes:
            return self.unchanged("nothing is computed again: that would take no less memory")
        return self.changed(graph, after)

    def within(self, budget: int) -> Model:
        """Return the model that computes least again within ``budget`` bytes."""
        if self.open or self.before is None:
            raise InputError(f"memory needs the shapes of {', '.join(map(repr, self.open))}: give shapes={{'x': (32, 4)}}, or extents of "
                             "dims, shapes={'N': 32}", code="missing")
        if not self.before.complete:
            raise InputError("some extents are known only when the model runs, so no peak can be promised", code="open")
        if self.before.peak_bytes <= budget:
            return self.unchanged(f"nothing is computed again: the peak is {self.before.peak_bytes:,} bytes")
        cuts = best_cuts(self.tape)
        found = self.tried(cuts)
        if _peak(found) > budget:
            least = min(_peak(found), self.before.peak_bytes)
            raise LimitError(f"memory={budget:,} bytes is less than can be reached: the least peak is {least:,} bytes",
                             code="memory")
        steps = steps_of_keeping(self.cutter, cuts, self.size)
        fits, most = 0, len(steps)
        while fits < most:
            middle = (fits + most + 1) // 2
            tried = self.tried(cuts, set().union(*steps[:middle]))
            if _peak(tried) <= budget:
                fits, found = middle, tried
            else:
                most = middle - 1
        return self.changed(*found)

    def unchanged(self, note: str) -> Model:
        """Return the optimised model with a note."""
        return self._made(self.model.graph, f"checkpoint: {note}")

    def changed(self, graph: Graph, after: Forecast | None) -> Model:
        """Return a model of ``graph`` with a note on what was traded."""
        again = [n for n in graph.nodes() if RECOMPUTE in n.metadata]
        segments = len({n.metadata[RECOMPUTE] for n in again})
        note = f"checkpoint: {len(again)} nodes in {segments} segments compute again what is not kept"
        if self.before is not None and after is not None:
            guessed = f" (extents of {', '.join(self.open)} guessed)" if self.open else ""
            note += f"; the peak goes from {self.before.peak_bytes:,} to {after.peak_bytes:,} bytes{guessed}"
        return self._made(graph, note)

    def _made(self, graph: Graph, note: str) -> Model:
        made = self.model.with_graph(graph)
        made.notes = (*made.notes, note)
        made._optimized_at = graph.version  # what was planned is what runs
        return made


def _peak(tried: tuple[Graph, Forecast | None]) -> float:
    return math.inf if tried[1] is None else tried[1].peak_bytes


def _guessed(type_: Type) -> tuple[int, ...]:
    """Return a shape with NOMINAL_EXTENT for each extent that is not known."""
    return tuple(d if isinstance(d, int) else NOMINAL_EXTENT for d in type_.shape or ())


def _parts(graph: Graph, model: Model) -> Parts:
    """Return the forward and the backward part: by the origins of nodes, or by what is differentiated. Raises InputError."""
    parts = parts_of(graph)
    if parts.backward:
        return parts
    roles = [of for role, of, _ in model.roles if role == "cotangent"]
    names = roles or [of for role, of, _ in model.roles if role == "grad"]
    outputs = {e.name: e.input(0) for e in graph.output_entries}
    found = [value for name in names if (value := outputs.get(name, graph.values.get(name))) is not None]
    if not found:
        raise InputError("checkpoint takes a model that holds a gradient, such as fg.value_and_grad(model) returns: here is "
                         "none, or the value that it is the gradient of is gone", code="gradient")
    forward = {n.key for n in needed_nodes(graph.nodes(), found)}
    return parts_of(graph, lambda node: node.key not in forward)
