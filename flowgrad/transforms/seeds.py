"""Many seeds at once: one forward part, and the subgraph of a derivative for many cotangents or tangents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import UnsupportedError
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.inline import inline
from flowgrad.ir.ops.operands import extents, joined, ramp
from flowgrad.ir.ops.registry import is_random
from flowgrad.ir.reach import dependents
from flowgrad.ir.types import INT64, DimLike, Type, dim_product
from flowgrad.passes.batch import Examples, batch
from flowgrad.passes.edits import remove_dead
from flowgrad.passes.stand_ins import take_places


def for_each_seed(graph: Graph, pairs: Sequence[tuple[Value, Value]], results: Sequence[Value]) -> list[Value]:
    """Return what ``results`` are for every seed, along a new first axis.

    ``pairs`` are graph inputs that stand for one seed, each with the value that holds many. Those inputs are removed, and
    what was computed from them; what depends on no seed is computed once.
    """
    ones = [one for one, _ in pairs]
    examples = batch(graph, pairs, results, randomness="same")
    made = [examples.of(y) for y in results]
    _keep_what_is_shared(graph, ones, examples)
    take_places(graph, ones, examples, {y: y.name for y in (*examples.known, *examples.rows)})
    return made


def _keep_what_is_shared(graph: Graph, ones: Sequence[Value], examples: Examples) -> None:
    """Let values that are the same for every seed be made where the seeds are, by what was made for all of them.

    They are results of nodes that draw random numbers and compute tangents beside them: such a node can be there once only.
    """
    stale = dependents(graph.nodes(), ones)
    for y, one in list(examples.known.items()):
        if y in stale and not examples.holds(y) and one.producer.key in graph.entries:
            node = y.producer
            graph.adopt(y, one)
            examples.known[y] = y
            if not node.results:
                graph.remove(node)


def rows_of(graph: Graph, seed: Value, like: Value, results: Sequence[tuple[Value, Value]], chunk_size: int | None = None, *,
            diagonal: bool = False) -> list[Value]:
    """Return ``results``, which are linear in the input ``seed``, for all unit seeds: shape [K, *result.shape] each.

    ``seed`` has the type of ``like``, and K is their number of elements; the input is removed. Beside each result stands a
    value of its shape that depends on no seed. With ``chunk_size``, that many seeds at a time are worked on, by a Scan. With
    ``diagonal``, element k of result k alone is kept, shape [K]: results have the type of the seed then.
    """
    b = Builder(graph, prefix=seed.name)
    count, size = dim_product(like.shape), element_count(b, like)
    if chunk_size is None or (isinstance(count, int) and count <= chunk_size):
        rows = for_each_seed(graph, [(seed, _identity(b, like, size))], [y for y, _ in results])
        return [_diagonal(b, y, ramp(b, size), count) for y in rows] if diagonal else rows
    start = graph.add_input(graph.unique_name(f"{seed.name}_start"), Type(INT64, ()))
    places = b.Add(start, b.ints(range(chunk_size)))
    chunk = for_each_seed(graph, [(seed, _unit_rows(b, like, size, places))], [y for y, _ in results])
    if diagonal:
        chunk = [_diagonal(b, y, b.Min(places, b.Sub(size, np.int64(1))), chunk_size) for y in chunk]
    shapes = [[] if diagonal else extents(b, x, 0, len(x.shape)) for _, x in results]
    return _scanned(b, start, chunk, shapes, size, count, chunk_size)


def element_count(b: Builder, x: Value) -> Value:
    """Return the number of elements of ``x`` as an int64 vector of length 1."""
    count = dim_product(x.shape)
    return b.ints([count]) if isinstance(count, int) else b.Reshape(b.Size(x), b.ints([1]))


def spread(b: Builder, rows: Value, like: Sequence[Value]) -> Value:
    """Return ``rows`` in the shape that the shapes of ``like`` make when they are joined."""
    shape = [d for x in like for d in x.shape]
    if rows.type.shape == tuple(shape):
        return rows
    target = joined(b, [b.shape(x) for x in like])
    return b.add_node("Reshape", [rows, target], {"allowzero": 1}, types=[Type(rows.type.dtype, tuple(shape))]).output()


def _identity(b: Builder, like: Value, size: Value) -> Value:
    """Return one seed for each element of ``like``: 1 there, 0 elsewhere; shape [K, *like.shape]."""
    dtype = like.type.dtype.wide
    eye = b.EyeLike(b.ConstantOfShape(joined(b, [size, size])), dtype=dtype.onnx)
    return _shaped(b, b.cast_like(eye, like), like, size, dim_product(like.shape))


def _unit_rows(b: Builder, like: Value, size: Value, places: Value) -> Value:
    """Return the seeds in ``places``; a place behind the last gives zeros."""
    rows = b.Equal(b.Unsqueeze(places, [1]), ramp(b, size))
    return _shaped(b, b.cast_like(rows, like), like, b.shape(places), places.shape[0])


def _shaped(b: Builder, flat: Value, like: Value, count: Value, dim: DimLike) -> Value:
    target = joined(b, [count, b.shape(like)])
    type_ = Type(flat.type.dtype, (dim, *like.shape))
    return b.add_node("Reshape", [flat, target], {"allowzero": 1}, types=[type_]).output()


def _diagonal(b: Builder, rows: Value, places: Value, count: DimLike) -> Value:
    """Return element ``places[k]`` of row k, shape [count]."""
    flat = b.Flatten(rows, axis=1)
    chosen = b.GatherElements(flat, b.Unsqueeze(places, [1]), axis=1)
    return b.add_node("Reshape", [chosen, [-1]], types=[Type(rows.type.dtype, (count,))]).output()


def _scanned(b: Builder, start: Value, chunk: Sequence[Value], shapes: Sequence[Sequence[Value]], size: Value, count: DimLike,
             chunk_size: int) -> list[Value]:
    """Return the rows of all chunks, of ``shapes`` each: what depends on ``start`` becomes the body of a Scan over chunks."""
    graph = b.graph
    order = graph.nodes()
    inside = dependents(order, [start])
    moved = [node for node in order if any(v in inside for v in node.results)]
    drawn = [node for node in moved if is_random(node)]
    if drawn:
        raise UnsupportedError(f"{describe(drawn[0])} draws random numbers beside its tangents, and would draw others for each chunk: "
                               "leave chunk_size out, or take mode='rev' of a Jacobian", code="random", where=drawn[0].label)
    body = Graph("chunk", graph.limits)
    formals = {start: body.add_input("start", start.type)}
    captures: list[Value] = []
    for x in dict.fromkeys(v for node in moved for v in node.operands):
        if x not in inside and (x.name or x.constant is None):
            formals[x] = body.add_input(body.unique_name(x.name), x.type)
            formals[x].symbolic = x.symbolic
            captures.append(x)
    for y, copy in zip(chunk, inline(Builder(body), graph, formals, chunk), strict=True):
        body.add_output(copy, body.unique_output_name(y.name))
    last = b.Div(b.Add(size, np.int64(chunk_size - 1)), np.int64(chunk_size))
    starts = b.Mul(ramp(b, last), np.int64(chunk_size))
    made = b.add_node("Scan", [starts], {"num_scan_inputs": 1}, outputs=len(chunk), captures=captures, subgraphs={"body": body})
    seeds = b.Mul(last, np.int64(chunk_size))
    rows = [_joined_chunks(b, chunks, [seeds, *shape], size, (count, *y.shape[1:]))
            for chunks, y, shape in zip(made.results, chunk, shapes, strict=True)]
    remove_dead(graph, moved)
    graph.remove(start.producer)
    return rows


def _joined_chunks(b: Builder, chunks: Value, shape: Sequence[Value], size: Value, dims: Sequence[DimLike]) -> Value:
    """Return [steps, chunk, ...], as ``shape`` without the axis of the steps, as ``dims``: the last chunk may hold more seeds
    than there are.

    A Scan of no steps does not tell extents that only its body can name, so they come from elsewhere.
    """
    flat = b.Reshape(chunks, joined(b, shape), allowzero=1)
    return b.add_node("Slice", [flat, b.ints([0]), size, b.ints([0])], types=[Type(chunks.type.dtype, tuple(dims))]).output()
