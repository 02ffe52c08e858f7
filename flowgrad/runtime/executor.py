"""The executor: specialises a flat graph per key, and runs segments one after the other."""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from flowgrad.ir.bulk import bulk
from flowgrad.ir.errors import FlowgradError, ResourceError, RunError, ValidationError
from flowgrad.ir.evaluate import fitted
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.infer import describe
from flowgrad.ir.limits import Limits
from flowgrad.ir.process_state import quiet
from flowgrad.ir.types import Type
from flowgrad.runtime.codegen import CHUNK, FILENAME, Code, Writer, frame_chunks
from flowgrad.runtime.dynamic_calls import Context, SubgraphCalls
from flowgrad.runtime.flat_graph import ABSENT, KEYED_ELEMENTS, FlatGraph, constant_twin, input_twin, shape_inputs
from flowgrad.runtime.kernels import Several
from flowgrad.runtime.memory import Frame, Layout, Place, plan
from flowgrad.runtime.specialise import Knowledge, Step, named_twin
from flowgrad.runtime.splits import Blocks
from flowgrad.runtime.threads import ProcessLock, available_threads, single_threaded_blas

KEPT_KEYS = 16
"""Specialisations that an executor keeps, and continuations that a segment keeps."""

MOST_VALUES = 64
"""After this many different values of shape inputs, an executor stops making them part of its key."""

RETAINED_BYTES = 1 << 29
"""Arenas that specialisations keep for their next run, in all; beyond this the least recently used give theirs up."""

Key = tuple[Any, ...]


class Segment:
    """A stretch of steps whose extents are all known: code, memory plan, and what may follow it."""

    def __init__(self, executor: Executor, knowledge: Knowledge, slots: dict[int, int]) -> None:
        self.executor, self.slots = executor, slots
        self.steps = knowledge.advance()
        made = {n for step in self.steps for n in step.record.outputs if n != ABSENT}
        self.open = [n for step in self.steps if step.open for n in step.record.outputs if n != ABSENT]
        wanted = {n for record in knowledge.pending for n in (*record.inputs, *record.captures)}
        later = frozenset((made & wanted) | set(self.open))
        self.outputs = [n for _, n in executor.flat.outputs if n in made]
        self.layout = plan(self.steps, self.outputs, later, executor.threads)
        self.needs_blas = any(step.form.needs_blas for step in self.steps)
        self._assign_slots(later)
        constants = {n: v.constant for n, v in enumerate(knowledge.twins) if v is not None and v.constant is not None}
        self._types = {n: v.type for n in self.layout.offsets if (v := knowledge.twins[n]) is not None}
        self._view_steps = _fixed_views(self.steps, self.layout, constants)
        self._frames: list[Frame] = []
        self._following: OrderedDict[Key, Segment] = OrderedDict()
        executor.limits.check("live_bytes", self.layout.peak_bytes)
        frame = Frame(self.layout, self._types)
        views = self._views(frame)
        writer = Writer(self.steps, self.layout, slots, constants, frozenset(views), executor.calls, executor.blocks,
                        executor.marked)
        self.code: Code = writer.code()
        frame_chunks(self.code, frame, views)
        self._frames.append(frame)
        self.constants = constants
        places, root = self.layout.places, self.layout.root
        self.handed_out = frozenset(n for n in self.outputs if places.get(root(n)) is Place.OUTPUT)
        self.knowledge: Knowledge | None = knowledge if knowledge.pending else None

    def _assign_slots(self, later: frozenset[int]) -> None:
        made_in = {n: i // CHUNK for i, step in enumerate(self.steps) for n in step.record.outputs if n != ABSENT}
        crossing = {n for i, step in enumerate(self.steps) for n in (*step.record.inputs, *step.record.captures)
                    if n in made_in and made_in[n] != i // CHUNK and n not in self.layout.offsets}
        for number in sorted(crossing | later | set(self.outputs)):
            self.slots.setdefault(number, len(self.slots))

    def _views(self, frame: Frame) -> dict[int, Array]:
        """Return the views of arena buffers that need no kernel call in a run."""
        found: dict[int, Array] = {}
        for step, inputs in self._view_steps:
            base = step.record.inputs[0]
            source = found.get(base, frame.buffers.get(base))
            if source is None:
                continue
            bound = step.form.bound(self.executor.blocks)
            results = Several(step.twin)(bound.function(source, *inputs[1:], **bound.keywords))
            if all(r.base is frame.arena for r in results):
                found.update(zip((n for n in step.record.outputs if n != ABSENT), results, strict=True))
        return found

    def run(self, context: Context, frame: Frame, slots: list[Any]) -> None:
        """Run the generated code on the memory of ``frame``, from slots and into slots."""
        arena, timed = frame.arena, context.meter.deadline != math.inf
        for function, bound, buffers in zip(self.code.functions, self.code.bound, frame.chunks, strict=True):
            function(context, buffers, slots, arena, bound)
            if timed:
                context.meter.check_time()

    def take_frame(self) -> Frame:
        """Return memory for one run: one given back earlier, or a new one."""
        try:
            return self._frames.pop()
        except IndexError:
            frame = Frame(self.layout, self._types)
            frame_chunks(self.code, frame, self._views(frame))
            return frame

    def give_frame(self, frame: Frame) -> None:
        """Keep the memory of a run that came to its end for the next one."""
        if len(self._frames) < self.executor.frames:
            self._frames.append(frame)

    @property
    def retained_bytes(self) -> int:
        """Bytes of memory kept for the next run, here and in what follows."""
        here = len(self._frames) * self.layout.arena_bytes
        return here + sum(s.retained_bytes for s in list(self._following.values()))

    def forget_frames(self) -> None:
        """Give up the memory kept for the next run, here and in what follows."""
        self._frames.clear()
        for segment in list(self._following.values()):
            segment.forget_frames()

    def following(self, slots: list[Any]) -> Segment:
        """Return the segment that goes on, given the arrays that the open steps made."""
        shapes = tuple(slots[self.slots[n]].shape for n in self.open)
        found = self._following.get(shapes)
        if found is not None:
            return found
        with self.executor.lock.here():
            if shapes not in self._following:
                if self.knowledge is None:
                    raise RunError("nothing is left to run", code="segment")
                knowledge = self.knowledge.copy()
                for number, shape in zip(self.open, shapes, strict=True):
                    type_ = Type(self.executor.flat.types[number].dtype, shape)
                    knowledge.twins[number] = input_twin(self.executor.flat.names[number], type_)
                self._following[shapes] = Segment(self.executor, knowledge, self.slots)
                while len(self._following) > KEPT_KEYS:
                    self._following.popitem(last=False)
            return self._following[shapes]

    def explain(self, error: BaseException) -> FlowgradError | None:
        """Return the error to raise for one that came out of the generated code; None if it is fine as it is."""
        if isinstance(error, FlowgradError):
            return None
        step = self._failing(error.__traceback__)
        where = describe(named_twin(step, self.executor.flat.names)) if step is not None else ""
        if isinstance(error, MemoryError):
            return ResourceError(f"out of memory: {error}", code="memory", where=where)
        if step is None:
            return None
        return RunError(f"{step.twin.op} failed ({type(error).__name__}): {error}", code="kernel", where=where)

    def _failing(self, trace: TracebackType | None) -> Step | None:
        chunks = {id(bound): lines for bound, lines in zip(self.code.bound, self.code.lines, strict=True)}
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == FILENAME:
                lines = chunks.get(id(trace.tb_frame.f_locals["k"]))
                if lines is not None:
                    owner = lines[trace.tb_lineno - 1]
                    return self.steps[owner] if owner >= 0 else None
            trace = trace.tb_next
        return None


def _fixed_views(steps: Sequence[Step], layout: Layout, constants: Mapping[int, Array]
                 ) -> list[tuple[Step, list[Array | None]]]:
    found = []
    for step in steps:
        record = step.record
        if not step.form.is_view or step.open or record.captures or "rng" in record.definition.special:
            continue
        if not layout.in_arena(record.inputs[0]):
            continue
        if all(n == ABSENT or n in constants for n in record.inputs[1:]):
            found.append((step, [constants.get(n) for n in record.inputs]))
    return found


class Specialisation:
    """The first segment for a key, and how outputs are handed out."""

    def __init__(self, executor: Executor, knowledge: Knowledge) -> None:
        self.executor = executor
        self.slots = {number: index for index, number in enumerate(executor.fed)}
        self.first = Segment(executor, knowledge, self.slots)

    def run(self, context: Context, arrays: Sequence[Array]) -> list[Array]:
        """Run all segments on ``arrays`` (fed inputs and parameters) and return the outputs."""
        slots: list[Any] = [None] * len(self.slots)
        slots[: len(arrays)] = arrays
        used: list[tuple[Segment, Frame]] = []
        meter = context.meter
        segment = self.first
        try:
            while True:
                meter.take(segment.layout.peak_bytes)
                frame = segment.take_frame()
                used.append((segment, frame))
                if segment.needs_blas:
                    single_threaded_blas.during(segment.run, context, frame, slots)
                else:
                    segment.run(context, frame, slots)
                if segment.knowledge is None:
                    break
                segment = segment.following(slots)
                slots += [None] * (len(self.slots) - len(slots))
            results = self._finish([s for s, _ in used], slots)
        except Exception as error:
            explained = segment.explain(error)
            if explained is None:
                raise
            raise explained from error
        # Reached only by a run that came to its end: after an interrupt threads of the pool may still be writing into
        # a frame, which then belongs to nobody.
        for owner, frame in used:
            owner.give_frame(frame)
            meter.give(owner.layout.peak_bytes)
        return results

    def _finish(self, segments: Sequence[Segment], slots: list[Any]) -> list[Array]:
        """Return the outputs, copied where something else could see their memory."""
        handed_out = segments[0].handed_out.union(*(s.handed_out for s in segments[1:]))
        numbers = self.executor.outputs
        if len(handed_out) == len(numbers):
            return [slots[self.slots[n]] for n in numbers]
        fed = len(self.executor.fed)
        seen = {id(_root(slots[self.slots[n]])) for n in handed_out} | {id(_root(a)) for a in slots[:fed]}
        results: list[Array] = []
        for number in numbers:
            slot = self.slots.get(number)
            array = _constant(segments, number) if slot is None else slots[slot]
            if number in handed_out or (self.executor.share and (slot is None or slot < fed)):
                results.append(array)
                continue
            # visible to later runs, or as another output
            visible = not self.executor.share and (slot is None or id(array) in seen)
            if array.base is not None or not array.flags.writeable or visible:
                array = array.copy()
            seen.add(id(array))
            results.append(array)
        return results


def _root(array: Array) -> Array:
    """Return the array whose memory ``array`` is a view of, or ``array`` itself."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _constant(segments: Sequence[Segment], number: int) -> Array:
    return next(s.constants[number] for s in segments if number in s.constants)


class Executor:
    """Runs one flat: finds or makes the specialisation for the arrays given.

    ``known`` gives inputs (by position) that are the same in every call. With ``share`` outputs may be arrays that
    were given, as subgraphs want; otherwise outputs never alias anything. With ``marked`` the context of a run is told when
    each step has ended. Subgraphs share the ``blocks`` of scratch.
    """

    def __init__(self, flat: FlatGraph, threads: int, limits: Limits, *, known: Mapping[int, Array] | None = None,
                 share: bool = False, marked: bool = False, blocks: Blocks | None = None) -> None:
        self.flat, self.threads, self.limits, self.share, self.marked = flat, threads, limits, share, marked
        self.blocks = Blocks(threads) if blocks is None else blocks
        self.known = {flat.inputs[i]: array for i, array in (known or {}).items()}
        self.given = [n for n in flat.inputs if n not in self.known]
        self.fed = [*self.given, *flat.parameters]
        self.outputs = [n for _, n in flat.outputs]
        self.dtypes = [flat.types[n].dtype.numpy for n in self.given]
        self.defaults = list(flat.parameters.values())
        self.frames = max(threads, available_threads())
        self.lock = ProcessLock()
        this = weakref.proxy(self)  # what it keeps must not keep it: memory of a dropped program is free at once
        self.calls = SubgraphCalls(lambda graph, known: this._sub_executor(graph, known), limits)
        self._flat_graphs: dict[int, tuple[Graph, FlatGraph]] = {}
        self._kept: OrderedDict[Key, Specialisation] = OrderedDict()
        self._last: tuple[Key, Specialisation] | None = None
        self._keyed = () if share else tuple(self.given.index(n) for n in shape_inputs(flat) if n in self.given)
        self._values_seen: set[Key] = set()
        self.misses = 0

    @quiet
    def run(self, context: Context, arrays: list[Array]) -> list[Array]:
        """Run on checked arrays for the inputs, then the parameters, and return the outputs."""
        try:
            return self.specialisation(arrays[: len(self.given)]).run(context, arrays)
        except MemoryError as error:
            raise ResourceError(f"out of memory: {error}", code="memory") from error

    def call(self, context: Context, arrays: Sequence[Any]) -> list[Array]:
        """Run as a subgraph: arrays for the inputs that are not known, of any shape that fits."""
        types = self.flat.types
        given = [a if a.__class__ is np.ndarray and a.dtype is d else fitted(a, types[n].dtype)
                 for a, d, n in zip(arrays, self.dtypes, self.given, strict=True)]
        return self.specialisation(given).run(context, given + self.defaults)

    def specialisation(self, arrays: Sequence[Array]) -> Specialisation:
        """Return the specialisation for arrays of these shapes (and values, for shape inputs)."""
        key: Key = tuple([a.shape for a in arrays])
        if self._keyed:
            key += tuple([_value_key(arrays[i]) for i in self._keyed])
        last = self._last
        if last is not None and last[0] == key:
            return last[1]
        with self.lock.here():
            found = self._kept.get(key)
            if found is None:
                found = self._specialise(arrays)
                self._kept[key] = found
                while len(self._kept) > KEPT_KEYS:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(key)
            self._last = (key, found)
            self._trim(found)
            self._note_values(key)
            return found

    def _trim(self, current: Specialisation) -> None:
        total = 0
        for specialisation in reversed(list(self._kept.values())):
            total += specialisation.first.retained_bytes
            if total > RETAINED_BYTES and specialisation is not current:
                specialisation.first.forget_frames()

    def _note_values(self, key: Key) -> None:
        """Give up keying by value where values never come back: their extents are then found while running."""
        if not self._keyed:
            return
        self._values_seen.add(key)
        if len(self._values_seen) > MOST_VALUES:
            self._keyed = ()
            self._values_seen = set()

    def _specialise(self, arrays: Sequence[Array]) -> Specialisation:
        values = [a if i in self._keyed and a.size <= KEYED_ELEMENTS else None for i, a in enumerate(arrays)]
        return self.specialise([a.shape for a in arrays], values)

    def kept(self, shapes: Sequence[tuple[int, ...]]) -> Specialisation | None:
        """Return the specialisation for inputs of these shapes if there is one that does not depend on values."""
        return self._kept.get(tuple(shapes))

    @bulk
    @quiet
    def specialise(self, shapes: Sequence[tuple[int, ...]], values: Sequence[Array | None]) -> Specialisation:
        """Return a new specialisation, kept nowhere. ``values`` gives those of shape inputs."""
        self.misses += 1
        flat = self.flat
        knowledge = Knowledge(flat, self.limits)
        for number, array in self.known.items():
            knowledge.twins[number] = constant_twin(flat.names[number], array)
        for number in flat.parameters:
            knowledge.twins[number] = input_twin(flat.names[number], flat.types[number])
        for number, shape, value in zip(self.given, shapes, values, strict=True):
            name = flat.names[number]
            type_ = Type(flat.types[number].dtype, tuple(shape))
            knowledge.twins[number] = input_twin(name, type_) if value is None else constant_twin(name, value.copy())
        try:
            return Specialisation(weakref.proxy(self), knowledge)
        except ValidationError as error:
            given = ", ".join(f"{flat.names[n]}: {list(s)}" for n, s in zip(self.given, shapes, strict=True))
            raise RunError(f"the graph does not fit inputs of these shapes ({given}): {error}", code="shape",
                           where=error.where) from error

    def _sub_executor(self, graph: Graph, known: dict[int, Array]) -> Executor:
        held = self._flat_graphs.get(id(graph))
        if held is None:
            held = self._flat_graphs[id(graph)] = (graph, FlatGraph(graph))
        return Executor(held[1], self.threads, self.limits, known=known, share=True, blocks=self.blocks)


def _value_key(array: Array) -> Any:
    return (array.dtype.str, array.tobytes()) if array.size <= KEYED_ELEMENTS else None
