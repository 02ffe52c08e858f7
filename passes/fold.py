"""The fold pass: computes beforehand what depends on constants alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flowgrad.ir.errors import FlowgradError
from flowgrad.ir.evaluate import call_node
from flowgrad.ir.graph import CONSTANT, INITIALIZER, INLINE_ELEMENTS, LITERAL, Array, Graph, Node, Value
from flowgrad.ir.limits import Limits, Meter, check_time
from flowgrad.ir.ops.registry import Trait, is_random, opdef
from flowgrad.ir.types import Type
from flowgrad.passes.edits import all_graphs, is_pinned, is_shared, remove_dead, substitute
from flowgrad.passes.registry import pass_
from flowgrad.passes.rewrite import permitted

GROWTH = 65_536
"""A result of more bytes than this is folded only if it is no larger than its operands."""


STEPS = 1_000
"""Calls of subgraphs that folding one node may take: a longer loop is left for the run."""

INNER_BYTES = 1 << 24
"""The largest value in a subgraph that may be computed while folding."""


@pass_("fold", kind="exact")
def fold(graph: Graph, *, limit: int = 2**20, shared: bool = False) -> None:
    """Replace what is computed from constants, or known from types, by constants of at most ``limit`` bytes.

    Parameters are never folded, nor random or pinned nodes; a node that fails is left for the run to report. A weight
    with several users keeps them all, so that it goes on to stand for itself in derivatives and ``with_params``; with
    ``shared``, those that can be folded are: for a graph that will only be run.
    """
    for inner in all_graphs(graph):
        _Folder(inner, limit, shared).run()


def folding_limits(limits: Limits) -> Limits:
    """Return what folding one node may use."""
    return replace(limits, loop_steps=min(limits.loop_steps, STEPS), tensor_bytes=min(limits.tensor_bytes, INNER_BYTES))


def _nbytes(type_: Type) -> int:
    return math.prod(type_.static_shape) * type_.dtype.itemsize


class _Folder:
    def __init__(self, graph: Graph, limit: int, shared: bool) -> None:
        self.graph = graph
        self.limit = limit
        self.shared = shared
        self.known: dict[Value, Array] = {}  # what folded nodes computed and somebody still needs
        self.weights: set[Value] = set()  # those of them that come from an initializer
        self.left: dict[Value, int] = {}
        self.several: dict[Value, bool] = {}  # weights seen, and whether they are shared: counting users takes time
        self.folded: list[Node] = []
        self.limits = folding_limits(graph.limits)

    def run(self) -> None:
        for node in self.graph.nodes():
            results = self.results(node)
            if results is not None and permitted("fold", node):
                self.take(node, results)
                self.release(node)
        mapping = {value: self.constant(value, array) for value, array in self.known.items()}
        substitute(self.graph, mapping)
        remove_dead(self.graph, self.folded[::-1])

    def results(self, node: Node) -> Sequence[Array | None] | None:
        """Return the outputs of a node that can be folded, else None."""
        check_time()
        first = node.outputs[0] if node.outputs else None
        if first is not None and first.symbolic is None:
            for given in node.inputs:
                if given is not None and self.array(given) is None:
                    return None  # neither known from types nor computed from constants, like most
        if is_pinned(self.graph, node) or any(v.type.dtype.element is not None for v in node.results):
            return None  # constants are tensors
        if is_known(node):
            return None if is_random(node) else [None if v is None else _static_value(v) for v in node.outputs]
        operands = [None if v is None else self.array(v) for v in node.inputs]
        if node.captures or any(a is None and v is not None for a, v in zip(operands, node.inputs, strict=True)):
            return None
        if not self.shared and any(self.is_shared_weight(v) for v in node.inputs):
            return None
        if is_random(node) or not self.is_worth_it(node, operands):
            return None
        try:
            results = call_node(node, operands, [], None, Meter(self.limits))
        except FlowgradError:
            return None  # the run reports it, if it ever gets there
        return results if all(a is None or a.nbytes <= self.limit for a in results) else None

    def array(self, value: Value) -> Array | None:
        constant = value.constant
        return constant if constant is not None else self.known.get(value)

    def is_weight(self, value: Value | None) -> bool:
        return value is not None and (value in self.weights or value.producer.role == INITIALIZER)

    def is_shared_weight(self, value: Value | None) -> bool:
        """Return whether a float that a user can name has other users than one."""
        if value is None or not self.is_weight(value):
            return False
        if value not in self.several:
            self.several[value] = is_shared(value, apart_from=is_known)
        return self.several[value]

    def is_worth_it(self, node: Node, operands: Sequence[Array | None]) -> bool:
        taken = sum(a.nbytes for a in operands if a is not None)
        if Trait.NON_DIFFERENTIABLE in opdef(node.op).traits and node.subgraphs:
            return False
        inner = [v for g in node.subgraphs.values() for _, n in g.walk() for v in n.results]
        if any(not v.type.is_static or _nbytes(v.type) > INNER_BYTES for v in inner):
            return False
        total = 0
        for value in node.results:
            if not value.type.is_static:
                return Trait.BOUNDED in opdef(node.op).traits and taken <= self.limit
            total += _nbytes(value.type)
        return total <= self.limit and (total <= GROWTH or total <= taken)

    def take(self, node: Node, results: Sequence[Array | None]) -> None:
        self.folded.append(node)
        is_weight = any(self.is_weight(v) for v in node.inputs)
        for value, array in zip(node.outputs, results, strict=True):
            if value is not None and array is not None and value.uses:
                self.known[value] = array
                self.left[value] = len(value.uses)
                if is_weight and array.ndim:
                    self.weights.add(value)

    def release(self, node: Node) -> None:
        """Forget an array when the last of its users is folded, so that no more than the frontier is held."""
        for value in node.operands:
            if value in self.left:
                self.left[value] -= 1
                if not self.left[value]:
                    self.known.pop(value, None)

    def constant(self, value: Value, array: Array) -> Value:
        """Return the constant for ``value``, under its name unless it is a small literal."""
        is_weight = value in self.weights and value.type.dtype.is_float
        if array.size <= INLINE_ELEMENTS and not is_weight:
            return self.graph.add_constant(array)
        name = value.name
        self.graph.rename(value, self.graph.unique_name(f"{name}_folded"))
        return self.graph.add_constant(array, name, INITIALIZER if is_weight else LITERAL)


def is_known(node: Node) -> bool:
    """Return whether types alone determine the results of a node."""
    return all(_static_value(v) is not None for v in node.results)


def _static_value(value: Value) -> Array | None:
    """Return the array of an integer value that types determine."""
    if value.producer.op == CONSTANT or value.symbolic is None or not value.type.dtype.is_integer:
        return None
    if any(not isinstance(n, (int, np.integer)) for n in value.symbolic.flat):
        return None
    return np.array(value.symbolic.tolist(), value.type.dtype.numpy).reshape(value.symbolic.shape)
