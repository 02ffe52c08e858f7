"""Sliding windows: the geometry that convolution and pooling share, for integers and for symbolic extents."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.limits import check_scratch
from flowgrad.ir.ops.operands import known_length, unknown_shape
from flowgrad.ir.ops.registry import attr
from flowgrad.ir.types import UNKNOWN, DimLike, Shape, ceil_div

SAME = ("SAME_UPPER", "SAME_LOWER")
CEIL_MODE_SINCE = {("ceil_mode", 1): 22}
"""Before this opset, a last window wholly in the padding counted."""

KEPT_TAPS = 256
"""What windows of at most so many taps see is worked out once."""

AUTO_PADS = ("NOTSET", "VALID", *SAME)


@dataclass(frozen=True)
class Window:
    """How a kernel slides over an image: one entry per spatial axis.

    Output position o and tap k meet input position ``o * stride + k * dilation - begin``. ``begin`` may be negative,
    which leaves out the first positions.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    output: tuple[int, ...]

    @cached_property
    def reach(self) -> tuple[int, ...]:
        """How many positions a window covers from its first to its last tap."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @cached_property
    def span(self) -> tuple[int, ...]:
        """How many positions all windows cover together, from the first tap of the first to the last of the last."""
        return tuple(max(o - 1, 0) * s + r for o, s, r in zip(self.output, self.strides, self.reach, strict=True))

    @cached_property
    def taps(self) -> int:
        """How many taps a kernel has."""
        return math.prod(self.kernel)

    @cached_property
    def positions(self) -> int:
        """How many windows there are."""
        return math.prod(self.output)

    @cached_property
    def is_pointwise(self) -> bool:
        """True if every window is the single input element at its own place."""
        ones = (1,) * len(self.kernel)
        return self.kernel == ones == self.strides and not any(self.begin) and not any(self.end)


def spatial_tuple(given: Sequence[int] | None, rank: int, default: int, name: str) -> tuple[int, ...]:
    """Return an attribute with one entry per spatial axis, ``default`` for an absent one."""
    values = (default,) * rank if not given else tuple(int(v) for v in given)
    if len(values) != rank:
        raise ValidationError(f"{name} has {len(values)} entries for {rank} spatial axes", code="attribute")
    return values


def check_rank(kernel: Sequence[object], rank: int) -> None:
    """Raise ValidationError for a kernel that has not one extent per spatial axis."""
    if len(kernel) != rank:
        raise ValidationError(f"a kernel of {len(kernel)} spatial axes does not fit an image of {rank}", code="rank")


def slide(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: int = 0,
) -> Window:
    """Return the window geometry on an image with the spatial extents ``sizes``."""
    listed = (None if given is None else tuple(given) for given in (strides, dilations, pads))
    return _slide(tuple(sizes), tuple(kernel), *listed, auto_pad, ceil_mode)


@lru_cache(maxsize=1024)
def _slide(sizes: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...] | None, dilations: tuple[int, ...] | None,
           pads: tuple[int, ...] | None, auto_pad: str, ceil_mode: int) -> Window:
    """Every run asks for the same windows again: small convolutions would spend more on them than on their products."""
    rank = len(sizes)
    check_rank(kernel, rank)
    steps = spatial_tuple(strides, rank, 1, "strides")
    spread = spatial_tuple(dilations, rank, 1, "dilations")
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True)]
    begin, end = split_pads(pads, rank)
    if auto_pad in SAME:
        begin, end = same_pads(sizes, reach, steps, auto_pad)
    elif auto_pad == "VALID":
        begin, end = (0,) * rank, (0,) * rank
    ceil = bool(ceil_mode) and auto_pad == "NOTSET"
    made: list[Any] = [output_extent(*axis, ceil) for axis in zip(sizes, reach, steps, begin, end, strict=True)]
    output = tuple(int(n) for n in made)
    if any(o < 0 for o in output):
        raise ValueError(f"the kernel {list(kernel)} does not fit into an image of extents {list(sizes)}")
    return Window(kernel, steps, spread, begin, end, output)


def split_pads(pads: Sequence[int] | None, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the pads before and after, per spatial axis."""
    both = spatial_tuple(pads, 2 * rank, 0, "pads")
    return both[:rank], both[rank:]


def same_pads(
    sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int], auto_pad: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the pads of SAME_UPPER or SAME_LOWER: the output extent is the input extent over the stride, rounded up."""
    totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in zip(sizes, reach, strides, strict=True)]
    small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def output_extent(size: DimLike, reach: DimLike, stride: int, begin: int, end: int, ceil: bool) -> DimLike:
    """Return the number of windows along an axis, UNKNOWN where only the run can tell."""
    room = size + begin + end - reach
    if not ceil:
        return room // stride + 1
    count = ceil_div(room, stride) + 1
    if isinstance(count, int) and isinstance(size, int):  # the last window has to begin in the image or before it
        return count - 1 if (count - 1) * stride >= size + begin else count
    if isinstance(reach, int) and stride + end <= reach:
        return count
    return UNKNOWN


def check_auto_pad(node: Node) -> str:
    """Return the attribute auto_pad; ValidationError for a value that the standard does not have."""
    mode = str(attr(node, "auto_pad"))
    if mode not in AUTO_PADS:
        raise ValidationError(f"auto_pad is {mode!r}, not one of {', '.join(AUTO_PADS)}", code="attribute", where=node.label)
    return mode


def output_shape(node: Node, sizes: Shape, kernel: Shape) -> Shape:
    """Return the spatial extents of a Conv or pooling node's output."""
    rank = len(sizes)
    check_rank(kernel, rank)
    strides = spatial_tuple(attr(node, "strides"), rank, 1, "strides")
    dilations = spatial_tuple(attr(node, "dilations"), rank, 1, "dilations")
    mode = check_auto_pad(node)
    if mode in SAME:
        return tuple(ceil_div(n, s) for n, s in zip(sizes, strides, strict=True))
    begin, end = split_pads(attr(node, "pads"), rank) if mode == "NOTSET" else ((0,) * rank, (0,) * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    ceil = mode == "NOTSET" and bool(node.attributes.get("ceil_mode", 0))
    shape = tuple(output_extent(*axis, ceil) for axis in zip(sizes, reach, strides, begin, end, strict=True))
    for extent in shape:
        if isinstance(extent, int) and extent < 0:
            raise ValidationError(f"the kernel {list(kernel)!r} does not fit into {list(sizes)!r}", code="shape",
                                  where=node.label)
    return shape


def shape_in(value: Value) -> Shape | None:
    """Return the shape that a shape operand holds: UNKNOWN extents where only the run can tell, None for its rank."""
    if value.symbolic is not None:
        return tuple(value.symbolic.tolist())
    return unknown_shape(known_length(value) if value.type.shape else None)


# ---- arrays -------------------------------------------------------------------------------------------------------------


def place(x: Array, window: Window, buffer: Array | None, fill: float = 0.0) -> Array:
    """Return what the windows see of ``x`` (batch, channels, image): the image between its pads, ``window.span`` large.

    ``buffer`` (at least as many images) has to hold ``fill`` outside the image already; without one, a new array is
    made where the image alone will not do.
    """
    sizes, span = x.shape[2:], window.span
    if not any(window.begin) and all(s <= n for s, n in zip(span, sizes, strict=True)):
        return np.asarray(x[image_part([slice(0, s) for s in span])])
    if buffer is None:
        check_scratch(math.prod((*x.shape[:2], *span)) * x.itemsize, f"an image of {list(x.shape)} in its pads")
        buffer = np.full((*x.shape[:2], *span), fill, x.dtype)
    target = buffer[: x.shape[0]]
    inside, source = overlap(sizes, window)
    target[image_part(inside)] = x[image_part(source)]
    return target


def image_part(where: Sequence[slice]) -> Any:
    """Return the index that takes these parts of the last axes."""
    return (Ellipsis, *where)


def needs_place(sizes: Sequence[int], window: Window) -> bool:
    """Return whether the windows reach beyond an image of these extents."""
    return any(window.begin) or any(s > n for s, n in zip(window.span, sizes, strict=True))


def overlap(sizes: Sequence[int], window: Window) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return which part of the span is image, and which part of the image that is."""
    inside, source = [], []
    for size, span, begin in zip(sizes, window.span, window.begin, strict=True):
        low, high = max(0, -begin), min(size, span - begin)
        high = max(low, high)
        source.append(slice(low, high))
        inside.append(slice(low + begin, high + begin))
    return tuple(inside), tuple(source)


def patches(placed: Array, window: Window) -> Array:
    """Return a view (batch, channels, *kernel, *output) of what each tap of each window sees."""
    steps = placed.strides[2:]
    taps = tuple(t * d for t, d in zip(steps, window.dilations, strict=True))
    moves = tuple(t * s for t, s in zip(steps, window.strides, strict=True))
    return np.lib.stride_tricks.as_strided(
        placed, (*placed.shape[:2], *window.kernel, *window.output), (*placed.strides[:2], *taps, *moves), writeable=False
    )


def tap_slices(window: Window) -> Sequence[tuple[slice, ...]]:
    """Return, per tap in row-major order, which positions of the span it sees over all windows."""
    return _kept_slices(window) if window.taps <= KEPT_TAPS else _slices(window)


def _slices(window: Window) -> tuple[tuple[slice, ...], ...]:
    along = [[slice(k * d, k * d + max(o - 1, 0) * s + 1, s) if o else slice(0, 0) for k in range(n)]
             for n, d, s, o in zip(window.kernel, window.dilations, window.strides, window.output, strict=True)]
    return tuple(itertools.product(*along))


_kept_slices = lru_cache(maxsize=64)(_slices)
