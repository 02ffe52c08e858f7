"""Linear models."""

from __future__ import annotations

from collections.abc import Sequence

from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.exchange.ml.reading import adapts, affine, demand, either, rows, vector
from flowgrad.exchange.ml.scores import above, chosen, first_largest, transform_of, transformed, two_columns
from flowgrad.ir.graph import Value


@adapts("LinearRegressor")
def linear_regressor(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """Y = post_transform(X W^T + c)."""
    x, targets, transform = rows(b, call), int(call.take("targets", 1)), transform_of(call)
    scores = affine(b, call, x, targets, vector(call, "coefficients"), vector(call, "intercepts"))
    return (transformed(b, call, scores, transform),)


@adapts("LinearClassifier")
def linear_classifier(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """Z = post_transform(X W^T + c), Y the label of the largest score before it; one score is that of the second of two."""
    x, transform = rows(b, call), transform_of(call)
    labels = either(call, "classlabels_ints", "classlabels_strings")
    coefficients, intercepts = vector(call, "coefficients"), vector(call, "intercepts")
    features = x.shape[1]
    targets = len(labels)
    if intercepts.size:
        targets = intercepts.size
    elif isinstance(features, int) and features:
        targets = coefficients.size // features
    scores = affine(b, call, x, targets, coefficients, intercepts)
    if targets == 1:
        demand(call, len(labels) == 2, f"{len(labels)} labels for one score")
        return chosen(b, labels, above(b, scores, 0.0)), two_columns(b, call, scores, transform, of_one=True)
    demand(call, len(labels) == targets, f"{len(labels)} labels for {targets} scores")
    return chosen(b, labels, first_largest(b, scores)), transformed(b, call, scores, transform)
