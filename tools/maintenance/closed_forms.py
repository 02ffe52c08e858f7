"""Closed forms of the elementwise operators, and of reductions of two numbers: what the command ``sweep`` holds them to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np

from flowgrad.ir.graph import Value
from flowgrad.ir.ops.registry import opdef
from flowgrad.ir.types import FLOAT32, FLOAT64, DType
from flowgrad.tools.maintenance import jets
from flowgrad.tools.maintenance.jets import Jet

BEYOND, NEAR = mpmath.mpf(10) ** 660, mpmath.mpf(10) ** -700
"""What infinity stands for, and how far beside an edge a limit is taken: roots of it leave the range of floats, too."""

BOUND = (4.0, 16.0, 64.0)
"""Units in the last place that value, first and second derivatives may be off."""

Form = Callable[..., Jet]
Floor = float | Callable[..., Any]


@dataclass(frozen=True)
class Stated:
    """A closed form of an operator: ``build`` makes it from values, if it is not the operator of its name alone."""

    form: Form
    op: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[..., Value] | None = None
    bound: tuple[float, float, float] = BOUND
    floor: tuple[Floor, Floor, Floor] = (0.0, 0.0, 0.0)
    """What smaller numbers are measured by, where they are differences of larger ones: a number, or one of the point."""
    slack: tuple[Floor, Floor, Floor] = (0.0, 0.0, 0.0)
    """Units that a rounded operand costs at a point and that are not counted."""
    reach: Floor = 1.0
    """How far from the largest number a derivative may be infinite, and from the smallest 0: factors come one by one."""
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


def _rounded(x: Jet, dtype: DType) -> Jet:
    """The number of a type that is nearest, with the slope of the line that the steps follow."""
    with np.errstate(over="ignore"):
        v = dtype.numpy.type(float(x.value)) if abs(x.value) < mpmath.mpf(2) ** 1024 else x.value
    return x.through(mpmath.mpf(float(v)), mpmath.mpf(1), mpmath.mpf(0))


for _name in ("acos", "acosh", "asin", "asinh", "atan", "atanh", "cosh", "exp", "log", "sinh", "sqrt"):
    state(_name.capitalize(), getattr(jets, _name))
state("Tanh", jets.tanh, floor=(0.0, 1.0, 1.0))
state("Erf", jets.erf, floor=(0.0, 2.0**-20, 2.0**-20))
for _name in ("cos", "sin", "tan"):
    state(_name.capitalize(), getattr(jets, _name), beyond=None)
state("OneMinusSquare", lambda x: 1 - x * x)
state("Abs", jets.magnitude)
for _other in (FLOAT32, FLOAT64):
    state("Cast", lambda x, t=_other: _rounded(x, t), name=f"Cast, {_other}",
          build=lambda b, x, t=_other: b.cast_like(b.cast(x, t), x))
    state("CastLike", lambda x, t=_other: _rounded(x, t), name=f"CastLike, {_other}",
          build=lambda b, x, t=_other: b.CastLike(b.CastLike(x, b.scalar(0, t)), x))
state("Clip", lambda x: where(x.value < -1, -1, where(x.value > 2, 2, x, x), x), build=lambda b, x: b.Clip(x, -1.0, 2.0))
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
      floor=(1.0, 1.0, 1.0), bound=(4.0, 16.0, 128.0))  # 1 - tanh^2 is as good as 1 is, times the slope of its argument twice
for _fixed in (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0):
    state("Pow", lambda x, p=_fixed: _power_of(x, p), name=f"Pow, {_fixed:g}",
          build=lambda b, x, p=_fixed: b.Pow(x, p), reach=4.0)


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
def _exponent(x: Any, y: Any) -> Any:
    """What a unit in the last place of an exponent is in units of the power."""
    return (1 + abs(y)) * abs(mpmath.log(abs(x))) if x else 0


state("Pow", _power, arity=2, slack=(0.0, _exponent, lambda x, y: 2 * _exponent(x, y)),  # y - 1 and y - 2 are rounded
      floor=(0.0, 0.0, lambda x, y: abs(x) ** (y - 1) if x else 0),  # a term of x^(y-1) (1 + y log(x))
      reach=lambda x, y: max(1, *(1 / abs(p) for p in (x, 1 / x if x else 0, y, y * (y - 1)) if p)))
state("Max", lambda x, y: _tied(x, y, x if x.value > y.value else y), arity=2)
state("Min", lambda x, y: _tied(x, y, x if x.value < y.value else y), arity=2)
state("Sum", lambda x, y: x + y, arity=2)
state("Mean", lambda x, y: (x + y) / 2, arity=2)
state("PRelu", lambda x, y: where(x.value > 0, x, x * y, x), arity=2)
state("SwiGLU", lambda x, y: x * _sigmoid(x) * y, arity=2,
      floor=(0.0, lambda x, y: max(1, abs(y)), lambda x, y: max(1, abs(y))))  # those of Swish, which pass through 0, times y
state("Clip", lambda x, y: where(x.value >= y.value, x, y, x), arity=2)
state("MaskedMul", lambda x, y: x * y, arity=2)
state("AtanOfQuotient", lambda y, x: jets.atan(y / x), arity=2,
      floor=(0.0, 0.0, lambda y, x: 1 / (x * x + y * y)))  # (y^2 - x^2) / (x^2 + y^2)^2 comes as a difference of two terms
state("Mod", lambda x, y: x - y * int(x.value / y.value), arity=2, attributes={"fmod": 1}, poles=False)
state("ReduceL1", lambda x, y: jets.magnitude(x) + jets.magnitude(y), arity=2, build=_pair("ReduceL1"))
state("ReduceL2", lambda x, y: jets.sqrt(x * x + y * y), arity=2, build=_pair("ReduceL2"),
      floor=(0.0, 0.0, lambda x, y: 1 / mpmath.hypot(x, y)))  # what is left of 1 / r beside (x / r)^2 / r, of any x
state("ReduceSumSquare", lambda x, y: x * x + y * y, arity=2, build=_pair("ReduceSumSquare"))
state("ReduceLogSum", lambda x, y: jets.log(x + y), arity=2, build=_pair("ReduceLogSum"),
      floor=(1.0, 0.0, 0.0))  # beside a sum of 1 the logarithm is as small as the rounding of the sum
state("ReduceLogSumExp", lambda x, y: y + _softplus(x - y), arity=2,
      build=_pair("ReduceLogSumExp"), floor=(1.0, 1.0, 1.0))
state("ReduceProd", lambda x, y: x * y, arity=2, build=_pair("ReduceProd"))
state("ReduceMean", lambda x, y: (x + y) / 2, arity=2, build=_pair("ReduceMean"))
state("Softmax", lambda x, y: _sigmoid(x - y), arity=2, build=_first_of("Softmax"), floor=(0.0, 1.0, 1.0),
      slack=(lambda x, y: abs(x - y), 0.0, 0.0))  # the exponent x - max is rounded
state("LogSoftmax", lambda x, y: -_softplus(y - x), arity=2, build=_first_of("LogSoftmax"),
      floor=(1.0, 1.0, 1.0))
