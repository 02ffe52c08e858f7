"""``python -m flowgrad.tools.maintenance.chapter``: write anew what the snippets of docs/chapter*.md print, and their images.

The images need matplotlib (the extra ``docs``); without it they are left as they are. Read the diff.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowgrad.ir.files import write_text

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("chapter.md", "chapter_matrices.md", "chapter_automatic.md")

BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)
"""A snippet, and what it prints if it prints anything."""


def run(page: str, namespace: dict[str, Any]) -> list[str]:
    """Run the snippets of a page in order in one namespace; return what each prints."""
    found = []
    for number, block in enumerate(BLOCK.finditer(page), 1):
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            exec(compile(block["code"], f"snippet {number}", "exec"), namespace)
        found.append("".join(line.rstrip() + "\n" for line in stream.getvalue().splitlines()))
    return found


def with_outputs(page: str, namespace: dict[str, Any]) -> str:
    """Return a page with what its snippets, run in a namespace, print now."""
    printed = iter(run(page, namespace))

    def written(block: re.Match[str]) -> str:
        output = next(printed)
        return f"```python\n{block['code']}```\n" + (f"\n```text\n{output}```\n" if output else "")

    return BLOCK.sub(written, page)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages and images that have changed."""
    namespaces: dict[str, dict[str, Any]] = {}
    for name in arguments or PAGES:
        namespaces[name] = {"__name__": "chapter"}
        path = DOCS / name
        page = path.read_text(encoding="utf-8")
        made = with_outputs(page, namespaces[name])
        if made != page:
            write_text(path, made)
            print(f"updated {name}")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not there: the images stay as they are")
        return 0
    from flowgrad.tools.maintenance.chapter_images import IMAGES, write_image

    for image in IMAGES:
        if image.page in namespaces and write_image(image, namespaces[image.page], DOCS / "images"):
            print(f"updated {image.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
