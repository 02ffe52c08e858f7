"""Random graphs through the transforms that make many derivatives at once, and that a wrong number is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.model import Model
from flowgrad.tools.maintenance import fuzz_transforms
from flowgrad.tools.maintenance.fuzz import Summary, fuzz_one, run_check
from flowgrad.tools.maintenance.fuzz_transforms import COMPARED, TRANSFORMS

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(("seed", "favour"), [(6, ()), (7, ()), (6, ("branch", "loop", "scan"))])
def test_random_graphs(seed: int, favour: tuple[str, ...]) -> None:
    summary = Summary()
    fuzz_one(seed, 3, list(TRANSFORMS), summary, shrinking=2.0, thorough=True, favour=favour)
    assert not summary.failures, "\n".join(map(str, summary.failures))
    assert all(summary.done[name] for name in TRANSFORMS), summary


CURVED = fg.load(b"""graph @curved (%x: f64[3], %w: f64[3]) -> (%y: f64[3]) {
    %a: f64[3] = Sin(%x)
    %y: f64[3] = Mul(%a, %w)
}""")
FEEDS = {"x": np.array([0.5, 1.0, 2.0]), "w": np.array([-1.0, 0.3, 0.7])}


def found_by(check: str) -> str | None:
    """Return what a check says of a graph."""
    return run_check(check, CURVED.graph, [FEEDS], True)[1]


def off(transform: Callable[..., Model]) -> Callable[..., Model]:
    """Return the transform, its results that are floats a little too large."""
    def wrong(*arguments: Any, **options: Any) -> Model:
        made = transform(*arguments, **options)
        graph = made.graph.copy()
        b = Builder(graph)
        for entry in graph.output_entries:
            value, name = entry.input(0), entry.name
            if value.type.dtype.is_float:
                graph.remove(entry)
                graph.add_output(b.Mul(value, 1 + 1e-4), name)
        return made.with_graph(graph)

    return wrong


@pytest.mark.parametrize("check", TRANSFORMS)
def test_what_is_right_is_compared(check: str) -> None:
    before = sum(COMPARED.values())
    assert found_by(check) is None
    assert sum(COMPARED.values()) > before


@pytest.mark.parametrize(("check", "name"), [
    ("vmap", "vmap"), ("jacobian", "jacobian"), ("jacobian", "vjp"), ("jacobian", "jvp"), ("jacobian", "vmap"),
    ("hessian", "hessian"), ("hessian", "hvp"), ("hessian", "vmap"), ("nests", "grad"), ("nests", "jacobian"),
    ("nests", "checkpoint"), ("nests", "vjp"), ("nests", "jvp"), ("nests", "hvp"),
])
def test_a_wrong_number_is_seen(check: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_transforms, name, off(getattr(fuzz_transforms, name)))
    assert "is\n" in str(found_by(check)) or "checkpoint" in str(found_by(check))
