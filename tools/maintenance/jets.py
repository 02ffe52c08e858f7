"""Numbers of many digits that know their first and second derivatives: what closed forms are written in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath

Number = Any
Second = tuple[tuple[Number, ...], ...]


class Jet:
    """A function of n variables at one point: its value, n first and n x n second derivatives."""

    def __init__(self, value: Number, first: tuple[Number, ...], second: Second) -> None:
        self.value, self.first, self.second = value, first, second

    @staticmethod
    def variables(*values: Number) -> list[Jet]:
        """Return the coordinates of a point as functions of themselves."""
        n = range(len(values))
        nothing = tuple(tuple(mpmath.mpf(0) for _ in n) for _ in n)
        return [Jet(mpmath.mpf(v), tuple(mpmath.mpf(i == k) for k in n), nothing) for i, v in enumerate(values)]

    def like(self, value: Number) -> Jet:
        """Return a constant as a function of the same variables."""
        return Jet(mpmath.mpf(value), tuple(0 * g for g in self.first), tuple(tuple(0 * h for h in row) for row in self.second))

    def through(self, value: Number, slope: Number, curvature: Number) -> Jet:
        """Return f of this, where f has this value and these derivatives here."""
        n = range(len(self.first))
        second = tuple(tuple(curvature * self.first[i] * self.first[j] + slope * self.second[i][j] for j in n) for i in n)
        return Jet(value, tuple(slope * g for g in self.first), second)

    def __add__(self, other: Any) -> Jet:
        other = other if isinstance(other, Jet) else self.like(other)
        n = range(len(self.first))
        second = tuple(tuple(self.second[i][j] + other.second[i][j] for j in n) for i in n)
        return Jet(self.value + other.value, tuple(a + b for a, b in zip(self.first, other.first, strict=True)), second)

    def __mul__(self, other: Any) -> Jet:
        x, y = self, other if isinstance(other, Jet) else self.like(other)
        n = range(len(x.first))
        first = tuple(x.value * y.first[i] + x.first[i] * y.value for i in n)
        second = tuple(tuple(x.value * y.second[i][j] + x.first[i] * y.first[j] + x.first[j] * y.first[i]
                             + x.second[i][j] * y.value for j in n) for i in n)
        return Jet(x.value * y.value, first, second)

    def __truediv__(self, other: Any) -> Jet:
        other = other if isinstance(other, Jet) else self.like(other)
        v = 1 / other.value
        quotient: Jet = self * other.through(v, -v * v, 2 * v * v * v)
        return quotient

    def __neg__(self) -> Jet:
        return self * -1

    def __sub__(self, other: Any) -> Jet:
        difference: Jet = self + -other
        return difference

    def __rsub__(self, other: Any) -> Jet:
        difference: Jet = -self + other
        return difference

    def __rtruediv__(self, other: Any) -> Jet:
        return self.like(other) / self

    __radd__, __rmul__ = __add__, __mul__


def function(f: Callable[[Number], tuple[Number, Number, Number]]) -> Callable[[Jet], Jet]:
    """Return as a function of jets what gives value, slope and curvature at a number."""
    return lambda x: x.through(*f(x.value))


def _exp(v: Number) -> Number:
    """e^v, or another number far beyond all floats or far below them: of exponents that long mpmath takes seconds."""
    return mpmath.exp(max(-mpmath.mpf(10) ** 5, min(mpmath.mpf(10) ** 5, v)))


def _sinh(v: Number) -> Number:
    return (_exp(v) - _exp(-v)) / 2


def _cosh(v: Number) -> Number:
    return (_exp(v) + _exp(-v)) / 2


def _root(v: Number) -> tuple[Number, Number, Number]:
    y = mpmath.sqrt(v)
    return y, 1 / (2 * y), -1 / (4 * v * y)


def _tan(v: Number) -> tuple[Number, Number, Number]:
    y, slope = mpmath.tan(v), 1 / mpmath.cos(v) ** 2
    return y, slope, 2 * y * slope


def _tanh(v: Number) -> tuple[Number, Number, Number]:
    y = mpmath.tanh(v)
    return y, 1 - y * y, -2 * y * (1 - y * y)


def _erf(v: Number) -> tuple[Number, Number, Number]:
    slope = 2 / mpmath.sqrt(mpmath.pi) * _exp(-v * v)
    return mpmath.erf(v), slope, -2 * v * slope


def _arc(f: Callable[[Number], Number], sign: int) -> Callable[[Jet], Jet]:
    def derivatives(v: Number) -> tuple[Number, Number, Number]:
        slope = sign / mpmath.sqrt((1 - v) * (1 + v))
        return f(v), slope, slope * v / ((1 - v) * (1 + v))

    return function(derivatives)


def _acosh(v: Number) -> tuple[Number, Number, Number]:
    slope = 1 / mpmath.sqrt((v - 1) * (v + 1))
    return mpmath.acosh(v), slope, -slope * v / ((v - 1) * (v + 1))


exp = function(lambda v: (_exp(v),) * 3)
log = function(lambda v: (mpmath.log(v), 1 / v, -1 / (v * v)))
sqrt = function(_root)
sin = function(lambda v: (mpmath.sin(v), mpmath.cos(v), -mpmath.sin(v)))
cos = function(lambda v: (mpmath.cos(v), -mpmath.sin(v), -mpmath.cos(v)))
tan, tanh, erf = function(_tan), function(_tanh), function(_erf)
sinh = function(lambda v: (_sinh(v), _cosh(v), _sinh(v)))
cosh = function(lambda v: (_cosh(v), _sinh(v), _cosh(v)))
asin, acos, acosh = _arc(mpmath.asin, 1), _arc(mpmath.acos, -1), function(_acosh)
asinh = function(lambda v: (mpmath.asinh(v), 1 / mpmath.sqrt(1 + v * v), -v / mpmath.sqrt(1 + v * v) ** 3))
atan = function(lambda v: (mpmath.atan(v), 1 / (1 + v * v), -2 * v / (1 + v * v) ** 2))
atanh = function(lambda v: (mpmath.atanh(v), 1 / ((1 - v) * (1 + v)), 2 * v / ((1 - v) * (1 + v)) ** 2))
magnitude = function(lambda v: (abs(v), mpmath.sign(v), mpmath.mpf(0)))
