"""Hold passes to their kind: values and gradients before and after, on seeded inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flowgrad.ir.errors import FlowgradError, NotDifferentiableError, PassError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph, Value, same_array
from flowgrad.ir.ops.registry import is_random
from flowgrad.ir.process_state import quiet
from flowgrad.ir.types import Dim
from flowgrad.passes.differentiate import with_adjoint
from flowgrad.passes.registry import Kind
from flowgrad.passes.steps import Hook, Step

Feeds = Mapping[str, Array]

_EXTENTS = ((3,), (2, 3, 4), (1,), (4,), (8,), (6,))
"""Extents to try for named dims, in turn, until a graph runs."""

_EDGES = (0.0, -0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan)

_TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


class CheckKind(Hook):
    """Raises PassError where a pass changes values or gradients more than its kind permits.

    The note of a step says what could not be checked.
    """

    needs_previous = True

    def __init__(self, feeds: Feeds | None = None, seed: int = 0) -> None:
        self.feeds = feeds
        self.seed = seed

    def after(self, step: Step, graph: Graph, previous: Graph | None) -> str | None:
        """Compare the graph with the one before the pass."""
        if previous is None or not step.changed:
            return None
        verdict = compare(previous, graph, step.stage.pass_.kind, self.feeds, self.seed)
        if verdict.difference:
            raise PassError(f"pass {step.stage} is declared {step.stage.pass_.kind!r}, and {verdict.difference}", code="check",
                            where=step.name)
        return verdict.note or None


class Verdict:
    """What a comparison found: the first difference ("" for none), and what could not be compared."""

    def __init__(self, difference: str = "", note: str = "") -> None:
        self.difference = difference
        self.note = note


def compare(
    before: Graph, after: Graph, kind: Kind, feeds: Feeds | None = None, seed: int = 0, *, derivatives: bool = True
) -> Verdict:
    """Compare values and gradients of two graphs as ``kind`` permits, on ``feeds`` or on seeded inputs."""
    structure = _interface_difference(before, after, kind)
    if structure:
        return Verdict(structure)
    if any(is_random(n) for n in before.nodes()):
        return Verdict(note="values not checked: the graph draws random numbers")
    given = sample_feeds(before, seed) if feeds is None else feeds
    if given is None:
        return Verdict(note="values not checked: no seeded inputs run the graph")
    given = dict(given)
    try:
        old = evaluate(before, given)
    except FlowgradError as error:
        return Verdict(note=f"values not checked: {error}")
    extra = {v.name: _sample(v, {}, np.random.default_rng(seed)) for v in after.inputs if v.name not in given}
    new = evaluate(after, {**given, **extra})
    for name, array in old.items():
        difference = _difference(array, new[name], kind)
        if difference:
            return Verdict(f"output {name!r} {difference}")
    if feeds is None and kind == "exact":
        difference = _edge_difference(before, after, given, seed)
        if difference:
            return Verdict(difference)
    return Verdict() if not derivatives else _compare_gradients(before, after, {**given, **extra}, given, kind, seed)


def _edge_difference(before: Graph, after: Graph, feeds: Feeds, seed: int) -> str:
    """Compare values bit by bit where floats are zeros of both signs, infinities and NaN; "" if they agree."""
    rng = np.random.default_rng(seed)
    edges = {n: rng.choice(_EDGES, a.shape).astype(a.dtype) if a.dtype.kind in "fV" else a for n, a in feeds.items()}
    try:
        old = evaluate(before, edges)
    except FlowgradError:
        return ""  # the graph itself refuses such inputs
    new = evaluate(after, edges)
    for name, array in old.items():
        difference = _difference(array, new[name], "exact")
        if difference:
            return f"on zeros and infinities, output {name!r} {difference}"
    return ""


def _interface_difference(before: Graph, after: Graph, kind: Kind) -> str:
    ins, outs = [v.name for v in before.inputs], [e.name for e in before.output_entries]
    new_ins, new_outs = [v.name for v in after.inputs], [e.name for e in after.output_entries]
    if kind == "extends":
        new_ins, new_outs = [n for n in new_ins if n in ins], [n for n in new_outs if n in outs]
    if ins != new_ins:
        return f"the inputs were {ins}, now {new_ins}"
    return f"the outputs were {outs}, now {new_outs}" if outs != new_outs else ""


def _difference(old: Array, new: Array, kind: Kind) -> str:
    if old.dtype != new.dtype or old.shape != new.shape:
        return f"was {old.dtype}{list(old.shape)}, is {new.dtype}{list(new.shape)}"
    if kind in ("exact", "extends") or old.dtype.kind not in "fcV":
        if _same_bits(old, new):
            return ""
        return f"differs by {_distance(old, new):.3g} where nothing may change"
    return _beyond_rounding(old, new, only_finite=kind == "repairs")


def _same_bits(old: Array, new: Array) -> bool:
    """Return whether two arrays are bitwise equal, any NaN taken as equal to any other."""
    if same_array(old, new):
        return True
    if old.dtype.kind not in "fcV":
        return False
    a, b = _wide(old), _wide(new)
    return bool(np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a.real), np.signbit(b.real)) or
                (np.array_equal(np.isnan(a), np.isnan(b)) and same_array(a[~np.isnan(a)], b[~np.isnan(b)])))


def _wide(array: Array) -> Array:
    return array if array.dtype.kind == "c" else array.astype(np.float64)


@quiet
def _distance(old: Array, new: Array) -> float:
    if old.dtype == object:
        return float("nan")
    gap = np.abs(_wide(old) - _wide(new))
    return float(np.nanmax(gap)) if gap.size and not np.isnan(gap).all() else float("nan")


def _beyond_rounding(old: Array, new: Array, *, only_finite: bool, slack: float = 1.0) -> str:
    a, b = _wide(old), _wide(new)
    chosen = np.isfinite(a) if only_finite else np.ones(a.shape, bool)
    a, b = a[chosen], b[chosen]
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return "is no longer finite in the same places"
    finite = np.isfinite(a)
    a, b = a[finite], b[finite]
    if not a.size:
        return ""
    bound = slack * _TOLERANCE.get(str(old.dtype), 1e-4) * max(1.0, float(np.abs(a).max()))
    gap = float(np.abs(a - b).max())
    return f"differs by {gap:.3g}, more than rounding ({bound:.3g})" if gap > bound else ""


# ---- gradients ----------------------------------------------------------------------------------------------------------


def _compare_gradients(before: Graph, after: Graph, given: Feeds, old_feeds: Feeds, kind: Kind, seed: int) -> Verdict:
    """Compare gradients up to rounding: how cotangents are summed depends on which nodes are shared."""
    outputs = [e.name for e in before.output_entries if e.input(0).type.dtype.is_float]
    wrt = [v.name for v in before.inputs if v.type.dtype.is_float]
    if not outputs or not wrt:
        return Verdict()
    try:
        old = gradients(before, old_feeds, outputs, wrt, seed)
    except NotDifferentiableError:
        return Verdict(note="gradients not checked: not differentiable")
    except FlowgradError as error:
        return Verdict(note=f"gradients not checked: {error}")
    new = gradients(after, given, outputs, wrt, seed)
    for name, array in old.items():
        difference = _beyond_rounding(array, new[name], only_finite=True, slack=10.0)
        if difference:
            return Verdict(f"the gradient with respect to {name!r} {difference}")
    return Verdict()


def gradients(graph: Graph, feeds: Feeds, outputs: Sequence[str], wrt: Sequence[str], seed: int = 0) -> dict[str, Array]:
    """Return the gradients of seeded random combinations of ``outputs`` with respect to inputs, zero where none is."""
    joint = with_adjoint(graph, wrt, outputs)
    bars = joint.drawn(evaluate(graph, feeds), np.random.default_rng(seed + 1))
    arrays = evaluate(joint.alone(), {**feeds, **bars})
    return {n: arrays[joint.outputs[n]] if n in joint.outputs else np.zeros_like(feeds[n]) for n in wrt}


# ---- seeded inputs --------------------------------------------------------------------------------------------------------


def sample_feeds(graph: Graph, seed: int = 0) -> dict[str, Array] | None:
    """Return seeded inputs on which ``graph`` runs, or None if none of a few attempts does."""
    names = sorted({n for v in graph.inputs for d in v.type.shape or () if isinstance(d, Dim) for n in d.names()})
    for extents in _EXTENTS:
        env = {n: extents[i % len(extents)] for i, n in enumerate(names)}
        rng = np.random.default_rng(seed)
        try:
            feeds = {v.name: _sample(v, env, rng) for v in graph.inputs}
            evaluate(graph, feeds)
        except FlowgradError:
            continue
        return feeds
    return None


def _sample(value: Value, env: Mapping[str, int], rng: np.random.Generator) -> Array:
    dims = value.type.shape or ()
    shape = tuple(d.evaluate({**dict.fromkeys(d.names(), 3), **env}) if isinstance(d, Dim) else d for d in dims)
    dtype = value.type.dtype
    if dtype.is_float or dtype.kind == "complex":
        return np.asarray(rng.standard_normal(shape)).astype(dtype.numpy)
    if dtype.kind == "string":
        return np.full(shape, "a", object)
    return np.asarray(rng.integers(0, 2, shape)).astype(dtype.numpy)
