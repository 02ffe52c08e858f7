"""``python -m flowgrad.tools.maintenance.pages [NAME ...]``: write anew what the snippets of the pages print, and their images.

The pages are README.md, CONTRIBUTING.md and docs/*.md. A NAME is the path of one from the root of the checkout. The images
need matplotlib (the extra ``docs``); without it they are left as they are. Read the diff.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.files import write_text
from flowgrad.ir.registry import scoped

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))

BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)
"""A snippet, and what it prints if it prints anything."""

TEMPORARY = "/tmp/"
"""Where snippets write files; a run puts another folder there."""


def text_of(name: str) -> str:
    """Return the text of a page."""
    return (ROOT / name).read_text(encoding="utf-8")


def run(page: str, namespace: dict[str, Any], folder: str) -> list[str]:
    """Run the snippets of a page in order in one namespace, at the root of the checkout; return what each prints.

    Files that they write below ``TEMPORARY`` go to ``folder``. What they register or set is taken back.
    """
    found = []
    with contextlib.chdir(ROOT), np.printoptions(), scoped():
        for number, block in enumerate(BLOCK.finditer(page), 1):
            stream, code = io.StringIO(), block["code"].replace(TEMPORARY, f"{folder}/")
            with contextlib.redirect_stdout(stream):
                exec(compile(code, f"snippet {number}", "exec"), namespace)
            printed = stream.getvalue().replace(f"{folder}/", TEMPORARY)
            found.append("".join(line.rstrip() + "\n" for line in printed.splitlines()))
    return found


def with_outputs(page: str, namespace: dict[str, Any], folder: str) -> str:
    """Return a page with what its snippets, run in a namespace, print now."""
    printed = iter(run(page, namespace, folder))

    def written(block: re.Match[str]) -> str:
        output = next(printed)
        return f"```python\n{block['code']}```\n" + (f"\n```text\n{output}```\n" if output else "")

    return BLOCK.sub(written, page)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages and images that have changed."""
    namespaces: dict[str, dict[str, Any]] = {}
    for name in arguments or PAGES:
        namespaces[name] = {"__name__": "page"}
        page = text_of(name)
        with tempfile.TemporaryDirectory() as folder:
            made = with_outputs(page, namespaces[name], folder)
        if made != page:
            write_text(ROOT / name, made)
            print(f"updated {name}")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not there: the images stay as they are")
        return 0
    from flowgrad.tools.maintenance.page_images import FOLDER, IMAGES, write_image

    for image in IMAGES:
        if image.page in namespaces and write_image(image, namespaces[image.page], FOLDER):
            print(f"updated {image.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
