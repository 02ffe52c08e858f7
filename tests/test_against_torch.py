"""Random graphs beside PyTorch, and that a wrong number is seen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Graph
from flowgrad.ir.types import FLOAT32, FLOAT64, Dim, DType, Type
from flowgrad.tools.maintenance.against_torch import BASE, Seen, against_one, checked, main

CHECKS = ("value", "vjp", "jvp", "second", "onnx", "gradient onnx")
MORE = (*CHECKS, "forward over reverse")


@pytest.fixture
def mirrors() -> dict[str, Callable[..., Any]]:
    pytest.importorskip("torch")
    from flowgrad.tools.maintenance import torch_numbers as _declared  # noqa: F401
    from flowgrad.tools.maintenance.torch_nodes import MIRRORS

    return MIRRORS


def test_random_graphs(mirrors: dict[str, Callable[..., Any]]) -> None:
    seen = Seen()
    for seed in range(25):
        against_one(seed, seen, shrinking=2.0)
    assert not seen.failures, "\n".join(map(str, seen.failures))
    assert all(seen.checked[name] for name in MORE), seen.checked


def small(dtype: DType = FLOAT64) -> tuple[Graph, list[dict[str, Any]]]:
    """Return sin(x) * x with inputs of two lengths."""
    graph = Graph()
    x = graph.add_input("x", Type(dtype, (Dim.named("N"),)))
    b = Builder(graph)
    graph.add_output(b.Mul(b.Sin(x), x), "y")
    return graph, [{"x": np.linspace(0.5, 2.0, n).astype(dtype.numpy)} for n in (3, 4)]


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_a_wrong_value_is_seen_in_every_number(
    mirrors: dict[str, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch, dtype: DType
) -> None:
    seen = Seen()
    assert checked(*small(dtype), seen) == {}
    assert all(seen.checked[name] == 2 for name in CHECKS), seen.checked
    right = mirrors["Sin"]
    monkeypatch.setitem(mirrors, "Sin", lambda call, x: right(call, x) * (1 + 1e-4))
    assert set(checked(*small(dtype), Seen())) == set(CHECKS)


def test_a_wrong_derivative_of_a_right_value_is_seen(
    mirrors: dict[str, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mirrors, "Sin", lambda call, x: x.sin() + 1e-3 * (x - x.detach()))
    assert set(checked(*small(), Seen())) >= {"vjp", "second", "gradient onnx"}


def test_an_operator_that_is_not_written_is_counted(
    mirrors: dict[str, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(mirrors, "Sin")
    seen = Seen()
    assert checked(*small(), seen) == {}
    assert seen.skipped == {"no mirror: Sin": 1}


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit):
        main(["--graphs", "1"])
    assert "flowgrad[bench]" in capsys.readouterr().err


def test_the_bound_of_float32_comes_from_rounding(
    mirrors: dict[str, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference of near-equals loses digits: the error is above what needs no explanation, and below what rounding does."""
    graph = Graph()
    x = graph.add_input("x", Type(FLOAT32, (2,)))
    b = Builder(graph)
    graph.add_output(b.Mul(b.Sub(b.Exp(b.Add(x, 1e-3)), b.Exp(x)), 1e3), "y")
    given = np.array([3.1, 2.3], np.float32)
    exact = (np.exp(given.astype(float) + np.float32(1e-3)) - np.exp(given.astype(float))) * 1e3
    error = float(np.abs(evaluate(graph, {"x": given})["y"] - exact).max() / exact.max())
    assert error > BASE["float32"]
    seen = Seen()
    assert checked(graph, [{"x": given}], seen) == {}
    assert seen.checked["value"] == 1
    monkeypatch.setitem(mirrors, "Sub", lambda call, x, y: (x - y) * (1 + 0.1))
    assert "value" in checked(graph, [{"x": given}], Seen())
