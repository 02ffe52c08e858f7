"""Layers of com.microsoft with quantized weights, as onnxruntime's quantizers write them: attention, embedding, LSTM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.exchange.microsoft import Results, contributed, embedded, refuse_attributes, refuse_inputs
from flowgrad.exchange.microsoft_attention import self_attention
from flowgrad.exchange.microsoft_quantization import integer_product, restored, rounded_product
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.graph import Graph, Value


@contributed("QAttention")
def quantized_attention(b: ImportBuilder, call: ImportedNode) -> Results:
    """Attention of (x - zero point)(w - zero point) x_scale w_scale + bias: queries, keys and values side by side."""
    refuse_attributes(call, do_rotary=0, past_present_share_buffer=0)
    x, w, bias, x_scale, w_scale = (call.input(k) for k in range(5))
    product = b.Add(integer_product(b, x, w, x_scale, w_scale, call.optional(6), call.optional(7)), bias)
    return self_attention(b, call, product, mask=call.optional(5), past=call.optional(8), more=None)


@contributed("QEmbedLayerNormalization")
def quantized_embed_layer_normalization(b: ImportBuilder, call: ImportedNode) -> Results:
    """EmbedLayerNormalization with tables, scale and shift that are quantized, each with its scale and zero point."""
    tables = [call.optional(k) and restored(b, call, k, k + 6, k + 11) for k in range(2, 7)]
    word, position, segment, gamma, beta = tables
    return embedded(b, call, [word, position, segment], gamma, beta, places=None)


@contributed("DynamicQuantizeLSTM")
def quantized_lstm(b: ImportBuilder, call: ImportedNode) -> Results:
    """LSTM with weights [directions, in, 4 hidden] of 8 bits: x and, in every step, h are rounded over their range.

    Range and rounding are those of all rows together, as where onnxruntime runs in one thread.
    """
    refuse_inputs(call, sequence_lens=4)
    refuse_attributes(call, clip=0.0, input_forget=0, activation_alpha=(), activation_beta=())
    asked = str(call.take("direction", "forward"))
    directions = {"forward": (0,), "reverse": (1,), "bidirectional": (0, 1)}.get(asked)
    if directions is None:
        raise ValidationError(f"{call.op} has no direction {asked!r}", code="attribute", where=call.label)
    activations = call.take("activations") or ("Sigmoid", "Tanh", "Tanh") * len(directions)
    if tuple(activations) != ("Sigmoid", "Tanh", "Tanh") * len(directions):
        raise UnsupportedError(f"{call.op} with the activations {', '.join(activations)} is not supported", code="attribute",
                               where=call.label)
    x, hidden = call.input(0), int(call.required("hidden_size"))
    made = [_Layer(b, call, index, hidden).run(x, bool(backwards)) for index, backwards in enumerate(directions)]
    joined = [b.Concat(*(b.Unsqueeze(v, [axis]) for v in parts), axis=axis) if len(parts) > 1 else b.Unsqueeze(parts[0], [axis])
              for parts, axis in zip(zip(*made, strict=True), (1, 0, 0), strict=True)]
    return [v if call.wants(k) else None for k, v in enumerate(joined)]


class _Layer:
    """One direction of an LSTM: its weights, and the step that Scan repeats."""

    def __init__(self, b: ImportBuilder, call: ImportedNode, index: int, hidden: int) -> None:
        self.b, self.call, self.index, self.hidden = b, call, index, hidden

    def part(self, slot: int) -> Value | None:
        """Return what an input holds for this direction."""
        whole = self.call.optional(slot)
        return None if whole is None else self.b.Gather(whole, np.int64(self.index), axis=0)

    def run(self, x: Value, backwards: bool) -> Sequence[Value]:
        """Return the outputs [length, batch, hidden] and the last h and c [batch, hidden]."""
        b, hidden = self.b, self.hidden
        w, r, w_scale, w_zero, r_scale, r_zero = (self.part(k) for k in (1, 2, 8, 9, 10, 11))
        assert w is not None and r is not None and w_scale is not None and r_scale is not None
        gates = rounded_product(b, x, w, w_scale, w_zero)
        if (biases := self.part(3)) is not None:
            gates = b.Add(gates, b.Add(*b.add_several("Split", [biases], {"axis": 0, "num_outputs": 2}, outputs=2)))
        states = [self.part(k) or b.Expand(b.scalar(0, x.type.dtype), b.Concat(b.extent(x, 1), [hidden], axis=0)) for k in (5, 6)]
        captures = [r, r_scale, *(v for v in (r_zero, self.part(7)) if v is not None)]
        body = self._step([*states, gates], captures, r_zero is not None, self.call.optional(7) is not None)
        way = (int(backwards),)
        node = b.add_node("Scan", [*states, gates],
                          {"num_scan_inputs": 1, "scan_input_directions": way, "scan_output_directions": way},
                          outputs=3, captures=captures, subgraphs={"body": body})
        return node.output(2), node.output(0), node.output(1)

    def _step(self, values: Sequence[Value], captures: Sequence[Value], has_zero: bool, has_peepholes: bool) -> Graph:
        """Return the graph of one step: h, c and the gates of x [batch, 4 hidden] to h, c and h."""
        graph = Graph(f"{self.call.label}_step", self.b.graph.limits)
        graph._next_dim = self.b.graph._next_dim
        b = ImportBuilder(graph, set(), is_inner=True)
        types = [values[0].type, values[1].type, values[2].type.with_shape(values[2].shape[1:])]
        h, c, gates = (graph.add_input(n, t) for n, t in zip(("h", "c", "gates"), types, strict=True))
        r, scale, *rest = (graph.add_input(b.fresh(n), v.type) for n, v in zip(("r", "scale", "more", "last"), captures, strict=False))
        peepholes = list(b.add_several("Split", [rest[-1]], {"axis": 0, "num_outputs": 3}, outputs=3)) if has_peepholes else []
        total = b.Add(gates, rounded_product(b, h, r, scale, rest[0] if has_zero else None))
        i, o, f, g = b.add_several("Split", [total], {"axis": -1, "num_outputs": 4}, outputs=4)
        seen: Callable[[Value, int, Value], Value] = lambda gate, k, cell: (  # noqa: E731 - one formula, thrice
            b.Add(gate, b.Mul(peepholes[k], cell)) if peepholes else gate)
        kept = b.Mul(b.Sigmoid(seen(f, 2, c)), c)
        cell = b.Add(kept, b.Mul(b.Sigmoid(seen(i, 0, c)), b.Tanh(g)))
        y = b.Mul(b.Sigmoid(seen(o, 1, cell)), b.Tanh(cell))
        for name, value in (("h_next", y), ("c_next", cell), ("y", y)):
            graph.add_output(value, name)
        self.b.graph._next_dim = max(self.b.graph._next_dim, graph._next_dim)
        return graph
