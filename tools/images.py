"""Images as inputs of a graph: read, scaled to its size, standardised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from flowgrad.ir.errors import InputError, LoadError, suggestion
from flowgrad.ir.files import read_file
from flowgrad.ir.graph import Array, Value
from flowgrad.ir.limits import Limits
from flowgrad.model import Model
from flowgrad.tools.arrays import read_arrays

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")


def read_inputs(model: Model, items: Iterable[str], mean: str | None = None, std: str | None = None) -> dict[str, Array]:
    """Read ``F.npz``, ``NAME=F.npy`` and ``NAME=F.png`` arguments into arrays by name. Raises InputError, LoadError."""
    listed = list(items)
    images = [item for item in listed if item.lower().endswith(ENDINGS)]
    arrays = read_arrays(item for item in listed if item not in images)
    for item in images:
        name, equals, path = item.partition("=")
        if not equals:
            raise InputError(f"--inputs takes NAME={item}, NAME the input of the image", code="usage")
        arrays[name] = _image(_input(model, name), Path(path), _numbers("mean", mean, 0.0), _numbers("std", std, 1.0))
    return arrays


def _input(model: Model, name: str) -> Value:
    found = {v.name: v for v in model.graph.inputs}
    if name not in found:
        raise InputError(f"no input {name!r}{suggestion(name, found)}", code="name")
    return found[name]


def _numbers(option: str, text: str | None, default: float) -> Array:
    try:
        return np.array([default] if text is None else [float(t) for t in text.split(",")])
    except ValueError as error:
        raise InputError(f"--{option} takes numbers, one or one for each channel, got {text!r}", code="usage") from error


def _image(value: Value, path: Path, mean: Array, std: Array) -> Array:
    """Return the batch of one image that ``value`` takes: [1, C, H, W] or [1, H, W, C]."""
    shape = value.type.shape or ()
    axis = next((a for a in (1, 3) if len(shape) == 4 and shape[a] in (1, 3)), None)
    if axis is None:
        raise InputError(f"input {value.name!r} is {value.type!r}, no batch of images [N,3,H,W] or [N,H,W,3]", code="shape")
    places = [d for a, d in enumerate(shape) if a not in (0, axis)]
    pixels = _pixels(path, shape[axis] == 1, [d if isinstance(d, int) else None for d in places])
    for given in (mean, std):
        if given.size not in (1, pixels.shape[-1]):
            raise InputError(f"--mean and --std take one number or {pixels.shape[-1]}, got {given.size}", code="usage")
    array = (pixels / 255 - mean) / std
    return np.asarray(np.moveaxis(array, -1, axis - 1)[None], value.type.dtype.numpy)


def _pixels(path: Path, grey: bool, places: Sequence[int | None]) -> Array:
    """Return an image as numbers from 0 to 255 [H, W, C], scaled to the height and width that are known."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise LoadError(f"to read {str(path)!r}, pip install 'flowgrad[image]', or give the image as NAME=F.npy", code="missing") from error
    data = read_file(path, Limits.default())
    try:
        image = Image.open(BytesIO(bytes(data))).convert("L" if grey else "RGB")
        height, width = (given or own for given, own in zip(places, image.size[::-1], strict=True))
        scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise LoadError(f"cannot read {str(path)!r} as an image: {error}", code="image") from error
    return np.asarray(scaled, np.float64).reshape(height, width, -1)
