"""The scripts in examples/ run as they stand, are short, and say what came out."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
SAID = {
    "attack": r"numpy: [3-9]\d% of 256 taken for another digit(.|\n)*ort: [3-9]\d% of 256",
    "constrained": r"free: \d\.\de-\d+; products up to 0\.5: 25\.5588, largest 0\.5000",
    "curve_fit": r"height, rate, floor = \[2\.5, -1\.31, 0\.4\]",
    "fine_tune_onnxruntime": r"step 199: loss 0\.0\d\d, at most \de-0[678] from PyTorch's curve",
    "molecule": r"5 atoms: energy",
    "onnxruntime_web": r"loss 14\.319 in onnxruntime-web, 14\.319 here; gradients differ by \de-0[678]",
    "per_example_gradients": r"their mean is the gradient of the batch: True",
    "resume": r"killed with -9; same bits: True",
    "saliency": r"gap of the shares to the score: 0\.[01]\d*\nwrote .*saliency\.png: 8 digits taken for \[2, 3, 9, 6, 2",
    "scikit_learn": r"LogisticRegression: \de-0[678] from the formula\nSVC: \de-0[67] from(.|\n)*Forest.*zero='allow'",
    "stiff_system": r"ends at \[1\.69",
}


def test_every_example_is_expected() -> None:
    assert {script.stem for script in SCRIPTS} == set(SAID)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
@pytest.mark.filterwarnings("ignore::FutureWarning:sklearn")
def test_an_example_runs_and_is_short(script: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = script.read_text()
    assert len(source.splitlines()) < 25
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            pytest.importorskip(str(name).partition(".")[0])
    if script.with_suffix(".mjs").exists() and not _node_has("onnxruntime-web"):
        pytest.skip("node and its package onnxruntime-web are not here (npm install onnxruntime-web, NODE_PATH)")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for examples that start themselves
    runpy.run_path(str(script))
    assert re.search(SAID[script.stem], capsys.readouterr().out)


def _node_has(package: str) -> bool:
    if shutil.which("node") is None:
        return False
    found = subprocess.run(["node", "-e", f"require.resolve({package!r})"], cwd=ROOT / "examples", capture_output=True)
    return found.returncode == 0
