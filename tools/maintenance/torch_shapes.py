"""What operators on shapes and places compute, by the ONNX standard, in PyTorch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch

from flowgrad.tools.maintenance.torch_nodes import Call, NoMirror, Tensor, mirror, tensor, torch_type

# ---- shapes ---------------------------------------------------------------------------------------------------------------


@mirror("Shape")
def _shape(c: Call, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[slice(c.start or 0, c.end)], dtype=torch.int64)


@mirror("Size")
def _size(c: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@mirror("Range")
def _range(c: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    count = max(0, math.ceil((limit.item() - start.item()) / delta.item()))
    return start + torch.arange(count, dtype=start.dtype) * delta


@mirror("ConstantOfShape")
def _constant_of_shape(c: Call, shape: Tensor) -> Tensor:
    number = c.value
    if not hasattr(number, "dtype"):
        raise NoMirror("ConstantOfShape without a value")
    return tensor(number).reshape(()).expand(shape.tolist()).clone()


@mirror("Reshape")
def _reshape(c: Call, x: Tensor, shape: Tensor) -> Tensor:
    wanted = [x.shape[i] if n == 0 and not c.allowzero else n for i, n in enumerate(shape.tolist())]
    if -1 in wanted:
        rest = math.prod(n for n in wanted if n != -1)
        if not rest:
            raise NoMirror("Reshape with an open extent next to 0")
        wanted[wanted.index(-1)] = x.numel() // rest
    return x.reshape(wanted)


@mirror("Flatten")
def _flatten(c: Call, x: Tensor) -> Tensor:
    axis = c.axis + x.ndim if c.axis < 0 else c.axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@mirror("Transpose")
def _transpose(c: Call, x: Tensor) -> Tensor:
    return x.permute(list(c.perm) if c.perm is not None else list(range(x.ndim))[::-1])


@mirror("Squeeze")
def _squeeze(c: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    gone = [a for a, n in enumerate(x.shape) if n == 1] if axes is None else [a % x.ndim for a in axes.tolist()]
    return x.reshape([n for a, n in enumerate(x.shape) if a not in gone])


@mirror("Unsqueeze")
def _unsqueeze(c: Call, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + len(axes)
    new, old = {a % rank for a in axes.tolist()}, iter(x.shape)
    return x.reshape([1 if a in new else next(old) for a in range(rank)])


@mirror("Expand")
def _expand(c: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(shape.tolist()))).clone()


@mirror("Tile")
def _tile(c: Call, x: Tensor, repeats: Tensor) -> Tensor:
    for axis, count in enumerate(repeats.tolist()):
        x = torch.cat([x] * count, axis) if count else x.narrow(axis, 0, 0)
    return x


@mirror("Concat")
def _concat(c: Call, *operands: Tensor) -> Tensor:
    return torch.cat(operands, c.axis)


@mirror("Split")
def _split(c: Call, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    extent = x.shape[c.axis]
    if sizes is None:
        part = -(-extent // c.count)
        lengths = [max(0, min(part, extent - part * i)) for i in range(c.count)]
    else:
        lengths = sizes.tolist()
    return list(torch.split(x, lengths, c.axis))


def taken(x: Tensor, axis: int, places: Sequence[int]) -> Tensor:
    """Return the entries of an axis at the given places."""
    return x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))


@mirror("Slice")
def _slice(c: Call, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    over = list(range(len(starts))) if axes is None else axes.tolist()
    strides = [1] * len(over) if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), over, strides, strict=True):
        extent = x.shape[axis]
        low, high = (0, extent) if step > 0 else (-1, extent - 1)
        first = min(max(start + extent if start < 0 else start, low if step > 0 else 0), high)
        last = min(max(end + extent if end < 0 else end, low), high if step > 0 else extent - 1)
        x = taken(x, axis, range(first, last, step) if extent else ())
    return x


@mirror("Pad")
def _pad(c: Call, x: Tensor, pads: Tensor, number: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    over = list(range(x.ndim)) if axes is None else [a % x.ndim for a in axes.tolist()]
    amounts = pads.tolist()
    fill = torch.zeros((), dtype=x.dtype) if number is None else number.reshape(())
    for i, axis in enumerate(over):
        extent = x.shape[axis]
        places = range(-amounts[i], extent + amounts[i + len(over)])
        if c.mode == "constant":
            inside = [p for p in places if 0 <= p < extent]
            kept = taken(x, axis, inside)
            shape = list(x.shape)
            parts = []
            for count in (sum(p < 0 for p in places), sum(p >= extent for p in places)):
                shape[axis] = count
                parts.append(fill.expand(shape))
            x = torch.cat([parts[0], kept, parts[1]], axis)
        else:
            x = taken(x, axis, [_folded(p, extent, c.mode) for p in places])
    return x


def _folded(place: int, extent: int, mode: str) -> int:
    """Return the place inside that stands for one outside."""
    if mode == "edge":
        return min(max(place, 0), extent - 1)
    if mode == "wrap" or extent == 1:
        return place % extent
    round_trip = 2 * (extent - 1)
    place %= round_trip
    return min(place, round_trip - place)


@mirror("CenterCropPad")
def _center(c: Call, x: Tensor, shape: Tensor) -> Tensor:
    over = list(range(x.ndim)) if c.axes is None else [a % x.ndim for a in c.axes]
    for axis, wanted in zip(over, shape.tolist(), strict=True):
        extent = x.shape[axis]
        if wanted <= extent:
            x = x.narrow(axis, (extent - wanted) // 2, wanted)
        else:
            before = (wanted - extent) // 2
            sizes = list(x.shape)
            sizes[axis] = before
            head = x.new_zeros(sizes)
            sizes[axis] = wanted - extent - before
            x = torch.cat([head, x, x.new_zeros(sizes)], axis)
    return x


@mirror("Trilu")
def _trilu(c: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    return (torch.triu if c.upper else torch.tril)(x, 0 if k is None else int(k))


@mirror("EyeLike")
def _eye(c: Call, x: Tensor) -> Tensor:
    rows, columns = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])[None]
    return (columns == rows + c.k).to(x.dtype if c.dtype is None else torch_type(c.dtype))


@mirror("DepthToSpace")
def _depth_to_space(c: Call, x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    b = c.blocksize
    if c.mode == "DCR":
        y = x.reshape(n, b, b, channels // b**2, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, channels // b**2, b, b, height, width).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, channels // b**2, height * b, width * b)


@mirror("SpaceToDepth")
def _space_to_depth(c: Call, x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    b = c.blocksize
    y = x.reshape(n, channels, height // b, b, width // b, b)
    y = y.permute(0, 1, 3, 5, 2, 4) if c.attributes.get("mode") == "CRD" else y.permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, channels * b * b, height // b, width // b)


@mirror("ReverseSequence")
def _reverse_sequence(c: Call, x: Tensor, lengths: Tensor) -> Tensor:
    moved = x.movedim((c.batch_axis, c.time_axis), (0, 1))
    rows = [torch.cat([row[:n].flip(0), row[n:]]) for row, n in zip(moved, lengths.tolist(), strict=True)]
    return (torch.stack(rows) if rows else moved).movedim((0, 1), (c.batch_axis, c.time_axis))


# ---- indexing ---------------------------------------------------------------------------------------------------------------


def _positive(places: Tensor, extent: int) -> Tensor:
    return torch.where(places < 0, places + extent, places).long()


@mirror("Gather")
def _gather(c: Call, x: Tensor, places: Tensor) -> Tensor:
    axis = c.axis % x.ndim
    flat = x.index_select(axis, _positive(places, x.shape[axis]).reshape(-1))
    return flat.reshape(x.shape[:axis] + places.shape + x.shape[axis + 1:])


@mirror("GatherElements")
def _gather_elements(c: Call, x: Tensor, places: Tensor) -> Tensor:
    return x.gather(c.axis, _positive(places, x.shape[c.axis]))


@mirror("GatherND")
def _gather_nd(c: Call, x: Tensor, places: Tensor) -> Tensor:
    batch = c.batch_dims
    count = math.prod(x.shape[:batch])
    flat, rows = x.reshape(count, *x.shape[batch:]), places.reshape(count, -1, places.shape[-1])
    depth = places.shape[-1]
    picked = [flat[i][tuple(_positive(rows[i, :, d], x.shape[batch + d]) for d in range(depth))] for i in range(count)]
    shape = places.shape[:-1] + x.shape[batch + depth:]
    return torch.stack(picked).reshape(shape) if picked else x.new_zeros(shape)


REDUCED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda old, new: new, "add": torch.add, "mul": torch.mul, "max": torch.maximum, "min": torch.minimum}


def _scattered(c: Call, x: Tensor, flat: Sequence[Sequence[int]], updates: Tensor) -> Tensor:
    """Put rows of updates, one after the other, at lists of places of the flattened data."""
    y = x.reshape(-1)
    for places, update in zip(flat, updates, strict=True):
        at = torch.tensor(list(places), dtype=torch.int64)
        old = y[at]
        if c.reduction in ("max", "min"):
            c.kink(old - update)
        y = y.index_put((at,), REDUCED[c.reduction](old, update))
    return y.reshape(x.shape)


@mirror("ScatterElements")
def _scatter_elements(c: Call, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    axis = c.axis % x.ndim
    targets = _positive(places, x.shape[axis])
    numbers = torch.arange(x.numel()).reshape(x.shape)
    flat = []
    for at in itertools.product(*(range(n) for n in places.shape)):
        flat.append([int(numbers[(*at[:axis], int(targets[at]), *at[axis + 1:])])])
    return _scattered(c, x, flat, updates.reshape(-1, 1))


@mirror("ScatterND")
def _scatter_nd(c: Call, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    depth = places.shape[-1]
    numbers = torch.arange(x.numel()).reshape(x.shape)
    rows = places.reshape(-1, depth)
    flat = [numbers[tuple(_positive(row, 0) + torch.where(row < 0, torch.tensor(x.shape[:depth]), 0))].reshape(-1).tolist()
            for row in rows]
    return _scattered(c, x, flat, updates.reshape(len(rows), math.prod(x.shape[depth:])))


@mirror("OneHot")
def _one_hot(c: Call, places: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count = int(depth)
    axis = c.axis + places.ndim + 1 if c.axis < 0 else c.axis
    wanted = _positive(places, count).unsqueeze(axis)
    numbers = torch.arange(count).reshape([-1 if a == axis else 1 for a in range(places.ndim + 1)])
    return torch.where(wanted == numbers, values[1], values[0])


@mirror("Compress")
def _compress(c: Call, x: Tensor, condition: Tensor) -> Tensor:
    places = [i for i, chosen in enumerate(condition.tolist()) if chosen]
    return taken(x.reshape(-1), 0, places) if c.axis is None else taken(x, c.axis, places)


@mirror("NonZero")
def _non_zero(c: Call, x: Tensor) -> Tensor:
    if x.is_floating_point():
        c.step(x)
    return x.detach().nonzero().T


# ---- resizing -----------------------------------------------------------------------------------------------------------


@mirror("Resize")
def _resize(c: Call, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
    if c.coordinate_transformation_mode == "tf_crop_and_resize" or c.keep_aspect_ratio_policy != "stretch":
        raise NoMirror("Resize that crops or keeps the aspect")
    over = list(range(x.ndim)) if c.axes is None else [a % x.ndim for a in c.axes]
    for i, axis in enumerate(over):
        extent = x.shape[axis]
        if sizes is not None and len(sizes):
            wanted = int(sizes[i])
            scale = wanted / extent
        else:
            scale = float(scales[i])  # type: ignore[index]
            wanted = math.floor(extent * scale)
        if scale == 1.0 and wanted == extent:
            continue
        weights = torch.zeros(wanted, extent, dtype=x.dtype)
        for o in range(wanted):
            for place, weight in _taps(c, _source(c, o, scale, extent, wanted), extent, scale):
                weights[o, place] += weight
        x = torch.tensordot(x, weights, ([axis], [1])).movedim(-1, axis)
    return x


def _source(c: Call, o: int, scale: float, extent: int, wanted: int) -> float:
    """Return the place in the input of a place in the output."""
    mode = c.coordinate_transformation_mode
    if mode == "asymmetric":
        return o / scale
    if mode == "align_corners":
        width = scale * extent  # a fraction, as in the standard's test resize_downsample_scales_linear_align_corners
        return o * (extent - 1) / (width - 1) if wanted > 1 else 0.0
    if mode == "pytorch_half_pixel" and wanted == 1:
        return 0.0
    offset = extent / 2 * (1 - wanted / (scale * extent)) if mode == "half_pixel_symmetric" else 0.0
    return offset + (o + 0.5) / scale - 0.5


def _taps(c: Call, at: float, extent: int, scale: float) -> list[tuple[int, float]]:
    """Return places in the input and their weights."""
    if c.mode == "nearest":
        rounded = {"floor": math.floor(at), "ceil": math.ceil(at), "round_prefer_floor": math.ceil(at - 0.5),
                   "round_prefer_ceil": math.floor(at + 0.5)}[c.nearest_mode]
        return [(min(max(rounded, 0), extent - 1), 1.0)]
    narrowed = min(scale, 1.0) if c.antialias else 1.0
    reach = (1 if c.mode == "linear" else 2) / narrowed
    hat = _hat if c.mode == "linear" else lambda d: _keys(d, c.cubic_coeff_a)
    found = [(i, hat(abs(i - at) * narrowed)) for i in range(math.floor(at - reach), math.ceil(at + reach) + 1)]
    if c.exclude_outside:
        found = [(i, w) for i, w in found if 0 <= i < extent]
    total = sum(w for _, w in found)
    return [(min(max(i, 0), extent - 1), w / total) for i, w in found]


def _hat(d: float) -> float:
    return max(0.0, 1.0 - d)


def _keys(d: float, a: float) -> float:
    """Keys' cubic."""
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


@mirror("AffineGrid")
def _affine_grid(c: Call, theta: Tensor, size: Tensor) -> Tensor:
    return torch.nn.functional.affine_grid(theta, size.tolist(), align_corners=bool(c.align_corners))
