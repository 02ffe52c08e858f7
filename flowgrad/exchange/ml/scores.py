"""From scores to what a model returns: post_transform, a second column for two classes, labels."""

from __future__ import annotations

import math

import numpy as np

from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.exchange.ml.reading import demand, unsupported
from flowgrad.ir.graph import Array, Value

TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
"""In the order of their numbers in TreeEnsemble."""


def transform_of(call: ImportedNode) -> str:
    """Take the attribute post_transform, a name or a number. Raises ValidationError."""
    given = call.take("post_transform", "NONE")
    if isinstance(given, int):
        demand(call, 0 <= given < len(TRANSFORMS), f"post_transform {given} is unknown")
        return TRANSFORMS[given]
    demand(call, given in TRANSFORMS, f"post_transform {given!r} is none of {', '.join(TRANSFORMS)}")
    return str(given)


def transformed(b: ImportBuilder, call: ImportedNode, scores: Value, transform: str) -> Value:
    """Return post_transform of scores [N, K]. One score alone is refused where runtimes leave it as it is."""
    if transform == "NONE":
        return scores
    if transform == "PROBIT":
        return _probit(b, scores)
    if scores.shape[1] == 1:
        raise unsupported(call, f"with one score and post_transform {transform}, which runtimes skip and the standard does not")
    if transform == "LOGISTIC":
        return b.Sigmoid(scores)
    return b.Softmax(scores, axis=-1) if transform == "SOFTMAX" else _softmax_zero(b, scores)


def _softmax_zero(b: ImportBuilder, scores: Value) -> Value:
    """Softmax over the scores that are not zero: those that are stay zero, and do not count; NaN where all are."""
    top = b.ReduceMax(scores, [-1], keepdims=1)
    counts = b.Greater(b.Abs(scores), 1e-7)
    powers = b.Where(counts, b.Exp(b.Sub(scores, top)), b.Mul(scores, b.Exp(b.Neg(top))))
    total = b.ReduceSum(b.Where(counts, powers, 0.0), [-1], keepdims=1)
    return b.Div(powers, total)


def _probit(b: ImportBuilder, scores: Value) -> Value:
    """sqrt(2) erf^-1(2 p - 1), by the approximation of Winitzki that runtimes use: erf^-1(t)^2 = sqrt(v^2 - w) - v for
    v = 2 / (0.147 pi) + log(1 - t^2) / 2 and w = log(1 - t^2) / 0.147; near t = 0 that is t sqrt(pi) / 2."""
    t = b.Sub(b.Mul(scores, 2.0), 1.0)
    flat = b.Equal(t, 0.0)
    safe = b.Where(flat, 0.5, t)
    log = b.Log(b.Mul(b.Sub(1.0, safe), b.Add(safe, 1.0)))
    v = b.Add(b.Mul(log, 0.5), 2.0 / (math.pi * 0.147))
    root = b.Sqrt(b.Sub(b.Sqrt(b.Sub(b.Mul(v, v), b.Mul(log, 1.0 / 0.147))), v))
    inverse = b.Where(flat, b.Mul(t, math.sqrt(math.pi) / 2), b.Mul(b.Sign(safe), root))
    return b.Mul(inverse, math.sqrt(2.0))


def two_columns(b: ImportBuilder, call: ImportedNode, score: Value, transform: str, of_one: bool) -> Value:
    """Return the scores of two classes from that of the second, [N, 1].

    The first gets what is left of 1 (``of_one``), or the score with the other sign; under LOGISTIC both are
    probabilities, and the other transforms do nothing, as in runtimes. PROBIT has no value there.
    """
    if transform == "PROBIT":
        raise unsupported(call, "with one score for two classes and post_transform PROBIT, for which runtimes write no second "
                                "column")
    if transform == "LOGISTIC":
        return b.Concat(b.Sigmoid(b.Neg(score)), b.Sigmoid(score), axis=1)
    return b.Concat(b.Sub(1.0, score) if of_one else b.Neg(score), score, axis=1)


def chosen(b: ImportBuilder, labels: Array, index: Value) -> Value:
    """Return the labels at ``index`` [N]."""
    return b.Gather(b.graph.add_constant(labels), index, axis=0)


def first_largest(b: ImportBuilder, scores: Value) -> Value:
    """Return the column of the largest score in each row, the first of equal ones."""
    return b.ArgMax(scores, axis=1, keepdims=0)


def above(b: ImportBuilder, score: Value, threshold: float) -> Value:
    """Return 1 where a score [N, 1] is above a threshold, else 0, as [N]."""
    return b.Squeeze(b.Where(b.Greater(score, threshold), np.int64(1), np.int64(0)), [1])
