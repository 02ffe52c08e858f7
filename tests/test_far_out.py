"""Derivatives at the ends of the range of floats and at edges: a few points of the command ``sweep``, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.types import FLOAT32, FLOAT64, DType, Type
from flowgrad.passes.differentiate import adjoint, tangent
from flowgrad.passes.manager import PassManager

MOST = float(np.finfo(np.float32).max)
INF = float("inf")


def derivatives(op: str, dtype: DType, x: list[float], attributes: dict[str, Any], exponent: float | None) -> dict[str, Any]:
    graph = Graph("far")
    b = Builder(graph)
    value = graph.add_input("x", Type(dtype, (len(x),)))
    operands: list[Value | float] = [value] if exponent is None else [value, exponent]
    y = b.add(op, operands, attributes)
    ones = b.filled(1, value)
    seed = b.filled(1, y)
    (x_bar,) = adjoint(graph, [(y, seed)], [value])
    (y_dot,) = tangent(graph, [(value, ones)], [y])
    assert x_bar is not None and y_dot is not None
    (second,) = adjoint(graph, [(x_bar, ones)], [value], zero="allow")
    for name, made in (("y", y), ("x_bar", x_bar), ("y_dot", y_dot), ("second", second or b.zeros_like(value))):
        graph.add_output(made, name)
    return evaluate(graph, {"x": np.array(x, dtype.numpy)})


CASES: list[tuple[str, list[float], list[float], dict[str, Any], float | None]] = [
    ("Acos", [-1.0, 1.0, 0.5], [-INF, -INF, -(0.75**-0.5)], {}, None),
    ("Asin", [-1.0, 1.0, 0.5], [INF, INF, 0.75**-0.5], {}, None),
    ("Asinh", [-1e10, 1e20, 1e30, 1.0, 0.0], [1e-10, 1e-20, 1e-30, 0.5**0.5, 1.0], {}, None),
    ("Atan", [-1e12, 1e18, 3.0, 0.0, INF], [1e-24, 1e-36, 0.1, 1.0, 0.0], {}, None),
    ("Elu", [-20.0, -80.0, 3.0], [np.exp(-20.0), np.exp(-80.0), 1.0], {}, None),
    ("Elu", [-20.0, 3.0], [0.5 * np.exp(-20.0), 1.0], {"alpha": 0.5}, None),
    ("Celu", [-20.0, 3.0], [np.exp(-10.0), 1.0], {"alpha": 2.0}, None),
    ("Selu", [-20.0], [1.0507009873554805 * 1.6732632423543772 * np.exp(-20.0)], {}, None),
    ("Erf", [MOST, -MOST, 3.0], [0.0, 0.0, 2 / np.sqrt(np.pi) * np.exp(-9.0)], {}, None),
    ("Gelu", [MOST, -MOST, 30.0], [1.0, 0.0, 1.0], {}, None),
    ("Gelu", [MOST, -MOST, 30.0], [1.0, 0.0, 1.0], {"approximate": "tanh"}, None),
    ("Mish", [MOST, 200.0, -MOST], [1.0, 1.0, 0.0], {}, None),
    ("Swish", [MOST, -MOST, 0.0], [1.0, 0.0, 0.5], {"alpha": 2.0}, None),
    ("Softsign", [MOST, 1e10, -3.0], [0.0, 1e-20, 1 / 16], {}, None),
    ("Pow", [0.0, 4.0], [INF, 0.25], {}, 0.5),
    ("Pow", [0.0, -2.0], [-INF, -0.25], {}, -1.0),
    ("Pow", [-1e-10, -1e-18], [2e30, INF], {}, -2.0),
    ("Sqrt", [0.0, 1e-40], [INF, 0.5e20], {}, None),
]


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=["float32", "float64"])
@pytest.mark.parametrize(("op", "x", "slopes", "attributes", "exponent"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_slopes(op: str, x: list[float], slopes: list[float], attributes: dict[str, Any], exponent: float | None,
                dtype: DType) -> None:
    found = derivatives(op, dtype, x, attributes, exponent)
    expected = np.array(slopes)
    if dtype == FLOAT64:  # what leaves the range of float32 does not leave that of float64
        expected = np.where(np.isinf(expected) & (np.array(x) == -1e-18), 2e54, expected)
        expected = np.where((expected == 0) & (np.array(x) == MOST) & (op == "Softsign"), MOST**-2.0, expected)
    for mode in ("x_bar", "y_dot"):
        np.testing.assert_allclose(found[mode], expected, rtol=4e-6 if dtype == FLOAT32 else 1e-6, atol=1e-44, err_msg=mode)


@pytest.mark.parametrize("op", ["Erf", "Gelu", "Mish", "Swish", "Atan", "Asinh", "Softsign", "Elu"])
def test_second_derivatives_are_numbers_up_to_the_largest(op: str) -> None:
    assert np.isfinite(derivatives(op, FLOAT32, [MOST, -MOST, 1e20, -1e20, 0.0], {}, None)["second"]).all()


@pytest.mark.parametrize(("op", "x", "curvatures"), [
    ("Asin", [-1.0, 1.0, 0.5], [-INF, INF, 0.5 * 0.75**-1.5]), ("Acos", [-1.0, 1.0, 0.5], [INF, -INF, -0.5 * 0.75**-1.5]),
    ("Atanh", [-1.0, 1.0, 0.5], [-INF, INF, 0.75**-2]), ("Acosh", [1.0, 2.0], [-INF, -2 * 3**-1.5]),
    ("Sqrt", [0.0, 4.0], [-INF, -1 / 32]), ("Log", [0.0, 2.0], [-INF, -0.25]),
])
def test_second_derivatives_at_edges_are_infinite(op: str, x: list[float], curvatures: list[float]) -> None:
    for stage in ("as it is", "expanded and repaired again"):
        graph = Graph("edge")
        b = Builder(graph)
        value = graph.add_input("x", Type(FLOAT32, (len(x),)))
        y, ones = b.add(op, [value]), b.filled(1, value)
        found = [adjoint(graph, [(y, ones)], [value])[0], *tangent(graph, [(value, ones)], [y])]
        for name, first in zip(("reverse", "forward"), found, strict=True):
            assert first is not None
            graph.add_output(first, name)
        if stage != "as it is":
            graph = PassManager("expand,stabilize").run(graph).model
            b, value = Builder(graph), graph.inputs[0]
        for name, first in zip(("reverse", "forward"), graph.outputs, strict=True):
            for kind, second in (("reverse", adjoint(graph, [(first, b.filled(1, first))], [value])[0]),
                                 ("forward", tangent(graph, [(value, b.filled(1, value))], [first])[0])):
                assert second is not None
                graph.add_output(second, f"{kind} over {name}")
        for name, got in evaluate(graph, {"x": np.array(x, np.float32)}).items():
            if "over" in name:
                np.testing.assert_allclose(got, curvatures, rtol=1e-6, err_msg=f"{name}, {stage}")


@pytest.mark.parametrize(("op", "attributes"), [("ReduceL2", {"keepdims": 1}), ("LpNormalization", {}), ("GlobalLpPool", {})])
@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1.0, 1e25])
def test_norms_neither_overflow_nor_vanish(op: str, attributes: dict[str, Any], unit: float) -> None:
    graph = Graph("norm")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (1, 1, 2)))
    y = b.ReduceL2(x, [2], **attributes) if op == "ReduceL2" else b.add(op, [x], attributes)
    graph.add_output(y, "y")
    found = evaluate(graph, {"x": np.array([[[3 * unit, 4 * unit]]], np.float32)})["y"].reshape(-1)
    np.testing.assert_allclose(found, [0.6, 0.8] if op == "LpNormalization" else [5 * unit], rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1.0, 1e25])
def test_the_slope_of_a_norm_is_a_direction(unit: float) -> None:
    graph = Graph("norm")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (2,)))
    y = b.ReduceL2(x, keepdims=0)
    (x_bar,) = adjoint(graph, [(y, b.filled(1, y))], [x])
    (y_dot,) = tangent(graph, [(x, b.filled(1, x))], [y])
    assert x_bar is not None and y_dot is not None
    graph.add_output(x_bar, "x_bar")
    graph.add_output(y_dot, "y_dot")
    found = evaluate(graph, {"x": np.array([3 * unit, 4 * unit], np.float32)})
    np.testing.assert_allclose(found["x_bar"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(found["y_dot"], 1.4, rtol=1e-6)
