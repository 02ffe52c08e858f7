"""The fixed top level is importable, complete in a wheel, and layered."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("ir", "passes", "tools")


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_packages_are_the_folders_with_an_init() -> None:
    found = {"flowgrad"}
    for room in (*ROOMS, "flowgrad"):
        for init in (ROOT / room).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            if "flowgrad" in parts[:1] and parts[1:2] and parts[1] in ROOMS:
                continue  # a link to a room
            found.add(".".join(parts if parts[0] == "flowgrad" else ("flowgrad", *parts)))
    assert set(project()["tool"]["setuptools"]["packages"]) == found  # type: ignore[index]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_imported_only_through_flowgrad(room: str) -> None:
    result = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert f"import flowgrad.{room}, not {room}" in result.stderr


def test_a_wheel_holds_every_module(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"flowgrad/py.typed"}
    for room in ROOMS:
        expected |= {f"flowgrad/{p.relative_to(ROOT)}" for p in (ROOT / room).rglob("*.py")}
    expected |= {str(p.relative_to(ROOT)) for p in (ROOT / "flowgrad").glob("*.py")}
    for part in ("exchange", "runtime", "transforms"):
        expected |= {str(p.relative_to(ROOT)) for p in (ROOT / "flowgrad" / part).glob("*.py")}
    assert expected <= names


RANK = {"flowgrad.ir": 0, "flowgrad.passes": 1, "flowgrad": 2, "flowgrad.tools": 3}


def rank_of(module: str) -> int:
    for prefix in ("flowgrad.ir", "flowgrad.passes", "flowgrad.tools"):
        if module == prefix or module.startswith(prefix + "."):
            return RANK[prefix]
    return RANK["flowgrad"]


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Return (module, at module level) for every import in a file."""
    tree = ast.parse(path.read_text())
    top = {id(n) for n in tree.body}
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(f"{node.module}.{a.name}" if node.module == "flowgrad" else node.module, id(node) in top)
                      for a in node.names]
    return found


def sources() -> list[tuple[str, Path]]:
    listed = [(f"flowgrad.{p.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')}", p)
              for room in ROOMS for p in (ROOT / room).rglob("*.py")]
    folders = [ROOT / "flowgrad", *(ROOT / "flowgrad" / part for part in ("exchange", "runtime", "transforms"))]
    listed += [(".".join(p.relative_to(ROOT).with_suffix("").parts), p) for f in folders for p in f.glob("*.py")]
    return [(module.removesuffix(".__init__"), path) for module, path in listed]


def test_imports_run_one_way() -> None:
    wrong = [f"{module} imports {name}" for module, path in sources() if module != "flowgrad.__main__"
             for name, _ in imports_of(path)
             if name.split(".")[0] == "flowgrad" and rank_of(name) > rank_of(module)]
    assert not wrong


def test_heavy_libraries_are_imported_lazily() -> None:
    heavy = {"onnx", "onnxruntime", "numba", "dask", "rich", "torch", "safetensors", "scipy"}
    wrong = [f"{module} imports {name}" for module, path in sources() for name, top in imports_of(path)
             if top and name.split(".")[0] in heavy and not module.startswith("flowgrad.exchange.")]
    assert not wrong


def test_import_loads_no_onnx() -> None:
    code = "import flowgrad, sys; print([m for m in ('onnx', 'numba', 'dask', 'rich') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_files_tell_one_story() -> None:
    long = {str(p.relative_to(ROOT)): n for _, p in sources() if (n := len(p.read_text().splitlines())) > 640}
    assert not long
