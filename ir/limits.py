"""Limits on what a file or a run may ask for: given by the caller, checked before anything is built."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field, fields, replace
from typing import Any, ParamSpec, TypeVar

from flowgrad.ir.errors import InputError, LimitError, ValidationError, suggestion

P = ParamSpec("P")
R = TypeVar("R")

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30
_MOST = 2**63 - 1
_UNITS = {"KiB": _KIB, "MiB": _MIB, "GiB": _GIB}

DIM_TERMS = 256
"""How many terms and names an extent may be made of at most; no limits allow more."""


def _half_of_memory() -> int:
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # a system that does not tell
        return 4 * _GIB
    return min(16 * _GIB, installed // 2)


def _number(name: str, text: str) -> float:
    unit = next((u for u in _UNITS if text.endswith(u)), "")
    try:
        number = float(text.removesuffix(unit)) * _UNITS.get(unit, 1)
    except ValueError as error:
        raise InputError(f"the limit {name} is no number: {text!r}", code="limit") from error
    return int(number) if math.isfinite(number) and number == int(number) else number


@dataclass(frozen=True)
class Limits:
    """What reading and running may use at most. Bytes, counts and seconds; the defaults suit trusted-size models.

    Examples:
        >>> fg.load("tests/data/mlp.onnx", limits=fg.Limits(nodes=2))
        Traceback (most recent call last):
        flowgrad.ir.errors.LimitError: ...
    """

    file_bytes: int = 2 * _GIB
    header_bytes: int = 64 * _MIB
    nodes: int = 1_000_000
    values: int = 2_000_000
    attributes: int = 1_000
    name_bytes: int = 4 * _KIB
    string_bytes: int = 64 * _MIB
    rank: int = 32
    dim: int = 2**48
    dim_terms: int = DIM_TERMS
    tensor_bytes: int = 8 * _GIB
    live_bytes: int = field(default_factory=_half_of_memory)
    expanded_nodes: int = 2_000_000
    depth: int = 64
    function_depth: int = 64
    loop_steps: int = 10_000_000
    wall_seconds: float = math.inf

    def __post_init__(self) -> None:
        for entry in fields(self):
            given = getattr(self, entry.name)
            if isinstance(given, bool) or not isinstance(given, (int, float)) or not given >= 0:
                raise InputError(f"the limit {entry.name} must be a number of at least 0, got {given!r}", code="limit")

    @staticmethod
    @functools.cache
    def default() -> Limits:
        """Return the limits that hold where the caller gives none."""
        return Limits()

    @staticmethod
    def strict() -> Limits:
        """Return limits for files from strangers."""
        return Limits(
            file_bytes=64 * _MIB, header_bytes=8 * _MIB, nodes=100_000, values=200_000, attributes=100,
            name_bytes=_KIB, string_bytes=8 * _MIB, rank=16, dim=2**31, dim_terms=64, tensor_bytes=256 * _MIB,
            live_bytes=min(_GIB, _half_of_memory()), expanded_nodes=200_000, depth=16, function_depth=16,
            loop_steps=100_000, wall_seconds=60.0,
        )

    @staticmethod
    def parse(text: str) -> Limits:
        """Return the limits that a text such as ``strict,wall_seconds=5,live_bytes=2GiB`` says.

        The first entry may be default (which holds without it), strict or unlimited. Raises InputError.
        """
        entries = [e.strip() for e in text.split(",") if e.strip()]
        start = entries.pop(0) if entries and "=" not in entries[0] else "default"
        known = {"default": Limits.default(), "strict": Limits.strict(), "unlimited": Limits.unlimited()}
        if start not in known:
            raise InputError(f"no limits called {start!r}{suggestion(start, known)}; they begin with {', '.join(known)}, or "
                             "NAME=VALUE", code="limit")
        names = [entry.name for entry in fields(Limits)]
        given: dict[str, Any] = {}
        for entry in entries:
            name, _, number = entry.partition("=")
            if name not in names:
                raise InputError(f"no limit {name!r}{suggestion(name, names)}; limits: {', '.join(names)}", code="limit")
            given[name] = _number(name, number)
        return replace(known[start], **given)

    @staticmethod
    def unlimited() -> Limits:
        """Return limits that never bind, except the depth that the readers' own stacks bear."""
        free = {entry.name: _MOST for entry in fields(Limits) if entry.name not in ("wall_seconds", "depth")}
        return Limits(**free, depth=64, wall_seconds=math.inf)

    def check(self, name: str, value: float, where: str = "") -> None:
        """Raise LimitError naming the limit, its value and ``value`` if ``value`` is larger."""
        limit = getattr(self, name)
        if value > limit:
            shown = f"{value:,}" if isinstance(value, int) and value < 10**30 else f"{value:.3g}" if isinstance(
                value, float) else "more than 10^30"
            raise LimitError(f"{name} is {shown}, the limit is {limit:,}; raise it with Limits({name}=...), on the command line "
                             f"with --limits {name}=...", code=name, where=where)


class Meter:
    """What one run, or one folding, has used up: calls of subgraphs, time from when the meter was made, memory in use.

    ``live`` counts what all calls that go on hold, at every depth: their frames, and scan outputs being filled.
    """

    __slots__ = ("deadline", "limits", "live", "steps")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.steps = 0
        self.live = 0
        self.deadline = math.inf if limits.wall_seconds == math.inf else time.monotonic() + limits.wall_seconds

    def step(self) -> None:
        """Count a call of a subgraph. Raises LimitError beyond ``loop_steps`` or ``wall_seconds``."""
        self.steps += 1
        if self.steps > self.limits.loop_steps:
            self.limits.check("loop_steps", self.steps)
        if self.deadline != math.inf:
            self.check_time()

    def foresee(self, steps: int, what: str) -> None:
        """Raise LimitError if ``steps`` calls of a subgraph, which are sure to come, would pass ``loop_steps``."""
        self.limits.check("loop_steps", self.steps + steps, what)

    def take(self, nbytes: int, what: str = "") -> None:
        """Count memory that is about to be allocated. Raises LimitError beyond ``live_bytes``."""
        self.live += nbytes
        if self.live > self.limits.live_bytes:
            self.limits.check("live_bytes", self.live, what)

    def give(self, nbytes: int) -> None:
        """Count memory as free again. A run that fails need not: its meter ends with it."""
        self.live -= nbytes

    def check_time(self) -> None:
        """Raise LimitError once more than ``wall_seconds`` have gone by."""
        late = time.monotonic() - self.deadline
        if late > 0:
            self.limits.check("wall_seconds", self.limits.wall_seconds + late)


_METER: ContextVar[Meter | None] = ContextVar("meter of the stage", default=None)


def in_time(limits: Limits, function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R:
    """Call ``function``, a stage (loading, a transform, passes, compiling, export), within ``limits.wall_seconds``.

    A stage within a stage has what is left to the outer one. ``check_time`` says when it is over. The meter is set in a
    copy of the context, which ends with the call however that ends.
    """
    if limits.wall_seconds == math.inf or _METER.get() is not None:
        return function(*arguments, **keywords)
    context = copy_context()
    context.run(_METER.set, Meter(limits))
    return context.run(function, *arguments, **keywords)


def metered(meter: Meter, function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R:
    """Call ``function``, a run, whose kernels keep to the limits and the time of ``meter``."""
    if meter.limits is Limits.default() or _METER.get() is meter:
        return function(*arguments, **keywords)
    token = _METER.set(meter)
    try:
        return function(*arguments, **keywords)
    finally:
        _METER.reset(token)


def check_time() -> None:
    """Raise LimitError if what goes on has used up its ``wall_seconds``: called for every node that is worked on, and in
    kernels with loops of their own."""
    meter = _METER.get()
    if meter is not None:
        meter.check_time()


OPERATIONS_A_SECOND = 1e10
"""More than NumPy does in one thread: what takes too long by this number takes too long everywhere."""


def check_work(operations: float, what: str) -> None:
    """Raise LimitError if a kernel that is about to start cannot end within what is left of ``wall_seconds``."""
    meter = _METER.get()
    if meter is None or meter.deadline == math.inf:
        return
    seconds = meter.limits.wall_seconds + time.monotonic() - meter.deadline + operations / OPERATIONS_A_SECOND
    meter.limits.check("wall_seconds", seconds, what)


def check_empty(shape: Sequence[int], itemsize: int, where: str) -> None:
    """Raise LimitError for an array without elements that NumPy cannot make: it multiplies the other extents all the same."""
    if 0 in shape and math.prod(n for n in shape if n) * itemsize > _MOST:
        raise LimitError(f"no array has the shape {list(shape)}: without the zeros it would pass the address space",
                         code="tensor_bytes", where=where)


def check_extent(dim: int, limits: Limits, where: str) -> None:
    """Raise LimitError for an extent that passes ``limits``, ValidationError for a negative one."""
    limits.check("dim", dim, where)
    if dim < 0:
        raise ValidationError(f"the extent {dim} is negative", code="shape", where=where)


def check_scratch(nbytes: int, what: str) -> None:
    """Raise LimitError if a kernel is about to take more memory of its own than a tensor may have."""
    meter = _METER.get()
    limits = Limits.default() if meter is None else meter.limits
    if nbytes > limits.tensor_bytes:
        limits.check("tensor_bytes", nbytes, what)


def limits_or_default(limits: Limits | None) -> Limits:
    """Return ``limits``, or the default ones for None."""
    return Limits.default() if limits is None else limits
