"""The images of the pages: the numbers that each shows, taken from the snippets of its page, and how it is drawn.

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

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images"

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


# ---- pictures and what is said about them ---------------------------------------------------------------------------------


def _flat(*arrays: Array) -> list[float]:
    return [float(v) for a in arrays for v in np.ravel(a)]


def _explained(namespace: dict[str, Any]) -> Numbers:
    rows = {"the picture": "x", "Saliency": "saliency", "SmoothGrad": "smooth", "IntegratedGradients": "shares",
            "LayerGradCam": "places"}
    return {title: _flat(namespace[name]) for title, name in rows.items()}


def _draw_explained(figure: Any, numbers: Numbers, namespace: dict[str, Any]) -> None:
    grid = figure.subplots(3, len(numbers), gridspec_kw={"wspace": 0.06, "hspace": 0.06})
    for column, (title, row) in enumerate(numbers.items()):
        squares = np.reshape(row, (3, int(np.sqrt(len(row) / 3)), -1))
        for axes, square in zip(grid[:, column], squares, strict=True):
            if title in ("the picture", "Saliency", "SmoothGrad"):
                _show(axes, square, "gray" if title == "the picture" else "magma", 0, square.max())
            else:
                _show(axes, square, "RdBu_r", -np.abs(square).max(), np.abs(square).max())
        grid[0, column].set_title(title, fontsize=8)


def _show(axes: Any, square: Array, colors: str, low: float, high: float) -> None:
    axes.imshow(square, cmap=colors, vmin=low, vmax=high, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _attacked(namespace: dict[str, Any]) -> Numbers:
    """Where rounding decides the sign of a slope, a pixel moves the other way: what was added is drawn, but not held."""
    chosen, names = _fooled(namespace)
    return {"the picture": _flat(namespace["x"][chosen]), "taken for": _flat(names)}


def _fooled(namespace: dict[str, Any]) -> tuple[list[int], Array]:
    """Return one example of each class that is taken for another, and for which."""
    names = namespace["model"](x=namespace["moved"])["logits"].argmax(1)
    chosen = [int(np.flatnonzero((namespace["labels"] == kind) & (names != kind))[0]) for kind in range(3)]
    return chosen, names[chosen]


def _draw_attacked(figure: Any, numbers: Numbers, namespace: dict[str, Any]) -> None:
    chosen, taken = _fooled(namespace)
    before, after = namespace["x"][chosen, 0], namespace["moved"][chosen, 0]
    grid, names = figure.subplots(3, 3), ("a disc", "a square", "a cross")
    for row in range(3):
        for column, square in enumerate((before[row], after[row] - before[row], after[row])):
            _show(grid[row, column], square, *(("RdBu_r", -0.06, 0.06) if column == 1 else ("gray", 0, 1)))
        grid[row, 0].set_xlabel(names[row], fontsize=8)
        grid[row, 2].set_xlabel(names[taken[row]], fontsize=8)
    for column, title in enumerate(("the picture", "what was added", "the sum")):
        grid[0, column].set_title(title, fontsize=9)


# ---- curves ---------------------------------------------------------------------------------------------------------------


def _trained(namespace: dict[str, Any]) -> Numbers:
    losses = np.reshape(namespace["fitted"].losses, (-1, 10)).mean(1)
    return {"step": [10.0 * i + 5 for i in range(len(losses))], "error of the fit": losses.tolist()}


def _draw_trained(figure: Any, numbers: Numbers, namespace: dict[str, Any]) -> None:
    axes = figure.add_subplot()
    axes.plot(numbers["step"], numbers["error of the fit"], color=FORWARD, lw=1.2)
    axes.set_ylim(0)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, mean of ten steps")
    axes.grid(alpha=0.3)


def _settled(namespace: dict[str, Any]) -> Numbers:
    return {"frequency": np.sqrt(np.clip(namespace["squares"], 0, None)).tolist(), "energy": namespace["energies"][:10]}


def _draw_settled(figure: Any, numbers: Numbers, namespace: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    left.plot(numbers["energy"], "o-", color=FORWARD, ms=3, lw=0.8)
    left.set_xlabel("step of BFGS")
    left.set_ylabel("energy")
    right.plot(range(1, 22), numbers["frequency"], "o", color=BACKWARD, ms=4)
    right.set_xlabel("mode")
    right.set_ylabel("frequency")
    for axes in (left, right):
        axes.grid(alpha=0.3)


def _fitted(namespace: dict[str, Any]) -> Numbers:
    return {"t": namespace["t"].tolist(), "measured": namespace["measured"].tolist(), "p": namespace["fit"].x.tolist()}


def _draw_fitted(figure: Any, numbers: Numbers, namespace: dict[str, Any]) -> None:
    axes, (height, rate, floor), t = figure.add_subplot(), numbers["p"], np.linspace(0, 3, 100)
    axes.plot(numbers["t"], numbers["measured"], "o", color=BACKWARD, ms=3, label="measured")
    axes.plot(t, height * np.exp(rate * t) + floor, color=FORWARD, lw=1.2, label="fitted")
    axes.set_xlabel("t")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)


IMAGES = (
    Image("message_passing.svg", "docs/chapter.md", _messages, _draw_messages, (6.4, 3.2)),
    Image("step_size.svg", "docs/chapter.md", _steps, _draw_steps, (5.0, 3.0)),
    Image("hessian.svg", "docs/chapter_matrices.md", _hessians, _draw_hessians, (6.4, 2.2)),
    Image("training.svg", "docs/train.md", _trained, _draw_trained, (5.0, 2.6)),
    Image("explain.svg", "docs/explain.md", _explained, _draw_explained, (6.4, 3.9)),
    Image("attack.svg", "docs/attack.md", _attacked, _draw_attacked, (4.4, 4.6)),
    Image("forces.svg", "docs/forces.md", _settled, _draw_settled, (6.4, 2.6)),
    Image("fit.svg", "docs/optimise.md", _fitted, _draw_fitted, (5.0, 2.8)),
)
