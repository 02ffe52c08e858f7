"""Products: MatMul, Gemm, Einsum."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op, refuse
from flowgrad.ir.types import UNKNOWN, Type, broadcast_shapes, merge_dims

_NO_DIMS = (UNKNOWN, UNKNOWN)


@op("MatMul", since=9, traits=(Trait.BILINEAR,))
def matmul(A: Array, B: Array, *, out: Array | None = None) -> Array:
    return np.asarray(np.matmul(A, B, out=out))


@matmul.types
def _(node: Node) -> Type:
    x, y = node.input(0).type, node.input(1).type
    if x.shape is None or y.shape is None:
        return x.with_shape(None)
    if not x.shape or not y.shape:
        raise ValidationError("MatMul takes no scalars", code="shape")
    merge_dims(x.shape[-1], y.shape[-1] if len(y.shape) == 1 else y.shape[-2])
    batch = broadcast_shapes(x.shape[:-2], y.shape[:-2]) or ()
    return x.with_shape((*batch, *x.shape[-2:-1], *(y.shape[-1:] if len(y.shape) > 1 else ())))


@matmul.adjoint
def _(b: Any, node: Node, y_bar: Value) -> Any:
    """Y = A B: A_bar = Y_bar B^T, B_bar = A^T Y_bar, summed over broadcast batch axes; a vector is a row or column."""
    x, w = node.input(0), node.input(1)
    if x.type.rank is None or w.type.rank is None:
        return refuse("the rank of an operand is not known")
    if x.type.rank == w.type.rank == 1:
        return b.Mul(y_bar, w), b.Mul(y_bar, x)
    row, column = x.type.rank == 1, w.type.rank == 1
    rows = b.Unsqueeze(x, [0]) if row else x
    columns = b.Unsqueeze(w, [1]) if column else w
    bar = b.Unsqueeze(y_bar, [-2]) if row else b.Unsqueeze(y_bar, [-1]) if column else y_bar
    x_bar, w_bar = _left_bar(b, rows, columns, bar), _right_bar(b, rows, columns, bar)
    return b.Squeeze(x_bar, [0]) if row else x_bar, b.Squeeze(w_bar, [1]) if column else w_bar


def _left_bar(b: Any, x: Value, w: Value, bar: Value) -> Value:
    if x.type.rank == w.type.rank == 2:
        return b.Gemm(bar, w, transB=1)  # type: ignore[no-any-return]
    if x.type.rank == 2:  # the batch axes of w are summed: one product instead of one a batch
        last = len(w.shape) - 1
        moved = [last - 1, *range(last - 1), last]
        bar_rows = b.Flatten(b.Transpose(bar, perm=moved), axis=1)
        w_rows = b.Flatten(b.Transpose(w, perm=moved), axis=1)
        return b.Gemm(bar_rows, w_rows, transB=1)  # type: ignore[no-any-return]
    return b.sum_to(b.MatMul(bar, _swapped(b, w)), x)  # type: ignore[no-any-return]


def _right_bar(b: Any, x: Value, w: Value, bar: Value) -> Value:
    if w.type.rank == 2:  # the batch axes of x are summed: one product instead of one a batch
        last = len(x.shape) - 1
        flat, flat_bar = (x, bar) if last == 1 else (b.Flatten(x, axis=last), b.Flatten(bar, axis=last))
        return b.Gemm(flat, flat_bar, transA=1)  # type: ignore[no-any-return]
    return b.sum_to(b.MatMul(_swapped(b, x), bar), w)  # type: ignore[no-any-return]


def _swapped(b: Any, x: Value) -> Value:
    axes = list(range(len(x.shape)))
    return b.Transpose(x, perm=[*axes[:-2], axes[-1], axes[-2]])  # type: ignore[no-any-return]


@op("Gemm", since=11)
def gemm(
    A: Array, B: Array, C: Array | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
    transB: int = 0, out: Array | None = None,
) -> Array:
    result = np.matmul(A.T if transA else A, B.T if transB else B, out=out)
    if alpha != 1:
        np.multiply(result, _number(alpha, result), out=result)
    if C is not None and beta != 0:
        np.add(result, C if beta == 1 else C * _number(beta, result), out=result)
    return result


def _number(factor: float, like: Array) -> Any:
    return like.dtype.type(factor)


@gemm.types
def _(node: Node) -> Type:
    x, w = node.input(0).type, node.input(1).type
    for type_ in (x, w):
        if type_.rank not in (None, 2):
            raise ValidationError(f"Gemm takes matrices, got {type_!r}", code="shape")
    rows, inner = (x.shape or _NO_DIMS)[:: -1 if attr(node, "transA") else 1]
    inner_w, columns = (w.shape or _NO_DIMS)[:: -1 if attr(node, "transB") else 1]
    merge_dims(inner, inner_w)
    return x.with_shape((rows, columns))


@gemm.adjoint
def _(b: Any, node: Node, y_bar: Value) -> Any:
    """Y = alpha A' B' + beta C: A'_bar = alpha Y_bar B'^T, B'_bar = alpha A'^T Y_bar, C_bar = beta sum(Y_bar)."""
    x, w, *rest = node.inputs
    alpha, trans_x, trans_w = attr(node, "alpha"), int(attr(node, "transA")), int(attr(node, "transB"))
    if trans_x:
        x_bar = b.Gemm(w, y_bar, alpha=alpha, transA=trans_w, transB=1)
    else:
        x_bar = b.Gemm(y_bar, w, alpha=alpha, transB=1 - trans_w)
    if trans_w:
        w_bar = b.Gemm(y_bar, x, alpha=alpha, transA=1, transB=trans_x)
    else:
        w_bar = b.Gemm(x, y_bar, alpha=alpha, transA=1 - trans_x)
    if not rest or rest[0] is None:
        return (x_bar, w_bar, NO_GRADIENT)[: len(node.inputs)]
    beta, c_bar = attr(node, "beta"), b.sum_to(y_bar, rest[0])
    return x_bar, w_bar, c_bar if beta == 1 else b.Mul(c_bar, float(beta))


@gemm.tangent
def _(b: Any, node: Node, x_dot: Value | None, w_dot: Value | None, c_dot: Value | None = None) -> Any:
    """Y_dot = alpha (A'_dot B' + A' B'_dot) + beta C_dot."""
    x, w = node.inputs[:2]
    attributes = dict(node.attributes)
    parts = [(x_dot, w)] if x_dot is not None else []
    parts += [(x, w_dot)] if w_dot is not None else []
    if not parts:
        beta = attr(node, "beta")
        scaled = c_dot if beta == 1 else b.Mul(c_dot, float(beta))
        return b.Expand(scaled, b.shape(node.output()))
    total = c_dot
    for left, right in parts[:1]:
        total = b.add("Gemm", [left, right, c_dot], attributes)
    for left, right in parts[1:]:
        total = b.Add(total, b.add("Gemm", [left, right], attributes))
    return total
