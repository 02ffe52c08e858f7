"""The fixed top level is importable, complete in a wheel, and layered."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("ir", "passes", "tools")
"""Folders at the top that are imported through flowgrad."""

MAINTENANCE = "flowgrad.tools.maintenance"
"""Fuzzing, golden files, measurements: for those who have the checkout. It is not shipped; nothing shipped uses it."""

ROOMS = (
    "flowgrad._checkout", "flowgrad.ir", "flowgrad.passes",
    "flowgrad.exchange", "flowgrad.runtime", "flowgrad.model", "flowgrad.transforms", "flowgrad.session", "flowgrad",
    "flowgrad.tools", MAINTENANCE, "flowgrad.__main__",
)
"""A room imports from itself and from those before it; what has no row of its own belongs to ``flowgrad``."""

CIRCLES: dict[frozenset[str], str] = {}
"""Groups of modules each of which needs all others, if only when a function is called; each with its reason."""

HEAVY = {"dask", "numba", "onnx", "onnxruntime", "safetensors", "scipy", "skl2onnx", "sklearn", "torch"}
"""Libraries that start-up does without."""


class Import(NamedTuple):
    """What is imported, and when: as the module starts, as a function is called, or for type checkers alone."""

    target: str
    when: Literal["start", "call", "types"]


@cache
def sources() -> dict[str, Path]:
    """Return every module of the checkout by name."""
    found = {}
    for room in (*LINKED, "flowgrad"):
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[0] == "flowgrad" and parts[1] in LINKED:
                continue  # through a link
            name = ".".join(parts if room == "flowgrad" else ("flowgrad", *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def shipped() -> dict[str, Path]:
    return {name: path for name, path in sources().items() if room_of(name) != MAINTENANCE}


def room_of(module: str) -> str:
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len)


def imports_of(text: str) -> Iterator[Import]:
    """Yield every import in the text of a module. Import of a module's own package, which Python adds, is left out."""
    def visit(node: ast.AST, when: Literal["start", "call", "types"]) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            whole = f"{node.module}"
            inner = [f"{whole}.{alias.name}" for alias in node.names]
            yield from (Import(name if name in sources() else whole, when) for name in inner)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                yield from visit(statement, "types")
            for statement in node.orelse:
                yield from visit(statement, when)
        else:
            is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                yield from visit(child, "call" if is_function and when == "start" else when)

    return visit(ast.parse(text), "start")


@cache
def all_imports() -> list[tuple[str, Import]]:
    return [(module, found) for module, path in sources().items() for found in imports_of(path.read_text())]


# ---- packages -----------------------------------------------------------------------------------------------------------


def test_packages_are_the_folders_with_an_init() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {module for module, path in shipped().items() if path.name == "__init__.py"}
    assert set(settings["tool"]["setuptools"]["packages"]) == found
    for path in sources().values():
        assert (path.parent / "__init__.py").is_file(), f"a folder without __init__.py is in no wheel: {path.parent}"


@pytest.mark.parametrize("room", LINKED)
def test_a_room_is_imported_only_through_flowgrad(room: str) -> None:
    result = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert f"import flowgrad.{room}, not {room}" in result.stderr


def test_a_wheel_holds_every_module_and_no_maintenance(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    checkout = tmp_path / "checkout"  # a build leaves files behind, and takes those that an older one left
    for room in (*LINKED, "flowgrad"):
        shutil.copytree(ROOT / room, checkout / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w"]
    subprocess.run([sys.executable, *command, str(tmp_path), str(checkout)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    found = {name for name in names if name.endswith(".py")}
    assert found == {_path_in_wheel(module, path) for module, path in shipped().items()}
    assert "flowgrad/py.typed" in names
    families = {path.parent.name for path in (ROOT / "ir/ops").glob("*/__init__.py")}
    assert families and all(f"flowgrad/ir/ops/{family}/__init__.py" in found for family in families)


def _path_in_wheel(module: str, path: Path) -> str:
    folders = module.replace(".", "/")
    return f"{folders}/__init__.py" if path.name == "__init__.py" else f"{folders}.py"


# ---- layers -------------------------------------------------------------------------------------------------------------


def test_imports_run_one_way() -> None:
    wrong = [f"{module} imports {target}" for module, (target, _) in all_imports()
             if target in sources() and ROOMS.index(room_of(target)) > ROOMS.index(room_of(module))]
    assert not wrong


def import_graph(*, lazy: bool) -> nx.DiGraph[str]:
    """Return which module imports which as it starts; with ``lazy`` also as its functions are called.

    What is imported by a name that is computed (the families of operators, the subcommands) is not in it.
    """
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(sources())
    wanted = {"start", "call"} if lazy else {"start"}
    graph.add_edges_from((module, target) for module, (target, when) in all_imports()
                         if target in sources() and when in wanted)
    return graph


def circles(graph: nx.DiGraph[str]) -> set[frozenset[str]]:
    alone = {module for module in graph if not graph.has_edge(module, module)}
    return {frozenset(c) for c in nx.strongly_connected_components(graph) if len(c) > 1 or not c <= alone}


def test_no_modules_need_each_other_to_start() -> None:
    assert circles(import_graph(lazy=False)) == set()


def test_modules_that_need_each_other_are_listed() -> None:
    assert circles(import_graph(lazy=True)) == set(CIRCLES)


def test_circles_are_found() -> None:
    graph = import_graph(lazy=True)
    module = "flowgrad.session"
    assert graph.has_edge(module, "flowgrad.model") and nx.has_path(graph, module, "flowgrad.ir.graph")
    graph.add_edge("flowgrad.ir.graph", module)
    (found,) = circles(graph)
    assert {module, "flowgrad.model", "flowgrad.ir.graph"} <= found


def test_imports_are_told_apart() -> None:
    text = """
from flowgrad import ir, load
if TYPE_CHECKING:
    import flowgrad.model
else:
    import a
try:
    import b
except ImportError:
    from flowgrad.ir.graph import Graph
class C:
    import c
    def f(self):
        import d
        if TYPE_CHECKING:
            import e
"""
    assert [tuple(found) for found in imports_of(text)] == [
        ("flowgrad.ir", "start"), ("flowgrad", "start"), ("flowgrad.model", "types"), ("a", "start"), ("b", "start"),
        ("flowgrad.ir.graph", "start"), ("c", "start"), ("d", "call"), ("e", "types"),
    ]


def test_every_module_has_a_room() -> None:
    assert room_of("flowgrad.model") == "flowgrad.model" and room_of("flowgrad.models") == "flowgrad"
    assert {room_of(module) for module in sources()} == set(ROOMS)


# ---- start-up -----------------------------------------------------------------------------------------------------------


def test_heavy_libraries_are_imported_lazily() -> None:
    wrong = [f"{module} imports {target}" for module, (target, when) in all_imports()
             if when == "start" and target.split(".")[0] in HEAVY and room_of(module) not in ("flowgrad.exchange", MAINTENANCE)]
    assert not wrong


@pytest.mark.parametrize("code", [
    "import flowgrad",
    "from flowgrad.tools.run import main; assert main(['tests/data/mlp_grad.msgpack']) == 0",
    "from flowgrad.tools.cli import main; assert main(['run', 'tests/data/mlp_grad.msgpack', '--json']) == 0",
])
def test_start_up_loads_no_heavy_library(code: str) -> None:
    code += f"; import sys; print('loaded', sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded []"


def test_names_are_imported_when_they_are_used() -> None:
    """What the package names for type checkers is what it imports, and nothing before it is asked for."""
    import flowgrad

    tree = ast.parse((ROOT / "flowgrad" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    named = {alias.name: alias.name if statement.module == "flowgrad" else str(statement.module).removeprefix("flowgrad.")
             for statement in block.body if isinstance(statement, ast.ImportFrom) for alias in statement.names}
    assert named == vars(flowgrad)["_WHERE"] and sorted(named) == vars(flowgrad)["__all__"]
    assert all(hasattr(flowgrad, name) for name in dir(flowgrad))
    with pytest.raises(AttributeError, match="no attribute 'graad'"):
        _ = vars(flowgrad)["__getattr__"]("graad")


@pytest.mark.parametrize(("code", "unused"), [
    ("import flowgrad", "numpy"),
    ("import flowgrad; flowgrad.load", "numpy.random"),
    ("from flowgrad.tools.run import main; assert main(['tests/data/mlp_grad.msgpack', '-q']) == 0", "flowgrad.passes.adjoint"),
    ("from flowgrad.tools.run import main; assert main(['tests/data/mlp_grad.msgpack', '-q']) == 0", "networkx"),
    ("from flowgrad.tools.run import main; assert main(['tests/data/mlp_grad.msgpack', '-q']) == 0", "zipfile"),
])
def test_what_is_not_used_is_not_loaded(code: str, unused: str) -> None:
    code = f"{code}; import sys; assert {unused!r} not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_an_import_loads_no_operators() -> None:
    """They take longer than all else, and a program that only loads and prints needs a few of them."""
    code = "import flowgrad, sys; print([m for m in sys.modules if m.startswith('flowgrad.ir.ops.elementwise')])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_files_tell_one_story() -> None:
    long = {str(p.relative_to(ROOT)): n for p in sources().values() if (n := len(p.read_text().splitlines())) > 640}
    assert not long
