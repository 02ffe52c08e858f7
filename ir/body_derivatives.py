"""What the rules of If, Loop and Scan are handed for the derivatives of their subgraphs, and who makes it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.ops.registry import Refusal

Link = tuple[int, int]
"""A state: its index among the inputs and among the outputs of a body."""


@dataclass(frozen=True)
class Source:
    """Where the backward part gets a forward value from: an input that it is given again, or an output.

    A ``ragged`` one has another shape in every iteration, or may have; ``index`` counts such outputs alone.
    """

    is_input: bool
    index: int
    ragged: bool = False


@dataclass
class BodyAdjoint:
    """The two halves of a differentiated body.

    ``forward`` has the outputs of the body, then tapes: values that ``backward`` needs, ragged ones last. The inputs of ``backward`` are
    the cotangents of the outputs in ``bars``, the values in ``sources``, then the captures in ``captures`` (indices
    among the captures). ``cotangents`` maps input indices of the body to values of ``backward``. ``states`` are the
    states (positions in ``links``) that carry a cotangent.
    """

    forward: Graph
    backward: Graph
    states: list[int]
    bars: list[int]
    sources: list[Source]
    captures: list[int]
    cotangents: dict[int, Value]


@dataclass
class BodyTangent:
    """A body that computes tangents as well: the tangent inputs and outputs by the index of what they belong to."""

    graph: Graph
    inputs: dict[int, Value] = field(default_factory=dict)
    outputs: dict[int, Value] = field(default_factory=dict)


class BodyDifferentiator(Protocol):
    """Differentiates subgraphs for the rules of the operators that hold them."""

    def body_adjoint(
        self,
        body: Graph,
        *,
        captures: int,
        wanted: Collection[int],
        seeded: Collection[int],
        links: Sequence[Link] = (),
        given: Collection[int] = (),
        kept: Collection[int] = (),
        fixed_dims: Collection[str] | None = None,
    ) -> BodyAdjoint | Refusal:
        """Return the forward and backward parts of a body with ``captures`` captures, or why there are none.

        ``wanted`` are the inputs that cotangents are asked for, ``seeded`` the outputs that have one. The backward part
        is given the inputs in ``given`` again and can have the outputs in ``kept``; everything else that it needs becomes
        a tape. A body that is repeated has ``fixed_dims``, the names of the dims that are the same in every iteration.
        What may change its shape is computed again from what does not, and so is what depends on captures alone;
        what cannot, or comes out of a sequence that is a state, is a ragged tape. The other tapes are stacked.
        """

    def body_tangent(self, body: Graph, dotted: Collection[int], links: Sequence[Link] = ()) -> BodyTangent | Refusal:
        """Return a body that takes tangents of the inputs in ``dotted`` as well, and returns those of its outputs.

        A state that comes to depend on them gets tangents too: zeros where an iteration gives none.
        """
