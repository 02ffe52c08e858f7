"""What a run would need, from shapes alone: no code is made, nothing is computed but what extents depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowgrad.ir.bulk import bulk
from flowgrad.ir.graph import Graph
from flowgrad.ir.process_state import quiet
from flowgrad.ir.types import Type
from flowgrad.runtime.flat_graph import ABSENT, FlatGraph, input_twin
from flowgrad.runtime.memory import plan
from flowgrad.runtime.specialise import Knowledge
from flowgrad.runtime.threads import available_threads


@dataclass(frozen=True)
class Forecast:
    """The peak bytes of a run (beside feeds and constants), and the static types of values by name.

    ``complete`` is False where the extents of some values are known only during the run: those are not counted.
    """

    peak_bytes: int
    types: Mapping[str, Type]
    complete: bool


@bulk
@quiet
def forecast(graph: Graph, shapes: Mapping[str, Sequence[int]], threads: int | None = None) -> Forecast:
    """Return what a run of ``graph`` as it stands needs on inputs of these shapes (those of static inputs may be left out).

    Each of ``threads`` (default: all cores) has scratch of its own.
    Raises ValidationError where the graph does not fit them.
    """
    flat = FlatGraph(graph)
    knowledge = Knowledge(flat, graph.limits)
    for number in (*flat.inputs, *flat.parameters):
        name, type_ = flat.names[number], flat.types[number]
        knowledge.twins[number] = input_twin(name, type_.with_shape(tuple(shapes[name])) if name in shapes else type_)
    steps = knowledge.advance()
    made = {n for step in steps for n in step.record.outputs if n != ABSENT}
    waiting = {n for record in knowledge.pending for n in (*record.inputs, *record.captures)}
    later = (made & waiting) | {n for step in steps if step.open for n in step.record.outputs if n != ABSENT}
    layout = plan(steps, [n for _, n in flat.outputs if n in made], frozenset(later), threads or available_threads())
    types = {flat.names[n]: v.type for n, v in enumerate(knowledge.twins) if v is not None and v.type.is_static}
    return Forecast(layout.peak_bytes, types, not later or not knowledge.pending and not any(s.open for s in steps))
