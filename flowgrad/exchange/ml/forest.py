"""Trees as arrays: read from the two layouts of the standard, checked to be trees, and made ready for TreeLeaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from flowgrad.exchange.imported_node import ImportedNode
from flowgrad.exchange.ml.reading import demand, vector
from flowgrad.ir.errors import LimitError
from flowgrad.ir.graph import Array
from flowgrad.ir.ops.trees import AT_MOST, BELOW, EQUAL

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
"""In the order of their numbers in TreeEnsemble."""

_TESTS = {"BRANCH_LEQ": (AT_MOST, False), "BRANCH_LT": (BELOW, False), "BRANCH_GTE": (BELOW, True), "BRANCH_GT": (AT_MOST, True),
          "BRANCH_EQ": (EQUAL, False), "BRANCH_NEQ": (EQUAL, True), "BRANCH_MEMBER": (EQUAL, False), "LEAF": (AT_MOST, False)}
"""Which test a mode is, and whether it is true where the test fails."""

DEEPEST = 10_000
"""Levels of a tree at most: each is a step of every run."""


@dataclass(frozen=True)
class Forest:
    """Nodes of all trees in the arrays of TreeLeaves; ``trees`` says of each in which it is, -1 for none or several."""

    features: Array
    splits: Array
    tests: Array
    left: Array
    right: Array
    missing_left: Array
    roots: Array
    depth: int
    trees: Array
    first_leaf: int = 0
    keys: Any = None

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of TreeLeaves."""
        names = ("features", "splits", "tests", "left", "right", "missing_left", "roots", "depth")
        return {name: getattr(self, name) for name in names}

    def is_leaf(self, nodes: Array) -> Array:
        """Return whether nodes are leaves."""
        return np.asarray(self.left[nodes] == nodes)

    def places(self, call: ImportedNode, trees: Array, nodes: Array) -> Array:
        """Return where in the arrays the nodes stand that a file calls by tree and number. Raises ValidationError."""
        return _places(call, self.keys, trees, nodes)

    def single_targets(self, nodes: Array, targets: Array) -> Array | None:
        """Return the target that all weights of each tree go to; None if one has several."""
        trees = self.trees[nodes]
        result = np.full(len(self.roots), -1)
        if (trees < 0).any():
            return None
        result[trees] = targets
        return result if (result[trees] == targets).all() and len(np.unique(nodes)) == len(nodes) else None


# ---- one node, one row: opsets 1 to 4 -----------------------------------------------------------------------------------


def forest_of_nodes(call: ImportedNode) -> Forest:
    """Return the trees of lists nodes_*, in which leaves are nodes. Raises ValidationError for what is no tree."""
    names = ("treeids", "nodeids", "featureids", "truenodeids", "falsenodeids")
    trees, numbers, features, yes, no = (np.asarray(call.take(f"nodes_{n}", ()), np.int64) for n in names)
    modes, splits, missing = call.take("nodes_modes", ()), vector(call, "nodes_values"), _missing(call, len(trees))
    count = len(trees)
    demand(call, count > 0 and all(len(a) == count for a in (numbers, features, yes, no, modes, splits)),
           "the lists nodes_* have different lengths, or none")
    kinds = _kinds(call, modes)
    keys = trees, numbers
    leaf = np.array([m == "LEAF" for m in modes])
    inner, own = ~leaf, np.arange(count)
    left, right = own.copy(), own.copy()
    left[inner], right[inner] = (_places(call, keys, trees[inner], a[inner]) for a in (yes, no))
    starts = np.flatnonzero(np.diff(trees, prepend=trees[0] - 1) != 0)
    demand(call, len(np.unique(trees[starts])) == len(starts), "the nodes of a tree do not stand together")
    return _forest(call, np.where(leaf, 0, features), splits, kinds, left, right, inner, missing, starts, keys=keys)


def _places(call: ImportedNode, keys: tuple[Array, Array], trees: Array, numbers: Array) -> Array:
    """Return the rows in which trees and numbers stand, by their order. Raises ValidationError for one that is nowhere."""
    count = len(keys[0])
    pairs = [np.unique(np.concatenate(pair), return_inverse=True) for pair in zip(keys, (trees, numbers), strict=True)]
    codes = pairs[0][1] * len(pairs[1][0]) + pairs[1][1]
    order = np.argsort(codes[:count], kind="stable")
    known, wanted = codes[order], codes[count:]
    demand(call, not (known[1:] == known[:-1]).any(), "a node is there twice")
    place = np.minimum(np.searchsorted(known, wanted), count - 1)
    lost = np.flatnonzero(known[place] != wanted)
    demand(call, not lost.size, f"tree {trees[lost[:1]]} has no node {numbers[lost[:1]]}")
    return order[place]


def _missing(call: ImportedNode, count: int) -> Array:
    given = np.asarray(call.take("nodes_missing_value_tracks_true", ()), np.int64)
    demand(call, len(given) in (0, count), f"{len(given)} entries of nodes_missing_value_tracks_true for {count} nodes")
    return given != 0 if len(given) else np.zeros(count, bool)


def _kinds(call: ImportedNode, modes: Any) -> Array:
    """Return (test, is turned) by node."""
    unknown = sorted({str(m) for m in modes} - set(_TESTS))
    demand(call, not unknown, f"the modes {', '.join(unknown[:3])} are unknown")
    return np.array([_TESTS[m] for m in modes], np.int64).reshape(-1, 2)


# ---- branches and leaves apart: from opset 5 ----------------------------------------------------------------------------


def forest_of_branches(call: ImportedNode) -> Forest:
    """Return the trees of lists nodes_* and leaf_*; leaves stand behind the branches. Raises ValidationError."""
    names = ("nodes_featureids", "nodes_truenodeids", "nodes_falsenodeids", "nodes_trueleafs", "nodes_falseleafs", "tree_roots")
    features, yes, no, yes_leaf, no_leaf, roots = (np.asarray(call.take(n, ()), np.int64) for n in names)
    count, leaves = len(features), len(call.attributes.get("leaf_targetids", ()))
    codes, splits = (np.asarray(call.take(n, ())).reshape(-1) for n in ("nodes_modes", "nodes_splits"))
    demand(call, codes.dtype.kind in "ui" and splits.dtype.kind == "f" or splits.dtype.name == "bfloat16",
           "nodes_modes or nodes_splits are of another type")
    demand(call, all(len(a) == count > 0 for a in (yes, no, yes_leaf, no_leaf, codes, splits)),
           "the lists nodes_* have different lengths, or none")
    demand(call, int(codes.max()) < len(MODES), f"mode {codes.max()} is unknown")
    for ids, is_leaf in ((yes, yes_leaf != 0), (no, no_leaf != 0)):
        bad = (ids < 0) | (ids >= np.where(is_leaf, leaves, count))
        demand(call, not bad.any(), f"a branch points to node or leaf {ids[bad][:1]}, which is not there")
    demand(call, len(roots) > 0 and roots.min() >= 0 and roots.max() < count, "tree_roots point to what is not there")
    modes = [MODES[c] for c in codes.tolist()]
    missing = _missing(call, count)
    left, right = (np.where(is_leaf != 0, count + ids, ids) for ids, is_leaf in ((yes, yes_leaf), (no, no_leaf)))
    splits = splits.astype(np.float64 if splits.dtype == np.float64 else np.float32)
    own, whole = count + np.arange(leaves), np.zeros(leaves, np.int64)
    features, splits, left, right, missing = (np.concatenate([a, fill.astype(a.dtype)]) for a, fill in (
        (features, whole), (splits, whole), (left, own), (right, own), (missing, whole)))
    kinds = np.concatenate([_kinds(call, modes), np.zeros((leaves, 2), np.int64)])
    return _forest(call, features, splits, kinds, left, right, np.arange(len(left)) < count, missing, roots,
                   sets=_member_sets(call, modes), first_leaf=count)


def _member_sets(call: ImportedNode, modes: list[str]) -> dict[int, Array]:
    """Return the values that nodes of the mode MEMBER ask for: lists ended by NaN, in the order of the nodes."""
    nodes = [i for i, mode in enumerate(modes) if mode == "BRANCH_MEMBER"]
    given = call.take("membership_values")
    values = np.zeros(0) if given is None else np.asarray(given).reshape(-1).astype(np.float64)
    ends = np.flatnonzero(np.isnan(values))
    demand(call, len(ends) == len(nodes), f"{len(ends)} sets of membership_values for {len(nodes)} nodes")
    starts = [0, *(ends[:-1] + 1).tolist()] if len(ends) else []
    return {n: values[s:e] for n, s, e in zip(nodes, starts, ends.tolist(), strict=True)}


# ---- both ---------------------------------------------------------------------------------------------------------------


def _forest(
    call: ImportedNode, features: Array, splits: Array, kinds: Array, left: Array, right: Array, inner: Array, missing: Array,
    roots: Array, sets: Mapping[int, Array] = MappingProxyType({}), first_leaf: int = 0, keys: Any = None,
) -> Forest:
    demand(call, features.min() >= 0, f"a node reads feature {features.min()}")
    costs = inner.astype(np.int64)
    costs[list(sets)] = [max(len(s), 1) for s in sets.values()]
    trees, depth = _walked(call, left, right, costs, roots)
    turned = kinds[:, 1] != 0
    left, right = np.where(turned, right, left), np.where(turned, left, right)
    rows = [features, splits, np.where(inner, kinds[:, 0], AT_MOST), left, right, (missing != turned) & inner]
    features, splits, tests, left, right, missing = _with_members(rows, sets)
    return Forest(features, splits, tests, left, right, missing, roots.astype(np.int64), depth, trees, first_leaf, keys)


def _with_members(rows: list[Array], sets: Mapping[int, Array]) -> list[Array]:
    """Let a node that asks for a set ask for its first element, and new ones behind all for the others, one by one."""
    if not sets:
        return rows
    columns = [a.tolist() for a in rows]
    features, splits, _, left, right, missing = columns
    for node, members in sets.items():
        at, otherwise = node, right[node]
        splits[node] = members[0] if len(members) else np.nan  # to which nothing is equal
        for member in members[1:].tolist():
            right[at] = len(features)
            at = right[at]
            for column, value in zip(columns, (features[node], member, EQUAL, left[node], otherwise, missing[node]), strict=True):
                column.append(value)
    return [np.asarray(c, a.dtype) for c, a in zip(columns, rows, strict=True)]


def _walked(call: ImportedNode, left: Array, right: Array, costs: Array, roots: Array) -> tuple[Array, int]:
    """Return of each node the tree it is in (-1 for none or several) and the depth, level by level.

    ``costs`` says how many steps a node takes, 0 for leaves. Raises ValidationError for a branch with two parents, which
    all cycles have; leaves may have several.
    """
    count = len(left)
    lowest, highest, visited = np.full(count, len(roots)), np.full(count, -1), np.zeros(count, bool)
    level, owner = np.unique(roots, return_index=True)
    steps, depth = np.zeros(len(level), np.int64), 0
    while level.size:
        np.minimum.at(lowest, level, owner)
        np.maximum.at(highest, level, owner)
        depth = max(depth, int(steps.max()))
        if depth > DEEPEST:
            raise LimitError(f"{call.op}: a tree is deeper than {DEEPEST} levels", code="depth", where=call.label)
        going = costs[level] > 0
        branches = level[going]
        demand(call, not visited[branches].any() and len(np.unique(branches)) == len(branches),
               "a node is reached twice: that is no tree")
        visited[branches] = True
        owner, steps = np.tile(owner[going], 2), np.tile(steps[going] + costs[branches], 2)
        level = np.concatenate([left[branches], right[branches]])
    repeated = len(np.unique(roots)) < len(roots)
    return np.where((lowest == highest) & (not repeated), lowest, -1), depth
