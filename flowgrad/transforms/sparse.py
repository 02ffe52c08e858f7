"""Sparse Jacobians and Hessians: values at the places of a fixed pattern, by few compressed sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.ops.operands import concatenated
from flowgrad.ir.roles import Role
from flowgrad.ir.sparse import PARTS
from flowgrad.passes.adjoint import Zero
from flowgrad.passes.coloring import color_count, column_colors, star_colors, symmetric_places
from flowgrad.passes.differentiate import adjoint, tangent
from flowgrad.passes.refusals import check_zero
from flowgrad.passes.sparsity import Pattern, dependencies, size_of
from flowgrad.transforms.seeds import for_each_seed
from flowgrad.transforms.task import Task, common_dtype


class Piece(NamedTuple):
    """A part of all elements of a side of the matrix: those of one value."""

    name: str
    value: Value
    start: int
    end: int


def pieces(values: Sequence[tuple[str, Value]]) -> list[Piece]:
    """Return values, by name, as parts of one side of a matrix."""
    ends = accumulate(size_of(v) for _, v in values)
    return [Piece(name, v, end - size_of(v), end) for (name, v), end in zip(values, ends, strict=True)]


def sparse_jacobian(task: Task, ys: Sequence[tuple[str, Value]], xs: Sequence[Value], mode: str, zero: Zero) -> None:
    """Output ``y_x_jacobian`` as values, with their pattern, for all y and x: forward or reverse, whichever is fewer sweeps."""
    graph = task.graph
    down, across = pieces(ys), pieces([(x.name, x) for x in xs])
    pattern = _pattern(graph, xs, [y for _, y in ys])
    options = [] if mode == "rev" else [(column_colors(pattern), across)]
    options += [] if mode == "fwd" else [(column_colors(pattern.transposed()), down)]
    colors, seeded = min(options, key=lambda option: color_count(option[0]))
    seeds = [(piece, graph.add_input(graph.unique_name(f"{piece.name}_seed"), piece.value.type)) for piece in seeded]
    pairs = [(piece.value, seed) for piece, seed in seeds]
    if seeded is down:
        swept = _swept(graph, seeds, colors, adjoint(graph, pairs, xs, zero=zero, are_units=True), across)
        index = colors[pattern.rows] * pattern.width + pattern.columns
    else:
        found = tangent(graph, pairs, [y for _, y in ys], in_place=False, are_units=True)
        if zero != "allow":
            check_zero(graph, xs, [y for (_, y), dot in zip(ys, found, strict=True) if dot is None])
        swept = _swept(graph, seeds, colors, found, down)
        index = colors[pattern.columns] * pattern.height + pattern.rows
    _remark(task, pattern, colors)
    for y in down:
        for x in across:
            _output(task, ("jacobian", y.name, x.name), f"{y.name}_{x.name}_jacobian", (pattern, y, x), swept, index)


def sparse_hessian(task: Task, of: str, xs: Sequence[Value], gradients: Sequence[Value | None]) -> None:
    """Output ``x_u_hessian`` as values, with their pattern, for all x and u in ``xs``."""
    graph, b = task.graph, Builder(task.graph)
    bars = [b.zeros_like(x) if g is None else g for x, g in zip(xs, gradients, strict=True)]
    pattern = _pattern(graph, xs, bars)
    pattern = Pattern.joined(pattern.height, pattern.width, [pattern, pattern.transposed()])
    colors, sides = star_colors(pattern), pieces([(x.name, x) for x in xs])
    seeds = [(piece, graph.add_input(graph.unique_name(f"{piece.name}_seed"), piece.value.type)) for piece in sides]
    dots = tangent(graph, [(piece.value, seed) for piece, seed in seeds], bars, in_place=False, are_units=True)
    swept = _swept(graph, seeds, colors, dots, sides)
    sweep, row = symmetric_places(pattern, colors)
    _remark(task, pattern, colors)
    for x in sides:
        for u in sides:
            _output(task, ("hessian", of, f"{x.name},{u.name}"), f"{x.name}_{u.name}_hessian", (pattern, x, u), swept,
                    sweep * pattern.height + row)


def _remark(task: Task, pattern: Pattern, colors: Array) -> None:
    task.notes.append(f"{pattern.entries.size} of {pattern.height * pattern.width} derivatives may be other than zero: "
                      f"they take {color_count(colors)} sweeps")


def _pattern(graph: Graph, xs: Sequence[Value], ys: Sequence[Value]) -> Pattern:
    """Return the pattern of the derivatives of ``ys`` by ``xs``, found on a copy of the graph."""
    copy = graph.copy()
    twins = [[copy.entries[v.producer.key].output(v.index) for v in values] for values in (xs, ys)]
    return dependencies(copy, *twins)


def _swept(graph: Graph, pairs: Sequence[tuple[Piece, Value]], colors: Array, found: Sequence[Value | None],
           sides: Sequence[Piece]) -> Value:
    """Return what is found for the seeds of each colour: [colours, elements of ``sides``], as one axis, of one dtype."""
    b = Builder(graph, prefix="sweeps")
    count = color_count(colors)
    seeds = []
    for piece, seed in pairs:
        own = colors[piece.start: piece.end]
        chosen = b.cast(b.Equal(np.arange(count)[:, None], own[None, :]), piece.value.type.dtype)
        seeds.append((seed, b.Reshape(chosen, b.ints([count, *piece.value.type.static_shape]), allowzero=1)))
    made = iter(for_each_seed(graph, seeds, [v for v in found if v is not None]))
    dtype = common_dtype([piece.value for piece in sides])
    rows = []
    for piece, value in zip(sides, found, strict=True):
        shape = b.ints([count, piece.end - piece.start])
        row = b.Expand(b.scalar(0, dtype), shape) if value is None else b.Reshape(next(made), shape, allowzero=1)
        rows.append(b.cast(row, dtype))
    return b.Reshape(concatenated(b, rows, 1), b.ints([-1]))


def _output(task: Task, role: Role, name: str, block: tuple[Pattern, Piece, Piece], swept: Value, index: Array) -> None:
    """Output the values of one block and their pattern; ``index`` says where in ``swept`` each entry stands."""
    pattern, down, across = block
    rows, columns = pattern.rows, pattern.columns
    inside = (rows >= down.start) & (rows < down.end) & (columns >= across.start) & (columns < across.end)
    b = Builder(task.graph, prefix=name)
    made = task.output(role, name, b.cast_like(b.Gather(swept, index[inside]), down.value)).name
    places = (rows[inside] - down.start, columns[inside] - across.start,
              np.array([down.end - down.start, across.end - across.start]))
    for part, suffix, array in zip(PARTS, ("rows", "cols", "shape"), places, strict=True):
        task.output((part, made, ""), f"{made}_{suffix}", task.graph.add_constant(array))
