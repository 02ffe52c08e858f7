"""What a selection has discarded stays out of derivatives, whatever stands there: in both modes, of the first and second
order, for every elementwise operator of the registry; a zero that arithmetic made is a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.ops.registry import REQUIRED, OpDef, Trait, all_ops
from flowgrad.ir.types import FLOAT64, Type
from flowgrad.passes.differentiate import adjoint, tangent

Function = Callable[..., Value]

GOOD = [0.5, 1.5]
POISON = [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 1.0, -2.0, 1000.0, -1000.0, 1e308]
KEPT = len(GOOD)


def is_elementwise(definition: OpDef, operands: int) -> bool:
    """Return whether an op can be made of so many floats and nothing else, and has a derivative."""
    if Trait.ELEMENTWISE not in definition.traits or not definition.is_differentiable():
        return False
    if definition.variadic:
        return operands == 2
    required = definition.required_inputs
    return required == operands and REQUIRED not in definition.attributes.values()


def float_ops(operands: int) -> list[str]:
    return [name for name, d in sorted(all_ops().items()) if is_elementwise(d, operands)]


UNARY, BINARY = float_ops(1), float_ops(2)


# ---- selections -------------------------------------------------------------------------------------------------------------


def keeps(b: Any, x: Value) -> Value:
    """Return the condition that holds for the good elements."""
    return b.value(np.arange(x.type.static_shape[0]) < KEPT)  # type: ignore[no-any-return]


def where_after(b: Any, f: Function, *xs: Value) -> Value:
    return b.Where(keeps(b, xs[0]), f(b, *xs), b.scalar(0, FLOAT64))  # type: ignore[no-any-return]


def where_before(b: Any, f: Function, *xs: Value) -> Value:
    """What is not kept are constants of the same kind."""
    poison = np.resize(POISON, xs[0].type.static_shape[0])
    return f(b, *(b.Where(keeps(b, x), x, poison) for x in xs))


def gathered(b: Any, f: Function, *xs: Value) -> Value:
    return b.Gather(f(b, *xs), np.arange(KEPT))  # type: ignore[no-any-return]


def sliced(b: Any, f: Function, *xs: Value) -> Value:
    return b.Slice(f(b, *xs), [0], [KEPT])  # type: ignore[no-any-return]


def masked_by_cast(b: Any, f: Function, *xs: Value) -> Value:
    return b.Mul(f(b, *xs), b.cast(keeps(b, xs[0]), FLOAT64))  # type: ignore[no-any-return]


def masked_by_number(b: Any, f: Function, *xs: Value) -> Value:
    return b.Mul(f(b, *xs), np.where(np.arange(xs[0].type.static_shape[0]) < KEPT, 1.0, 0.0))  # type: ignore[no-any-return]


def moved_and_selected(b: Any, f: Function, *xs: Value) -> Value:
    """The selection comes after a change of shape and before a sum."""
    column = b.Unsqueeze(f(b, *xs), [1])
    chosen = b.Where(b.Unsqueeze(keeps(b, xs[0]), [1]), column, b.scalar(0, FLOAT64))
    return b.ReduceSum(chosen, [1], keepdims=0)  # type: ignore[no-any-return]


SELECTIONS = [where_after, where_before, gathered, sliced, masked_by_cast, masked_by_number, moved_and_selected]


# ---- derivatives ------------------------------------------------------------------------------------------------------------


def plain(op: str) -> Function:
    return lambda b, *xs: b.add(op, xs)


def times_operand(op: str) -> Function:
    """x op(x): a product whose other factor is discarded as well."""
    return lambda b, *xs: b.Mul(xs[0], b.add(op, xs))


def derivatives(select: Function | None, function: Function, arrays: list[Array], order: int = 2) -> dict[str, Array]:
    """Return the derivatives of the sum, by mode: with respect to each operand, and along ones."""
    graph = Graph("selected")
    b = Builder(graph)
    xs = [graph.add_input(f"x{i}", Type(FLOAT64, a.shape)) for i, a in enumerate(arrays)]
    y = function(b, *xs) if select is None else select(b, function, *xs)
    found: dict[str, Value | None] = {}
    bars = adjoint(graph, [(y, b.filled(1.0, y))], xs, zero="allow")
    pairs = [(x, b.filled(1.0, x)) for x in xs]
    (found["jvp"],) = tangent(graph, pairs, [y])
    for i, x_bar in enumerate(bars):
        found[f"vjp of {i}"] = x_bar
        if x_bar is None or order < 2:
            continue
        (found[f"forward over reverse of {i}"],) = tangent(graph, pairs, [x_bar])
        for j, again in enumerate(adjoint(graph, [(x_bar, b.filled(1.0, x_bar))], xs, zero="allow")):
            found[f"reverse over reverse of {i}, {j}"] = again
    for name, value in found.items():
        graph.add_output(b.zeros_like(xs[0]) if value is None else value, name)
    with np.errstate(all="ignore"):
        return evaluate(graph, {x.name: a for x, a in zip(xs, arrays, strict=True)})


def operands(count: int) -> list[Array]:
    """Return good elements, then all combinations of what may stand in their place."""
    grids = np.meshgrid(*[POISON] * count, indexing="ij")
    good = np.meshgrid(*[GOOD] * count, indexing="ij")
    return [np.concatenate([np.array(GOOD)[:KEPT] if count == 1 else g.reshape(-1)[1:3], p.reshape(-1)])
            for g, p in zip(good, grids, strict=True)]


def check(select: Function, function: Function, count: int) -> None:
    arrays = operands(count)
    found = derivatives(select, function, arrays)
    alone = derivatives(None, function, [a[:KEPT] for a in arrays])
    for name, array in found.items():
        np.testing.assert_array_equal(array[KEPT:], 0, err_msg=f"{name}, discarded")
        np.testing.assert_allclose(array[:KEPT], alone[name], rtol=1e-12, err_msg=f"{name}, kept")


@pytest.mark.parametrize("select", SELECTIONS, ids=lambda s: s.__name__)
@pytest.mark.parametrize("form", [plain, times_operand], ids=lambda f: f.__name__)
@pytest.mark.parametrize("op", UNARY)
def test_unary(op: str, form: Callable[[str], Function], select: Function) -> None:
    check(select, form(op), 1)


@pytest.mark.parametrize("select", SELECTIONS, ids=lambda s: s.__name__)
@pytest.mark.parametrize("op", BINARY)
def test_binary(op: str, select: Function) -> None:
    check(select, plain(op), 2)
