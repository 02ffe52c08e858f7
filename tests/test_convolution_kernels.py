"""The ways a convolution of arrays is computed, each against sums over all taps."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.ops.convolution import kernels
from flowgrad.ir.ops.convolution.window import Window, slide

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


@pytest.mark.parametrize("group_columns", [1, 40, 1 << 19])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize(("channels", "outputs", "group", "sizes", "kernel", "stride", "dilation"), SHAPES)
def test_all_three_contractions_sum_over_the_taps(
    channels: int, outputs: int, group: int, sizes: tuple[int, ...], kernel: tuple[int, ...], stride: int, dilation: int,
    pad: int, group_columns: int, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "GROUP_COLUMNS", group_columns)
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


@pytest.mark.parametrize(("taps", "outputs"), [(3, 1), (3, 40), (60, 1)])
def test_the_image_gradient_of_a_tall_kernel_moves_no_more_than_its_products(taps: int, outputs: int) -> None:
    """A kernel as tall as the image sees one position: columns of it would be as many as the image has, almost all zeros."""
    window = slide((60,), (taps,), (1,), None, None, "NOTSET")
    moved = min(taps * window.positions, outputs * taps * 60)
    chosen = taps * window.positions if kernels.scatters(outputs, 1, window, (60,)) else outputs * taps * 60
    assert chosen <= kernels.SCATTER_GAIN * moved
