"""Colours for compressed derivatives: which columns (or rows) of a sparse matrix one sweep can do together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowgrad.ir.errors import LimitError, PassError
from flowgrad.ir.graph import Array
from flowgrad.ir.limits import check_time
from flowgrad.passes.sparsity import Pattern

MOST_PAIRS = 2**24
"""The most pairs of columns that share a row, beyond which no colours are looked for."""


def column_colors(pattern: Pattern) -> Array:
    """Return a colour for each column, so that no two columns with a common row have the same one.

    Then the product with the sum of the columns of one colour tells all their entries. Raises LimitError where too many
    columns meet.
    """
    counts = np.bincount(pattern.rows, minlength=pattern.height)
    if counts.max(initial=0) == pattern.width:
        return np.arange(pattern.width)  # a full row: no two can be done together
    _check_work(counts)
    met = pattern.led(pattern.width, pattern.columns, pattern.rows)
    import networkx as nx  # takes as long to import as all else: not before it is needed

    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(pattern.width))
    graph.add_edges_from(_pairs(met))
    found = []
    for strategy in (lambda g, _: range(len(g)), "largest_first", "smallest_last"):
        check_time()
        colors = nx.greedy_color(graph, strategy)
        found.append(np.array([colors[c] for c in range(pattern.width)], np.int64))
    return min(found, key=color_count)


def color_count(colors: Array) -> int:
    """Return how many colours there are."""
    return int(colors.max(initial=-1)) + 1


def star_colors(pattern: Pattern) -> Array:
    """Return a colour for each column of a symmetric pattern, so that its products tell all entries by symmetry.

    No two neighbours have the same colour, and no path of four columns has two colours alone (a star colouring): of each
    pair of entries (i, j) and (j, i), one is alone in its row among those of its column's colour. Greedy, in two orders;
    of these and the colours that need no symmetry, the fewest. Raises LimitError where too many columns meet.
    """
    degrees = np.bincount(pattern.rows, minlength=pattern.height)
    _check_work(degrees)
    neighbours: list[list[int]] = [[] for _ in range(pattern.width)]
    for a, b in _pairs(pattern):
        neighbours[a].append(b)
        neighbours[b].append(a)
    orders = (range(pattern.width), np.argsort(-degrees, kind="stable").tolist())
    return min((*(_star(neighbours, order) for order in orders), column_colors(pattern)), key=color_count)


def _star(neighbours: Sequence[Sequence[int]], order: Sequence[int]) -> Array:
    """Colour greedily: Gebremedhin, Manne and Pothen, What color is your Jacobian? (2005), algorithm 4.1."""
    colors = np.full(len(neighbours), -1).tolist()
    for v in order:
        check_time()
        forbidden: set[int] = set()
        for w in neighbours[v]:
            if colors[w] >= 0:
                forbidden.add(colors[w])
            for x in neighbours[w]:
                if x == v or colors[x] < 0 or colors[x] in forbidden:
                    continue
                if colors[w] < 0 or any(y != w and colors[y] == colors[w] for y in neighbours[x]):
                    forbidden.add(colors[x])
        color = 0
        while color in forbidden:
            color += 1
        colors[v] = color
    return np.array(colors, np.int64)


def _check_work(counts: Array) -> None:
    pairs = int(np.sum(counts.astype(np.int64) ** 2))
    if pairs > MOST_PAIRS:
        raise LimitError(f"{pairs} pairs of elements meet, more than {MOST_PAIRS}: the derivative is too dense to be a sparse "
                         "one; make it dense, with chunk_size to save memory", code="dense")


def _pairs(pattern: Pattern) -> list[tuple[int, int]]:
    """Return the entries above the diagonal."""
    rows, columns = pattern.rows, pattern.columns
    above = rows < columns
    return list(zip(rows[above].tolist(), columns[above].tolist(), strict=True))


def symmetric_places(pattern: Pattern, colors: Array) -> tuple[Array, Array]:
    """Return for each entry of a symmetric pattern the (colour, row) in whose sweep it stands alone.

    Raises PassError if the colours do not tell an entry.
    """
    rows, columns = pattern.rows, pattern.columns
    width = color_count(colors)
    sums = np.bincount(rows * width + colors[columns], minlength=pattern.height * width)
    alone = sums[rows * width + colors[columns]] == 1
    mirrored = sums[columns * width + colors[rows]] == 1
    if not np.all(alone | mirrored):
        raise PassError("the colours do not tell every entry of the Hessian", code="coloring")
    return np.where(alone, colors[columns], colors[rows]), np.where(alone, rows, columns)
