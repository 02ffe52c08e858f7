"""Interpolation along one axis: which input positions an output position takes, and with what weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from flowgrad.ir.limits import check_scratch

CUBIC_REACH, LINEAR_REACH = 2, 1


@dataclass(frozen=True)
class Sampling:
    """The attributes of Resize that say how an axis is sampled."""

    mode: str = "nearest"
    nearest_mode: str = "round_prefer_floor"
    coordinates: str = "half_pixel"
    antialias: bool = False
    cubic_coeff_a: float = -0.75
    exclude_outside: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis to resize: its extents before and after, its scale, and the part of it that is sampled."""

    axis: int
    size: int
    made: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)

    @property
    def is_cut(self) -> bool:
        """True if the scaled extent is no whole number, so that a part of it is lost."""
        return abs(self.scale * self.size - self.made) > 1e-6 * max(self.made, 1)

    @property
    def is_unchanged(self) -> bool:
        """True if every position stays what it is."""
        return self.size == self.made and abs(self.scale - 1) < 1e-9 and self.roi == (0.0, 1.0)


def positions(axis: Axis, coordinates: str, dtype: type[np.floating[Any]] = np.float64) -> Array:
    """Return the input position of every output position, computed in ``dtype``."""
    y: Array = np.arange(axis.made, dtype=dtype)
    scale = np.asarray(axis.scale, dtype)
    width = np.asarray(scale * axis.size if axis.is_cut else axis.made, dtype)
    if coordinates == "align_corners":
        return np.zeros(axis.made, dtype) if width == 1 else y * (axis.size - 1) / (width - 1)
    if coordinates == "asymmetric":
        return y / scale
    if coordinates == "tf_crop_and_resize":
        low, high = axis.roi
        steps, count = (np.full(axis.made, 1, dtype), 2) if width == 1 else (y, width - 1)
        return np.asarray(steps * (high - low) * (axis.size - 1) / count + low * (axis.size - 1))
    if coordinates == "pytorch_half_pixel" and axis.made == 1:
        return np.zeros(1, dtype)
    shift = axis.size / 2 * (1 - axis.made / width) if coordinates == "half_pixel_symmetric" else 0.0
    return shift + (y + 0.5) / scale - 0.5


def taps(axis: Axis, how: Sampling) -> tuple[Array, Array, Array | None]:
    """Return the input positions (made, n), their weights (made, n), and which outputs lie beyond the input, if any.

    The nearest position is that of float32, the type of scales, as in the reference and in runtimes: 2.4 in float32 is no
    longer 2.4 in float64, and what lies on a border would lie beside it.
    """
    x = positions(axis, how.coordinates, np.float32 if how.mode == "nearest" else np.float64)
    beyond = None
    if how.coordinates == "tf_crop_and_resize":
        outside = (x < 0) | (x > axis.size - 1)
        beyond = outside if outside.any() else None
    if how.mode == "nearest":
        at, weights = _nearest(x, how.nearest_mode)[:, None], np.ones((axis.made, 1))
    else:
        at, weights = _weighted(x, axis.scale, how)
    if how.exclude_outside:
        weights = np.where((at < 0) | (at >= axis.size), 0.0, weights)
        total = weights.sum(1, keepdims=True)
        weights = weights / np.where(total == 0, 1.0, total)
    if beyond is not None:
        weights = np.where(beyond[:, None], 0.0, weights)
    return np.clip(at, 0, max(axis.size - 1, 0)).astype(np.int64), weights, beyond


def _nearest(x: Array, mode: str) -> Array:
    low = np.floor(x)
    part = x - low
    up = {"floor": np.zeros_like(part, bool), "ceil": part > 0, "round_prefer_floor": part > 0.5,
          "round_prefer_ceil": part >= 0.5}[mode]
    return np.asarray(low + up, np.int64)


def _weighted(x: Array, scale: float, how: Sampling) -> tuple[Array, Array]:
    """Linear or cubic weights; an exact position counts as the right end of the interval before it."""
    low = np.ceil(x) - 1
    part = x - low  # in (0, 1]
    reach = CUBIC_REACH if how.mode == "cubic" else LINEAR_REACH
    shrink = min(scale, 1.0) if how.antialias else 1.0
    first = int(np.floor(-reach / shrink)) + 1
    offsets = np.arange(first, 2 - first) if how.antialias or how.mode == "cubic" else np.arange(2)
    distance = np.abs((offsets[None] - part[:, None]) * shrink)
    weights = _cubic(distance, how.cubic_coeff_a) if how.mode == "cubic" else np.maximum(1 - distance, 0)
    if how.antialias:
        weights = weights / weights.sum(1, keepdims=True)
    return (low[:, None] + offsets[None]).astype(np.int64), weights


def _cubic(d: Array, a: float) -> Array:
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.asarray(np.where(d <= 1, near, np.where(d < 2, far, 0.0)))


def matrix(axis: Axis, how: Sampling) -> Array:
    """Return the interpolation as a matrix (made, size) in float64."""
    check_scratch(8 * axis.made * axis.size, f"an interpolation matrix of {axis.made} x {axis.size}")
    at, weights, _ = taps(axis, how)
    dense = np.zeros((axis.made, axis.size))
    np.add.at(dense, (np.arange(axis.made)[:, None], at), weights)
    return dense


def interpolate(x: Array, axis: Axis, how: Sampling, beyond_value: float) -> Array:
    """Return ``x`` sampled along one axis."""
    at, weights, beyond = taps(axis, how)
    if axis.size == 0 and axis.made:
        raise ValueError(f"axis {axis.axis} has no elements to interpolate")
    column = (axis.made, *(1,) * (x.ndim - 1 - axis.axis))
    y = np.take(x, at[:, 0], axis=axis.axis)
    if how.mode != "nearest":
        y *= weights[:, 0].astype(x.dtype).reshape(column)
        for tap in range(1, at.shape[1]):
            y += np.take(x, at[:, tap], axis=axis.axis) * weights[:, tap].astype(x.dtype).reshape(column)
    if beyond is not None:
        y[(slice(None),) * axis.axis + (beyond,)] = beyond_value
    return y


def spread(y_bar: Array, axis: Axis, how: Sampling) -> Array:
    """Return the transpose of ``interpolate`` (with 0 beyond the input) applied to ``y_bar``."""
    if how.mode == "nearest" and (starts := _runs(axis, how)) is not None:
        return np.asarray(np.add.reduceat(y_bar, starts, axis=axis.axis, dtype=y_bar.dtype))
    before = int(np.prod(y_bar.shape[: axis.axis]))
    after = int(np.prod(y_bar.shape[axis.axis + 1 :]))
    dense = matrix(axis, how).astype(y_bar.dtype)
    shape = (*y_bar.shape[: axis.axis], axis.size, *y_bar.shape[axis.axis + 1 :])
    if after == 1:
        return np.asarray(y_bar.reshape(before, axis.made) @ dense).reshape(shape)
    return np.asarray(dense.T @ y_bar.reshape(before, axis.made, after)).reshape(shape)


def _runs(axis: Axis, how: Sampling) -> Array | None:
    """Return where the run of outputs of every input begins, if every input has one."""
    at, weights, _ = taps(axis, how)
    starts = np.searchsorted(at[:, 0], np.arange(axis.size))
    ordered = bool(np.all(np.diff(at[:, 0]) >= 0)) and bool(np.all(weights == 1))
    covered = axis.made > 0 and len(np.unique(at[:, 0])) == axis.size
    return starts if ordered and covered else None


def plan(
    shape: Sequence[int], roi: Any, scales: Any, sizes: Any, axes: Sequence[int] | None, policy: str, coordinates: str
) -> list[Axis]:
    """Return one entry per axis of the tensor: what Resize makes of it."""
    rank = len(shape)
    chosen = [a % rank for a in axes] if axes is not None else list(range(rank))
    factors, made = [1.0] * rank, list(shape)
    if scales is not None and np.size(scales):
        for a, scale in zip(chosen, np.asarray(scales, np.float32), strict=True):
            factors[a], made[a] = float(scale), int(np.floor(np.float32(shape[a]) * scale))
    elif sizes is not None:
        for a, size in zip(chosen, sizes, strict=True):
            factors[a], made[a] = int(size) / max(shape[a], 1), int(size)
        if policy != "stretch":
            scale = (min if policy == "not_larger" else max)(factors[a] for a in chosen)
            for a in chosen:
                factors[a], made[a] = scale, int(scale * shape[a] + 0.5)
    else:
        raise ValueError("Resize needs scales or sizes")
    parts = [(0.0, 1.0)] * rank
    if coordinates == "tf_crop_and_resize" and roi is not None and np.size(roi):
        for i, a in enumerate(chosen):
            parts[a] = (float(roi[i]), float(roi[len(chosen) + i]))
    return [Axis(a, shape[a], made[a], factors[a], parts[a]) for a in range(rank)]
