"""What layers compute, by the ONNX standard, in PyTorch: norms, windows, losses, recurrence, control flow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from flowgrad.tools.maintenance.torch_nodes import Call, NoMirror, Tensor, mirror, run_graph, softplus
from flowgrad.tools.maintenance.torch_shapes import taken

# ---- norms ----------------------------------------------------------------------------------------------------------------


def _centred(x: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalized x, the mean and 1 / sqrt(variance + epsilon)."""
    mean = x.mean(list(axes), keepdim=True)
    inverse = 1 / torch.sqrt(((x - mean) ** 2).mean(list(axes), keepdim=True) + epsilon)
    return (x - mean) * inverse, mean, inverse


def _of_channel(numbers: Tensor, x: Tensor) -> Tensor:
    return numbers.reshape([1, -1] + [1] * (x.ndim - 2))


@mirror("LayerNormalization")
def _layer_norm(c: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> list[Tensor]:
    y, mean, inverse = _centred(x, range(c.axis % x.ndim, x.ndim), c.epsilon)
    y = y * scale
    return [y if bias is None else y + bias, mean, inverse]


@mirror("RMSNormalization")
def _rms_norm(c: Call, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(c.axis % x.ndim, x.ndim))
    return x / torch.sqrt((x * x).mean(axes, keepdim=True) + c.epsilon) * scale


@mirror("BatchNormalization")
def _batch_norm(c: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> list[Tensor]:
    if not c.training_mode:
        y = (x - _of_channel(mean, x)) / torch.sqrt(_of_channel(variance, x) + c.epsilon)
        return [y * _of_channel(scale, x) + _of_channel(bias, x)]
    axes = [0, *range(2, x.ndim)]
    now = x.mean(axes)
    spread = ((x - _of_channel(now, x)) ** 2).mean(axes)
    y = (x - _of_channel(now, x)) / torch.sqrt(_of_channel(spread, x) + c.epsilon)
    return [y * _of_channel(scale, x) + _of_channel(bias, x), mean * c.momentum + now * (1 - c.momentum),
            variance * c.momentum + spread * (1 - c.momentum)]


@mirror("InstanceNormalization")
def _instance_norm(c: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return _centred(x, range(2, x.ndim), c.epsilon)[0] * _of_channel(scale, x) + _of_channel(bias, x)


@mirror("GroupNormalization")
def _group_norm(c: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    grouped = x.reshape(x.shape[0], c.num_groups, x.shape[1] // c.num_groups, *x.shape[2:])
    y = _centred(grouped, range(2, grouped.ndim), c.epsilon)[0].reshape(x.shape)
    return y * _of_channel(scale, x) + _of_channel(bias, x)


@mirror("LpNormalization")
def _lp_norm(c: Call, x: Tensor) -> Tensor:
    if c.p == 1:
        c.kink(x, agreed=True)
    total = (x.abs() if c.p == 1 else x * x).sum(c.axis, keepdim=True)
    c.kink(total)
    return x / (total if c.p == 1 else torch.sqrt(total))


@mirror("LRN")
def _lrn(c: Call, x: Tensor) -> Tensor:
    below, above = (c.size - 1) // 2, c.size - 1 - (c.size - 1) // 2
    sums = [(x[:, max(0, i - below):i + above + 1] ** 2).sum(1) for i in range(x.shape[1])]
    return x / (c.bias + c.alpha / c.size * torch.stack(sums, 1)) ** c.beta


@mirror("MeanVarianceNormalization")
def _mean_variance(c: Call, x: Tensor) -> Tensor:
    axes = list(c.axes)
    centred = x - x.mean(axes, keepdim=True)
    spread = (centred ** 2).mean(axes, keepdim=True)
    c.step(spread, exact=False)
    return centred / (torch.sqrt(spread) + 1e-9)


@mirror("Dropout")
def _dropout(c: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> list[Tensor]:
    if training is not None and bool(training) and (ratio is None or float(ratio)):
        raise NoMirror("Dropout that draws")
    return [x.clone(), torch.ones_like(x, dtype=torch.bool)]


# ---- windows --------------------------------------------------------------------------------------------------------------


def _padding(c: Call, extents: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Return strides, dilations and the padding before and after each axis."""
    strides, dilations = list(c.strides or [1] * len(kernel)), list(c.dilations or [1] * len(kernel))
    if c.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for n, k, s, d in zip(extents, kernel, strides, dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            small, large = total // 2, total - total // 2
            found.append((small, large) if c.auto_pad == "SAME_UPPER" else (large, small))
        return strides, dilations, found
    pads = list(c.pads or [0] * 2 * len(kernel)) if c.auto_pad == "NOTSET" else [0] * 2 * len(kernel)
    return strides, dilations, list(zip(pads[:len(kernel)], pads[len(kernel):], strict=True))


def _flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    """Return padding as torch.nn.functional.pad takes it: the last axis first."""
    return [p for pair in reversed(pads) for p in pair]


@mirror("Conv")
def _conv(c: Call, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations, pads = _padding(c, x.shape[2:], w.shape[2:])
    apply = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[x.ndim - 3]
    return apply(torch.nn.functional.pad(x, _flat(pads)), w, bias, strides, 0, dilations, c.group)


@mirror("ConvTranspose")
def _conv_transpose(c: Call, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    strides, dilations = list(c.strides or [1] * rank), list(c.dilations or [1] * rank)
    more = list(c.output_padding or [0] * rank)
    full = [s * (n - 1) + (k - 1) * d + 1 for n, k, s, d in zip(x.shape[2:], w.shape[2:], strides, dilations, strict=True)]
    if c.output_shape or c.auto_pad != "NOTSET":
        wanted = [f + m for f, m in zip(full, more, strict=True)]
        if c.auto_pad.startswith("SAME"):
            wanted = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        wanted = list(c.output_shape or wanted)
        totals = [f + m - n for f, m, n in zip(full, more, wanted, strict=True)]
        halves = [(t // 2, t - t // 2) for t in totals]
        pads = halves if c.auto_pad == "SAME_UPPER" else [(b, a) for a, b in halves]
    else:
        given = list(c.pads or [0] * 2 * rank)
        pads = list(zip(given[:rank], given[rank:], strict=True))
    apply = (torch.nn.functional.conv_transpose1d, torch.nn.functional.conv_transpose2d,
             torch.nn.functional.conv_transpose3d)[rank - 1]
    if 0 in x.shape[2:]:  # which PyTorch refuses: nothing is added to an image of zeros
        y = (x.sum() + 0 * w.sum()).expand(x.shape[0], w.shape[1] * c.group, *full)
    else:
        y = apply(x, w, None, strides, 0, 0, c.group, dilations)
    y = torch.nn.functional.pad(y, _flat([(-a, m - b) for (a, b), m in zip(pads, more, strict=True)]))
    return y if bias is None else y + bias.reshape([1, -1] + [1] * rank)


def _windows(c: Call, x: Tensor, fill: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the elements of each window along a last axis, which of them lie in the image, and which in its padding or it."""
    kernel = list(c.kernel_shape)
    strides, dilations, pads = _padding(c, x.shape[2:], kernel)
    places = []
    for n, k, s, d, (before, after) in zip(x.shape[2:], kernel, strides, dilations, pads, strict=True):
        room = n + before + after - d * (k - 1) - 1
        count = (-(-room // s) if c.ceil_mode else room // s) + 1
        if c.ceil_mode and (count - 1) * s >= n + before:
            count -= 1
        places.append([[o * s + i * d - before for i in range(k)] for o in range(count)])
    inside = torch.ones((), dtype=torch.bool)
    padded = torch.ones((), dtype=torch.bool)
    rank, y = len(kernel), x
    for axis, rows in enumerate(places):
        flat = [p for row in rows for p in row]
        n, (before, after) = x.shape[2 + axis], pads[axis]
        y = taken(y, 2 + 2 * axis, [min(max(p, 0), n - 1) for p in flat])
        y = y.reshape(*y.shape[:2 + 2 * axis], len(rows), kernel[axis], *y.shape[3 + 2 * axis:])
        shape = [len(rows), kernel[axis]] + [1] * (2 * (rank - 1 - axis))
        inside = inside & torch.tensor([0 <= p < n for p in flat]).reshape(shape)
        padded = padded & torch.tensor([-before <= p < n + after for p in flat]).reshape(shape)
    order = [2 * a for a in range(rank)] + [2 * a + 1 for a in range(rank)]
    ends = [len(rows) for rows in places]
    y = y.permute([0, 1] + [2 + a for a in order]).reshape(*x.shape[:2], *ends, -1)
    inside, padded = (t.permute(order).reshape(*ends, -1) for t in (inside, padded))
    return torch.where(inside, y, torch.full_like(y, fill)), inside, padded


@mirror("MaxPool")
def _max_pool(c: Call, x: Tensor) -> Tensor:
    if c.count > 1:
        raise NoMirror("places of MaxPool")
    y = _windows(c, x, -math.inf)[0]
    if y.shape[-1] > 1:
        ordered = y.detach().sort(-1, descending=True).values
        c.kink(ordered[..., 0] - ordered[..., 1])
    return y.max(-1).values


@mirror("AveragePool")
def _average_pool(c: Call, x: Tensor) -> Tensor:
    y, inside, padded = _windows(c, x, 0.0)
    return y.sum(-1) / (padded if c.count_include_pad else inside).sum(-1)


@mirror("LpPool")
def _lp_pool(c: Call, x: Tensor) -> Tensor:
    return _root(c, _windows(c, x, 0.0)[0], [-1], False)


def _root(c: Call, x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if c.p % 2:
        c.kink(x, agreed=True)
    total = (x.abs() ** c.p).sum(axes, keepdim=keep)
    if c.p > 1:
        c.kink(total)
    return total ** (1 / c.p)


@mirror("GlobalLpPool")
def _global_lp_pool(c: Call, x: Tensor) -> Tensor:
    return _root(c, x, list(range(2, x.ndim)), True)


@mirror("GlobalAveragePool")
def _global_average(c: Call, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@mirror("GlobalMaxPool")
def _global_max(c: Call, x: Tensor) -> Tensor:
    flat = x.reshape(*x.shape[:2], -1)
    if flat.shape[-1] > 1:
        ordered = flat.detach().sort(-1, descending=True).values
        c.kink(ordered[..., 0] - ordered[..., 1])
    return flat.max(-1).values.reshape(*x.shape[:2], *[1] * (x.ndim - 2))


# ---- losses ---------------------------------------------------------------------------------------------------------------


def _loss(c: Call, scores: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """The negative log-likelihood of labels, given the logarithms of probabilities."""
    kept = torch.ones_like(labels, dtype=torch.bool) if c.ignore_index is None else labels != c.ignore_index
    safe = torch.where(kept, labels, torch.zeros_like(labels)).long()
    factor = kept.to(scores.dtype) if weights is None else torch.where(kept, weights[safe], torch.zeros((), dtype=scores.dtype))
    each = -factor * scores.gather(1, safe.unsqueeze(1)).squeeze(1)
    if c.reduction == "none":
        return each
    return each.sum() / factor.sum() if c.reduction == "mean" else each.sum()


@mirror("NegativeLogLikelihoodLoss")
def _likelihood(c: Call, scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    return _loss(c, scores, labels, weights)


@mirror("SoftmaxCrossEntropyLoss")
def _cross_entropy(c: Call, scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> list[Tensor]:
    logs = torch.log_softmax(scores, 1)
    return [_loss(c, logs, labels, weights), logs]


# ---- recurrence -------------------------------------------------------------------------------------------------------------

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Softsign": lambda x: x / (1 + x.abs()), "Softplus": softplus}
USUAL = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


@mirror("RNN", "GRU", "LSTM")
def _recurrent(c: Call, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
               first: Tensor | None = None, cell: Tensor | None = None, peepholes: Tensor | None = None) -> list[Tensor]:
    op, size = c.node.op, c.hidden_size
    if c.activation_alpha or c.activation_beta:
        raise NoMirror("activations with parameters")

    def turned(t: Tensor) -> Tensor:
        return t.transpose(0, 1) if c.layout else t

    x, directions = turned(x), w.shape[0]
    names = list(c.activations or USUAL[op] * directions)
    per = len(USUAL[op])
    rows, last, cells = [], [], []
    for k in range(directions):
        zeros = x.new_zeros(x.shape[1], size)
        h = zeros if first is None else turned(first)[k]
        state = zeros if cell is None else turned(cell)[k]
        acts = [GATES[n] for n in names[per * k:per * (k + 1)]]
        bias = x.new_zeros(2 * len(w[k])) if b is None else b[k]
        held = None if peepholes is None else peepholes[k].chunk(3)
        times = list(range(x.shape[0]))
        if k == 1 or c.direction == "reverse":
            times.reverse()
        out: dict[int, Tensor] = {}
        for t in times:
            new, after = _STEPS[op](c, x[t], h, state, w[k], r[k], bias.chunk(2), acts, held)
            live = x.new_ones(x.shape[1], 1, dtype=torch.bool) if lengths is None else (t < lengths)[:, None]
            h, state = torch.where(live, new, h), torch.where(live, after, state)
            out[t] = torch.where(live, new, torch.zeros_like(new))
        rows.append(torch.stack([out[t] for t in sorted(out)]) if out else x.new_zeros(0, x.shape[1], size))
        last.append(h)
        cells.append(state)
    y = torch.stack(rows, 1)
    return [y.permute(2, 0, 1, 3) if c.layout else y, turned(torch.stack(last)), turned(torch.stack(cells))]


def _limited(c: Call, x: Tensor) -> Tensor:
    """Clip what goes into an activation."""
    if c.clip is None:
        return x
    c.kink(x.abs() - c.clip)
    return x.clamp(-c.clip, c.clip)


def _rnn(c: Call, x: Tensor, h: Tensor, state: Tensor, w: Tensor, r: Tensor, bias: Any, acts: Any, held: Any) -> Any:
    return acts[0](_limited(c, x @ w.T + h @ r.T + bias[0] + bias[1])), state


def _gru(c: Call, x: Tensor, h: Tensor, state: Tensor, w: Tensor, r: Tensor, bias: Any, acts: Any, held: Any) -> Any:
    (wz, wr, wh), (rz, rr, rh) = w.chunk(3), r.chunk(3)
    (bz, br, bh), (cz, cr, ch) = bias[0].chunk(3), bias[1].chunk(3)
    z = acts[0](_limited(c, x @ wz.T + h @ rz.T + bz + cz))
    g = acts[0](_limited(c, x @ wr.T + h @ rr.T + br + cr))
    inner = g * (h @ rh.T + ch) if c.linear_before_reset else (g * h) @ rh.T + ch
    return (1 - z) * acts[1](_limited(c, x @ wh.T + inner + bh)) + z * h, state


def _lstm(c: Call, x: Tensor, h: Tensor, state: Tensor, w: Tensor, r: Tensor, bias: Any, acts: Any, held: Any) -> Any:
    i, o, f, g = (x @ w.T + h @ r.T + bias[0] + bias[1]).chunk(4, 1)
    pi, po, pf = held if held is not None else (0.0, 0.0, 0.0)
    i = acts[0](_limited(c, i + pi * state))
    f = 1 - i if c.input_forget else acts[0](_limited(c, f + pf * state))
    after = f * state + i * acts[1](_limited(c, g))
    return acts[0](_limited(c, o + po * after)) * acts[2](after), after


_STEPS: dict[str, Callable[..., Any]] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}


# ---- control flow -----------------------------------------------------------------------------------------------------------


@mirror("If")
def _if(c: Call, condition: Tensor, *, captured: list[Tensor]) -> list[Tensor]:
    return run_graph(c.node.subgraphs["then_branch" if bool(condition) else "else_branch"], captured, c.run)


def _stacked(c: Call, rows: list[Tensor], axis: int = 0) -> Tensor:
    if not rows:
        raise NoMirror(f"a {c.node.op} that collects nothing")
    return torch.stack(rows, axis)


@mirror("Loop")
def _loop(c: Call, most: Tensor | None = None, condition: Tensor | None = None, *states: Tensor, captured: list[Tensor]
          ) -> list[Tensor]:
    body, carried = c.node.subgraphs["body"], list(states)
    going = condition is None or bool(condition)
    found: list[list[Tensor]] = [[] for _ in range(c.count - len(states))]
    for i in itertools.count():
        if not going or (most is not None and i >= int(most)):
            break
        results = run_graph(body, [torch.tensor(i), torch.tensor(going), *carried, *captured], c.run)
        going, carried = bool(results[0]), results[1:1 + len(states)]
        for rows, row in zip(found, results[1 + len(states):], strict=True):
            rows.append(row)
    return [*carried, *(_stacked(c, rows) for rows in found)]


@mirror("Scan")
def _scan(c: Call, *operands: Tensor, captured: list[Tensor]) -> list[Tensor]:
    body, count = c.node.subgraphs["body"], c.num_scan_inputs
    carried, scanned = list(operands[:-count]), list(operands[-count:])
    axes = list(c.scan_input_axes or [0] * count)
    backwards = list(c.scan_input_directions or [0] * count)
    found: list[list[Tensor]] = [[] for _ in range(c.count - len(carried))]
    length = scanned[0].shape[axes[0]]
    for i in range(length):
        rows = [x.select(a, length - 1 - i if back else i) for x, a, back in zip(scanned, axes, backwards, strict=True)]
        results = run_graph(body, [*carried, *rows, *captured], c.run)
        for kept, row in zip(found, results[len(carried):], strict=True):
            kept.append(row)
        carried = results[:len(carried)]
    out_axes = list(c.scan_output_axes or [0] * len(found))
    reverse = list(c.scan_output_directions or [0] * len(found))
    ordered = [rows[::-1] if back else rows for rows, back in zip(found, reverse, strict=True)]
    return [*carried, *(_stacked(c, rows, a) for rows, a in zip(ordered, out_axes, strict=True))]
