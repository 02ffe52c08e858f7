"""Where the values of a segment live: one planned arena, fresh arrays for outputs, Python objects for the rest.

The plan is one sweep over the steps with a best-fit allocator. Elementwise steps take over the block of an operand
that dies there; views extend the life of what they look at.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flowgrad.ir.graph import Array
from flowgrad.ir.types import Type
from flowgrad.runtime.flat_graph import ABSENT
from flowgrad.runtime.forms import nbytes
from flowgrad.runtime.specialise import Step
from flowgrad.runtime.splits import ALIGNMENT


class Place(enum.Enum):
    """Where a value lives during a run."""

    GIVEN = "a feed, a parameter, or made by an earlier segment"
    OBJECT = "whatever array its kernel returns"
    ARENA = "a planned buffer"
    OUTPUT = "a fresh array that is handed out"


@dataclass(slots=True)
class Layout:
    """The plan of one segment."""

    places: dict[int, Place] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)
    work: dict[int, list[tuple[int, Type]]] = field(default_factory=dict)
    releases: list[list[int]] = field(default_factory=list)
    roots: dict[int, int] = field(default_factory=dict)
    arena_bytes: int = 0
    peak_bytes: int = 0

    def root(self, number: int) -> int:
        """Return the value whose memory ``number`` may be a view of (itself if it is none)."""
        return self.roots.get(number, number)

    def in_arena(self, number: int) -> bool:
        """True if ``number`` may lie in the arena."""
        return self.places.get(self.root(number)) is Place.ARENA


class Allocator:
    """Best fit over a growing range of bytes; freed blocks merge with their neighbours."""

    def __init__(self) -> None:
        self.high = 0
        self._sizes: list[tuple[int, int]] = []  # (size, offset), sorted
        self._starts: dict[int, int] = {}  # offset -> size of a free block
        self._ends: dict[int, int] = {}  # end -> offset of a free block

    def take(self, size: int) -> int:
        """Return the offset of a free block of ``size`` bytes (a multiple of ALIGNMENT)."""
        at = bisect.bisect_left(self._sizes, (size, -1))
        if at < len(self._sizes):
            found, offset = self._sizes[at]
            self._drop(offset, found)
            if found > size:
                self._put(offset + size, found - size)
            return offset
        last = self._ends.get(self.high)
        if last is not None:  # the free block at the end grows
            self._drop(last, self.high - last)
            self.high = last + size
            return last
        self.high += size
        return self.high - size

    def give(self, offset: int, size: int) -> None:
        """Take a block back."""
        before = self._ends.get(offset)
        if before is not None:
            self._drop(before, offset - before)
            offset, size = before, size + offset - before
        after = self._starts.get(offset + size)
        if after is not None:
            self._drop(offset + size, after)
            size += after
        self._put(offset, size)

    def _put(self, offset: int, size: int) -> None:
        self._starts[offset] = size
        self._ends[offset + size] = offset
        bisect.insort(self._sizes, (size, offset))

    def _drop(self, offset: int, size: int) -> None:
        del self._starts[offset], self._ends[offset + size]
        del self._sizes[bisect.bisect_left(self._sizes, (size, offset))]


def rounded(size: int) -> int:
    """Return ``size`` rounded up to the alignment, at least one unit."""
    return max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)


def plan(steps: Sequence[Step], outputs: Sequence[int], later: frozenset[int], threads: int) -> Layout:
    """Lay out the values of ``steps``: ``outputs`` are the graph's (some twice), ``later`` serves later segments.

    Each of ``threads`` has scratch of its own for the pieces that steps are cut into.
    """
    layout = Layout()
    last = _last_uses(steps, outputs, later, layout)
    _choose_places(steps, outputs, layout)
    _sweep(steps, last, layout)
    layout.peak_bytes += max((min(threads, step.form.pieces) * step.form.piece_bytes for step in steps), default=0)
    return layout


def _last_uses(steps: Sequence[Step], outputs: Iterable[int], later: frozenset[int], layout: Layout) -> dict[int, int]:
    last: dict[int, int] = {}
    roots = layout.roots
    for index, step in enumerate(steps):
        record = step.record
        if step.form.is_view:
            base = layout.root(record.inputs[0])
            roots.update((number, base) for number in record.outputs if number != ABSENT)
        for number in (*record.inputs, *record.captures, *record.outputs):
            last[number] = last[roots.get(number, number)] = index
    for number in (*outputs, *later):
        last[number] = last[layout.root(number)] = len(steps)
    last.pop(ABSENT, None)
    return last


def _choose_places(steps: Sequence[Step], outputs: Sequence[int], layout: Layout) -> None:
    claims: dict[int, list[int]] = {}
    for number in outputs:
        claims.setdefault(layout.root(number), []).append(number)
    claimed = {n for group in claims.values() for n in group}
    sizes = {n: size for step in steps if not step.open and not claimed.isdisjoint(step.record.outputs)
             for n, size in zip(step.record.outputs, step.form.sizes, strict=True)}
    places = layout.places
    for step in steps:
        for number in step.record.outputs:
            if not step.form.fills:
                places[number] = Place.OBJECT
                continue
            group = claims.get(number, ())
            alone = len(group) == 1 and sizes.get(group[0]) == step.form.sizes[0]
            places[number] = Place.OUTPUT if alone else Place.ARENA
    places.pop(ABSENT, None)


def _sweep(steps: Sequence[Step], last: Mapping[int, int], layout: Layout) -> None:
    allocator = Allocator()
    dying: list[list[int]] = [[] for _ in range(len(steps) + 1)]
    for number, index in last.items():
        dying[index].append(number)
    objects: dict[int, int] = {}
    handed_out = live = peak = 0
    blocks: dict[int, tuple[int, int]] = {}
    for index, step in enumerate(steps):
        form, places = step.form, layout.places
        taken = _in_place(step, index, last, layout, blocks) if form.overwrites else None
        for number, size in zip(step.record.outputs, form.sizes, strict=True):
            if number == ABSENT:
                continue
            place = places[number]
            if place is Place.ARENA:
                if taken is None:
                    size = rounded(size)
                    blocks[number] = (allocator.take(size), size)
                else:
                    blocks[number] = blocks.pop(taken)
                layout.offsets[number] = blocks[number][0]
            elif place is Place.OUTPUT:
                handed_out += size
            elif layout.root(number) == number:
                objects[number] = size
                live += size
        if form.work:
            spots = [(allocator.take(rounded(nbytes(t))), t) for t in form.work]
            layout.work[index] = spots
            for offset, type_ in spots:
                allocator.give(offset, rounded(nbytes(type_)))
        peak = max(peak, handed_out + live + form.scratch)
        for number in dying[index]:
            if number in blocks:
                allocator.give(*blocks.pop(number))
            elif number in objects:
                live -= objects.pop(number)
        layout.releases.append([n for n in dying[index] if places.get(n) is Place.OBJECT] if dying[index] else [])
    layout.arena_bytes = allocator.high
    layout.peak_bytes = allocator.high + peak


def _in_place(step: Step, index: int, last: Mapping[int, int], layout: Layout,
              blocks: Mapping[int, tuple[int, int]]) -> int | None:
    """Return the operand whose block the output of ``step`` may take over."""
    inputs = step.record.inputs
    if layout.places[step.record.outputs[0]] is not Place.ARENA:
        return None
    for slot in step.form.overwrites:
        number = inputs[slot]
        if number not in blocks or last[number] != index:
            continue
        if len(inputs) == 1 or not any(other != number and other != ABSENT and layout.root(other) == number for other in inputs):
            return number
    return None


class Frame:
    """The memory of one run of a segment: its arena, and the views that the generated code works on."""

    __slots__ = ("arena", "buffers", "chunks", "work")

    def __init__(self, layout: Layout, types: Mapping[int, Type]) -> None:
        self.arena = np.empty(layout.arena_bytes + ALIGNMENT, np.uint8)
        shift = -self.arena.ctypes.data % ALIGNMENT
        views: dict[tuple[int, Type], Array] = {}  # values that take turns in one place share one
        self.buffers: dict[int, Array] = {}
        for number, offset in layout.offsets.items():
            key = offset, types[number]
            if key not in views:
                views[key] = view(self.arena, shift + offset, types[number])
            self.buffers[number] = views[key]
        self.work = {i: [view(self.arena, shift + offset, t) for offset, t in spots] for i, spots in layout.work.items()}
        self.chunks: list[tuple[Array | list[Array], ...]] = []


def view(arena: Array, offset: int, type_: Type) -> Array:
    """Return the bytes of ``arena`` from ``offset`` as an array of a static type."""
    return arena[offset:offset + nbytes(type_)].view(type_.dtype.numpy).reshape(type_.static_shape)
