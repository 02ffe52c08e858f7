"""Recurrent operators against onnxruntime, and their expansions against their kernels."""

from __future__ import annotations

import numpy as np
import pytest

from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.verify import verify
from flowgrad.passes.expand import expand
from tests.cases.recurrent import CASES
from tests.op_cases import Case

IDS = [c.id for c in CASES]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_expansion_gives_the_same(case: Case) -> None:
    arrays = case.arrays()
    graph, _ = case.graph(arrays, symbolic=True)
    expanded = graph.copy()
    expand(expanded, lambda n: n.op == case.op)
    verify(expanded)
    assert case.op not in {n.op for n in expanded.nodes()}
    expected, got = (evaluate(g, case.feeds(arrays)) for g in (graph, expanded))
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-12, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("case", [c for c in CASES if "turned" not in c.name], ids=lambda c: c.id)
def test_against_onnxruntime(case: Case) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from flowgrad.exchange.writer import write_onnx

    arrays = [None if a is None else a.astype(np.float32) if a.dtype == np.float64 else a for a in case.arrays()]
    graph, _ = case.graph(arrays)
    assert [n.op for n in graph.nodes()] == [case.op]
    expected = evaluate(graph, case.feeds(arrays))
    session = onnxruntime.InferenceSession(write_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    for output, got in zip(session.get_outputs(), session.run(None, case.feeds(arrays)), strict=True):
        np.testing.assert_allclose(got, expected[output.name], rtol=2e-4, atol=2e-5, err_msg=output.name)
