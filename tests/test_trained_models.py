"""Models that scikit-learn and LightGBM have trained, as their converters write them (skl2onnx 1.20, onnxmltools 1.16).

``columns``: gaps filled, scaled numbers, categories as rows and as numbers, logistic regression. ``machine``: a support
vector machine with probabilities of three classes. ``boosted``: gradient boosting, three classes; ``boosted_gaps``: two
classes, trained with NaN among the features, by LightGBM.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import flowgrad as fg
from flowgrad.ir.errors import NotDifferentiableError
from flowgrad.ir.graph import Array

FOLDER = Path(__file__).parent / "data" / "trained"
RNG = np.random.default_rng(11)
FLOWERS: Array = (RNG.uniform(0, 1, (12, 4)) * [3, 2, 6, 2.5] + [4.5, 2, 1, 0]).astype(np.float32)
GAPS: Array = np.where(RNG.uniform(0, 1, (12, 4)) < 0.2, np.nan, FLOWERS).astype(np.float32)
COLUMNS: dict[str, Array] = {
    "a": np.array([[0.3], [np.nan], [-2.0], [1.0]], np.float32), "b": RNG.standard_normal((4, 1)).astype(np.float32),
    "c": np.array([["u"], ["w"], ["new"], ["v"]], object), "i": np.array([[0], [1], [2], [3]]),
}
FEEDS: dict[str, dict[str, Array]] = {"columns": COLUMNS, "machine": {"X": FLOWERS}, "boosted": {"X": FLOWERS}, "boosted_gaps": {"X": GAPS}}


def in_onnxruntime(proto: Any, feeds: dict[str, Array]) -> list[Array]:
    """Run a file as it is; rows of dictionaries become rows of their values."""
    results = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    return [np.array([list(row.values()) for row in r], np.float32) if isinstance(r, list) else np.asarray(r) for r in results]


@pytest.mark.parametrize("name", FEEDS)
def test_labels_and_probabilities_are_those_of_onnxruntime(name: str) -> None:
    proto, feeds = onnx.load(FOLDER / f"{name}.onnx"), FEEDS[name]
    model = fg.load(proto)
    exported = model.to_onnx()
    assert {n.domain for n in exported.graph.node} == {""}
    for mine, again, expected in zip(model(feeds).values(), in_onnxruntime(exported, feeds), in_onnxruntime(proto, feeds), strict=True):
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(mine, expected)
            np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("name", ["columns", "machine"])
def test_probabilities_differentiate(name: str) -> None:
    model, feeds = fg.load(FOLDER / f"{name}.onnx"), FEEDS[name]
    scores = model.outputs[1].name
    floats = [k for k, a in feeds.items() if a.dtype == np.float32]
    complete = {k: np.nan_to_num(a, nan=0.5) if k in floats else a for k, a in feeds.items()}
    assert fg.gradcheck(model, complete, scores, floats, rtol=1e-6, atol=1e-7)
    derivative = fg.vjp(model, scores, floats)
    seed = RNG.standard_normal(model(feeds)[scores].size).reshape(len(feeds[floats[0]]), -1).astype(np.float32)
    given = {**feeds, f"{scores}_grad": seed}
    expected = derivative(given)
    proto = derivative.to_onnx()
    assert {n.domain for n in proto.graph.node} == {""}
    for output, again in zip(proto.graph.output, in_onnxruntime(proto, given), strict=True):
        if again.dtype.kind == "f":
            np.testing.assert_allclose(again, expected[output.name], rtol=1e-3, atol=1e-4)
    if name == "columns":
        assert expected["a_grad"][1] == 0  # a gap that was filled has no influence


@pytest.mark.parametrize("name", ["boosted", "boosted_gaps"])
def test_trees_have_no_slope(name: str) -> None:
    model = fg.load(FOLDER / f"{name}.onnx")
    with pytest.raises(NotDifferentiableError, match="TreeLeaves"):
        fg.vjp(model, model.outputs[1].name)


def test_what_is_left_out_is_told() -> None:
    (note,) = fg.load(FOLDER / "boosted.onnx").notes
    assert "ZipMap left out: %output_probability is a tensor, its columns are the labels 0, 1, 2" in note
