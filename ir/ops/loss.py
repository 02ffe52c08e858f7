"""Classification losses: the classes lie along axis 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, in_rows, looped, merged_again, together, volume
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import RunError, ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise.arithmetic import select
from flowgrad.ir.ops.operands import expand_to
from flowgrad.ir.ops.reduction import reduce_log_sum_exp
from flowgrad.ir.ops.registry import FLOWGRAD, NO_GRADIENT, attr, op
from flowgrad.ir.ops.softmax import log_softmax
from flowgrad.ir.types import DType, Shape, Type, dim_product, merge_dims


@op("NegativeLogLikelihoodLoss", since=12, outputs=("loss",))
def negative_log_likelihood_loss(
    x: Array, target: Array, weight: Array | None = None, *, ignore_index: int | None = None, reduction: str = "mean"
) -> Array:
    ignored = np.zeros(target.shape, bool) if ignore_index is None else target == ignore_index
    classes = np.where(ignored, 0, target)
    if classes.size and (classes.min() < 0 or classes.max() >= x.shape[1]):
        raise RunError(f"a label lies outside 0..{x.shape[1] - 1}", code="label")
    picked = np.take_along_axis(x, np.expand_dims(classes, 1), axis=1)[:, 0]
    share = np.ones((), x.dtype) if weight is None else weight[classes]
    shares = np.where(ignored, 0, np.broadcast_to(share, picked.shape)).astype(x.dtype)
    loss = np.where(ignored, 0, -picked * shares).astype(x.dtype)
    if reduction == "none":
        return loss
    total = loss.sum(dtype=x.dtype)
    return np.asarray(total if reduction == "sum" else total / shares.sum(dtype=x.dtype), x.dtype)


@negative_log_likelihood_loss.types
def _(node: Node) -> Type:
    return _loss_type(node)


def _loss_type(node: Node) -> Type:
    x, target = node.input(0).type, node.input(1).type
    is_reduced = attr(node, "reduction") != "none"
    if x.shape is None or target.shape is None:
        return x.with_shape(() if is_reduced else target.shape)
    batch: Shape = (*x.shape[:1], *x.shape[2:])
    if len(x.shape) < 2 or len(target.shape) != len(batch):
        raise ValidationError(f"{node.op} takes [N, C, ...] and labels [N, ...], got {x!r} and {target!r}", code="rank",
                              where=node.label)
    made = [merge_dims(a, t) for a, t in zip(batch, target.shape, strict=True)]
    return x.with_shape(() if is_reduced else made)


@negative_log_likelihood_loss.adjoint
def _(b: DerivativeBuilder, node: Node, loss_bar: Value) -> Any:
    """x_bar[t] = -w[t] e, w_bar[t] = -x[t] e, with e = loss_bar, for the mean over the sum W of the weights used
    e = loss_bar / W and a share of loss in w_bar besides. All in the type that is computed in."""
    x_bar, weight_bar = _likelihood_bars(b, node, node.input(0), loss_bar)
    return [b.cast_like(x_bar, node.input(0)), NO_GRADIENT, weight_bar][: len(node.inputs)]


def _likelihood_bars(b: DerivativeBuilder, node: Node, x: Value, loss_bar: Value) -> tuple[Value, Any]:
    """Return the cotangents of ``x`` in the type that is computed in, and of the weights (NO_GRADIENT if there are none)."""
    target, weight, wide = node.input(1), node.optional(2), x.type.dtype.wide
    classes, kept = _classes(b, node, x)
    places = b.Unsqueeze(classes, [1])
    shares = None if weight is None else b.cast(b.Gather(weight, classes, axis=0), wide)
    is_mean = attr(node, "reduction") == "mean"
    unit = b.cast(loss_bar, wide)
    if is_mean:
        unit = b.Div(unit, _weight_used(b, shares, kept, target, wide))
    unit = expand_to(b, unit, target)
    unit = unit if kept is None else select(b, kept, unit)
    picked_bar = b.Neg(unit if shares is None else b.Mul(unit, shares))
    zeros = b.filled(0, x, wide)
    b.zeros.add(zeros)
    x_bar = b.ScatterElements(zeros, places, b.Unsqueeze(picked_bar, [1]), axis=1)
    if weight is None:
        return x_bar, NO_GRADIENT
    loss = b.cast(b.Squeeze(b.GatherElements(x, places, axis=1), [1]), wide)
    if is_mean:
        loss = b.Add(loss, b.cast(node.output(), wide))
    share_bar = b.cast_like(b.Neg(b.Mul(unit, loss)), weight)
    return x_bar, b.GatherGrad(b.shape(weight), share_bar, classes)


def _classes(b: DerivativeBuilder, node: Node, x: Value) -> tuple[Value, Value | None]:
    """Return the classes, 0 where they are ignored, and where they are not (None: all count).

    A label below 0 is one beyond the last class: operators that read at indices would count it from the end.
    """
    target, ignore_index = node.input(1), attr(node, "ignore_index")
    beyond = b.cast_like(b.Squeeze(b.extent(x, 1), [0]), target)
    classes = b.Where(b.Less(target, b.scalar(0, target.type.dtype)), beyond, target)
    if ignore_index is None:
        return classes, None
    ignored = b.Equal(target, b.scalar(ignore_index, target.type.dtype))
    return b.Where(ignored, b.scalar(0, target.type.dtype), classes), b.support.made(b.Not(ignored))


def _weight_used(b: Builder, shares: Value | None, kept: Value | None, target: Value, wide: DType) -> Value:
    """Return the sum of the weights of all labels that are not ignored."""
    if shares is not None:
        return b.ReduceSum(shares if kept is None else select(b, kept, shares), None, keepdims=0)
    if kept is not None:
        return b.ReduceSum(b.cast(kept, wide), None, keepdims=0)
    return b.cast(b.Size(target), wide)


@op("SoftmaxCrossEntropyLoss", since=12, outputs=("output", "log_prob"), required_outputs=1)
def softmax_cross_entropy_loss(
    scores: Array, labels: Array, weights: Array | None = None, *, ignore_index: int | None = None,
    reduction: str = "mean"
) -> tuple[Array, Array]:
    log_prob = log_softmax.kernel(scores, axis=1)
    loss = negative_log_likelihood_loss.kernel(log_prob, labels, weights, ignore_index=ignore_index, reduction=reduction)
    return loss, log_prob


@softmax_cross_entropy_loss.types
def _(node: Node) -> list[Type]:
    return [_loss_type(node), node.input(0).type]


@softmax_cross_entropy_loss.adjoint
def _(b: DerivativeBuilder, node: Node, loss_bar: Value, log_prob_bar: Value) -> Any:
    """With l = log_prob and l_bar that of NegativeLogLikelihoodLoss and log_prob_bar: x_bar = l_bar - exp(l) sum(l_bar)."""
    scores, log_prob = node.input(0), b.residual(node, "log_prob")
    total, weight_bar = _likelihood_bars(b, node, log_prob, loss_bar)
    kept = _classes(b, node, scores)[1]
    if not b.is_zero(log_prob_bar):
        total, kept = b.Add(total, b.cast_like(log_prob_bar, total)), None
    wide = b.cast_like(scores, total)
    shares = b.Exp(log_prob) if wide is scores else b.Softmax(wide, axis=1)  # not of what was rounded
    spread = b.Mul(b.ReduceSum(total, [1], keepdims=1), shares)
    scores_bar = b.Sub(total, spread if kept is None else select(b, b.Unsqueeze(kept, [1]), spread))
    return [b.cast_like(scores_bar, scores), NO_GRADIENT, weight_bar][: len(node.inputs)]


@op("SoftmaxCrossEntropy", domain=FLOWGRAD, outputs=("loss",))
def softmax_cross_entropy(logits: Array, target: Array) -> Array:
    """log(sum(exp(logits))) - sum(target logits) along the last axis: the cross-entropy of softmax(logits) where target sums to
    1. In plain operators its derivative is many nodes; here it is softmax(logits) - target, that of a canonical link."""
    likelihood = log_softmax.kernel(logits, axis=-1)
    expected = np.where(target == 0, 0, target * likelihood).sum(axis=-1, dtype=logits.dtype)
    rest = 1 - target.sum(axis=-1, dtype=logits.dtype)
    return np.asarray(rest * reduce_log_sum_exp.kernel(logits, np.array([-1]), keepdims=0) - expected, logits.dtype)


@softmax_cross_entropy.types
def _(node: Node) -> Type:
    logits, target = node.input(0).type, node.input(1).type
    if logits.dtype != target.dtype:
        raise ValidationError(f"the target is {target.dtype.name}, the logits are {logits.dtype.name}", code="type")
    if logits.shape is None or target.shape is None:
        return logits.with_shape(None)
    if not logits.shape or len(logits.shape) != len(target.shape):
        raise ValidationError(f"the target {target!r} has not the shape of the logits {logits!r}", code="shape")
    merged = [merge_dims(n, t) for n, t in zip(logits.shape, target.shape, strict=True)]
    return logits.with_shape(merged[:-1])


@softmax_cross_entropy.adjoint
def _(b: DerivativeBuilder, node: Node, loss_bar: Value) -> Any:
    """logits_bar = (softmax(logits) - target) loss_bar, target_bar = -logits loss_bar."""
    logits, target = (b.cast(v, v.type.dtype.wide) for v in node.operands)
    unit = b.Unsqueeze(b.cast(loss_bar, logits.type.dtype), [-1])
    logits_bar = b.Mul(b.Sub(b.Softmax(logits, axis=-1), target), unit)
    return b.cast_like(logits_bar, node.input(0)), b.cast_like(b.Neg(b.Mul(logits, unit)), node.input(1))


@softmax_cross_entropy.expansion
def _(b: Builder, node: Node) -> Any:
    """(1 - sum(target)) log(sum(exp(logits))) - sum(target log(softmax(logits))), in which 0 log(0) is 0."""
    logits, target = node.input(0), node.input(1)
    zero = b.scalar(0, target.type.dtype)
    product = b.Where(b.Equal(target, zero), zero, b.Mul(target, b.LogSoftmax(logits, axis=-1)))
    rest = b.Sub(b.scalar(1, target.type.dtype), b.ReduceSum(target, [-1], keepdims=0))
    return b.Sub(b.Mul(rest, b.ReduceLogSumExp(logits, [-1], keepdims=0)), b.ReduceSum(product, [-1], keepdims=0))


# ---- many examples ----------------------------------------------------------------------------------------------------------


@negative_log_likelihood_loss.batch
def _(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """More samples; the losses of every example are added up, or averaged, apart."""
    return _batched_loss(b, node, xs)


@softmax_cross_entropy_loss.batch
def _(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """More samples; the losses of every example are added up, or averaged, apart."""
    return _batched_loss(b, node, xs)


@softmax_cross_entropy.batch
def _(b: BatchBuilder, node: Node, logits: Value, target: Value) -> Any:
    """The classes stay last."""
    rank = node.input(0).type.rank
    if rank is None or node.input(1).type.rank is None:
        return looped(b, node, logits, target)
    rows = in_rows(b, node, [logits, target], (0, 1)) if rank > 1 else None
    return rows or together(b, node, logits, target)


def _batched_loss(b: BatchBuilder, node: Node, xs: Sequence[Value | None]) -> Any:
    if any(v.type.rank is None for v in node.operands) or any(b.holds(x) for x in xs[2:]):
        return looped(b, node, *xs)
    losses, *others = merged_again(b, node, xs, {0: 0, 1: 0}, [0] * len(node.outputs), reduction="none")
    reduction = attr(node, "reduction")
    if losses is None or reduction == "none":
        return losses, *others
    axes = list(range(1, len(losses.shape)))
    counts_all = len(xs) < 3 and attr(node, "ignore_index") is None
    if losses.shape[1:] == (1,) and (counts_all or reduction == "sum"):
        return b.rows[losses], *others  # of one sample each
    total = b.ReduceSum(losses, axes, keepdims=0)
    if reduction == "mean":
        total = b.Div(total, _weights_used(b, node, xs, losses, axes))
    return total, *others


def _weights_used(b: BatchBuilder, node: Node, xs: Sequence[Value | None], losses: Value, axes: Sequence[int]) -> Value:
    """Return the sum of the weights that the loss of each example counts: its loss where every likelihood is -1."""
    dtype = losses.type.dtype
    if len(xs) < 3 and attr(node, "ignore_index") is None:
        dims = losses.shape[1:]
        known = all(isinstance(d, int) for d in dims)
        return b.scalar(dim_product(dims), dtype) if known else b.cast(volume(b, losses), dtype)  # type: ignore[arg-type]
    x, target = b.merged(xs[0]), b.merged(xs[1])  # type: ignore[arg-type]
    attributes = {"ignore_index": attr(node, "ignore_index"), "reduction": "none"}
    used = b.add("NegativeLogLikelihoodLoss", [b.filled(-1, x), target, *xs[2:]], attributes)
    shares = b.unmerged(used, losses.shape[1], lambda: b.extent(losses, 1))
    return b.ReduceSum(shares, list(axes), keepdims=0)
