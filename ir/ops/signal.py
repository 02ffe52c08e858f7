"""Signals: discrete Fourier transforms, whole and of windows sliding over a signal, and the weights of mel bands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, looped, shifted_axes, within_batch
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.limits import check_scratch, check_time, check_work
from flowgrad.ir.ops.operands import known_dims, known_ints, normal_axis, ramp
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op, refuse
from flowgrad.ir.types import INT64, UNKNOWN, DimLike, Type, dtype_of

# ---- DFT ----------------------------------------------------------------------------------------------------------------


@op("DFT", since=20, outputs=("output",), traits=(Trait.LINEAR,), extents=("dft_length", "axis"))
def dft(
    input: Array, dft_length: Array | None = None, axis: Array | None = None, *, inverse: int = 0, onesided: int = 0
) -> Array:
    """Transform along ``axis`` at ``dft_length`` points, of which a shorter signal fills the first ones, zeros the rest.

    The last axis holds a real part, or a real and an imaginary one.
    """
    at = _signal_axis(-2 if axis is None else _number(axis), input.ndim)
    is_real = bool(inverse and onesided)  # the result: half a spectrum stands for a whole one
    count = _number(dft_length) if dft_length is not None else _points(input.shape[at], is_real)
    if count < 1:
        raise ValueError(f"a transform of {count} points")
    if onesided and (input.shape[-1] == 2) != bool(inverse):
        raise ValueError(_WHICH_PARTS)
    others = input.size // max(input.shape[at], 1)
    check_scratch(16 * count * others, f"a transform of {count} points")
    check_work(4 * count * math.log2(count) * others, f"a transform of {count} points")
    signal = _complex(input)
    if is_real:
        return np.asarray(np.fft.irfft(signal, count, at)[..., None], input.dtype)
    if onesided:
        return _parts(np.fft.rfft(signal.real, count, at), input.dtype)
    return _parts((np.fft.ifft if inverse else np.fft.fft)(signal, count, at), input.dtype)


_WHICH_PARTS = "a one-sided transform goes from real numbers to complex ones, its inverse back"


def _number(array: Array) -> int:
    return int(np.asarray(array).reshape(()))


def _points(extent: Any, is_real: bool) -> Any:
    """Return how many points a transform has if nothing says it."""
    return 2 * (extent - 1) if is_real else extent


def _signal_axis(axis: int, rank: int) -> int:
    at = normal_axis(axis, rank)
    if at == rank - 1:
        raise ValidationError(f"axis {axis} holds the parts of complex numbers, no signal", code="axis")
    return at


def _complex(x: Array) -> Array:
    """Return numbers whose parts lie along the last axis as complex ones."""
    return x[..., 0] if x.shape[-1] == 1 else np.asarray(x[..., 0] + 1j * x[..., 1])


def _parts(z: Array, dtype: np.dtype[Any]) -> Array:
    return np.asarray(np.stack([z.real, z.imag], axis=-1), dtype)


@dft.types
def _(node: Node) -> Type:
    x = node.input(0).type
    inverse, onesided = bool(attr(node, "inverse")), bool(attr(node, "onesided"))
    parts = 1 if inverse and onesided else 2
    if x.shape is None:
        return x
    _check_parts(node, x.shape[-1:], ((2,) if inverse else (1,)) if onesided else (1, 2))
    chosen = node.optional(2)
    axis = [-2] if chosen is None else known_ints(chosen)
    if axis is None:
        return x.with_shape((*[UNKNOWN] * (len(x.shape) - 1), parts))
    shape = list(x.shape)
    at = _signal_axis(axis[0], len(shape))
    length = node.optional(1)
    known = [_points(shape[at], inverse and onesided)] if length is None else known_dims(length)
    count: DimLike = UNKNOWN if known is None else known[0]
    if isinstance(count, int) and count < 1:
        raise ValidationError(f"a transform of {count} points", code="shape", where=node.label)
    shape[at] = _bins(count) if onesided and not inverse else count
    shape[-1] = parts
    return x.with_shape(shape)


def _bins(count: DimLike) -> DimLike:
    """Return how many frequencies of a real signal differ."""
    return UNKNOWN if count is UNKNOWN else count // 2 + 1


def _check_parts(node: Node, last: tuple[DimLike, ...], legal: tuple[int, ...]) -> None:
    """Check that the last axis holds as many parts of numbers as the form of the operator takes."""
    if not last or (isinstance(last[0], int) and last[0] not in legal):
        where = "is missing" if not last else f"is {last[0]}"
        raise ValidationError(f"the extent of the last axis of {node.op} {where}, not {' or '.join(map(str, legal))}: it "
                              "holds the real part, then the imaginary one", code="shape", where=node.label)


class _Transform:
    """A DFT while its derivative or its expansion is written: its axis, its extents, and how to cut along the axis."""

    def __init__(self, b: Builder, node: Node) -> None:
        self.b, self.node, self.x = b, node, node.input(0)
        self.is_real = bool(attr(node, "inverse") and attr(node, "onesided"))
        chosen = node.optional(2)
        known = [-2] if chosen is None else known_ints(chosen)
        self.known_axis = None if known is None else known[0]
        self.axis = b.Reshape(chosen, b.ints([1])) if known is None else b.ints(known)

    def extent(self, value: Value) -> Value:
        """Return the extent of ``value`` along the axis, an int64 vector of length 1."""
        if self.known_axis is not None:
            return self.b.extent(value, self.known_axis)
        return self.b.Gather(self.b.Shape(value), self.axis)

    def count(self) -> Value:
        """Return the number of points, an int64 vector of length 1."""
        length = self.node.optional(1)
        if length is not None:
            return self.b.cast(self.b.Reshape(length, self.b.ints([1])), INT64)
        extent = self.extent(self.x)
        return self.b.Mul(self.b.Sub(extent, [1]), [2]) if self.is_real else extent

    def cut(self, value: Value, end: Value) -> Value:
        """Return the first ``end`` entries of ``value``, or all there are."""
        return self.b.Slice(value, [0], end, self.axis)

    def padded(self, value: Value, count: Value) -> Value:
        """Return ``value`` with zeros up to ``count`` entries."""
        behind = self.b.Sub(count, self.extent(value))
        return self.b.Pad(value, self.b.Concat(self.b.ints([0]), behind, axis=0), None, self.axis)

    def with_mirror(self, half: Value, count: Value) -> Value:
        """Return half a spectrum, in which every frequency counts twice that the other half has too."""
        b = self.b
        number = ramp(b, self.extent(half))
        once = b.Or(b.Equal(number, np.int64(0)), b.Equal(b.Mul(number, [2]), count))
        one, two = (b.scalar(n, half.type.dtype) for n in (1, 2))
        return b.Mul(half, b.Reshape(b.Where(once, one, two), self._column(half)))

    def _column(self, value: Value) -> Value:
        """Return the shape of a vector that lies along the axis, and broadcasts with ``value``."""
        b, axis, rank = self.b, self.known_axis, value.type.rank
        if axis is not None and axis >= 0 and rank is not None:
            axis -= rank
        if axis is not None and axis < 0:
            return b.ints([-1] + [1] * (-axis - 1))
        ones = b.Expand(np.int64(1), b.Shape(b.Shape(value)))
        return b.ScatterElements(ones, self.axis, [-1])

    def conjugate(self, value: Value, parts: Value | None = None) -> Value:
        """Return the conjugate, and of it the real part alone where ``parts`` is [1]."""
        b = self.b
        signs = b.value(np.array([1, -1], value.type.dtype.numpy))
        if parts is None:
            return b.Mul(value, signs)
        known = known_ints(parts)
        if known == [2]:
            return b.Mul(value, signs)
        real = b.Slice(value, [0], parts, [-1])
        return real if known == [1] else b.Mul(real, b.Slice(signs, [0], parts, [0]))


@dft.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = conj(F conj(y_bar)), F the same transform: its matrix is symmetric.

    Of it the entries that the transform took from x, of which a real x has the real part. From half a spectrum to a
    real signal every frequency counts twice that the other half has too.
    """
    way = _Transform(b, node)
    x = way.x
    extent, count = way.extent(x), way.count()
    points = b.Squeeze(count, [0])
    inverse = attr(node, "inverse")
    seed = y_bar if way.is_real else way.conjugate(y_bar)
    whole = b.DFT(seed, points, b.Squeeze(way.axis, [0]), inverse=inverse)
    taken = b.Min(extent, b.Add(b.Div(count, [2]), [1])) if way.is_real else extent
    x_bar = way.conjugate(way.cut(whole, taken), b.extent(x, -1))
    if way.is_real:
        x_bar = way.with_mirror(x_bar, count)
    if known_ints(count) is None or known_ints(extent) is None or known_ints(way.extent(x_bar)) != known_ints(extent):
        x_bar = way.padded(x_bar, extent)
    return [x_bar, NO_GRADIENT, NO_GRADIENT][: len(node.inputs)]


@dft.support
def _(b: DerivativeBuilder, node: Node, masks: Sequence[Value | None]) -> None:
    """Every frequency has a part of every entry, and what is zero by sums of both signs is no selection."""


@dft.expands_on_export
def _(node: Node) -> bool:
    """Half a spectrum came late to the standard, and runtimes take it to be whole where the number of points differs."""
    return bool(attr(node, "inverse") and attr(node, "onesided"))


@dft.expansion
def _(b: Builder, node: Node) -> Any:
    """From half a spectrum to a real signal: the real part of the whole transform, what stands for two counted twice."""
    if not (attr(node, "inverse") and attr(node, "onesided")):
        return refuse("it goes to complex numbers, and nothing else does")
    way = _Transform(b, node)
    count = way.count()
    half = way.cut(way.x, b.Add(b.Div(count, [2]), [1]))
    whole = b.DFT(way.with_mirror(half, count), b.Squeeze(count, [0]), b.Squeeze(way.axis, [0]), inverse=1)
    return b.Slice(whole, [0], [1], [-1])


# ---- STFT ---------------------------------------------------------------------------------------------------------------


_POINTS_AT_ONCE = 2**20
"""How many points of frames are transformed between two looks at the clock."""


@op("STFT", since=17, outputs=("output",), extents=("frame_step", "frame_length"))
def stft(
    signal: Array, frame_step: Array, window: Array | None = None, frame_length: Array | None = None, *, onesided: int = 1
) -> Array:
    """Transform every ``frame_step``-th piece of the signal, weighted by the window."""
    step = _number(frame_step)
    length = _number(frame_length) if frame_length is not None else len(window) if window is not None else signal.shape[1]
    if step < 1 or length < 1:
        raise ValueError(f"frames of {length} with a step of {step}")
    if window is not None and len(window) != length:
        raise ValueError(f"a window of {len(window)} for frames of {length}")
    count = max(signal.shape[1] - length + step, 0) // step
    kept = length // 2 + 1 if onesided else length
    points = signal.shape[0] * count * length
    check_scratch(16 * points, f"{count} frames of {length}")
    check_work(4 * points * math.log2(length), f"{count} frames of {length}")
    numbers, places = _complex(signal), np.arange(length)
    result = np.empty((signal.shape[0], count, kept, 2), signal.dtype)
    rows = max(1, _POINTS_AT_ONCE // max(1, signal.shape[0] * length))
    for start in range(0, count, rows):
        check_time()
        frames = numbers[:, np.arange(start, min(start + rows, count))[:, None] * step + places]
        spectrum = np.fft.fft(frames if window is None else frames * window, axis=-1)
        result[:, start : start + rows] = _parts(spectrum[..., :kept], signal.dtype)
    return result


@stft.types
def _(node: Node) -> Type:
    signal, window = node.input(0).type, node.optional(2)
    if signal.shape is None:
        return signal.with_shape((UNKNOWN, UNKNOWN, UNKNOWN, 2))
    if len(signal.shape) != 3:
        raise ValidationError(f"STFT takes a batch of signals of rank 3, got {signal!r}", code="rank", where=node.label)
    _check_parts(node, signal.shape[-1:], (1, 2))
    batch, extent, _ = signal.shape
    length, step = _frame_length(node, extent, window), known_ints(node.input(1))
    frames: DimLike = UNKNOWN
    if step is not None and isinstance(length, int):
        if step[0] < 1 or length < 1:
            raise ValidationError(f"frames of {length} with a step of {step[0]}", code="attribute", where=node.label)
        if isinstance(extent, int):
            frames = max(extent - length + step[0], 0) // step[0]
    return signal.with_shape((batch, frames, _bins(length) if attr(node, "onesided") else length, 2))


def _frame_length(node: Node, extent: DimLike, window: Value | None) -> DimLike:
    given = node.optional(3)
    known = None if given is None else known_dims(given)
    if window is not None and window.type.rank not in (None, 1):
        raise ValidationError(f"STFT takes a window of rank 1, got {window!r}", code="rank", where=node.label)
    width = None if window is None or window.type.shape is None else window.type.shape[0]
    if known is not None and isinstance(width, int) and isinstance(known[0], int) and known[0] != width:
        raise ValidationError(f"a window of {width} for frames of {known[0]}", code="shape", where=node.label)
    if given is not None:
        return UNKNOWN if known is None else known[0]
    return extent if window is None else UNKNOWN if width is None else width


@stft.ranks
def _(node: Node) -> list[int | None]:
    """A batch of signals, and a vector."""
    return [3, None, 1]


@stft.expands_on_export
def _(node: Node) -> bool:
    """Runtimes want at least one frame, and a window or a length; the checker takes all frequencies without a length."""
    frames = node.output().type.shape
    return node.optional(3) is None or (frames is not None and frames[1] == 0)


@stft.expansion
def _(b: Builder, node: Node) -> Value:
    """The frames, gathered and weighted, go through DFT; without a length, first the same with one."""
    signal, step, window, length = node.input(0), node.input(1), node.optional(2), node.optional(3)
    onesided = attr(node, "onesided")
    extent = b.extent(signal, 1)
    if length is None:
        length = b.Squeeze(extent if window is None else b.extent(window, 0), [0])
        return b.STFT(signal, step, window, b.cast_like(length, step), onesided=onesided)
    hop, size = (b.cast(b.Reshape(v, b.ints([1])), INT64) for v in (step, length))
    count = b.Div(b.Max(b.Add(b.Sub(extent, size), hop), [0]), hop)
    places = b.Add(b.Unsqueeze(b.Mul(ramp(b, count), hop), [1]), ramp(b, size))
    frames = b.Gather(signal, places, axis=1)
    if window is not None:
        frames = b.Mul(frames, b.Unsqueeze(window, [1]))
    if onesided and frames.type.shape is not None and frames.type.shape[-1] == 1:
        return b.DFT(frames, None, np.int64(2), onesided=1)
    whole = b.DFT(frames, None, np.int64(2))
    return b.Slice(whole, [0], b.Add(b.Div(size, [2]), [1]), [2]) if onesided else whole


# ---- MelWeightMatrix ----------------------------------------------------------------------------------------------------


@op("MelWeightMatrix", since=17, outputs=("output",), traits=(Trait.ZERO,), extents=("num_mel_bins", "dft_length"),
    settings=("lower_edge_hertz", "upper_edge_hertz"), dtype_attributes=("output_datatype",))
def mel_weight_matrix(
    num_mel_bins: Array, dft_length: Array, sample_rate: Array, lower_edge_hertz: Array, upper_edge_hertz: Array, *,
    output_datatype: int = 1,
) -> Array:
    """Triangles with a peak of 1, equally wide in mel, on the frequencies of a transform.

    Their corners are rounded down to frequencies of the transform, so that edges have no derivative other than zero.
    """
    bands, points, rate = _number(num_mel_bins), _number(dft_length), _number(sample_rate)
    if bands < 0 or points < 0 or rate < 1:
        raise ValueError(f"{bands} bands of {points} points at a rate of {rate}")
    corners = _mel_corners(bands, points, rate, lower_edge_hertz, upper_edge_hertz)
    rows = points // 2 + 1
    if bands and not 0 <= corners.min() <= corners.max() <= rows:
        raise ValueError(f"bands up to the frequency {corners.max()} of {rows}")
    check_scratch(8 * rows * bands, f"{bands} bands of {rows} frequencies")
    matrix = np.zeros((rows, bands))
    for band, (low, centre, high) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
        if low == centre:
            matrix[centre, band] = 1
        else:
            matrix[low : centre + 1, band] = np.arange(centre - low + 1) / (centre - low)
        if centre < high:
            matrix[centre:high, band] = np.arange(high - centre, 0, -1) / (high - centre)
    return matrix.astype(dtype_of(output_datatype).numpy)


def _mel_corners(bands: int, points: int, rate: int, lower: Array, upper: Array) -> Array:
    """Return the corners of the triangles as numbers of frequencies; edges are taken to mel in the type they have."""
    low, high = (2595 * np.log1p(np.asarray(edge).reshape(()) / 700) / np.log(10) for edge in (lower, upper))
    mel = np.arange(bands + 2) * ((high - low) / (bands + 2)) + low
    hertz = 700 * np.expm1(mel / 2595 * np.log(10))
    return np.asarray((points + 1) * hertz // rate, np.int64)


@mel_weight_matrix.types
def _(node: Node) -> Type:
    bands, points = known_dims(node.input(0)), known_dims(node.input(1))
    rows = UNKNOWN if points is None else _bins(points[0])
    return Type(dtype_of(attr(node, "output_datatype")), (rows, UNKNOWN if bands is None else bands[0]))


# ---- many examples ----------------------------------------------------------------------------------------------------------

stft.batch(within_batch(0))


@dft.batch
def _(b: BatchBuilder, node: Node, x: Value, length: Value | None = None, axis: Value | None = None) -> Any:
    """The same axis behind that of the examples; without one, that before the last."""
    if b.holds(length) or b.holds(axis):
        return looped(b, node, x, length, axis)
    return again(b, node, [x, length, axis and shifted_axes(b, axis, node.input(0).type.rank)])
