"""The quantized operators of onnxruntime's own domain, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import flowgrad as fg
from flowgrad.exchange.adapters import ADAPTERS
from flowgrad.exchange.microsoft import DOMAIN
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.graph import Array
from tests.test_quantization import from_nodes, random, session

Rows = list[tuple[str, list[Any], dict[str, Any]]]

CHOSEN = np.random.default_rng(0).random((2, 4, 9, 8)) > 0.5


def scale(number: float) -> Any:
    """Return a scale next to ``number``: sums of its multiples are nowhere between two results."""
    return np.float32(number * 1.00371)


def of(dtype: str, *shape: int, by: float, zero: int = 3, seed: int = 0) -> list[Any]:
    """Return numbers, their scale and their zero point."""
    return [random(dtype, *shape, seed=seed), scale(by), np.asarray(zero, dtype)]


def rows(t: str) -> Rows:
    image, least = of(t, 2, 4, 9, 8, by=0.021), np.asarray(np.iinfo(t).min, t)
    other, result = of(t, 2, 4, 9, 8, by=0.0331, zero=9, seed=1), [scale(0.0517), np.asarray(7, t)]
    mean = [*image, scale(0.0083), np.asarray(4, t)]
    return [
        ("QLinearAdd", [*image, *other, *result], {}),
        ("QLinearAdd", [*image, *of(t, 8, by=0.0331), *result], {}),
        ("QLinearMul", [*image, *other, *result], {}),
        ("QLinearSigmoid", [*image, scale(1 / 256), least], {}),
        ("QLinearLeakyRelu", [*image, *result], {"alpha": 0.1}),
        ("QLinearSoftmax", [*image, np.float32(1 / 256), least], {"axis": -1, "opset": 13}),  # other scales it rounds
        ("QLinearSoftmax", [*image, np.float32(1 / 256), least], {"axis": 2, "opset": 11}),
        ("QLinearConcat", [*result, *image, *other], {"axis": 1}),
        ("QLinearWhere", [CHOSEN, *image, *other, *result], {}),
        ("QLinearGlobalAveragePool", mean, {}),
        ("QLinearGlobalAveragePool", mean, {"channels_last": 1}),
        ("QLinearAveragePool", mean, {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
        ("QLinearAveragePool", mean, {"kernel_shape": [3, 2], "count_include_pad": 1, "pads": [1, 0, 1, 1]}),
        ("QLinearAveragePool", mean, {"kernel_shape": [3, 2], "channels_last": 1}),
    ]


def products(a: str, b: str) -> Rows:
    x, w = of(a, 6, 10, by=0.02), [random(b, 10, 7) // 2, scale(0.03), np.asarray(5, b)]
    scales, bias, zeros = np.linspace(0.01, 0.05, 7).astype(np.float32), random("int32", 7) // 100, np.full(7, 5, b)
    image, kernel = of(a, 2, 9, 8, 4, by=0.02), random(b, 6, 2, 3, 3) // 2
    middle = np.full(6, 128 if b == "uint8" else 0, b)
    return [
        ("QGemm", [*x, *w, bias, scale(0.3), x[2]], {}),
        ("QGemm", [*x, *w, bias], {}),
        ("QGemm", [x[0].T.copy(), *x[1:], w[0].T.copy(), scales, zeros, bias, scale(0.3), x[2]],
         {"transA": 1, "transB": 1, "alpha": 0.7}),
        ("MatMulIntegerToFloat", [x[0], w[0], x[1], scales, x[2], zeros, random("float32", 7)], {}),
        ("QLinearConv", [*image, kernel, scales[:6], middle, scale(0.3), x[2], bias[:6]],
         {"group": 2, "pads": [1, 1, 1, 1], "channels_last": 1}),
    ]


def linear(t: str) -> Rows:
    return [("QuantizeLinear", [random("float32", 40, 50), scale(0.37), np.asarray(3).astype(random(t).dtype)], {}),
            ("DequantizeLinear", [random(t, 40, 50), np.linspace(0.1, 1, 50).astype(np.float32), random(t, 50)], {})]


DYNAMIC: Rows = [("DynamicQuantizeMatMul", [x, random(b, 10, 7) // 2, np.linspace(0.01, 0.05, 7).astype(np.float32), zero, bias], {})
           for x in (random("float32", 6, 10), np.zeros((6, 10), np.float32))
           for b, zero, bias in (("uint8", np.full(7, 5, "uint8"), random("float32", 7)), ("int8", None, None))]
LINEAR: Rows = [row for t in ("uint8", "int8", "uint16", "int16", "uint4", "int4") for row in linear(t)]
ROWS = [*LINEAR, *DYNAMIC, *(row for t in ("uint8", "int8") for row in rows(t)),
        *(row for a, b in (("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8")) for row in products(a, b))]


def model_of(op: str, arrays: list[Any], attributes: dict[str, Any]) -> onnx.ModelProto:
    """Return one node on given numbers; the first is an input if it is of 8 bits or float32, and y is a float."""
    names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    nodes = [helper.make_node(op, names, ["q"], domain=DOMAIN, **attributes), helper.make_node("Cast", ["q"], ["y"], to=1)]
    weights = {f"x{i}": np.asarray(a) for i, a in enumerate(arrays) if a is not None}
    return from_nodes(nodes, {"unused": (1, [1])}, {"y": 1}, weights, domains=[DOMAIN])


@pytest.mark.parametrize(("op", "arrays", "attributes"), ROWS, ids=[f"{row[0]}-{i}" for i, row in enumerate(ROWS)])
def test_results_are_those_of_onnxruntime(op: str, arrays: list[Any], attributes: dict[str, Any]) -> None:
    model = model_of(op, arrays, attributes)
    feeds: dict[str, Array] = {"unused": np.zeros(1, np.float32)}
    expected = session(model).run(None, feeds)[0]
    got = fg.load(model)(feeds)["y"]
    if np.asarray(arrays[0]).dtype == np.float32 and got.dtype == expected.dtype and not np.all(expected == np.rint(expected)):
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    else:
        np.testing.assert_array_equal(got, expected)
    assert {n.domain for n in fg.load(model).to_onnx(passes="").graph.node} == {""}


def test_means_of_axes() -> None:
    x = random("uint8", 2, 3, 4)
    arrays = [x, np.float32(0.5), np.uint8(7), np.float32(0.25), np.uint8(1)]
    got = fg.load(model_of("QLinearReduceMean", arrays, {"axes": [1, 2], "keepdims": 0}))(unused=np.zeros(1, np.float32))["y"]
    means = (x.astype(np.float64) - 7).mean((1, 2)) * 0.5
    np.testing.assert_array_equal(got, np.clip(np.rint(means / 0.25) + 1, 0, 255))


def test_every_operator_that_is_read_has_a_row() -> None:
    read = {op for (domain, op), adapters in ADAPTERS.items()
            if domain == DOMAIN and any(a.__module__.endswith("quantization") for _, a in adapters)}
    assert read == {*(row[0] for row in ROWS), "QLinearReduceMean"}


def test_what_does_not_fit_is_refused() -> None:
    image = of("uint8", 2, 3, by=0.1)
    with pytest.raises(ValidationError, match="QLinearConcat with 4 inputs"):
        fg.load(model_of("QLinearConcat", [np.float32(1), np.uint8(0), *image[:2]], {"axis": 0}))
    with pytest.raises(UnsupportedError, match="QLinearFoo"):
        fg.load(model_of("QLinearFoo", image, {}))


def test_derivatives_pass_a_network_of_quantized_operators() -> None:
    """The derivative of x -> w x + b, sigmoid, mean: that of the reals, up to the steps of rounding."""
    w = random("int8", 5, 4) // 2
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["a"]),
        helper.make_node("QGemm", ["a", "xs", "xz", "w", "ws", "wz", "b", "hs", "hz"], ["h"], domain=DOMAIN),
        helper.make_node("Reshape", ["h", "shape"], ["i"]),
        helper.make_node("MaxPool", ["i"], ["m"], kernel_shape=[1, 1]),
        helper.make_node("QLinearSigmoid", ["m", "hs", "hz", "ss", "sz"], ["s"], domain=DOMAIN),
        helper.make_node("DequantizeLinear", ["s", "ss", "sz"], ["d"]),
        helper.make_node("ReduceSum", ["d"], ["y"], keepdims=0),
    ]
    weights: dict[str, Any] = {"xs": np.float32(0.01), "xz": np.uint8(128), "w": w, "ws": np.float32(0.01), "wz": np.int8(0),
                               "b": np.array([0, 1000, -2000, 3000], np.int32), "hs": np.float32(0.02), "hz": np.uint8(128),
                               "ss": np.float32(1 / 256), "sz": np.uint8(0), "shape": np.array([1, 1, 2, 4])}
    model = fg.through_quantization(fg.load(from_nodes(nodes, {"x": (1, [2, 5])}, {"y": 1}, weights, domains=[DOMAIN])))
    x = np.random.default_rng(0).uniform(-1, 1, (2, 5)).astype(np.float32)
    got = fg.grad(model, "y", "x")(x=x)["x_grad"]
    h = x @ (w * 0.01) + weights["b"] * 1e-4
    assert np.abs(h).max() < 2.5
    slope = np.exp(-h) / (1 + np.exp(-h)) ** 2
    np.testing.assert_allclose(got, slope @ (w.T * 0.01), atol=0.03)
    exported = fg.grad(model, "y", "x")
    for entry, value in zip(session(exported.to_onnx()).get_outputs(), session(exported.to_onnx()).run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(exported(x=x)[entry.name], value, rtol=1e-5, atol=1e-6)
