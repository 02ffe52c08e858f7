"""What a model gives is what its files give, here and in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.graph import Array


def check_files_and_runtimes(model: fg.Model, feeds: Mapping[str, Array], folder: Path, *, atol: float) -> None:
    """Check a model of float64 saved and loaded (the same bits), exported (plain ONNX), loaded again, and in onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    expected = model(feeds)
    model.save(folder / "m.msgpack")
    proto = model.to_onnx(folder / "m.onnx")
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(str(folder / "m.onnx"))
    results = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    assert [o.name for o in session.get_outputs()] == list(expected)
    saved, exported = fg.load(folder / "m.msgpack")(feeds), fg.load(folder / "m.onnx")(feeds)
    for (name, value), found in zip(expected.items(), results, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-10, atol=atol)
        np.testing.assert_array_equal(saved[name], value)
        np.testing.assert_allclose(exported[name], value, rtol=1e-10, atol=atol)
