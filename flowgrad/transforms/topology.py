"""The topology of a feed-forward network: read from networkx, checked, and grouped into layers of units.

A layer holds the units of one depth (the longest path from an input) and one activation. Its links are grouped into blocks:
units that all have the same sources make a complete matrix, the others share one block of single links.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from flowgrad.ir.errors import InputError, suggestion
from flowgrad.ir.graph import Array
from flowgrad.model import Model

if TYPE_CHECKING:
    import networkx as nx

INPUT, BIAS, HIDDEN, OUTPUT = "input", "bias", "hidden", "output"
KINDS = (INPUT, BIAS, HIDDEN, OUTPUT)

ALIASES = {"linear": "identity", "sigmoid": "logistic"}
"""Other names of activations."""

LARGE_SHARE = 8
"""Units of the same sources are a block of their own if it holds at least this part (an eighth) of the links of its layer."""


@dataclass(frozen=True)
class Block:
    """Units of one layer and the links into them.

    Link ``links[i]`` goes from ``sources[rows[i]]`` to ``units[columns[i]]``; link ``bias_links[i]`` is the bias of
    ``units[bias_columns[i]]``. ``sources`` are positions in the order of computation, rising; ``units`` are numbers of nodes.
    """

    units: Array
    sources: Array
    rows: Array
    columns: Array
    links: Array
    bias_columns: Array
    bias_links: Array

    @property
    def is_complete(self) -> bool:
        """True if every source is linked to every unit, in the order of a matrix of sources by units."""
        return len(self.links) == len(self.sources) * len(self.units)

    @property
    def has_all_biases(self) -> bool:
        """True if every unit has a bias, in their order."""
        return len(self.bias_links) == len(self.units)


@dataclass(frozen=True)
class Layer:
    """Units of one depth and one activation (of one group, for softmax), in the order of their columns."""

    depth: int
    activation: str | Model
    blocks: list[Block]

    @property
    def units(self) -> Array:
        return np.concatenate([block.units for block in self.blocks])


@dataclass
class Topology:
    """The nodes and links of a network by number, and its layers.

    ``nodes`` and ``links`` are in the order of networkx; ``position`` is the place of each node in the order of computation
    (the inputs first), -1 for a bias. ``names[i]`` is the parameter that link i shares, "" for one of its own.
    """

    nodes: list[Hashable]
    inputs: list[int]
    biases: list[int]
    outputs: list[int]
    links: list[tuple[Hashable, Hashable]]
    sources: Array
    targets: Array
    weights: Array
    names: list[str]
    layers: list[Layer] = field(default_factory=list)
    position: Array = field(default_factory=lambda: np.empty(0, np.int64))


def read_topology(graph: nx.DiGraph[Any], outputs: Sequence[Hashable] | None) -> Topology:
    """Return the topology of a networkx graph. Raises InputError for what is no feed-forward network."""
    if not all(hasattr(graph, name) for name in ("nodes", "edges", "is_directed")):
        raise InputError(f"a network is made of a networkx.DiGraph, not of {type(graph).__name__}", code="type")
    if not graph.is_directed() or graph.is_multigraph():
        raise InputError("a network is made of a networkx.DiGraph: links have one direction, and between two units there is "
                         "one (the weights of parallel links add up to one)", code="type")
    nodes = list(graph.nodes)
    numbers = {name: i for i, name in enumerate(nodes)}
    kinds = [_kind(graph, name) for name in nodes]
    links = list(graph.edges)
    sources = np.fromiter((numbers[u] for u, _ in links), np.int64, len(links))
    targets = np.fromiter((numbers[v] for _, v in links), np.int64, len(links))
    names = [_parameter(link, name) for *link, name in graph.edges(data="parameter", default="")]
    found = Topology(nodes, [i for i, k in enumerate(kinds) if k == INPUT], [i for i, k in enumerate(kinds) if k == BIAS],
                     _outputs(nodes, numbers, kinds, outputs, sources), links, sources, targets, np.empty(0), names)
    _check_ends(found, kinds)
    found.weights = _weights(graph, found)
    activations = {i: _activation(graph, nodes[i]) for i, k in enumerate(kinds) if k in (HIDDEN, OUTPUT)}
    _Grouping(graph, found, activations).run()
    return found


# ---- attributes -----------------------------------------------------------------------------------------------------------


def _kind(graph: nx.DiGraph[Any], name: Hashable) -> str:
    kind = graph.nodes[name].get("kind", HIDDEN)
    if kind not in KINDS:
        raise InputError(f"node {name!r} has the kind {kind!r}; kinds are {', '.join(KINDS)}{suggestion(str(kind), KINDS)}",
                         code="kind")
    return str(kind)


def _activation(graph: nx.DiGraph[Any], name: Hashable) -> tuple[str | Model, Hashable]:
    """Return the activation of a unit, and its group."""
    data = graph.nodes[name]
    found = data.get("activation")
    if found is None:
        raise InputError(f"unit {name!r} has no activation: give the node the attribute, 'identity' for a linear unit",
                         code="activation")
    if not isinstance(found, (str, Model)):
        raise InputError(f"the activation of unit {name!r} is a name or a Model of one input and one output, not "
                         f"{type(found).__name__}", code="activation")
    return ALIASES.get(found, found) if isinstance(found, str) else found, data.get("group", "")


def _parameter(link: Sequence[Hashable], name: object) -> str:
    if not isinstance(name, str):
        raise InputError(f"link {tuple(link)!r} names its shared parameter {name!r}: a name is text", code="parameter")
    return name


def _outputs(nodes: Sequence[Hashable], numbers: dict[Hashable, int], kinds: Sequence[str], chosen: Sequence[Hashable] | None,
             sources: Array) -> list[int]:
    """Return the output units: those chosen, else those of the kind, else those that no link leaves."""
    if chosen is not None:
        if isinstance(chosen, str):
            raise InputError(f"outputs= is a list of nodes, as in outputs=[{chosen!r}]", code="outputs")
        unknown = [name for name in chosen if name not in numbers]
        if unknown:
            raise InputError(f"no node {unknown[0]!r} to be an output{suggestion(str(unknown[0]), map(str, nodes))}",
                             code="outputs")
        found = [numbers[name] for name in chosen]
    else:
        leaving = set(sources.tolist())
        found = [i for i, k in enumerate(kinds) if k == OUTPUT] or [
            i for i, k in enumerate(kinds) if k == HIDDEN and i not in leaving]
    if not found and chosen is None and HIDDEN in kinds:
        raise InputError("every unit is linked to a further one, so none is an output and some form a cycle: a feed-forward network "
                         "has none; unroll the steps of a recurrent one, with shared parameters", code="cycle")
    if not found or len(set(found)) != len(found):
        raise InputError("a network has one or more output units, each once: give nodes kind='output', or name them in outputs",
                         code="outputs")
    for i in found:
        if kinds[i] in (INPUT, BIAS):
            raise InputError(f"output {nodes[i]!r} is of the kind {kinds[i]}: an output is a unit", code="outputs")
    return found


def _check_ends(topology: Topology, kinds: Sequence[str]) -> None:
    """Raise InputError for links into inputs, units without links, and units of two biases."""
    nodes, biases = topology.nodes, set(topology.biases)
    entered: set[int] = set()
    biased: set[int] = set()
    for source, target in zip(topology.sources.tolist(), topology.targets.tolist(), strict=True):
        if kinds[target] in (INPUT, BIAS):
            raise InputError(f"a link enters {nodes[target]!r}, which is of the kind {kinds[target]}: turn it round, or make "
                             "the node a unit", code="link")
        if source in biases:
            if target in biased:
                raise InputError(f"unit {nodes[target]!r} has two biases: one link with their sum is the same", code="link")
            biased.add(target)
        entered.add(target)
    if not topology.inputs:
        raise InputError("a network has one or more inputs: give nodes kind='input'", code="inputs")
    bare = [nodes[i] for i, k in enumerate(kinds) if k in (HIDDEN, OUTPUT) and i not in entered]
    if bare:
        raise InputError(f"unit {bare[0]!r} has no inputs{_more(bare)}: link something to it, or give the node kind='input' or "
                         "kind='bias'", code="unit")


def _weights(graph: nx.DiGraph[Any], topology: Topology) -> Array:
    """Return the weight of each link; one that shares a parameter may leave it to another."""
    given = [weight for _, _, weight in graph.edges(data="weight")]
    shared: dict[str, tuple[float, Any]] = {}
    for link, name, weight in zip(topology.links, topology.names, given, strict=True):
        if weight is None:
            continue
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
            raise InputError(f"the weight of link {link!r} is {weight!r}: a finite number is expected", code="weight")
        if name and shared.setdefault(name, (float(weight), link))[0] != float(weight):
            raise InputError(f"links {shared[name][1]!r} and {link!r} share the parameter {name!r} and have different weights "
                             f"({shared[name][0]!r} and {float(weight)!r}): give one of them", code="weight")
    missing = [link for link, name, weight in zip(topology.links, topology.names, given, strict=True)
               if weight is None and name not in shared]
    if missing:
        raise InputError(f"link {missing[0]!r} has no weight{_more(missing)}: give the edge the attribute weight, or the "
                         "attribute parameter, shared with a link that has one", code="weight")
    return np.array([shared[name][0] if name else float(weight)
                     for name, weight in zip(topology.names, given, strict=True)], np.float64)


def _more(items: Sequence[Any]) -> str:
    return f" (and {len(items) - 1:,} more)" if len(items) > 1 else ""


# ---- layers ---------------------------------------------------------------------------------------------------------------


class _Grouping:
    """Finds the depth of each unit, and makes layers and blocks of them."""

    def __init__(self, graph: nx.DiGraph[Any], topology: Topology,
                 activations: dict[int, tuple[str | Model, Hashable]]) -> None:
        self.graph, self.topology, self.activations = graph, topology, activations
        self.order = np.argsort(topology.targets, kind="stable")
        """The links, by the unit that they enter."""
        counts = np.bincount(topology.targets, minlength=len(topology.nodes))
        self.first = np.concatenate([[0], np.cumsum(counts)])
        self.is_bias = np.zeros(len(topology.nodes), bool)
        self.is_bias[topology.biases] = True
        self.is_shared = np.array([bool(name) for name in topology.names], bool)

    def run(self) -> None:
        """Fill in the layers and positions of the topology."""
        topology = self.topology
        position = np.full(len(topology.nodes), -1, np.int64)
        position[topology.inputs] = np.arange(len(topology.inputs))
        topology.position = position
        taken = len(topology.inputs)
        for (depth, *_), (activation, units) in self._classes().items():
            blocks = []
            for chosen in self._alike(units):
                block = self._block(chosen)
                position[block.units] = np.arange(taken, taken + len(block.units))
                taken += len(block.units)
                blocks.append(block)
            topology.layers.append(Layer(depth, activation, blocks))

    def _classes(self) -> dict[tuple[Any, ...], tuple[str | Model, list[int]]]:
        """Return the units of each layer, by depth and activation; models are told apart as objects, softmax by group."""
        depths = self._depths()
        found: dict[tuple[Any, ...], tuple[str | Model, list[int]]] = {}
        for unit in sorted(self.activations, key=depths.__getitem__):
            activation, group = self.activations[unit]
            kind = activation if isinstance(activation, str) else id(activation)
            key = (depths[unit], kind, group if activation == "softmax" else "")
            found.setdefault(key, (activation, []))[1].append(unit)
        return found

    def _depths(self) -> list[int]:
        """Return the longest path from an input to each node; the units of a softmax group are reached together."""
        members = self._members()
        heads = np.array(members)[self.topology.sources].tolist(), np.array(members)[self.topology.targets].tolist()
        following: dict[int, list[int]] = {}
        waiting = [0] * len(members)
        for source, target in zip(*heads, strict=True):
            following.setdefault(source, []).append(target)
            waiting[target] += 1
        depths = [0] * len(members)
        ready = deque(i for i, head in enumerate(members) if head == i and not waiting[i])
        done = len(ready)
        while ready:
            source = ready.popleft()
            for target in following.get(source, ()):
                depths[target] = max(depths[target], depths[source] + 1)
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)
                    done += 1
        if done < len(set(members)):
            raise InputError(self._cycle(), code="cycle")
        return [depths[head] for head in members]

    def _members(self) -> list[int]:
        """Return, for each node, the first of its softmax group, or itself."""
        heads: dict[Hashable, int] = {}
        found = list(range(len(self.topology.nodes)))
        for unit, (activation, group) in self.activations.items():
            if activation == "softmax":
                found[unit] = heads.setdefault(group, unit)
        return found

    def _cycle(self) -> str:
        import networkx as nx

        try:
            links = nx.find_cycle(self.graph)
        except nx.NetworkXNoCycle:
            return ("a unit of a softmax group is linked, directly or through others, to a unit of the same group: units whose "
                    "softmax is one are computed together; give them different groups")
        shown = " -> ".join(repr(link[0]) for link in [*links[:8], links[0]][: len(links) + 1])
        return (f"the links form a cycle, {shown}{' ...' if len(links) > 8 else ''}: a feed-forward network has none; unroll "
                "the steps of a recurrent one, with shared parameters")

    def _incoming(self, units: Iterable[int]) -> Array:
        """Return the links into some units, those into one after those into another."""
        return np.concatenate([self.order[self.first[u]:self.first[u + 1]] for u in units])

    def _alike(self, units: list[int]) -> list[list[int]]:
        """Return the units in parts: each a large part of the same sources and no shared weights, at last the rest."""
        parts: dict[bytes, list[int]] = {}
        rest: list[int] = []
        for unit in units:
            links = self._incoming([unit])
            if self.is_shared[links].any():
                rest.append(unit)
            else:
                parts.setdefault(np.sort(self.topology.sources[links]).tobytes(), []).append(unit)
        total = sum(int(self.first[u + 1] - self.first[u]) for u in units)
        large = []
        for key, part in parts.items():
            if len(parts) == 1 and not rest or len(key) // 8 * len(part) * LARGE_SHARE >= total:
                large.append(part)
            else:
                rest += part
        return [*large, rest] if rest else large

    def _block(self, units: list[int]) -> Block:
        """Return the block of some units, whose sources have positions."""
        topology = self.topology
        links = self._incoming(units)
        columns = np.repeat(np.arange(len(units)), [self.first[u + 1] - self.first[u] for u in units])
        is_bias = self.is_bias[topology.sources[links]]
        inner, inner_columns = links[~is_bias], columns[~is_bias]
        sources, rows = np.unique(topology.position[topology.sources[inner]], return_inverse=True)
        order = np.lexsort((inner_columns, rows))
        return Block(np.array(units), sources, rows[order], inner_columns[order], inner[order], columns[is_bias],
                     links[is_bias])
