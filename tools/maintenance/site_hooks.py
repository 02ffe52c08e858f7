"""Hooks of mkdocs.yml: what the site has beside docs/ (CONTRIBUTING.md, CHANGELOG.md, examples/), and formulas as MathML.

Pages link as they do in the repository, ``../CONTRIBUTING.md``; here the links are turned to where the site has these files:
the examples are the headings of one page.
Formulas become MathML as the site is built, so that readers need no script and no network for them.
"""

from __future__ import annotations

import ast
import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[2]
BESIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_UP, _DOWN = re.compile(r"\]\(\.\./(\w+\.md)"), re.compile(r"\]\(docs/")
_EXAMPLE = re.compile(r"\]\(\.\./examples/(\w+)\.py\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that stand beside docs/."""
    from mkdocs.structure.files import File

    for name, page in BESIDE.items():
        text = _DOWN.sub("](", (ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "examples.md", content=_examples()))
    return files


def _examples() -> str:
    """Return a page with all scripts of examples/, each under what its docstring says."""
    parts = ["# Examples\n\nThe scripts in `examples/`, run by a test in a checkout.\n"]
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        said, code = ast.get_docstring(ast.parse(text)) or "", text.partition('"""\n')[2].strip()
        parts.append(f"## {path.stem}\n\n{said}\n\n```python\n{code}\n```\n")
    return "\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links to files beside docs/."""
    markdown = _EXAMPLE.sub(r"](examples.md#\1)", markdown)
    return _UP.sub(lambda found: f"]({BESIDE[found[1]]}", markdown)


def on_page_content(text: str, **_: Any) -> str:
    """Turn formulas into MathML."""
    return _FORMULA.sub(_as_mathml, text)


def _as_mathml(found: re.Match[str]) -> str:
    tag, formula = found.groups()
    made: str = convert(html.unescape(formula), display="block" if tag == "div" else "inline")
    return f"<div class=\"formula\">{made}</div>" if tag == "div" else made
