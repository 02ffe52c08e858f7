"""Ensembles of decision trees: which leaf a row reaches is a step, what leaves weigh is summed by plain operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.exchange.ml.forest import Forest, forest_of_branches, forest_of_nodes
from flowgrad.exchange.ml.reading import adapts, demand, either, rows, unsupported, vector, weight
from flowgrad.exchange.ml.scores import above, chosen, first_largest, transform_of, transformed, two_columns
from flowgrad.ir.graph import Array, Value
from flowgrad.ir.types import FLOAT32

AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
"""In the order of their numbers in TreeEnsemble."""

_UNREACHED = 2**16
"""Targets at most to which no leaf adds."""


@dataclass(frozen=True)
class Leaves:
    """What leaves give: entries of (node, target, weight)."""

    nodes: Array
    targets: Array
    weights: Array


def _aggregated(b: ImportBuilder, call: ImportedNode, x: Value, forest: Forest, leaves: Leaves, targets: int, how: str
                ) -> Value:
    """Return the weights of the leaves that rows reach, over all trees, [N, targets]; 0 where there are none."""
    demand(call, how in AGGREGATES, f"aggregate_function {how!r} is none of {', '.join(AGGREGATES)}")
    demand(call, 0 < targets <= len(leaves.targets) + _UNREACHED, f"{targets} targets for {len(leaves.targets)} weights")
    outside = leaves.targets[(leaves.targets < 0) | (leaves.targets >= targets)]
    demand(call, not outside.size, f"a leaf adds to target {outside[:1]} of {targets}")
    demand(call, bool(forest.is_leaf(leaves.nodes).all()), "a node that is no leaf has a weight")
    reached = b.add("TreeLeaves", [x], forest.attributes())
    of_tree = forest.single_targets(leaves.nodes, leaves.targets)
    if targets == 1 or (of_tree is not None and how in ("SUM", "AVERAGE")):
        table = _table(leaves, np.zeros_like(leaves.targets), (len(forest.left), 1), how)
        each = b.Gather(weight(b, call, "weights", table.reshape(-1)), reached, axis=0)
        if targets > 1:
            assert of_tree is not None
            total = b.MatMul(each, np.asarray(of_tree[:, None] == np.arange(targets), table.dtype))
            return b.Div(total, float(len(forest.roots))) if how == "AVERAGE" else total
    else:
        b.graph.limits.check("tensor_bytes", len(forest.left) * targets * leaves.weights.itemsize, call.label)
        table = _table(leaves, leaves.targets, (len(forest.left), targets), how)
        each = b.Gather(weight(b, call, "weights", table), reached, axis=0)
    reduce = {"AVERAGE": b.ReduceMean, "SUM": b.ReduceSum, "MIN": b.ReduceMin, "MAX": b.ReduceMax}[how]
    total = reduce(each, [1], keepdims=int(targets == 1))
    return b.Where(b.IsInf(total), 0.0, total) if how in ("MIN", "MAX") else total


def _table(leaves: Leaves, targets: Array, shape: tuple[int, int], how: str) -> Array:
    """Return the weights by node and target; those that are missing do not count."""
    add, start = {"MIN": (np.minimum, np.inf), "MAX": (np.maximum, -np.inf)}.get(how, (np.add, 0.0))
    table = np.full(shape, start, leaves.weights.dtype)
    add.at(table, (leaves.nodes, targets), leaves.weights)
    return table


def _based(b: ImportBuilder, call: ImportedNode, scores: Value, base: Array, targets: int) -> Value:
    if not base.size:
        return scores
    demand(call, base.size == targets, f"{base.size} base_values for {targets} targets")
    return b.Add(scores, weight(b, call, "base_values", base.astype(scores.type.dtype.numpy)))


def _leaves(call: ImportedNode, forest: Forest, prefix: str) -> Leaves:
    ids, trees, nodes = (np.asarray(call.take(f"{prefix}_{n}", ()), np.int64) for n in ("ids", "treeids", "nodeids"))
    weights = vector(call, f"{prefix}_weights")
    demand(call, len(ids) == len(trees) == len(nodes) == len(weights) > 0,
           f"{len(ids)} {prefix}_ids, {len(trees)} treeids, {len(nodes)} nodeids and {len(weights)} weights")
    return Leaves(forest.places(call, trees, nodes), ids, weights)


@adapts("TreeEnsembleRegressor")
def tree_ensemble_regressor(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """Y = post_transform(the weights of the leaves, summed or otherwise, + base_values)."""
    forest, transform = forest_of_nodes(call), transform_of(call)
    targets, how = int(call.take("n_targets", 1)), call.take("aggregate_function", "SUM")
    leaves, base = _leaves(call, forest, "target"), vector(call, "base_values")
    total = _aggregated(b, call, _rows(b, call, forest), forest, leaves, targets, how)
    scores = transformed(b, call, _based(b, call, total, base, targets), transform)
    return (scores if scores.type.dtype == FLOAT32 else b.cast(scores, FLOAT32),)


def _rows(b: ImportBuilder, call: ImportedNode, forest: Forest) -> Value:
    """Return the rows of features, in the float type of the file, so that tests turn out as they are meant."""
    x = call.input(0)
    if x.type.dtype.name != "float64":
        return rows(b, call)
    if x.type.rank not in (1, 2):
        raise unsupported(call, f"on {x!r}, which is no row nor a matrix")
    return x if x.type.rank == 2 else b.Unsqueeze(x, [0])


@adapts("TreeEnsembleClassifier")
def tree_ensemble_classifier(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """Z = post_transform(sums of class weights + base_values), Y the label of the largest sum.

    Where all weights of two classes are of class 0 they speak of the second, and its score is its probability if no
    weight is negative: above 1/2 it wins, otherwise above 0. Two classes with weights of both have scores, but no label:
    by the standard the larger sum wins, in onnxruntime the second class wherever its own is above 0.
    """
    forest, transform = forest_of_nodes(call), transform_of(call)
    labels = either(call, "classlabels_int64s", "classlabels_strings")
    leaves, base, classes = _leaves(call, forest, "class"), vector(call, "base_values"), len(labels)
    x, ids = _rows(b, call, forest), np.unique(leaves.targets)
    if classes < 2 or (classes == 2 and ids.tolist() == [1]):
        raise unsupported(call, f"with {classes} labels and weights of class {ids[0]} alone, which runtimes read differently")
    if classes == 2 and ids.tolist() == [0]:
        is_probability = bool((leaves.weights >= 0).all())
        if base.size > 1:
            raise unsupported(call, "with base_values of two classes and weights of one, which runtimes read differently")
        score = _float32(b, _based(b, call, _aggregated(b, call, x, forest, leaves, 1, "SUM"), base, 1))
        label = chosen(b, labels, above(b, score, 0.5 if is_probability else 0.0))
        return label, two_columns(b, call, score, transform, of_one=is_probability)
    if classes == 2 and (call.wants(0) or base.size or not _always_score(forest, leaves)):
        raise unsupported(call, "with two labels and weights of both, which runtimes read differently: only the scores, where "
                          "every leaf of a tree has a weight of each class and there are no base_values, are read alike")
    total = _aggregated(b, call, x, forest, leaves, classes, "SUM")
    scores = _float32(b, _based(b, call, total, base, classes))
    return chosen(b, labels, first_largest(b, scores)), transformed(b, call, scores, transform)


def _always_score(forest: Forest, leaves: Leaves) -> bool:
    """Return whether every row gets a weight of each of two classes: there is a tree that has one at all its leaves."""
    nodes = np.flatnonzero(forest.is_leaf(np.arange(len(forest.left))))
    for target in range(2):
        without = forest.trees[nodes[~np.isin(nodes, leaves.nodes[leaves.targets == target])]]
        if (without < 0).any() or len(np.unique(without)) == len(forest.roots):
            return False
    return True


def _float32(b: ImportBuilder, scores: Value) -> Value:
    return scores if scores.type.dtype == FLOAT32 else b.cast(scores, FLOAT32)


@adapts("TreeEnsemble")
def tree_ensemble(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """Y = post_transform(the weights of the leaves, summed or otherwise), in the type of X."""
    x = call.input(0)
    if x.type.rank != 2:
        raise unsupported(call, f"on {x!r}, which is no matrix")
    count = len(np.asarray(call.attributes.get("nodes_featureids", ())))
    forest, transform = forest_of_branches(call), transform_of(call)
    how = int(call.take("aggregate_function", 1))
    demand(call, 0 <= how < len(AGGREGATES), f"aggregate_function {how} is unknown")
    ids, given = np.asarray(call.take("leaf_targetids", ()), np.int64), np.asarray(call.take("leaf_weights", ())).reshape(-1)
    demand(call, len(ids) == len(given) > 0 and given.dtype.kind != "O", f"{len(ids)} targets for {len(given)} leaf_weights")
    wide = x.type.dtype.wide
    leaves = Leaves(forest.first_leaf + np.arange(len(ids)), ids, given.astype(wide.numpy))
    demand(call, count > 0, "there are no nodes")
    rows_ = x if x.type.dtype == wide else b.cast(x, wide)
    total = _aggregated(b, call, rows_, forest, leaves, int(call.take("n_targets", 1)), AGGREGATES[how])
    scores = transformed(b, call, total, transform)
    return (scores if scores.type.dtype == x.type.dtype else b.cast_like(scores, x),)
