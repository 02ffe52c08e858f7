"""Images decoded by Pillow, and what happens without it."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import EngineError, ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.types import UINT8, Dim, Type

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)


def decoded(stream: bytes, pixel_format: str = "RGB") -> Array:
    graph = Graph("decoder")
    x = graph.add_input("x", Type(UINT8, (Dim.named("n"),)))
    graph.add_output(Builder(graph).ImageDecoder(x, pixel_format=pixel_format), "y")
    return evaluate(graph, {"x": np.frombuffer(stream, np.uint8)})["y"]


def encoded(kind: str, pixels: Array = PIXELS, **options: Any) -> bytes:
    image = pytest.importorskip("PIL.Image")
    target = io.BytesIO()
    image.fromarray(pixels).save(target, kind, **options)
    return target.getvalue()


@pytest.mark.parametrize("kind", ["BMP", "PNG", "PPM", "TIFF"])
@pytest.mark.parametrize("pixel_format", ["RGB", "BGR", "Grayscale"])
def test_exact_formats_give_their_pixels(kind: str, pixel_format: str) -> None:
    weights = np.array([0.299, 0.587, 0.114])
    wanted = {"RGB": PIXELS, "BGR": PIXELS[:, :, ::-1], "Grayscale": (PIXELS @ weights)[:, :, None]}[pixel_format]
    got = decoded(encoded(kind), pixel_format)
    assert got.dtype == np.uint8 and got.shape == wanted.shape
    assert np.abs(got.astype(float) - wanted).max() <= (0.51 if pixel_format == "Grayscale" else 0)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "WEBP"])
def test_lossy_formats_come_near(kind: str) -> None:
    smooth = np.add.outer(np.arange(0, 160, 5), np.arange(0, 80, 5)).astype(np.uint8)
    got = decoded(encoded(kind, np.stack([smooth, smooth, smooth], -1)))
    assert np.abs(got.astype(int) - smooth[:, :, None]).mean() < 3


def test_one_channel_becomes_three_and_transparency_goes() -> None:
    assert (decoded(encoded("PNG", PIXELS[:, :, 0])) == PIXELS[:, :, :1]).all()
    clear = np.concatenate([PIXELS, PIXELS[:, :, :1]], -1)
    assert (decoded(encoded("PNG", clear)) == PIXELS).all()


@pytest.mark.parametrize("damage", ["cut", "noise", "other format"])
def test_no_image_gives_no_pixels(damage: str) -> None:
    whole = encoded("GIF" if damage == "other format" else "PNG")
    stream = {"cut": whole[: len(whole) // 2], "noise": b"no image", "other format": whole}[damage]
    assert decoded(stream).shape == (0, 0, 3)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EngineError, match=r"flowgrad\[image\]"):
        decoded(b"anything")


def test_unknown_pixel_formats_are_refused() -> None:
    with pytest.raises(ValidationError, match="not one of RGB, BGR, Grayscale"):
        decoded(b"", "YUV")
