"""Makes random valid graphs: every node is run on two sets of inputs while the graph grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import FlowgradError
from flowgrad.ir.evaluate import call_node
from flowgrad.ir.graph import PARAMETER, Array, Graph, Value
from flowgrad.ir.types import BOOL, Dim, DimLike, DType, Type, dtype_of

WORLDS = 2
"""Every graph comes with this many sets of inputs, of different shapes where dims are named."""

NAMES = ("N", "M", "K")


class Rejected(Exception):
    """A node that does not fit: it is left out and another one is tried."""


@dataclass
class Sample:
    """A random graph with inputs for it, and what was left out on the way."""

    graph: Graph
    feeds: list[dict[str, Array]]
    smooth: bool
    rejected: dict[str, str] = field(default_factory=dict)


Kind = Callable[["Maker"], Any]
KINDS: list[tuple[Kind, float]] = []
"""Every way to add nodes that was declared, in order: the graph of a seed depends on it."""


def kind(weight: float = 1.0, into: list[tuple[Kind, float]] = KINDS) -> Callable[[Kind], Kind]:
    """Declare a way to add nodes, and how often it is taken."""

    def declare(function: Kind) -> Kind:
        into.append((function, weight))
        return function

    return declare


class Maker:
    """A graph in the making, with the arrays of every value in every world."""

    kinds: Sequence[tuple[Kind, float]] = KINDS

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph(f"fuzz{seed}")
        self.b = Builder(self.graph)
        self.smooth = self.chance(0.8)
        self.dtype = dtype_of(str(self.rng.choice(["float64", "float32", "float16"], p=[0.6, 0.28, 0.12])))
        self.named = self.chance(0.5)
        self.empty = 0.04 if self.chance(0.3) else 0.0
        self.env = [{n: int(self.rng.choice([1, 2, 3, 4])) for n in NAMES} for _ in range(WORLDS)]
        if self.empty and self.chance(0.3):
            self.env[1]["N"] = 0
        self.feeds: list[dict[str, Array]] = [{} for _ in range(WORLDS)]
        self.arrays: dict[Value, list[Array]] = {}
        self.rejected: dict[str, str] = {}

    # ---- chance -------------------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return bool(self.rng.random() < probability)

    def one_of(self, items: Sequence[Any]) -> Any:
        """Return one of ``items``; Rejected if there is none."""
        if not len(items):
            raise Rejected("nothing to choose from")
        return items[int(self.rng.integers(len(items)))]

    def dim(self) -> DimLike:
        """Return a static or named extent."""
        if self.named and self.chance(0.35):
            return Dim.named(self.one_of(NAMES))
        return 0 if self.chance(self.empty) else int(self.rng.choice([1, 2, 3, 4], p=[0.2, 0.35, 0.3, 0.15]))

    def shape(self, rank: int | None = None) -> tuple[DimLike, ...]:
        """Return a random shape."""
        count = int(self.rng.choice(5, p=[0.12, 0.25, 0.33, 0.2, 0.1])) if rank is None else rank
        return tuple(self.dim() for _ in range(count))

    # ---- leaves -------------------------------------------------------------------------------------------------------

    def data(self, dtype: DType, shape: Sequence[int]) -> Array:
        """Return random numbers; integers are small, some of them negative."""
        if dtype == BOOL:
            return np.asarray(self.rng.integers(0, 2, shape)).astype(bool)
        if dtype.is_integer:
            return np.asarray(self.rng.integers(-3, 5, shape)).astype(dtype.numpy)
        array = np.asarray(self.rng.standard_normal(shape))
        if not self.smooth and array.size and self.chance(0.3):
            special = self.rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, 65504.0], array.shape)
            array = np.where(self.rng.random(array.shape) < 0.2, special, array)
        return array.astype(dtype.numpy)

    def input(self, dtype: DType | None = None, shape: Sequence[DimLike] | None = None,
              make: Callable[[tuple[int, ...]], Array] | None = None) -> Value:
        """Add a graph input."""
        dtype, dims = dtype or self.dtype, self.shape() if shape is None else tuple(shape)
        value = self.graph.add_input(self.graph.unique_name("x"), Type(dtype, dims))
        self.arrays[value] = []
        for world in range(WORLDS):
            concrete = tuple(d.evaluate(self.env[world]) if isinstance(d, Dim) else d for d in dims)
            array = (make or (lambda s: self.data(dtype, s)))(concrete)
            self.feeds[world][value.name] = array
            self.arrays[value].append(array)
        return value

    def constant(self, array: Array) -> Value:
        """Add a constant: a literal, an initializer or a parameter."""
        role = self.one_of(["", "initializer", PARAMETER])
        if not role or (role == PARAMETER and array.dtype.kind != "f"):
            return self.graph.add_constant(array)
        return self.graph.add_constant(array, self.graph.unique_name("w"), role)

    def leaf(self, shape: Sequence[DimLike], dtype: DType | None = None) -> Value:
        """Add an input or a constant of a shape; dims that are no plain names become 1."""
        dims = [d if isinstance(d, int) or (len(d.names()) == 1 and repr(d) in NAMES) else 1 for d in shape]
        static = [d for d in dims if isinstance(d, int)]
        if len(static) == len(dims) and self.chance(0.6):
            return self.constant(self.data(dtype or self.dtype, static))
        return self.input(dtype, dims)

    # ---- operands -----------------------------------------------------------------------------------------------------

    def seen(self, value: Value) -> list[Array]:
        """Return the arrays of a value, one a world."""
        if value not in self.arrays:
            data = value.producer.data
            assert data is not None, value
            self.arrays[value] = [data] * WORLDS
        return self.arrays[value]

    def extents(self, value: Value, world: int = 0) -> tuple[int, ...]:
        """Return the concrete shape of a value."""
        shape: tuple[int, ...] = self.seen(value)[world].shape
        return shape

    def rank(self, value: Value) -> int:
        """Return the concrete rank of a value."""
        return self.seen(value)[0].ndim

    def known(self, dtype: DType | None = None, rank: int | None = None, low: int = 0) -> list[Value]:
        """Return the values made so far that have a dtype and rank."""
        wanted = dtype or self.dtype
        return [v for v, a in self.arrays.items()
                if v.type.dtype == wanted and (rank is None or a[0].ndim == rank) and a[0].ndim >= low]

    def pick(self, rank: int | None = None, low: int = 0, dtype: DType | None = None) -> Value:
        """Return a value of the main float type (or ``dtype``); late ones more often; a leaf if none fits."""
        found = self.known(dtype, rank, low)
        if not found or self.chance(0.08):
            return self.leaf(self.shape(rank if rank is not None else max(low, int(self.rng.integers(low, 4)))), dtype)
        if self.chance(0.5):
            found = found[-4:]
        chosen: Value = self.one_of(found)
        return chosen

    def partner(self, x: Value, dtype: DType | None = None) -> Value:
        """Return a value that broadcasts with ``x`` in every world."""
        found = [v for v in self.known(dtype or x.type.dtype) if self.broadcasts(x, v)]
        if found and self.chance(0.75):
            chosen: Value = self.one_of(found)
            return chosen
        dims = list(x.type.shape or ())
        dims = [1 if self.chance(0.25) else d for d in dims][int(self.rng.integers(0, len(dims) + 1)) if dims else 0:]
        if self.chance(0.15) and len(dims) < 4:
            dims = [self.dim(), *dims]
        return self.leaf(dims, dtype or x.type.dtype)

    def broadcasts(self, *values: Value) -> bool:
        """Return whether values broadcast together in every world, to something small."""
        try:
            shapes = [np.broadcast_shapes(*(self.extents(v, w) for v in values)) for w in range(WORLDS)]
        except ValueError:
            return False
        return all(int(np.prod(s)) <= 3000 and len(s) <= 5 for s in shapes)

    def axis(self, x: Value) -> int:
        """Return an axis of a value of rank 1 or more, sometimes counted from the end."""
        rank = self.rank(x)
        if not rank:
            raise Rejected("no axes")
        return int(self.rng.integers(-rank, rank))

    def axes(self, x: Value) -> list[int]:
        """Return some axes, at least one."""
        rank = self.rank(x)
        if not rank:
            raise Rejected("no axes")
        count = int(self.rng.integers(1, rank + 1))
        return [int(a) - (rank if self.chance(0.3) else 0) for a in self.rng.permutation(rank)[:count]]

    # ---- nodes --------------------------------------------------------------------------------------------------------

    def emit(self, op: str, inputs: Sequence[Any], attributes: dict[str, Any] | None = None, outputs: int = 1,
             captures: Sequence[Value] = (), subgraphs: dict[str, Graph] | None = None) -> Value:
        """Add a node, run it in every world and return its first output; Rejected where it does not run."""
        try:
            node = self.b.add_node(op, inputs, attributes, outputs=outputs, captures=captures, subgraphs=subgraphs)
        except FlowgradError as error:
            raise Rejected(f"{op}: {error}") from error
        try:
            results = [self._run(node, world) for world in range(WORLDS)]
        except (FlowgradError, Rejected) as error:
            self.graph.remove(node)
            raise Rejected(f"{op}: {error}") from error
        for index, value in enumerate(node.outputs):
            if value is not None:
                self.arrays[value] = [r[index] for r in results]  # type: ignore[misc]
        return node.output(0)

    def _run(self, node: Any, world: int) -> list[Array | None]:
        inputs = [None if v is None else self.seen(v)[world] for v in node.inputs]
        captures = [self.seen(v)[world] for v in node.captures]
        results = call_node(node, inputs, captures, np.random.default_rng(0))
        for result in results:
            if result is None:
                continue
            if result.size > 20_000:
                raise Rejected("too large")
            if self.smooth and result.dtype.kind == "f" and result.size:
                limit = 300.0 if result.dtype == np.float16 else 1e4
                if not np.isfinite(result).all() or np.abs(result).max() > limit:
                    raise Rejected("large or not finite")
        return results

    # ---- the whole ----------------------------------------------------------------------------------------------------

    def make(self, most: int) -> Sample:
        """Return the graph."""
        for _ in range(int(self.rng.integers(1, 4))):
            self.input()
        functions = [f for f, _ in self.kinds]
        weights = np.array([w for _, w in self.kinds])
        wanted = int(self.rng.integers(1, most + 1)) if self.chance(0.5) else int(self.rng.integers(1, 9))
        for _ in range(3 * wanted):
            if len(self.graph.nodes()) >= wanted:
                break
            function = functions[int(self.rng.choice(len(functions), p=weights / weights.sum()))]
            try:
                function(self)
            except Rejected as error:
                self.rejected[function.__name__] = str(error)
        self._choose_outputs()
        return Sample(self.graph, self.feeds, self.smooth, self.rejected)

    def _choose_outputs(self) -> None:
        made = [v for v in self.arrays if v.producer.op not in ("Input", "Constant")]
        ends = [v for v in made if not v.uses]
        chosen = {v: None for v in ends if self.chance(0.7)}
        chosen.update((v, None) for v in made[-2:])
        for candidates, probability in ((made, 0.3), (self.graph.inputs, 0.1), (self.graph.constants, 0.05)):
            if candidates and self.chance(probability):
                chosen[self.one_of(candidates)] = None
        if not chosen:
            chosen[self.graph.inputs[0]] = None
        for k, value in enumerate(chosen):
            self.graph.add_output(value, f"y{k}")
        if self.chance(0.05):
            self.graph.add_output(next(iter(chosen)), "again")

