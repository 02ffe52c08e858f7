"""The simplify pass: shorter forms whose values may differ by rounding, or in the sign of a zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import CONSTANT, Graph, Node, Value
from flowgrad.ir.ops.registry import attr, opdef
from flowgrad.ir.process_state import quiet
from flowgrad.passes.canonicalize import unchanged
from flowgrad.passes.canonicalize_shapes import permutation
from flowgrad.passes.edits import is_literal
from flowgrad.passes.registry import pass_
from flowgrad.passes.rewrite import apply_rules, no_match, rewrite, rules_in


@pass_("simplify", kind="rounding")
def simplify(graph: Graph) -> None:
    """Join products with sums and transposes into Gemm, and constants with constants."""
    apply_rules(graph, RULES)


@rewrite("Add(%x, 0.0)", "Sub(%x, -0.0)", kind="rounding")
def drop_zero(b: Builder, node: Node, x: Value) -> Any:
    """x + 0 = x up to the sign of zero."""
    return unchanged(node, x, "broadcasting")


@rewrite("Sub(0.0, %x)", kind="rounding")
def negate(b: Builder, node: Node, x: Value) -> Any:
    """0 - x = -x up to the sign of zero."""
    if not x.type.dtype.is_float or x.type != node.output().type:
        return no_match("broadcasting changes the type, or it is one of integers")
    return b.Neg(x)


@rewrite("Neg(Sub(%x, %y))", kind="rounding")
def turn_difference(b: Builder, x: Value, y: Value) -> Any:
    """-(x - y) = y - x up to the sign of zero."""
    return b.Sub(y, x)


@rewrite("Mul(Mul(%x, %c), %d)", kind="rounding", behind=(CONSTANT,))
def join_factors(b: Builder, x: Value, c: Value, d: Value) -> Any:
    """(x c) d = x (c d) for literals of one element."""
    if not all(is_literal(v) and v.type.size == 1 and v.type.dtype.is_float for v in (c, d)):
        return no_match("the factors are not literals of one element")
    if c.type.rank or d.type.rank or x.constant is not None:
        return no_match("a factor adds axes")
    product = quiet(np.multiply)(c.constant, d.constant)  # type: ignore[arg-type]
    if not np.isfinite(product) or product == 0:
        return no_match("the product of the factors overflows or vanishes")
    return b.Mul(x, b.graph.add_constant(np.asarray(product, c.type.dtype.numpy)))


@rewrite("Add(MatMul(%x, %w), %c)", kind="rounding")
def fuse_gemm(b: Builder, node: Node, x: Value, w: Value, c: Value) -> Any:
    """A product of matrices plus a bias is one Gemm."""
    if x.type.rank != 2 or w.type.rank != 2:
        return no_match("Gemm takes matrices only")
    if not x.type.dtype.is_float:
        return no_match("the product is one of integers")
    if not _fits(c, node):
        return no_match("the term does not broadcast to the product")
    return b.Gemm(x, w, c)


def _fits(c: Value, node: Node) -> bool:
    """Return whether ``c`` broadcasts to the output without widening the product."""
    product = next((v for v in node.operands if v is not c), None)
    shape = None if product is None else product.type.shape
    if shape is None or c.type.shape is None or len(c.type.shape) > 2 or node.output().type.shape != shape:
        return False
    return all(d in (1, s) for d, s in zip(c.type.shape[::-1], shape[::-1], strict=False))


@rewrite("MatMul(Transpose(%x), %w)", kind="rounding")
def fold_left_transpose(b: Builder, node: Node, x: Value, w: Value) -> Any:
    """A transposed left factor is a flag of Gemm."""
    if not _is_matrix_transpose(node.input(0), w):
        return no_match("Gemm takes matrices only")
    return b.Gemm(x, w, transA=1)


@rewrite("MatMul(%x, Transpose(%w))", kind="rounding")
def fold_right_transpose(b: Builder, node: Node, x: Value, w: Value) -> Any:
    """A transposed right factor is a flag of Gemm."""
    if not _is_matrix_transpose(node.input(1), x):
        return no_match("Gemm takes matrices only")
    return b.Gemm(x, w, transB=1)


@rewrite("Gemm(Transpose(%x), %w, %c?)", kind="rounding")
def flip_left_flag(b: Builder, node: Node, x: Value, w: Value, c: Value | None) -> Any:
    """A transposed left factor flips a flag of Gemm."""
    if permutation(node.input(0).producer) != [1, 0]:
        return no_match("it is no transposed matrix")
    return b.add("Gemm", [x, w, c], {**node.attributes, "transA": 1 - attr(node, "transA")})


@rewrite("Gemm(%x, Transpose(%w), %c?)", kind="rounding")
def flip_right_flag(b: Builder, node: Node, x: Value, w: Value, c: Value | None) -> Any:
    """A transposed right factor flips a flag of Gemm."""
    if permutation(node.input(1).producer) != [1, 0]:
        return no_match("it is no transposed matrix")
    return b.add("Gemm", [x, w, c], {**node.attributes, "transB": 1 - attr(node, "transB")})


def _is_matrix_transpose(transposed: Value, other: Value) -> bool:
    is_float = other.type.dtype.is_float
    return is_float and other.type.rank == 2 and permutation(transposed.producer) == [1, 0]


# ---- products with the identity: unit seeds of Jacobians meet them ---------------------------------------------------------


@rewrite("MatMul(%x, %w)", "Gemm(%x, %w)", kind="rounding")
def drop_identity_factor(b: Builder, node: Node, x: Value, w: Value) -> Any:
    """I w = w and x I = x, transposed where Gemm says so."""
    if _said(node, "alpha", 1.0) != 1:
        return no_match("the product is scaled")
    if _is_identity(x) and (w.type.rank or 0) > 1:
        return _turned(b, node, w, "transB")
    if _is_identity(w) and x.type.rank:
        return _turned(b, node, x, "transA")
    return no_match("no factor is the identity")


@rewrite("MatMul(Mul(%e, %d), %w)", "Gemm(Mul(%e, %d), %w)", kind="rounding")
def scale_rows(b: Builder, node: Node, e: Value, d: Value, w: Value) -> Any:
    """diag(d) w is w with its rows scaled: the columns of I are scaled by d."""
    if _said(node, "alpha", 1.0) != 1 or _said(node, "transA", 0):
        return no_match("the product is scaled or turned")
    if not _is_identity(e) or w.type.rank != 2:
        return no_match("no factor is a scaled identity")
    if d.type.shape not in (e.shape[1:], (1, *e.shape[1:])):
        return no_match("the identity is scaled by more than a row")
    column = b.Reshape(d, b.ints([-1, 1]))
    return b.Mul(column, _turned(b, node, w, "transB"))


def _said(node: Node, name: str, otherwise: Any) -> Any:
    """Return an attribute of a product, and ``otherwise`` for one whose op has none of this name."""
    return attr(node, name) if name in opdef(node.op).attributes else otherwise


def _is_identity(x: Value) -> bool:
    """Return whether ``x`` is the identity matrix: a literal, or an EyeLike that is too large to be folded."""
    if x.producer.op == "EyeLike":
        shape = x.shape
        return x.type.dtype.is_float and attr(x.producer, "k") == 0 and shape is not None and shape[0] == shape[1]
    array = x.constant
    if array is None or not is_literal(x) or array.ndim != 2 or array.shape[0] != array.shape[1]:
        return False
    return x.type.dtype.is_float and np.array_equal(array, np.eye(len(array), dtype=array.dtype))


def _turned(b: Builder, node: Node, x: Value, flag: str) -> Value:
    return b.Transpose(x, perm=[1, 0]) if _said(node, flag, 0) else x


RULES = rules_in(globals())
