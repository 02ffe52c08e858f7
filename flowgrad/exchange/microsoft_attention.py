"""Attention operators of the domain com.microsoft, in terms of products and softmax."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.exchange.microsoft import Results, added, contributed, refuse_attributes, refuse_inputs
from flowgrad.ir.errors import UnsupportedError
from flowgrad.ir.graph import Value
from flowgrad.ir.ops.operands import END, ramp
from flowgrad.ir.types import INT64

_SWAP = [0, 2, 1, 3]


@dataclass
class Heads:
    """Query, key and value [batch, heads, length, size], with what came before the queries in keys and values."""

    query: Value
    key: Value
    value: Value


def split_heads(b: ImportBuilder, x: Value, heads: int) -> Value:
    """Return [batch, length, heads * size] as [batch, heads, length, size]."""
    return b.Transpose(b.Reshape(x, np.asarray([0, 0, heads, -1], np.int64)), perm=_SWAP)


def joined_heads(b: ImportBuilder, x: Value) -> Value:
    """Return [batch, heads, length, size] as [batch, length, heads * size]."""
    return b.Reshape(b.Transpose(x, perm=_SWAP), np.asarray([0, 0, -1], np.int64))


def attended(b: ImportBuilder, heads: Heads, scale: float | None, bias: Value | None, causal: bool,
             softcap: float = 0) -> Value:
    """Return softmax(scale Q K' + bias) V; ``causal`` hides keys after each query, which stand at the end of all keys.

    With ``softcap`` c the scores are c tanh(scores / c).
    """
    query, key = heads.query, heads.key
    dtype = query.type.dtype
    if scale is None or scale == 0:
        size = query.shape[3]
        factor = (b.scalar(1 / np.sqrt(size), dtype) if isinstance(size, int)
                  else b.Reciprocal(b.Sqrt(b.cast(b.Squeeze(b.extent(query, 3), [0]), dtype))))
    else:
        factor = b.scalar(scale, dtype)
    scores = b.Mul(b.MatMul(query, b.Transpose(key, perm=[0, 1, 3, 2])), factor)
    if softcap:
        scores = b.Mul(b.Tanh(b.Div(scores, b.scalar(softcap, dtype))), b.scalar(softcap, dtype))
    scores = added(b, scores, bias)
    if causal:
        scores = b.Where(_later(b, query, key), b.scalar(float("-inf"), dtype), scores)
    return b.MatMul(b.Softmax(scores, axis=-1), heads.value)


def _later(b: ImportBuilder, query: Value, key: Value) -> Value:
    """Return which keys [queries, keys] stand after each query."""
    rows, columns = b.extent(query, 2), b.extent(key, 2)
    place = b.Add(ramp(b, rows), b.Sub(columns, rows))
    return b.Greater(b.Unsqueeze(ramp(b, columns), [0]), b.Unsqueeze(place, [1]))


def mask_bias(b: ImportBuilder, call: ImportedNode, mask: Value | None, key: Value, hidden: float) -> Value | None:
    """Return what a mask adds to the scores [batch, 1, queries or 1, keys]: ``hidden`` where it is 0.

    A mask of rank 1 gives the length of each row (twice as many entries: where rows end, then where they start); of
    rank 2 it is [batch, keys], of rank 3 [batch, queries, keys].
    """
    if mask is None:
        return None
    dtype = key.type.dtype
    rank = len(mask.shape)
    if rank == 1:
        shown = _within(b, call, mask, key)
    elif rank in (2, 3):
        shown = b.Greater(b.Unsqueeze(mask, [1, 2] if rank == 2 else [1]), b.scalar(0, mask.type.dtype))
    else:
        raise UnsupportedError(f"{call.op} with a mask of rank {rank} is not supported", code="mask", where=call.label)
    return b.Where(shown, b.scalar(0, dtype), b.scalar(hidden, dtype))


def _within(b: ImportBuilder, call: ImportedNode, ends: Value, key: Value) -> Value:
    """Return which keys [batch, 1, 1, keys] stand before the end of their row."""
    batch, rows = key.shape[0], ends.shape[0]
    if batch != rows:
        raise UnsupportedError(f"{call.op} with a mask of {rows!r} entries for a batch of {batch!r} is not supported: only one "
                               "length for each row is", code="mask", where=call.label)
    return b.Unsqueeze(b.Less(b.Unsqueeze(ramp(b, b.extent(key, 2)), [0]), b.Unsqueeze(b.cast(ends, INT64), [1])), [1, 2])


@contributed("Attention")
def attention(b: ImportBuilder, call: ImportedNode) -> Results:
    """Self-attention of x [batch, length, hidden] with weights [hidden, 3 hidden] for query, key and value together."""
    refuse_attributes(call, do_rotary=0, past_present_share_buffer=0)
    refuse_inputs(call, past_sequence_length=6)
    product = added(b, b.MatMul(call.input(0), call.input(1)), call.optional(2))
    return self_attention(b, call, product, mask=call.optional(3), past=call.optional(4), more=call.optional(5))


def self_attention(
    b: ImportBuilder, call: ImportedNode, product: Value, *, mask: Value | None, past: Value | None, more: Value | None
) -> Results:
    """Attention of queries, keys and values that lie side by side in ``product``; ``more`` is added to the scores."""
    count, hidden = int(call.required("num_heads")), float(call.take("mask_filter_value", -10000.0))
    sizes = call.take("qkv_hidden_sizes")
    third = product.shape[-1]
    if not sizes:
        if not isinstance(third, int):
            raise UnsupportedError(f"{call.op} with weights of unknown size is not supported", code="shape", where=call.label)
        sizes = [third // 3] * 3
    parts = b.add_several("Split", [product, np.asarray(sizes, np.int64)], {"axis": -1}, outputs=3)
    heads = Heads(*(split_heads(b, x, count) for x in parts))
    if past is not None:
        earlier = b.add_several("Split", [past], {"axis": 0, "num_outputs": 2}, outputs=2)
        heads.key = b.Concat(b.Squeeze(earlier[0], [0]), heads.key, axis=2)
        heads.value = b.Concat(b.Squeeze(earlier[1], [0]), heads.value, axis=2)
    bias = mask_bias(b, call, mask, heads.key, hidden)
    bias = more if bias is None else added(b, bias, more)
    y = attended(b, heads, call.take("scale"), bias, bool(call.take("unidirectional", 0)))
    present = b.Concat(b.Unsqueeze(heads.key, [0]), b.Unsqueeze(heads.value, [0]), axis=0) if call.wants(1) else None
    return joined_heads(b, y), present


@contributed("MultiHeadAttention")
def multi_head_attention(b: ImportBuilder, call: ImportedNode) -> Results:
    """Attention of query, key and value [batch, length, hidden], plus a bias of all three, with what came before."""
    refuse_inputs(call, past_sequence_length=8, cache_indirection=9)
    count, hidden = int(call.required("num_heads")), float(call.take("mask_filter_value", -10000.0))
    query, key, value = _unpacked(b, call)
    bias = call.optional(3)
    if bias is not None:
        sizes = [x.shape[-1] for x in (query, query, value)]
        if len(value.shape) == 4 and isinstance(sizes[2], int):
            sizes[2] *= count  # split in heads already
        if not all(isinstance(n, int) for n in sizes):
            raise UnsupportedError("MultiHeadAttention with a bias and unknown sizes is not supported", code="shape",
                                   where=call.label)
        biases = b.add_several("Split", [bias, np.asarray(sizes, np.int64)], {"axis": 0}, outputs=3)
        query = b.Add(query, biases[0])
        key, value = (b.Add(x, y) if len(x.shape) == 3 else x for x, y in zip((key, value), biases[1:], strict=True))
    heads = Heads(split_heads(b, query, count),
                  *(x if len(x.shape) == 4 else split_heads(b, x, count) for x in (key, value)))
    causal = bool(call.take("unidirectional", 0))
    if causal and call.optional(6) is None and heads.query.shape[2] != heads.key.shape[2]:
        raise UnsupportedError(f"MultiHeadAttention with unidirectional=1 and {heads.query.shape[2]!r} queries for "
                               f"{heads.key.shape[2]!r} keys is not supported", code="shape", where=call.label)
    for name, slot in (("key", 6), ("value", 7)):
        if (past := call.optional(slot)) is not None:
            setattr(heads, name, b.Concat(past, getattr(heads, name), axis=2))
    shown = mask_bias(b, call, call.optional(4), heads.key, hidden)
    more = call.optional(5)
    total = more if shown is None else added(b, shown, more)
    y = attended(b, heads, call.take("scale"), total, causal)
    return joined_heads(b, y), *(x if call.wants(k) else None for k, x in ((1, heads.key), (2, heads.value)))


def _unpacked(b: ImportBuilder, call: ImportedNode) -> tuple[Value, Value, Value]:
    """Return queries, keys and values; packed ones lie beside each other [batch, length, heads, 3, size], or keys and values
    alone [batch, length, heads, 2, size]."""
    query, key, value = call.input(0), call.optional(1), call.optional(2)
    if key is None and value is None and len(query.shape) == 5:
        query, key, value = _apart(b, query, 3)
    elif key is not None and value is None and len(key.shape) == 5:
        key, value = _apart(b, key, 2)
    if key is None or value is None or len(query.shape) != 3:
        given = ", ".join("none" if v is None else repr(v.type) for v in (query, key, value))
        raise UnsupportedError(f"MultiHeadAttention takes queries, keys and values of rank 3, queries with keys and values of rank "
                               f"5, or keys with values of rank 5; got {given}", code="input", where=call.label)
    return query, key, value


def _apart(b: ImportBuilder, packed: Value, count: int) -> list[Value]:
    """Return what lies beside each other along axis 3, as [batch, length, heads * size]."""
    parts = b.add_several("Split", [packed], {"axis": 3, "num_outputs": count}, outputs=count)
    return [b.Reshape(part, np.asarray([0, 0, -1], np.int64)) for part in parts]


@contributed("RotaryEmbedding")
def rotary_embedding(b: ImportBuilder, call: ImportedNode) -> Results:
    """Pairs of entries of each head turned by the angles of their position; the cosines and sines are tables.

    The attribute ``scale`` does nothing, as in onnxruntime.
    """
    refuse_attributes(call, is_packed_batching=0)
    call.take("scale")
    x, places, cosines, sines = (call.input(k) for k in range(4))
    rank, count = len(x.shape), int(call.take("num_heads", 0))
    turned, half = int(call.take("rotary_embedding_dim", 0)), cosines.shape[1]
    if not isinstance(half, int):
        raise UnsupportedError("RotaryEmbedding with tables of unknown size is not supported", code="shape", where=call.label)
    if rank == 3:
        inner = [0, 0, count, -1] if turned and count else [0, 0, -1, 2 * half]
        x4 = b.Reshape(x, np.asarray(inner, np.int64))
    else:
        x4 = b.Transpose(x, perm=_SWAP)
    y = rotated(b, x4, _positions(b, x4, places), cosines, sines, 2 * half, bool(call.take("interleaved", 0)))
    return (b.Reshape(y, b.shape(x)) if rank == 3 else b.Transpose(y, perm=_SWAP),)


def _positions(b: ImportBuilder, x: Value, places: Value) -> Value:
    """Return the position [batch or 1, length] of each row; a single number is that of the first."""
    if len(places.shape) == 2:
        return places
    return b.Unsqueeze(b.Add(ramp(b, b.extent(x, 1)), places), [0])


def rotated(b: ImportBuilder, x: Value, places: Value, cosines: Value, sines: Value, turned: int, interleaved: bool) -> Value:
    """Return x [batch, length, heads, size] with its first ``turned`` entries turned: the halves, or neighbours, are pairs."""
    cosine, sine = (b.Unsqueeze(b.cast(b.Gather(table, places), x.type.dtype), [2]) for table in (cosines, sines))
    rest = b.Slice(x, [turned], [END], [3])
    front = b.Slice(x, [0], [turned], [3])
    if interleaved:
        first, second = (b.Slice(front, [k], [END], [3], [2]) for k in range(2))
    else:
        first, second = b.Slice(front, [0], [turned // 2], [3]), b.Slice(front, [turned // 2], [turned], [3])
    real = b.Sub(b.Mul(first, cosine), b.Mul(second, sine))
    imaginary = b.Add(b.Mul(first, sine), b.Mul(second, cosine))
    if interleaved:
        pairs = b.Concat(b.Unsqueeze(real, [4]), b.Unsqueeze(imaginary, [4]), axis=4)
        y = b.Reshape(pairs, b.shape(front))
    else:
        y = b.Concat(real, imaginary, axis=3)
    whole = x.shape[3]
    return y if whole == turned else b.Concat(y, rest, axis=3)


# ---- grouped queries ----------------------------------------------------------------------------------------------------


@contributed("GroupQueryAttention")
def group_query_attention(b: ImportBuilder, call: ImportedNode) -> Results:
    """Causal attention where several heads of queries share one of keys and values, which are appended to a cache.

    Row k of the batch has ``seqlens_k[k] + 1`` keys in all; the cache keeps its length unless more are needed. Without an
    input for keys, the first input holds queries, keys and values side by side.
    """
    refuse_attributes(call, local_window_size=-1, smooth_softmax=0, qk_output=0, kv_cache_bit_width=0)
    refuse_inputs(call, position_ids=9, attention_bias=10, head_sink=11)
    count, shared = int(call.required("num_heads")), int(call.required("kv_num_heads"))
    query, key, value = (split_heads(b, x, n) for x, n in zip(_three(b, call, count, shared), (count, shared, shared),
                                                              strict=True))
    length = b.Squeeze(b.extent(query, 2), [0])
    total = b.Squeeze(b.cast(b.Reshape(call.input(6), [1]), INT64), [0])
    keys = b.Add(b.cast(b.Reshape(call.input(5), [-1, 1]), INT64), np.int64(1))
    start = b.Max(b.Sub(keys, length), np.int64(0))  # of a prompt, whose rows may be padded: 0
    start = b.Where(b.Equal(length, total), np.int64(0), start)
    places = b.Add(start, b.Unsqueeze(ramp(b, b.extent(query, 2)), [0]))
    if call.take("do_rotary", 0):
        query, key = (_turned(b, call, x, places) for x in (query, key))
    present = [_cached(b, call.optional(slot), new, start, total) for slot, new in ((3, key), (4, value))]
    shown = b.LessOrEqual(ramp(b, b.extent(present[0], 2)), b.Unsqueeze(places, [1, 3]))
    bias = b.Where(shown, b.scalar(0, query.type.dtype), b.scalar(float("-inf"), query.type.dtype))
    heads = Heads(query, *(_repeated(b, x, count // shared) for x in present))
    y = attended(b, heads, call.take("scale"), bias, False, float(call.take("softcap", 0.0)))
    return joined_heads(b, y), *present


def _three(b: ImportBuilder, call: ImportedNode, count: int, shared: int) -> tuple[Value, Value, Value]:
    """Return queries, keys and values [batch, length, heads * size]."""
    query, key, value = (call.optional(k) for k in range(3))
    assert query is not None
    if key is not None and value is not None:
        return query, key, value
    width = query.shape[2]
    if not isinstance(width, int):
        raise UnsupportedError("GroupQueryAttention with packed inputs of unknown size is not supported", code="shape",
                               where=call.label)
    size = width // (count + 2 * shared)
    parts = b.add_several("Split", [query, np.asarray([count * size, shared * size, shared * size], np.int64)], {"axis": 2},
                          outputs=3)
    return parts[0], parts[1], parts[2]


def _turned(b: ImportBuilder, call: ImportedNode, x: Value, places: Value) -> Value:
    cosines, sines = call.input(7), call.input(8)
    half = cosines.shape[1]
    if not isinstance(half, int):
        raise UnsupportedError("GroupQueryAttention with tables of unknown size is not supported", code="shape",
                               where=call.label)
    interleaved = bool(call.attributes.get("rotary_interleaved", 0))
    return b.Transpose(rotated(b, b.Transpose(x, perm=_SWAP), places, cosines, sines, 2 * half, interleaved), perm=_SWAP)


def _cached(b: ImportBuilder, past: Value | None, new: Value, start: Value, total: Value) -> Value:
    """Return past [batch, heads, places, size] with ``new`` from ``start`` [batch, 1] on, zeros after; as long as needed."""
    zero, one = np.int64(0), np.int64(1)
    length = b.Squeeze(b.extent(new, 2), [0])
    if past is None:
        past = b.Slice(new, [0], [0], [2])
    held = b.Squeeze(b.extent(past, 2), [0])
    every = b.Max(held, total)
    missing = b.Unsqueeze(b.Sub(every, held), [0])
    longer = b.Pad(past, b.Concat(np.zeros(6, np.int64), missing, np.zeros(1, np.int64), axis=0))
    place = b.Sub(b.Unsqueeze(b.Range(zero, every, one), [0]), start)  # in the new part [batch, places]
    source = b.Unsqueeze(b.Min(b.Max(place, zero), b.Sub(length, one)), [1, 3])
    like = b.Concat(b.extent(new, 0), b.extent(new, 1), b.Unsqueeze(every, [0]), b.extent(new, 3), axis=0)
    appended = b.GatherElements(new, b.Expand(source, like), axis=2)
    is_new, is_past = (b.Unsqueeze(m, [1, 3]) for m in (b.And(b.GreaterOrEqual(place, zero), b.Less(place, length)),
                                                        b.Less(place, zero)))
    return b.Where(is_new, appended, b.Where(is_past, longer, b.scalar(0, new.type.dtype)))


def _repeated(b: ImportBuilder, x: Value, times: int) -> Value:
    """Return each head ``times`` times, one after the other."""
    if times == 1:
        return x
    apart = b.Expand(b.Unsqueeze(x, [2]), np.asarray([1, 1, times, 1, 1], np.int64))
    joined = b.Concat(b.extent(x, 0), np.asarray([-1], np.int64), b.extent(x, 2), b.extent(x, 3), axis=0)
    return b.Reshape(apart, joined)
