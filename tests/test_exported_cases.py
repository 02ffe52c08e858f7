"""The command that compares exported gradient models with onnxruntime: that it sees what differs, and names what is lacking."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from flowgrad.runtime.ort_program import OrtProgram
from flowgrad.tools.maintenance.exported import Case, Seen, compared, examine
from tests.onnx_models import model

pytest.importorskip("onnxruntime")


def case(op: str, array: Any, opset: int = 18, **attributes: Any) -> Case:
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    return Case(op, model([node], {"x": array}, ["y"], opset=opset, output_dtype=attributes.get("to", dtype)), [array])


def examined(*cases: Case) -> Seen:
    seen = Seen()
    for one in cases:
        examine(one, seen)
    return seen


def test_gradients_that_agree() -> None:
    narrow = case("Cast", np.arange(3, dtype=np.float32), 19, to=TensorProto.FLOAT8E5M2)
    seen = examined(case("Sin", np.arange(3, dtype=np.float32)), narrow)
    assert seen.agreed == ["Sin", "Cast"] and not seen.wrong


def test_a_wrong_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = OrtProgram.run

    def wrong(self: OrtProgram, feeds: Any) -> dict[str, Any]:
        return {k: a * np.float32(1.001 if k == "x_grad" else 1) for k, a in right(self, feeds).items()}

    monkeypatch.setattr(OrtProgram, "run", wrong)
    seen = examined(case("Sin", np.arange(3, dtype=np.float32)))
    assert not seen.agreed and seen.wrong["Sin"].startswith("x_grad, 1 threads: an error of")


def test_kernels_that_are_lacking_are_named() -> None:
    seen = examined(case("Celu", np.ones(3, ml_dtypes.bfloat16), 28))
    assert list(seen.lacking.values()) == [["Celu"]] and next(iter(seen.lacking)).startswith("no kernel for ")


def test_cases_without_gradients_are_left_out() -> None:
    seen = examined(case("Neg", np.arange(3)), case("Bernoulli", np.full(3, 0.5, np.float32)))
    assert dict(seen.left_out) == {"no floats in, or none out": ["Neg"], "random": ["Bernoulli"]}


@pytest.mark.parametrize("got", [[1.0, np.nan], [1.0, np.inf], [np.nan, -np.inf], [1.001, -np.inf]])
def test_arrays_that_differ(got: list[float]) -> None:
    expected = np.array([1.0, -np.inf])
    assert not compared(expected.copy(), expected)
    assert compared(np.array(got), expected)
    assert compared(expected.astype(np.float32), expected) == "float32[2], not float64[2]"
    assert compared(expected[:1], expected) == "float64[1], not float64[2]"
