"""Derivatives of quantized models as if nothing were rounded."""

from __future__ import annotations

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.ops.registry import Trait, opdef
from flowgrad.model import Model
from flowgrad.passes.edits import all_graphs


def through_quantization(model: Model) -> Model:
    """Return a model of the same values whose derivatives pass quantization as if it did not round.

    The straight-through rule: QuantizeLinear is differentiated as Clip(x / scale + zero point) to the range of its type,
    the QLinear and integer products as the same products of reals, wherever DequantizeLinear or Cast makes floats of what
    they give, directly or after operators that only move elements. So a pair of QuantizeLinear and DequantizeLinear is
    a clipped identity, and its scale has the derivative of learned step sizes: rounding error inside the range, its bound
    beyond. All derivative modes and orders, files and export keep it. Raises InputError where nothing is quantized.
    """
    graph = model.graph.copy()
    found = [_Unrounding(inner).run() for inner in all_graphs(graph)]
    if not any(found):
        raise InputError(f"{graph.name!r} has no float that is made of rounded ones: nothing to pass", code="name")
    return model.with_graph(graph)


class _Unrounding:
    """Goes through a graph with what its rounded values are before they are rounded."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.b = Builder(graph)
        self.reals: dict[Value, Value] = {}

    def run(self) -> int:
        """Return how many floats were given the derivative of unrounded ones."""
        count = 0
        for node in self.graph.nodes():
            definition = opdef(node.op)
            reals = [None if v is None else self.reals.get(v) for v in node.inputs]
            moves = {Trait.VIEW, Trait.LINEAR} <= definition.traits and len(node.outputs) == 1 and any(reals[:1])
            if definition.unrounded_rule is None and not moves:
                continue
            self.b.prefix, self.b.origin = node.label, self.graph.new_origin("through_quantization", (node,))
            if definition.unrounded_rule is None:
                self.reals[node.output()] = self.b.add(node.op, [reals[0], *node.inputs[1:]], node.attributes)
                continue
            real = definition.unrounded_rule(self.b, node, reals)
            if real is not None:
                count += self._stand_in(node.output(), real)
        return count

    def _stand_in(self, y: Value, real: Value) -> bool:
        """Let what has the derivative of ``real`` stand for ``y``, under its name if that is a float; return whether it is."""
        if not y.type.dtype.is_float or y.type.dtype.itemsize == 1:
            self.reals[y] = self.b.Surrogate(self.b.cast(y, real.type.dtype), real)
            return False
        made, name = self.b.Surrogate(y, real), y.name
        self.graph.replace_uses(y, made, only=lambda user: user is not made.producer)
        self.graph.rename(y, self.graph.unique_name(f"{name}_rounded"))
        self.graph.rename(made, name)
        return True
