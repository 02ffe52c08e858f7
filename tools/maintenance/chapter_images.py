"""The images of docs/chapter*.md: the numbers that each shows, taken from the snippets of its page, and how it is drawn.

An image is an SVG that holds its numbers in its description, so that a test compares numbers, not lines. Drawing needs
matplotlib.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.files import write_text
from flowgrad.ir.graph import Array

Numbers = dict[str, list[float]]

SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "flowgrad", "font.size": 9, "axes.spines.top": False,
            "axes.spines.right": False}
FORWARD, BACKWARD = "#1f5fa8", "#c0392b"

DESCRIPTION = re.compile(r"<dc:description>(.*?)</dc:description>", re.DOTALL)


@dataclass(frozen=True)
class Image:
    """An image of a page: ``numbers`` takes what it shows from the names of the page's snippets, ``draw`` draws it."""

    name: str
    page: str
    numbers: Callable[[dict[str, Any]], Numbers]
    draw: Callable[[Any, Numbers, dict[str, Any]], Any]
    size: tuple[float, float]


def write_image(image: Image, namespace: dict[str, Any], folder: Path) -> bool:
    """Draw an image into a folder; return whether that changed the file."""
    import matplotlib
    from matplotlib.figure import Figure

    numbers, path = image.numbers(namespace), folder / image.name
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before and same_numbers(numbers_in(before), numbers):
        return False
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=image.size, layout="constrained")
        image.draw(figure, numbers, namespace)
        described = json.dumps({k: [float(f"{v:.6g}") for v in row] for k, row in numbers.items()})
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None, "Description": described})
    text = path.read_text(encoding="utf-8")
    write_text(path, "\n".join(line.rstrip() for line in text.splitlines()) + "\n")
    return True


def numbers_in(text: str) -> Numbers:
    """Return the numbers that an image holds."""
    found = DESCRIPTION.search(text)
    numbers: Numbers = json.loads(found[1].replace("&quot;", '"')) if found else {}
    return numbers


def same_numbers(one: Numbers, other: Numbers) -> bool:
    """Return whether two images show the same: to four digits; errors, partly of rounding, mostly to their magnitude."""
    return one.keys() == other.keys() and all(_same_row(name, np.array(one[name]), np.array(other[name])) for name in one)


def _same_row(name: str, one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    if name.startswith("error"):
        return bool(np.median(np.abs(np.log10(one) - np.log10(other))) < 1)
    return bool(np.allclose(one, other, rtol=1e-4, atol=1e-4 * float(np.abs(one).max())))


# ---- values forwards, errors backwards ------------------------------------------------------------------------------------

PLACES = {"x1": (0, 2), "x2": (0, 1), "one": (0, 0), "p": (1, 1.2), "q": (2, 0.5), "r": (3, 1.1), "y1": (4, 2.1),
          "y2": (4, 0.2)}
"""Where the units of the page's network are drawn."""


def _messages(namespace: dict[str, Any]) -> Numbers:
    found = namespace["found"]
    return {"z": [d["z"] for _, d in found.nodes(data=True)], "delta": [d.get("delta", 0.0) for _, d in found.nodes(data=True)],
            "gradient": [d["gradient"] for *_, d in found.edges(data=True)]}


def _draw_messages(figure: Any, numbers: Numbers, namespace: dict[str, Any]) -> None:
    axes, found = figure.add_subplot(), namespace["found"]
    for (i, j, _), gradient in zip(found.edges(data=True), numbers["gradient"], strict=True):
        axes.annotate("", PLACES[j], PLACES[i], arrowprops={"arrowstyle": "-|>", "color": "0.6", "shrinkA": 17, "shrinkB": 17,
                                                            "lw": 0.8})
        at = [a + (0.36 if j != "q" else 0.5) * (b - a) for a, b in zip(PLACES[i], PLACES[j], strict=True)]
        axes.text(*at, f"{gradient:.2f}", color=BACKWARD, fontsize=7, ha="center", va="center",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    for name, z, delta in zip(found.nodes, numbers["z"], numbers["delta"], strict=True):
        x, y = PLACES[name]
        axes.plot(x, y, "o", ms=25, mfc="white", mec="0.3", mew=0.8)
        axes.text(x, y, name, ha="center", va="center")
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
        axes.text(x, y + 0.18, f"z = {z:.2f}", color=FORWARD, ha="center", va="bottom", fontsize=8, bbox=box)
        if "delta" in found.nodes[name]:
            axes.text(x, y - 0.18, f"δ = {delta:.2f}", color=BACKWARD, ha="center", va="top", fontsize=8, bbox=box)
    axes.set_xlim(-0.35, 4.35)
    axes.set_ylim(-0.3, 2.5)
    axes.axis("off")


# ---- differences against the step -----------------------------------------------------------------------------------------

STEPS = 10.0 ** np.arange(-13, 0.25, 0.25)


def _steps(namespace: dict[str, Any]) -> Numbers:
    exact = namespace["exact"]
    found = {"step": STEPS.tolist()}
    for way in ("forward", "central"):
        errors = [abs(namespace[way]("w1", (0, 1), step) - exact) / abs(exact) for step in STEPS]
        found[f"error of {way} differences"] = np.maximum(errors, 1e-14).tolist()
    return found


def _draw_steps(figure: Any, numbers: Numbers, namespace: dict[str, Any]) -> None:
    axes = figure.add_subplot()
    for (name, row), color, mark in zip(list(numbers.items())[1:], (FORWARD, BACKWARD), "os", strict=True):
        axes.loglog(numbers["step"], row, mark + "-", color=color, ms=3, lw=0.8, label=name.removeprefix("error of "))
    axes.set_xlabel("step ε")
    axes.set_ylabel("relative error")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


# ---- the Hessian ----------------------------------------------------------------------------------------------------------


def _hessians(namespace: dict[str, Any]) -> Numbers:
    full, outer = namespace["H_start"], namespace["b_start"].T @ namespace["b_start"]
    squares = {"Hessian": full, "outer product": outer, "difference": full - outer}
    return {name: square.ravel().tolist() for name, square in squares.items()}


def _draw_hessians(figure: Any, numbers: Numbers, namespace: dict[str, Any]) -> None:
    most = max(abs(v) for row in numbers.values() for v in row)
    for axes, (name, row) in zip(figure.subplots(1, 3), numbers.items(), strict=True):
        square: Array = np.reshape(row, (int(np.sqrt(len(row))), -1))
        shown = axes.imshow(square, cmap="RdBu_r", vmin=-most, vmax=most)
        axes.set_title(name, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    figure.colorbar(shown, ax=figure.axes, shrink=0.8)


IMAGES = (
    Image("message_passing.svg", "chapter.md", _messages, _draw_messages, (6.4, 3.2)),
    Image("step_size.svg", "chapter.md", _steps, _draw_steps, (5.0, 3.0)),
    Image("hessian.svg", "chapter_matrices.md", _hessians, _draw_hessians, (6.4, 2.2)),
)
