"""Rows of the operators that read images between their pixels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, In, fixed, held, normal


def hat(d: float) -> float:
    return max(0.0, 1 - abs(d))


def keys(d: float) -> float:
    d = abs(d)
    return 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def pixel(x: Array, place: Sequence[int], padding: str, align: int) -> Array:
    """The pixel at ``place``, or what stands for it beyond the image, for all channels."""
    inside: list[int] = []
    for i, size in zip(place, x.shape[1:], strict=True):
        while padding == "reflection" and not 0 <= i < size and (size, align) != (1, 1):
            i = (0 if align else -1) - i if i < 0 else 2 * size - (2 if align else 1) - i
        if padding == "border" or (padding, size, align) == ("reflection", 1, 1):
            i = min(max(i, 0), size - 1)
        inside.append(i)
    if not all(0 <= i < n for i, n in zip(inside, x.shape[1:], strict=True)):
        return np.zeros(x.shape[0], x.dtype)
    return np.asarray(np.moveaxis(x, 0, -1)[tuple(inside)])


def between(x: Array, at: Sequence[float], mode: str, padding: str = "zeros", align: int = 1) -> Array:
    """An image (channels, ...) at one position in pixels: the sum over all pixels, most of which weigh nothing."""
    if mode == "nearest":
        return pixel(x, [round(p) for p in at], padding, align)
    kernel = hat if mode == "linear" else keys
    total = np.zeros(x.shape[0])
    for place in itertools.product(*(range(int(np.floor(p)) - 2, int(np.floor(p)) + 4) for p in at)):
        weight = np.prod([kernel(p - i) for p, i in zip(at, place, strict=True)])
        if weight:
            total += weight * pixel(x, place, padding, align)
    return total


def sampled(x: Array, grid: Array, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros") -> Array:
    """Position by position."""
    y = np.empty((*x.shape[:2], *grid.shape[1:-1]), x.dtype)
    for n, *place in np.ndindex(grid.shape[:-1]):
        at = []
        for unit, size in zip(grid[(n, *place)][::-1].astype(float), x.shape[2:], strict=True):
            at.append((unit + 1) / 2 * (size - 1) if align_corners else ((unit + 1) * size - 1) / 2)
        y[(n, slice(None), *place)] = between(x[n], at, mode, padding_mode, align_corners)
    return y


def grid(shape: Sequence[int], sizes: Sequence[int], align_corners: int, dtype: str = "float64") -> In:
    """Positions of which no coordinate is within 0.15 of a pixel or of half a pixel, some beyond the image."""

    def make(rng: np.random.Generator) -> Array:
        at = rng.integers(-4, 8, (*shape, len(sizes))) + rng.choice([0.15, 0.65], (*shape, len(sizes))) + rng.uniform(
            0, 0.2, (*shape, len(sizes)))
        size = np.array(sizes[::-1])
        units = 2 * at / np.maximum(size - 1, 1) - 1 if align_corners else (2 * at + 1) / size - 1
        return np.asarray(units, dtype)

    return In(make)


def _grid_case(sizes: tuple[int, ...], mode: str, padding: str, align: int) -> Case:
    places = grid((2, 3, 2) if len(sizes) == 2 else (2, 2, 1, 2), sizes, align)
    attributes = dict(mode=mode, padding_mode=padding, align_corners=align)
    return Case("GridSample", [normal(2, 2, *sizes), held(places) if mode == "nearest" else places], attributes,
                name=f"{'x'.join(map(str, sizes))}-{mode}-{padding}-{align}", expected=sampled)


def deformed(
    x: Array, w: Array, offset: Array, bias: Array | None = None, mask: Array | None = None, *, group: int = 1,
    offset_group: int = 1, strides: Sequence[int] = (1, 1), dilations: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0), kernel_shape: Sequence[int] = (),
) -> Array:
    """Tap by tap."""
    kernel, rank = w.shape[2:], w.ndim - 2
    shape = (len(x), offset_group, *kernel)
    moved = offset.reshape(*shape, rank, *offset.shape[2:])
    factors = np.ones((*shape, *offset.shape[2:])) if mask is None else mask.reshape(*shape, *offset.shape[2:])
    y = np.zeros((len(x), len(w), *offset.shape[2:]))
    for n, o, c, *rest in np.ndindex(*y.shape[:2], w.shape[1], *kernel, *offset.shape[2:]):
        tap, place = rest[:rank], rest[rank:]
        channel = o // (len(w) // group) * w.shape[1] + c
        chosen = (n, channel // (x.shape[1] // offset_group), *tap)
        at = [p * s - b + t * d + moved[(*chosen, i, *place)] for i, (p, s, b, t, d) in
              enumerate(zip(place, strides, pads, tap, dilations, strict=False))]
        (found,) = between(x[n, channel : channel + 1], at, "linear")
        y[(n, o, *place)] += w[(o, c, *tap)] * factors[(*chosen, *place)] * found
    return y if bias is None else y + bias.reshape(-1, *(1,) * rank)


def offsets(*shape: int) -> In:
    """Numbers of which none is within 0.2 of a whole one."""
    return In(lambda rng: rng.integers(-2, 2, shape) + rng.uniform(0.2, 0.8, shape))


CASES: list[Case] = [
    *(_grid_case((4, 3), mode, padding, align) for mode in ("linear", "nearest", "cubic")
      for padding in ("zeros", "border", "reflection") for align in (0, 1)),
    _grid_case((3, 2, 4), "linear", "reflection", 0), _grid_case((3, 2, 4), "linear", "zeros", 1),
    _grid_case((3, 2, 2), "cubic", "border", 0), _grid_case((1, 4), "linear", "border", 1),
    _grid_case((1, 1), "linear", "reflection", 1), _grid_case((1, 2), "cubic", "reflection", 0),
    Case("GridSample", [normal(2, 0, 3, 3), grid((2, 2, 2), (3, 3), 0)], name="no-channels", expected=sampled),
    Case("GridSample", [normal(1, 2, 3, 3), fixed(np.zeros((1, 0, 2, 2)))], name="no-positions", expected=sampled),
    Case("GridSample", [normal(1, 2, 3, 3), grid((1, 2, 2), (3, 3), 0, "float32")], name="narrower-grid", expected=sampled),
    Case("GridSample", [fixed([[[[1, 2], [3, 4]]]], "uint8"), fixed([[[[-0.6, 0.6], [5.0, 0.0]]]], "float32")],
         {"mode": "nearest"}, name="bytes", expected=sampled),
    Case("DeformConv", [normal(1, 2, 4, 3), normal(3, 2, 2, 2), offsets(1, 8, 3, 2)], expected=deformed),
    Case("DeformConv", [normal(2, 4, 5, 4), normal(2, 2, 2, 3), offsets(2, 24, 3, 2), normal(2), normal(2, 12, 3, 2)],
         {"group": 2, "offset_group": 2, "strides": [2, 2], "pads": [1, 0, 0, 1], "dilations": [1, 1]}, name="groups",
         expected=deformed),
    Case("DeformConv", [normal(1, 1, 4, 4), normal(1, 1, 2, 2), offsets(1, 8, 2, 2), None, normal(1, 4, 2, 2)],
         {"dilations": [2, 2], "kernel_shape": [2, 2]}, name="mask", expected=deformed),
    Case("DeformConv", [normal(1, 2, 5), normal(2, 1, 2), offsets(1, 4, 4)], {"group": 2, "offset_group": 2}, name="1d",
         expected=deformed),
    Case("DeformConv", [normal(1, 1, 2, 3, 2), normal(1, 1, 1, 2, 1), offsets(1, 6, 2, 2, 2), normal(1)], name="3d",
         expected=lambda *arrays, **more: deformed(*arrays, strides=(1,) * 3, dilations=(1,) * 3, pads=(0,) * 6, **more)),
    Case("DeformConv", [normal(0, 2, 4, 3), normal(3, 2, 2, 2), offsets(0, 8, 3, 2)], name="no-images", expected=deformed),
]
