"""Operators that are evaluated exactly at a kink: each is named, with the places; what is smooth or repaired is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import INITIALIZER, Graph, Value
from flowgrad.ir.ops.registry import all_ops
from flowgrad.ir.types import FLOAT64, Dim, Type, type_of

UNARY: dict[str, tuple[dict[str, Any], list[float]]] = {
    "Abs": ({}, [0.0]),
    "Relu": ({}, [0.0]),
    "LeakyRelu": ({}, [0.0]),
    "ThresholdedRelu": ({"alpha": 0.5}, [0.5]),
    "HardSigmoid": ({"alpha": 0.25, "beta": 0.5}, [-2.0, 2.0]),
    "HardSwish": ({}, [-3.0, 3.0]),
    "Shrink": ({"lambd": 0.5}, [-0.5, 0.5]),
    "Elu": ({"alpha": 0.5}, [0.0]),
    "Selu": ({}, [0.0]),
    "Sqrt": ({}, [0.0]),
}
POINTS = [-3.0, -2.0, -0.5, -1e-9, 0.0, 1e-9, 0.5, 2.0, 3.0]


def unary(op: str, attributes: dict[str, Any], extent: Any = 9) -> fg.Model:
    graph = Graph("kinks")
    x = graph.add_input("x", Type(FLOAT64, (extent,)))
    graph.add_output(Builder(graph).add(op, [x], attributes), "y")
    return fg.Model(graph)


@pytest.mark.parametrize("extent", [len(POINTS), Dim.named("N")], ids=["static", "symbolic"])
@pytest.mark.parametrize("op", UNARY)
def test_points_where_the_slope_jumps(op: str, extent: Any) -> None:
    attributes, expected = UNARY[op]
    (kink,) = fg.kinks(unary(op, attributes, extent), x=np.array(POINTS))
    assert (kink.op, kink.places, POINTS[kink.first[0]]) == (op, len(expected), expected[0])
    assert op in str(kink)
    rest = np.array([p for p in POINTS if p not in expected])
    assert not fg.kinks(unary(op, attributes, Dim.named("N")), x=rest)


def test_one_sided_slopes_differ_at_kinks_and_there_alone() -> None:
    """By differences of the kernels, which know nothing of the rules."""
    for op, (attributes, expected) in UNARY.items():
        kernel = all_ops()[op].kernel
        for point in (p for p in POINTS if abs(p) != 1e-9 and not (op == "Sqrt" and p < 0)):
            with np.errstate(all="ignore"):
                left, mid, right = (kernel(np.array(point + step), **attributes) for step in (-1e-6, 0.0, 1e-6))
            jumps = not abs((right - mid) - (mid - left)) < 1e-8
            assert jumps == (point in expected), (op, point)


def test_smooth_operators_have_none() -> None:
    for op in ("Elu", "Celu", "Softplus", "Softsign", "Tanh", "Gelu"):
        assert not fg.kinks(unary(op, {}), x=np.array(POINTS))


TEXTS = {
    "ties": ("%y: f64[3] = Max(%x, %u)", {"x": [1.0, 2.0, 3.0], "u": [0.0, 2.0, 3.0]}, "Max", 2, (1,)),
    "bounds": ("%y: f64[3] = Clip(%x, %u)", {"x": [0.5, 0.0, 1.0], "u": [0.0] * 3}, "Clip", 1, (1,)),
    "reduced": ("%y: f64[] = ReduceMax(%x) {keepdims=0}", {"x": [1.0, 2.0, 2.0], "u": [0.0] * 3}, "ReduceMax", 1, ()),
    "zero vector": ("%y: f64[] = ReduceL2(%x) {keepdims=0}", {"x": [0.0] * 3, "u": [0.0] * 3}, "ReduceL2", 1, ()),
    "zero element": ("%y: f64[] = ReduceL1(%x) {keepdims=0}", {"x": [1.0, 0.0, 2.0], "u": [0.0] * 3}, "ReduceL1", 1, (1,)),
    "slope": ("%y: f64[3] = PRelu(%x, %u)", {"x": [1.0, 0.0, 2.0], "u": [0.5] * 3}, "PRelu", 1, (1,)),
    "root": ("%y: f64[3] = Pow(%x, 0.5)", {"x": [1.0, 0.0, 0.0], "u": [0.5] * 3}, "Pow", 2, (1,)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_ties_bounds_and_zero_vectors(name: str) -> None:
    line, feeds, op, count, first = TEXTS[name]
    shape = "f64[]" if "f64[]" in line else "f64[3]"
    model = fg.load(f"graph @g (%x: f64[3], %u: f64[3]) -> (%y: {shape}) {{ {line} }}".encode())
    arrays = {k: np.array(v) for k, v in feeds.items()}
    (kink,) = fg.kinks(model, arrays)
    assert (kink.op, kink.value, kink.places, kink.first) == (op, "y", count, first)
    assert not fg.kinks(model, {**arrays, "x": arrays["x"] + 0.25 * np.arange(1, 4)})


def test_kinks_that_a_repair_removes_are_none_and_constants_are_not_looked_at() -> None:
    graph = Graph("stable")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (2,)))
    held = graph.add_constant(np.zeros(2), "offset", INITIALIZER)
    loss = b.Add(b.Relu(x), b.Log(b.Add(b.Exp(b.Neg(b.Abs(x))), 1.0)))
    graph.add_output(b.Add(loss, b.Mul(b.Relu(b.value(np.zeros(2))), held)), "y")
    model, zeros = fg.Model(graph), np.zeros(2)
    assert not fg.kinks(model, x=zeros)
    assert [kink.op for kink in fg.kinks(model, x=zeros, stabilize=False)] == ["Relu", "Abs"]


def test_every_rule_is_tried_here() -> None:
    stated = {*UNARY, *(op for _, _, op, _, _ in TEXTS.values()), "Min", "ReduceMin", "GlobalMaxPool", "Unique", *SAMPLED}
    assert {name for name, d in all_ops().items() if d.kink_rule is not None} == stated


SAMPLED: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "GridSample": ({"align_corners": 1}, [[[[[0.0, 0.25], [0.25, 0.25], [0.25, 9.0], [-1.0, 1.0]]]]]),
    "DeformConv": ({}, [np.ones((1, 1, 2, 2)), np.where(np.arange(32) % 5, 0.3, 0.0).reshape(1, 8, 2, 2)]),
    "RoiAlign": ({"output_height": 2, "output_width": 2, "sampling_ratio": 1}, [[[0.0, 0.25, 2.0, 2.0]], [0]]),
}
"""Images of 3 x 3 and where they are read: some positions on pixels."""


@pytest.mark.parametrize("op", SAMPLED)
def test_positions_on_pixels(op: str) -> None:
    """Moving all positions a little lets the kinks go; the slopes on the two sides differ."""
    attributes, operands = SAMPLED[op]
    graph = Graph("sampled")
    arrays = {"x": np.arange(9.0).reshape(1, 1, 3, 3) ** 2}
    arrays |= {f"u{i}": np.asarray(a) for i, a in enumerate(operands)}
    values = [graph.add_input(name, type_of(a)) for name, a in arrays.items()]
    graph.add_output(Builder(graph).add(op, values, attributes), "y")
    model = fg.Model(graph)
    moved = "u1" if op == "DeformConv" else "u0"
    (kink,) = fg.kinks(model, arrays)
    assert kink.op == op
    assert not fg.kinks(model, {**arrays, moved: arrays[moved] + 0.01})
    left, mid, right = (model({**arrays, moved: arrays[moved] + step})["y"] for step in (-1e-6, 0.0, 1e-6))
    jumps = np.abs(right + left - 2 * mid) > 1e-7
    assert jumps.any()


def test_smooth_and_flat_samplings_have_none() -> None:
    for mode in ("cubic", "nearest"):
        text = ("graph @g (%x: f64[1,1,3,3], %g: f64[1,1,1,2]) -> (%y: f64[1,1,1,1]) "
                f"{{ %y: f64[1,1,1,1] = GridSample(%x, %g) {{mode={mode!r}, align_corners=1}} }}").replace("'", '"')
        assert not fg.kinks(fg.load(text.encode()), x=np.ones((1, 1, 3, 3)), g=np.zeros((1, 1, 1, 2)))


def test_equal_elements_that_are_one() -> None:
    model = unary("Unique", {})
    (kink,) = fg.kinks(model, x=np.array([3.0, 1.0, 3.0, *range(4, 8), 1.0, 9.0]))
    assert (kink.op, kink.places, kink.first) == ("Unique", 2, (0,))
    assert not fg.kinks(model, x=np.array(POINTS))


def test_pixels_that_tie() -> None:
    text = b"graph @g (%x: f64[1,2,2,2]) -> (%y: f64[1,2,1,1]) { %y: f64[1,2,1,1] = GlobalMaxPool(%x) }"
    image = np.array([[1.0, 2.0, 2.0, 0.0], [1.0, 2.0, 3.0, 4.0]]).reshape(1, 2, 2, 2)
    (kink,) = fg.kinks(fg.load(text), x=image)
    assert (kink.op, kink.first) == ("GlobalMaxPool", (0, 0, 0, 0))


NORMS: dict[str, Callable[[Builder, Value], Value]] = {
    "ReduceL2": lambda b, x: b.ReduceL2(x, [1]),
    "root of the sum of squares": lambda b, x: b.Sqrt(b.ReduceSum(b.Mul(x, x), [1])),
    "root of the mean of squares": lambda b, x: b.Sqrt(b.ReduceMean(b.Mul(x, x), [1])),
    "power": lambda b, x: b.Pow(b.ReduceSum(b.Pow(b.Abs(x), 3.0), [1]), 1 / 3),
    "GlobalLpPool": lambda b, x: b.GlobalLpPool(b.Unsqueeze(x, [1])),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("mode", ["reverse over reverse", "forward over reverse", "reverse over forward", "forward over forward"])
def test_at_the_kink_of_a_norm_derivatives_of_every_order_are_zero(name: str, mode: str) -> None:
    graph = Graph("norms")
    x = graph.add_input("x", Type(FLOAT64, (2, 3)))
    b = Builder(graph)
    graph.add_output(b.ReduceSum(b.Mul(NORMS[name](b, x), 2.0), keepdims=0), "y")
    second, first = mode.split(" over ")
    point, v = np.array([[0.0, 0, 0], [1, -2, 0.5]]), np.array([[1.0, 2, 4], [3, 1, 2]])
    model = fg.grad(fg.Model(graph)) if first == "reverse" else fg.jvp(fg.Model(graph), of="y", wrt="x")
    of: str
    more: dict[str, Any]
    of, more = ("x_grad", {}) if first == "reverse" else ("y_tangent", {"x_tangent": v})
    if second == "reverse":
        seed = {f"{of}_grad": v if first == "reverse" else np.array(1.0)}
        found = fg.vjp(model, of=of, wrt="x")(x=point, **more, **seed)["x_grad"]
        assert not found[0].any()
    else:
        inner = fg.jvp(model, of=of, wrt="x")
        tangent = next(i.name for i in inner.inputs if i.name.startswith("x_tangent") and i.name not in more)
        found = inner(x=point, **more, **{tangent: v})[f"{of}_tangent"]
        alone = inner(x=point, **{n: a * [[0], [1]] for n, a in more.items()}, **{tangent: v * [[0], [1]]})[f"{of}_tangent"]
        np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize(("x", "y", "by_x_first", "by_y_first"), [
    (0.0, 1.0, 1.0, 0.0), (0.0, 2.0, 0.0, 0.0), (2.0, 3.0, 12 * np.log(2) + 4, 12 * np.log(2) + 4),
])
def test_the_mixed_derivative_of_a_power_has_no_limit_at_one_point_alone(
    x: float, y: float, by_x_first: float, by_y_first: float
) -> None:
    graph = Graph("power")
    b = Builder(graph)
    graph.add_output(b.Pow(graph.add_input("x", Type(FLOAT64, ())), graph.add_input("y", Type(FLOAT64, ()))), "z")
    model = fg.Model(graph)
    for first, second, expected in (("x", "y", by_x_first), ("y", "x", by_y_first)):
        mixed = fg.grad(fg.grad(model, "z", first), f"{first}_grad", second)
        (got,) = mixed(x=np.float64(x), y=np.float64(y)).values()
        np.testing.assert_allclose(got, expected, rtol=1e-12)
