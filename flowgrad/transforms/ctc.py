"""The loss of connectionist temporal classification: minus the logarithm of the probability of a sequence of labels.

A. Graves et al., Connectionist Temporal Classification, ICML 2006: alpha_t(s), the probability of all alignments of the first t
steps that end at place s of the labels with blanks around each, is summed over what may come before it, here in logarithms.
"""

from __future__ import annotations

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.ops.operands import joined, ramp, slice_axis
from flowgrad.ir.types import BOOL, INT64, Type

NEVER = -1e30
"""The logarithm of a probability of 0 that sums and differences leave finite."""


def ctc_of_each(b: Builder, scores: Value, labels: Value, steps: Value, count: Value, blank: int) -> Value:
    """Return the loss of each example: infinite, with the derivative 0, where the labels do not fit into the steps.

    ``scores`` [T, N, C] are logits in float32 or float64, ``labels`` [N, S] int64, of which the first ``count`` [N] count, as do the
    first ``steps`` [N] scores.
    """
    places, labels = _places(b, labels, blank)
    around = b.Unsqueeze(b.Mul(count, 2), [1])
    labels = b.Where(b.LessOrEqual(places, around), labels, b.scalar(blank, INT64))  # what stands behind the labels may be anything
    dtype = scores.type.dtype
    never = b.scalar(NEVER, dtype)
    log_prob = b.LogSoftmax(scores, axis=2)
    wide = joined(b, [slice_axis(b, b.shape(scores), 0, 2), slice_axis(b, b.shape(labels), 1, 2)])
    emitted = b.GatherElements(log_prob, b.Expand(b.Unsqueeze(labels, [0]), wide), axis=2)
    start = b.Expand(b.Where(b.Equal(places, 0), b.scalar(0, dtype), never), b.shape(labels))
    active = b.Less(b.Unsqueeze(ramp(b, b.extent(scores, 0)), [1]), b.Unsqueeze(steps, [0]))
    last = _alphas(b, start, emitted, b.Unsqueeze(active, [2]), _penalty(b, labels, blank, never))
    before = b.Where(b.Greater(around, 0), b.GatherElements(last, b.Max(b.Sub(around, 1), 0), axis=1), never)
    ends = b.add("Concat", [b.GatherElements(last, around, axis=1), before], {"axis": 1})
    found = b.ReduceLogSumExp(ends, [1], keepdims=0)
    return b.Where(b.Less(found, NEVER / 2), b.scalar(np.inf, dtype), b.Neg(found))


def _places(b: Builder, labels: Value, blank: int) -> tuple[Value, Value]:
    """Return the numbers 0..2S [1, 2S + 1], and the labels with a blank before, between and behind them [N, 2S + 1]."""
    blanks = b.filled(blank, labels)
    pairs = b.add("Concat", [b.Unsqueeze(blanks, [2]), b.Unsqueeze(labels, [2])], {"axis": 2})
    column = b.Expand(b.scalar(blank, INT64), joined(b, [b.extent(labels, 0), b.ints([1])]))
    extended = b.add("Concat", [b.Flatten(pairs, axis=1), column], {"axis": 1})
    return b.Unsqueeze(ramp(b, b.extent(extended, 1)), [0]), extended


def _penalty(b: Builder, labels: Value, blank: int, never: Value) -> Value:
    """Return 0 where a label may follow the label before it without a blank between: where they differ; NEVER elsewhere."""
    earlier = _shifted(b, labels, 2, blank)
    may = b.And(b.Not(b.Equal(labels, b.scalar(blank, INT64))), b.Not(b.Equal(labels, earlier)))
    return b.Where(may, b.scalar(0, never.type.dtype), never)


def _shifted(b: Builder, x: Value, by: int, fill: float) -> Value:
    """Return a matrix whose columns are ``by`` places further to the right."""
    shape = joined(b, [b.extent(x, 0), b.ints([by])])
    columns = b.Expand(b.scalar(fill, x.type.dtype), shape)
    return b.Slice(b.add("Concat", [columns, x], {"axis": 1}), [0], [-by], [1])


def _alphas(b: Builder, start: Value, emitted: Value, active: Value, penalty: Value) -> Value:
    """Return the logarithms of alpha after the last step of each example [N, 2S + 1]."""
    body = Graph("ctc_step", b.graph.limits)
    body._next_dim = b.graph._next_dim
    inner = Builder(body, prefix="step")
    alpha = body.add_input("alpha", start.type)
    row = body.add_input("emitted", Type(emitted.type.dtype, emitted.shape[1:]))
    now = body.add_input("active", Type(BOOL, active.shape[1:]))
    barrier = body.add_input("penalty", penalty.type)
    ways = [alpha, _shifted(inner, alpha, 1, NEVER), inner.Add(_shifted(inner, alpha, 2, NEVER), barrier)]
    reached = inner.ReduceLogSumExp(inner.add("Concat", [inner.Unsqueeze(w, [0]) for w in ways], {"axis": 0}), [0], keepdims=0)
    body.add_output(inner.Where(now, inner.Add(reached, row), alpha), "following")
    return b.add("Scan", [start, emitted, active], {"num_scan_inputs": 2}, captures=[penalty], subgraphs={"body": body})
