"""What notebooks show of a model."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import flowgrad as fg
from flowgrad.ir.html import MOST_ROWS

MLP = Path(__file__).resolve().parent / "data" / "mlp.onnx"
HOSTILE = '<img src=x onerror=alert(1)>&"\u202e'


def shown(model: fg.Model) -> str:
    text = model._repr_html_()
    ET.fromstring(text)  # well-formed
    return text


def test_inputs_outputs_and_operators_are_shown() -> None:
    text = shown(fg.load(MLP))
    assert "<td>input</td><td>x</td><td>f32[N,4]</td>" in text
    assert "<td>output</td><td>logits</td>" in text
    assert "4 nodes, 268 bytes of constants" in text and "Gemm 2, Tanh 1" in text


@pytest.mark.parametrize("text", [
    'graph @"{}" (%x: f32[N]) -> (%y: f32[N]) {{ %y: f32[N] = Sin(%x) }}',
    'graph @g (%"{}": f32[N]) -> (%y: f32[N]) {{ %y: f32[N] = Sin(%"{}") }}',
    'graph @g (%x: f32["{}"]) -> (%y: f32["{}"]) {{ %y: f32["{}"] = Sin(%x) }}',
], ids=["graph", "input", "dim"])
def test_names_are_never_markup(text: str) -> None:
    name = HOSTILE.replace('"', '\\"').replace("\u202e", "\\u202e")
    found = shown(fg.load(text.replace("{}", name).replace("{{", "{").replace("}}", "}").encode()))
    assert "<img" not in found and "&lt;img" in found and "\u202e" not in found


def test_long_lists_are_cut() -> None:
    names = [f"%x{i}" for i in range(MOST_ROWS + 3)]
    text = f"graph @g ({', '.join(f'{n}: f32[]' for n in names)}) -> (%y: f32[]) {{ %y: f32[] = Sum({', '.join(names)}) }}"
    assert " and 3 more" in shown(fg.load(text.encode()))


def test_notes_are_shown() -> None:
    model = fg.load(MLP)
    model.notes = ("a <b> note",)
    assert "<li>a &lt;b&gt; note</li>" in shown(model)
