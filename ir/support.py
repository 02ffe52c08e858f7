"""The support of cotangents and tangents: where no selection (Where, mask, gather, slice, pad, ...) has zeroed them.

What a selection has zeroed stays zero whatever it is multiplied by, so a product with a selected cotangent is the
selection of the product: Where(c, t, 0) * f becomes Where(c, t * f, 0), and 0 * inf is never formed. A zero that arithmetic
made is a number like any other. Masks are made when a product asks for them, so a graph without selections has none.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from flowgrad.ir.graph import ENTRIES, Node, Value
from flowgrad.ir.ops.registry import OpDef, Trait, opdef
from flowgrad.ir.types import BOOL

if TYPE_CHECKING:
    from flowgrad.ir.derivative_builder import DerivativeBuilder

Mask = Value | None
"""Booleans that broadcast to a value and hold where it may be other than zero; None says that they all hold."""

MOST_FACTORS = 16
"""A factor that takes more nodes than this to make of booleans and integers is no mask."""


class Support:
    """The masks of the values that derivative rules make of ``carried`` ones: cotangents and tangents."""

    def __init__(self, b: DerivativeBuilder) -> None:
        self.b = b
        self.carried: set[Value] = set()
        self.along: dict[Mask, tuple[int, Mask]] = {}
        """Masks of what an axis was spread along, with that axis and the mask of what was spread."""
        self.opposites: dict[Value, Value] = {}
        """The negations of masks."""
        self.unselected: dict[Value, Value] = {}
        """What a selection chose from, by what it made."""
        self._masks: dict[Value, Mask] = {}
        self._given: dict[Mask, Value] = {}  # masks, or what contains them, that selections of the graph gave
        self._masked: dict[Value, tuple[Value, Value]] = {}  # (mask, v) of each product MaskedMul(mask, v) made here
        self._born = b.graph._next_key  # conditions of nodes that are younger are kinks

    def start(self, value: Value, *, is_unit: bool = False) -> None:
        """Note a cotangent or tangent that was not made here: all of it counts, but of a unit vector only the 1."""
        self.carried.add(value)
        self._masks.setdefault(value, self.b.cast(value, BOOL) if is_unit else None)

    def condition(self, value: Value) -> Value:
        """Return the condition of a selection as a mask."""
        if value.producer.key < self._born:
            self._given[value] = value
        return value

    def given(self, mask: Mask) -> Mask:
        """Return what selections of the graph gave to a mask, not kinks of its operators: only that is worth much work."""
        return self._given.get(mask)

    def made(self, mask: Value, *parts: Value) -> Value:
        """Return ``mask``, made of other masks."""
        if all(self._given.get(part) is part for part in parts):
            self._given[mask] = mask
        return mask

    def containing(self, mask: Value, given: Value) -> Value:
        """Return ``mask``, which holds nowhere but where ``given`` holds."""
        self._given[mask] = given
        return mask

    def note(self, node: Node) -> None:
        """Note that what a rule makes of carried values is carried."""
        if not self.carried.isdisjoint(node.inputs):
            for value in node.outputs:
                if value is not None and value.type.dtype.is_float:
                    self.carried.add(value)

    def mask(self, value: Value) -> Mask:
        """Return the mask of a value."""
        if value not in self.carried:
            return None
        pending = [value]
        while pending:
            top = pending[-1]
            if top in self._masks:
                pending.pop()
                continue
            before = len(pending)
            for given in top.producer.inputs:
                if given in self.carried and given not in self._masks:
                    pending.append(given)
            if len(pending) == before:
                self._settle(top.producer)
        return self._masks[value]

    def _settle(self, node: Node) -> None:
        definition = opdef(node.op)
        masks = [None if v is None else self._masks.get(v) for v in node.inputs]
        if definition.support_rule is not None:
            found = definition.support_rule(self.b, node, masks)
            results = [found] * len(node.outputs)
        elif Trait.ELEMENTWISE in definition.traits:
            results = [_elementwise(self.b, definition, node, masks)] * len(node.outputs)
        elif Trait.LINEAR in definition.traits:
            is_cheap = Trait.VIEW in definition.traits
            results = moved(self.b, node, [m if is_cheap else self.given(m) for m in masks])
        else:
            results = [None] * len(node.outputs)
        for output, mask in zip(node.outputs, results, strict=True):
            if output is not None:
                self._masks[output] = mask

    # ---- products ----------------------------------------------------------------------------------------------------

    def slot(self, op: str, inputs: Sequence[Any]) -> int | None:
        """Return the input of an elementwise product or quotient that a selection may have zeroed, or None."""
        count = opdef(op).zeroed_slots
        if not count:
            return None
        found = None
        for slot in range(count):
            given = inputs[slot]
            if isinstance(given, Value) and given in self.carried:
                if found is not None:
                    return None
                found = slot
        return found

    def product(self, op: str, inputs: Sequence[Any], slot: int) -> Value:
        """Return the product or quotient ``op`` of the carried value in ``slot``, selected like that value."""
        b, v, factor = self.b, inputs[slot], inputs[1 - slot]
        is_product = Trait.BILINEAR in opdef(op).traits
        if is_product and isinstance(factor, Value) and factor not in b.zeros:
            if _is_zero_or_one(factor):
                return self.masked_by(factor, v)
            if _is_discrete(factor):
                return self._masked_by_cast(op, v, factor)
        inner = v if v in self._masked else self.unselected.get(v, v)
        if inner in self._masked:
            return self._sunk(op, inputs, slot, inner)
        chosen = None if _is_harmless(factor, is_product) else self.mask(v)
        if chosen is None or (self.given(chosen) is None and _is_spread(factor, v)):
            return b.plain(op, inputs)
        return self.selected(chosen, b.plain(op, _with(inputs, slot, inner)))

    def product_by_rows(self, v: Value, factor: Value) -> Value:
        """Return a product with numbers of which one that is not finite makes its whole row so.

        Then nothing is gained where a kink alone has zeroed elements of ``v``: the others of the row meet such a factor too.
        """
        is_kink = v in self.carried and self.given(self.mask(v)) is None
        return self.b.plain("Mul", [v, factor]) if is_kink else self.b.Mul(v, factor)

    def _sunk(self, op: str, inputs: Sequence[Any], slot: int, masked: Value) -> Value:
        """Return a product whose operand is one with a mask, or what is selected from it: the mask comes last."""
        v, (mask, inner) = inputs[slot], self._masked[masked]
        made = self.b.add(op, _with(inputs, slot, inner))
        chosen = None if v is masked else self.mask(v)
        if chosen is not None:
            made = self.selected(chosen, self.unselected.get(made, made))
        return self._masked_product(mask, made)

    def passed(self, node: Node) -> list[Mask]:
        """Return the outputs of a node that was copied as it stands: of a product, what a selection leaves."""
        slot = self.slot(node.op, node.inputs)
        if slot is None or _is_harmless(node.inputs[1 - slot], Trait.BILINEAR in opdef(node.op).traits):
            return list(node.outputs)
        mask = self.mask(node.input(slot))
        return [node.output() if mask is None else self.selected(mask, node.output())]

    def linear(self, op: str, inputs: Sequence[Any]) -> Value | None:
        """Return an elementwise linear ``op`` of products with one mask as the product of its result with the mask."""
        traits = opdef(op).traits
        if not self._masked or Trait.ELEMENTWISE not in traits or not traits & {Trait.LINEAR, Trait.CHOOSES}:
            return None
        floats = inputs[1:] if Trait.CHOOSES in traits else inputs
        parts = [v for v in floats if not isinstance(v, Value) or not is_zero(self.b, v)]
        masks = {self._masked[v][0] if _is_in(self._masked, v) else None for v in parts}
        mask = masks.pop() if len(masks) == 1 else None
        if mask is None:
            return None
        inner = [self._masked[v][1] if _is_in(self._masked, v) else v for v in inputs]
        return self._masked_product(mask, self.b.plain(op, inner))

    def masked_by(self, factor: Value, v: Value) -> Value:
        """Return a product with a mask of zeros and ones, selected like ``v``.

        The factor keeps its own derivative: it may be a weight that begins at zero.
        """
        if _is_harmless(factor, True):
            return self._masked_product(factor, v)
        if v in self._masked:
            mask, inner = self._masked[v]
            return self._masked_product(mask, self.masked_by(factor, inner))
        chosen = self.mask(v)
        made = self.b.plain("MaskedMul", [factor, v if chosen is None else self.unselected.get(v, v)])
        return made if chosen is None else self.selected(chosen, made)

    def _masked_product(self, factor: Value, v: Value) -> Value:
        if v in self._masked:
            mask, v = self._masked[v]
            factor = self.b.plain("Mul", [factor, mask])
        made = self.b.plain("MaskedMul", [factor, v])
        self._masked[made] = factor, v
        return made

    def _masked_by_cast(self, op: str, v: Value, factor: Value) -> Value:
        """A product with booleans or integers that were cast selects where they are not zero."""
        mask = self.mask(v)
        source = factor.producer
        is_cast = source.op not in ENTRIES and [x.type.dtype for x in source.operands] == [BOOL]
        kept = source.input(0) if is_cast else self.b.cast(factor, BOOL)
        inner = self.unselected.get(v, v)
        chosen = intersection(self.b, self.condition(kept), mask)
        return self.selected(chosen, inner if is_cast else self.b.plain(op, [inner, factor]))

    def selected(self, mask: Value, value: Value) -> Value:
        """Return ``value`` where ``mask`` holds, else zero."""
        made = self.b.plain("Where", [mask, value, self.b.scalar(0, value.type.dtype)])
        self._masks[made] = mask
        if made.type == value.type:
            self.unselected[made] = value
        return made

    def read(self, x: Value, bar: Value, axes: Iterable[int]) -> Value:
        """Return an operand of a contraction without what only meets parts of ``bar`` that a selection has zeroed.

        ``axes`` are those of ``bar`` that ``x`` does not have: the mask must be the same along them. Then 0 * NaN is not
        formed; where the mask is not, what a NaN in ``x`` meets is a sum over numbers that are wanted too.
        """
        mask = self.given(self.mask(bar))
        if mask is None or not all(has_one(mask, a) for a in axes):
            return x
        chosen = self.b.Where(mask, x, self.b.scalar(0, x.type.dtype))
        return chosen if chosen.type == x.type else x


# ---- masks of what rules make -------------------------------------------------------------------------------------------


def union(b: DerivativeBuilder, masks: Sequence[Mask]) -> Mask:
    """Return where one of ``masks`` holds."""
    known = list(dict.fromkeys(m for m in masks if m is not None))
    if not known or len(known) < len(set(masks)) or any(b.support.opposites.get(m) in known for m in known):
        return None
    return reduce(lambda x, y: b.support.made(b.Or(x, y), x, y), known)


def intersection(b: DerivativeBuilder, first: Value, second: Mask) -> Value:
    """Return where both masks hold."""
    if second is None or first is second:
        return first
    both = b.support.made(b.And(first, second), first, second)
    part = b.support.given(both) or b.support.given(first) or b.support.given(second)
    return both if part is None else b.support.containing(both, part)


def negation(b: DerivativeBuilder, mask: Value) -> Value:
    """Return where ``mask`` does not hold."""
    opposites = b.support.opposites
    if mask not in opposites:
        made = b.support.made(b.Not(mask), mask)
        opposites[mask], opposites[made] = made, mask
    return opposites[mask]


def is_zero(b: DerivativeBuilder, value: Value | None) -> bool:
    """Return whether a value is known to be zero everywhere."""
    return value is not None and (value in b.zeros or (value.literal is not None and not value.literal.any()))


def _elementwise(b: DerivativeBuilder, definition: OpDef, node: Node, masks: Sequence[Mask]) -> Mask:
    if definition.traits.isdisjoint(_PASSING) or all([m is None for m in masks]):
        return None
    carried = [(v, m) for v, m in zip(node.inputs, masks, strict=True) if v is not None and v in b.support.carried]
    if Trait.LINEAR not in definition.traits:
        return carried[0][1] if len(carried) == 1 else None
    others = [v for v in node.operands if v not in b.support.carried and not is_zero(b, v)]
    return None if others else union(b, [m for _, m in carried])


_PASSING = (Trait.LINEAR, Trait.BILINEAR, Trait.QUOTIENT)


def moved(b: DerivativeBuilder, node: Node, masks: Sequence[Mask], *, whole: bool = True) -> list[Mask]:
    """Return the masks of the outputs of a linear op: where it makes other than zero of ones in place of the masks.

    Where that moves whole axes, extents of 1 in a mask may stay (not ``whole``).
    """
    carried = b.support.carried
    nothing: list[Mask] = [None] * len(node.outputs)
    if all(m is None for m in masks) and Trait.SPREADS not in opdef(node.op).traits and not any(
            is_zero(b, v) for v in node.inputs if v is not None and v.type.dtype.is_float):
        return nothing
    inputs: list[Value | None] = []
    for v, mask in zip(node.inputs, masks, strict=True):
        if v is None or not v.type.dtype.is_float or is_zero(b, v):
            inputs.append(v)
        elif v not in carried:
            return nothing
        else:
            ones = b.filled(1, v) if mask is None else _as_numbers(b, mask, v, whole)
            if ones is None:
                return nothing
            inputs.append(ones)
    made = b.add_node(node.op, inputs, node.attributes, outputs=len(node.outputs))
    parts = [m for m in masks if m is not None]
    return [None if v is None else b.support.made(b.Greater(v, 0.0), *parts) for v in made.outputs]


def summed(b: DerivativeBuilder, node: Node, masks: Sequence[Mask]) -> Mask:
    """Return the mask of a sum along axes: of all that is summed there, something may be other than zero."""
    mask = b.support.given(masks[0])
    axis, spread = b.support.along.get(mask, (None, None))
    x, axes = node.input(0), node.optional(1)
    if axis is not None and x.type.rank is not None and axes is not None and axes.constant is not None:
        mask = spread if [int(a) % x.type.rank for a in axes.constant.reshape(-1)] == [axis] else mask
    return moved(b, node, [mask, *masks[1:]], whole=False)[0]


def turned(b: DerivativeBuilder, node: Node, masks: Sequence[Mask]) -> Mask:
    """Return the mask of an op that moves whole axes."""
    return moved(b, node, masks, whole=False)[0]


def has_one(mask: Mask, axis: int) -> bool:
    """Return whether a mask is known to be the same all along ``axis``, counted from behind."""
    shape = None if mask is None else mask.type.shape
    return shape is not None and (len(shape) < -axis or shape[axis] == 1)


def _as_numbers(b: DerivativeBuilder, mask: Value, like: Value, whole: bool) -> Value | None:
    """Return ones and zeros of the rank of ``like``, and of its shape if they are to be ``whole``."""
    if whole:
        numbers = b.cast(mask, like.type.dtype)
        is_whole = mask.type.rank is not None and mask.type.shape == like.type.shape
        return numbers if is_whole else b.Expand(numbers, b.shape(like))
    ranked = aligned(b, mask, like)
    return None if ranked is None else b.cast(ranked, like.type.dtype)


def aligned(b: DerivativeBuilder, mask: Value, like: Value) -> Value | None:
    """Return ``mask`` with the rank of ``like``, or None where a rank is unknown."""
    if mask.type.rank is None or like.type.rank is None:
        return None
    missing = like.type.rank - mask.type.rank
    return b.Unsqueeze(mask, list(range(missing))) if missing else mask


# ---- factors ------------------------------------------------------------------------------------------------------------


def _is_in(values: Container[Value], what: Any) -> bool:
    return isinstance(what, Value) and what in values


def _with(inputs: Sequence[Any], slot: int, value: Any) -> list[Any]:
    return [value if i == slot else v for i, v in enumerate(inputs)]


def _is_harmless(factor: Any, is_product: bool) -> bool:
    """Return whether a zero stays zero with ``factor``: a finite constant, and not zero as a divisor."""
    constant = factor.constant if isinstance(factor, Value) else np.asarray(factor)
    if constant is None or not np.isfinite(constant).all():
        return False
    return is_product or bool(np.all(constant != 0))


def _is_spread(factor: Any, v: Value) -> bool:
    """Return whether a factor is broadcast: elements that a kink has kept meet it too, so it is as good as finite."""
    return isinstance(factor, Value) and factor.type.shape != v.type.shape


def _is_zero_or_one(factor: Value) -> bool:
    constant = factor.constant
    if constant is None or not constant.size or constant.reshape(-1)[0] not in (0, 1):
        return False
    return bool(np.all((constant == 0) | (constant == 1)) and not np.all(constant))


_FACTORS = (Trait.LINEAR, Trait.BILINEAR)


def _is_discrete(factor: Value) -> bool:
    """Return whether a factor is made of casts of booleans and integers: then no derivative passes its zeros."""
    pending, steps, casts = [factor], 0, 0
    while pending and steps < MOST_FACTORS:
        node, steps = pending.pop().producer, steps + 1
        if node.op in ENTRIES:
            constant = node.output().constant
            if constant is None or constant.size != 1:
                return False
            continue
        if opdef(node.op).traits.isdisjoint(_FACTORS):
            return False
        floats = [v for v in node.operands if v.type.dtype.is_float]
        casts += not floats
        pending += floats
    return casts > 0 and not pending
