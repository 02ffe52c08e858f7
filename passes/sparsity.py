"""Structural sparsity: which elements of derivatives can be other than zero, whatever the inputs are.

Sets of input elements are carried through the tangent graph, which is linear in the tangents. Elementwise operators pass
them on from place to place. The structure of others is read off the operator itself, run on numbers that tell where each
element goes. Branches are gone through, and bodies of loops, iteration by iteration or until nothing is added. Where an
operator does not let itself be read, every element of its results depends on every element of its operands, and a value
whose extents are not known is one set for all its elements: a pattern may hold too much, never too little.
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
from flowgrad.ir.ops.control.loop_layout import Layout, layout_of
from flowgrad.ir.ops.registry import Trait, is_random, opdef
from flowgrad.ir.reach import dependents, needed_nodes, path_nodes
from flowgrad.passes.differentiate import tangent

MOST_PROBED = 2**31
"""The most numbers that may be looked at to read one operator, one run for each element of its operands."""

MOST_STEPS = 2**16
"""The most nodes in all iterations of a Scan that is gone through one by one, and nodes in all rounds of one that is not."""


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
    def empty(height: int, width: int) -> Pattern:
        """Return the pattern without entries."""
        return Pattern(height, width, np.zeros(0, np.int64))

    @staticmethod
    def joined(height: int, width: int, parts: Sequence[Pattern]) -> Pattern:
        """Return the union of patterns of the same extents."""
        if len(parts) == 1:
            return parts[0]
        return Pattern(height, width, np.unique(np.concatenate([np.zeros(0, np.int64), *(p.entries for p in parts)])))

    def gathered(self, height: int) -> Pattern:
        """Return the pattern in which each of ``height`` rows holds what any row holds here."""
        columns = np.unique(self.columns)
        entries = np.arange(height, dtype=np.int64)[:, None] * self.width + columns
        return Pattern(height, self.width, entries.reshape(-1))

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

    ``graph`` gains the tangents that are looked at: give a copy. The shapes of ``xs`` and ``ys`` must be static. Raises
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
            pattern = _fitted(pattern, y)
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


def _is_known(value: Value) -> bool:
    return value.type.dtype.element is None and value.type.is_static


def _height(value: Value) -> int:
    """Return how many sets a value has: one for each element, or one for all where it is not known how many there are."""
    return size_of(value) if _is_known(value) else 1


class _Reader:
    """Carries patterns through what is computed from tangents, up to the values ``wanted``."""

    def __init__(self, graph: Graph, wanted: Sequence[Value], width: int, known: Mapping[Value, Array] | None = None
                 ) -> None:
        self.graph, self.wanted, self.width = graph, list(wanted), width
        self.given = dict(known or {})
        self.patterns: dict[Value, Pattern] = {}
        self.rng = np.random.default_rng(0)
        self.order: list[Node] | None = None
        self.links: dict[tuple[Node, tuple[int, ...]], Mapping[tuple[int, int], Links] | None] = {}

    def run(self, dots: Sequence[Value]) -> None:
        """Find the patterns of the values wanted from those of ``dots``, which are there already."""
        if self.order is None:
            self.order = path_nodes(self.graph.nodes(), dots, self.wanted)
            self.known = _known_arrays(self.graph, (v for node in self.order for v in node.operands), self.given)
        for node in self.order:
            check_time()
            carried = [slot for slot, v in enumerate(node.inputs) if v in self.patterns]
            if not carried and not any(v in self.patterns for v in node.captures):
                continue
            found = self._through_bodies(node) or (
                (self._elementwise(node, carried) or self._read(node, carried)) if _is_open_nowhere(node) else None)
            self.patterns.update(found or self._dense(node))

    def results(self, given: Mapping[Value, Pattern]) -> list[Pattern]:
        """Return the patterns of the outputs of a body whose inputs have the patterns ``given``."""
        self.patterns = dict(given)
        self.run(self.graph.inputs)
        return [self.patterns.get(y) or Pattern.empty(_height(y), self.width) for y in self.wanted]

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
        parts = [self.patterns[v].gathered(1) for v in node.operands if v in self.patterns]
        whole = Pattern.joined(1, self.width, parts)
        found = {}
        for y in node.results:
            if y.type.dtype.carries:
                self.graph.limits.check("tensor_bytes", 8 * _height(y) * whole.entries.size, describe(node))
                found[y] = whole.gathered(_height(y))
        return found

    # ---- branches and loops -------------------------------------------------------------------------------------------------

    def _through_bodies(self, node: Node) -> dict[Value, Pattern] | None:
        """Go through the subgraphs of a node; None for one that has none, or whose loops are too long for that."""
        if node.op == "If":
            return _through_branches(self, node)
        return _through_loop(self, node) if node.op in ("Loop", "Scan") else None

    def body(self, node: Node, name: str) -> _Reader:
        """Return a reader of a subgraph of ``node``, which knows what it captures."""
        graph = node.subgraphs[name]
        formals = graph.inputs[len(graph.inputs) - len(node.captures):]
        known = {formal: self.known[x] for formal, x in zip(formals, node.captures, strict=True) if x in self.known}
        return _Reader(graph, graph.outputs, self.width, known)

    # ---- operators that are read ------------------------------------------------------------------------------------------

    def _read(self, node: Node, carried: Sequence[int]) -> dict[Value, Pattern] | None:
        """Read the operator off runs of it; None where runs do not tell."""
        key = (node, tuple(carried))
        if key not in self.links:
            self.links[key] = self._linked(node, carried)
        links = self.links[key]
        if links is None:
            return None
        found: dict[Value, Pattern] = {}
        for (index, slot), (targets, sources) in links.items():
            y = node.output(index)
            part = self.patterns[node.input(slot)].led(size_of(y), targets, sources)
            found[y] = Pattern.joined(size_of(y), self.width, [found[y], part] if y in found else [part])
        return found

    def _linked(self, node: Node, carried: Sequence[int]) -> Mapping[tuple[int, int], Links] | None:
        arrays = self._others(node, carried)
        if arrays is None:
            return None
        probe = _Probe(node, carried, arrays, self.rng)
        try:
            return probe.moved() or probe.units()
        except FlowgradError:
            return None  # it does not run on these numbers: nothing is claimed of it

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


def _is_open_nowhere(node: Node) -> bool:
    """Return whether the extents of all floats that a node takes and gives are known."""
    return all(_is_known(v) for v in (*node.operands, *node.results) if v.type.dtype.carries)


def _through_branches(reader: _Reader, node: Node) -> dict[Value, Pattern]:
    """Either branch may be taken."""
    halves = []
    for name in node.subgraphs:
        inner = reader.body(node, name)
        formals = zip(inner.graph.inputs, node.captures, strict=True)
        given = {formal: _fitted(reader.patterns[x], formal) for formal, x in formals if x in reader.patterns}
        halves.append(inner.results(given))
    found = {}
    for k, y in enumerate(node.outputs):
        if y is not None and y.type.dtype.carries:
            found[y] = Pattern.joined(_height(y), reader.width, [_fitted(half[k], y) for half in halves])
    return found


def _fitted(pattern: Pattern, value: Value) -> Pattern:
    """Return a pattern that was found for another type of ``value``."""
    return pattern if pattern.height == _height(value) and _is_known(value) else pattern.gathered(_height(value))


def _through_loop(reader: _Reader, node: Node) -> dict[Value, Pattern] | None:
    """One iteration after the other where a Scan has few; else what any iteration may do. None if that takes too long."""
    layout, inner = layout_of(node), reader.body(node, "body")
    length = layout.length(node) if layout.scan_inputs else None
    size = len(inner.graph.entries)
    scanned = node.inputs[layout.states :] if layout.scan_inputs else ()
    stacked = [y for y in node.outputs[layout.states :] if y is not None and y.type.dtype.carries]
    are_known = all(_is_known(x) for x in (*scanned, *stacked) if x)
    steps = length if isinstance(length, int) and length * size <= MOST_STEPS and are_known else None
    return _Iterated(reader, node, layout, inner).run(steps, MOST_STEPS // size)


class _Iterated:
    """A Loop or Scan whose iterations are gone through, each by itself (of as many as said) or as any of them."""

    def __init__(self, reader: _Reader, node: Node, layout: Layout, inner: _Reader) -> None:
        self.reader, self.node, self.layout, self.inner = reader, node, layout, inner
        formals = inner.graph.inputs
        first = len(formals) - len(node.captures)
        captured = zip(formals[first:], node.captures, strict=True)
        self.given = {formal: _fitted(reader.patterns[x], formal) for formal, x in captured if x in reader.patterns}
        self.states: dict[int, Pattern] = {}
        for k, (i, _) in enumerate(layout.links):
            x = node.inputs[i]
            if x in reader.patterns:
                self.states[k] = _fitted(reader.patterns[x], formals[i])
        self.parts: dict[int, list[Pattern]] = {}

    def run(self, steps: int | None, most: int) -> dict[Value, Pattern] | None:
        """Return the patterns of the results; None where they still grow after as many rounds as allowed."""
        if steps is not None:
            for step in range(steps):
                results = self._results(step)
                self._stack(results, step, steps)
                self.states = self._after(results)
            return self._found()
        for _ in range(most):
            results, before = self._results(None), self.states
            self.states = {k: Pattern.joined(p.height, p.width, [p, before[k]] if k in before else [p])
                           for k, p in self._after(results).items()}
            if all(k in before and p.entries.size == before[k].entries.size for k, p in self.states.items()):
                self._stack(results, None, 0)
                return self._found()
        return None

    def _results(self, step: int | None) -> list[Pattern]:
        formals, layout = self.inner.graph.inputs, self.layout
        given = dict(self.given)
        given.update({formals[layout.links[k][0]]: p for k, p in self.states.items()})
        for k in range(layout.scan_inputs):
            x = self.node.inputs[layout.states + k]
            if x in self.reader.patterns:
                formal = formals[layout.first_scan_input + k]
                given[formal] = self._slice(self.reader.patterns[x], x, formal, k, step)
        return self.inner.results(given)

    def _slice(self, pattern: Pattern, x: Value, formal: Value, k: int, step: int | None) -> Pattern:
        """Return the pattern of one slice of a scanned value, or of any of them."""
        if not _is_known(x) or not _is_known(formal):
            return pattern.gathered(_height(formal))
        rows = np.moveaxis(np.arange(size_of(x)).reshape(x.type.static_shape), self.layout.input_axis(k), 0)
        if step is not None:
            rows = rows[[len(rows) - 1 - step if self.layout.input_direction(k) else step]]
        return pattern.led(size_of(formal), np.tile(np.arange(size_of(formal)), len(rows)), rows.reshape(-1))

    def _after(self, results: Sequence[Pattern]) -> dict[int, Pattern]:
        """Return the patterns of the states that the next iteration is given."""
        formals = self.inner.graph.inputs
        return {k: _fitted(results[o], formals[i]) for k, (i, o) in enumerate(self.layout.links)
                if formals[i].type.dtype.carries}

    def _stack(self, results: Sequence[Pattern], step: int | None, steps: int) -> None:
        """Put the slices of one iteration into what is stacked, or those of any iteration everywhere."""
        for k, pattern in enumerate(results[self.layout.first_scan_output:]):
            index = self.layout.states + k
            y = self.node.outputs[index]
            if y is None or not y.type.dtype.carries:
                continue
            if not _is_known(y) or pattern.height * y.type.static_shape[self.layout.output_axis(k)] != size_of(y):
                self.parts.setdefault(index, []).append(pattern.gathered(_height(y)))
                continue
            rows = np.moveaxis(np.arange(size_of(y)).reshape(y.type.static_shape), self.layout.output_axis(k), 0)
            if step is not None:
                rows = rows[[steps - 1 - step if self.layout.output_direction(k) else step]]
            targets = rows.reshape(-1)
            sources = np.tile(np.arange(pattern.height), len(rows))
            self.parts.setdefault(index, []).append(pattern.led(size_of(y), targets, sources))

    def _found(self) -> dict[Value, Pattern]:
        found = {}
        for index, y in enumerate(self.node.outputs):
            if y is None or not y.type.dtype.carries:
                continue
            parts = [self.states[index]] if index in self.states else self.parts.get(index, [])
            found[y] = Pattern.joined(_height(y), self.reader.width, [_fitted(p, y) for p in parts])
        return found


def _known_arrays(graph: Graph, values: Iterable[Value], given: Mapping[Value, Array]) -> dict[Value, Array]:
    """Return the arrays of those values, and of what they are computed from, that no run can change; ``given`` are inputs."""
    order = graph.nodes()
    fed = dependents(order, [*(v for v in graph.inputs if v not in given), *graph.parameters])
    known: dict[Value, Array] = {v: v.producer.data for v in graph.constants
                                 if v.producer.data is not None and v.producer.role not in FEEDABLE}
    known.update(given)
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
