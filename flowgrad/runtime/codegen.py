"""Straight-line Python for a segment: one statement a step, in chunks, so that compiling stays linear.

Generated text holds nothing from a file: values are ``v7``, everything bound (kernels, attributes, constants, types) is
``k7``, keyword names are those of kernel parameters. A chunk is ``f(c, b, s, a, k)``: context of the run, buffers of the
chunk, slots that outlive chunks, arena, what is bound. Both count from 0 in every chunk, so that chunks of one structure
(the layers of a network, the steps of a chain) have one text, which is compiled once.
"""

from __future__ import annotations

import functools
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array
from flowgrad.ir.ops.registry import Trait
from flowgrad.ir.types import Shape
from flowgrad.runtime.dynamic_calls import OpenCall, SubgraphCalls
from flowgrad.runtime.flat_graph import ABSENT
from flowgrad.runtime.kernels import Bound, Several, Single, detached, fill, spread
from flowgrad.runtime.memory import Frame, Layout, Place
from flowgrad.runtime.specialise import Step
from flowgrad.runtime.splits import Blocks

CHUNK = 400
"""Steps of one generated function."""

FILENAME = "<flowgrad segment>"
_TEXT = re.compile(r"[ \w.,:!=()\[\]\n]*")

_HANDED = ("work", "rng", "subgraphs")
"""What kernels are handed by keyword that is no attribute."""

Chunk = Callable[[Any, Any, list[Any], Array, tuple[Any, ...]], None]


@dataclass(slots=True)
class Code:
    """The generated functions of a segment, what is bound in each, what buffers each wants, and which step each line is of."""

    functions: list[Chunk] = field(default_factory=list)
    bound: list[tuple[Any, ...]] = field(default_factory=list)
    buffers: list[list[int]] = field(default_factory=list)
    works: list[list[int]] = field(default_factory=list)
    lines: list[list[int]] = field(default_factory=list)


class Writer:
    """Writes the chunks of one segment."""

    def __init__(self, steps: Sequence[Step], layout: Layout, slots: Mapping[int, int], constants: Mapping[int, Array],
                 views: frozenset[int], calls: SubgraphCalls, blocks: Blocks, marked: bool = False) -> None:
        self.steps, self.layout, self.slots, self.constants = steps, layout, slots, constants
        self.views = views
        self.calls = calls
        self.blocks = blocks
        self.marked = marked
        self.bound: dict[int, tuple[str, Any]] = {}
        self.lines: list[str] = []
        self.owners: list[int] = []
        self.local: dict[int, str] = {}
        self.loads: list[int] = []
        self.buffers: list[int] = []
        self.works: list[int] = []
        self.spread: dict[tuple[int, Shape | None], Array] = {}
        """The constants in the shapes of the results that they are spread to."""

    def code(self) -> Code:
        """Return the compiled chunks."""
        code = Code()
        for start in range(0, len(self.steps), CHUNK):
            self._chunk(start, min(start + CHUNK, len(self.steps)), code)
        return code

    # ---- one chunk ---------------------------------------------------------------------------------------------------

    def _chunk(self, start: int, stop: int, code: Code) -> None:
        self.bound, self.lines, self.owners, self.local = {}, [], [], {}
        self.loads, self.buffers, self.works = [], [], []
        for index in range(start, stop):
            self._step(index)
        loads = [f" {self.local[n]} = {self._slot(n)}" for n in self.loads]
        head = ["def f(c, b, s, a, k):"]
        if self.bound:
            head.append(f" ({', '.join(name for name, _ in self.bound.values())},) = k")
        taken = [self.local[n] for n in self.buffers] + [f"w{i}" for i in range(len(self.works))]
        if taken:
            head.append(f" ({', '.join(taken)},) = b")
        head += loads
        if self.marked:
            head.append(" c.mark(None)")
        code.functions.append(_compiled("\n".join([*head, *self.lines, " return\n"])))
        code.bound.append(tuple([thing for _, thing in self.bound.values()]))
        code.buffers.append(self.buffers)
        code.works.append(self.works)
        code.lines.append([-1] * len(head) + self.owners + [-1])

    def _emit(self, index: int, *lines: str) -> None:
        for line in lines:
            self.lines.append(f" {line}")
            self.owners.append(index)

    def _bound(self, thing: Any) -> str:
        """Return the name of something that is bound in this chunk, under one name however often it is used."""
        known = self.bound.get(id(thing))
        if known is None:
            known = self.bound[id(thing)] = f"k{len(self.bound)}", thing
        return known[0]

    def _slot(self, number: int) -> str:
        return f"s[{self._bound(self.slots[number])}]"

    def _name(self, number: int) -> str:
        """Return the name of a value that the chunk makes itself, or has seen before."""
        name = self.local.get(number)
        if name is None:
            name = self.local[number] = f"v{len(self.local)}"
        return name

    def _use(self, number: int) -> str:
        """Return the expression of an input, loading it at the start of the chunk if it comes from outside."""
        name = self.local.get(number)
        if name is not None:
            return name
        if number == ABSENT:
            return "None"
        if number in self.constants:
            return self._bound(self.constants[number])
        if number in self.layout.offsets or number in self.views:
            self.buffers.append(number)
        else:
            self.loads.append(number)
        return self._name(number)

    # ---- one step ----------------------------------------------------------------------------------------------------

    def _step(self, index: int) -> None:
        step = self.steps[index]
        present = [n for n in step.record.outputs if n != ABSENT]
        if not self.views.issuperset(present):
            self._call(index, step, present)
            for number in present:
                if number in self.slots:
                    self._emit(index, f"{self._slot(number)} = {self._name(number)}")
            if self.marked:
                made = "".join(f", {self._name(n)}" for n in present) if step.open else ""
                self._emit(index, f"c.mark({self._bound(step)}{made})")
        elif any(n in self.slots for n in present):
            for number in present:
                if number in self.slots:
                    self._emit(index, f"{self._slot(number)} = {self._use(number)}")
        self._release(index)

    def _release(self, index: int) -> None:
        for number in self.layout.releases[index]:
            if number in self.views:
                continue
            if number in self.local:
                self._emit(index, f"{self.local[number]} = None")
            if number in self.slots:
                self._emit(index, f"{self._slot(number)} = None")

    def _call(self, index: int, step: Step, present: list[int]) -> None:
        record = step.record
        arguments = [self._use(n) for n in record.inputs]
        if step.open:
            call = self._bound(OpenCall(step, self.calls))
            captures = "".join(f"{self._use(n)}, " for n in record.captures)
            self._emit(index, f"r = {call}(c, ({''.join(a + ', ' for a in arguments)}), ({captures}))")
            self._unpack(index, step, present)
            return
        bound = step.form.bound(self.blocks)
        if bound.positional_out and Trait.BROADCASTS in record.definition.traits:
            arguments = [self._spread(step, n, a) for n, a in zip(record.inputs, arguments, strict=True)]
        arguments += self._keywords(index, step, bound)
        function = self._bound(bound.function)
        place = self.layout.places[present[0]] if present else Place.OBJECT
        if place is Place.OBJECT:
            self._object(index, step, f"{function}({', '.join(arguments)})", present)
            return
        if place is Place.OUTPUT:
            type_, target = step.twin.output().type, self._name(present[0])
            empty, shape, dtype = map(self._bound, (np.empty, type_.static_shape, type_.dtype.numpy))
            self._emit(index, f"{target} = {empty}({shape}, {dtype})")
        else:
            target = self._use(present[0])
        if bound.positional_out:
            self._emit(index, f"{function}({', '.join([*arguments, target])})")
            return
        self._emit(index, f"r = {function}({', '.join([*arguments, f'out={target}'])})",
                   f"if r is not {target}: {self._bound(fill)}({target}, r)")

    def _spread(self, step: Step, number: int, argument: str) -> str:
        constant = self.constants.get(number)
        if constant is None:
            return argument
        key = number, step.twin.output().type.shape
        wide = self.spread.get(key)
        if wide is None:
            wide = self.spread[key] = spread(constant, step.twin)
        return argument if wide is constant else self._bound(wide)

    def _object(self, index: int, step: Step, call: str, present: list[int]) -> None:
        if len(step.twin.outputs) == 1 and present:
            type_ = step.twin.output().type
            name = self._name(present[0])
            check = f"{name}.__class__ is not {self._bound(np.ndarray)} or {name}.dtype is not {self._bound(type_.dtype.numpy)}"
            self._emit(index, f"{name} = {call}",
                       f"if {check} or {name}.shape != {self._bound(type_.static_shape)}: "
                       f"{name} = {self._bound(Single(step.twin))}({name})")
            if self._may_alias(step):
                self._detach(index, name)
            return
        self._emit(index, f"r = {self._bound(Several(step.twin))}({call})")
        self._unpack(index, step, present)

    def _unpack(self, index: int, step: Step, present: list[int]) -> None:
        if not present:
            return
        names = [self._name(n) for n in present]
        self._emit(index, f"({', '.join(names)},) = r", "r = None")
        if self._may_alias(step):
            for name in names:
                self._detach(index, name)

    def _detach(self, index: int, name: str) -> None:
        self._emit(index, f"if {name}.base is not None: {name} = {self._bound(detached)}({name}, a)")

    def _may_alias(self, step: Step) -> bool:
        """True if a result could look at the arena without the plan knowing."""
        numbers = () if Trait.VIEW in step.record.definition.traits else step.record.inputs
        return bool(step.record.captures) or any(n != ABSENT and self.layout.in_arena(n) for n in numbers)

    def _keywords(self, index: int, step: Step, bound: Bound) -> list[str]:
        given = [f"{_checked(name)}={self._bound(value)}" for name, value in bound.keywords.items()] if bound.keywords else []
        special = step.record.definition.special
        if special.isdisjoint(_HANDED):
            return given
        if "work" in special and index in self.layout.work:
            given.append(f"work=w{len(self.works)}")
            self.works.append(index)
        if "rng" in special:
            given.append("rng=c.rng")
        if "subgraphs" in special:
            captures = "".join(f"{self._use(n)}, " for n in step.record.captures)
            given.append(f"subgraphs={self._bound(self.calls.binder(step))}(c, ({captures}))")
        return given


@functools.lru_cache(maxsize=128)
def _compiled(text: str) -> Chunk:
    """Return the function of a text. It holds nothing: what is bound is given with every call."""
    if not _TEXT.fullmatch(text):
        raise ValidationError("generated code is not of the expected form", code="codegen")
    names: dict[str, Any] = {}
    exec(compile(text, FILENAME, "exec"), names)  # noqa: S102 - text checked above
    function: Chunk = names.pop("f")
    return function


def _checked(name: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValidationError(f"an attribute cannot be called {name!r}", code="codegen")
    return name


def frame_chunks(code: Code, frame: Frame, views: Mapping[int, Array]) -> None:
    """Give ``frame`` the buffers of each chunk, in the order in which the generated code unpacks them."""
    everything = {**frame.buffers, **views}
    frame.chunks = [tuple([*(everything[n] for n in wanted), *(frame.work[i] for i in works)])
                    for wanted, works in zip(code.buffers, code.works, strict=True)]
