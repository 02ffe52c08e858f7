"""Straight-line Python for a segment: one statement a step, in chunks, so that compiling stays linear.

Generated text holds nothing from a file: values are ``v7``, everything bound (kernels, attributes, constants, types) is
``k7``, keyword names are those of kernel parameters. A chunk is ``f(c, b, s, a)``: context of the run, buffers of the
chunk, slots that outlive chunks, arena.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array
from flowgrad.ir.ops.registry import Trait
from flowgrad.runtime.dynamic_calls import OpenCall, SubgraphCalls
from flowgrad.runtime.flat_graph import ABSENT
from flowgrad.runtime.kernels import Bound, Several, Single, bind, detached, fill, spread
from flowgrad.runtime.memory import Frame, Layout, Place
from flowgrad.runtime.specialise import Step

CHUNK = 400
"""Steps of one generated function."""

FILENAME = "<flowgrad segment>"
_LINE = re.compile(r"[ \w.,:!=()\[\]]*")

Chunk = Callable[[Any, Any, list[Any], Array], None]


@dataclass(slots=True)
class Code:
    """The generated functions of a segment, what buffers each wants, and which step each line belongs to."""

    functions: list[Chunk] = field(default_factory=list)
    buffers: list[list[int]] = field(default_factory=list)
    works: list[list[int]] = field(default_factory=list)
    lines: list[list[int]] = field(default_factory=list)


class Writer:
    """Writes the chunks of one segment."""

    def __init__(self, steps: Sequence[Step], layout: Layout, slots: Mapping[int, int], constants: Mapping[int, Array],
                 views: frozenset[int], calls: SubgraphCalls, threads: int) -> None:
        self.steps, self.layout, self.slots, self.constants = steps, layout, slots, constants
        self.views = views
        self.calls = calls
        self.threads = threads
        self.names: dict[str, Any] = {}
        self.lines: list[str] = []
        self.owners: list[int] = []
        self.local: set[int] = set()
        self.loads: list[int] = []
        self.buffers: list[int] = []
        self.works: list[int] = []

    def code(self) -> Code:
        """Return the compiled chunks."""
        code = Code()
        for start in range(0, len(self.steps), CHUNK):
            self._chunk(start, min(start + CHUNK, len(self.steps)), code)
        return code

    # ---- one chunk ---------------------------------------------------------------------------------------------------

    def _chunk(self, start: int, stop: int, code: Code) -> None:
        self.names = {"kA": np.ndarray, "kD": detached, "kE": np.empty, "kF": fill}
        self.lines, self.owners, self.local = [], [], set()
        self.loads, self.buffers, self.works = [], [], []
        for index in range(start, stop):
            self._step(index)
        head = ["def f(c, b, s, a):"]
        taken = [f"v{n}" for n in self.buffers] + [f"w{i}" for i in self.works]
        if taken:
            head.append(f" ({', '.join(taken)},) = b")
        head += [f" v{n} = s[{self.slots[n]}]" for n in self.loads]
        text = [*head, *self.lines, " return"]
        for line in text:
            if not _LINE.fullmatch(line):
                raise ValidationError("generated code is not of the expected form", code="codegen")
        exec(compile("\n".join(text) + "\n", FILENAME, "exec"), self.names)  # noqa: S102 - text checked above
        code.functions.append(self.names.pop("f"))  # not a global of itself: so it goes at once with its segment
        code.buffers.append(self.buffers)
        code.works.append(self.works)
        code.lines.append([-1] * len(head) + self.owners + [-1])

    def _emit(self, index: int, *lines: str) -> None:
        for line in lines:
            self.lines.append(" " + line)
            self.owners.append(index)

    def _bound(self, thing: Any) -> str:
        name = f"k{len(self.names)}"
        self.names[name] = thing
        return name

    def _use(self, number: int) -> str:
        """Return the expression of an input, loading it at the start of the chunk if it comes from outside."""
        if number == ABSENT:
            return "None"
        if number in self.constants:
            name = f"v{number}"
            self.names[name] = self.constants[number]
            return name
        if number not in self.local:
            self.local.add(number)
            if number in self.layout.offsets or number in self.views:
                self.buffers.append(number)
            else:
                self.loads.append(number)
        return f"v{number}"

    # ---- one step ----------------------------------------------------------------------------------------------------

    def _step(self, index: int) -> None:
        step = self.steps[index]
        present = [n for n in step.record.outputs if n != ABSENT]
        if not all(n in self.views for n in present):
            self._call(index, step, present)
            for number in present:
                if number in self.slots:
                    self._emit(index, f"s[{self.slots[number]}] = v{number}")
        elif any(n in self.slots for n in present):
            for number in present:
                if number in self.slots:
                    self._emit(index, f"s[{self.slots[number]}] = {self._use(number)}")
        self._release(index)

    def _release(self, index: int) -> None:
        for number in self.layout.releases[index]:
            if number in self.views:
                continue
            if number in self.local:
                self._emit(index, f"v{number} = None")
            if number in self.slots:
                self._emit(index, f"s[{self.slots[number]}] = None")

    def _call(self, index: int, step: Step, present: list[int]) -> None:
        record = step.record
        arguments = [self._use(n) for n in record.inputs]
        if step.open:
            call = self._bound(OpenCall(step, self.calls, self.threads))
            captures = "".join(f"{self._use(n)}, " for n in record.captures)
            self._emit(index, f"r = {call}(c, ({''.join(a + ', ' for a in arguments)}), ({captures}))")
            self._unpack(index, step, present)
            return
        bound = bind(step.twin, record.definition, self.threads)
        if bound.positional_out and Trait.BROADCASTS in record.definition.traits:
            arguments = [self._spread(step, n, a) for n, a in zip(record.inputs, arguments, strict=True)]
        arguments += self._keywords(index, step, bound)
        function = self._bound(bound.function)
        place = self.layout.places[present[0]] if present else Place.OBJECT
        if place is Place.OBJECT:
            self._object(index, step, f"{function}({', '.join(arguments)})", present)
            return
        target = present[0]
        if place is Place.OUTPUT:
            type_ = step.twin.output().type
            self.local.add(target)
            self._emit(index, f"v{target} = kE({self._bound(type_.static_shape)}, {self._bound(type_.dtype.numpy)})")
        else:
            self._use(target)
        self._emit(index, *_into(function, arguments, f"v{target}", bound))

    def _spread(self, step: Step, number: int, argument: str) -> str:
        constant = self.constants.get(number)
        if constant is None:
            return argument
        wide = spread(constant, step.twin)
        return argument if wide is constant else self._bound(wide)

    def _object(self, index: int, step: Step, call: str, present: list[int]) -> None:
        if len(step.twin.outputs) == 1 and present:
            type_ = step.twin.output().type
            name = f"v{present[0]}"
            self.local.add(present[0])
            check = f"{name}.__class__ is not kA or {name}.dtype is not {self._bound(type_.dtype.numpy)}"
            self._emit(index, f"{name} = {call}",
                       f"if {check} or {name}.shape != {self._bound(type_.static_shape)}: "
                       f"{name} = {self._bound(Single(step.twin))}({name})")
            if self._may_alias(step):
                self._emit(index, f"if {name}.base is not None: {name} = kD({name}, a)")
            return
        self._emit(index, f"r = {self._bound(Several(step.twin))}({call})")
        self._unpack(index, step, present)

    def _unpack(self, index: int, step: Step, present: list[int]) -> None:
        if not present:
            return
        self.local.update(present)
        self._emit(index, f"({''.join(f'v{n}, ' for n in present)}) = r", "r = None")
        if self._may_alias(step):
            for number in present:
                self._emit(index, f"if v{number}.base is not None: v{number} = kD(v{number}, a)")

    def _may_alias(self, step: Step) -> bool:
        """True if a result could look at the arena without the plan knowing."""
        if Trait.VIEW in step.record.definition.traits:
            numbers = [*step.record.inputs[1:], *step.record.captures]
        else:
            numbers = [*step.record.inputs, *step.record.captures]
        return bool(step.record.captures) or any(n != ABSENT and self.layout.in_arena(n) for n in numbers)

    def _keywords(self, index: int, step: Step, bound: Bound) -> list[str]:
        given = [f"{_checked(name)}={self._bound(value)}" for name, value in bound.keywords.items()]
        special = step.record.definition.special
        if "work" in special and index in self.layout.work:
            self.works.append(index)
            given.append(f"work=w{index}")
        if "rng" in special:
            given.append("rng=c.rng")
        if "subgraphs" in special:
            captures = "".join(f"{self._use(n)}, " for n in step.record.captures)
            given.append(f"subgraphs={self._bound(self.calls.binder(step))}(c, ({captures}))")
        return given


def _into(function: str, arguments: list[str], target: str, bound: Bound) -> list[str]:
    if bound.positional_out:
        return [f"{function}({', '.join([*arguments, target])})"]
    call = f"r = {function}({', '.join([*arguments, f'out={target}'])})"
    return [call, f"if r is not {target}: kF({target}, r)"]


def _checked(name: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValidationError(f"an attribute cannot be called {name!r}", code="codegen")
    return name


def frame_chunks(code: Code, frame: Frame, views: Mapping[int, Array]) -> None:
    """Give ``frame`` the buffers of each chunk, in the order in which the generated code unpacks them."""
    everything = {**frame.buffers, **views}
    frame.chunks = [tuple([*(everything[n] for n in wanted), *(frame.work[i] for i in works)])
                    for wanted, works in zip(code.buffers, code.works, strict=True)]
