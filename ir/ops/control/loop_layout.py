"""What Loop and Scan have in common: where states, scan inputs and scan outputs lie, and how body types look outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.limits import Meter
from flowgrad.ir.ops.registry import attr
from flowgrad.ir.types import UNKNOWN, Dim, DimLike, Type, merge_dims

Bindings = Mapping[str, DimLike]


@dataclass(frozen=True)
class Layout:
    """The parts of a Loop or Scan node.

    Body inputs: ``lead_formals`` (iteration number and condition of a Loop), states, slices of the scan inputs,
    captures. Body outputs: ``lead_outputs`` (the condition), states, slices of the scan outputs. Node inputs line up
    with body inputs, node outputs with the body outputs after the lead.
    """

    lead_formals: int
    lead_outputs: int
    states: int
    scan_inputs: int
    input_axes: tuple[int, ...] = ()
    input_directions: tuple[int, ...] = ()
    output_axes: tuple[int, ...] = ()
    output_directions: tuple[int, ...] = ()

    @property
    def first_scan_input(self) -> int:
        """The index of the first scan input among the inputs of the body."""
        return self.lead_formals + self.states

    @property
    def first_scan_output(self) -> int:
        """The index of the first scan output among the outputs of the body."""
        return self.lead_outputs + self.states

    @property
    def links(self) -> list[tuple[int, int]]:
        """For each state its index among the inputs and among the outputs of the body."""
        return [(self.lead_formals + j, self.lead_outputs + j) for j in range(self.states)]

    def input_axis(self, k: int) -> int:
        """The axis along which scan input ``k`` is sliced (it may be negative)."""
        return self.input_axes[k] if k < len(self.input_axes) else 0

    def input_direction(self, k: int) -> int:
        """0 if scan input ``k`` is read forward, 1 if backward."""
        return self.input_directions[k] if k < len(self.input_directions) else 0

    def output_axis(self, k: int) -> int:
        """The axis along which scan output ``k`` is stacked (it may be negative)."""
        return self.output_axes[k] if k < len(self.output_axes) else 0

    def output_direction(self, k: int) -> int:
        """0 if the slices of scan output ``k`` are appended, 1 if they are prepended."""
        return self.output_directions[k] if k < len(self.output_directions) else 0

    def length(self, node: Node) -> DimLike:
        """Return the extent that all scan inputs of a Scan have, as precisely as their types tell."""
        extent: DimLike = UNKNOWN
        for k, x in enumerate(node.inputs[self.states :]):
            if x is not None and x.type.shape is not None:
                extent = merge_dims(extent, x.type.shape[self.input_axis(k)])
        return extent


def layout_of(node: Node) -> Layout:
    """Return where the parts of a Loop or Scan node lie."""
    if node.op == "Loop":
        return Layout(2, 1, max(0, len(node.inputs) - 2), 0)
    scanned = attr(node, "num_scan_inputs")
    return Layout(
        0, 0, len(node.inputs) - scanned, scanned,
        tuple(attr(node, "scan_input_axes")), tuple(attr(node, "scan_input_directions")),
        tuple(attr(node, "scan_output_axes")), tuple(attr(node, "scan_output_directions")),
    )


# ---- types inside and outside ---------------------------------------------------------------------------------------------


def dim_bindings(formals: Sequence[Value], actuals: Sequence[Value]) -> dict[str, DimLike]:
    """Return what the named dims of the inputs of a subgraph are outside, as far as the shapes tell."""
    found: dict[str, DimLike] = {}
    for formal, actual in zip(formals, actuals, strict=True):
        _bind(found, formal.type, actual.type.shape)
    return found


def _bind(found: dict[str, DimLike], formal: Type, shape: Sequence[DimLike] | None) -> None:
    if formal.shape is None or shape is None or len(formal.shape) != len(shape):
        return
    for inner, outer in zip(formal.shape, shape, strict=True):
        if (name := bare_name(inner)) is not None and outer is not UNKNOWN:
            found.setdefault(name, outer)


def bare_name(dim: DimLike) -> str | None:
    """Return the name of a dim that is nothing but a name."""
    if not isinstance(dim, Dim) or len(dim.terms) != 1:
        return None
    ((monomial, factor),) = dim.terms
    return monomial[0] if factor == 1 and len(monomial) == 1 and isinstance(monomial[0], str) else None


def outward(type_: Type, env: Bindings) -> Type:
    """Return a type of a subgraph as seen outside: extents that only the subgraph can name are UNKNOWN."""
    if type_.shape is None:
        return type_
    return type_.with_shape([_outward_dim(d, env) for d in type_.shape])


def _outward_dim(dim: DimLike, env: Bindings) -> DimLike:
    if not isinstance(dim, Dim):
        return dim
    return dim.substitute(env) if dim.names() <= env.keys() else UNKNOWN


def invariant_bindings(node: Node) -> dict[str, DimLike]:
    """Return what the named dims of the body are outside, for those that are the same in every iteration."""
    layout, body = layout_of(node), node.subgraphs["body"]
    formals, results = body.inputs, body.outputs
    env = dim_bindings(formals[len(formals) - len(node.captures):], node.captures)
    for k in range(layout.scan_inputs):
        outer = node.input(layout.states + k).type.shape
        if outer is not None and outer:
            axis = layout.input_axis(k) % len(outer)
            _bind(env, formals[layout.first_scan_input + k].type, (*outer[:axis], *outer[axis + 1 :]))
    for formal_index, output_index in layout.links:
        formal, after = formals[formal_index].type, results[output_index].type
        initial = node.input(formal_index).type.shape
        if formal.shape is None or after.shape is None or initial is None:
            continue
        if not len(formal.shape) == len(after.shape) == len(initial):
            continue
        kept = [outer if before == later else UNKNOWN
                for outer, before, later in zip(initial, formal.shape, after.shape, strict=True)]
        _bind(env, formal, kept)
    return env


def slice_type(type_: Type, axis: int) -> Type:
    """Return the type of one slice of a scanned value."""
    if type_.shape is None:
        return type_
    rank = len(type_.shape)
    if not -rank <= axis < rank:
        raise ValidationError(f"cannot scan axis {axis} of {type_!r}", code="attribute")
    return type_.with_shape(tuple(d for i, d in enumerate(type_.shape) if i != axis % rank))


def carried_types(node: Node, env: Bindings) -> list[Type]:
    """Return the types of the states after the run: what their initial values and what the body returns agree on."""
    results = node.subgraphs["body"].outputs
    return [_carried_type(node, k, node.input(formal).type, results[output].type, env)
            for k, (formal, output) in enumerate(layout_of(node).links)]


def _carried_type(node: Node, state: int, initial: Type, after: Type, env: Bindings) -> Type:
    seen = outward(after, env)
    if initial.dtype != seen.dtype:
        raise ValidationError(f"state {state} of {node.op} starts as {initial!r}, the body returns {after!r}", code="dtype",
                              where=node.label)
    if initial.shape is None or seen.shape is None or len(initial.shape) != len(seen.shape):
        return Type(seen.dtype, None)
    return seen.with_shape([a if a == b else UNKNOWN for a, b in zip(initial.shape, seen.shape, strict=True)])


# ---- running --------------------------------------------------------------------------------------------------------------


class Subgraph:
    """What the kernel of If, Loop or Scan gets for a subgraph: call it with the formal inputs.

    ``empty`` takes the same arrays and returns, without running anything, zeros of the types of the outputs; an extent
    that cannot be told without a run is 0. ``meter`` counts what the kernel itself allocates.
    """

    __slots__ = ("captures", "graph", "meter", "run")

    def __init__(self, graph: Graph, captures: Sequence[Array], run: Callable[..., list[Array]], meter: Meter) -> None:
        self.meter = meter
        self.graph = graph
        self.captures = captures
        self.run = run

    def __call__(self, *arrays: Array) -> list[Array]:
        return self.run(*arrays)

    def empty(self, *arrays: Array) -> list[Array]:
        """Return zeros of the types of the outputs."""
        env: dict[str, DimLike] = {}
        for formal, array in zip(self.graph.inputs, (*arrays, *self.captures), strict=True):
            _bind(env, formal.type, array.shape)
        return [_zeros(y.type, env) for y in self.graph.outputs]


def _zeros(type_: Type, env: Bindings) -> Array:
    seen = outward(type_, env).shape
    return np.zeros([d if isinstance(d, int) else 0 for d in seen or ()], type_.dtype.numpy)
