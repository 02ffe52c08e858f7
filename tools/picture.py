"""Pictures without a library: what an explanation says of an image, as PNG or PPM."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from flowgrad.ir.errors import InputError
from flowgrad.ir.files import write_file
from flowgrad.ir.graph import Array

CHANNELS = (1, 3, 4)
LEAST_SIDE = 256
"""Smaller maps are drawn with so many pixels for an element that the longer side has at least this many."""

GAP = 8


def save_picture(path: Path, pixels: Array) -> None:
    """Write ``pixels``, uint8 [height, width, 3], as ``.png`` or ``.ppm``. Raises InputError for another name, SaveError."""
    writers = {".png": _png, ".ppm": _ppm}
    check_picture(path)
    write_file(path, [writers[path.suffix.lower()](pixels)])


def check_picture(path: Path) -> None:
    """Raise InputError if a picture cannot be written under this name."""
    if path.suffix.lower() not in (".png", ".ppm"):
        raise InputError(f"a picture ends in .png or .ppm, got {str(path)!r}", code="file")


def explained(example: Array, attribution: Array) -> Array:
    """Return a picture: the example, if it is one, and beside it what speaks for (red) and against (blue) the class.

    Both arrays have the shape of one example: an image [C, H, W] or [H, W, C], or anything else, drawn as a matrix.
    """
    image, values = _as_image(example), _as_map(attribution)
    heat = _heat(values if image is None else _spread(values, image.shape[:2]))
    scale = max(1, -(-LEAST_SIDE // max(heat.shape[:2])))
    parts = [heat] if image is None else [image, heat]
    large = [p.repeat(scale, 0).repeat(scale, 1) for p in parts]
    gap = np.full((large[0].shape[0], GAP, 3), 255, np.uint8)
    return large[0] if image is None else np.concatenate([large[0], gap, large[1]], axis=1)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    if len(shape) != 3:
        return None
    return next((axis for axis in (0, 2) if shape[axis] in CHANNELS), None)


def _as_map(attribution: Array) -> Array:
    """Return a matrix of numbers: sums over channels, or over all axes but the last two."""
    axis = _channel_axis(attribution.shape)
    if axis is not None:
        return np.asarray(attribution.sum(axis), np.float64)
    wide = np.atleast_2d(np.asarray(attribution, np.float64))
    return np.asarray(wide.sum(tuple(range(wide.ndim - 2))))


def _spread(values: Array, places: tuple[int, ...]) -> Array:
    """Return a map as large as the image that it is of: maps of a layer are smaller."""
    rows, columns = (np.arange(whole) * part // whole for whole, part in zip(places, values.shape, strict=True))
    return values[np.ix_(rows, columns)]


def _as_image(example: Array) -> Array | None:
    """Return an example as pixels, stretched between its least and greatest element; None if it is no image."""
    axis = _channel_axis(example.shape)
    if axis is None:
        return None
    last = np.moveaxis(np.asarray(example, np.float64), axis, -1)[..., :3]
    least, most = last.min(), last.max()
    grey = np.zeros_like(last) if most == least else (last - least) / (most - least)
    return np.asarray(np.broadcast_to((grey * 255).round(), (*last.shape[:2], 3)), np.uint8)


def _heat(values: Array) -> Array:
    """Return colours: white for 0, red for the greatest positive number, blue for the least negative one."""
    finite = np.where(np.isfinite(values), values, 0)
    most = np.abs(finite).max(initial=0)
    share = finite / most if most > 0 else finite
    pixels = np.ones((*values.shape, 3))
    pixels[..., 0] -= np.maximum(-share, 0)
    pixels[..., 1] -= np.abs(share)
    pixels[..., 2] -= np.maximum(share, 0)
    return np.asarray((pixels * 255).round(), np.uint8)


def _ppm(pixels: Array) -> bytes:
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()


def _png(pixels: Array) -> bytes:
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row begins with the number of its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
