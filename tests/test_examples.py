"""The scripts in examples/ run as they stand, are short, and say what came out."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
SAID = {
    "attack": "of 64 examples change their class",
    "curve_fit": "height, rate, floor = [2.5, -1.31, 0.4]",
    "fine_tune_onnxruntime": "step 199: loss 0.0",
    "molecule": "5 atoms: energy",
    "per_example_gradients": "their mean is the gradient of the batch: True",
    "resume": "the resumed run has the same bits: True",
    "saliency": "largest gap of the shares to the score: 0.0",
    "scikit_learn": "SVC mean slope by feature",
    "stiff_system": "ends at [1.69",
}


def test_every_example_is_expected() -> None:
    assert {script.stem for script in SCRIPTS} == set(SAID)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
@pytest.mark.filterwarnings("ignore::FutureWarning:sklearn")
def test_an_example_runs_and_is_short(script: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = script.read_text()
    assert len(source.splitlines()) <= 25
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            pytest.importorskip(str(name).partition(".")[0])
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(script))
    assert SAID[script.stem] in capsys.readouterr().out
