"""Automatic padding in onnxruntime: what is exported means there what it means here."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from flowgrad.exchange.writer import write_onnx
from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Graph
from flowgrad.ir.types import FLOAT32, Dim, DimLike, Type
from flowgrad.model import Model
from flowgrad.transforms.derivatives import vjp

FORMS = [(n, k, s, d) for n, k, s, d in itertools.product((3, 4, 5), (1, 2, 3), (1, 2, 4), (1, 2)) if d == 2 or k < s]
"""Extent, kernel, stride and dilation where onnxruntime 1.32 reads, or refuses, automatic padding in its own way."""


def layer(op: str, mode: str, form: tuple[int, int, int, int], extent: DimLike) -> Graph:
    _, k, s, d = form
    graph = Graph("layer")
    x = graph.add_input("x", Type(FLOAT32, (1, 2, extent)))
    attributes: dict[str, Any] = {"auto_pad": mode, "strides": [s], "dilations": [d]}
    inputs = [x]
    if "Conv" in op:
        inputs.append(graph.add_input("w", Type(FLOAT32, (2, 2, k))))
    else:
        attributes["kernel_shape"] = [k]
    graph.add_output(Builder(graph).add(op, inputs, attributes), "y")
    return graph


def feeds(graph: Graph, form: tuple[int, int, int, int]) -> dict[str, Any]:
    rng = np.random.default_rng(form)
    shapes = {"x": (1, 2, form[0]), "w": (2, 2, form[1])}
    return {v.name: rng.standard_normal(shapes[v.name]).astype(np.float32) for v in graph.inputs}


def in_onnxruntime(graph: Graph, given: dict[str, Any]) -> dict[str, Any]:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(write_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, {i.name: given[i.name] for i in session.get_inputs()}), strict=True))


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool", "Conv", "ConvTranspose"])
def test_values_and_gradients_agree(op: str, mode: str) -> None:
    for form in FORMS[::3]:
        graph = layer(op, mode, form, form[0])
        given = feeds(graph, form)
        joint = vjp(Model(graph), of="y")
        given["y_grad"] = np.ones_like(evaluate(graph, given)["y"])
        expected = joint(given)
        for name, got in in_onnxruntime(joint.graph, given).items():
            assert got.shape == expected[name].shape, form
            np.testing.assert_allclose(got, expected[name], rtol=1e-5, atol=1e-6, err_msg=str(form))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool", "Conv"])
def test_padding_without_strides_needs_no_extents(op: str) -> None:
    graph = layer(op, "SAME_UPPER", (5, 3, 1, 2), Dim.named("N"))
    given = feeds(graph, (5, 3, 1, 2))
    np.testing.assert_allclose(in_onnxruntime(graph, given)["y"], evaluate(graph, given)["y"], rtol=1e-5, atol=1e-6)


def test_what_all_read_alike_stays_as_it_is() -> None:
    for form in ((5, 3, 2, 1), (5, 2, 2, 1)):
        node = write_onnx(layer("Conv", "SAME_LOWER", form, 5)).graph.node[0]
        assert {a.name: a.s for a in node.attribute}["auto_pad"] == b"SAME_LOWER"


def test_places_of_maxima_go_along() -> None:
    graph = Graph("places")
    x = graph.add_input("x", Type(FLOAT32, (1, 1, 5)))
    y, places = Builder(graph).add_several("MaxPool", [x], {"kernel_shape": [2], "dilations": [2], "auto_pad": "SAME_UPPER"},
                                           outputs=2)
    graph.add_output(y, "y")
    graph.add_output(places, "places")
    given = {"x": np.array([[[1, 5, 2, 4, 3]]], np.float32)}
    found = in_onnxruntime(graph, given)
    for name, expected in evaluate(graph, given).items():
        np.testing.assert_array_equal(found[name], expected)
