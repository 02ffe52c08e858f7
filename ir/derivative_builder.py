"""The builder handed to derivative rules: it knows symbolic zeros and residuals, and sweeps what nobody came to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowgrad.ir.body_derivatives import BodyDifferentiator
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.ops.operands import summed_to
from flowgrad.ir.ops.registry import Trait, opdef
from flowgrad.ir.support import Support


class DerivativeBuilder(Builder):
    """A builder for derivative rules: it knows which values are symbolic zeros, so that products with them vanish."""

    def __init__(self, graph: Graph, bodies: BodyDifferentiator) -> None:
        super().__init__(graph)
        self.bodies = bodies
        """Who differentiates the subgraphs of nodes."""
        self.zeros: set[Value] = set()
        self.support = Support(self)
        self.made: list[Node] = []
        self.residuals: list[Value] = []
        self.wanted: tuple[bool, ...] = ()
        """For rules of ops with subgraphs: which inputs, then which captures, need a cotangent."""
        self.independent = False
        """For tangent rules of ops with subgraphs: no tangent depends on a value of the graph, so that a forward node
        can take tangents as inputs without a cycle."""
        self.in_place = True
        """For tangent rules of ops with subgraphs: a forward node may compute its tangents as well."""

    def zero(self, like: Value) -> Value:
        """Return a symbolic zero of the type of ``like``."""
        value = self.zeros_like(like)
        self.zeros.add(value)
        return value

    def is_zero(self, value: Value | None) -> bool:
        """Return whether ``value`` is absent or a symbolic zero."""
        return value is None or value in self.zeros

    def residual(self, node: Node, name: str) -> Value:
        """Return the residual ``name`` of a forward node, remembering it if it is new."""
        before = self.graph.version
        value = super().residual(node, name)
        if self.graph.version != before:
            self.residuals.append(value)
        return value

    def add_node(self, op: str, inputs: Sequence[Any], *arguments: Any, **keywords: Any) -> Node:
        """Add a node, noting whether its output is a symbolic zero."""
        node = super().add_node(op, inputs, *arguments, **keywords)
        self.made.append(node)
        self.support.note(node)
        if self.zeros and node.outputs and self._vanishes(node):
            self.zeros.update(node.results)
        return node

    def add(self, op: str, inputs: Sequence[Any], attributes: Mapping[str, Any] | None = None, **keywords: Any) -> Value:
        """Add a node and return its output; adding a symbolic zero returns the other operand.

        A product with a cotangent that a selection has zeroed is selected likewise: see ``Support``.
        """
        if op in ("Add", "Sub") and len(inputs) == 2:
            x, y = inputs
            if isinstance(x, Value) and isinstance(y, Value):
                if y in self.zeros and x.type == y.type:
                    return x
                if op == "Add" and x in self.zeros and x.type == y.type:
                    return y
        if self.support.carried and not attributes and not keywords:
            slot = self.support.slot(op, inputs)
            found = self.support.linear(op, inputs) if slot is None else self.support.product(op, inputs, slot)
            if found is not None:
                return found
        return self.plain(op, inputs, attributes, **keywords)

    def passed(self, node: Node) -> Sequence[Value | None]:
        """Return what stands for the outputs of a copied node: a product with a selected value is selected likewise."""
        return self.support.passed(node)

    def plain(self, op: str, inputs: Sequence[Any], attributes: Mapping[str, Any] | None = None, **keywords: Any) -> Value:
        """Add a node as it stands and return its output."""
        if not keywords:
            return self.add_node(op, inputs, attributes).output()
        return super().add(op, inputs, attributes, **keywords)

    def _vanishes(self, node: Node) -> bool:
        traits = opdef(node.op).traits
        floats = [v for v in node.operands if v.type.dtype.carries]
        if Trait.BILINEAR in traits:
            return any(v in self.zeros for v in floats[:2])
        return Trait.LINEAR in traits and bool(floats) and all(v in self.zeros for v in floats)

    def sum_to(self, value: Value, x: Value) -> Value:
        """Sum the axes of ``value`` along which ``x`` was broadcast, down to the shape of ``x``."""
        if value.type is x.type and x.type.shape is not None:  # of unknown rank, equal types may differ in shape
            return value
        summed = summed_to(self, value, x.type.shape)
        return self.SumTo(value, self.shape(x)) if summed is None else summed

    def sweep(self, keep: Sequence[Value | None]) -> None:
        """Remove the nodes this builder made, and residuals it asked for, that nothing uses."""
        kept = {v for v in keep if v is not None}
        for node in reversed(self.made):
            if node.key not in self.graph.entries:
                continue
            for value in node.outputs:
                if value is not None and (value.uses or value in kept):
                    break
            else:
                self.graph.remove(node)
        for value in self.residuals:
            if not value.uses and value not in kept:
                self.graph.drop_output(value)
        self.made, self.residuals = [], []
