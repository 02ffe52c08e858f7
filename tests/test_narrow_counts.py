"""More elements than 16 bits count: derivatives in narrow types against closed forms, and values that keep their bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import INITIALIZER, Array, Graph, Value
from flowgrad.ir.ops.registry import opdef
from flowgrad.ir.types import FLOAT32, INT64, Dim, Type, dtype_of
from flowgrad.ir.verify import verify
from flowgrad.model import Model
from flowgrad.passes.differentiate import adjoint, tangent, with_adjoint, with_tangent
from flowgrad.passes.precision import converted
from tests.op_cases import Case, all_cases

COUNT = 70_000
NARROW = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
Formula = Callable[[Builder, Value], Value]


def classes(b: Builder, x: Value) -> Value:
    """The scores of two classes: x and zero."""
    return b.Unsqueeze(x, [0]) if x.type.rank != 1 else b.Concat(*(b.Unsqueeze(v, [1]) for v in (x, b.Mul(x, 0.0))), axis=1)


def labels(b: Builder, x: Value) -> Value:
    return b.Expand(b.scalar(0, INT64), b.shape(x))


def likelihood(b: Builder, x: Value, **attributes: Any) -> Value:
    return b.NegativeLogLikelihoodLoss(classes(b, x), labels(b, x), **attributes)


def weighted(b: Builder, x: Value) -> Value:
    ones = b.value(np.ones(2, x.type.dtype.numpy))
    return b.NegativeLogLikelihoodLoss(classes(b, x), labels(b, x), ones)


def image(b: Builder, x: Value) -> Value:
    return b.Reshape(x, [1, 1, 250, -1])


def scattered(b: Builder, x: Value) -> Value:
    first = b.Slice(x, [0], [1], [0])
    return b.ScatterElements(first, labels(b, x), x, reduction="max")


FORMULAS: dict[str, tuple[Formula, float, float]] = {
    "ReduceMean": (lambda b, x: b.ReduceMean(x, keepdims=0), 1 / COUNT, 1.0),
    "GlobalAveragePool": (lambda b, x: b.GlobalAveragePool(image(b, x)), 1 / COUNT, 1.0),
    "AveragePool": (lambda b, x: b.AveragePool(image(b, x), kernel_shape=[250, 280]), 1 / COUNT, 1.0),
    "ReduceMax": (lambda b, x: b.ReduceMax(x, keepdims=0), 1 / COUNT, 1.0),
    "ReduceMin": (lambda b, x: b.ReduceMin(x, keepdims=0), 1 / COUNT, 1.0),
    "GlobalMaxPool": (lambda b, x: b.GlobalMaxPool(image(b, x)), 1 / COUNT, 1.0),
    "ScatterElements max": (scattered, 1 / (COUNT + 1), 1.0),
    "NegativeLogLikelihoodLoss": (likelihood, -1 / COUNT, -1.0),
    "NegativeLogLikelihoodLoss, ignored": (lambda b, x: likelihood(b, x, ignore_index=1), -1 / COUNT, -1.0),
    "NegativeLogLikelihoodLoss, weighted": (weighted, -1 / COUNT, -1.0),
    "SoftmaxCrossEntropyLoss": (lambda b, x: b.SoftmaxCrossEntropyLoss(classes(b, x), labels(b, x)),
                                (1 / (1 + np.exp(-2)) - 1) / COUNT, 1 / (1 + np.exp(-2)) - 1),
    "ReduceLogSum": (lambda b, x: b.ReduceLogSum(x, keepdims=0), 0.5 / COUNT, 0.5),
    "ReduceLogSumExp": (lambda b, x: b.ReduceLogSumExp(x, keepdims=0), 1 / COUNT, 1.0),
    "ReduceL2": (lambda b, x: b.ReduceL2(x, keepdims=0), COUNT**-0.5, COUNT**0.5),
    "GlobalLpPool": (lambda b, x: b.GlobalLpPool(image(b, x)), COUNT**-0.5, COUNT**0.5),
    "GlobalLpPool, 3": (lambda b, x: b.GlobalLpPool(image(b, x), p=3), COUNT ** (-2 / 3), COUNT ** (1 / 3)),
    "LogSoftmax": (lambda b, x: b.Slice(b.LogSoftmax(x), [0], [1], [0]), -1 / COUNT, 0.0),
    "LayerNormalization": (lambda b, x: b.Slice(b.LayerNormalization(x, b.Div(x, x)), [0], [1], [0]), -(1e-5**-0.5) / COUNT, 0.0),
}
"""A function of 70,000 twos, the derivative by the last of them (the first too, but for one), and that along ones."""


def joint_of(formula: Formula, dtype: str, extent: Any = COUNT) -> Graph:
    graph = Graph("counts")
    x = graph.add_input("x", Type(dtype_of(dtype), (extent,)))
    b = Builder(graph)
    y = formula(b, x)
    (x_bar,) = adjoint(graph, [(y, b.filled(1, y))], [x])
    (y_dot,) = tangent(graph, [(x, b.filled(1, x))], [y])
    graph.add_output(x_bar or b.zeros_like(x), "x_bar")
    graph.add_output(y_dot or b.zeros_like(y), "y_dot")
    return graph


def check(found: dict[str, Array], dtype: str, slope: float, along: float, spread: float = 0.0) -> None:
    got, dot = found["x_bar"].astype(np.float64), found["y_dot"].astype(np.float64)
    np.testing.assert_allclose(got[-1], slope, rtol=3 * NARROW[dtype] + spread, atol=2.0**-24)
    np.testing.assert_allclose(dot.reshape(-1)[0], along, rtol=3 * NARROW[dtype], atol=3 * NARROW[dtype] + spread)
    assert np.isfinite(got).all()


def row(name: str, extent: Any) -> Any:
    """Return a row of FORMULAS; skip the one that has no symbolic form."""
    if name == "AveragePool" and not isinstance(extent, int):
        pytest.skip("its window has the extents of the image")
    return FORMULAS[name]


@pytest.mark.parametrize("extent", [COUNT, Dim.named("N")], ids=["static", "symbolic"])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", FORMULAS)
def test_more_elements_than_16_bits_count(name: str, dtype: str, extent: Any) -> None:
    formula, slope, along = row(name, extent)
    x = np.full(COUNT, 2).astype(dtype_of(dtype).numpy)
    check(evaluate(joint_of(formula, dtype, extent), {"x": x}), dtype, slope, along)


@pytest.mark.parametrize("extent", [COUNT, Dim.named("N")], ids=["static", "symbolic"])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", FORMULAS)
def test_converted_after_differentiation_they_count_too(name: str, dtype: str, extent: Any) -> None:
    formula, slope, along = row(name, extent)
    twin = converted(joint_of(formula, "float32", extent), dtype)
    verify(twin)
    found = evaluate(twin, {"x": np.full(COUNT, 2).astype(dtype_of(dtype).numpy)})
    assert {a.dtype for a in found.values()} == {dtype_of(dtype).numpy}
    check(found, dtype, slope, along, np.log(COUNT) * NARROW[dtype] / 2 if name == "LogSoftmax" else 0.0)  # exp(y), rounded y


def test_numbers_that_a_type_does_not_have_stay_in_float32() -> None:
    graph = Graph("counts")
    x = graph.add_input("x", Type(FLOAT32, (Dim.named("N"),)))
    b = Builder(graph)
    share = b.Div(b.value(np.float32(COUNT)), b.Mul(b.cast_like(b.Size(x), x), 2.0))
    graph.add_output(b.Mul(b.ReduceMean(x, keepdims=0), share), "y")
    twin = converted(graph, "float16")
    verify(twin)
    assert float(evaluate(twin, {"x": np.full(COUNT, 2, np.float16)})["y"]) == 1


@pytest.mark.parametrize("is_literal", [True, False])
def test_numbers_that_a_type_does_not_have_are_refused_where_it_has_to_have_them(is_literal: bool) -> None:
    graph = Graph("counts")
    x = graph.add_input("x", Type(FLOAT32, (1, 2)))
    b = Builder(graph)
    big = np.full((2, 2), 1e5, np.float32)
    weights = b.value(big) if is_literal else graph.add_constant(big, "weights", INITIALIZER)
    graph.add_output(b.MatMul(x, weights), "y")
    with pytest.raises(InputError, match="float16 does not have the numbers of the constant .*MatMul"):
        converted(graph, "float16")
    converted(graph, "bfloat16")


@pytest.mark.parametrize("name", FORMULAS)
def test_exported_they_count_too(name: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    formula, slope, along = FORMULAS[name]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    model = Model(joint_of(formula, "float16")).to_onnx().SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found = session.run(["x_bar", "y_dot"], {"x": np.full(COUNT, 2, np.float16)})
    check(dict(zip(("x_bar", "y_dot"), found, strict=True)), "float16", slope, along)


# ---- values keep their bits -------------------------------------------------------------------------------------------------


def narrowed(array: Array | None, dtype: str) -> Array | None:
    is_wide = array is not None and array.dtype in (np.float32, np.float64)
    return array.astype(dtype_of(dtype).numpy) if is_wide and array is not None else array


DIFFERENTIABLE = [c for c in all_cases() if opdef(c.op).is_differentiable() and not c.refuses and c.build is None
                  and not any(s is not None and s.constant and s.differentiable for s in c.inputs)]
WITHOUT_RULE = [c for c in DIFFERENTIABLE if opdef(c.op).adjoint_rule is None and opdef(c.op).partial_rule is None]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", WITHOUT_RULE, ids=[c.id for c in WITHOUT_RULE])
def test_the_value_of_a_derived_model_has_the_bits_of_the_model(case: Case, dtype: str) -> None:
    arrays = [narrowed(a, dtype) for a in case.arrays()]
    graph, node = case.graph(arrays)
    feeds = case.feeds(arrays)
    expected = evaluate(graph, feeds)
    for derived in (with_adjoint(graph), with_tangent(graph)):
        assert node.op in {n.op for n in derived.graph.nodes()}
        found = evaluate(derived.graph, {**feeds, **derived.drawn({**feeds, **expected}, np.random.default_rng(0))})
        for name, array in expected.items():
            assert found[name].tobytes() == array.tobytes(), name
