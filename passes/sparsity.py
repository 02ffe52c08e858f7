"""Structural sparsity: which elements of derivatives can be other than zero, whatever the inputs are.

Sets of input elements are carried through the tangent graph, which is linear in the tangents. Elementwise operators pass
them on from place to place. The structure of others is read off the operator itself, run on numbers that tell where each
element goes. Where an operator does not let itself be read, every element of its results depends on every element of its
operands: a pattern may hold too much, never too little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flowgrad.ir.errors import FlowgradError, UnsupportedError
from flowgrad.ir.evaluate import call_node
from flowgrad.ir.graph import FEEDABLE, Array, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.limits import check_time
from flowgrad.ir.ops.registry import Trait, is_random, opdef
from flowgrad.ir.reach import dependents, needed_nodes, path_nodes
from flowgrad.passes.differentiate import tangent

MOST_PROBED = 2**31
"""The most numbers that may be looked at to read one operator, one run for each element of its operands."""


class Pattern:
    """Sets of columns, one for each of ``height`` rows: ``entries`` are row * width + column, sorted, each once."""

    def __init__(self, height: int, width: int, entries: Array) -> None:
        self.height, self.width, self.entries = height, width, entries

    @property
    def rows(self) -> Array:
        """The row of each entry, ascending."""
        return self.entries // max(self.width, 1)

    @property
    def columns(self) -> Array:
        """The column of each entry, ascending within a row."""
        return self.entries % max(self.width, 1)

    @staticmethod
    def of(height: int, width: int, rows: Array, columns: Array) -> Pattern:
        """Return the pattern of the given entries, in any order."""
        return Pattern(height, width, np.unique(np.asarray(rows, np.int64) * width + columns))

    @staticmethod
    def joined(height: int, width: int, parts: Sequence[Pattern]) -> Pattern:
        """Return the union of patterns of the same extents."""
        if len(parts) == 1:
            return parts[0]
        return Pattern(height, width, np.unique(np.concatenate([np.zeros(0, np.int64), *(p.entries for p in parts)])))

    def led(self, height: int, targets: Array, sources: Array) -> Pattern:
        """Return the pattern in which row ``targets[k]`` holds what row ``sources[k]`` holds here, for every k."""
        starts = np.searchsorted(self.entries, np.arange(self.height + 1, dtype=np.int64) * self.width)
        counts = (starts[1:] - starts[:-1])[sources]
        ends = np.cumsum(counts)
        places = np.arange(int(ends[-1]) if ends.size else 0) + np.repeat(starts[sources] - ends + counts, counts)
        return Pattern.of(height, self.width, np.repeat(targets, counts), self.columns[places])

    def transposed(self) -> Pattern:
        """Return the pattern with rows and columns swapped."""
        return Pattern.of(self.width, self.height, self.columns, self.rows)


class Links(NamedTuple):
    """Which elements of one result depend on which of one operand: pairs of places."""

    targets: Array
    sources: Array


def dependencies(graph: Graph, xs: Sequence[Value], ys: Sequence[Value]) -> Pattern:
    """Return which elements of ``ys``, one after the other, have derivatives by which elements of ``xs``, likewise.

    ``graph`` gains the tangents that are looked at: give a copy. All shapes on the way must be static. Raises
    UnsupportedError, with the ways out, where one is not, LimitError where the pattern takes too much memory, and
    NotDifferentiableError like ``tangent``.
    """
    width = sum(size_of(x) for x in xs)
    dots = [graph.add_input(graph.unique_name(f"{x.name}_dot"), x.type) for x in xs]
    found = tangent(graph, list(zip(xs, dots, strict=True)), ys, in_place=False)
    reader = _Reader(graph, [v for v in found if v is not None], width)
    start = 0
    for dot in dots:
        reader.patterns[dot] = Pattern(size_of(dot), width, np.arange(size_of(dot), dtype=np.int64) * (width + 1) + start)
        start += size_of(dot)
    reader.run(dots)
    rows, columns, start = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for y, y_dot in zip(ys, found, strict=True):
        pattern = reader.patterns.get(y_dot) if y_dot is not None else None
        if pattern is not None:
            rows.append(pattern.rows + start)
            columns.append(pattern.columns)
        start += size_of(y)
    return Pattern.of(start, width, np.concatenate(rows), np.concatenate(columns))


def size_of(value: Value) -> int:
    """Return how many elements ``value`` has. UnsupportedError, with the ways out, if that is not known before the run."""
    if value.type.dtype.element is not None or not value.type.is_static:
        raise UnsupportedError(
            f"{value!r} has no shape that is known before the run, so its derivatives have no pattern: load the model with fixed "
            "shapes (fg.load(path, shapes=...)), take one example of a batch with unbatch, or make the derivative dense, with "
            "chunk_size to save memory",
            code="shape", where=value.name)
    return math.prod(value.type.static_shape)


class _Reader:
    """Carries patterns through what is computed from tangents, up to the values ``wanted``."""

    def __init__(self, graph: Graph, wanted: Sequence[Value], width: int) -> None:
        self.graph, self.wanted, self.width = graph, list(wanted), width
        self.patterns: dict[Value, Pattern] = {}
        self.rng = np.random.default_rng(0)

    def run(self, dots: Sequence[Value]) -> None:
        nodes = path_nodes(self.graph.nodes(), dots, self.wanted)
        self.known = _known_arrays(self.graph, (v for node in nodes for v in node.operands))
        for node in nodes:
            check_time()
            for y in node.results:
                if y.type.dtype.is_float or y.type.dtype.element is not None:
                    size_of(y)
            carried = [slot for slot, v in enumerate(node.inputs) if v in self.patterns]
            if not carried and not any(v in self.patterns for v in node.captures):
                continue
            found = self._elementwise(node, carried) or self._read(node, carried) or self._dense(node)
            self.patterns.update(found)

    def _elementwise(self, node: Node, carried: Sequence[int]) -> dict[Value, Pattern] | None:
        """Place by place, with operands broadcast; what a known operand multiplies by zero or does not choose goes."""
        traits = opdef(node.op).traits
        if not traits & {Trait.ELEMENTWISE, Trait.BROADCASTS} or node.captures or len(node.results) != 1:
            return None
        y = node.output()
        shape, height = y.type.static_shape, size_of(y)
        places, parts = np.arange(height), []
        for slot in carried:
            x = node.input(slot)
            sources = np.broadcast_to(np.arange(size_of(x)).reshape(x.type.static_shape), shape).reshape(-1)
            kept = self._kept(node, slot, traits)
            keep = slice(None) if kept is None else np.broadcast_to(kept, shape).reshape(-1)
            parts.append(self.patterns[x].led(height, places[keep], sources[keep]))
        return {y: Pattern.joined(height, self.width, parts)}

    def _kept(self, node: Node, slot: int, traits: Iterable[Trait]) -> Array | None:
        """Return where an operand of an elementwise node counts, as known operands tell; None for everywhere."""
        if Trait.BILINEAR in traits:
            other = self.known.get(node.input(1 - slot))
            return None if other is None else other != 0
        if Trait.CHOOSES in traits and slot:
            chosen = self.known.get(node.input(0))
            return None if chosen is None else chosen == (slot == 1)
        return None

    def _dense(self, node: Node) -> dict[Value, Pattern]:
        """Every element of the results depends on all that any element of the operands depends on."""
        parts = [np.unique(self.patterns[v].columns) for v in node.operands if v in self.patterns]
        columns = np.unique(np.concatenate(parts))
        found = {}
        for y in node.results:
            if y.type.dtype.is_float:
                height = size_of(y)
                self.graph.limits.check("tensor_bytes", 8 * height * columns.size, describe(node))
                entries = np.arange(height, dtype=np.int64)[:, None] * self.width + columns
                found[y] = Pattern(height, self.width, entries.reshape(-1))
        return found

    # ---- operators that are read ------------------------------------------------------------------------------------------

    def _read(self, node: Node, carried: Sequence[int]) -> dict[Value, Pattern] | None:
        """Read the operator off runs of it; None where runs do not tell."""
        arrays = self._others(node, carried)
        if arrays is None:
            return None
        probe = _Probe(node, carried, arrays, self.rng)
        try:
            links = probe.moved() or probe.units()
        except FlowgradError:
            return None  # it does not run on these numbers: nothing is claimed of it
        if links is None:
            return None
        found: dict[Value, Pattern] = {}
        for (index, slot), (targets, sources) in links.items():
            y = node.output(index)
            part = self.patterns[node.input(slot)].led(size_of(y), targets, sources)
            found[y] = Pattern.joined(size_of(y), self.width, [found[y], part] if y in found else [part])
        return found

    def _others(self, node: Node, carried: Sequence[int]) -> list[Array | None] | None:
        """Return arrays for the operands that carry nothing: known ones, and for the factors of products any numbers."""
        definition = opdef(node.op)
        if node.captures or node.subgraphs or is_random(node):
            return None
        is_linear = Trait.LINEAR in definition.traits
        has_factors = is_linear or bool(definition.traits & {Trait.BILINEAR, Trait.MULTILINEAR})
        arrays: list[Array | None] = []
        for slot, x in enumerate(node.inputs):
            if x is None or slot in carried:
                arrays.append(None)
            elif x in self.known:
                arrays.append(self.known[x])
            elif has_factors and x.type.dtype.is_float and x.type.is_static and slot not in definition.settings:
                numbers = self.rng.uniform(1, 2, x.type.static_shape) * self.rng.choice([-1, 1], x.type.static_shape)
                arrays.append(np.asarray(0 * numbers if is_linear else numbers, x.type.dtype.numpy))
            else:
                return None
        return arrays


def _known_arrays(graph: Graph, values: Iterable[Value]) -> dict[Value, Array]:
    """Return the arrays of those values, and of what they are computed from, that no run can change."""
    order = graph.nodes()
    fed = dependents(order, [*graph.inputs, *graph.parameters])
    known: dict[Value, Array] = {v: v.producer.data for v in graph.constants
                                 if v.producer.data is not None and v.producer.role not in FEEDABLE}
    rng = np.random.default_rng(0)
    for node in needed_nodes(order, [v for v in dict.fromkeys(values) if v not in fed]):
        if is_random(node) or node.subgraphs or not all(v in known for v in node.operands):
            continue
        try:
            results = call_node(node, [None if v is None else known[v] for v in node.inputs], [], rng)
        except FlowgradError:
            continue  # the run will report it
        known.update({v: r for v, r in zip(node.outputs, results, strict=False) if v is not None and r is not None})
    return known


class _Probe:
    """Runs of one node that is linear in the operands in ``carried``."""

    def __init__(self, node: Node, carried: Sequence[int], arrays: Sequence[Array | None], rng: np.random.Generator) -> None:
        self.node, self.carried, self.arrays, self.rng = node, list(dict.fromkeys(carried)), list(arrays), rng
        self.sizes = [size_of(node.input(slot)) for slot in self.carried]
        self.starts = np.cumsum([0, *self.sizes])

    def run(self, numbers: Array) -> list[Array]:
        """Return the results, flat, for the numbers of all carried operands."""
        for place, slot in enumerate(self.carried):
            x = self.node.input(slot)
            part = numbers[self.starts[place]: self.starts[place + 1]]
            self.arrays[slot] = part.reshape(x.type.static_shape).astype(x.type.dtype.numpy)
        results = call_node(self.node, self.arrays, [], self.rng)
        return [np.asarray(r).reshape(-1) for r in results if r is not None]

    def moved(self) -> Mapping[tuple[int, int], Links] | None:
        """Return the links of a node whose results are elements of its operands, or zero; None for any other.

        Each element is a number of its own. A sum that happens to be one of them is not in the second run.
        """
        count = int(self.starts[-1])
        if not count or count > 2**22 or any(self.node.input(slot).type.dtype.itemsize < 4 for slot in self.carried):
            return None
        first = self._sources(count)
        second = self._sources(count)
        if first is None or second is None or any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True)):
            return None
        return self._links((index, np.nonzero(s >= 0)[0], s[s >= 0]) for index, s in enumerate(first))

    def _sources(self, count: int) -> list[Array] | None:
        """Return which element each result is, -1 for zero; None if one is neither."""
        tags = 1 + self.rng.choice(2**23, count, replace=False) / 2**23
        order = np.argsort(tags)
        found = []
        for result in self.run(tags):
            places = np.minimum(np.searchsorted(tags, result, sorter=order), count - 1)
            sources = order[places]
            zero = result == 0
            if not np.all(zero | (tags[sources] == result)):
                return None
            found.append(np.where(zero, -1, sources))
        return found

    def units(self) -> Mapping[tuple[int, int], Links] | None:
        """Return the links of any linear node: one run for each element; None where that is too much work."""
        count = int(self.starts[-1])
        if count * sum(size_of(y) for y in self.node.results) > MOST_PROBED:
            return None
        pairs: list[list[tuple[Array, int]]] = [[] for _ in self.node.results]
        numbers = np.zeros(count)
        for element in range(count):
            numbers[element] = 1
            for index, result in enumerate(self.run(numbers)):
                pairs[index].append((np.nonzero(result)[0], element))
            numbers[element] = 0
            check_time()
        return self._links((index, np.concatenate([t for t, _ in found]),
                            np.repeat([s for _, s in found], [t.size for t, _ in found]))
                           for index, found in enumerate(pairs) if found)

    def _links(self, found: Iterable[tuple[int, Array, Array]]) -> Mapping[tuple[int, int], Links]:
        """Return links by output and operand, of places that count through all carried operands."""
        links: dict[tuple[int, int], Links] = {}
        for index, targets, sources in found:
            for place, slot in enumerate(self.carried):
                here = (sources >= self.starts[place]) & (sources < self.starts[place + 1])
                links[index, slot] = Links(targets[here], sources[here] - self.starts[place])
        return links
