"""The command that checks all derivatives of whole models: what it finds right, and that a wrong number is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array
from flowgrad.model import Model
from flowgrad.tools.maintenance import every_derivative
from flowgrad.tools.maintenance.every_derivative import check, main, subject

pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"difference", "dot", "symmetry", "gradient", "each", "float32", "onnxruntime"}


def regression(extent: str = "N") -> tuple[Model, dict[str, Array]]:
    """Return tanh(x w) with weights of rank 2, and a batch of two examples."""
    model = fg.load(f"""graph @g (%x: f32[{extent}, 3]) -> (%y: f32[{extent}, 2])
        initializers (%w: f32[3, 2] = [[0.1, -0.2], [0.3, 0.4], [-0.5, 0.6]]) {{
        %a: f32[{extent}, 2] = MatMul(%x, %w)
        %y: f32[{extent}, 2] = Tanh(%a)
    }}""".encode())
    return model, {"x": np.array([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]], np.float32)}


@pytest.mark.parametrize(("extent", "each"), [("N", "example"), ("2", "batch")])
def test_what_is_right(extent: str, each: str) -> None:
    model, feeds = regression(extent)
    row = check(subject("regression", model, feeds, ["y"]))
    assert (row.wrong, row.refused, row.each, row.scans) == ([], [], each, 0), str(row)
    assert set(row.worst) == KINDS


def off(transform: Callable[..., Model], suffix: str) -> Callable[..., Model]:
    """Return the transform, its results that end so a little too large."""
    def wrong(*arguments: Any, **options: Any) -> Model:
        made = transform(*arguments, **options)
        graph = made.graph.copy()
        b = Builder(graph)
        for entry in graph.output_entries:
            if entry.name.endswith(suffix):
                value, name = entry.input(0), entry.name
                graph.remove(entry)
                graph.add_output(b.Mul(value, 1 + 1e-3), name)
        return made.with_graph(graph)

    return wrong


@pytest.mark.parametrize(("name", "suffix", "kinds"), [
    ("jvp", "_tangent", {"difference", "dot"}), ("hvp", "_hvp", {"difference"}), ("vmap", "_grad", {"each"}),
    ("hvp", "_grad", {"gradient"}),
])
def test_a_wrong_derivative_is_seen(name: str, suffix: str, kinds: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every_derivative, name, off(getattr(every_derivative, name), suffix))
    model, feeds = regression()
    row = check(subject("regression", model, feeds, ["y"]))
    assert {text.split(": ")[1].split(" ")[0] for text in row.wrong} == kinds, row.wrong


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = regression()
    model.to_onnx(tmp_path / "regression.onnx")
    assert main([str(tmp_path / "regression.onnx"), "--times"]) == 0
    shown = capsys.readouterr().out
    assert "regression" in shown and "median of hvp/model" in shown and "median of 64 gradients/sum" in shown


def test_what_is_refused_is_named() -> None:
    model = fg.load(b"""graph @g (%x: f32[N, 2]) -> (%y: f32[N, 2]) initializers (%w: f32[2] = [0.1, -0.2]) {
        %a: f32[N, 2] = Mul(%x, %w)
        %y: f32[N, 2] = Round(%a)
    }""")
    row = check(subject("steps", model, {"x": np.ones((2, 2), np.float32)}, ["y"]))
    assert row.refused and all("Round" in text for text in row.refused), row.refused


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_beside_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from flowgrad.tools.maintenance.torch_nodes import MIRRORS

    model, feeds = regression()
    row = check(subject("regression", model, feeds, ["y"]), torch=True)
    assert (row.wrong, row.refused, row.notes) == ([], [], []) and set(row.worst) == {*KINDS, "torch"}, str(row)
    right = MIRRORS["Tanh"]
    monkeypatch.setitem(MIRRORS, "Tanh", lambda call, x: right(call, x) * (1 + 1e-6))
    row = check(subject("regression", model, feeds, ["y"]), torch=True)
    assert {text.split(": ")[1].split(" ")[0] for text in row.wrong} == {"torch"} and len(row.wrong) == 7, row.wrong
    monkeypatch.delitem(MIRRORS, "Tanh")
    row = check(subject("regression", model, feeds, ["y"]), torch=True)
    assert not row.wrong and len(row.notes) == 3 and all("NoMirror: Tanh" in note for note in row.notes), str(row)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_matrices_are_those_of_torch_func() -> None:
    """The Jacobian in both modes and the Hessian of a network, of one example and of each of many."""
    pytest.importorskip("torch")
    from flowgrad.tools.maintenance.torch_func import Mirrored

    model = fg.load(ROOT / "tests" / "data" / "mlp.onnx").astype("float64")
    rng = np.random.default_rng(0)
    batch = {"x": rng.standard_normal((5, 4)), "target": rng.integers(0, 3, 5)}
    one, first = fg.unbatch(model), {name: array[0] for name, array in batch.items()}
    weights = [p.name for p in model.params if p.included]
    theirs = Mirrored(one.graph, first, ["x", *weights])
    for forward in (False, True):
        found = fg.jacobian(one, "logits", ["x", *weights], mode="fwd" if forward else "rev")(first)
        for x, matrix in theirs.jacobian("logits", forward=forward).items():
            np.testing.assert_allclose(found[f"logits_{x}_jacobian"], matrix, rtol=1e-12, atol=1e-14)
    found = fg.hessian(one, "loss", ["x", *weights])(first)
    for (x, u), matrix in theirs.hessian("loss").items():
        np.testing.assert_allclose(found[f"{x}_{u}_hessian"], matrix, rtol=1e-11, atol=1e-14)
    found = fg.vmap(fg.grad(one, "loss", ["x", *weights]))(batch)
    for x, each in theirs.each("loss", batch).items():
        np.testing.assert_allclose(found[f"{x}_grad"], each, rtol=1e-12, atol=1e-14)
