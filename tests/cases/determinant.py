"""Rows of determinants: regular matrices, and singular ones, whose derivatives are no less smooth."""

from __future__ import annotations

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, In, fixed, normal


def of_rank(n: int, rank: int) -> In:
    """A matrix of less than full rank."""
    return In(lambda rng: rng.standard_normal((n, rank)) @ rng.standard_normal((rank, n)))


def cofactors(x: Array) -> Array:
    """Minor by minor."""
    result = np.empty_like(x)
    for *batch, i, j in np.ndindex(x.shape):
        minor = np.delete(np.delete(x[tuple(batch)], i, 0), j, 1)
        result[(*batch, i, j)] = (-1) ** (i + j) * (np.linalg.det(minor) if minor.size else 1.0)
    return result


CASES: list[Case] = [
    Case("Det", [normal(3, 3)]),
    Case("Det", [normal(2, 2, 2)], name="batch"),
    Case("Det", [normal(1, 2, 1, 1)], name="numbers"),
    Case("Det", [of_rank(3, 2)], name="singular"),
    Case("Det", [of_rank(4, 2)], name="singular-twice"),
    Case("Det", [fixed(np.zeros((3, 3)))], name="zeros"),
    Case("Det", [normal(8, 8)], name="large", rtol=1e-7),
    Case("Det", [normal(0, 2, 2)], name="no-matrices"),
    Case("Cofactor", [normal(2, 3, 3)], expected=cofactors),
    Case("Cofactor", [of_rank(3, 1)], name="singular", expected=cofactors),
    Case("Cofactor", [normal(2, 1, 1)], name="numbers", expected=cofactors, smooth=False,
         note="all are 1"),
    Case("Cofactor", [normal(2, 7, 7)], name="large", expected=cofactors, second=False),
    Case("Cofactor", [of_rank(8, 7)], name="large-singular", expected=cofactors, second=False),
]
