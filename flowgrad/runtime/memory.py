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

from flowgrad.ir.boundary import boundary
from flowgrad.ir.errors import RunError
from flowgrad.ir.graph import Array, Value
from flowgrad.ir.ops.registry import Trait
from flowgrad.ir.types import Type
from flowgrad.runtime.flat_graph import ABSENT
from flowgrad.runtime.kernels import may_overwrite, pieces_of, takes_out
from flowgrad.runtime.specialise import Step, nbytes

ALIGNMENT = 64


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


def plan(steps: Sequence[Step], outputs: Sequence[int], later: frozenset[int]) -> Layout:
    """Lay out the values of ``steps``: ``outputs`` are the graph's (some twice), ``later`` serves later segments."""
    layout = Layout()
    last = _last_uses(steps, outputs, later, layout)
    _choose_places(steps, outputs, layout)
    _sweep(steps, last, layout)
    return layout


def _present(numbers: Iterable[int]) -> list[int]:
    return [n for n in numbers if n != ABSENT]


def _last_uses(steps: Sequence[Step], outputs: Iterable[int], later: frozenset[int], layout: Layout) -> dict[int, int]:
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        record = step.record
        if is_view(step):
            base = layout.root(record.inputs[0])
            for number in _present(record.outputs):
                layout.roots[number] = base
        for number in _present((*record.inputs, *record.captures)):
            last[number] = last[layout.root(number)] = index
        for number in _present(record.outputs):
            last[number] = index
            last[layout.root(number)] = index
    for number in (*outputs, *later):
        last[number] = last[layout.root(number)] = len(steps)
    return last


def _choose_places(steps: Sequence[Step], outputs: Sequence[int], layout: Layout) -> None:
    claims: dict[int, list[int]] = {}
    for number in outputs:
        claims.setdefault(layout.root(number), []).append(number)
    sizes = {n: nbytes(v.type) for step in steps if not step.open
             for n, v in zip(step.record.outputs, step.twin.outputs, strict=True) if v is not None}
    for step in steps:
        for number, value in zip(step.record.outputs, step.twin.outputs, strict=True):
            if number == ABSENT:
                continue
            if not has_buffer(step, value):
                layout.places[number] = Place.OBJECT
                continue
            claimed = claims.get(number, [])
            alone = len(claimed) == 1 and sizes.get(claimed[0]) == sizes[number]
            layout.places[number] = Place.OUTPUT if alone else Place.ARENA


def is_view(step: Step) -> bool:
    """True if the result of ``step`` may look at its first input: a kernel that fills a buffer of its own does not."""
    record = step.record
    if Trait.VIEW not in record.definition.traits or not record.inputs or record.inputs[0] == ABSENT:
        return False
    return not any(has_buffer(step, value) for value in step.twin.outputs)


def has_buffer(step: Step, value: Value | None) -> bool:
    """True if the kernel of ``step`` writes into a buffer that it is given."""
    return value is not None and not step.open and takes_out(step.twin, step.record.definition)


def _sweep(steps: Sequence[Step], last: Mapping[int, int], layout: Layout) -> None:
    allocator = Allocator()
    dying: list[list[int]] = [[] for _ in range(len(steps) + 1)]
    for number, index in last.items():
        dying[index].append(number)
    objects: dict[int, int] = {}
    handed_out = live = peak = 0
    blocks: dict[int, tuple[int, int]] = {}
    for index, step in enumerate(steps):
        taken = _in_place(step, index, last, layout, blocks)
        for number, value in zip(step.record.outputs, step.twin.outputs, strict=True):
            if number == ABSENT or value is None:
                continue
            place = layout.places[number]
            size = 0 if step.open else nbytes(value.type)
            if place is Place.ARENA:
                if taken is None:
                    blocks[number] = (allocator.take(rounded(size)), rounded(size))
                else:
                    blocks[number] = blocks.pop(taken)
                layout.offsets[number] = blocks[number][0]
            elif place is Place.OUTPUT:
                handed_out += size
            elif layout.root(number) == number:
                objects[number] = size
                live += size
        scratch = _work_types(step)
        spots = [(allocator.take(rounded(nbytes(t))), t) for t in scratch]
        if spots:
            layout.work[index] = spots
        peak = max(peak, live)
        for offset, type_ in spots:
            allocator.give(offset, rounded(nbytes(type_)))
        for number in dying[index]:
            if number in blocks and last[number] == index:
                allocator.give(*blocks.pop(number))
            live -= objects.pop(number, 0)
        layout.releases.append([n for n in dying[index] if layout.places.get(n) is Place.OBJECT])
    layout.arena_bytes = allocator.high
    layout.peak_bytes = allocator.high + handed_out + peak


def _work_types(step: Step) -> list[Type]:
    rule = step.record.definition.work_rule
    if rule is None or step.open or "work" not in step.record.definition.special:
        return []
    with boundary(step.twin, "the work rule of", RunError, "kernel"):
        return [] if pieces_of(step.twin, step.record.definition) else list(rule(step.twin))


def _in_place(step: Step, index: int, last: Mapping[int, int], layout: Layout,
              blocks: Mapping[int, tuple[int, int]]) -> int | None:
    """Return the operand whose block the output of ``step`` may take over."""
    record = step.record
    if not may_overwrite(step.twin, record.definition) or layout.places.get(record.outputs[0]) is not Place.ARENA:
        return None
    result = step.twin.output().type
    for number, value in zip(record.inputs, step.twin.inputs, strict=True):
        if value is None or number not in blocks or last[number] != index or value.type != result:
            continue
        if not any(other != number and other != ABSENT and layout.root(other) == number for other in record.inputs):
            return number
    return None


class Frame:
    """The memory of one run of a segment: its arena, and the views that the generated code works on."""

    __slots__ = ("arena", "buffers", "chunks", "work")

    def __init__(self, layout: Layout, types: Mapping[int, Type]) -> None:
        self.arena = np.empty(layout.arena_bytes + ALIGNMENT, np.uint8)
        shift = -self.arena.ctypes.data % ALIGNMENT
        self.buffers = {n: view(self.arena, shift + offset, types[n]) for n, offset in layout.offsets.items()}
        self.work = {i: [view(self.arena, shift + offset, t) for offset, t in spots] for i, spots in layout.work.items()}
        self.chunks: list[tuple[Array | list[Array], ...]] = []


def view(arena: Array, offset: int, type_: Type) -> Array:
    """Return the bytes of ``arena`` from ``offset`` as an array of a static type."""
    return arena[offset:offset + nbytes(type_)].view(type_.dtype.numpy).reshape(type_.static_shape)
