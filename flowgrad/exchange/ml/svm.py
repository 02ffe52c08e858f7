"""Support vector machines: kernels as formulas, votes, and probabilities coupled from those of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.exchange.ml.reading import (
    adapts,
    affine,
    check_features,
    demand,
    either,
    rows,
    unsupported,
    vector,
    weight,
)
from flowgrad.exchange.ml.scores import chosen, first_largest, transform_of, transformed, two_columns
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.types import BOOL, FLOAT32, INT64, Type

KERNELS = ("LINEAR", "POLY", "RBF", "SIGMOID")

FEW = 2**14
"""Numbers in support vectors up to which distances are sums of squared differences, one for each row of the input."""

MOST_CLASSES = 64
"""Classes up to which probabilities are coupled: the formula has a step for each."""


def _kernel(b: ImportBuilder, call: ImportedNode, x: Value, vectors: Array) -> Value:
    """Return the kernel of every row with every support vector, [N, V]."""
    kind = call.take("kernel_type", "LINEAR")
    demand(call, kind in KERNELS, f"kernel_type {kind!r} is none of {', '.join(KERNELS)}")
    parameters = vector(call, "kernel_params")
    demand(call, kind == "LINEAR" or parameters.size == 3, f"kernel_params has {parameters.size} entries, not 3")
    check_features(call, x, vectors.shape[1])
    held = weight(b, call, "support_vectors", vectors)
    if kind == "RBF":
        return b.Exp(b.Mul(_squared_distance(b, x, held, vectors), -float(parameters[0])))
    product = b.Gemm(x, held, transB=1)
    if kind == "LINEAR":
        return product
    gamma, shift, degree = (float(p) for p in parameters)
    inner = b.Add(b.Mul(product, gamma), shift)
    return b.Tanh(inner) if kind == "SIGMOID" else b.Pow(inner, degree)


def _squared_distance(b: ImportBuilder, x: Value, held: Value, vectors: Array) -> Value:
    """|x - s|^2: sums of squares, or for many vectors |x|^2 + |s|^2 - 2 x s around their mean, which loses few digits."""
    if vectors.size <= FEW:
        difference = b.Sub(b.Unsqueeze(x, [1]), held)
        return b.ReduceSum(b.Mul(difference, difference), [2], keepdims=0)
    centre = b.ReduceMean(held, [0], keepdims=1)
    x, held = b.Sub(x, centre), b.Sub(held, centre)
    squares = [b.ReduceSum(b.Mul(v, v), [1], keepdims=keep) for v, keep in ((x, 1), (held, 0))]
    return b.Relu(b.Sub(b.Add(*squares), b.Mul(b.Gemm(x, held, transB=1), 2.0)))


def _rho(call: ImportedNode, count: int) -> Array:
    rho = vector(call, "rho")
    demand(call, rho.size >= count, f"{rho.size} entries of rho, expected {count}")
    return rho[:count]


@adapts("SVMRegressor")
def svm_regressor(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """Y = sum_v c_v k(x, v) + rho, or its sign (-1 at 0) for one class."""
    x, transform, count = rows(b, call), transform_of(call), int(call.take("n_supports", 0))
    if transform != "NONE":
        raise unsupported(call, f"with post_transform {transform}, which runtimes skip and the standard does not")
    coefficients, vectors = vector(call, "coefficients"), vector(call, "support_vectors")
    rho = _rho(call, 1)
    if count > 0:
        demand(call, vectors.size > 0 and vectors.size % count == 0 and coefficients.size == count,
               f"{vectors.size} numbers of {count} support vectors with {coefficients.size} coefficients")
        x = _kernel(b, call, x, vectors.reshape(count, -1))
    score = affine(b, call, x, 1, coefficients, rho)
    if call.take("one_class", 0):
        score = b.Where(b.Greater(score, 0.0), 1.0, b.scalar(-1, FLOAT32))
    return (score,)


@adapts("SVMClassifier")
def svm_classifier(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """Scores of pairs of classes, or of classes without support vectors; the label is voted for by the pairs."""
    x, transform = rows(b, call), transform_of(call)
    labels = either(call, "classlabels_ints", "classlabels_strings")
    per_class = np.asarray(call.take("vectors_per_class", ()), np.int64)
    coefficients, vectors = vector(call, "coefficients"), vector(call, "support_vectors")
    classes = len(labels)
    if not per_class.sum():
        return _linear(b, call, x, labels, coefficients, transform)
    demand(call, classes > 1 and len(per_class) == classes and int(per_class.min()) >= 0,
           f"{len(per_class)} entries of vectors_per_class for {classes} labels")
    count, pairs = int(per_class.sum()), list(combinations(range(classes), 2))
    demand(call, vectors.size > 0 and vectors.size % count == 0 and coefficients.size == (classes - 1) * count,
           f"{vectors.size} numbers of {count} support vectors with {coefficients.size} coefficients of {classes} classes")
    rho = _rho(call, len(pairs))
    b.graph.limits.check("tensor_bytes", 4 * len(pairs) * count, call.label)
    kernel = _kernel(b, call, x, vectors.reshape(count, -1))
    matrix = _pair_coefficients(coefficients.reshape(classes - 1, count), per_class, pairs)
    scores = affine(b, call, kernel, len(pairs), matrix.reshape(-1), rho)
    label = chosen(b, labels, _voted(b, scores, classes, pairs))
    slopes, shifts = vector(call, "prob_a"), vector(call, "prob_b")
    if slopes.size:
        demand(call, slopes.size >= len(pairs) and shifts.size == slopes.size,
               f"{slopes.size} entries of prob_a, {shifts.size} of prob_b for {len(pairs)} pairs")
        if classes > MOST_CLASSES:
            raise unsupported(call, f"with probabilities of more than {MOST_CLASSES} classes")
        given = [weight(b, call, name, v[: len(pairs)]) for name, v in (("prob_a", slopes), ("prob_b", shifts))]
        ratio = b.Sigmoid(b.Neg(b.Add(b.Mul(scores, given[0]), given[1])))
        return label, transformed(b, call, _coupled(b, ratio, classes, pairs), transform)
    if classes == 2:
        return label, two_columns(b, call, scores, transform, of_one=transform != "NONE")
    return label, transformed(b, call, scores, transform)


def _linear(
    b: ImportBuilder, call: ImportedNode, x: Value, labels: Array, coefficients: Array, transform: str
) -> Sequence[Value | None]:
    if len(labels) < 3:
        raise unsupported(call, "without support vectors for fewer than three classes, whose labels the standard leaves open")
    scores = affine(b, call, x, len(labels), coefficients, np.repeat(_rho(call, 1), len(labels)))
    return chosen(b, labels, first_largest(b, scores)), transformed(b, call, scores, transform)


def _pair_coefficients(coefficients: Array, per_class: Array, pairs: Sequence[tuple[int, int]]) -> Array:
    """Return the coefficients of every pair i < j, [pairs, vectors]: row j - 1 for the vectors of i, row i for those of j."""
    ends = np.cumsum(per_class)
    parts = [slice(end - n, end) for end, n in zip(ends.tolist(), per_class.tolist(), strict=True)]
    result = np.zeros((len(pairs), coefficients.shape[1]), np.float32)
    for row, (i, j) in zip(result, pairs, strict=True):
        row[parts[i]], row[parts[j]] = coefficients[j - 1, parts[i]], coefficients[i, parts[j]]
    return result


def _voted(b: ImportBuilder, scores: Value, classes: int, pairs: Sequence[tuple[int, int]]) -> Value:
    """Return the class with the most votes: a pair votes for its first class where its score is positive."""
    votes = np.zeros((len(pairs), classes), np.float32)
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    votes[np.arange(len(pairs)), first], votes[np.arange(len(pairs)), second] = 1, -1
    losers = np.bincount(second, minlength=classes).astype(np.float32)
    positive = b.cast(b.Greater(scores, 0.0), FLOAT32)
    return first_largest(b, b.Add(b.MatMul(positive, votes), losers))


# ---- probabilities ------------------------------------------------------------------------------------------------------


def _coupled(b: ImportBuilder, ratio: Value, classes: int, pairs: Sequence[tuple[int, int]]) -> Value:
    """Return probabilities of classes [N, K] from r_ij = P(i | i or j), [N, pairs].

    They minimise sum_ij (r_ji p_i - r_ij p_j)^2 (Wu, Lin and Weng 2004), found by rounds over the classes until the
    conditions hold up to 0.005 / K: derivatives are those of the rounds that were made.
    """
    ratio = b.Clip(ratio, b.scalar(1e-7, FLOAT32), b.scalar(1 - 1e-7, FLOAT32))
    places = np.full((classes, classes), 2 * len(pairs))
    for number, (i, j) in enumerate(pairs):
        places[i, j], places[j, i] = number, len(pairs) + number
    nothing = b.Mul(b.Slice(ratio, [0], [1], [1]), 0.0)
    both = b.Concat(ratio, b.Sub(1.0, ratio), nothing, axis=1)
    r, turned = (b.Gather(both, p.astype(np.int64), axis=1) for p in (places, places.T))
    squares = b.Unsqueeze(b.ReduceSum(b.Mul(turned, turned), [2], keepdims=0), [2])
    quadratic = b.Sub(b.Mul(squares, np.eye(classes, dtype=np.float32)), b.Mul(turned, r))
    start = b.Add(b.ReduceSum(b.Mul(r, 0.0), [2], keepdims=0), 1.0 / classes)
    body = _round(b, classes, quadratic.type, start.type)
    return b.add_several("Loop", [np.int64(100), True, start], outputs=1, captures=[quadratic], subgraphs={"body": body})[0]


def _round(b: ImportBuilder, classes: int, quadratic: Type, probabilities: Type) -> Graph:
    """Return the body of the loop: one round over the classes, for the rows that need it."""
    graph = Graph("coupling", b.graph.limits)
    graph._next_dim = b.graph._next_dim
    inner = Builder(graph, prefix="coupling")
    graph.add_input("round", Type(INT64, ()))
    graph.add_input("going", Type(BOOL, ()))
    p = start = graph.add_input("p", probabilities)
    q = graph.add_input("q", quadratic)
    qp = inner.ReduceSum(inner.Mul(q, inner.Unsqueeze(p, [1])), [2], keepdims=0)
    pqp = inner.ReduceSum(inner.Mul(p, qp), [1], keepdims=1)
    error = inner.ReduceMax(inner.Abs(inner.Sub(qp, pqp)), [1], keepdims=1)
    still = inner.GreaterOrEqual(error, 0.005 / classes)
    for t in range(classes):
        row = inner.Gather(q, np.int64(t), axis=1)
        diagonal, part = (inner.Gather(v, np.array([t], np.int64), axis=1) for v in (row, qp))
        step = inner.Div(inner.Sub(pqp, part), diagonal)
        whole = inner.Add(step, 1.0)
        pqp = inner.Add(pqp, inner.Mul(step, inner.Add(inner.Mul(step, diagonal), inner.Mul(part, 2.0))))
        pqp = inner.Div(inner.Div(pqp, whole), whole)
        qp = inner.Div(inner.Add(qp, inner.Mul(step, row)), whole)
        p = inner.Div(inner.Add(p, inner.Mul(step, np.eye(classes, dtype=np.float32)[t : t + 1])), whole)
    open_rows = inner.ReduceSum(inner.cast(still, INT64), keepdims=0)
    graph.add_output(inner.Greater(open_rows, 0), "going_out")
    graph.add_output(inner.Where(still, p, start), "p_out")
    return graph
