"""The pattern of a sparse derivative, as a model that holds one tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flowgrad.ir.errors import InputError
from flowgrad.ir.evaluate import run_values
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.reach import dependents
from flowgrad.ir.roles import Role

if TYPE_CHECKING:
    from scipy.sparse import csr_array

PARTS = ("sparsity_rows", "sparsity_cols", "sparsity_shape")
"""The roles of the outputs that hold a pattern; ``of`` is the output that holds the values."""


class Sparsity(NamedTuple):
    """Where the values of a sparse derivative stand: rows and columns count the elements of its two sides."""

    rows: Array
    cols: Array
    shape: tuple[int, int]

    def matrix(self, values: Array) -> csr_array:
        """Return the values as a matrix of SciPy. InputError without SciPy."""
        try:
            from scipy.sparse import csr_array
        except ImportError as error:
            raise InputError("a sparse matrix needs SciPy: pip install scipy", code="scipy") from error
        return csr_array((values, (self.rows, self.cols)), shape=self.shape)

    def dense(self, values: Array) -> Array:
        """Return the values as an array of two axes, with zeros elsewhere."""
        full = np.zeros(self.shape, values.dtype)
        full[self.rows, self.cols] = values
        return full


def sparsity_of(graph: Graph, roles: Mapping[Role, str]) -> dict[str, Sparsity]:
    """Return the pattern of each sparse derivative among the outputs, by its name."""
    entries = {e.name: e.input(0) for e in graph.output_entries}
    fed = dependents(graph.nodes(), graph.inputs)
    found = {}
    for role, of, _ in roles:
        parts = [entries.get(roles.get((part, of, ""), "")) for part in PARTS]
        wanted = [v for v in parts if v is not None and v not in fed]
        if role == PARTS[0] and len(wanted) == len(PARTS):
            rows, cols, shape = run_values(graph, {}, wanted, np.random.default_rng(0))
            found[of] = Sparsity(rows, cols, (int(shape[0]), int(shape[1])))
    return found
