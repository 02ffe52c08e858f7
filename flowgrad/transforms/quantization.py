"""Derivatives of quantized models as if nothing were rounded."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.ops.registry import Trait, opdef
from flowgrad.model import Model
from flowgrad.passes.edits import all_graphs


def through_quantization(model: Model) -> Model:
    """Return a model of the same values whose derivatives pass quantization as if it did not round.

    The straight-through rule: QuantizeLinear is differentiated as Clip(x / scale + zero point) to the range of its type,
    the QLinear and integer products as the same products of reals, wherever DequantizeLinear or Cast makes floats of what
    they give, directly or after linear operators and maxima. So a pair of QuantizeLinear and DequantizeLinear is
    a clipped identity, and its scale has the derivative of learned step sizes: rounding error inside the range, its bound
    beyond. All derivative modes and orders, files and export keep it. Raises InputError where nothing is quantized.

    Examples:
        >>> quantized = fg.load(b'''graph @q (%x: f32[2], %s: f32[]) -> (%y: f32[2]) {
        ...     %q: i8[2] = QuantizeLinear(%x, %s, i8(0))
        ...     %y: f32[2] = DequantizeLinear(%q, %s, i8(0))
        ... }''')
        >>> through = fg.vjp(fg.through_quantization(quantized), wrt="x")
        >>> through(x=np.array([0.3, 900], np.float32), s=np.float32(1), y_grad=np.ones(2, np.float32))["x_grad"]
        array([1., 0.], dtype=float32)
    """
    graph = model.graph.copy()
    pass_quantization(graph)
    return model.with_graph(graph)


def pass_quantization(graph: Graph, only: Collection[Node] | None = None) -> None:
    """Change a graph as ``through_quantization`` says, from all operators that round on or from ``only`` these.

    Raises InputError where no float is made of what they round.
    """
    found = [_Unrounding(inner, only).run() for inner in all_graphs(graph)]
    if not any(found):
        raise InputError(f"{graph.name!r} has no float that is made of rounded ones: nothing to pass", code="name")


class _Unrounding:
    """Goes through a graph with what its rounded values are before they are rounded."""

    def __init__(self, graph: Graph, only: Collection[Node] | None = None) -> None:
        self.graph = graph
        self.only = only
        self.b = Builder(graph)
        self.reals: dict[Value, Value] = {}

    def run(self) -> int:
        """Return how many floats were given the derivative of unrounded ones."""
        count = 0
        for node in self.graph.nodes():
            definition = opdef(node.op)
            reals = [None if v is None else self.reals.get(v) for v in node.inputs]
            if definition.unrounded_rule is None and not (Trait.LINEAR in definition.traits and any(reals)):
                continue
            if self.only is not None and node not in self.only and not any(reals):
                continue
            self.b.prefix, self.b.origin = node.label, self.graph.new_origin("through_quantization", (node,))
            if definition.unrounded_rule is None:
                self._same_of_reals(node, reals)
                continue
            real = definition.unrounded_rule(self.b, node, reals)
            if real is not None:
                count += self._stand_in(node.output(), real)
        return count

    def _same_of_reals(self, node: Node, reals: Sequence[Value | None]) -> None:
        """A linear operator of rounded numbers is before rounding the same of reals."""
        definition = opdef(node.op)
        rounded = {v.type.dtype for v, real in zip(node.inputs, reals, strict=True) if v is not None and real is not None}
        dtype = next(real.type.dtype for real in reals if real is not None)
        is_of_one_type = Trait.ELEMENTWISE in definition.traits or definition.variadic
        operands = [self.b.cast(real or v, dtype) if v is not None and v.type.dtype in rounded
                    and (real is not None or is_of_one_type or v.type.dtype.itemsize == 1) else v  # others may be indices
                    for v, real in zip(node.inputs, reals, strict=True)]
        made = self.b.add_node(node.op, operands, node.attributes, outputs=len(node.outputs))
        for y, real in zip(node.outputs, made.outputs, strict=True):
            if y is not None and real is not None:
                self._stand_in(y, real)

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
