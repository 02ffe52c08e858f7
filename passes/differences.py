"""Derivatives by differences: what exact ones are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array

Point = Mapping[str, Array]
Function = Callable[[dict[str, Array]], Any]


def moved(at: Point, direction: Point, step: float) -> dict[str, Array]:
    """Return the point ``step`` along ``direction``, which leaves out what stays where it is."""
    return {k: a + step * direction[k] if k in direction else a for k, a in at.items()}


def central_difference(function: Function, at: Point, direction: Point, step: float) -> Any:
    """Return (f(at + step d) - f(at - step d)) / (2 step), of an error of order step^2."""
    return (function(moved(at, direction, step)) - function(moved(at, direction, -step))) / (2 * step)


def extrapolated(whole: Any, half: Any, quarter: Any) -> tuple[Array, Array]:
    """Return the limit (with an error of order step^6) of central differences with a step, its half and its quarter,
    and how far it is from that of the last two (an estimate of its error)."""
    first, second = (4 * half - whole) / 3, (4 * quarter - half) / 3
    best = np.asarray((16 * second - first) / 15)
    return best, np.abs(best - second)


def directional_derivative(function: Function, at: Point, direction: Point, step: float) -> tuple[Array, Array]:
    """Return the derivative of ``function`` along ``direction``, extrapolated, and an estimate of its error."""
    best, error = extrapolated(*(central_difference(function, at, direction, step / d) for d in (1, 2, 4)))
    return best, error + 1e-13 * np.abs(best) / step
