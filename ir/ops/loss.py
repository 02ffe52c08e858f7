"""Classification losses: the classes lie along axis 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import RunError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise.arithmetic import select
from flowgrad.ir.ops.registry import attr, op
from flowgrad.ir.ops.softmax import log_softmax
from flowgrad.ir.types import Shape, Type, merge_dims


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
    if attr(node, "reduction") != "none":
        return x.with_shape(())
    if x.shape is None or target.shape is None:
        return x.with_shape(target.shape)
    batch: Shape = (x.shape[0], *x.shape[2:])
    return x.with_shape([merge_dims(a, t) for a, t in zip(batch, target.shape, strict=True)])


@negative_log_likelihood_loss.expansion
def _(b: Builder, node: Node) -> Any:
    """loss = -w[t] x[t], 0 where t is ignored; the mean divides by the sum of the weights used."""
    x, target, weight = node.input(0), node.input(1), node.optional(2)
    ignore_index, reduction = attr(node, "ignore_index"), attr(node, "reduction")
    ignored = None if ignore_index is None else b.Equal(target, b.scalar(ignore_index, target.type.dtype))
    classes = target if ignored is None else b.Where(ignored, b.scalar(0, target.type.dtype), target)
    picked = b.Squeeze(b.GatherElements(x, b.Unsqueeze(classes, [1]), axis=1), [1])
    loss = b.Neg(picked)
    shares = None if weight is None else b.Gather(weight, classes, axis=0)
    if shares is not None:
        loss = b.Mul(loss, shares)
    kept = None if ignored is None else b.Not(ignored)
    if kept is not None:
        loss = select(b, kept, loss)
    if reduction == "none":
        return loss
    total = _total(b, loss)
    return total if reduction == "sum" else b.Div(total, _weight_used(b, shares, kept, loss))


def _total(b: Builder, x: Value) -> Value:
    return b.ReduceSum(x, None, keepdims=0)


def _weight_used(b: Builder, shares: Value | None, kept: Value | None, loss: Value) -> Value:
    """Return the sum of the weights of all labels that are not ignored."""
    if shares is not None:
        return _total(b, shares if kept is None else select(b, kept, shares))
    if kept is not None:
        return _total(b, b.cast(kept, loss.type.dtype))
    return b.cast(b.Size(loss), loss.type.dtype)


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


@softmax_cross_entropy_loss.expansion
def _(b: Builder, node: Node) -> Any:
    """log_prob = LogSoftmax(scores) over the classes; output = NegativeLogLikelihoodLoss(log_prob)."""
    scores, *rest = node.inputs
    log_prob = b.LogSoftmax(scores, axis=1)
    attributes = {name: attr(node, name) for name in ("ignore_index", "reduction")}
    return b.NegativeLogLikelihoodLoss(log_prob, *rest, **attributes), log_prob
