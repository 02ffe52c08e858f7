"""Rows of the operators that make grids."""

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, const, fixed, normal


def affine(theta: Array, size: Array, *, align_corners: int = 0) -> Array:
    """The position of each pixel, one by one."""
    batch, _, *sizes = (int(n) for n in size)
    grid = np.zeros((batch, *sizes, len(sizes)), theta.dtype)
    for place in np.ndindex(*sizes):
        ends = zip(place, sizes, strict=True)
        at = [-1 + 2 * i / (n - 1) if align_corners else -1 + (2 * i + 1) / n for i, n in ends]
        grid[(slice(None), *place)] = theta @ np.array([*at[::-1], 1.0], theta.dtype)
    return grid


CASES = [
    *(Case("AffineGrid", [normal(size[0], len(size) - 2, len(size) - 1), const(size, "int64")], {"align_corners": corners},
           name=f"{len(size) - 2}d-{size[0]}-{corners}", expected=affine)
      for size in ((1, 1, 3, 4), (2, 3, 2, 2), (2, 1, 2, 3, 2)) for corners in (0, 1)),
    Case("AffineGrid", [normal(2, 2, 3), fixed([2, 1, 3, 4], "int64")], name="run-time", expected=affine, symbolic=False),
]
