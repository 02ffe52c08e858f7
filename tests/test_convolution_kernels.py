"""The ways a convolution of arrays is computed, each against sums over all taps."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph
from flowgrad.ir.ops.convolution import kernels, together
from flowgrad.ir.ops.convolution.window import Window, slide
from flowgrad.ir.types import FLOAT32, Type

SHAPES = [
    pytest.param(6, 6, 6, (5, 4), (3, 2), 1, 1, id="depthwise"),
    pytest.param(4, 12, 4, (7,), (3,), 2, 1, id="multiplied"),
    pytest.param(4, 6, 2, (6, 5), (2, 3), 1, 2, id="grouped"),
    pytest.param(1, 5, 1, (6, 6), (3, 3), 1, 1, id="one-channel"),
    pytest.param(1, 1, 1, (6, 6), (3, 3), 2, 1, id="one-to-one"),
    pytest.param(3, 2, 1, (9, 3), (8, 2), 1, 1, id="tall"),
    pytest.param(2, 8, 2, (9,), (4,), 1, 2, id="tall-dilated"),
    pytest.param(2, 16, 1, (6, 6), (3, 3), 1, 1, id="many-outputs"),
]


def _taps(window: Window, sizes: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Return (position, tap, place in the image) for all that lie in the image."""
    found = []
    for o, k in product(np.ndindex(*window.output), np.ndindex(*window.kernel)):
        at = tuple(p * s + t * d - b for p, t, s, d, b in
                   zip(o, k, window.strides, window.dilations, window.begin, strict=True))
        if all(0 <= i < n for i, n in zip(at, sizes, strict=True)):
            found.append((o, k, at))
    return found


@pytest.mark.parametrize(("least", "group_columns"), [(99, 1), (99, 40), (99, 1 << 19), (2, 1)])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize(("channels", "outputs", "group", "sizes", "kernel", "stride", "dilation"), SHAPES)
def test_all_three_contractions_sum_over_the_taps(
    channels: int, outputs: int, group: int, sizes: tuple[int, ...], kernel: tuple[int, ...], stride: int, dilation: int,
    pad: int, least: int, group_columns: int, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "GROUP_COLUMNS", group_columns)
    monkeypatch.setattr(together, "LEAST", least)
    monkeypatch.setattr(together, "BLOCK_COLUMNS", 1)  # two blocks of images, of 2 and 1
    rank, inner, many = len(sizes), channels // group, outputs // group
    window = slide(sizes, kernel, (stride,) * rank, (dilation,) * rank, (pad,) * (2 * rank), "NOTSET")
    rng = np.random.default_rng(0)
    arrays: list[Any] = [rng.standard_normal(s) for s in
                         ((3, channels, *sizes), (outputs, inner, *kernel), (3, outputs, *window.output))]
    sums: list[Any] = [np.zeros_like(a) for a in arrays]
    (x, w, y_bar), (x_bar, w_bar, y) = arrays, sums
    for o, k, at in _taps(window, sizes):
        for g in range(group):
            m, c = slice(g * many, (g + 1) * many), slice(g * inner, (g + 1) * inner)
            y[(slice(None), m, *o)] += x[(slice(None), c, *at)] @ w[(m, slice(None), *k)].T
            x_bar[(slice(None), c, *at)] += y_bar[(slice(None), m, *o)] @ w[(m, slice(None), *k)]
            w_bar[(m, slice(None), *k)] += y_bar[(slice(None), m, *o)].T @ x[(slice(None), c, *at)]
    np.testing.assert_allclose(kernels.convolve(x, w, None, window, group), y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(kernels.input_gradient(y_bar, w, window, group, sizes), x_bar, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(kernels.weight_gradient(x, y_bar, window, group), w_bar, rtol=1e-12, atol=1e-12)
    work = [np.full(shape, np.nan) for shape in kernels.scratch_shapes(3, channels, outputs, window, group, sizes)]
    assert kernels.convolve(x, w, None, window, group, None, work).tobytes() == kernels.convolve(x, w, None, window, group).tobytes()


def test_small_images_go_together_and_others_do_not() -> None:
    small, large, strided, vast = (slide((n, n), (3, 3), (s, s), (d, d), (d - 1,) * 4, "NOTSET")
                                   for n, s, d in ((8, 1, 1), (99, 1, 1), (8, 2, 1), (8, 1, 10**9)))
    assert together.suits_columns(16, 4, small)
    assert not any(together.suits_columns(16, 4, window) for window in (large, strided, vast))
    assert not together.suits_columns(15, 4, small) and not together.suits_scattering(16, 1, 8, vast, (8, 8))
    assert together.suits_scattering(16, 1, 8, small, (8, 8)) and together.suits_scattering(16, 4, 4, strided, (8, 8))
    assert not together.suits_scattering(16, 8, 8, small, (8, 8))


def test_blocks_of_images_are_small_with_their_pads() -> None:
    window = slide((1,), (2,), (1,), (30000,), (30000, 0), "NOTSET")
    assert window.span == (30001,) and together.suits_columns(100_000, 1, window)
    assert all(np.prod(shape) <= together.BLOCK_COLUMNS for shape in together.scratch_shapes(100_000, 1, 1, window))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_images_taken_together_have_the_same_bits_for_any_number_of_threads(threads: int) -> None:
    graph = Graph("convolution")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (200, 8, 20, 20)))
    w = graph.add_input("w", Type(FLOAT32, (16, 8, 5, 5)))
    y = b.Conv(x, w)
    graph.add_output(y, "y")
    graph.add_output(b.ConvInputGrad(y, w, b.shape(x)), "x_bar")
    rng = np.random.default_rng(0)
    feeds = {v.name: rng.standard_normal(v.type.static_shape, np.float32) for v in (x, w)}
    one, many = (fg.Model(graph).compile(threads=n).run(feeds) for n in (1, threads))
    assert all(one[name].tobytes() == many[name].tobytes() for name in one)


@pytest.mark.parametrize(("taps", "outputs"), [(3, 1), (3, 40), (60, 1)])
def test_the_image_gradient_of_a_tall_kernel_moves_no_more_than_its_products(taps: int, outputs: int) -> None:
    """A kernel as tall as the image sees one position: columns of it would be as many as the image has, almost all zeros."""
    window = slide((60,), (taps,), (1,), None, None, "NOTSET")
    moved = min(taps * window.positions, outputs * taps * 60)
    chosen = taps * window.positions if kernels.scatters(outputs, 1, window, (60,)) else outputs * taps * 60
    assert chosen <= kernels.SCATTER_GAIN * moved
