"""Products: MatMul, Gemm, Einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, in_rows, looped, single
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.operands import joined, moved_first, ramp, sum_of_present, unknown_ranks
from flowgrad.ir.ops.registry import NO_GRADIENT, Cut, Kernel, Trait, attr, op, refuse
from flowgrad.ir.ops.splitting import PRODUCTS, along, part, spans
from flowgrad.ir.support import has_one
from flowgrad.ir.types import (
    FLOAT32,
    FLOAT64,
    UNKNOWN,
    DimLike,
    Shape,
    Type,
    broadcast_dims,
    broadcast_shapes,
    merge_dims,
)

_NO_DIMS = (UNKNOWN, UNKNOWN)


@op("MatMul", since=9, traits=(Trait.BILINEAR,), ufunc=np.matmul)
def matmul(A: Array, B: Array, *, out: Array | None = None) -> Array:
    return np.asarray(np.matmul(A, B, out=out))


@matmul.types
def _(node: Node) -> Type:
    x, y = node.input(0).type, node.input(1).type
    return x.with_shape(product_shape(x, y))


def product_shape(x: Type, y: Type) -> Shape | None:
    """Return the shape of the matrix product of two types."""
    if x.shape is None or y.shape is None:
        return None
    if not x.shape or not y.shape:
        raise ValidationError("a matrix product takes no scalars", code="shape")
    merge_dims(x.shape[-1], y.shape[-1] if len(y.shape) == 1 else y.shape[-2])
    batch = broadcast_shapes(x.shape[:-2], y.shape[:-2]) or ()
    return *batch, *x.shape[-2:-1], *(y.shape[-1:] if len(y.shape) > 1 else ())


@matmul.specialise
def _(node: Node) -> Kernel | None:
    """``np.dot`` has half the call cost of ``np.matmul`` for two float matrices."""
    if node.output().type.dtype not in (FLOAT32, FLOAT64):
        return None
    return np.dot if all(v.type.rank == 2 for v in node.operands) and _multiplies(node.input(0), -1) else None


def _multiplies(x: Value, axis: int) -> bool:
    """Return whether ``np.dot`` forms all products: it leaves out those with a 1 x 1 matrix of zero, also of inf and NaN."""
    return x.type.static_shape[axis] != 1


@matmul.split
def _(node: Node) -> list[tuple[Cut, ...]]:
    """By the first batch axis, else by the rows or the columns of the result, whichever are more."""
    a, b = (v.type.static_shape for v in node.operands)
    shape = node.output().type.static_shape
    if len(a) < 2 or len(b) < 2:
        return []
    rows, columns = shape[-2:]
    batch = int(np.prod(shape[:-2], dtype=object))
    work = batch * rows * columns * a[-1]
    if work < 2 * PRODUCTS:
        return []
    pieces = -(-work // PRODUCTS)
    if batch > 1 and shape[0] > 1:
        return [tuple(part(s, len(shape), 0, span, shape[0]) for s in (a, b, shape)) for span in spans(shape[0], pieces)]
    if rows >= columns:
        return [(along(len(a), -2, span), None, along(len(shape), -2, span)) for span in spans(rows, pieces, 64)]
    return [(None, along(len(b), -1, span), along(len(shape), -1, span)) for span in spans(columns, pieces, 64)]


@matmul.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """Y = A B: A_bar = Y_bar B^T, B_bar = A^T Y_bar, summed over broadcast batch axes; a vector is a row or column."""
    x, w = node.input(0), node.input(1)
    if x.type.rank is None and w.type.rank == 2:
        return b.MatMul(y_bar, b.Transpose(w, perm=[1, 0])), _matrix_bar(b, x, w, y_bar)
    if x.type.rank is None or w.type.rank is None:
        return refuse(unknown_ranks(node))
    if x.type.rank == w.type.rank == 1:
        return b.Mul(y_bar, w), b.Mul(y_bar, x)
    row, column = x.type.rank == 1, w.type.rank == 1
    rows = b.Unsqueeze(x, [0]) if row else x
    columns = b.Unsqueeze(w, [1]) if column else w
    bar = b.Unsqueeze(y_bar, [-2]) if row else b.Unsqueeze(y_bar, [-1]) if column else y_bar
    x_bar = _left_bar(b, rows, b.support.read(columns, bar, [-2]), bar)
    w_bar = _right_bar(b, b.support.read(rows, bar, [-1]), columns, bar)
    return b.Squeeze(x_bar, [0]) if row else x_bar, b.Squeeze(w_bar, [1]) if column else w_bar


@matmul.expands_on_export
def _(node: Node) -> bool:
    """onnxruntime takes the Transpose of a matrix into the product, and forgets it where the other operand is a vector.

    It also moves a Transpose through other operators to the product.
    """
    return node.input(1).type.rank == 1 and node.input(0).type.rank != 1


@matmul.expansion
def _(b: Builder, node: Node) -> Any:
    """A matrix times a vector, as a matrix of one column."""
    x, w = node.operands
    if w.type.rank != 1:
        return refuse("the second operand is no vector")
    return b.Squeeze(b.MatMul(x, b.Unsqueeze(w, [1])), [-1])


@matmul.support
def _(b: DerivativeBuilder, node: Node, masks: Sequence[Value | None]) -> Value | None:
    """Whole rows of the first operand and whole columns of the second go to the result."""
    if min(v.type.rank or 0 for v in node.operands) < 2:
        return None
    rows, columns = masks[0], masks[1]
    return rows if has_one(rows, -1) else columns if has_one(columns, -2) else None


def _matrix_bar(b: Builder, x: Value, w: Value, y_bar: Value) -> Value:
    """Return x^T y_bar summed over all axes but the last, of any rank."""
    rows, columns = joined(b, [b.ints([-1]), b.extent(w, 0)]), joined(b, [b.ints([-1]), b.extent(w, 1)])
    return b.Gemm(b.Reshape(x, rows), b.Reshape(y_bar, columns), transA=1)


def _left_bar(b: DerivativeBuilder, x: Value, w: Value, bar: Value) -> Value:
    if x.type.rank == w.type.rank == 2:
        return b.Gemm(bar, w, transB=1)
    if x.type.rank == 2:  # the batch axes of w are summed: one product instead of one a batch
        moved = moved_first([len(w.shape) - 2], len(w.shape))
        bar_rows = b.Flatten(b.Transpose(bar, perm=moved), axis=1)
        w_rows = b.Flatten(b.Transpose(w, perm=moved), axis=1)
        return b.Gemm(bar_rows, w_rows, transB=1)
    return b.sum_to(b.MatMul(bar, _swapped(b, w)), x)


def _right_bar(b: DerivativeBuilder, x: Value, w: Value, bar: Value) -> Value:
    if w.type.rank == 2:  # the batch axes of x are summed: one product instead of one a batch
        last = len(x.shape) - 1
        flat, flat_bar = (x, bar) if last == 1 else (b.Flatten(x, axis=last), b.Flatten(bar, axis=last))
        return b.Gemm(flat, flat_bar, transA=1)
    return b.sum_to(b.MatMul(_swapped(b, x), bar), w)


def _swapped(b: Builder, x: Value) -> Value:
    axes = list(range(len(x.shape)))
    return b.Transpose(x, perm=[*axes[:-2], axes[-1], axes[-2]])


@matmul.batch
def _(b: BatchBuilder, node: Node, x: Value, w: Value) -> Any:
    """Rows of all examples make one product with a factor that they share; else they are one more batch axis."""
    ranks = [v.type.rank for v in node.operands]
    if None in ranks:
        return looped(b, node, x, w)
    is_alike = ranks[0] == ranks[1] and (ranks[0] or 0) > 2 and all(b.holds(v) or v.shape[0] == 1 for v in (x, w))
    rows = in_rows(b, node, [x, w]) if is_alike else None
    return rows or _batched_product(b, x, w)


def _batched_product(b: BatchBuilder, x: Value, w: Value) -> Value:
    """Return the matrix products of the examples of two factors, one of which at least differs between them.

    A first factor that they share is not copied: to make columns into rows takes longer than the calls that it saves.
    """
    ranks = [len(v.shape) - b.holds(v) for v in (x, w)]
    if not b.holds(w) and (ranks[1] == 1 or ranks == [1, 2]):
        return b.MatMul(x, w)
    if not b.holds(w) and ranks[1] == 2:
        return b.unmerged(b.MatMul(b.merged(x), w), x.shape[1], lambda: b.extent(x, 1))
    if not b.holds(x) and ranks == [2, 1]:
        return b.MatMul(w, _swapped(b, x))
    rows = b.alike(b.Unsqueeze(x, [-2]), x) if ranks[0] == 1 else x
    columns = b.alike(b.Unsqueeze(w, [-1]), w) if ranks[1] == 1 else w
    rank = max(*ranks, 2)
    product = _outer(b, b.padded(rows, rank), b.padded(columns, rank))
    squeezed = [axis for axis, r in zip((-2, -1), ranks, strict=True) if r == 1]
    return b.Squeeze(product, squeezed) if squeezed else product


def _outer(b: Builder, x: Value, w: Value) -> Value:
    """Return a product of matrices; one of columns with rows has a single term for each element."""
    return b.Mul(x, w) if x.shape[-1] == 1 == w.shape[-2] else b.MatMul(x, w)


@op("Gemm", since=11, traits=(Trait.MULTILINEAR,))
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


@gemm.ranks
def _(node: Node) -> list[int | None]:
    """Both factors are matrices."""
    return [2, 2]


_PRODUCTS: dict[tuple[bool, bool], Kernel] = {
    (False, False): np.dot,
    (False, True): lambda a, b, out: np.dot(a, b.T, out),
    (True, False): lambda a, b, out: np.dot(a.T, b, out),
    (True, True): lambda a, b, out: np.dot(a.T, b.T, out),
}


@gemm.specialise
def _(node: Node) -> Kernel | None:
    """One ``np.dot``, then the bias in place; factors other than 1 are left to the kernel."""
    if node.output().type.dtype not in (FLOAT32, FLOAT64) or attr(node, "alpha") != 1:
        return None
    if not _multiplies(node.input(0), 0 if attr(node, "transA") else 1):
        return None
    product = _PRODUCTS[bool(attr(node, "transA")), bool(attr(node, "transB"))]
    if len(node.inputs) < 3:
        return product
    if node.inputs[2] is None or attr(node, "beta") == 0:
        return lambda a, b, c, out: product(a, b, out)
    if attr(node, "beta") != 1:
        return None

    def with_bias(a: Array, b: Array, c: Array, out: Array) -> None:
        product(a, b, out)
        np.add(out, c, out)

    return with_bias


@gemm.split
def _(node: Node) -> list[tuple[Cut, ...]]:
    """By the rows or the columns of the result, whichever are more."""
    flips = bool(attr(node, "transA")), bool(attr(node, "transB"))
    rows, columns = shape = node.output().type.static_shape
    inner = node.input(0).type.static_shape[0 if flips[0] else 1]
    work = rows * columns * inner
    if work < 2 * PRODUCTS:
        return []
    by_rows, extent = rows >= columns, max(rows, columns)
    axis = 0 if by_rows else 1
    cuts = []
    for span in spans(extent, -(-work // PRODUCTS), 64):
        first = along(2, -1 if flips[0] else -2, span) if by_rows else None
        second = None if by_rows else along(2, -2 if flips[1] else -1, span)
        rest = [None if v is None else part(v.type.static_shape, 2, axis, span, extent) for v in node.inputs[2:]]
        cuts.append((first, second, *rest, part(shape, 2, axis, span, extent)))
    return cuts


@gemm.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """Y = alpha A' B' + beta C: A'_bar = alpha Y_bar B'^T, B'_bar = alpha A'^T Y_bar, C_bar = beta sum(Y_bar)."""
    x, w, *rest = node.operands
    alpha, trans_x, trans_w = attr(node, "alpha"), int(attr(node, "transA")), int(attr(node, "transB"))
    x = x if trans_x else b.support.read(x, y_bar, [-1])
    w = w if trans_w else b.support.read(w, y_bar, [-2])
    if trans_x:
        x_bar = b.Gemm(w, y_bar, alpha=alpha, transA=trans_w, transB=1)
    else:
        x_bar = b.Gemm(y_bar, w, alpha=alpha, transB=1 - trans_w)
    if trans_w:
        w_bar = b.Gemm(y_bar, x, alpha=alpha, transA=1, transB=trans_x)
    else:
        w_bar = b.Gemm(x, y_bar, alpha=alpha, transA=1 - trans_x)
    if not rest:
        return (x_bar, w_bar, NO_GRADIENT)[: len(node.inputs)]
    beta, c_bar = attr(node, "beta"), b.sum_to(y_bar, rest[0])
    return x_bar, w_bar, c_bar if beta == 1 else b.Mul(c_bar, float(beta))


@gemm.support
def _(b: DerivativeBuilder, node: Node, masks: Sequence[Value | None]) -> Value | None:
    """Whole rows of the first operand and whole columns of the second go to the result."""
    if len(node.operands) > 2:
        return None
    rows, columns = masks[0], masks[1]
    if not attr(node, "transA") and has_one(rows, -1):
        return rows
    return columns if not attr(node, "transB") and has_one(columns, -2) else None


@gemm.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, w_dot: Value | None, c_dot: Value | None = None) -> Any:
    """Y_dot = alpha (A'_dot B' + A' B'_dot) + beta C_dot."""
    x, w = node.inputs[:2]
    attributes = dict(node.attributes)
    parts: list[tuple[Value | None, Value | None]] = [(x_dot, w)] if x_dot is not None else []
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


@gemm.batch
def _(b: BatchBuilder, node: Node, x: Value, w: Value, c: Value | None = None) -> Any:
    """Rows of all examples make one product with weights that they share; else the product is a MatMul for all."""
    if any(v.type.rank is None for v in node.operands):
        return looped(b, node, x, w, c)
    if not b.holds(w) and not b.holds(c) and not attr(node, "transA") and (c is None or len(c.shape) < 2 or c.shape[0] == 1):
        return b.unmerged(single(b, node, [b.merged(x), w, c]), x.shape[1], lambda: b.extent(x, 1))
    alpha, beta = float(attr(node, "alpha")), float(attr(node, "beta"))
    if b.holds(x) or b.holds(w):
        left, right = (b.alike(_swapped(b, v), v) if attr(node, name) else v for v, name in ((x, "transA"), (w, "transB")))
        y = _batched_product(b, left, right)
        y = y if alpha == 1 else b.Mul(y, alpha)
    else:
        y = b.add("Gemm", [x, w], {**node.attributes, "beta": 1.0})
    if c is None or beta == 0:
        return y
    return b.Add(y, b.padded(c if beta == 1 else b.alike(b.Mul(c, beta), c), 2))


# ---- Einsum -------------------------------------------------------------------------------------------------------------


def einsum_labels(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the labels of each operand and of the result, one letter an axis, letters in the place of the dots.

    Raises ValidationError where the equation does not fit the ranks.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ValidationError(f"the equation {equation!r} is for {len(terms)} operands, not {len(ranks)}", code="einsum")
    free = [c for c in string.ascii_letters if c not in equation]
    width = max((r - len(t) + 3 for t, r in zip(terms, ranks, strict=True) if "..." in t), default=0)
    if width > len(free):
        raise ValidationError(f"the equation {equation!r} has too many axes", code="einsum")
    dots = "".join(free[: max(width, 0)])
    if not arrow:
        right = _implied(left)
    found = [_without_dots(t, dots, r) for t, r in zip(terms, ranks, strict=True)]
    result = right.replace("...", dots)
    if len(set(result)) != len(result) or not set(result) <= set("".join(found)):
        raise ValidationError(f"the result of the equation {equation!r} repeats or invents a label", code="einsum")
    return found, result


def _implied(left: str) -> str:
    """Return the labels of a result of which nothing is said: those that come once, by alphabet, behind the dots."""
    letters = left.replace("...", "")
    return "..." * ("..." in left) + "".join(sorted(c for c in set(letters) - {","} if letters.count(c) == 1))


def _without_dots(term: str, dots: str, rank: int) -> str:
    count = rank - len(term) + 3
    found = term.replace("...", dots[len(dots) - count :] if count > 0 else "")
    if len(found) != rank or not all(c in string.ascii_letters for c in found):
        raise ValidationError(f"the labels {term!r} do not fit the rank {rank}", code="einsum")
    return found


@op("Einsum", since=12, outputs=("Output",), traits=(Trait.MULTILINEAR,))
def einsum(*Inputs: Array, equation: str) -> Array:
    terms, result = einsum_labels(equation, [x.ndim for x in Inputs])
    if len(Inputs) == 2 and Inputs[0].dtype.kind == "f" and _is_contraction(terms, result, Inputs):
        return _contracted(terms, result, *Inputs)
    return np.asarray(np.einsum(f"{','.join(terms)}->{result}", *Inputs, optimize=len(Inputs) > 1))


def _is_contraction(terms: Sequence[str], result: str, arrays: Sequence[Array]) -> bool:
    """Return whether a matrix product can do it: no diagonals, no lone sums, no broadcast labels."""
    a, b = terms
    extents = {**dict(zip(a, arrays[0].shape, strict=True))}
    agrees = all(extents.get(c, n) == n for c, n in zip(b, arrays[1].shape, strict=True))
    alone = set(a) ^ set(b)
    return agrees and len(set(a)) == len(a) and len(set(b)) == len(b) and alone <= set(result)


def _contracted(terms: Sequence[str], result: str, x: Array, y: Array) -> Array:
    a, b = terms
    batch = [c for c in a if c in b and c in result]
    inner = [c for c in a if c in b and c not in result]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]
    extents = {**dict(zip(a, x.shape, strict=True)), **dict(zip(b, y.shape, strict=True))}

    def sizes(*groups: Sequence[str]) -> list[int]:
        return [int(np.prod([extents[c] for c in group], dtype=np.int64)) for group in groups]

    left = x.transpose([a.index(c) for c in (*batch, *rows, *inner)]).reshape(*sizes(batch, rows, inner))
    right = y.transpose([b.index(c) for c in (*batch, *inner, *columns)]).reshape(*sizes(batch, inner, columns))
    made = [*batch, *rows, *columns]
    product = np.asarray(np.matmul(left, right)).reshape([extents[c] for c in made])
    return product.transpose([made.index(c) for c in result])


MOST_OPERANDS = 63
"""What NumPy can take at once; and the derivative of a product of so many is as many products."""


@einsum.types
def _(node: Node) -> Type:
    types = [v.type for v in node.operands]
    if len(types) > MOST_OPERANDS:
        raise UnsupportedError(f"Einsum of {len(types)} operands; at most {MOST_OPERANDS} are supported", code="operands")
    if "..." in attr(node, "equation") and any(t.shape is None for t in types):
        return types[0].with_shape(None)
    terms, result = _labels(node)
    extents: dict[str, DimLike] = {}
    for term, type_ in zip(terms, types, strict=True):
        for label, extent in zip(term, (UNKNOWN,) * len(term) if type_.shape is None else type_.shape, strict=True):
            extents[label] = broadcast_dims(extents.get(label, 1), extent)
    return types[0].with_shape([extents[c] for c in result])


def _labels(node: Node) -> tuple[list[str], str]:
    """Return the labels; an unknown rank is the number of labels (unless there are dots)."""
    equation = attr(node, "equation")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    ranks = [v.type.rank for v in node.operands]
    return einsum_labels(equation, [len(t) if r is None else r for t, r in zip(terms, ranks, strict=True)])


@einsum.expands_on_export
def _(node: Node) -> bool:
    """Runtimes want the dots of all operands to stand for as many axes."""
    return len({count for _, count in _dotted(node)}) > 1


def _dotted(node: Node) -> list[tuple[int, int]]:
    """Return for each operand with dots and of known rank which one it is, and for how many axes its dots stand."""
    terms = attr(node, "equation").replace(" ", "").partition("->")[0].split(",")
    return [(i, v.type.rank - len(t) + 3) for i, (t, v) in enumerate(zip(terms, node.operands, strict=True))
            if "..." in t and v.type.rank is not None]


@einsum.expansion
def _(b: Builder, node: Node) -> Any:
    """The same, with axes of extent 1 where dots stand for fewer axes than others do."""
    dotted, operands = _dotted(node), node.operands
    width = max((count for _, count in dotted), default=0)
    if all(count == width for _, count in dotted):
        return refuse("the dots of all operands stand for as many axes")
    for i, count in dotted:
        if count < width:
            at = attr(node, "equation").replace(" ", "").split(",")[i].index("...")
            operands[i] = b.Unsqueeze(operands[i], list(range(at, at + width - count)))
    return b.Einsum(*operands, equation=attr(node, "equation"))


@einsum.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """The cotangent of an operand is the product of y_bar and the other operands, summed over all other labels.

    Labels that only this operand has are broadcast back; a diagonal is written to zeros.
    """
    operands = node.operands
    if "..." in attr(node, "equation") and any(v.type.rank is None for v in operands):
        return refuse(unknown_ranks(node))
    terms, result = _labels(node)
    return [_operand_bar(b, y_bar, operands, terms, result, k) for k in range(len(operands))]


def _operand_bar(b: DerivativeBuilder, y_bar: Value, operands: Sequence[Value], terms: Sequence[str], result: str, k: int
                 ) -> Value:
    x, term = operands[k], terms[k]
    others = [(v, t) for i, (v, t) in enumerate(zip(operands, terms, strict=True)) if i != k]
    known = set(result).union(*(t for _, t in others))
    labels = "".join(c for c in dict.fromkeys(term) if c in known)
    equation = f"{','.join([result, *(t for _, t in others)])}->{labels}"
    bar = y_bar if not others and result == labels else b.Einsum(y_bar, *(v for v, _ in others), equation=equation)
    missing = [i for i, c in enumerate(term) if c not in known or c in term[:i]]
    if missing:
        bar = b.Unsqueeze(bar, missing)
    if bar.type.shape != x.type.shape:  # an extent of 1 of either side may stand for any
        bar = b.sum_to(b.Expand(bar, b.shape(x)), x)
    return _on_diagonal(b, bar, x, term)


def _on_diagonal(b: Builder, bar: Value, x: Value, term: str) -> Value:
    """Return ``bar`` where axes with the same label have the same index, else 0."""
    rank = len(term)
    zero = b.scalar(0, bar.type.dtype)
    for axis, label in enumerate(term):
        if label in term[:axis]:
            first, second = _index_grid(b, x, term.index(label), rank), _index_grid(b, x, axis, rank)
            bar = b.Where(b.Equal(first, second), bar, zero)
    return bar


def _index_grid(b: Builder, x: Value, axis: int, rank: int) -> Value:
    return b.Reshape(ramp(b, b.extent(x, axis)), b.ints([-1 if i == axis else 1 for i in range(rank)]))


@einsum.tangent
def _(b: DerivativeBuilder, node: Node, *dots: Value | None) -> Any:
    """The sum over the operands of the same product with one tangent in its place."""
    parts = []
    for k, x_dot in enumerate(dots):
        if x_dot is not None:
            operands = [x_dot if i == k else v for i, v in enumerate(node.inputs)]
            parts.append(b.add("Einsum", operands, dict(node.attributes)))
    return sum_of_present(b, *parts)


@einsum.batch
def _(b: BatchBuilder, node: Node, *xs: Value) -> Any:
    """One more label, the first of the result and of the operands that are one per example."""
    left, arrow, right = attr(node, "equation").replace(" ", "").partition("->")
    if not arrow:
        right = _implied(left)
    free = next(c for c in string.ascii_letters if c not in left)
    named = ",".join(free + t if b.holds(x) else t for x, t in zip(xs, left.split(","), strict=True))
    return b.Einsum(*xs, equation=f"{named}->{free}{right}")
