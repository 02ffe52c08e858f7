"""What models of the domain ai.onnx.ml are made of that no operator of the standard does: decision trees and tables of keys.

Both give integers: which leaf, which key. They are steps, so no cotangent passes.
"""

from __future__ import annotations

import numpy as np

from flowgrad.ir.batching import alone, within_batch
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import FLOWGRAD, Trait, attr, op
from flowgrad.ir.types import BOOL, INT32, INT64, UNKNOWN, Type

AT_MOST, BELOW, EQUAL = range(3)
"""The tests that nodes make: x <= split, x < split, x = split."""

_COMPARE = (np.less_equal, np.less, np.equal)

_BLOCK = 2**16
"""How many paths, of a row through a tree, are followed together: enough for NumPy, few enough for the cache."""


@op("TreeLeaves", domain=FLOWGRAD, traits=(Trait.ZERO,))
def tree_leaves(
    x: Array, *, features: Array, splits: Array, tests: Array, left: Array, right: Array, missing_left: Array, roots: Array,
    depth: int,
) -> Array:
    """Return the node where each row of ``x`` [N, C] ends in each tree, [N, T].

    From node i a row goes to ``left[i]`` where its feature passes the test, or is NaN and ``missing_left[i]``, else to
    ``right[i]``; a leaf is its own child. All paths go down one level at a time, ``depth`` in all.
    """
    if int(features.max(initial=0)) >= x.shape[1]:
        raise IndexError(f"the trees read feature {int(features.max())} of {x.shape[1]}")
    result = np.empty((x.shape[0], len(roots)), np.int64)
    block = max(1, _BLOCK // max(1, len(roots)))
    for at in range(0, x.shape[0], block):
        rows = np.ascontiguousarray(x[at : at + block])
        nodes = np.tile(roots, len(rows))
        starts = np.repeat(np.arange(len(rows)) * x.shape[1], len(roots))
        _descend(rows.reshape(-1), nodes, starts, features, splits, tests, left, right, missing_left, depth)
        result[at : at + block] = nodes.reshape(len(rows), len(roots))
    return result


def _descend(
    flat: Array, nodes: Array, starts: Array, features: Array, splits: Array, tests: Array, left: Array, right: Array,
    missing_left: Array, depth: int,
) -> None:
    """Lead ``nodes`` to leaves, in place; ``starts`` says where in ``flat`` the row of each begins."""
    kinds, gaps = _kinds(tests, left), bool(missing_left.any())
    going = np.flatnonzero(left[nodes] != nodes)
    for _ in range(depth):
        if not going.size:
            return
        at = nodes[going]
        value, split = flat[starts[going] + features[at]], splits[at]
        if len(kinds) == 1:
            passes = _COMPARE[kinds[0]](value, split)
        else:
            passes = np.choose(tests[at], [compare(value, split) for compare in _COMPARE])
        if gaps:
            passes |= missing_left[at] & np.isnan(value)
        at = np.where(passes, left[at], right[at])
        nodes[going] = at
        going = going[left[at] != at]


def _kinds(tests: Array, left: Array) -> list[int]:
    """Return the tests that occur; leaves make none."""
    found: list[int] = np.unique(tests[left != np.arange(len(left))]).tolist()
    return found or [AT_MOST]


@tree_leaves.types
def _(node: Node) -> Type:
    x = node.input(0).type
    features, splits, tests, left, right, missing_left, roots = _arrays(node)
    count = len(left)
    whole = (features, tests, left, right, roots)
    fits = all(a.ndim == 1 and a.dtype == np.int64 for a in whole) and splits.dtype.kind == "f" and splits.shape == left.shape
    fits = fits and missing_left.dtype == np.bool_ and all(a.shape == left.shape for a in (features, tests, right, missing_left))
    if not fits or not 0 <= attr(node, "depth") <= count:
        raise ValidationError("the arrays of the trees do not fit together", code="attribute", where=describe(node))
    for array, most in ((left, count), (right, count), (roots, count), (tests, 3), (features, 2**62)):
        if array.size and not (array.min() >= 0 and array.max() < most):
            raise ValidationError("a tree points to what is not there", code="attribute", where=describe(node))
    if x.rank not in (None, 2) or not x.dtype.is_float:
        raise ValidationError(f"TreeLeaves takes rows of floats, got {x!r}", code="shape", where=describe(node))
    return Type(INT64, (UNKNOWN if x.shape is None else x.shape[0], len(roots)))


def _arrays(node: Node) -> list[Array]:
    return [attr(node, n) for n in ("features", "splits", "tests", "left", "right", "missing_left", "roots")]


@tree_leaves.expansion
def _(b: Builder, node: Node) -> Value:
    """A Loop over the levels: every path gathers its node's feature, split and children."""
    x, roots = node.input(0), attr(node, "roots")
    start = b.Expand(roots, b.Concat(b.extent(x, 0), [len(roots)], axis=0))
    if not attr(node, "depth"):
        return b.Identity(start)
    arrays = [b.graph.add_constant(a) for a in _arrays(node)[:-1]]
    body = _level(b.graph, node, x.type, start.type, [a.type for a in arrays])
    made = b.add_node("Loop", [np.int64(attr(node, "depth")), True, start], captures=[x, *arrays], subgraphs={"body": body})
    return made.output()


def _level(graph: Graph, node: Node, rows: Type, paths: Type, types: list[Type]) -> Graph:
    body = Graph("level", graph.limits)
    body._next_dim = graph._next_dim
    b = Builder(body, prefix="level")
    body.add_input("number", Type(INT64, ()))
    going = body.add_input("going", Type(BOOL, ()))
    at, x = body.add_input("at", paths), body.add_input("x", rows)
    names = ("features", "splits", "tests", "left", "right", "missing_left")
    arrays = [body.add_input(name, type_) for name, type_ in zip(names, types, strict=True)]
    feature, split, test, left, right, missing_left = (b.Gather(a, at, axis=0) for a in arrays)
    value = b.GatherElements(x, feature, axis=1)
    wide = max(value.type.dtype, split.type.dtype, key=lambda d: d.itemsize)
    value, split = (v if v.type.dtype == wide else b.cast(v, wide) for v in (value, split))
    kinds = _kinds(attr(node, "tests"), attr(node, "left"))
    if len(kinds) == 1:
        passes = b.add({AT_MOST: "LessOrEqual", BELOW: "Less", EQUAL: "Equal"}[kinds[0]], [value, split])
    else:
        below, equal = b.Less(value, split), b.Equal(value, split)
        passes = b.Or(b.And(below, b.Less(test, EQUAL)), b.And(equal, b.Not(b.Equal(test, BELOW))))
    if attr(node, "missing_left").any():
        passes = b.Or(passes, b.And(missing_left, b.IsNaN(value)))
    body.add_output(b.Identity(going), "going_out")
    body.add_output(b.Where(passes, left, right), "at_out")
    return body


# ---- KeyIndex -----------------------------------------------------------------------------------------------------------


@op("KeyIndex", domain=FLOWGRAD, traits=(Trait.ZERO,))
def key_index(x: Array, keys: Array) -> Array:
    """Return for every element the index of the key that is equal to it, or the number of keys; NaN is equal to NaN."""
    if keys.dtype == object:
        places = {key: place for place, key in reversed(list(enumerate(keys.tolist())))}
        found = [places.get(text, len(keys)) for text in x.reshape(-1).tolist()]
        return np.array(found, np.int64).reshape(x.shape)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    place = np.minimum(np.searchsorted(ordered, x), max(len(keys) - 1, 0))
    if not len(keys):
        return np.zeros(x.shape, np.int64)
    hit = (ordered[place] == x) | ((ordered[place] != ordered[place]) & (x != x))
    return np.where(hit, order[place], len(keys))


@key_index.types
def _(node: Node) -> Type:
    x, keys = node.input(0).type, node.input(1).type
    if keys.dtype != x.dtype or keys.rank not in (None, 1):
        raise ValidationError(f"{keys!r} are no keys for {x!r}", code="dtype", where=describe(node))
    return x.with_dtype(INT64)


@key_index.expansion
def _(b: Builder, node: Node) -> Value:
    """The place of the first True among the comparisons of every element with every key, and one True more."""
    x, keys = node.input(0), node.input(1)
    each = b.Unsqueeze(x, [-1])
    equal = b.Equal(each, keys)
    if x.type.dtype.is_float:
        equal = b.Or(equal, b.And(b.IsNaN(each), b.IsNaN(keys)))
    count = b.Size(keys)
    if keys.type.shape == (0,):
        return b.Expand(count, b.shape(x))
    first = b.ArgMax(b.cast(equal, INT32), axis=-1, keepdims=0)
    found = b.cast(b.ReduceMax(b.cast(equal, INT32), [-1], keepdims=0), BOOL)
    return b.Where(found, first, count)


tree_leaves.batch(within_batch(0))
key_index.batch(alone)
