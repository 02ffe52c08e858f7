"""Standardization and its derivatives: what batch, layer, instance and group normalization share.

With x^ = (x - mean) * r and r = 1 / sqrt(var + epsilon), mean and var taken over the same m elements:

    x_bar = r (x^_bar - mean(x^_bar) - x^ mean(x^_bar x^)) + mean_bar / m - r_bar r^2 x^ / m
    x^_dot = r (x_dot - mean(x_dot) - x^ mean(x_dot x^)),  mean_dot = mean(x_dot),  r_dot = -r^2 mean(x_dot x^)

mean and r are residuals of the forward node: they are computed once, and in second derivatives their own cotangents
come back to that node as mean_bar and r_bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Value
from flowgrad.ir.ops.operands import sum_of


def count_along(b: Builder, x: Value, axes: Sequence[int]) -> Any:
    """Return the number of elements along ``axes``: a number where it is known, else a value in the dtype of ``x``."""
    extents = [x.shape[a] for a in axes]
    known = [n for n in extents if isinstance(n, int)]
    if len(known) == len(extents):
        return float(max(int(np.prod(known)), 1))
    return b.cast(b.ReduceProd(b.Gather(b.shape(x), list(axes)), keepdims=0), x.type.dtype)


class Standardized(NamedTuple):
    """The pieces of a standardization in a graph: x (in the wide type), its statistics, and their axes.

    ``mean`` and ``r`` broadcast against ``x``; ``centred`` is False for root mean square normalization, where the mean
    is taken to be zero.
    """

    x: Value
    mean: Value | None
    r: Value
    axes: list[int]

    def hat(self, b: Builder) -> Value:
        """Return x^."""
        centred = self.x if self.mean is None else b.Sub(self.x, self.mean)
        return b.Mul(centred, self.r)

    def _through(self, b: DerivativeBuilder, hat: Value, change: Value) -> Value:
        """Return the derivative of x^ applied to a change of x: a symmetric map, so its own adjoint."""
        inner = b.ReduceMean(b.support.product_by_rows(change, hat), self.axes, keepdims=1)
        if self.mean is not None:
            change = b.Sub(change, b.ReduceMean(change, self.axes, keepdims=1))
        return b.Mul(b.Sub(change, b.Mul(hat, inner)), self.r)

    def bar(self, b: DerivativeBuilder, hat: Value, hat_bar: Value, mean_bar: Value | None, r_bar: Value | None) -> Value:
        """Return x_bar in the wide type; the cotangents of the statistics broadcast against ``x``."""
        terms = [] if b.is_zero(hat_bar) else [self._through(b, hat, hat_bar)]
        count = count_along(b, self.x, self.axes)
        if not b.is_zero(mean_bar):
            terms.append(b.Div(mean_bar, count))
        if not b.is_zero(r_bar):
            terms.append(b.Mul(hat, b.Div(b.Neg(b.Mul(r_bar, b.Mul(self.r, self.r))), count)))
        if not terms:
            return b.zero(self.x)
        total = sum_of(b, terms)
        return total if total.type.shape == self.x.type.shape else b.Expand(total, b.shape(self.x))

    def dots(self, b: Builder, hat: Value, x_dot: Value) -> tuple[Value, Value | None, Value]:
        """Return the tangents of x^, mean and r."""
        inner = b.ReduceMean(b.Mul(x_dot, hat), self.axes, keepdims=1)
        r_dot = b.Neg(b.Mul(inner, b.Mul(self.r, self.r)))
        if self.mean is None:
            return b.Mul(b.Sub(x_dot, b.Mul(hat, inner)), self.r), None, r_dot
        mean_dot = b.ReduceMean(x_dot, self.axes, keepdims=1)
        return b.Mul(b.Sub(b.Sub(x_dot, mean_dot), b.Mul(hat, inner)), self.r), mean_dot, r_dot


def statistics(b: Builder, x: Value, axes: Sequence[int], epsilon: float) -> tuple[Value, Value]:
    """Return mean and r of ``x`` along ``axes`` (kept with extent 1), from plain operators."""
    mean = b.ReduceMean(x, list(axes), keepdims=1)
    centred = b.Sub(x, mean)
    return mean, inverse_deviation(b, b.ReduceMean(b.Mul(centred, centred), list(axes), keepdims=1), epsilon)


def inverse_deviation(b: Builder, var: Value, epsilon: float) -> Value:
    """Return 1 / sqrt(var + epsilon)."""
    return b.Reciprocal(b.Sqrt(b.Add(var, epsilon)))


def standardize(x: Array, epsilon: float, out: Array | None = None) -> tuple[Array, Array, Array]:
    """Return x^, mean and r of a matrix, row by row; ``out`` may be given for x^."""
    if x.shape[1] == 0:
        nothing = np.full((x.shape[0], 1), np.nan, x.dtype)
        return np.empty_like(x), nothing, nothing
    mean = np.mean(x, axis=1, keepdims=True)
    centred = np.subtract(x, mean, out=out)
    var = np.einsum("ij,ij->i", centred, centred)[:, None] / x.shape[1]
    r = 1 / np.sqrt(var + x.dtype.type(epsilon))
    centred *= r
    return centred, mean, r


def column(vector: Array, rank: int, dtype: np.dtype[Any]) -> Array:
    """Return a vector of channels as an array that broadcasts along axis 1."""
    return vector.reshape(-1, *(1,) * (rank - 2)).astype(dtype, copy=False)
