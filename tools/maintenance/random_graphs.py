"""Random valid graphs, for the fuzzer."""

from __future__ import annotations

from flowgrad.tools.maintenance import random_nodes, random_shapes
from flowgrad.tools.maintenance.graph_maker import Maker, Sample

WAYS = (random_nodes, random_shapes)
"""The modules that declare ways to add nodes; their order decides which graph a seed gives."""


def random_graph(seed: int, most: int = 40) -> Sample:
    """Return the random graph of a seed, with at most about ``most`` nodes."""
    return Maker(seed).make(most)
