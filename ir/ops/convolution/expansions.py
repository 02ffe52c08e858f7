"""The derivatives of convolution and pooling in plain ONNX, for extents known before the run or only in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Node, Value
from flowgrad.ir.ops.convolution.window import SAME, spatial_tuple, split_pads
from flowgrad.ir.ops.operands import END, divided, known_ints, moved_first, ramp
from flowgrad.ir.ops.registry import attr

LISTED = 2**16
"""Up to so many numbers a range is a constant, else a node."""


def vector_tail(b: Builder, x: Value) -> Value:
    """Return the spatial extents of ``x`` as an int64 vector."""
    if all(isinstance(n, int) for n in x.shape[2:]):
        return b.ints(x.shape[2:])
    return b.Shape(x, start=2)


def shape_tail(b: Builder, shape: Value) -> Value:
    """Return the spatial entries of a shape vector."""
    known = known_ints(shape)
    return b.ints(known[2:]) if known is not None else b.Slice(shape, [2], [END])


@dataclass
class Slide:
    """How a kernel slides over an image whose extents are the entries of the vector ``sizes``."""

    b: Builder
    rank: int
    sizes: Value
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, ...], tuple[int, ...]]
    auto_pad: str

    @staticmethod
    def of(b: Builder, node: Node, rank: int, sizes: Value) -> Slide:
        """Return the geometry that the attributes of ``node`` describe."""
        mode = str(attr(node, "auto_pad"))
        pads = split_pads(attr(node, "pads") if mode == "NOTSET" else None, rank)
        strides = spatial_tuple(attr(node, "strides"), rank, 1, "strides")
        dilations = spatial_tuple(attr(node, "dilations"), rank, 1, "dilations")
        return Slide(b, rank, sizes, strides, dilations, pads, mode)

    def reach(self, kernel: Value) -> Value:
        """Return how many positions a window covers, per axis."""
        known = known_ints(kernel)
        if known is not None:
            return self.b.ints([(k - 1) * d + 1 for k, d in zip(known, self.dilations, strict=True)])
        return self.b.Add(self.b.Mul(self.b.Sub(kernel, 1), list(self.dilations)), 1)

    def known_pads(self, kernel: Value) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return the pads before and after if they are known before the run."""
        if self.auto_pad not in SAME:
            return self.pads
        reach, sizes = known_ints(self.reach(kernel)), known_ints(self.sizes)
        if reach is None:
            return None
        if all(s == 1 for s in self.strides):
            totals = [max(r - 1, 0) for r in reach]
        elif sizes is not None:
            totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(sizes, self.strides, reach, strict=True)]
        else:
            return None
        small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)

    def begin_end(self, kernel: Value) -> tuple[Value, Value]:
        """Return the pads before and after as vectors."""
        b, known = self.b, self.known_pads(kernel)
        if known is not None:
            return b.ints(known[0]), b.ints(known[1])
        strides = list(self.strides)
        windows = b.Div(b.Add(self.sizes, [s - 1 for s in strides]), strides)
        span = b.Add(b.Mul(b.Sub(windows, 1), strides), self.reach(kernel))
        total = b.Max(b.Sub(span, self.sizes), b.ints([0]))
        small = b.Div(total, 2)
        large = b.Sub(total, small)
        return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)


def pad_image(b: Builder, x: Value, begin: Value, end: Value) -> Value:
    """Return ``x`` with its image padded by zeros, or cut where a pad is negative."""
    return b.Pad(x, b.Concat([0, 0], begin, [0, 0], end, axis=0))


def input_gradient(b: Builder, slide: Slide, y_bar: Value, w: Value, group: int) -> Value:
    """Return x_bar: a transposed convolution, cut or padded to the image.

    Where the extents are not known, what the strides leave over at the end is not known either, hence the Pad.
    """
    kernel = vector_tail(b, w)
    if group == 1 and _is_pointwise(slide, kernel) and set(slide.strides) == {1}:
        return b.Conv(y_bar, b.Transpose(w, perm=moved_first([1], slide.rank + 2)))
    how = {"strides": slide.strides, "dilations": slide.dilations, "group": group}
    pads = slide.known_pads(kernel)
    left_over = _left_over(slide, y_bar, kernel, pads)
    if pads is not None and left_over is not None:
        return b.ConvTranspose(y_bar, w, pads=(*pads[0], *pads[1]), output_padding=left_over, **how)
    full = b.ConvTranspose(y_bar, w, **how)
    begin, _ = slide.begin_end(kernel)
    return pad_image(b, full, b.Neg(begin), b.Sub(b.Add(begin, slide.sizes), vector_tail(b, full)))


def _left_over(
    slide: Slide, y_bar: Value, kernel: Value, pads: tuple[tuple[int, ...], tuple[int, ...]] | None
) -> tuple[int, ...] | None:
    """Return the output padding that makes a ConvTranspose of y_bar as large as the image, if it is known and legal."""
    sizes, reach = known_ints(slide.sizes), known_ints(slide.reach(kernel))
    if pads is None or reach is None:
        return None
    if sizes is None or not all(isinstance(n, int) for n in y_bar.shape[2:]):
        return None if any(s > 1 for s in slide.strides) else (0,) * slide.rank
    made = [n for n in y_bar.shape[2:] if isinstance(n, int)]
    covered = [(o - 1) * s + r - p - q for o, s, r, p, q in
               zip(made, slide.strides, reach, *pads, strict=True)]
    over = tuple(n - c for n, c in zip(sizes, covered, strict=True))
    return over if all(0 <= v < max(s, 1) for v, s in zip(over, slide.strides, strict=True)) else None


def weight_gradient(b: Builder, slide: Slide, x: Value, y_bar: Value, w_shape: Value, group: int) -> Value:
    """Return w_bar: a convolution of x with y_bar as the kernel, batch and channels swapped, strides as dilations."""
    kernel = shape_tail(b, w_shape)
    if group == 1 and _is_pointwise(slide, kernel) and all(_is_positive(v.shape[1]) for v in (x, y_bar)):
        return _pointwise_weights(b, slide, x, y_bar, w_shape)
    pads = slide.known_pads(kernel)
    if pads is None:
        x = pad_image(b, x, *slide.begin_end(kernel))
        pads = ((0,) * slide.rank, (0,) * slide.rank)
    turned = _channels_first(b, x, group)
    swapped = [1, 0, *range(2, slide.rank + 2)]
    product = b.Conv(turned, b.Transpose(y_bar, perm=swapped), group=group, strides=slide.dilations,
                     dilations=slide.strides, pads=(*pads[0], *pads[1]))
    axes = list(range(2, slide.rank + 2))
    cut = b.Slice(product, [0] * slide.rank, kernel, axes)  # positions that the strides skip would follow
    return b.Transpose(cut, perm=swapped)


def _is_pointwise(slide: Slide, kernel: Value) -> bool:
    known, pads = known_ints(kernel), slide.known_pads(kernel)
    return known is not None and set(known) == {1} and pads is not None and not any((*pads[0], *pads[1]))


def _is_positive(extent: object) -> bool:
    return isinstance(extent, int) and extent > 0


def _pointwise_weights(b: Builder, slide: Slide, x: Value, y_bar: Value, w_shape: Value) -> Value:
    """Return w_bar of a kernel of one tap: one matrix product, where runtimes are slow at a kernel as large as the image."""
    if any(s > 1 for s in slide.strides):
        axes = list(range(2, slide.rank + 2))
        x = b.Slice(x, [0] * slide.rank, [END] * slide.rank, axes, list(slide.strides))
    left, right = (b.Reshape(_channels_first(b, v, 1), [v.shape[1], -1]) for v in (y_bar, x))
    return b.Reshape(b.Gemm(left, right, transB=1), w_shape, allowzero=1)


def _channels_first(b: Builder, x: Value, group: int) -> Value:
    """Return x (batch, channels, image) as (channels / group, group * batch, image)."""
    rank = len(x.shape)
    if group == 1:
        return b.Transpose(x, perm=moved_first([1], rank))
    batch, sizes = b.extent(x, 0), vector_tail(b, x)
    inner = b.Div(b.extent(x, 1), [group])
    split = b.Reshape(x, b.Concat(batch, [group], inner, sizes, axis=0), allowzero=1)
    moved = b.Transpose(split, perm=[2, 1, 0, *range(3, rank + 1)])
    return b.Reshape(moved, b.Concat(inner, b.Mul(batch, [group]), sizes, axis=0), allowzero=1)


# ---- pooling ------------------------------------------------------------------------------------------------------------


def window_counts(b: Builder, slide: Slide, pooled: Value, kernel: Sequence[int], include_pad: int) -> Value:
    """Return how many positions each window counts, as a tensor that broadcasts against ``pooled``, in the type that
    is computed in."""
    begin, end = slide.begin_end(b.ints(kernel))
    total = None
    for axis, taps in enumerate(kernel):
        outputs = b.extent(pooled, axis + 2)
        start, size = _entry(b, begin, axis), _entry(b, slide.sizes, axis)
        corners = b.Mul(_range(b, outputs), slide.strides[axis])
        at = b.Add(b.Unsqueeze(b.Sub(corners, start), [1]), [k * slide.dilations[axis] for k in range(taps)])
        low = b.Neg(start) if include_pad else b.ints([0])
        high = b.Add(size, _entry(b, end, axis)) if include_pad else size
        counted = b.And(b.GreaterOrEqual(at, low), b.Less(at, high))
        counts = b.ReduceSum(b.cast(counted, pooled.type.dtype.wide), [1], keepdims=0)
        column = b.Unsqueeze(counts, list(range(1, slide.rank - axis))) if axis < slide.rank - 1 else counts
        total = column if total is None else b.Mul(total, column)
    return total  # type: ignore[return-value]


def _entry(b: Builder, vector: Value, axis: int) -> Value:
    known = known_ints(vector)
    return b.ints([known[axis]]) if known is not None else b.Slice(vector, [axis], [axis + 1])


def _range(b: Builder, length: Value) -> Value:
    known = known_ints(length)
    if known is not None and known[0] <= LISTED:
        return b.value(np.arange(known[0], dtype=np.int64))
    return ramp(b, length)


def average_gradient(b: Builder, slide: Slide, y_bar: Value, x_shape: Value, kernel: Sequence[int], include_pad: int) -> Value:
    """Return x_bar of an average pooling: what each window counted gets an even share, channel by channel."""
    share = divided(b, y_bar, b.Max(window_counts(b, slide, y_bar, kernel, include_pad), 1.0))
    planes = b.ReduceProd(b.Slice(x_shape, [0], [2]), keepdims=1)
    single = b.Reshape(share, b.Concat(planes, [1], vector_tail(b, y_bar), axis=0), allowzero=1)
    ones = b.value(np.ones((1, 1, *kernel), y_bar.type.dtype.numpy))
    return b.Reshape(input_gradient(b, slide, single, ones, 1), x_shape, allowzero=1)
