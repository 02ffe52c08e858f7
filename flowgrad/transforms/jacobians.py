"""The transform jacobian: all derivatives of outputs by inputs, one row of seeds at a time or all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from flowgrad.ir.arguments import check_flag, is_word
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.ops.operands import inverse_of, moved_first, permuted
from flowgrad.ir.types import Dim, dim_product, dim_sum
from flowgrad.model import Model
from flowgrad.passes.adjoint import Zero
from flowgrad.passes.differentiate import adjoint, tangent
from flowgrad.passes.refusals import check_zero
from flowgrad.passes.selection import Names, Of, find_of, find_wrt
from flowgrad.transforms.seeds import rows_of, spread
from flowgrad.transforms.sparse import sparse_jacobian
from flowgrad.transforms.task import Task, check_option, shared_notes, stage

Mode = Literal["auto", "rev", "fwd"]


@stage
def jacobian(model: Model, of: Of | None = None, wrt: Names = "inputs", keep: Names = (), *, mode: Mode = "auto",
             chunk_size: int | None = None, sparse: bool = False, zero: Zero = "error", stabilize: bool = True) -> Model:
    """Return a model of the Jacobians: outputs ``y_x_jacobian`` for each y in ``of`` and x in ``wrt``, then those in ``keep``.

    ``y_x_jacobian``, of shape y.shape + x.shape, holds dy_k/dx_i; ``of`` is one or several (default: all float outputs).
    The model itself is computed once; its reverse part (``mode="rev"``) works on one unit cotangent for each element of y
    at once, or its forward part ("fwd") on one unit tangent for each element of x. "auto" takes the side with fewer
    elements; where extents are symbols, forward only if y has at least as many elements as x whatever they are, and the
    reverse otherwise. ``chunk_size`` bounds how many of these are worked on at a time, and so the memory.

    With ``sparse``, where shapes are static, ``y_x_jacobian`` has one axis: the values at the places that can be other than
    zero. ``y_x_jacobian_rows`` and ``_cols`` say which element of y and of x each belongs to, ``_shape`` how many there are;
    ``model.sparsity`` holds the same. Zeros of constants count as zeros. Elements that nothing mixes share a sweep.

    Raises like ``vjp``, and InputError for an unknown mode, a chunk size below 1, and a rank that is not known.

    Examples:
        >>> one = fg.unbatch(model)
        >>> fg.jacobian(one, of="logits", wrt="x")(x=np.ones(4, np.float32), target=0)["logits_x_jacobian"].shape
        (3, 4)
    """
    check_sweeps(mode, chunk_size)
    check_option(zero)
    check_flag("sparse", sparse)
    task = Task(model, stabilize)
    of_values, wrt_values = find_of(task.graph, of), find_wrt(task.graph, wrt)
    kept = task.repair([*(y for _, y in of_values), *wrt_values], keep)
    check_ranks([*(y for _, y in of_values), *wrt_values])
    task.drop_outputs()
    task.notes += shared_notes(wrt_values)
    ys = [y for _, y in of_values]
    if sparse:
        sparse_jacobian(task, of_values, wrt_values, mode, zero)
        task.output_all(kept)
        return task.finish()
    is_forward = mode == "fwd" or (mode == "auto" and _prefers_forward(task.graph, ys, wrt_values))
    found = (forward_blocks if is_forward else reverse_blocks)(task.graph, ys, wrt_values, chunk_size, zero)
    for (name, y), row in zip(of_values, found, strict=True):
        for x, block in zip(wrt_values, row, strict=True):
            task.add_block(("jacobian", name, x.name), f"{name}_{x.name}_jacobian", (y, x), block)
    task.output_all(kept)
    return task.finish()


def check_sweeps(mode: Mode, chunk_size: int | None) -> None:
    """Check how derivatives are to be swept; InputError."""
    if not is_word(mode, get_args(Mode)):
        raise InputError(f"mode is 'auto', 'rev' (for few outputs) or 'fwd' (for few inputs), got {mode!r}", code="option")
    is_size = chunk_size is None or (isinstance(chunk_size, int) and not isinstance(chunk_size, bool) and chunk_size >= 1)
    if not is_size:
        raise InputError(f"chunk_size is a number of seeds from 1 on, or None for all at once, got {chunk_size!r}",
                         code="option")


def check_ranks(values: Sequence[Value]) -> None:
    """Check that unit seeds of ``values`` can be made: tensors of known rank; InputError otherwise."""
    for x in values:
        if x.type.dtype.element is not None:
            raise InputError(f"{x.name!r} is {x.type!r}: only tensors have Jacobians; name values that go into it, or use vjp "
                             "or jvp", code="dtype")
        if x.type.shape is None:
            raise InputError(f"the rank of {x.name!r} is not known, so its unit seeds have no axes: load the model with a "
                             "shape that is known, or use vjp or jvp", code="rank")


def _prefers_forward(graph: Graph, ys: Sequence[Value], xs: Sequence[Value]) -> bool:
    """Return whether unit tangents are fewer than unit cotangents; reverse mode where overridden adjoints need it."""
    if any(node.adjoint_rule is not None for node in graph.nodes()):
        return False
    more = dim_sum([dim_product(y.shape) for y in ys]) - dim_sum([dim_product(x.shape) for x in xs])
    return more.is_nonnegative if isinstance(more, Dim) else more > 0


def reverse_blocks(graph: Graph, ys: Sequence[Value], xs: Sequence[Value], chunk_size: int | None, zero: Zero
             ) -> list[list[Value | None]]:
    """Return dy/dx for each y and x by unit cotangents of each y; None where y does not depend on x."""
    blocks: list[list[Value | None]] = []
    b = Builder(graph)
    for y in ys:
        seed = graph.add_input(graph.unique_name(f"{y.name}_seed"), y.type)
        found = adjoint(graph, [(y, seed)], xs, zero=zero, are_units=True)
        rows = iter(rows_of(graph, seed, y, [(v, x) for v, x in zip(found, xs, strict=True) if v is not None], chunk_size))
        blocks.append([None if v is None else spread(b, next(rows), [y, x]) for v, x in zip(found, xs, strict=True)])
    return blocks


def forward_blocks(graph: Graph, ys: Sequence[Value], xs: Sequence[Value], chunk_size: int | None, zero: Zero
             ) -> list[list[Value | None]]:
    """Return dy/dx for each y and x by unit tangents of each x; None where y does not depend on x."""
    columns: list[list[Value | None]] = []
    b = Builder(graph)
    for x in xs:
        seed = graph.add_input(graph.unique_name(f"{x.name}_seed"), x.type)
        found = tangent(graph, [(x, seed)], ys, in_place=False, are_units=True)
        if zero != "allow":
            check_zero(graph, [x], [y for y, v in zip(ys, found, strict=True) if v is None])
        rows = iter(rows_of(graph, seed, x, [(v, y) for v, y in zip(found, ys, strict=True) if v is not None], chunk_size))
        columns.append([None if v is None else _turned(b, next(rows), y, x) for v, y in zip(found, ys, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def _turned(b: Builder, rows: Value, y: Value, x: Value) -> Value:
    """Return [K, *y.shape], one for each element of x, as y.shape + x.shape."""
    rank = len(rows.shape)
    return spread(b, permuted(b, rows, inverse_of(moved_first([rank - 1], rank))), [y, x])
