"""``python -m flowgrad.tools.maintenance.sweep``: elementwise operators and their derivatives over the whole range of floats.

Every operator stands in ``closed_forms.py`` as a form of many digits (extra ``check``). Values, first derivatives in both
modes and second derivatives in all four are compared in units in the last place of the exact number; infinity stands for
a number beyond all floats, and where a form has a pole or an edge the limit from inside is right. Two operands stay
where the product of three does not overflow. Prints the worst error of each operator and where it is. Exit code 1 if one
is beyond its bound, or an operator has no form.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import mpmath
import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.ops.registry import Trait, all_ops
from flowgrad.ir.types import DType, Type, dtype_of
from flowgrad.passes.differentiate import adjoint, tangent
from flowgrad.tools.maintenance.closed_forms import FORMS, NEAR, Floor, Stated
from flowgrad.tools.maintenance.jets import Jet

DIGITS, LIMIT_DIGITS = 420, 1500
NEVER = mpmath.mpf(10) ** 320
"""Larger than any float: only poles are."""
GROWING = 500
"""A limit beyond this is infinite: logarithms grow slowly towards it."""
EDGES = (0.0, 1.0, -1.0)
"""The finite numbers where forms have poles or edges."""


def missing() -> list[str]:
    """Return the differentiable elementwise operators of one or two float operands that are not stated."""
    return [name for name, d in all_ops().items()
            if Trait.ELEMENTWISE in d.traits and d.is_differentiable() and d.required_inputs < 3
            and name not in {s.op for s in FORMS.values()}]


# ---- what the graph says ----------------------------------------------------------------------------------------------------


ORDERS = {"value": 0, "reverse": 1, "forward": 1, "reverse over reverse": 2, "forward over reverse": 2,
          "reverse over forward": 2, "forward over forward": 2}


def computed(stated: Stated, dtype: DType, points: Sequence[Array]) -> dict[tuple[str, tuple[int, ...]], Array]:
    """Return arrays by mode and by the numbers of the operands that are differentiated."""
    found: dict[tuple[str, tuple[int, ...]], Array] = {}
    graph = Graph("sweep")
    b = Builder(graph)
    xs = [graph.add_input(f"x{i}", Type(dtype, p.shape)) for i, p in enumerate(points)]
    y = stated.build(b, *xs) if stated.build else b.add(stated.op, xs, stated.attributes)
    one = b.filled(1, y)
    graph.add_output(y, "value")
    bars = adjoint(graph, [(y, one)], xs, zero="allow")
    dots = [tangent(graph, [(x, one)], [y])[0] for x in xs]
    kept: dict[str, tuple[str, tuple[int, ...]]] = {"value": ("value", ())}

    def keep(mode: str, at: tuple[int, ...], value: Value | None) -> None:
        name = f"{mode} {at}"
        graph.add_output(value if value is not None else b.zeros_like(y), name)
        kept[name] = mode, at

    for i, (bar, dot) in enumerate(zip(bars, dots, strict=True)):
        keep("reverse", (i,), bar)
        keep("forward", (i,), dot)
        for mode, first in (("reverse", bar), ("forward", dot)):
            again = [None] * len(xs) if first is None else adjoint(graph, [(first, one)], xs, zero="allow")
            for k, x in enumerate(xs):
                keep(f"reverse over {mode}", (i, k), again[k])
                keep(f"forward over {mode}", (i, k), None if first is None else tangent(graph, [(x, one)], [first])[0])
    results = evaluate(graph, {x.name: p for x, p in zip(xs, points, strict=True)})
    for name, key in kept.items():
        found[key] = results[name]
    return found


# ---- what is right ----------------------------------------------------------------------------------------------------------


def exact(stated: Stated, point: Sequence[float]) -> Jet | None:
    """Return the closed form at a point, or the limit there; None outside of its domain and where there is no limit."""
    if all(np.isfinite(point)):
        with mpmath.workdps(DIGITS):
            found = _attempt(stated, [mpmath.mpf(v) for v in point])
            if found is not None:
                return found
    elif stated.beyond is None or stated.arity > 1:
        return None
    if not stated.poles or not any(v in EDGES or np.isinf(v) for v in point):
        return None
    with mpmath.workdps(LIMIT_DIGITS):
        for near in product(*_neighbours(point, stated.beyond)):
            found = _attempt(stated, near)
            if found is not None:
                return found
    return None


def _neighbours(point: Sequence[float], beyond: Any) -> list[list[Any]]:
    """Return where limits at a point are taken: on the side of the sign at a zero, and of two numbers there only."""
    if len(point) == 1:
        return [_beside(v, beyond) for v in point]
    zeros = [v == 0 for v in point]
    return [_beside(v, beyond) if v == 0 else [mpmath.mpf(v)] for v in point] if sum(zeros) == 1 else [[]]


def _beside(v: float, beyond: Any) -> list[Any]:
    if np.isinf(v):
        return [beyond if v > 0 else -beyond]
    if v == 0:
        return [-NEAR if np.signbit(v) else NEAR]
    return [mpmath.mpf(v) * (1 - NEAR), mpmath.mpf(v) * (1 + NEAR)]


def _attempt(stated: Stated, point: Sequence[Any]) -> Jet | None:
    try:
        jet = stated.form(*Jet.variables(*point))
    except (ZeroDivisionError, ValueError, OverflowError):
        return None
    numbers = [jet.value, *jet.first, *(h for row in jet.second for h in row)]
    return None if any(isinstance(n, mpmath.mpc) for n in numbers) or mpmath.isnan(jet.value) else jet


@dataclass
class Right:
    """What is right at all points, of one derivative: a float, what it lacks, and the unit that both are measured in."""

    near: Array
    rest: Array
    unit: Array
    is_infinite: Array
    is_known: Array
    """Infinite where an infinity of its sign is as good; known where there is a derivative at all."""

    def errors(self, got: Array) -> Array:
        """Return the differences in units in the last place.

        A number is as good as infinite within a few units of the largest, and 0 within a thousand times the smallest
        normal.
        """
        info = np.finfo(got.dtype)
        wide, largest = got.astype(np.longdouble), np.ldexp(np.longdouble(1), info.maxexp)
        with np.errstate(invalid="ignore"):
            off = np.abs((np.clip(wide, -largest, largest) - self.near) / self.unit - self.rest)
            off[self.is_infinite & np.isinf(got) & ((got > 0) == (self.near > 0))] = 0
        off[np.isnan(got)] = np.inf
        tiny = np.ldexp(np.longdouble(1), info.minexp + 10)
        off[(np.abs(self.near) < tiny) & (np.abs(wide) < tiny)] = 0
        return np.where(self.is_known, off, 0)


class Exact:
    """The closed form of an operator at points, and the limits there."""

    def __init__(self, stated: Stated, points: Sequence[Array]) -> None:
        self.stated, self.info = stated, np.finfo(points[0].dtype)
        self.points = [tuple(float(p[place]) for p in points) for place in range(len(points[0]))]
        self.jets = [exact(stated, point) for point in self.points]
        self.floors = [[self._number(floor, point) for floor in stated.floor] for point in self.points]
        self.slack = np.array([[float(self._number(slack, point)) for slack in stated.slack] for point in self.points])

    def _number(self, of: Floor, point: Sequence[float]) -> Any:
        """Return a number that depends on the point; those of no finite point are never larger than others."""
        if isinstance(of, float):
            return of
        return of(*map(mpmath.mpf, point)) if any(point) and all(map(np.isfinite, point)) else 0.0

    def part(self, at: tuple[int, ...]) -> Right:
        """Return the value, or the derivative by these operands in turn."""
        rows = [self._place(place, at) for place in range(len(self.points))]
        near, rest, unit, is_infinite, is_known = zip(*rows, strict=True)
        return Right(np.array(near, np.longdouble), np.array(rest, np.longdouble), np.array(unit, np.longdouble),
                     np.array(is_infinite), np.array(is_known))

    def _place(self, place: int, at: tuple[int, ...]) -> tuple[Any, float, Any, bool, bool]:
        jet = self.jets[place]
        right = mpmath.nan if jet is None else _part(jet, at)
        if jet is None or mpmath.isnan(right):
            return 0.0, 0.0, 1.0, False, False
        info = self.info
        most, least = mpmath.ldexp(1, info.maxexp), mpmath.ldexp(1, info.minexp + 10)
        reach = max(1.0, self._number(self.stated.reach, self.points[place])) if at else 1.0
        is_limit = any(map(np.isinf, self.points[place])) or abs(right) > NEVER or abs(jet.first[0]) > NEVER
        is_infinite = bool(abs(right) >= (GROWING if is_limit else most * (1 - mpmath.ldexp(1, 5 - info.nmant)) / reach))
        right = max(-most, min(most, right))
        size = max(abs(right), self.floors[place][len(at)], least * reach)
        power = int(mpmath.frexp(size)[1]) - 1 - info.nmant
        near = np.ldexp(np.longdouble(float(mpmath.ldexp(right, -power - info.nmant))), power + info.nmant)
        whole, exponent = np.frexp(near)
        back = mpmath.ldexp(mpmath.mpf(float(whole)), int(exponent))
        return near, float(mpmath.ldexp(right - back, -power)), np.ldexp(np.longdouble(1), power), is_infinite, True


# ---- where ------------------------------------------------------------------------------------------------------------------


def magnitudes(dtype: np.dtype[Any], count: int, arity: int) -> Array:
    """Return numbers from the smallest above zero to the largest, more of them about 1."""
    info = np.finfo(dtype)
    low, high = (info.minexp - info.nmant, info.maxexp) if arity == 1 else (info.minexp // 4, info.maxexp // 4)
    spread = np.exp2(np.linspace(low, high - 1e-9, count).astype(np.longdouble))
    about = np.geomspace(2**-6, 128, count)
    if arity > 1:
        return np.unique(np.concatenate([spread, about, [0.5, 1.0, 2.0, 3.0]]).astype(dtype))
    edges = [info.max, info.tiny, info.smallest_subnormal, info.eps, 0.5, 1, 2, 3, np.nextafter(dtype.type(1), dtype.type(0)),
             np.nextafter(dtype.type(1), dtype.type(2)), 1e10, 1e20, 3e-30, np.log(info.max), 20, 100]
    return np.unique(np.minimum(np.concatenate([spread, about, np.array(edges, np.longdouble)]), info.max).astype(dtype))


def points_of(arity: int, dtype: np.dtype[Any], count: int) -> list[Array]:
    """Return one array for each operand: all pairs of chosen numbers, and numbers of random bits."""
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    sizes = magnitudes(dtype, count if arity == 1 else max(count // 12, 4), arity)
    line = np.concatenate([-sizes[::-1], [-0.0, 0.0], sizes, [np.inf, -np.inf]]).astype(dtype)
    chosen = [axis.reshape(-1) for axis in np.meshgrid(*[line] * arity, indexing="ij")]
    shape = (arity, 4 * count)
    if arity == 1:
        chance = rng.integers(0, 2 ** (8 * dtype.itemsize), shape, np.uint64).astype(f"u{dtype.itemsize}").view(dtype)
    else:
        powers = rng.uniform(info.minexp // 4, info.maxexp // 4, shape)
        powers[:, ::2] = powers[:1, ::2] + rng.normal(0, 1, (arity, 2 * count))  # of one size: differences that are small
        chance = (rng.choice([-1, 1], shape) * np.exp2(np.clip(powers, info.minexp // 4, info.maxexp // 4 - 1))).astype(dtype)
    return [np.concatenate([c, r[np.isfinite(r)] if arity == 1 else r]) for c, r in zip(chosen, chance, strict=True)]


@dataclass
class Worst:
    """The largest error of an order of differentiation, and where it is."""

    error: float = 0.0
    mode: str = ""
    point: tuple[float, ...] = ()
    got: float = 0.0
    right: float = 0.0


def _part(jet: Jet, at: tuple[int, ...]) -> Any:
    if not at:
        return jet.value
    return jet.first[at[0]] if len(at) == 1 else jet.second[at[0]][at[1]]


def worst_of(stated: Stated, dtype: str, count: int) -> list[Worst]:
    """Return the worst errors of value, first and second derivatives."""
    points = points_of(stated.arity, np.dtype(dtype), count)
    found, right = computed(stated, dtype_of(dtype), points), Exact(stated, points)
    parts = {at: right.part(at) for at in {at for _, at in found}}
    worst = [Worst() for _ in range(3)]
    for (mode, at), array in found.items():
        order = ORDERS[mode]
        errors = parts[at].errors(array) - right.slack[:, order]
        place = int(np.argmax(errors))
        if errors[place] > worst[order].error:
            worst[order] = Worst(float(errors[place]), f"{mode} {at}", right.points[place], float(array[place]),
                                 float(parts[at].near[place]))
    return worst


# ---- the command ------------------------------------------------------------------------------------------------------------


def lines(name: str, dtype: str, count: int) -> Iterator[tuple[str, bool]]:
    """Yield the lines of an operator, and whether all is within bounds."""
    stated = FORMS[name]
    worst = worst_of(stated, dtype, count)
    good = all(w.error <= bound for w, bound in zip(worst, stated.bound, strict=True))
    yield f"{name:20s}{dtype:10s}" + "".join(f"{w.error:12.3g}" for w in worst), good
    for order, (w, bound) in enumerate(zip(worst, stated.bound, strict=True)):
        if w.error > bound:
            yield f"    order {order}: {w.mode} at {w.point}: got {w.got:.9g}, right {w.right:.9g}", False


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the module."""
    parser = argparse.ArgumentParser(prog="sweep", description=(__doc__ or "").split(":", 1)[1].strip())
    parser.add_argument("names", nargs="*", help="operators (all)")
    parser.add_argument("--count", type=int, default=100, help="points a sign and operand (100)")
    parser.add_argument("--dtype", choices=("float32", "float64"), action="append")
    arguments = parser.parse_args(argv)
    print(f"{'operator':20s}{'dtype':10s}{'value':>12s}{'first':>12s}{'second':>12s}   (units in the last place)")
    failed = 0
    for name in [n for n in FORMS if not arguments.names or FORMS[n].op in arguments.names or n in arguments.names]:
        for dtype in arguments.dtype or ("float32", "float64"):
            for line, good in lines(name, dtype, arguments.count):
                print(line, flush=True)
                failed += not good
    if not arguments.names and missing():
        print(f"without a closed form: {', '.join(missing())}")
        failed += 1
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
