"""An index means the same in a value and in its derivative: what one refuses, the other refuses as well."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.types import FLOAT64, INT64, Type

Formula = Callable[[Builder, Value, Value], Value]


def loss(op: str, **attributes: object) -> Formula:
    return lambda b, x, i: b.add_node(op, [x, i], attributes).output()


FORMULAS: dict[str, tuple[Formula, bool]] = {
    "NegativeLogLikelihoodLoss": (loss("NegativeLogLikelihoodLoss"), False),
    "NegativeLogLikelihoodLoss, ignored": (loss("NegativeLogLikelihoodLoss", ignore_index=-100), False),
    "NegativeLogLikelihoodLoss, sum": (loss("NegativeLogLikelihoodLoss", reduction="sum"), False),
    "SoftmaxCrossEntropyLoss": (loss("SoftmaxCrossEntropyLoss"), False),
    "SoftmaxCrossEntropyLoss, none": (loss("SoftmaxCrossEntropyLoss", reduction="none"), False),
    "Gather": (lambda b, x, i: b.Gather(x, i, axis=1), True),
    "Gather of one": (lambda b, x, i: b.Gather(x, b.Slice(i, [0], [1], [0]), axis=1), True),
    "GatherElements": (lambda b, x, i: b.GatherElements(x, b.Unsqueeze(i, [1]), axis=1), True),
    "GatherND": (lambda b, x, i: b.GatherND(b.Transpose(x, perm=[1, 0]), b.Unsqueeze(i, [1])), True),
    "GatherND, batch": (lambda b, x, i: b.GatherND(x, b.Unsqueeze(i, [1]), batch_dims=1), True),
    "ScatterElements add": (
        lambda b, x, i: b.ScatterElements(x, b.Unsqueeze(i, [1]), b.Slice(x, [0], [1], [1]), axis=1, reduction="add"), True),
    "ScatterND max": (
        lambda b, x, i: b.ScatterND(b.Transpose(x, perm=[1, 0]), b.Unsqueeze(i, [1]), b.Slice(x, [0], [3], [1]),
                                    reduction="max"), True),
}
"""A function of x [3,4] and of indices [3] into the 4, and whether they may count from behind."""


def model(formula: Formula) -> fg.Model:
    graph = Graph("indices")
    x, i = graph.add_input("x", Type(FLOAT64, (3, 4))), graph.add_input("i", Type(INT64, (3,)))
    b = Builder(graph)
    graph.add_output(b.ReduceSum(formula(b, x, i), keepdims=0), "y")
    return fg.Model(graph)


def accepted(found: fg.Model, indices: list[int]) -> bool:
    feeds = {"x": np.arange(12.0).reshape(3, 4) / 7, "i": np.array(indices)}
    if any(value.name == "x_tangent" for value in found.inputs):
        feeds["x_tangent"] = np.ones((3, 4))
    try:
        return all(np.isfinite(a).all() for a in found(feeds).values())
    except fg.FlowgradError as error:
        assert type(error).__name__ == "RunError"
        return False


@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_derivative_accept_the_same_indices(name: str) -> None:
    formula, from_behind = FORMULAS[name]
    value = model(formula)
    derivatives = [fg.grad(value, of="y", wrt="x"), fg.jvp(value, of="y", wrt="x")]
    exported = [fg.load(d.to_onnx()) for d in derivatives[:1]]
    for last, is_good in ((3, True), (-1, from_behind), (-4, from_behind), (4, False), (-5, False), (2**40, False)):
        indices = [last, 0, 1]
        for found in (value, *derivatives, *exported):
            assert accepted(found, indices) == is_good, (last, found.outputs)


@pytest.mark.parametrize("op", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_a_label_below_zero_that_is_ignored_counts_nowhere(op: str) -> None:
    value = model(loss(op, ignore_index=-1))
    feeds = {"x": np.arange(12.0).reshape(3, 4) / 7, "i": np.array([-1, 0, 3])}
    outputs = fg.value_and_grad(value, of="y", wrt="x")(feeds)
    assert not outputs["x_grad"][0].any() and outputs["x_grad"][1:].any(axis=1).all()
    alone = model(loss(op))
    assert not accepted(fg.grad(alone, of="y", wrt="x"), [-1, 0, 3])


@pytest.mark.parametrize("name", FORMULAS)
def test_in_onnxruntime_no_gradient_reads_a_label_from_behind(name: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    formula, from_behind = FORMULAS[name]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    exported = fg.grad(model(formula), of="y", wrt="x").to_onnx().SerializeToString()
    session = ort.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    for last, is_good in ((3, True), (-1, from_behind), (4, False), (-5, False)):
        feeds = {"x": np.arange(12.0).reshape(3, 4) / 7, "i": np.array([last, 0, 1])}
        used = {i.name for i in session.get_inputs()}
        try:
            session.run(None, {k: v for k, v in feeds.items() if k in used})
            runs = True
        except Exception:
            runs = False
        assert runs == is_good, last
