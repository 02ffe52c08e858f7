"""Every command and snippet of the README runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"```(\w+)( notest)?\n(.*?)```", re.DOTALL)


def blocks(language: str) -> list[str]:
    return [body for found, skip, body in BLOCK.findall(README) if found == language and not skip]


def test_the_python_snippets_run_in_order(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    code = "\n".join(blocks("python")).replace("/tmp/", f"{tmp_path}/")
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "w1_grad" in result.stdout


def shell_lines() -> list[str]:
    return [line for body in blocks("sh") for line in body.splitlines() if line.strip()]


def test_the_shell_commands_run(tmp_path: Path) -> None:
    """Installing and running the whole suite is what .ci/run does with the same text; the rest runs here."""
    pytest.importorskip("onnxruntime")
    for line in shell_lines():
        for command in line.split(" && "):
            words = shlex.split(command.replace("/tmp/", f"{tmp_path}/"))
            if words[:3] == ["python", "-m", "pip"] or words[:3] == ["python", "-m", "pytest"]:
                continue
            module = {"flowgrad-run": "flowgrad.tools.run", "flowgrad": "flowgrad.tools.cli"}[words[0]]
            code = f"import sys; from {module} import main; sys.exit(main())"
            result = subprocess.run([sys.executable, "-c", code, *words[1:]], cwd=ROOT, capture_output=True, text=True,
                                    env={**os.environ, "PYTHONPATH": str(ROOT)})
            assert result.returncode == 0, f"{command}\n{result.stderr}"
