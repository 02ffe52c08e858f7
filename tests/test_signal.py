"""Transforms of tensors of unknown rank, along axes that only the run tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowgrad.exchange.writer import write_onnx
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.types import FLOAT64, INT64, Type
from flowgrad.passes.differentiate import with_adjoint
from tests.onnx_models import onnxruntime_outputs

RNG = np.random.default_rng(5)


def transform(shape: tuple[int, ...] | None, axis: int | None, **attributes: Any) -> Graph:
    """Return a graph of one DFT at 5 points; without ``axis`` it is fed."""
    graph = Graph("transform")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, shape))
    along = graph.add_input("axis", Type(INT64, ())) if axis is None else np.int64(axis)
    graph.add_output(b.DFT(x, np.int64(5), along, **attributes), "y")
    return graph


@pytest.mark.parametrize("axis", [None, -3, 0])
@pytest.mark.parametrize("attributes", [{}, {"inverse": 1}, {"onesided": 1}, {"onesided": 1, "inverse": 1}], ids=str)
def test_unknown_ranks_and_axes(axis: int | None, attributes: dict[str, int]) -> None:
    parts = 1 if attributes == {"onesided": 1} else 2
    feeds: dict[str, Array] = {"x": RNG.standard_normal((4, 3, parts))}
    known, unknown = (with_adjoint(transform(s, a, **attributes), ["x"]) for s, a in (((4, 3, parts), 0), (None, axis)))
    y = evaluate(transform((4, 3, parts), 0, **attributes), feeds)["y"]
    feeds["y_ct"] = np.asarray(RNG.standard_normal(y.shape))
    expected = evaluate(known.graph, feeds)
    if axis is None:
        feeds["axis"] = np.array(0)
    here = evaluate(unknown.graph, feeds)
    exported = write_onnx(unknown.graph)
    there = dict(zip([o.name for o in exported.graph.output], onnxruntime_outputs(exported, feeds), strict=True))
    for name, array in expected.items():
        np.testing.assert_allclose(here[name], array, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(there[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shape", "axis", "attributes", "what"), [
    ((4, 3, 2), 2, {}, "holds the parts"),
    ((4, 3, 3), 0, {}, "not 1 or 2"),
    ((4, 3, 2), 0, {"onesided": 1}, "not 1:"),
    ((4, 3, 1), 0, {"onesided": 1, "inverse": 1}, "not 2:"),
])
def test_what_is_no_signal(shape: tuple[int, ...], axis: int, attributes: dict[str, int], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        transform(shape, axis, **attributes)
