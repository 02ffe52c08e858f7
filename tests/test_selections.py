"""What a selection has discarded stays out of derivatives, whatever stands there: in both modes, of the first and second
order, for every elementwise operator of the registry; a zero that arithmetic made is a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
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


# ---- other selections, and what lies between ------------------------------------------------------------------------------


def log_chosen(choose: Callable[[Any, Value], Value]) -> Function:
    return lambda b, x: choose(b, b.Log(x))


def first_of(op: str, attributes: dict[str, Any], *inputs: list[int]) -> Callable[[Any, Value], Value]:
    return lambda b, v: b.add_several(op, [v, *(b.ints(i) for i in inputs)], attributes, outputs=2)[0]


ROWS = np.array([[True], [False]])
STRUCTURED: dict[str, tuple[Function, list[Any], list[Any]]] = {
    "GatherElements": (log_chosen(lambda b, v: b.GatherElements(v, np.array([1, 1]), axis=0)), [0, 2, -1], [0, 1, 0]),
    "GatherND": (log_chosen(lambda b, v: b.GatherND(v, np.array([[1], [1]]))), [0, 2, -1], [0, 1, 0]),
    "Compress": (log_chosen(lambda b, v: b.Compress(v, np.array([False, True, False]))), [0, 2, -1], [0, 0.5, 0]),
    "Split": (log_chosen(first_of("Split", {"axis": 0}, [1, 2])), [2, 0, -1], [0.5, 0, 0]),
    "TopK": (log_chosen(first_of("TopK", {}, [1])), [0, 2, 0.5], [0, 0.5, 0]),
    "Trilu": (log_chosen(lambda b, v: b.Trilu(v)), [[1, 2], [0, 4]], [[1, 0.5], [0, 0.25]]),
    "overwritten": (log_chosen(lambda b, v: b.ScatterElements(v, np.array([0]), np.ones(1), axis=0)), [0, 2], [0, 0.5]),
    "written": (log_chosen(lambda b, v: b.Slice(b.ScatterElements(np.ones(2), np.array([0, 1]), v, axis=0), [1], [2])),
                [0, 2], [0, 0.5]),
    "Relu": (log_chosen(lambda b, v: b.Relu(v)), [0, 2, 0.5], [0, 0.5, 0]),
    "Clip": (log_chosen(lambda b, v: b.Clip(v, -1.0, 1.0)), [0, 2, 10], [0, 0.5, 0]),
    "Max": (log_chosen(lambda b, v: b.Max(v, -1.0)), [0, 2], [0, 0.5]),
    "ReduceMax": (log_chosen(lambda b, v: b.ReduceMax(v, keepdims=0)), [0, 2, 0.5], [0, 0.5, 0]),
    "Pad before": (lambda b, x: b.Log(b.Pad(x, [1, 1])), [1, 2], [1, 0.5]),
    "Concat before": (lambda b, x: b.Log(b.Concat(x, np.zeros(1), axis=0)), [1, 2], [1, 0.5]),
    "Reshape and Transpose": (
        lambda b, x: b.Where(ROWS, b.Reshape(b.Transpose(b.Log(x)), [2, 1]), b.scalar(0, FLOAT64)), [[2, 0]], [[0.5, 0]]),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_other_selections(name: str) -> None:
    function, x, expected = STRUCTURED[name]
    found = derivatives(None, function, [np.array(x, float)])
    np.testing.assert_allclose(found["vjp of 0"], expected, rtol=1e-12)
    assert np.sum(found["jvp"]) == pytest.approx(np.sum(expected))
    second = -np.square(expected) / (2 if name.startswith("Gather") else 1)  # two reads of one logarithm
    for order in ("forward over reverse of 0", "reverse over reverse of 0, 0"):
        np.testing.assert_allclose(found[order], second, rtol=1e-12)


OF_ROWS = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare",
           "ReduceLogSumExp", "Softmax", "LogSoftmax", "CumSum"]


@pytest.mark.parametrize("op", OF_ROWS)
def test_rows_that_are_discarded_after_a_reduction(op: str) -> None:
    def function(b: Any, x: Value) -> Value:
        v = b.Log(x)
        if op in ("Softmax", "LogSoftmax"):
            y = b.add(op, [v])
        else:
            y = b.CumSum(v, np.array(1)) if op == "CumSum" else b.add(op, [v, b.ints([1])])
        return b.Where(ROWS, y, b.scalar(0, FLOAT64))  # type: ignore[no-any-return]

    good = [1.5, 3.0]
    found = derivatives(None, function, [np.array([good, [0.0, -1.0]])])
    alone = derivatives(None, function, [np.array([good, [1.0, 2.0]])])
    for name, array in found.items():
        np.testing.assert_array_equal(array[1], 0, err_msg=name)
        np.testing.assert_allclose(array[0], alone[name][0], rtol=1e-12, err_msg=name)


def test_the_logarithm_of_a_sum_that_is_zero_and_discarded() -> None:
    found = derivatives(None, lambda b, x: b.Where(ROWS, b.ReduceLogSum(x, [1]), b.scalar(0, FLOAT64)),
                        [np.array([[1.0, 3.0], [0.0, 0.0]])])
    np.testing.assert_array_equal(found["vjp of 0"], [[0.25, 0.25], [0, 0]])
    np.testing.assert_array_equal(found["reverse over reverse of 0, 0"], [[-0.125, -0.125], [0, 0]])


# ---- contractions -----------------------------------------------------------------------------------------------------------


def contraction(op: str, b: Any, x: Value, w: Value) -> Value:
    if op == "Conv":
        return b.Conv(x, w)  # type: ignore[no-any-return]
    return b.Gemm(x, w, transB=1) if op == "Gemm transposed" else b.add(op, [x, w])  # type: ignore[no-any-return]


CONTRACTED = {"MatMul": ((4,), (4, 2)), "Gemm": ((4,), (4, 2)), "Gemm transposed": ((4,), (2, 4)), "Conv": ((4, 3), (2, 4, 2))}


@pytest.mark.parametrize("op", CONTRACTED)
@pytest.mark.parametrize("select", ["Where", "Gather", "Slice"])
def test_rows_that_hold_nan_are_discarded_after_a_contraction(op: str, select: str) -> None:
    row, weight = CONTRACTED[op]
    rows = np.arange(1.0, 1 + 2 * np.prod(row)).reshape(2, *row)

    def weight_gradient(x: Array, *, whole: bool) -> Array:
        graph = Graph("contraction")
        b: Any = Builder(graph)
        x_, w = graph.add_input("x", Type(FLOAT64, x.shape)), graph.add_input("w", Type(FLOAT64, weight))
        y = contraction(op, b, x_, w)
        if not whole and select == "Where":
            mask = np.arange(3).reshape(-1, *[1] * len(row)) < 2
            y = b.Where(mask, y, b.scalar(0, FLOAT64))
        elif not whole:
            y = b.Gather(y, np.array([0, 1])) if select == "Gather" else b.Slice(y, [0], [2], [0])
        (w_bar,) = adjoint(graph, [(y, b.filled(1.0, y))], [w])
        assert w_bar is not None
        graph.add_output(w_bar, "w_bar")
        return evaluate(graph, {"x": x, "w": np.ones(weight)})["w_bar"]

    spoilt = np.concatenate([rows, np.full((1, *row), np.nan)])
    np.testing.assert_allclose(weight_gradient(spoilt, whole=False), weight_gradient(rows, whole=True), rtol=1e-12)


def test_a_contraction_over_a_row_that_is_wanted_in_part_keeps_its_nan() -> None:
    """The limit of the rule: what is summed over a row of which a part is wanted is no number if the row holds one."""
    graph = Graph("limit")
    b: Any = Builder(graph)
    x, w = graph.add_input("x", Type(FLOAT64, (1, 2))), graph.add_input("w", Type(FLOAT64, (2, 2)))
    y = b.Where(np.array([[True, False]]), b.MatMul(x, w), b.scalar(0, FLOAT64))
    (w_bar,) = adjoint(graph, [(y, b.filled(1.0, y))], [w])
    assert w_bar is not None
    graph.add_output(w_bar, "w_bar")
    found = evaluate(graph, {"x": np.array([[np.nan, 1.0]]), "w": np.ones((2, 2))})["w_bar"]
    assert np.isnan(found[0]).all() and found[1, 0] == 1 and found[1, 1] == 0


# ---- masks, numbers, poles --------------------------------------------------------------------------------------------------


def model_of(build: Callable[[Any, Value], Value], at: Array) -> fg.Model:
    graph = Graph("model")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, at.shape))
    graph.add_output(build(b, x), "y")
    return fg.Model(graph)


def both_modes(build: Callable[[Any, Value], Value], at: Array) -> tuple[Array, Array]:
    """Return the gradient of the sum of outputs made elementwise, in both modes."""
    model = model_of(build, at)
    with np.errstate(all="ignore"):
        reverse = fg.vjp(model)(x=at, y_grad=np.ones_like(at))["x_grad"]
        forward = fg.jvp(model)(x=at, x_tangent=np.ones_like(at))["y_tangent"]
    return reverse, forward


def test_a_zero_that_arithmetic_made_is_a_number() -> None:
    graph = Graph("arithmetic")
    b: Any = Builder(graph)
    x, m = (graph.add_input(name, Type(FLOAT64, (2,))) for name in ("x", "m"))
    graph.add_output(b.Mul(b.Sqrt(x), m), "y")
    model, feeds = fg.Model(graph), {"x": np.array([0.0, 4.0]), "m": np.array([0.0, 1.0])}
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(fg.vjp(model, wrt="x")(**feeds, y_grad=np.ones(2))["x_grad"], [np.nan, 0.25])
        np.testing.assert_array_equal(fg.jvp(model, wrt="x")(**feeds, x_tangent=np.ones(2))["y_tangent"], [np.nan, 0.25])


@pytest.mark.parametrize("mask", [[0.0, 1.0], [False, True], [0, 1]], ids=["numbers", "booleans", "integers"])
def test_a_product_with_a_mask_is_a_selection(mask: list[Any]) -> None:
    def build(b: Any, x: Value) -> Value:
        return b.Mul(b.Sqrt(x), b.cast(b.value(np.array(mask)), FLOAT64))  # type: ignore[no-any-return]

    for found in both_modes(build, np.array([0.0, 4.0])):
        np.testing.assert_array_equal(found, [0, 0.25])


def test_a_mask_of_numbers_keeps_its_own_derivative() -> None:
    """d(m x^2)/dx = 2 m x has the derivative 2 x along m, also where m is 0."""
    graph = Graph("weight")
    b: Any = Builder(graph)
    x, m = graph.add_input("x", Type(FLOAT64, (2,))), graph.add_constant(np.array([0.0, 1.0]), "m")
    graph.add_output(b.ReduceSum(b.Mul(b.Mul(x, x), m), keepdims=0), "y")
    first = fg.grad(fg.Model(graph), wrt="x")
    for model in (first, fg.load(first.to_onnx())):
        again = fg.vjp(model, of="x_grad", wrt="m")
        found = again(x=np.array([3.0, 5.0]), x_grad_grad=np.ones(2))["m_grad"]
        np.testing.assert_array_equal(found, [6.0, 10.0])


POLES: dict[str, tuple[Callable[[Any, Value], Value], list[float], list[float]]] = {
    "atan(1 / x)": (lambda b, x: b.Atan(b.Div(b.scalar(1, FLOAT64), x)), [0.0, 1e200, 1e-200, 2.0], [-1, 0, -1, -0.2]),
    "atan(x / 2)": (lambda b, x: b.Atan(b.Div(x, 2.0)), [0.0, 2.0], [0.5, 0.25]),
    "sqrt(x) sqrt(x)": (lambda b, x: b.Mul(b.Sqrt(x), b.Sqrt(x)), [0.0, 4.0, -1.0], [1, 1, np.nan]),
    "1 / (1 + exp(x))": (lambda b, x: b.Div(b.scalar(1, FLOAT64), b.Add(b.Exp(x), 1.0)), [1000.0, 0.0], [0, -0.25]),
    "1 / (1 + 1 / x)": (lambda b, x: b.Reciprocal(b.Add(b.Reciprocal(x), 1.0)), [0.0, 1.0], [np.nan, 0.25]),
}


@pytest.mark.parametrize("name", POLES)
def test_a_pole_that_cancels_is_right_or_no_number(name: str) -> None:
    build, x, expected = POLES[name]
    for found in both_modes(build, np.array(x)):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize(("y", "x", "expected"), [(1.0, 0.0, [0, -1]), (0.0, 2.0, [0.5, 0]), (3e200, 4e200, [1.6e-201, -1.2e-201]),
                                                  (3e-200, 4e-200, [1.6e199, -1.2e199]), (0.0, 0.0, [np.nan, np.nan])])
def test_the_derivative_of_an_angle(y: float, x: float, expected: list[float]) -> None:
    """d atan(y/x) = (x dy - y dx) / (x^2 + y^2)."""
    graph = Graph("angle")
    b: Any = Builder(graph)
    y_, x_ = (graph.add_input(name, Type(FLOAT64, ())) for name in ("y", "x"))
    graph.add_output(b.Atan(b.Div(y_, x_)), "a")
    gradient = fg.grad(fg.Model(graph))
    for model in (gradient, fg.load(gradient.to_onnx())):
        with np.errstate(all="ignore"):
            found = model(y=np.array(y), x=np.array(x))
        np.testing.assert_allclose([found["y_grad"], found["x_grad"]], expected, rtol=1e-12)


@pytest.mark.parametrize("op", UNARY)
def test_a_selection_survives_export(op: str) -> None:
    """The gradient that was exported and read has the derivative of the gradient."""
    at = np.array(GOOD + POISON)
    first = fg.vjp(model_of(lambda b, x: where_after(b, times_operand(op), x), at))
    read = fg.load(first.to_onnx())
    feeds = {"x": at, "y_grad": np.ones_like(at), "x_grad_grad": np.ones_like(at)}
    with np.errstate(all="ignore"):
        found, expected = (fg.vjp(m, of="x_grad", wrt="x", zero="allow")(**feeds) for m in (read, first))
    for outputs in (found, expected):
        derivative = outputs[[name for name in outputs if name.startswith("x_grad_") or name == "x_grad_1"][-1]]
        np.testing.assert_array_equal(derivative[KEPT:], 0)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9)


# ---- Hessians, NaN ----------------------------------------------------------------------------------------------------------

POINTS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, -0.5]


@pytest.mark.parametrize("op", BINARY)
def test_mixed_derivatives_are_the_same_in_both_orders(op: str) -> None:
    x, y = (g.reshape(-1) for g in np.meshgrid(POINTS, POINTS, indexing="ij"))
    if op == "Pow":  # below 0 no power is real; at 0 the derivative along the exponent is 0 by convention
        x, y = x[x > 0], y[x > 0]
    found = derivatives(None, plain(op), [x, y])
    mixed = [found.get(f"reverse over reverse of {i}, {1 - i}", np.zeros_like(x)) for i in range(2)]
    np.testing.assert_allclose(mixed[0], mixed[1], rtol=1e-12)


def test_the_mixed_derivative_of_a_power() -> None:
    """d2(x^y)/dxdy = x^(y-1) (1 + y log x)."""
    x, y = np.array([2.0, 3.0, 0.5, 2.0]), np.array([0.0, 0.0, 1.0, -1.5])
    found = derivatives(None, plain("Pow"), [x, y])
    expected = x ** (y - 1) * (1 + y * np.log(x))
    for name in ("reverse over reverse of 0, 1", "reverse over reverse of 1, 0"):
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)


@pytest.mark.parametrize(("op", "at"), [("Exp", np.nan), ("Sqrt", -1.0), ("Sqrt", np.nan), ("Asin", 2.0), ("Acos", -2.0),
                                        ("Acosh", 0.5), ("Sinh", np.nan), ("Tanh", np.nan), ("Reciprocal", np.nan)])
def test_no_derivative_is_finite_where_the_value_is_nan(op: str, at: float) -> None:
    found = derivatives(None, plain(op), [np.array([at])])
    assert all(np.isnan(found[name]).all() for name in ("vjp of 0", "jvp", "reverse over reverse of 0, 0"))


def test_a_power_of_a_negative_number_has_no_derivative() -> None:
    found = derivatives(None, plain("Pow"), [np.array([-2.0]), np.array([0.5])])
    assert np.isnan(found["vjp of 0"]).all() and np.isnan(found["vjp of 1"]).all()


def test_pooling_keeps_a_nan_beside_its_indices() -> None:
    graph = Graph("pool")
    b: Any = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (1, 1, 6)))
    y, indices = b.add_several("MaxPool", [x], {"kernel_shape": [3], "strides": [3]}, outputs=2)
    graph.add_output(y, "y")
    graph.add_output(indices, "indices")
    found = evaluate(graph, {"x": np.array([[[1.0, np.nan, np.nan, 4.0, 6.0, 5.0]]])})
    np.testing.assert_array_equal(found["y"], [[[np.nan, 6.0]]])
    np.testing.assert_array_equal(found["indices"], [[[1, 4]]])


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_a_product_with_a_single_zero_keeps_nan_and_infinity(op: str) -> None:
    text = f"graph @g (%a: f64[3,1], %w: f64[1,1]) -> (%y: f64[3,1]) {{ %y: f64[3,1] = {op}(%a, %w) }}"
    found = fg.load(text.encode())(a=np.array([[1.0], [np.nan], [np.inf]]), w=np.zeros((1, 1)))
    np.testing.assert_array_equal(found["y"], [[0], [np.nan], [np.nan]])


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_a_row_read_by_a_single_index_carries_its_own_mask(op: str) -> None:
    def first(b: Any, x: Value) -> Value:
        return b.Gather(b.add(op, [b.Reshape(x, [2, -1])], {"axis": 0}), np.int64(0))  # type: ignore[no-any-return]

    found = derivatives(None, first, [np.array([0.5, -1.0, 1.5, 2.0])])
    shares = 1 / (1 + np.exp(np.array([1.0, 3.0])))
    slopes = shares * (1 - shares) if op == "Softmax" else 1 - shares
    np.testing.assert_allclose(found["vjp of 0"], np.concatenate([slopes, -slopes]), rtol=1e-12)


def test_the_number_one_is_no_cotangent_elsewhere() -> None:
    """The cotangent of a scalar is 1, and so is a literal of the power rule: x^-3 discarded at 0 has the derivative 0."""
    model = fg.load(b"""graph @g (%x: f64[2], %keep: bool[2]) -> (%y: f64[]) {
        %i: f64[2] = Reciprocal(%x)
        %p: f64[2] = Pow(%i, f64(3.0))
        %w: f64[2] = Where(%keep, %p, f64(0.0))
        %s: f64[] = ReduceSum(%w) {keepdims=0}
        %y: f64[] = Mul(%s, f64(2.0))
    }""")
    feeds = {"x": np.array([0.0, 2.0]), "keep": np.array([False, True])}
    np.testing.assert_allclose(fg.grad(model, "y", "x")(feeds)["x_grad"], [0.0, -6 / 2**4])
    np.testing.assert_allclose(fg.hessian(model, "y", "x")(feeds)["x_x_hessian"], [[0.0, 0.0], [0.0, 24 / 2**5]])
