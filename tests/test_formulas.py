"""Operators that are read as formulas, also where the file tells no extents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from flowgrad.exchange.reader import read_onnx
from flowgrad.exchange.writer import write_onnx
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array
from flowgrad.passes.differentiate import with_adjoint
from tests.derivative_checks import check_gradients
from tests.onnx_models import Shape, info, model, onnxruntime_outputs

RNG = np.random.default_rng(11)
GIVEN = {"x": RNG.standard_normal((2, 3, 5)), "w": RNG.standard_normal((3, 1, 4)), "b": RNG.standard_normal(3),
         "past": RNG.standard_normal((2, 3, 3))}


def causal(inputs: str, shapes: dict[str, Shape], **attributes: Any) -> Any:
    names = ["" if n == "-" else n for n in inputs.split()]
    node = helper.make_node("CausalConvWithState", names, ["y", "state"], **attributes)
    declared = {n: info(n, shapes[n], TensorProto.FLOAT) for n in names if n}
    return model([node], declared, ["y", "state"], opset=27, ir_version=10)


STATIC: dict[str, Shape] = {n: a.shape for n, a in GIVEN.items()}
ROWS: dict[str, Shape] = {"x": ["n", 3, "length"], "w": [3, 1, "k"], "b": [3], "past": ["n", 3, "kept"]}
ALL: dict[str, Shape] = {"x": ["n", "c", "length"], "w": ["c", 1, "k"], "b": ["c"], "past": ["n", "c", "kept"]}


@pytest.mark.parametrize("shapes", [STATIC, ROWS, ALL], ids=["static", "rows", "channels"])
@pytest.mark.parametrize("inputs", ["x w", "x w b", "x w - past", "x w b past"])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_causal_convolution(inputs: str, shapes: dict[str, Shape], activation: str) -> None:
    proto = causal(inputs, shapes, activation=activation)
    feeds: dict[str, Array] = {n: GIVEN[n].astype(np.float32) for n in inputs.split() if n != "-"}
    graph = read_onnx(proto)
    results = evaluate(graph, feeds)
    for name, expected in zip(("y", "state"), ReferenceEvaluator(proto).run(None, feeds), strict=True):
        np.testing.assert_allclose(results[name], expected, rtol=1e-5, atol=1e-6)
    joint = with_adjoint(graph)
    full = {**feeds, **joint.drawn(results, RNG)}
    here = evaluate(joint.graph, full)
    for entry, there in zip(joint.graph.output_entries, onnxruntime_outputs(write_onnx(joint.graph), full), strict=True):
        np.testing.assert_allclose(here[entry.name], there, rtol=1e-4, atol=1e-4)


def test_causal_convolution_is_differentiated_right() -> None:
    from flowgrad.ir.types import FLOAT64
    from flowgrad.passes.precision import converted

    for shapes in (STATIC, ALL):
        graph = converted(read_onnx(causal("x w b past", shapes, activation="swish")), FLOAT64)
        check_gradients(graph, GIVEN, list(GIVEN), step=1e-3, rtol=1e-8)


def test_causal_convolution_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="activation 'tanh'"):
        read_onnx(causal("x w", STATIC, activation="tanh"))
