"""The page of a graph: what it says, that it needs no network, and that no name of a file is markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.graph import Graph
from flowgrad.ir.types import FLOAT32, Type
from flowgrad.tools.cli import main

BATCH = {"x": np.ones((2, 4), np.float32), "target": np.array([0, 2])}


class Seen(HTMLParser):
    """Collects the tags of a page and its links; fails where tags do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("href", "src")]
        self.ids += [str(value) for name, value in attrs if name == "id"]


@pytest.fixture
def model() -> fg.Model:
    return fg.load("tests/data/mlp.onnx")


def test_a_page_has_every_node_with_its_origin_and_values(model: fg.Model, tmp_path: Path) -> None:
    gradient = fg.grad(model, "loss", "x")
    fg.view(gradient, model, tmp_path / "r.html", BATCH)
    text = (tmp_path / "r.html").read_text()
    seen = Seen(text)
    rows = [i for i in seen.ids if re.fullmatch(r"n\d+", i)]
    assert len(rows) == len(gradient.graph) == seen.tags.count("rect")
    assert sorted(seen.links) == sorted(f"#{row}" for row in rows), "boxes lead to rows, and nothing leads out of the page"
    assert "adjoint(%loss)" in text and "+ output %x_grad: f32[N,4]" in text and "- output %loss: f32[]" in text
    hidden = np.tanh(np.ones((2, 4)) @ model.params["w1"].value + model.params["b1"].value)
    assert f"{hidden.astype(np.float32).min():.4g} to {hidden.astype(np.float32).max():.4g}" in text


def test_names_of_a_file_are_no_markup(tmp_path: Path) -> None:
    graph = Graph("<script>alert(1)</script>")
    x = graph.add_input("<img src=x onerror=alert(1)>", Type(FLOAT32, (2,)))
    graph.add_output(x, "</table><b>")
    fg.view(fg.Model(graph), path=tmp_path / "r.html")
    seen = Seen((tmp_path / "r.html").read_text())
    assert seen.tags.count("script") == 1 and "img" not in seen.tags and "b" not in seen.tags


def test_large_graphs_are_listed_and_not_drawn(tmp_path: Path) -> None:
    body = "".join(f"%v{i + 1}: f32[2] = Sin(%v{i})\n" for i in range(500))
    fg.view(fg.load(f"graph @g (%v0: f32[2]) -> (%v500: f32[2]) {{ {body} }}".encode()), path=tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<svg" not in text and text.count("<tr id=n") == 500


def test_the_command_writes_the_page_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "r.html"
    assert main(["view", "tests/data/mlp.onnx", "-o", str(target), "--values", "--compare", "tests/data/loop.onnx"]) == 0
    assert f"wrote {target}" in capsys.readouterr().err and "differences" in target.read_text()
    assert main(["view", "tests/data/mlp.onnx", "-o", "/nowhere/r.html"]) == 7
