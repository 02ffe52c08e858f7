"""Approximations of the Hessian that need first derivatives alone: Gauss-Newton, Fisher, outer products and their inverse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, get_args

from flowgrad.ir.arguments import is_word
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.ops.operands import joined
from flowgrad.ir.types import Type
from flowgrad.model import Model
from flowgrad.passes.adjoint import Zero
from flowgrad.passes.differentiate import Seeds, adjoint, tangent
from flowgrad.passes.selection import Names, Pick, find_of, find_scalar, find_wrt
from flowgrad.transforms.jacobians import check_ranks, check_sweeps, reverse_blocks
from flowgrad.transforms.seeds import element_count, spread
from flowgrad.transforms.task import Task, check_option, common_dtype, shared_notes, stage

Link = Literal["identity", "logistic"]


@stage
def gauss_newton(model: Model, of: str | Pick | None = None, wrt: Names = "params", *, at: Names, seeds: Seeds = None,
                 zero: Zero = "error", stabilize: bool = True) -> Model:
    """Return a model of the generalised Gauss-Newton product J^T H J v.

    J is the Jacobian of the values ``at`` (the outputs of the network, before the loss) by ``wrt``, and H the Hessian of
    the scalar ``of`` by the values ``at``. Inputs gain ``x_tangent`` for each x, the parts of v; the outputs are the scalar,
    then ``x_ggn`` of the shape of x. For a loss that is convex in ``at`` it is positive semidefinite; for softmax or
    logistic outputs with their cross-entropy, and for sums of squares, it is the product with the Fisher information. What
    leads to the scalar beside ``at`` is left out. Raises like ``hvp``.

    Examples:
        >>> product = fg.gauss_newton(model, of="loss", wrt="b2", at="logits")
        >>> product(batch, b2_tangent=np.ones(3, np.float32))["b2_ggn"].round(6)
        array([0., 0., 0.], dtype=float32)
    """
    task = Task(model, stabilize)
    name, y = find_scalar(task.graph, of)
    wrt_values, zs = find_wrt(task.graph, wrt), list(dict.fromkeys(z for _, z in find_of(task.graph, at)))
    task.repair([y, *zs, *wrt_values])
    task.drop_outputs()
    task.graph.add_output(y, name)
    pairs = task.tangents([(x.name, x) for x in wrt_values], seeds)
    z_bars = adjoint(task.graph, [(y, task.one(y))], zs, zero=check_option(zero))
    z_dots = tangent(task.graph, pairs, zs, in_place=seeds is None)
    moved = [(z, z_dot) for z, z_dot in zip(zs, z_dots, strict=True) if z_dot is not None]
    curved = iter(tangent(task.graph, moved, [z_bar for z_bar in z_bars if z_bar is not None],
                          in_place=seeds is None) if moved else ())
    ends = [(z, end) for z, z_bar in zip(zs, z_bars, strict=True) if z_bar is not None and (end := next(curved, None))]
    _products(task, "ggn", name, wrt_values, ends, zero)
    return task.finish()


@stage
def fisher(model: Model, of: Names, wrt: Names = "params", *, link: Link = "identity", seeds: Seeds = None,
           zero: Zero = "error", stabilize: bool = True) -> Model:
    """Return a model of the product with the outer-product matrix: sum over n of weight_n b_n (b_n^T v), b_n = d of_n / dx.

    ``of`` are the losses of single examples (the sum of their outer products is the empirical Fisher information), or the
    outputs of the network (see ``outer_product``, which makes the matrix). Inputs gain ``x_tangent`` for each x, the parts
    of v; the outputs are the values ``of``, then ``x_fisher`` of the shape of x. Raises like ``vjp``.

    Examples:
        >>> product = fg.fisher(model, of="logits", wrt="b2")
        >>> product(batch, b2_tangent=np.ones(3, np.float32))["b2_fisher"]
        array([2., 2., 2.], dtype=float32)
    """
    check_option(zero)
    task = Task(model, stabilize)
    ys, wrt_values = find_of(task.graph, of), find_wrt(task.graph, wrt)
    task.repair([*(y for _, y in ys), *wrt_values])
    task.drop_outputs()
    task.output_all(ys)
    pairs = task.tangents([(x.name, x) for x in wrt_values], seeds)
    dots = tangent(task.graph, pairs, [y for _, y in ys], in_place=seeds is None)
    ends = [(y, _weighted(Builder(task.graph, prefix=y.name), dot, y, link))
            for (_, y), dot in zip(ys, dots, strict=True) if dot is not None]
    _products(task, "fisher", ",".join(name for name, _ in ys), wrt_values, ends, zero)
    return task.finish()


def _products(task: Task, kind: str, of: str, wrt: Sequence[Value], ends: Sequence[tuple[Value, Value]], zero: Zero) -> None:
    """Output what comes back to ``wrt`` from cotangents that were made of tangents."""
    task.notes += shared_notes(wrt)
    found = adjoint(task.graph, ends, wrt, zero=zero) if ends else [None] * len(wrt)
    for x, product in zip(wrt, task.for_each_seed(found), strict=True):
        task.add_derivative((kind, of, x.name), f"{x.name}_{kind}", x, product, of, x.name)


# ---- outer products ---------------------------------------------------------------------------------------------------------


@stage
def outer_product(model: Model, of: Names, wrt: Names = "params", *, link: Link = "identity", chunk_size: int | None = None,
                  zero: Zero = "error", stabilize: bool = True) -> Model:
    """Return a model of the outer-product (Levenberg-Marquardt) approximation of the Hessian: outputs ``x_u_outer_product``.

    H ~ sum over n of weight_n b_n b_n^T with b_n = d of_n / dw, over all elements n of ``of``: the outputs of a network whose
    error is half the sum of squares (weights 1; ``link="identity"``), or the pre-activations a_n of logistic outputs y_n with
    the cross-entropy (weights y_n (1 - y_n); ``link="logistic"``). The shape is x.shape + u.shape. Raises like ``jacobian``.

    Examples:
        >>> fg.outer_product(model, of="logits", wrt="b2")(batch)["b2_b2_outer_product"].tolist()
        [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]
    """
    check_sweeps("auto", chunk_size)
    task = Task(model, stabilize)
    name, wrt_values, rows, weighted = _rows(task, of, wrt, link, chunk_size, zero)
    b = Builder(task.graph)
    for i, x in enumerate(wrt_values):
        for j, u in enumerate(wrt_values):
            block = b.Gemm(weighted[i], rows[j], transA=1)
            task.add_block(("outer_product", name, f"{x.name},{u.name}"), f"{x.name}_{u.name}_outer_product", (x, u),
                           spread(b, block, [x, u]))
    return task.finish()


@stage
def inverse_outer_product(model: Model, of: Names, wrt: Names = "params", *, damping: float, link: Link = "identity",
                          chunk_size: int | None = None, zero: Zero = "error", stabilize: bool = True) -> Model:
    """Return a model of the inverse of damping I + the outer-product approximation: outputs ``x_u_inverse_outer_product``.

    It is made without solving: one example after the other is taken in by the Woodbury identity,
    (H + w b b^T)^-1 = H^-1 - w (H^-1 b) (H^-1 b)^T / (1 + w b^T H^-1 b), beginning with H = damping I. The shape is
    x.shape + u.shape. Raises like ``outer_product``, and InputError for a damping that is not positive.

    Examples:
        >>> inverse = fg.inverse_outer_product(model, of="logits", wrt="b2", damping=2.0)
        >>> inverse(batch)["b2_b2_inverse_outer_product"].diagonal().round(4)
        array([0.25, 0.25, 0.25], dtype=float32)
    """
    check_sweeps("auto", chunk_size)
    if isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0 < damping < math.inf:
        raise InputError(f"damping is the positive number that the recursion begins with, got {damping!r}", code="option")
    task = Task(model, stabilize)
    name, wrt_values, rows, weighted = _rows(task, of, wrt, link, chunk_size, zero)
    b = Builder(task.graph, prefix="inverse")
    counts = [element_count(b, x) for x in wrt_values]
    inverse = _inverse(b, b.Concat(*rows, axis=1), b.Concat(*weighted, axis=1), damping)
    ends = list(accumulate(counts, b.Add))
    starts = [b.ints([0]), *ends[:-1]]
    for i, x in enumerate(wrt_values):
        for j, u in enumerate(wrt_values):
            block = b.Slice(inverse, joined(b, [starts[i], starts[j]]), joined(b, [ends[i], ends[j]]), b.ints([0, 1]))
            task.add_block(("inverse_outer_product", name, f"{x.name},{u.name}"), f"{x.name}_{u.name}_inverse_outer_product",
                           (x, u), spread(b, block, [x, u]))
    return task.finish()


def _rows(task: Task, of: Names, wrt: Names, link: Link, chunk_size: int | None, zero: Zero
          ) -> tuple[str, list[Value], list[Value], list[Value]]:
    """Return the name of what is differentiated, the values by which, and for each the rows b_n and weight_n b_n."""
    check_option(zero)
    ys, xs = find_of(task.graph, of), find_wrt(task.graph, wrt)
    task.repair([*(y for _, y in ys), *xs])
    check_ranks([*(y for _, y in ys), *xs])
    task.drop_outputs()
    task.notes += shared_notes(xs)
    blocks = reverse_blocks(task.graph, [y for _, y in ys], xs, chunk_size, zero)
    b, dtype = Builder(task.graph), common_dtype([*(y for _, y in ys), *xs])
    rows: list[list[Value]] = [[] for _ in xs]
    weighted: list[list[Value]] = [[] for _ in xs]
    for (_, y), row in zip(ys, blocks, strict=True):
        count = element_count(b, y)
        for k, (x, block) in enumerate(zip(xs, row, strict=True)):
            shape = joined(b, [count, element_count(b, x)])
            zeros = b.Expand(b.scalar(0, dtype), shape)
            flat = zeros if block is None else b.cast(b.Reshape(block, shape, allowzero=1), dtype)
            rows[k].append(flat)
            weighted[k].append(_weighted(b, flat, b.cast(y, dtype), link, column=True))
    name = ",".join(name for name, _ in ys)
    return name, xs, [_stacked(b, r) for r in rows], [_stacked(b, w) for w in weighted]


def _stacked(b: Builder, rows: Sequence[Value]) -> Value:
    return rows[0] if len(rows) == 1 else b.Concat(*rows, axis=0)


def _weighted(b: Builder, value: Value, a: Value, link: Link, *, column: bool = False) -> Value:
    """Return ``value`` times the second derivative of the loss by the pre-activation ``a``: 1, or y (1 - y)."""
    if not is_word(link, get_args(Link)):
        raise InputError(f"link is 'identity' (sum of squares) or 'logistic' (cross-entropy), got {link!r}", code="option")
    if link == "identity":
        return value
    y = b.Sigmoid(a)
    weight = b.Mul(y, b.Sub(1.0, y))
    return b.Mul(value, b.Reshape(weight, b.ints([-1, 1])) if column else weight)


def _inverse(b: Builder, rows: Value, weighted: Value, damping: float) -> Value:
    """Return (damping I + sum of weighted_n rows_n^T)^-1 by a Scan over n."""
    body = Graph("woodbury", b.graph.limits)
    width, dtype = rows.shape[1], rows.type.dtype
    state = body.add_input("inverse", Type(dtype, (width, width)))
    row, scaled = (body.add_input(name, Type(dtype, (width,))) for name in ("row", "weighted"))
    inner = Builder(body)
    left, right = inner.MatMul(state, scaled), inner.MatMul(row, state)
    quotient = inner.Div(left, inner.Add(inner.MatMul(row, left), 1.0))
    body.add_output(inner.Sub(state, inner.Mul(inner.Unsqueeze(quotient, [1]), right)), "next")
    size = b.extent(rows, 1)
    start = b.cast_like(b.EyeLike(b.ConstantOfShape(joined(b, [size, size])), dtype=dtype.wide.onnx), rows)
    start = b.Mul(start, b.scalar(1 / damping, dtype))
    types = [Type(dtype, (width, width))]
    return b.add_node("Scan", [start, rows, weighted], {"num_scan_inputs": 2}, types=types, subgraphs={"body": body}).output()
