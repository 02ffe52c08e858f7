"""CONTRIBUTING.md: its snippets run, in a scope, and the files it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PATHS = sorted(set(re.findall(r"`((?:ir|passes|flowgrad|tools|tests)/[\w./]*)`", TEXT)))


def test_the_snippets_run_in_order() -> None:
    code = "\n".join(SNIPPETS) + """
x = np.array([-1.0, 0.5, 2.0])
plus = fg.load(b"graph @g (%x: f64[3]) -> (%y: f64[3]) { %y: f64[3] = SquarePlus(%x) }")
report = fg.gradcheck(plus, {"x": x})
assert report, str(report)
print(report)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "= Abs(%x)" in result.stdout


@pytest.mark.parametrize("path", PATHS)
def test_the_files_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_page_names_every_room() -> None:
    for room in ("ir/ops/", "passes/", "flowgrad/exchange/", "flowgrad/runtime/", "flowgrad/transforms/", "tools/", "tests/"):
        assert f"`{room}`" in TEXT
