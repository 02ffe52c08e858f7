"""``python -m flowgrad.tools.maintenance.sweep``: elementwise operators and their derivatives over the whole range of floats.

Every operator stands here once, as a closed form of many digits (``jets.py``, extra ``check``). Values, first derivatives
in both modes and second derivatives in all four are compared in units in the last place of the exact number; infinity
stands for a number beyond all floats, and where a form has a pole or an edge the limit from inside is right (a second
derivative there may be NaN: it divides by zero twice). Two operands stay where the product of three does not overflow.
Prints the worst error of each operator and where it is. Exit code 1 if one is beyond its bound.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import mpmath
import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.ops.registry import Trait, all_ops, opdef
from flowgrad.ir.types import DType, Type, dtype_of
from flowgrad.passes.differentiate import adjoint, tangent
from flowgrad.tools.maintenance import jets
from flowgrad.tools.maintenance.jets import Jet

DIGITS, LIMIT_DIGITS = 420, 2500
BEYOND, NEAR = mpmath.mpf(10) ** 4000, mpmath.mpf(10) ** -2000
"""What infinity stands for, and how far beside an edge a limit is taken."""
NEVER = mpmath.mpf(10) ** 320
"""Larger than any float: only poles are."""
GROWING = 500
"""A limit beyond this is infinite: logarithms grow slowly towards it."""

BOUND = (4.0, 16.0, 64.0)
"""Units in the last place that value, first and second derivatives may be off."""

Form = Callable[..., Jet]


@dataclass(frozen=True)
class Stated:
    """A closed form of an operator: ``build`` makes it from values, if it is not the operator of its name alone."""


    form: Form
    op: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[..., Value] | None = None
    bound: tuple[float, float, float] = BOUND
    floor: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """What smaller numbers are measured by, where they are differences of larger ones."""
    arity: int = 1
    beyond: Any = BEYOND
    """What infinity stands for; None where a form that is infinity times zero is NaN in every library."""
    poles: bool = True
    """Whether limits are taken where the form cannot be evaluated."""


FORMS: dict[str, Stated] = {}


def state(op: str, form: Form, *, name: str = "", **facts: Any) -> None:
    """State the closed form of an operator."""
    stated = Stated(form, op, **facts)
    FORMS[name or (f"{op}, two" if stated.arity == 2 and op in FORMS else op)] = stated


def default(op: str, attribute: str) -> float:
    """Return the default of an attribute."""
    return float(opdef(op).attributes[attribute])


def where(condition: bool, x: Any, y: Any, like: Jet) -> Jet:
    """Return one of two jets or numbers."""
    chosen = x if condition else y
    return chosen if isinstance(chosen, Jet) else like.like(chosen)


# ---- one operand ----------------------------------------------------------------------------------------------------------


def _linear_unit(x: Jet, alpha: float, width: float = 1.0) -> Jet:
    return where(x.value > 0, x, alpha * (jets.exp(x / width) - 1), x)


def _sigmoid(x: Jet) -> Jet:
    return 1 / (1 + jets.exp(-x))


def _softplus(x: Jet) -> Jet:
    return jets.log(1 + jets.exp(x)) if x.value < 2000 else x


def _gelu(x: Jet) -> Jet:
    return x * (1 + jets.erf(x / mpmath.sqrt(2))) / 2


def _gelu_tanh(x: Jet) -> Jet:
    return x * (1 + jets.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x * x * x))) / 2


def _clipped(x: Jet, low: float, high: float, inside: Callable[[Jet], Jet]) -> Jet:
    y = inside(x)
    return where(y.value <= low, low, where(y.value >= high, high, y, x), x)


for _name in ("asinh", "atan", "cosh", "exp", "log", "sinh", "sqrt"):
    state(_name.capitalize(), getattr(jets, _name))
for _name in ("acos", "acosh", "asin", "atanh", "tanh"):
    state(_name.capitalize(), getattr(jets, _name), floor=(0.0, float(_name == "tanh"), 1.0))
state("Erf", jets.erf, floor=(0.0, 2.0**-20, 2.0**-20))
for _name in ("cos", "sin", "tan"):
    state(_name.capitalize(), getattr(jets, _name), beyond=None)
state("Abs", jets.magnitude)
state("Neg", lambda x: -x)
state("Identity", lambda x: x)
state("Reciprocal", lambda x: 1 / x)
state("Relu", lambda x: where(x.value > 0, x, 0, x))
state("LeakyRelu", lambda x: where(x.value > 0, x, x * default("LeakyRelu", "alpha"), x))
state("ThresholdedRelu", lambda x: where(x.value > 1, x, 0, x))
state("HardSigmoid", lambda x: _clipped(x, 0, 1, lambda v: v * default("HardSigmoid", "alpha") + 0.5))
state("HardSwish", lambda x: where(x.value >= 3, x, where(x.value <= -3, 0, x * (x / 6 + 0.5), x), x), beyond=None,
      floor=(1.0, 1.0, 0.0))
state("Shrink", lambda x: where(abs(x.value) > 0.5, x, 0, x))
state("Shrink", lambda x: where(x.value > 0.5, x - 0.25, where(x.value < -0.5, x + 0.25, 0, x), x), name="Shrink, bias",
      attributes={"bias": 0.25})
state("Sigmoid", _sigmoid, floor=(0.0, 1.0, 1.0))
state("Softplus", _softplus, floor=(0.0, 0.0, 1.0))
state("Softsign", lambda x: x / (1 + jets.magnitude(x)), beyond=None)
state("Elu", lambda x: _linear_unit(x, 1.0))
state("Elu", lambda x: _linear_unit(x, 0.5), name="Elu, 0.5", attributes={"alpha": 0.5})
state("Celu", lambda x: _linear_unit(x, 1.0))
state("Celu", lambda x: _linear_unit(x, 2.0, 2.0), name="Celu, 2", attributes={"alpha": 2.0})
state("Selu", lambda x: default("Selu", "gamma") * _linear_unit(x, default("Selu", "alpha")))
state("Mish", lambda x: x * jets.tanh(_softplus(x)), beyond=None, floor=(0.0, 1.0, 1.0))
state("Swish", lambda x: x * _sigmoid(x), beyond=None, floor=(0.0, 1.0, 1.0))
state("Swish", lambda x: x * _sigmoid(2 * x), name="Swish, 2", attributes={"alpha": 2.0}, beyond=None, floor=(0.0, 1.0, 1.0))
state("Gelu", _gelu, beyond=None, floor=(1.0, 1.0, 1.0))
state("Gelu", _gelu_tanh, name="Gelu, tanh", attributes={"approximate": "tanh"}, beyond=None,
      floor=(1.0, 1.0, 1.0))
for _exponent in (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0):
    state("Pow", lambda x, p=_exponent: _power_of(x, p), name=f"Pow, {_exponent:g}",
          build=lambda b, x, p=_exponent: b.Pow(x, p))


def _power_of(x: Jet, p: float) -> Jet:
    v, n = x.value, int(p) if p.is_integer() else p
    return x.through(v**n, p * v ** (n - 1) if p else 0 * v, p * (p - 1) * v ** (n - 2) if p * (p - 1) else 0 * v)


# ---- two operands ---------------------------------------------------------------------------------------------------------


def _power(x: Jet, y: Jet) -> Jet:
    """x^y; at x = 0 a limit from above, and where x < 0 a function of x alone for an integer y."""
    v, p = x.value, y.value
    if abs(p) > 64 or (v == 0 and p < 1 and p != 0) or (abs(v) <= NEAR and not mpmath.isint(p)):
        raise ValueError("a large exponent, or a pole whose side or order floats do not tell")
    if v > 0:
        return jets.exp(y * jets.log(x))
    if v < 0 and not mpmath.isint(p):
        raise ValueError("complex")
    unknown = mpmath.nan
    if v < 0:
        n = int(p)
        across = n * v ** (n - 1), n * (n - 1) * v ** (n - 2)
        return Jet(v**n, (across[0], unknown), ((across[1], unknown), (unknown, unknown)))
    if p == 0:
        return Jet(mpmath.mpf(1), (mpmath.mpf(0), unknown), ((mpmath.mpf(0), unknown), (unknown, unknown)))
    zero, flat = mpmath.mpf(0), mpmath.mpf(0) if p > 0 else unknown
    curvature = p * (p - 1) * _zero_to(p - 2) if p != 1 else zero
    return Jet(_zero_to(p), (p * _zero_to(p - 1), flat), ((curvature, zero if p > 1 else unknown),
                                                        (zero if p > 1 else unknown, flat)))


def _zero_to(p: Any) -> Any:
    return mpmath.mpf(0) if p > 0 else mpmath.mpf(1) if p == 0 else mpmath.inf


def _pair(op: str) -> Callable[..., Value]:
    return lambda b, x, y: b.add(op, [b.Concat(*(b.Unsqueeze(v, [0]) for v in (x, y)), axis=0), [0]], {"keepdims": 0})


def _first_of(op: str) -> Callable[..., Value]:
    return lambda b, x, y: b.Gather(b.add(op, [b.Concat(*(b.Unsqueeze(v, [0]) for v in (x, y)), axis=0)], {"axis": 0}),
                                    np.int64(0))


def _tied(x: Jet, y: Jet, chosen: Jet) -> Jet:
    return (x + y) / 2 if x.value == y.value else chosen


state("Add", lambda x, y: x + y, arity=2)
state("Sub", lambda x, y: x - y, arity=2)
state("Mul", lambda x, y: x * y, arity=2)
state("Div", lambda x, y: x / y, arity=2)
state("Pow", _power, arity=2, bound=(4.0, 64.0, 128.0))  # x^(y-1) is as far off as y - 1, times log(x)
state("Max", lambda x, y: _tied(x, y, x if x.value > y.value else y), arity=2)
state("Min", lambda x, y: _tied(x, y, x if x.value < y.value else y), arity=2)
state("Sum", lambda x, y: x + y, arity=2)
state("Mean", lambda x, y: (x + y) / 2, arity=2)
state("PRelu", lambda x, y: where(x.value > 0, x, x * y, x), arity=2)
state("SwiGLU", lambda x, y: x * _sigmoid(x) * y, arity=2, floor=(0.0, 1.0, 0.0),
      bound=(4.0, 16.0, float("inf")))  # that of Swish, which passes through zero, times any number
state("Mod", lambda x, y: x - y * int(x.value / y.value), arity=2, attributes={"fmod": 1}, poles=False)
state("ReduceL1", lambda x, y: jets.magnitude(x) + jets.magnitude(y), arity=2, build=_pair("ReduceL1"))
state("ReduceL2", lambda x, y: jets.sqrt(x * x + y * y), arity=2, build=_pair("ReduceL2"),
      bound=(4.0, 16.0, float("inf")))  # the second derivative y^2 / r^3 comes as 1 / r - x^2 / r^3
state("ReduceSumSquare", lambda x, y: x * x + y * y, arity=2, build=_pair("ReduceSumSquare"))
state("ReduceLogSum", lambda x, y: jets.log(x + y), arity=2, build=_pair("ReduceLogSum"),
      floor=(1.0, 0.0, 0.0))
state("ReduceLogSumExp", lambda x, y: jets.log(jets.exp(x) + jets.exp(y)), arity=2, 
      build=_pair("ReduceLogSumExp"), floor=(1.0, 1.0, 1.0))
state("ReduceProd", lambda x, y: x * y, arity=2, build=_pair("ReduceProd"))
state("ReduceMean", lambda x, y: (x + y) / 2, arity=2, build=_pair("ReduceMean"))
state("Softmax", lambda x, y: _sigmoid(x - y), arity=2, build=_first_of("Softmax"), floor=(0.0, 1.0, 1.0))
state("LogSoftmax", lambda x, y: -_softplus(y - x), arity=2, build=_first_of("LogSoftmax"),
      floor=(1.0, 1.0, 1.0))


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
    if not stated.poles:
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


def error(got: float, right: Any, floor: float, dtype: np.dtype[Any], is_limit: bool) -> float:
    """Return the difference in units in the last place of what is right, or of ``floor`` if that is larger.

    A number is as good as infinite within a few units of the largest, and 0 within a thousand times the smallest normal.
    """
    info = np.finfo(dtype)
    most, least = mpmath.ldexp(1, info.maxexp), mpmath.ldexp(1, info.minexp + 10)
    if np.isinf(got) and (got > 0) == (right > 0):
        edge = GROWING if is_limit else most * (1 - mpmath.ldexp(1, 5 - info.nmant))
        if abs(right) >= edge:
            return 0.0
    if np.isnan(got):
        return float("inf")
    if abs(right) < least and abs(got) < least:
        return 0.0
    right = max(-most, min(most, right))
    given = most * (1 if got > 0 else -1) if np.isinf(got) else mpmath.mpf(got)
    unit = mpmath.ldexp(1, mpmath.frexp(max(abs(right), floor, least))[1] - 1 - info.nmant)
    return float(abs(given - right) / unit)


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
    """Return one array for each operand: all points there are of them."""
    sizes = magnitudes(dtype, count if arity == 1 else max(count // 8, 4), arity)
    line = np.concatenate([-sizes[::-1], [-0.0, 0.0], sizes, [np.inf, -np.inf]]).astype(dtype)
    return [axis.reshape(-1).copy() for axis in np.meshgrid(*[line] * arity, indexing="ij")]


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
    numpy = np.dtype(dtype)
    points = points_of(stated.arity, numpy, count)
    found = computed(stated, dtype_of(dtype), points)
    worst = [Worst() for _ in range(3)]
    for place in range(len(points[0])):
        point = tuple(float(p[place]) for p in points)
        jet = exact(stated, point)
        if jet is None:
            continue
        for (mode, at), array in found.items():
            got, right, order = float(array[place]), _part(jet, at), ORDERS[mode]
            if mpmath.isnan(right):
                continue
            is_limit = bool(np.isinf(point).any()) or abs(right) > NEVER
            off = 0.0 if is_limit and order == 2 and np.isnan(got) else error(
                got, right, stated.floor[order], numpy, is_limit or abs(jet.first[0]) > NEVER)
            if off > worst[order].error:
                worst[order] = Worst(off, f"{mode} {at}", point, got, float(right))
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
