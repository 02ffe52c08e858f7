"""Models over 2 GiB: run with FLOWGRAD_LARGE=1 (takes about 12 GiB of memory and 3 GiB of disk)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import INITIALIZER, Graph
from flowgrad.ir.limits import Limits
from flowgrad.ir.types import FLOAT32, Type

pytestmark = pytest.mark.skipif(os.environ.get("FLOWGRAD_LARGE") != "1", reason="large: set FLOWGRAD_LARGE=1")

SIDE = 24_576
"""The weight has SIDE * SIDE float32 elements: 2.25 GiB."""


def test_a_model_over_2_gib_is_exported_beside_its_weights_and_comes_back(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    graph = Graph("large")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (1, SIDE)))
    weight = np.ones((SIDE, SIDE), np.float32)
    weight[:, 7] = np.arange(SIDE)
    graph.add_output(b.MatMul(x, graph.add_constant(weight, "w", INITIALIZER)), "y")
    gradient = fg.vjp(fg.Model(graph), wrt="x")
    path = tmp_path / "large.onnx"
    gradient.to_onnx(path)
    assert path.stat().st_size < 2**20
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) > 2**31
    onnx.checker.check_model(str(path), full_check=True)
    back = fg.load(path, limits=Limits.unlimited())
    held = back.graph.value("w").constant
    assert held is not None and held.shape == weight.shape
    assert all(np.array_equal(held[i : i + 1024], weight[i : i + 1024]) for i in range(0, SIDE, 1024))
    feeds = {"x": np.full((1, SIDE), 0.5, np.float32), "y_grad": np.eye(1, SIDE, 7, dtype=np.float32)}
    found = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["x_grad"], feeds)[0]
    np.testing.assert_array_equal(found[0], np.arange(SIDE))
    np.testing.assert_array_equal(back(feeds)["x_grad"][0], np.arange(SIDE))
