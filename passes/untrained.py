"""Constants that no training gives: masks, tables of angles and the frequencies these are made of, fillings, scales.

Exporters write such constants beside weights, under names that do not tell them apart. What is said here rests on nothing that
a weight can have before, during or after training, in the place where it is used: a constant that is only likely to be none
(zeros, data statistics, windows) counts as a weight. Of a weight a few elements are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from flowgrad.ir.graph import ENTRIES, Array, Node, Value
from flowgrad.ir.ops.registry import Trait, opdef

MADE_NAME = re.compile(r"(?:.*[/.])?(?:val_\d+|Constant(?:_\d+)?_output_0|(?:new_)?(?:zeros|ones|full)(?:_like)?(?:_\d+)?)")
"""What PyTorch's exporters call the constants that they make themselves; weights that they fold may have the first form."""

LOOK = 64
"""How many elements are looked at first."""

HUGE = 1e30
"""No weight is larger: fillings of masks are, the least number of a type or minus infinity."""

HIDES, HIDES_PAIRS = -1e3, -100.0
"""What a mask adds to scores that are to vanish is at most this, the second if it is a matrix; the other elements are 0."""

LEAST_TABLE, LEAST_FREQUENCIES = 8, 4
"""Elements of a table of angles, and of a vector of frequencies, at least."""

MOST_ALIKE = 8
"""How many tables of one shape are compared with each other."""

MOST_FOLLOWED = 64
"""How many nodes are followed from frequencies to the angles."""

TOLERANCE = 2e-6


def untrained(values: Iterable[Value]) -> dict[Value, str]:
    """Return those of ``values`` that are constants which no training gives, each with the reason."""
    found: dict[Value, str] = {}
    tables: dict[tuple[object, ...], list[tuple[Value, Array]]] = {}
    for value in values:
        data = value.producer.data
        if data is None or data.size == 0 or data.dtype.kind != "f":
            continue
        if _is_mask(data):
            found[value] = "a mask or a bound: it holds what hides scores, which no training gives"
        elif MADE_NAME.fullmatch(value.name) and _is_filling(value, data):
            found[value] = "one number all over that an exporter made: what is scattered into it, or normalised by it, is trained"
        elif MADE_NAME.fullmatch(value.name) and _is_scale(value, data):
            found[value] = "the scale of scores that an exporter made: a root of the extent they are summed over"
        elif _is_geometric(data) and _makes_angles(value):
            found[value] = "frequencies of equal ratios, of which only sines and cosines are taken"
        elif _may_be_angles(data):
            tables.setdefault((data.shape, data.dtype), []).append((value, data))
    for alike in tables.values():
        found |= _angles(alike[:MOST_ALIKE])
    return found


def _some(data: Array) -> Array:
    """Return elements from all over the array, in float64."""
    flat = data.reshape(-1)
    return flat[:: max(1, flat.size // LOOK)].astype(np.float64)


# ---- uses that pass on no change --------------------------------------------------------------------------------------------


def passes_no_change(node: Node, slot: int) -> bool:
    """Return whether a node takes an operand only where that equals another: ``Where(x == 0, x, y)`` does not change with x."""
    if Trait.CHOOSES not in opdef(node.op).traits or slot not in (1, 2):
        return False
    test, chosen_if = node.input(0).producer, slot == 1
    while test.op == "Not":
        test, chosen_if = test.input(0).producer, not chosen_if
    return chosen_if and test.op == "Equal" and node.inputs[slot] in test.inputs


# ---- fillings and scales that exporters make --------------------------------------------------------------------------------


def _is_filling(value: Value, data: Array) -> bool:
    """Return whether all elements are one number, and each use is one for which exporters make such constants.

    These are the ground of a scatter, a normalisation by 1 and 0 within another, and, of zeros, a first state of a recurrent
    operator, or a mask that is added to what goes into a softmax.
    """
    number = data.flat[0]
    return bool((data == number).all()) and all(_takes_filling(user, slot, float(number)) for (_, slot), user in value.uses.items())


def _takes_filling(user: Node, slot: int, number: float) -> bool:
    if user.op == "InstanceNormalization":
        return number == (slot == 1)
    if number == 0 and 0 <= slot < len(opdef(user.op).inputs) and opdef(user.op).inputs[slot] in ("initial_h", "initial_c"):
        return True
    if number == 0 and user.op == "Add":  # for all heads alike: what is trained differs between them
        shape = user.operands[slot].shape
        return len(shape) == 4 and shape[1] == 1 and all(after.op == "Softmax" for after in user.output().users)
    return slot == 0 and user.op.startswith("Scatter")


def _is_scale(value: Value, data: Array) -> bool:
    """Return whether a single number d**-0.5 or d**-0.25 is multiplied with operands one of whose last two extents is d."""
    number = float(data.flat[0]) if data.ndim == 1 and data.size == 1 else 0.0
    if not 0 < number < 1:
        return False
    extents = [root for root in (number ** -2, number ** -4) if abs(root - round(root)) <= 1e-5 * root]
    return all(user.op == "Mul" and any(round(d) in (v.type.shape or ())[-2:] for d in extents for v in user.operands)
               for user in value.users)


# ---- masks ------------------------------------------------------------------------------------------------------------------


def _is_mask(data: Array) -> bool:
    """Return whether elements are infinite or nearly so, or all of them zero and one number that hides what it is added to."""
    some = _some(data)
    if not (np.abs(some) < HUGE).all():
        return not np.isnan(some).any()
    low = data.min() if np.isin(some, (0, some.min())).all() else np.float64(0)
    least = HIDES_PAIRS if sum(n > 1 for n in data.shape) > 1 and some.max() == 0 else HIDES
    return data.size > 1 and bool(low <= least) and bool(((data == 0) | (data == low)).all())


# ---- frequencies and angles -------------------------------------------------------------------------------------------------


def _is_geometric(data: Array) -> bool:
    """Return whether a vector (other axes have extent 1) has equal ratios other than 1."""
    if data.size < LEAST_FREQUENCIES or max(data.shape) != data.size or not (_some(data) > 0).all():
        return False
    logarithms = np.log(data.reshape(-1).astype(np.float64).clip(np.finfo(data.dtype).tiny))
    steps = np.diff(logarithms)
    return abs(steps.mean()) > 1e-3 and bool(np.abs(steps - steps.mean()).max() <= 32 * np.finfo(data.dtype).eps)


def _makes_angles(value: Value) -> bool:
    """Return whether all that is made of a value, by linear operators, are operands of sines and cosines."""
    pending, seen = [value], {value}
    while pending:
        for (_, slot), user in pending.pop().uses.items():
            if user.op in ("Sin", "Cos"):
                continue
            if user.op in ENTRIES or len(seen) > MOST_FOLLOWED or not _is_linear(user.op, slot):
                return False
            new = [v for v in user.results if v not in seen]
            seen.update(new)
            pending += new
    return bool(value.uses)


def _is_linear(op: str, slot: int) -> bool:
    traits = opdef(op).traits
    return Trait.LINEAR in traits or (Trait.BILINEAR in traits and slot < 2)


def _may_be_angles(data: Array) -> bool:
    return data.size >= LEAST_TABLE and bool((np.abs(_some(data)) <= 1 + TOLERANCE).all())


def _angles(tables: list[tuple[Value, Array]]) -> dict[Value, str]:
    """Return the tables of one shape that hold cosines and sines of the same angles."""
    found: dict[Value, str] = {}
    for index, (value, data) in enumerate(tables):
        if _holds_both(data):
            found[value] = "cosines and sines of the same angles beside each other: computed, not trained"
        for other, more in tables[:index]:
            if _are_one(data, more):
                found |= {v: "cosines or sines of the same angles as in another table: computed, not trained" for v in (value, other)}
    return found


def _holds_both(data: Array) -> bool:
    half, rest = divmod(data.shape[-1], 2)
    return not rest and any(_are_one(a, b) for a, b in ((data[..., :half], data[..., half:]), (data[..., ::2], data[..., 1::2])))


def _are_one(cosines: Array, sines: Array) -> bool:
    """Return whether the squares sum to 1 all over, and not because all of them are zeros and ones."""
    first, second = _some(cosines), _some(sines)
    if np.abs(first * first + second * second - 1).max() > TOLERANCE:
        return False
    squares = cosines.astype(np.float64) ** 2
    return bool(np.abs(squares + sines.astype(np.float64) ** 2 - 1).max() <= TOLERANCE) and np.unique(squares).size > 2
