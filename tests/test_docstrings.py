"""The examples in the docstrings of what ``import flowgrad as fg`` offers: every one is there, and runs."""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg

ROOT = Path(__file__).resolve().parent.parent
FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


def public() -> Iterator[tuple[str, Any]]:
    """Yield what the package exports, the methods of Model, and the classes of its two modules of methods."""
    tree = ast.parse((ROOT / "flowgrad/__init__.py").read_text())
    names = [alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names if alias.asname]
    for name in names:
        thing = getattr(fg, name)
        if not name.startswith("_") and not inspect.ismodule(thing):
            yield name, thing
    for name, thing in vars(fg.Model).items():
        if not name.startswith("_") and inspect.getdoc(thing):
            yield f"Model.{name}", thing
    for module in (fg.explain, fg.attack):
        for name, thing in vars(module).items():
            if inspect.isclass(thing) and thing.__module__ == module.__name__ and not name.startswith("_") and name != "Method":
                yield f"{module.__name__.partition('.')[2]}.{name}", thing


PUBLIC = dict(public())


@pytest.mark.parametrize("name", PUBLIC)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    assert "Examples:\n    >>> " in text
    if "sklearn" in text:
        pytest.importorskip("skl2onnx")
    names = {"np": np, "fg": fg, "model": fg.load(ROOT / "tests/data/mlp.onnx"),
             "batch": {"x": np.ones((2, 4), np.float32), "target": np.array([0, 2])}}
    test = doctest.DocTestParser().get_doctest(text.replace("/tmp/", f"{tmp_path}/"), names, name, None, None)
    said: list[str] = []
    with contextlib.chdir(ROOT), fg.scoped():
        failed, tried = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert tried and not failed, "".join(said)


def test_the_page_of_the_api_has_all_of_them() -> None:
    page = (ROOT / "docs/api.md").read_text()
    for name in PUBLIC:
        owner, _, member = name.partition(".")
        assert f"::: flowgrad.{owner}\n" in page and (owner not in ("explain", "attack") or member in page), name
