"""Adapters for the domains of operators that the standard tries out: attention with a say, and training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flowgrad.exchange.adapters import EVERY_OPSET, FORMALS, before
from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.inline import inline
from flowgrad.ir.ops.operands import concatenated
from flowgrad.ir.reach import dependents, path_nodes
from flowgrad.ir.types import FLOAT32, FLOAT64, DType, Type, dtype_of
from flowgrad.passes.differentiate import adjoint

PREVIEW, TRAINING = "ai.onnx.preview", "ai.onnx.preview.training"


# ---- FlexAttention ------------------------------------------------------------------------------------------------------


def _softmax_dtype(call: ImportedNode) -> DType:
    asked = call.attributes.get("softmax_precision")
    given = call.input(0).type.dtype
    return dtype_of(asked) if asked is not None else given if given == FLOAT64 else FLOAT32


def _scores_type(call: ImportedNode) -> list[Type]:
    """Return the type of what a modifier takes: the scores of all queries and keys."""
    q, k = call.input(0).type, call.input(1).type
    if q.rank not in (None, 4) or k.rank not in (None, 4):
        raise ValidationError(f"FlexAttention takes tensors of rank 4, got {q!r} and {k!r}", code="rank", where=call.label)
    if q.shape is None or k.shape is None:
        raise UnsupportedError("FlexAttention on tensors of unknown rank", code="rank", where=call.label)
    return [Type(_softmax_dtype(call), (*q.shape[:3], k.shape[2]))]


FORMALS[PREVIEW, "FlexAttention"] = _scores_type


@before(EVERY_OPSET, "FlexAttention", domain=PREVIEW)
def flex_attention(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """Y = prob_mod(softmax(score_mod(Q K^T scale))) V, every head of K and V for as many of Q as there are to one.

    The root of the scale goes to Q and to K, in their type, as the standard's own function has it.
    """
    q, k, v = (call.input(i) for i in range(3))
    (scores_type,) = _scores_type(call)
    scale = call.attributes.get("scale")
    if scale is None:
        width = b.cast(b.Squeeze(b.extent(q, 3), [0]), FLOAT32)
        root = b.Sqrt(b.Div(1.0, b.Sqrt(width)))
    else:
        root = b.scalar(np.sqrt(np.float32(scale)), FLOAT32)
    root = b.cast_like(root, q)
    keys, values = (_heads_like(b, call, x, q) for x in (k, v))
    scores = b.MatMul(b.Mul(q, root), b.Transpose(b.Mul(keys, root), perm=[0, 1, 3, 2]))
    scores = _modified(b, call, "score_mod", b.cast(scores, scores_type.dtype))
    chances = _modified(b, call, "prob_mod", b.Softmax(scores, axis=-1))
    return (b.cast_like(b.MatMul(chances, b.cast(values, scores_type.dtype)), v),)


def _heads_like(b: ImportBuilder, call: ImportedNode, x: Value, q: Value) -> Value:
    """Return keys or values with each of their heads as often as there are heads of ``q`` to it."""
    if x.type.rank != 4:
        raise ValidationError(f"FlexAttention takes tensors of rank 4, got {x!r}", code="rank", where=call.label)
    own, wanted = x.shape[1], q.shape[1]
    if own == wanted:
        return x
    if isinstance(own, int) and isinstance(wanted, int) and (not own or wanted % own):
        raise ValidationError(f"{wanted} heads of queries do not share {own} of keys and values", code="shape",
                              where=call.label)
    batch, heads, *rest = (b.extent(x, i) for i in range(4))
    all_heads = b.extent(q, 1)
    spread = concatenated(b, [batch, heads, b.Div(all_heads, heads), *rest])
    return b.Reshape(b.Expand(b.Unsqueeze(x, [2]), spread), concatenated(b, [batch, all_heads, *rest]), allowzero=1)


def _modified(b: ImportBuilder, call: ImportedNode, name: str, x: Value) -> Value:
    """Return what a subgraph of the call makes of ``x``."""
    graph: Graph | None = call.subgraphs.get(name)
    if graph is None:
        return x
    if len(graph.outputs) != 1:
        raise ValidationError(f"{name} gives {len(graph.outputs)} results, not one", code="arity", where=call.label)
    (made,) = inline(b, graph, dict(zip(graph.inputs, [x, *call.captures], strict=True)), graph.outputs)
    if made.type.dtype != x.type.dtype or made.type.rank not in (None, 4):
        raise ValidationError(f"{name} makes {made.type!r} of {x.type!r}", code="dtype", where=call.label)
    return made


# ---- optimizers ---------------------------------------------------------------------------------------------------------

Step = Callable[..., tuple[Value, ...]]


def _stepped(call: ImportedNode, kinds: int, step: Step) -> list[Value]:
    """Return the outputs of an optimizer: ``step`` takes one tensor of each kind and gives its new state."""
    rest = [call.input(i) for i in range(2, len(call.inputs))]
    if not rest or len(rest) % kinds:
        raise ValidationError(f"{call.op} takes {kinds} tensors for each that it optimizes, got {len(rest)}", code="arity",
                              where=call.label)
    count = len(rest) // kinds
    results = [step(*rest[i::count]) for i in range(count)]
    return [value for values in zip(*results, strict=True) for value in values]


def _regularized(b: ImportBuilder, call: ImportedNode, x: Value, g: Value) -> Value:
    coefficient = call.attributes.get("norm_coefficient", 0.0)
    return b.Add(b.Mul(x, coefficient), g) if coefficient else g


@before(EVERY_OPSET, "Adam", domain=TRAINING)
def adam(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """V' = alpha V + (1 - alpha) G; H' = beta H + (1 - beta) G^2; X' = X - R c V' / (sqrt(H') + epsilon).

    The correction c = sqrt(1 - beta^T) / (1 - alpha^T), 1 at T = 0, is computed in float64: the differences cancel.
    """
    rate, count = call.input(0), call.input(1)
    alpha, beta, epsilon, after = (call.attributes.get(n, d) for n, d in (
        ("alpha", 0.9), ("beta", 0.999), ("epsilon", 1e-6), ("norm_coefficient_post", 0.0)))
    times = b.cast(b.Max(count, 1), FLOAT64)
    rest_of = [b.Sub(1.0, b.Pow(b.scalar(factor, FLOAT64), times)) for factor in (beta, alpha)]
    wide = b.cast(rate, FLOAT64)
    adjusted = b.Where(b.Greater(count, 0), b.Mul(wide, b.Div(b.Sqrt(rest_of[0]), rest_of[1])), wide)

    def step(x: Value, g: Value, v: Value, h: Value) -> tuple[Value, ...]:
        g = _regularized(b, call, x, g)
        v = b.Add(b.Mul(v, alpha), b.Mul(g, 1 - alpha))
        h = b.Add(b.Mul(h, beta), b.Mul(b.Mul(g, g), 1 - beta))
        x = b.Sub(x, b.Mul(b.cast_like(adjusted, x), b.Div(v, b.Add(b.Sqrt(h), epsilon))))
        return b.Mul(x, 1 - after) if after else x, v, h

    return _stepped(call, 4, step)


@before(EVERY_OPSET, "Adagrad", domain=TRAINING)
def adagrad(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """H' = H + G^2; X' = X - R / (1 + T decay_factor) G / (sqrt(H') + epsilon)."""
    rate, count = call.input(0), call.input(1)
    decay, epsilon = call.attributes.get("decay_factor", 0.0), call.attributes.get("epsilon", 1e-6)
    slowed = b.Div(rate, b.Add(b.Mul(b.cast_like(count, rate), decay), 1.0)) if decay else rate

    def step(x: Value, g: Value, h: Value) -> tuple[Value, ...]:
        g = _regularized(b, call, x, g)
        h = b.Add(h, b.Mul(g, g))
        return b.Sub(x, b.Div(b.Mul(b.cast_like(slowed, x), g), b.Add(b.Sqrt(h), epsilon))), h

    return _stepped(call, 3, step)


@before(EVERY_OPSET, "Momentum", domain=TRAINING)
def momentum(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """V' = alpha V + beta G, beta 1 at T = 0; X' = X - R V', or X - R (G + alpha V') after Nesterov."""
    rate, count = call.input(0), call.input(1)
    alpha, beta, mode = (call.required(n) for n in ("alpha", "beta", "mode"))
    if mode not in ("standard", "nesterov"):
        raise ValidationError(f"Momentum has no mode {mode!r}", code="attribute", where=call.label)
    is_later = b.Greater(count, 0)

    def step(x: Value, g: Value, v: Value) -> tuple[Value, ...]:
        g = _regularized(b, call, x, g)
        share = b.Where(is_later, b.scalar(beta, x.type.dtype), b.scalar(1, x.type.dtype))
        v = b.Add(b.Mul(v, alpha), b.Mul(share, g))
        way = b.Add(g, b.Mul(v, alpha)) if mode == "nesterov" else v
        return b.Sub(x, b.Mul(b.cast_like(rate, x), way)), v

    return _stepped(call, 3, step)


# ---- Gradient -----------------------------------------------------------------------------------------------------------


@before(EVERY_OPSET, "Gradient", domain=TRAINING)
def gradient(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """The derivative of ``y``, summed over its elements, by what ``xs`` names, at the values that are given.

    What is named in ``xs`` and ``zs`` is independent. Where the values are other than those named, the nodes between
    are copied; where they are the same, the nodes are used as they stand, so that random ones draw once.
    """
    if b.is_inner:
        raise UnsupportedError("Gradient inside a subgraph", code="subgraph", where=call.label)
    xs, zs = (list(call.attributes.get(n, ())) for n in ("xs", "zs"))
    sources, y = [call.scope(name) for name in (*xs, *zs)], call.scope(call.required("y"))
    if len(call.inputs) != len(sources) or not xs or len(call.outputs) > len(xs):
        raise ValidationError(f"Gradient names {len(sources)} tensors, takes {len(call.inputs)} and gives {len(call.outputs)}",
                              code="arity", where=call.label)
    given = [call.input(i) for i in range(len(sources))]
    if not all(v.type.dtype.is_float for v in (y, *sources[: len(xs)])):
        raise ValidationError("Gradient of or by a tensor that holds no floats", code="dtype", where=call.label)
    order = b.graph.nodes()
    if y not in dependents(order, sources[: len(xs)]):
        raise ValidationError(f"{y!r} depends on nothing in {xs}", code="path", where=call.label)
    since = b.graph._next_key
    if given != sources or not _are_independent(order, sources):
        y, given = _moved(b, order, sources, given, y)
    wanted = [i for i in range(len(xs)) if call.wants(i)]
    found = adjoint(b.graph, [(y, b.filled(1, y))], [given[i] for i in wanted])
    results: list[Value | None] = [None] * len(xs)
    for i, x_bar in zip(wanted, found, strict=True):
        results[i] = b.zeros_like(given[i]) if x_bar is None else x_bar
    for value in [v for n in b.graph.nodes() if n.key >= since for v in n.results if v.name in b.reserved]:
        b.graph.rename(value, b.fresh(value.name))
    return results


def _are_independent(order: Sequence[Node], sources: Sequence[Value]) -> bool:
    """Return whether none of ``sources`` is computed from others."""
    reached = dependents(order, sources)
    return not any(operand in reached for v in sources for operand in v.producer.operands)


def _moved(
    b: ImportBuilder, order: Sequence[Node], sources: Sequence[Value], given: Sequence[Value], y: Value
) -> tuple[Value, list[Value]]:
    """Return ``y`` as it is where ``given`` stand for ``sources``, and values of its own that it depends on so."""
    starts = [b.Identity(v) for v in given]
    between = path_nodes(order, sources, [y])
    inner = {v for n in between for v in n.results} - set(sources)
    mapping = {v: v for n in between for v in n.operands if v not in inner}
    (made,) = inline(b, b.graph, {**mapping, **dict(zip(sources, starts, strict=True))}, [y])
    return made, starts
