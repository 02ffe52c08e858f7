"""What operators compute that the standard defines by a function body, by its text, in PyTorch."""

from __future__ import annotations

import math

import torch

from flowgrad.tools.maintenance.torch_nodes import Call, Tensor, mirror


def _heads(x: Tensor, count: int) -> Tensor:
    """Return (batch, length, heads * size) as (batch, heads, length, size)."""
    return x.reshape(x.shape[0], x.shape[1], count, x.shape[2] // count).transpose(1, 2)


def _packed(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


@mirror("Attention")
def _attention(c: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_k: Tensor | None = None,
               past_v: Tensor | None = None, valid: Tensor | None = None) -> list[Tensor]:
    flat = q.ndim == 3
    if flat:
        q, k, v = _heads(q, c.q_num_heads), _heads(k, c.kv_num_heads), _heads(v, c.kv_num_heads)
    if past_k is not None:
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    groups, rows, columns = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    scale = 1 / math.sqrt(q.shape[3]) if c.scale is None else c.scale
    raw = scale * (q @ k.repeat_interleave(groups, 1).transpose(2, 3))
    capped = c.softcap * torch.tanh(raw / c.softcap) if c.softcap else raw
    seen, bias = _visible(c, q, rows, columns, past_k, valid), torch.zeros((), dtype=q.dtype)
    if mask is not None:
        missing = columns - mask.shape[-1]
        if mask.dtype == torch.bool:
            seen = seen & torch.nn.functional.pad(mask, (0, missing), value=False)
        else:
            seen = seen & torch.nn.functional.pad(torch.ones_like(mask, dtype=torch.bool), (0, missing), value=False)
            bias = torch.nn.functional.pad(mask, (0, missing))
    seen = seen.expand(raw.shape)
    scores = torch.where(seen, capped + bias, torch.full_like(raw, -math.inf))
    some = seen.any(-1, keepdim=True)
    nothing = torch.zeros_like(scores)
    chances = torch.where(some, torch.softmax(torch.where(some, scores, nothing), -1), nothing)
    y = chances @ v.repeat_interleave(groups, 1)
    return [_packed(y) if flat else y, k, v, (raw, capped, scores, chances)[c.qk_matmul_output_mode]]


def _visible(c: Call, q: Tensor, rows: int, columns: int, past: Tensor | None, valid: Tensor | None) -> Tensor:
    """Return which keys each query sees, without the mask: (batch or 1, 1, rows, columns)."""
    offset = torch.tensor([0 if past is None else past.shape[2]])
    if valid is not None and past is None:
        offset = valid - rows
    places = torch.arange(rows)[:, None] + offset.reshape(-1, 1, 1, 1)
    keys = torch.arange(columns)
    seen = torch.ones_like(places - keys, dtype=torch.bool)
    if c.is_causal:
        seen = seen & (keys <= places)
    if c.left_window_size >= 0:
        seen = seen & (keys >= places - c.left_window_size)
    if c.right_window_size >= 0:
        seen = seen & (keys <= places + c.right_window_size)
    return seen if valid is None else seen & (keys < valid.reshape(-1, 1, 1, 1))


@mirror("RotaryEmbedding")
def _rotary(c: Call, x: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None = None) -> Tensor:
    flat = x.ndim == 3
    y = _heads(x, c.num_heads) if flat else x
    size = c.rotary_embedding_dim or y.shape[3]
    turned, rest = y[..., :size], y[..., size:]
    if places is not None:
        cosines, sines = cosines[places], sines[places]
    cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
    a, b = (turned[..., 0::2], turned[..., 1::2]) if c.interleaved else turned.chunk(2, -1)
    parts = [cosines * a - sines * b, sines * a + cosines * b]
    made = torch.stack(parts, -1).flatten(-2) if c.interleaved else torch.cat(parts, -1)
    y = torch.cat([made, rest], -1)
    return _packed(y) if flat else y


@mirror("LinearAttention")
def _linear_attention(c: Call, q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None, decay: Tensor | None = None,
                      rate: Tensor | None = None) -> list[Tensor]:
    heads, rule = c.kv_num_heads, c.update_rule
    queries, keys, values = _heads(q, c.q_num_heads), _heads(k, heads), _heads(v, heads)
    scale = c.scale or 1 / math.sqrt(queries.shape[3])
    s = keys.new_zeros(keys.shape[0], heads, keys.shape[3], values.shape[3]) if state is None else state
    rows = []
    for t in range(q.shape[1]):
        key, value = keys[:, :, t, :, None], values[:, :, t, None, :]
        if "gated" in rule and decay is not None:
            s = torch.exp(decay[:, t].reshape(len(q), heads, decay.shape[2] // heads, 1)) * s
        if "delta" in rule and rate is not None:
            value = rate[:, t, :, None, None] * (value - (key * s).sum(2, keepdim=True))
        s = s + key * value
        rows.append(scale * (queries[:, :, t, :, None] * s.repeat_interleave(queries.shape[1] // heads, 1)).sum(2))
    return [torch.stack(rows, 1).flatten(2), s]


@mirror("CausalConvWithState")
def _causal_convolution(c: Call, x: Tensor, w: Tensor, bias: Tensor | None = None, past: Tensor | None = None) -> list[Tensor]:
    kernel = w.shape[2]
    if past is None:
        past = x.new_zeros(*x.shape[:2], kernel - 1)
    whole = torch.cat([past, x], 2)
    y = sum(whole[:, :, i:i + x.shape[2]] * w[:, 0, i, None] for i in range(kernel))
    y = y if bias is None else y + bias[:, None]
    return [y if c.activation == "none" else y * torch.sigmoid(y), whole[:, :, whole.shape[2] - kernel + 1:]]
