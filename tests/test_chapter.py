"""The pages of docs/chapter*.md: what their snippets print, the images that they show, and their links."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from flowgrad.tools.maintenance.chapter import BLOCK, DOCS, PAGES, run, with_outputs
from flowgrad.tools.maintenance.chapter_images import IMAGES, Image, numbers_in, same_numbers, write_image

MOST_BYTES = 60_000


@cache
def ran(name: str) -> tuple[list[str], dict[str, Any]]:
    """Return what the snippets of a page print, and the names that they have set."""
    namespace: dict[str, Any] = {"__name__": "chapter"}
    return run((DOCS / name).read_text(encoding="utf-8"), namespace), namespace


@pytest.mark.parametrize("name", PAGES)
def test_the_snippets_print_what_the_page_shows(name: str) -> None:
    blocks = list(BLOCK.finditer((DOCS / name).read_text(encoding="utf-8")))
    printed, _ = ran(name)
    assert len(blocks) > 8
    for block, output in zip(blocks, printed, strict=True):
        assert signless(output) == signless(block["output"] or ""), block["code"]
        assert "False" not in output, block["code"]


def signless(text: str) -> str:
    """Return text in which zeros have no sign, which rounding decides."""
    return re.sub(r"-(0\.?0*)(?![\d.])", r" \1", text)


def test_outputs_are_written_under_their_snippets() -> None:
    page = "# A\n\n```python\nx = 2\n```\n\n```python\nprint(x)\n```\n\n```text\n3\n```\n\n```sh\nls\n```\n"
    assert with_outputs(page, {}) == page.replace("3", "2")


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_an_image_shows_the_numbers_of_its_page(image: Image) -> None:
    text = (DOCS / "images" / image.name).read_text(encoding="utf-8")
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
    made, kept = ((folder / image.name).read_text(encoding="utf-8") for folder in (tmp_path, DOCS / "images"))
    assert same_numbers(numbers_in(made), numbers_in(kept))
    assert abs(len(made) - len(kept)) < len(kept) // 4
    assert not write_image(image, namespace, tmp_path)


def test_every_image_and_page_is_linked() -> None:
    pages = {name: (DOCS / name).read_text(encoding="utf-8") for name in PAGES}
    linked = {target for page in pages.values() for target in re.findall(r"\]\(([\w/]+\.(?:md|svg))\)", page)}
    assert linked == {*PAGES, *(f"images/{image.name}" for image in IMAGES)}
    for target in linked:
        assert (DOCS / target).exists()
    assert {path.name for path in (DOCS / "images").iterdir()} == {image.name for image in IMAGES}
