"""Determinants, and the cofactors that are their derivative."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.batching import images
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import ramp
from flowgrad.ir.ops.registry import FLOWGRAD, op
from flowgrad.ir.types import INT64, Type, merge_dims

SMALL = 6
"""Up to this extent cofactors are the minors one by one, each as accurate as a determinant is."""


@op("Det", since=11)
def det(X: Array) -> Array:
    return np.asarray(np.linalg.det(X))


def _check_square(node: Node) -> None:
    x = node.input(0).type
    if x.shape is None:
        return
    if len(x.shape) < 2:
        raise ValidationError(f"{node.op} takes square matrices, got {x!r}", code="shape", where=node.label)
    merge_dims(x.shape[-2], x.shape[-1])


@det.types
def _(node: Node) -> Type:
    """The batch of the matrices."""
    _check_square(node)
    x = node.input(0).type
    return x if x.shape is None else x.with_shape(x.shape[:-2])


@det.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar cof(x), which needs no inverse and so holds for singular matrices too."""
    return (b.Mul(b.Cofactor(node.input(0)), b.Unsqueeze(y_bar, [-2, -1])),)


@op("Cofactor", domain=FLOWGRAD)
def cofactor(X: Array) -> Array:
    """c_ij = (-1)^(i + j) times the determinant of X without row i and column j.

    From the singular values s of X = U diag(s) V^T where there are many: cof(X) = det(U V^T) U diag(prod of all s but s_i) V^T.
    """
    n = X.shape[-1]
    if n <= SMALL:
        rest = _others(n)
        minors = np.swapaxes(X[..., rest, :][..., rest], -3, -2)
        return np.asarray(np.linalg.det(minors) * _signs(n), X.dtype) if n > 1 else np.ones_like(X)
    usable = np.isfinite(X).all((-2, -1), keepdims=True)
    u, s, v = np.linalg.svd(np.where(usable, X, 0).astype(np.float64))
    logs = np.log(s)
    before, behind = (np.cumsum(part, axis=-1) for part in (logs[..., :-1], logs[..., :0:-1]))
    others = np.zeros(s.shape)
    others[..., 1:] += before
    others[..., :-1] += behind[..., ::-1]
    turned = (np.linalg.det(u) * np.linalg.det(v))[..., None, None]
    return np.where(usable, np.sign(turned) * ((u * np.exp(others)[..., None, :]) @ v), np.nan).astype(X.dtype)


def _others(n: int) -> Array:
    """Return n rows: all indices but 0, all but 1, ..."""
    return np.array([[k for k in range(n) if k != i] for i in range(n)], np.int64).reshape(n, max(n - 1, 0))


def _signs(n: int) -> Array:
    return np.where(np.add.outer(np.arange(n), np.arange(n)) % 2, -1, 1)


@cofactor.types
def _(node: Node) -> Type:
    _check_square(node)
    return node.input(0).type


@cofactor.expansion
def _(b: Builder, node: Node) -> Any:
    """The determinants of all n x n minors."""
    x = node.input(0)
    rank = len(x.shape)
    n = merge_dims(x.shape[-2], x.shape[-1])
    if n in (0, 1):
        return b.filled(1, x)
    rest, signs = _run_time_tables(b, x) if not isinstance(n, int) else (
        b.value(_others(n)), b.value(_signs(n).astype(x.type.dtype.numpy)))
    rows = b.Gather(x, rest, axis=rank - 2)
    minors = b.Transpose(b.Gather(rows, rest, axis=rank), perm=[*range(rank - 1), rank, rank - 1, rank + 1])
    return b.Mul(b.Det(minors), signs)


def _run_time_tables(b: Builder, x: Value) -> tuple[Value, Value]:
    """Return what ``_others`` and ``_signs`` say of an extent that only the run can tell."""
    count = b.extent(x, -1)
    numbers, fewer = ramp(b, count), ramp(b, b.Sub(count, np.int64(1)))
    column = b.Unsqueeze(numbers, [1])
    rest = b.Add(fewer, b.cast(b.GreaterOrEqual(fewer, column), INT64))
    odd = b.cast_like(b.Mod(b.Add(numbers, column), np.int64(2)), x)
    return rest, b.Sub(b.scalar(1, x.type.dtype), b.Add(odd, odd))


for _definition in (det, cofactor):
    _definition.batch(images)
