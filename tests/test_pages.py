"""README.md, CONTRIBUTING.md and the pages of docs/: snippets and what they print, commands, images, links and anchors."""

from __future__ import annotations

import ast
import contextlib
import re
import shlex
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from flowgrad.ir.parse import ROLES
from flowgrad.tools.cli import SUBCOMMANDS
from flowgrad.tools.cli import main as flowgrad_command
from flowgrad.tools.maintenance.page_images import FOLDER, IMAGES, Image, numbers_in, same_numbers, write_image
from flowgrad.tools.maintenance.pages import BLOCK, PAGES, ROOT, TEMPORARY, run, text_of, with_outputs
from flowgrad.tools.run import main as run_command

MOST_BYTES = 100_000
WITH_SNIPPETS = [name for name in PAGES if BLOCK.search(text_of(name))]
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"```sh\n(.*?)```", re.DOTALL)
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:ir|passes|flowgrad|tools|tests|docs|examples)/[\w./]*)`")


@cache
def ran(name: str) -> tuple[list[str], dict[str, Any]]:
    """Return what the snippets of a page print, and the names that they have set; skip where a library is missing."""
    for library in libraries(text_of(name)):
        pytest.importorskip(library)
    namespace: dict[str, Any] = {"__name__": "page"}
    with TemporaryDirectory() as folder:
        return run(text_of(name), namespace, folder), namespace


def libraries(page: str) -> set[str]:
    nodes = [node for block in BLOCK.finditer(page) for node in ast.walk(ast.parse(block["code"]))]
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in named} | ({"skl2onnx"} if "from_sklearn(" in page else set())


@pytest.mark.parametrize("name", WITH_SNIPPETS)
@pytest.mark.filterwarnings("ignore::FutureWarning:sklearn")
def test_the_snippets_print_what_the_page_shows(name: str) -> None:
    blocks = list(BLOCK.finditer(text_of(name)))
    printed, _ = ran(name)
    for block, output in zip(blocks, printed, strict=True):
        assert signless(output) == signless(block["output"] or ""), block["code"]
        assert "False" not in output, block["code"]


def signless(text: str) -> str:
    """Return text in which zeros have no sign, which rounding decides."""
    return re.sub(r"-(0\.?0*)(?![\d.])", r" \1", text)


def test_outputs_are_written_under_their_snippets(tmp_path: Path) -> None:
    page = "# A\n\n```python\nx = 2\n```\n\n```python\nprint(x, '/tmp/y')\n```\n\n```text\n3 /tmp/y\n```\n\n```sh\nls\n```\n"
    assert with_outputs(page, {}, str(tmp_path)) == page.replace("3", "2")


# ---- commands -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PAGES if COMMAND.search(text_of(name))])
def test_the_shell_commands_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Installing and running the whole suite is what .ci/run does with the same text; the rest runs here."""
    lines = [line for body in COMMAND.findall(text_of(name)) for line in body.splitlines() if line.strip()]
    if any("ort" in line for line in lines):
        pytest.importorskip("onnxruntime")
    for line in lines:
        for command in line.split(" && "):
            words = shlex.split(command.replace(TEMPORARY, f"{tmp_path}/"), comments=True)
            if words[:2] == ["python", "-m"]:
                assert words[2] in ("pip", "pytest", "mkdocs"), command
                continue
            main = {"flowgrad-run": run_command, "flowgrad": flowgrad_command}[words[0]]
            with contextlib.chdir(ROOT):
                assert main(words[1:]) == 0, f"{command}\n{capsys.readouterr().err}"


# ---- images -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_an_image_shows_the_numbers_of_its_page(image: Image) -> None:
    text = (FOLDER / image.name).read_text(encoding="utf-8")
    numbers = image.numbers(ran(image.page)[1])
    assert same_numbers(numbers_in(text), numbers)
    assert len(text.encode()) < MOST_BYTES
    name = next(iter(numbers))
    assert not same_numbers({**numbers, name: [2 * v + 1 for v in numbers[name]]}, numbers)


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_an_image_can_be_drawn_anew(image: Image, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    namespace = ran(image.page)[1]
    assert write_image(image, namespace, tmp_path)
    made, kept = ((folder / image.name).read_text(encoding="utf-8") for folder in (tmp_path, FOLDER))
    assert same_numbers(numbers_in(made), numbers_in(kept))
    assert abs(len(made) - len(kept)) < len(kept) // 4
    assert not write_image(image, namespace, tmp_path)


def test_the_images_are_those_that_the_pages_show() -> None:
    shown = {(name, target) for name in PAGES for mark, target in LINK.findall(text_of(name)) if mark}
    assert shown == {(image.page, f"images/{image.name}") for image in IMAGES}
    assert {path.name for path in FOLDER.iterdir()} == {image.name for image in IMAGES}


# ---- links --------------------------------------------------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.*)$", FENCED.sub("", page), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", head).strip().lower() for head in heads)
    return {re.sub(r"\s", "-", head) for head in plain}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_pages_and_headings_that_exist(name: str) -> None:
    for _, target in LINK.findall(FENCED.sub("", text_of(name))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / name).parent / path if path else ROOT / name
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("name", PAGES)
def test_the_files_that_a_page_names_exist(name: str) -> None:
    for path in PATH.findall(text_of(name)):
        assert (ROOT / path).exists(), path


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {target for _, target in LINK.findall(text_of("README.md"))}
    assert {name for name in PAGES if name.startswith("docs/")} <= linked | {"docs/index.md", "docs/api.md"} | CHAPTERS


CHAPTERS = {"docs/chapter_matrices.md", "docs/chapter_automatic.md"}
"""Linked from the first page of the chapter."""


def test_the_pages_name_every_command_and_every_role_of_constants() -> None:
    assert all(f"`flowgrad {name} " in text_of("docs/commands.md") for name in SUBCOMMANDS if name != "run")
    assert all(f'"{role}"' in text_of("docs/ir.md") for role in ROLES)


def test_the_page_for_contributors_names_every_room() -> None:
    for room in ("ir/ops/", "passes/", "flowgrad/exchange/", "flowgrad/runtime/", "flowgrad/transforms/", "tools/", "tests/"):
        assert f"`{room}`" in text_of("CONTRIBUTING.md")
