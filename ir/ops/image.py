"""ImageDecoder: pixels from the bytes of an image file."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

from flowgrad.ir.errors import EngineError, LimitError, ValidationError
from flowgrad.ir.graph import Array, Node
from flowgrad.ir.limits import check_scratch
from flowgrad.ir.ops.registry import Trait, attr, op
from flowgrad.ir.types import UINT8, UNKNOWN, Type

CHANNELS = {"RGB": 3, "BGR": 3, "Grayscale": 1}
FORMATS = ("BMP", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What the standard names, as Pillow calls it; PPM is the portable formats together."""


@op("ImageDecoder", since=20, outputs=("image",), traits=(Trait.ZERO,))
def image_decoder(encoded_stream: Array, *, pixel_format: str = "RGB") -> Array:
    """[height, width, channels] of bytes; without any pixel where the stream is no image, as the standard says.

    Raises EngineError without Pillow, which decodes, and LimitError for an image that Pillow takes for an attack.
    """
    nothing = np.zeros((0, 0, CHANNELS[pixel_format]), np.uint8)
    if not encoded_stream.size:
        return nothing
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(encoded_stream.tobytes()), formats=FORMATS) as image:
            check_scratch(4 * image.width * image.height, f"an image of {image.width} x {image.height}")
            pixels = np.array(image.convert("L" if pixel_format == "Grayscale" else "RGB"))
    except pillow.DecompressionBombError as error:
        raise LimitError(f"ImageDecoder: {error}", code="image") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error):  # what Pillow raises for damaged files
        return nothing
    if pixel_format == "Grayscale":
        return pixels[:, :, None]
    return pixels[:, :, ::-1].copy() if pixel_format == "BGR" else pixels


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise EngineError("ImageDecoder needs Pillow: pip install 'flowgrad[image]'", code="image") from error
    return PIL.Image


@image_decoder.types
def _(node: Node) -> Type:
    """[height, width, channels]."""
    chosen, stream = attr(node, "pixel_format"), node.input(0).type
    if chosen not in CHANNELS:
        raise ValidationError(f"pixel_format is {chosen!r}, not one of {', '.join(CHANNELS)}", code="attribute",
                              where=node.label)
    if stream.rank not in (None, 1):
        raise ValidationError(f"a stream of bytes is a vector, not {stream!r}", code="shape", where=node.label)
    return Type(UINT8, (UNKNOWN, UNKNOWN, CHANNELS[chosen]))


@image_decoder.ranks
def _(node: Node) -> list[int | None]:
    """A vector of bytes."""
    return [1]
