"""Ways to add operators that the standard defines by a function body: they are read from ONNX, and remember what they were."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper

from flowgrad.exchange.reader import read_onnx
from flowgrad.ir.errors import FlowgradError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import INITIALIZER, Value
from flowgrad.ir.inline import inline
from flowgrad.ir.types import BOOL, FLOAT32, INT64, Dim
from flowgrad.tools.maintenance.graph_maker import WORLDS, Kind, Maker, Rejected, kind

FUNCTIONS: list[tuple[Kind, float]] = []
"""The ways of this file."""

WAS = "fuzz.op"
"""The metadata key under which the node that makes a result says which operator, on which values, it is the result of."""


def emit_function(m: Maker, op: str, inputs: Sequence[Value | None], attributes: dict[str, Any], outputs: int = 1) -> None:
    """Add an operator by the body that it is read as; Rejected where it does not run."""
    inputs = [_with_name(m, v) for v in inputs]
    names = ["" if v is None else f"i{k}" for k, v in enumerate(inputs)]
    made = [f"y{k}" for k in range(outputs)]
    floating = next(v.type.dtype for v in inputs if v is not None)
    formals = [helper.make_tensor_value_info(name, v.type.dtype.onnx, _extents(v))
               for name, v in zip(names, inputs, strict=True) if v is not None]
    graph = helper.make_graph([helper.make_node(op, names, made, **attributes)], "function", formals,
                              [helper.make_tensor_value_info(name, floating.onnx, None) for name in made])
    try:
        body = read_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 28)], ir_version=11))
        given = [{n: m.seen(v)[world] for n, v in zip(names, inputs, strict=True) if v is not None} for world in range(WORLDS)]
        results = [evaluate(body, {k: a for k, a in g.items() if k in body.values}) for g in given]
        if any(not np.isfinite(a).all() or np.abs(a).max(initial=0.0) > 1e4 for r in results for a in r.values()):
            raise Rejected("large or not finite")
        held = {body.value(n): v for n, v in zip(names, inputs, strict=True) if v is not None and n in body.values}
        found = inline(m.b, body, held, body.outputs)
    except FlowgradError as error:
        raise Rejected(f"{op}: {error}") from error
    for k, value in enumerate(found):
        m.arrays[value] = [r[f"y{k}"] for r in results]
        if value.producer.op not in ("Input", "Constant"):
            value.producer.metadata[WAS] = json.dumps({
                "op": op, "attributes": attributes, "index": k, "result": value.name, "outputs": outputs,
                "inputs": ["" if v is None else v.name for v in inputs]})


def _extents(v: Value) -> list[Any]:
    return [d if isinstance(d, int) else repr(d) for d in v.type.shape or ()]


def _with_name(m: Maker, v: Value | None) -> Value | None:
    """Return a value that can be told by name: literals have none."""
    return m.graph.add_constant(v.producer.data, m.graph.unique_name("w"), INITIALIZER) if v is not None and not v.name else v


function = functools.partial(kind, into=FUNCTIONS)


def _named(m: Maker) -> Any:
    return Dim.named("N") if m.named and m.chance(0.6) else m.one_of([1, 2, 3])


@function(1.5)
def attention(m: Maker) -> None:
    """Attention with groups of heads, masks, windows, caches and every further output."""
    batch, heads, rows, width = _named(m), m.one_of([1, 2]), m.one_of([1, 2, 3]), m.one_of([1, 2])
    groups, columns, wide = m.one_of([1, 2]), m.one_of([1, 2, 4]), m.one_of([1, 3])
    flat = m.chance(0.3)
    queries = groups * heads

    def operand(count: int, length: int, size: int) -> Value:
        return m.input(None, (batch, length, count * size) if flat else (batch, count, length, size))

    past = m.one_of([0, 0, 1, 2])
    attributes: dict[str, Any] = {"q_num_heads": queries, "kv_num_heads": heads} if flat else {}
    left, right = m.one_of([0, 1, 2]), m.one_of([0, 1])
    for name, value, probability in (("is_causal", 1, 0.4), ("softcap", 1.5, 0.3), ("scale", 0.5, 0.3),
                                     ("left_window_size", left, 0.2), ("right_window_size", right, 0.2)):
        if m.chance(probability):
            attributes[name] = value
    mask = None
    if m.chance(0.5):
        shape = m.one_of([(rows, columns + past), (1, queries, rows, columns + past), (rows, 1)])
        mask = m.leaf(shape) if m.chance(0.6) else m.constant(m.data(BOOL, shape))
    inputs: list[Value | None] = [operand(queries, rows, width), operand(heads, columns, width),
                                  operand(heads, columns, wide), mask]
    if past:
        inputs += [m.input(None, (batch, heads, past, width)), m.input(None, (batch, heads, past, wide))]
    elif m.chance(0.25):
        inputs += [None, None, m.input(INT64, (batch,), lambda s: np.asarray(m.rng.integers(1, columns + 1, s)))]
    outputs = m.one_of([1, 3, 4]) if past else 1
    if outputs == 4:
        attributes["qk_matmul_output_mode"] = m.one_of([0, 1, 2, 3])
    while inputs[-1] is None:
        inputs.pop()
    emit_function(m, "Attention", inputs, attributes, outputs)


@function(1.2)
def rotary(m: Maker) -> None:
    """Rotary embedding, of a part of each head, interleaved, with places."""
    if m.dtype != FLOAT32:
        raise Rejected("float32 alone")
    batch, heads, length, size = _named(m), m.one_of([1, 2]), m.one_of([1, 2, 3]), m.one_of([2, 4])
    part = m.one_of([0, 2])
    flat = m.chance(0.4)
    attributes: dict[str, Any] = {"interleaved": int(m.chance(0.5)), "rotary_embedding_dim": part}
    if flat or part:
        attributes["num_heads"] = heads
    x = m.input(None, (batch, length, heads * size) if flat else (batch, heads, length, size))
    half = (part or size) // 2
    if m.chance(0.5):
        places = m.input(INT64, (batch, length), lambda s: np.asarray(m.rng.integers(0, 4, s)))
        emit_function(m, "RotaryEmbedding", [x, m.leaf((4, half)), m.leaf((4, half)), places], attributes)
    else:
        waves = [m.input(None, (batch, length, half)) for _ in range(2)]
        emit_function(m, "RotaryEmbedding", [x, *waves], attributes)


@function(1.2)
def linear_attention(m: Maker) -> None:
    """Attention without a softmax, by every rule of updates."""
    if m.dtype != FLOAT32:
        raise Rejected("float32 alone")
    batch, length, heads, groups = _named(m), m.one_of([1, 2, 3]), m.one_of([1, 2]), m.one_of([1, 2])
    width, wide, rule = m.one_of([1, 2]), m.one_of([1, 3]), m.one_of(["linear", "gated", "delta", "gated_delta"])
    attributes: dict[str, Any] = {"q_num_heads": heads * groups, "kv_num_heads": heads, "update_rule": rule}
    if m.chance(0.4):
        attributes["scale"] = 0.5
    inputs: list[Value | None] = [m.input(None, (batch, length, size)) for size in (heads * groups * width, heads * width, heads * wide)]
    inputs.append(m.input(None, (batch, heads, width, wide)) if m.chance(0.5) else None)
    decay = m.input(None, (batch, length, heads * m.one_of([1, width]))) if "gated" in rule else None
    inputs += [decay, m.input(None, (batch, length, m.one_of([1, heads]))) if "delta" in rule else None]
    while inputs[-1] is None:
        inputs.pop()
    emit_function(m, "LinearAttention", inputs, attributes, m.one_of([1, 2]))


@function(1)
def causal_convolution(m: Maker) -> None:
    """A convolution of the past, with its state."""
    if m.dtype != FLOAT32:
        raise Rejected("float32 alone")
    batch, channels, length, kernel = _named(m), m.one_of([1, 2]), m.one_of([1, 2, 4]), m.one_of([1, 2, 3])
    inputs: list[Value | None] = [m.input(None, (batch, channels, length)), m.leaf((channels, 1, kernel)),
                                  m.leaf((channels,)) if m.chance(0.5) else None,
                                  m.input(None, (batch, channels, kernel - 1)) if m.chance(0.5) and kernel > 1 else None]
    while inputs[-1] is None:
        inputs.pop()
    emit_function(m, "CausalConvWithState", inputs, {"activation": m.one_of(["none", "silu", "swish"])}, 2)
