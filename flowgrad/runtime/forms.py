"""What op, attributes, types and constants decide about a step: found once for all steps that agree in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

from flowgrad.ir.boundary import boundary
from flowgrad.ir.errors import RunError
from flowgrad.ir.graph import CONSTANT, Node, Value
from flowgrad.ir.ops.registry import OpDef, Trait
from flowgrad.ir.types import Type
from flowgrad.runtime.kernels import Bound, bind, may_overwrite, pieces_of, takes_out
from flowgrad.runtime.splits import Blocks, piece_bytes

BLAS_ELEMENTS = 4096
"""BLAS may use threads of its own from operands of about this size on."""


class Form:
    """What the twin of a step says about it: ``twin`` has its types, and stands for all steps of this form.

    ``fills`` tells whether the kernel writes into a buffer that it is given, ``is_view`` whether the result may look at
    the first input, ``sizes`` the bytes of each output, ``overwrites`` the slots of inputs that are as large as the result
    and may be written over, ``work`` the scratch buffers, ``scratch`` the bytes that the kernel takes besides, ``pieces`` how
    many pieces it is cut into, ``piece_bytes`` the scratch of one of them, ``needs_blas`` whether BLAS may use threads.
    """

    __slots__ = ("_bound", "definition", "fills", "is_view", "needs_blas", "overwrites", "piece_bytes", "pieces", "scratch",
                 "sizes", "twin", "work")

    def __init__(self, twin: Node, definition: OpDef, is_open: bool) -> None:
        self.twin, self.definition = twin, definition
        self.fills = not is_open and takes_out(twin, definition)
        self.is_view = not self.fills and Trait.VIEW in definition.traits and twin.optional(0) is not None
        self.sizes = tuple([0 if v is None or is_open else nbytes(v.type) for v in twin.outputs])
        self.overwrites = _overwrites(twin, definition) if self.fills else ()
        self.work: tuple[Type, ...] = ()
        self.pieces = self.piece_bytes = 0
        if definition.work_rule is not None and "work" in definition.special and not is_open:
            self._find_work(twin, definition, definition.work_rule)
        self.scratch = 0 if is_open else _scratch_bytes(twin, definition)
        self.needs_blas = not is_open and _may_use_blas(twin, definition)
        self._bound: tuple[Blocks, Bound] | None = None

    def _find_work(self, twin: Node, definition: OpDef, rule: Callable[[Node], Sequence[Type]]) -> None:
        with boundary(twin, "the work rule of", RunError, "kernel"):
            cuts = pieces_of(twin, definition)
            self.pieces, self.piece_bytes = len(cuts), piece_bytes(twin, definition, cuts)
            self.work = () if cuts else tuple(rule(twin))

    def bound(self, blocks: Blocks) -> Bound:
        """Return the kernel, for as many threads as there are blocks of scratch."""
        if self._bound is None or self._bound[0] is not blocks:
            self._bound = blocks, bind(self.twin, self.definition, blocks)
        return self._bound[1]


def operand_key(value: Value) -> Hashable:
    """Return what type rules and kernels know of an operand: the type of a float, all of a constant or an integer."""
    type_ = value.type
    return type_ if type_.dtype.kind == "float" and value.producer.op != CONSTANT else value


def nbytes(type_: Type) -> int:
    """Return the bytes of a tensor of a static type, as a Python integer that cannot overflow."""
    return math.prod(type_.static_shape) * type_.dtype.itemsize


def _overwrites(twin: Node, definition: OpDef) -> tuple[int, ...]:
    if not may_overwrite(twin, definition):
        return ()
    result = twin.output().type
    return tuple([slot for slot, v in enumerate(twin.inputs) if v is not None and v.type == result])


def _scratch_bytes(twin: Node, definition: OpDef) -> int:
    if definition.scratch_rule is None:
        return 0
    with boundary(twin, "the scratch rule of", RunError, "kernel"):
        return definition.scratch_rule(twin)


def _may_use_blas(twin: Node, definition: OpDef) -> bool:
    if Trait.ELEMENTWISE in definition.traits or Trait.VIEW in definition.traits:
        return False
    return any(_elements(v) >= BLAS_ELEMENTS for v in (*twin.operands, *twin.results))


def _elements(value: Value) -> int:
    size = value.type.size
    return size if isinstance(size, int) else 0
