"""Random valid graphs, for the fuzzer."""

from __future__ import annotations

from collections.abc import Collection

from flowgrad.tools.maintenance import random_nodes, random_shapes
from flowgrad.tools.maintenance.graph_maker import Maker, Sample

WAYS = (random_nodes, random_shapes)
"""The modules that declare ways to add nodes; their order decides which graph a seed gives."""


FAVOURED = 10


def random_graph(seed: int, most: int = 40, favour: Collection[str] = ()) -> Sample:
    """Return the random graph of a seed, with at most about ``most`` nodes; the ways in ``favour`` are taken more often."""
    maker = Maker(seed)
    if favour:
        maker.kinds = [(f, FAVOURED * w if f.__name__ in favour else w) for f, w in maker.kinds]
    return maker.make(most)
