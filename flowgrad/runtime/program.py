"""What ``compile`` returns, whatever the engine, and how programs are pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from flowgrad.ir.arguments import is_whole
from flowgrad.ir.errors import InputError, ResourceError
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.limits import Limits
from flowgrad.runtime.profile import Profile


def check_threads(threads: object) -> None:
    """Raise InputError unless ``threads`` is None or a number of threads."""
    if threads is not None and not (is_whole(threads) and threads >= 1):  # type: ignore[operator]
        raise InputError(f"threads must be at least 1, got {threads!r}", code="threads")


class Program(Protocol):
    """A graph compiled by an engine: immutable, thread-safe, re-entrant, picklable."""

    @property
    def engine(self) -> str:
        """The name of the engine."""

    @property
    def input_names(self) -> list[str]:
        """The names that every run has to feed, in order."""

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in order."""

    def run(self, feeds: Mapping[str, Any], *, seed: int | None = None) -> dict[str, Array]:
        """Run on ``feeds`` (every input) and return the outputs by name, as fresh arrays.

        The same ``seed`` draws the same random numbers. Raises InputError for a wrong name, dtype or shape and for a
        ``seed`` if the engine cannot be seeded, RunError where the run fails.
        """

    def profile(self, feeds: Mapping[str, Any], *, runs: int = 1, seed: int | None = None) -> Profile:
        """Run ``runs`` times with a clock at every node, and return the outputs and a Chrome trace."""


def packed(graph: Graph, version: int) -> bytes:
    """Return the bytes of a graph that was compiled at ``version``; ResourceError if it was edited since."""
    from flowgrad.ir.pack import pack

    if graph.version != version:
        raise ResourceError("the graph was edited after it was compiled: this program cannot be pickled", code="pickle")
    return pack(graph)


def unpacked(data: bytes) -> Graph:
    """Return the graph of bytes that ``packed`` made."""
    from flowgrad.ir.pack import unpack

    return unpack(data, Limits.unlimited())
