"""The transform hessian: all second derivatives of a scalar, forward over reverse, each pair of blocks once."""

from __future__ import annotations

from collections.abc import Sequence

from flowgrad.ir.arguments import check_flag
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import ENTRIES, Graph, Value
from flowgrad.ir.ops.operands import permuted
from flowgrad.ir.types import dim_product
from flowgrad.model import Model
from flowgrad.passes.adjoint import Zero
from flowgrad.passes.differentiate import adjoint, tangent
from flowgrad.passes.selection import Names, Pick, find_scalar, find_wrt
from flowgrad.transforms.jacobians import check_ranks, check_sweeps
from flowgrad.transforms.seeds import rows_of, spread
from flowgrad.transforms.sparse import sparse_hessian
from flowgrad.transforms.task import Task, check_option, shared_notes, stage


@stage
def hessian(model: Model, of: str | Pick | None = None, wrt: Names = "inputs", keep: Names = (), *, diagonal: bool = False,
            chunk_size: int | None = None, sparse: bool = False, zero: Zero = "error", stabilize: bool = True) -> Model:
    """Return a model of the Hessian of a scalar: outputs ``x_u_hessian`` for all x and u in ``wrt``, then those in ``keep``.

    ``x_u_hessian``, of shape x.shape + u.shape, holds d2 of / dx_i du_j; ``of`` is the scalar (default: the only scalar
    output). The gradient is computed once; tangents of it are carried for one unit tangent per element. Of the blocks
    ``x_u`` and ``u_x`` one is computed, from the variable with fewer elements, and turned for the other. With ``diagonal``,
    the outputs are ``x_hessian_diagonal`` of the shape of x instead. ``chunk_size`` bounds how many unit tangents are worked
    on at a time, and so the memory. With ``sparse``, the outputs are values at the places that can be other than zero, as in
    ``jacobian``; entries and their mirror images share a sweep.

    The Hessian of a sum over examples, with respect to what each has of its own, is a block for each example:
    ``vmap(hessian(unbatch(model)))`` makes those alone. Raises like ``grad``, and InputError for a chunk size below 1 and a
    rank that is not known.

    Examples:
        >>> fg.hessian(model, of="loss", wrt="x")(batch)["x_x_hessian"].shape
        (2, 4, 2, 4)
        >>> fg.hessian(model, of="loss", wrt="x", diagonal=True)(batch)["x_hessian_diagonal"].shape
        (2, 4)
    """
    check_sweeps("auto", chunk_size)
    check_option(zero)
    check_flag("diagonal", diagonal)
    check_flag("sparse", sparse)
    if diagonal and sparse:
        raise InputError("a diagonal has no pattern: diagonal=True or sparse=True, not both", code="option")
    task = Task(model, stabilize)
    name, y = find_scalar(task.graph, of)
    wrt_values = find_wrt(task.graph, wrt)
    kept = task.repair([y, *wrt_values], keep)
    check_ranks(wrt_values)
    task.drop_outputs()
    task.notes += shared_notes(wrt_values)
    gradients = dict(zip(wrt_values, adjoint(task.graph, [(y, task.one(y))], wrt_values, zero=zero), strict=True))
    if diagonal:
        for x, x_bar in gradients.items():
            task.add_derivative(("hessian_diagonal", name, x.name), f"{x.name}_hessian_diagonal", x,
                                _diagonal(task.graph, x, x_bar, chunk_size), name, x.name)
    elif sparse:
        sparse_hessian(task, name, wrt_values, list(gradients.values()))
    else:
        blocks = _blocks(task.graph, gradients, chunk_size)
        for x in wrt_values:
            for u in wrt_values:
                task.add_block(("hessian", name, f"{x.name},{u.name}"), f"{x.name}_{u.name}_hessian", (x, u), blocks[x, u])
    task.output_all(kept)
    return task.finish()


def seeding_order(graph: Graph, wrt: Sequence[Value]) -> list[Value]:
    """Return the values in the order in which unit tangents are made for them, each for itself and those that follow.

    A value that others are computed from goes before these: how its own gradient depends on them is not told by the
    gradient as it is computed. Else the one with fewer elements goes first.
    """
    places = {node: place for place, node in enumerate(graph.nodes(), 1)}

    def key(x: Value) -> tuple[int, bool, int]:
        count = dim_product(x.shape)
        is_number = isinstance(count, int)
        return 0 if x.producer.op in ENTRIES else places[x.producer], not is_number, count if isinstance(count, int) else 0

    return sorted(wrt, key=key)


def _blocks(graph: Graph, gradients: dict[Value, Value | None], chunk_size: int | None
            ) -> dict[tuple[Value, Value], Value | None]:
    """Return the second derivatives by each pair of values; None where they are zero."""
    blocks: dict[tuple[Value, Value], Value | None] = {}
    b = Builder(graph)
    order = seeding_order(graph, list(gradients))
    for place, x in enumerate(order):
        others = order[place:]
        seed = graph.add_input(graph.unique_name(f"{x.name}_seed"), x.type)
        found = _tangents(graph, x, seed, [gradients[u] for u in others])
        rows = iter(rows_of(graph, seed, x, [(v, u) for v, u in zip(found, others, strict=True) if v is not None], chunk_size))
        for u, v in zip(others, found, strict=True):
            blocks[x, u] = block = None if v is None else spread(b, next(rows), [x, u])
            if u is not x:
                blocks[u, x] = None if block is None else _swapped(b, block, len(x.shape))
    return blocks


def _diagonal(graph: Graph, x: Value, x_bar: Value | None, chunk_size: int | None) -> Value | None:
    """Return the second derivatives by each element of ``x`` alone, in its shape; None where they are zero."""
    seed = graph.add_input(graph.unique_name(f"{x.name}_seed"), x.type)
    found = [(v, x) for v in _tangents(graph, x, seed, [x_bar]) if v is not None]
    rows = rows_of(graph, seed, x, found, chunk_size, diagonal=True)
    return spread(Builder(graph), rows[0], [x]) if rows else None


def _tangents(graph: Graph, x: Value, x_dot: Value, of: Sequence[Value | None]) -> list[Value | None]:
    """Return the tangents of those of ``of`` that there are."""
    found = iter(tangent(graph, [(x, x_dot)], [y for y in of if y is not None], in_place=False, are_units=True))
    return [None if y is None else next(found) for y in of]


def _swapped(b: Builder, block: Value, rank: int) -> Value:
    """Return ``block`` with its first ``rank`` axes behind the others."""
    axes = range(len(block.shape))
    return permuted(b, block, [*axes[rank:], *axes[:rank]])
