"""What checkpointing keeps: the forward part of a graph cut into segments, by bytes, and what is worth keeping within them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.ops.registry import Trait, is_random, opdef
from flowgrad.ir.reach import needed_nodes
from flowgrad.ir.types import Type

NOMINAL_EXTENT = 32
"""What a named extent counts where nobody says how large it is: only the proportions of bytes matter then."""

SMALL_ELEMENTS = 64
"""Integers and truth values of at most this many elements (shapes, conditions) are kept: they cost less than they steer."""

LARGEST_NETWORK = 4_000
"""Segments of more nodes than this are kept or recomputed as a whole: a minimum cut takes more than linear time."""

Sizes = Callable[[Value], int]


def nominal_bytes(value: Value) -> int:
    """Return the bytes of a value, with NOMINAL_EXTENT for every extent that is not known; 0 for unknown ranks."""
    return bytes_of(value.type)


def bytes_of(type_: Type, extents: Mapping[str, int] | None = None) -> int:
    """Return the bytes of a type whose named extents are ``extents`` (the others NOMINAL_EXTENT); 0 for unknown ranks."""
    total = type_.dtype.itemsize
    for dim in type_.shape if type_.shape is not None else (0,):
        if not isinstance(dim, int):
            dim = max(dim.evaluate({n: (extents or {}).get(n, NOMINAL_EXTENT) for n in dim.names()}), 0)
        total *= dim
    return total


# ---- the two parts ------------------------------------------------------------------------------------------------------


@dataclass
class Parts:
    """The nodes of a graph that its outputs need: the forward part, which is computed first, and the backward part."""

    forward: list[Node]
    backward: list[Node]

    def on(self, copy: Graph) -> Parts:
        """Return the same parts of a copy of the graph."""
        return Parts([copy.entries[n.key] for n in self.forward], [copy.entries[n.key] for n in self.backward])


def split(order: Sequence[Node], is_backward: Callable[[Node], bool]) -> Parts:
    """Return the two parts of ``order``: what ``is_backward`` says and all that depends on it, and the rest."""
    late: set[int] = set()
    parts = Parts([], [])
    for node in order:
        if is_backward(node) or any(v.producer.key in late for v in node.operands):
            late.add(node.key)
            parts.backward.append(node)
        else:
            parts.forward.append(node)
    return parts


def made_by_adjoint(graph: Graph) -> Callable[[Node], bool]:
    """Return what tells the nodes of the last reverse pass: those in whose origins most adjoints follow each other.

    What tangents of the forward part share with it (partial derivatives, once equal nodes are one) belongs to the forward part.
    """
    order = graph.nodes()
    reverse, forward = _depths(graph, "adjoint"), _depths(graph, "tangent")
    deepest = max((reverse[n.origin] for n in order), default=0)
    tangents = [v for n in order if forward[n.origin] and reverse[n.origin] < deepest for v in n.results]
    shared = {n.key for n in needed_nodes(order, tangents)}
    made = {n.key for n in order if 0 < deepest == reverse[n.origin]}
    chosen = made - shared or made
    return lambda node: node.key in chosen


def tangents_beside(graph: Graph, forward: Sequence[Node]) -> list[Node]:
    """Return the nodes of the forward part so that tangents are computed as soon as what they depend on is.

    Else forward mode would begin where reverse mode has ended, and everything would be held until then.
    """
    tangent, adjoint = _depths(graph, "tangent"), _depths(graph, "adjoint")
    place: dict[int, int] = {}
    for i, node in enumerate(forward):
        before = max((place.get(v.producer.key, 0) for v in node.operands), default=0)
        place[node.key] = before if tangent[node.origin] or adjoint[node.origin] else max(i, before)
    return sorted(forward, key=lambda node: place[node.key])


def _depths(graph: Graph, pass_name: str) -> list[int]:
    """Return, by origin, how many passes of this name follow each other in it."""
    depth: list[int] = []
    for origin in graph.origins:
        before = max((depth[p] for p in origin.parents if p < len(depth)), default=0)
        depth.append(before + (origin.pass_name == pass_name))
    return depth


# ---- what could be recomputed -------------------------------------------------------------------------------------------


@dataclass
class Tape:
    """The forward part as arrays over its values: where each is made and used last, its bytes, and whether the backward
    part uses it. What a view looks at is made and used where the view is."""

    nodes: list[Node]
    values: list[Value]
    place: Array
    last_use: Array
    size: Array
    used_late: Array
    free: Array
    """Values that are there in any case, or that no recomputation may make: given, of constants alone, random, outputs."""
    fixed: set[Value] = field(default_factory=set)
    """Values of constants alone: weights, whoever computes them."""
    position: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """The bytes that the backward part uses and that need not be kept."""
        return float(self.size[self.used_late & ~self.free].sum())


def record(graph: Graph, parts: Parts, sizes: Sizes) -> Tape:
    """Return the tape of the forward part."""
    outputs = set(graph.outputs)
    late = {n.key for n in parts.backward}
    fixed: set[Value] = set()
    position = {node.key: i for i, node in enumerate(parts.forward)}
    index: dict[Value, int] = {}
    rows: list[tuple[int, int, int, bool, bool]] = []
    roots: list[int] = []
    for i, node in enumerate(parts.forward):
        is_fixed = all(v in fixed or v.producer.op == "Constant" for v in node.operands)
        stays = is_fixed or is_random(node)
        view = Trait.VIEW in opdef(node.op).traits and "out" not in opdef(node.op).special
        for value in node.results:
            if is_fixed:
                fixed.add(value)
            users = [u.key for u in value.users]
            last = max((position[k] for k in users if k in position), default=i)
            free = stays or value in outputs or not _is_tensor(value)
            root = index.get(node.input(0)) if view and node.inputs and node.inputs[0] is not None else None
            index[value] = len(rows)
            roots.append(-1 if root is None else root)
            rows.append((i, last, 0 if root is not None else sizes(value), any(k in late for k in users), free))
    last_use, used = [r[1] for r in rows], [r[3] for r in rows]
    for j in range(len(rows) - 1, -1, -1):
        if roots[j] >= 0:
            last_use[roots[j]] = max(last_use[roots[j]], last_use[j])
            used[roots[j]] = used[roots[j]] or used[j]
    return Tape(parts.forward, list(index), np.array([r[0] for r in rows], int), np.array(last_use, int),
                np.array([r[2] for r in rows], float), np.array(used, bool), np.array([r[4] for r in rows], bool), fixed, position)


def _is_tensor(value: Value) -> bool:
    """Return whether a value may be recomputed: no container, and no small integers that steer extents."""
    type_ = value.type
    if type_.dtype.element is not None or type_.shape is None:
        return False
    return type_.dtype.is_float or not (isinstance(type_.size, int) and type_.size <= SMALL_ELEMENTS)


# ---- cuts ---------------------------------------------------------------------------------------------------------------


@dataclass
class Keeping:
    """What is kept: the segment of every forward node (by key), the values kept, and those that are weights.

    The last segment is never recomputed: the backward part begins with it.
    """

    segment: dict[int, int]
    kept: set[Value]
    fixed: set[Value]

    def on(self, copy: Graph) -> Keeping:
        """Return the same choice for a copy of the graph."""
        kept, fixed = ({copy.values[v.name] for v in values} for values in (self.kept, self.fixed))
        return Keeping(self.segment, kept, fixed)


class Cutter:
    """Cuts a tape into segments."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        count = len(tape.nodes)
        weight = np.where(tape.used_late & ~tape.free, tape.size, 0.0)
        self.work = np.zeros(count + 1)
        np.add.at(self.work, tape.place + 1, weight)
        self.work = np.cumsum(self.work)
        change = np.zeros(count + 1)
        held = np.where(tape.free, 0.0, tape.size)
        np.add.at(change, tape.place, held)
        np.add.at(change, tape.last_use, -held)
        self.crossing = np.cumsum(change)[:count]

    def cuts(self, limit: float) -> list[int]:
        """Return where segments end whose tape is at most ``limit`` bytes, cut where little crosses; each at a node."""
        work, start = self.work, 0
        found: list[int] = []
        count = len(self.tape.nodes)
        while True:
            stop = int(np.searchsorted(work, work[start] + limit, "right")) - 1
            if stop >= count:
                return found
            stop = max(stop, start + 1)
            half = int(np.searchsorted(work, work[start] + limit / 2, "left"))
            half = min(max(half, start + 1), stop)
            window = self.crossing[half - 1 : stop]
            start = stop - int(np.argmin(window[::-1]))
            if start >= count:
                return found
            found.append(start)

    def segments(self, cuts: Sequence[int]) -> Array:
        """Return the segment of each value's place, counted from 0."""
        return np.searchsorted(np.array(cuts, int), self.tape.place, "right")

    def peak(self, cuts: Sequence[int]) -> float:
        """Return about how many bytes are held at most: what crosses cuts, and the largest tape of a segment."""
        crosses, tapes = self._held(cuts)
        return crosses + float(tapes.max(initial=0.0))

    def crosses(self, cuts: Sequence[int]) -> Array:
        """Return which values segments after their own use."""
        tape, ends = self.tape, np.array(cuts, int)
        return np.not_equal(np.searchsorted(ends, tape.place, "right"), np.searchsorted(ends, tape.last_use, "right"))

    def _held(self, cuts: Sequence[int]) -> tuple[float, Array]:
        tape, crosses = self.tape, self.crosses(cuts)
        inner = tape.used_late & ~tape.free & ~crosses
        tapes = np.bincount(self.segments(cuts)[inner], tape.size[inner], len(cuts) + 1)
        return float(tape.size[crosses & ~tape.free].sum()), tapes

    def keeping(self, cuts: Sequence[int], extra: Iterable[Value] = ()) -> Keeping:
        """Return what is kept with these cuts, and with ``extra`` in addition."""
        tape = self.tape
        of_node = np.searchsorted(np.array(cuts, int), np.arange(len(tape.nodes)), "right")
        segment = {node.key: int(s) for node, s in zip(tape.nodes, of_node, strict=True)}
        chosen = self.crosses(cuts) | tape.free
        kept = {v for v, is_kept in zip(tape.values, chosen, strict=True) if is_kept} | set(extra)
        return Keeping(segment, kept, tape.fixed)


def limits_of(tape: Tape, steps: int = 48) -> list[float]:
    """Return limits for the tape of a segment to try, from all of it downwards."""
    total = tape.total
    least = max(float(np.where(tape.used_late & ~tape.free, tape.size, 0.0).max(initial=0.0)), total / max(len(tape.nodes), 1))
    if total <= 0 or least <= 0:
        return []
    return [float(x) for x in np.geomspace(total / 2, min(least, total / 2), steps)]


def best_cuts(tape: Tape) -> list[int]:
    """Return the cuts with which least is held at most: about sqrt(n) segments, equal in bytes, for n equal layers."""
    cutter = Cutter(tape)
    tried = [cutter.cuts(limit) for limit in limits_of(tape)]
    return min(tried, key=cutter.peak, default=[])


def cuts_after(tape: Tape, names: Collection[Value]) -> list[int]:
    """Return the cuts at the nodes that make the named values."""
    places = {tape.position[v.producer.key] + 1 for v in names}
    return sorted(p for p in places if p < len(tape.nodes))


# ---- what is worth keeping within segments -------------------------------------------------------------------------------


def cost_of(node: Node, sizes: Sizes) -> float:
    """Return about how long a node takes, as bytes that pass memory in that time.

    A contraction of x and w to y takes sqrt(x w y) products, exact for matrices; the rest reads and writes once.
    """
    results = sum(sizes(v) for v in node.results)
    operands = sorted((sizes(v) for v in node.operands), reverse=True)
    moved = float(results + sum(operands))
    traits = opdef(node.op).traits
    if len(operands) < 2 or Trait.ELEMENTWISE in traits or Trait.BROADCASTS in traits or Trait.VIEW in traits:
        return moved
    if Trait.BILINEAR not in traits and not opdef(node.op).residuals:
        return moved
    return moved + math.sqrt(float(results) * operands[0] * operands[1]) / 8


PRICES = 8
"""So many prices of time in bytes are tried, each with a minimum cut."""


def steps_of_keeping(cutter: Cutter, cuts: Sequence[int], sizes: Sizes) -> list[set[Value]]:
    """Return what to keep within segments in addition, in steps: what saves most time for its bytes first.

    For a price of time, the minimum cut of each segment between what is there and what the backward part uses: a value that
    is kept costs its bytes, a node that is computed again its time.
    """
    tape, keeping = cutter.tape, cutter.keeping(cuts)
    needed = {v for v, used in zip(tape.values, tape.used_late, strict=True) if used}
    by_segment: dict[int, list[Node]] = {}
    for node in tape.nodes:
        by_segment.setdefault(keeping.segment[node.key], []).append(node)
    costs = {node.key: cost_of(node, sizes) for node in tape.nodes}
    ratios = sorted(sizes(v) / costs[v.producer.key] for v in needed if v not in keeping.kept and costs[v.producer.key])
    steps: list[set[Value]] = []
    seen: set[Value] = set()
    for turn in range(1, PRICES + 1 if ratios else 0):
        price = 1.01 * ratios[min(len(ratios) * turn // PRICES, len(ratios) - 1)]
        for segment in sorted(by_segment, reverse=True):
            nodes = by_segment[segment]
            if segment == len(cuts) or len(nodes) > LARGEST_NETWORK:
                continue
            found = _cut_of_segment(nodes, keeping.kept, needed, sizes, {n.key: price * costs[n.key] for n in nodes})
            if found - seen:
                steps.append(found - seen)
                seen |= found
    return steps


def _cut_of_segment(nodes: Sequence[Node], kept: Collection[Value], needed: Collection[Value], sizes: Sizes,
                    costs: Mapping[int, float]) -> set[Value]:
    """Return the values that a minimum cut keeps; ``costs`` of computing nodes again, in bytes, by key."""
    import networkx as nx

    network: Any = nx.DiGraph()
    made: list[Value] = []
    for node in nodes:
        results = [v for v in node.results if v not in kept]
        if not results:
            continue
        network.add_edge("source", ("node", node.key), capacity=costs[node.key])
        for value in results:
            made.append(value)
            network.add_edge(("node", node.key), ("value", value), capacity=float(sizes(value)))
            if value in needed:
                network.add_edge(("value", value), "sink")
        for value in node.operands:
            if network.has_node(("value", value)):
                network.add_edge(("value", value), ("node", node.key))
    if "sink" not in network or "source" not in network:
        return set()
    _, (source_side, _) = nx.minimum_cut(network, "source", "sink", flow_func=nx.algorithms.flow.boykov_kolmogorov)
    return {v for v in made if ("node", v.producer.key) in source_side and ("value", v) not in source_side}
