"""``flowgrad zoo FOLDER``: check models with reference gradients, one line an entry.

An entry is a folder with ``model.onnx``, ``data.npz`` (``in/``, ``out/``, ``ct/`` and ``grad/`` arrays) and ``meta.json``,
whose ``gradients`` list says how far rounding may go.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.errors import EngineError, FlowgradError, InputError, LoadError
from flowgrad.ir.graph import Array
from flowgrad.model import Model, load
from flowgrad.tools.arrays import read_arrays
from flowgrad.tools.notes import print_as_they_come
from flowgrad.transforms.derivatives import vjp


@dataclass(frozen=True)
class Verdict:
    """What came of one entry in one engine: "ok", "wrong" or "refused", how many gradients agree, and the reason."""

    entry: str
    engine: str
    status: str
    agreed: int
    total: int
    worst: float
    seconds: float
    reason: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "example: flowgrad zoo models/ --engines numpy,ort"
    parser.add_argument("folder", metavar="FOLDER", help="a folder of entries, or one entry")
    parser.add_argument("--entries", metavar="A,B", help="only these")
    parser.add_argument("--engines", default="numpy", metavar="A,B", help="numpy (default), ort (the exported model)")


def run(arguments: argparse.Namespace) -> int:
    """Check; exit code 1 if a gradient is wrong."""
    folders = entries(Path(arguments.folder), arguments.entries.split(",") if arguments.entries else None)
    found = (check_entry(folder, engine) for folder in folders for engine in arguments.engines.split(","))
    verdicts = print_as_they_come(found, line, arguments.json)
    return 1 if any(v.status == "wrong" for v in verdicts) else 0


def entries(folder: Path, names: list[str] | None = None) -> list[Path]:
    """Return the entry folders in ``folder``, those called ``names`` if given. Raises InputError if one is missing."""
    if (folder / "model.onnx").is_file():
        return [folder]
    found = {p.parent.name: p.parent for p in sorted(folder.glob("*/model.onnx"))}
    if not found:
        raise InputError(f"no entry with a model.onnx in {str(folder)!r}", code="file")
    for name in names or ():
        if name not in found:
            raise InputError(f"no entry {name!r} in {str(folder)!r}", code="name")
    return [found[name] for name in names or found]


def line(verdict: Verdict) -> str:
    """Return the printed form of a verdict."""
    text = f"{verdict.entry:28} {verdict.engine:6} {verdict.status:8} {verdict.agreed}/{verdict.total} gradients"
    text += f"  worst {verdict.worst:.3g} of the tolerance  {verdict.seconds:.2f} s"
    return f"{text}  {verdict.reason.splitlines()[0]}" if verdict.reason else text


def check_entry(folder: Path, engine: str = "numpy") -> Verdict:
    """Compare outputs and all gradients of one entry with its references."""
    started = time.perf_counter()
    meta, data = read_entry(folder)
    names = [r["name"] for r in meta["gradients"]]
    try:
        model = load(folder / "model.onnx")
        gradients = entry_gradients(model, meta, data, engine)
    except EngineError:
        raise
    except FlowgradError as error:
        return Verdict(folder.name, engine, "refused", 0, len(names), 0.0, time.perf_counter() - started, str(error))
    ratios = gradient_ratios(meta, data, gradients)
    bad = [name for name, ratio in ratios.items() if not ratio <= 1]
    return Verdict(folder.name, engine, "wrong" if bad else "ok", len(ratios) - len(bad), len(ratios),
                   max(ratios.values(), default=0.0), time.perf_counter() - started, ", ".join(bad[:4]))


def read_entry(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return meta.json and the arrays of an entry. Raises LoadError."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        _check_meta(meta)
        return meta, read_arrays([str(folder / "data.npz")])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise LoadError(f"cannot read the entry {str(folder)!r}: {error}", code="zoo") from error


def _check_meta(meta: dict[str, Any]) -> None:
    """Look at everything that is read later. Raises LookupError or TypeError for what is not there, or of another kind."""
    texts = [entry["name"] for entry in (*meta["inputs"], *meta["outputs"])]
    texts += [text for record in meta["gradients"] for part in _parts(record) for text in part]
    numbers = [record[key] for record in meta["gradients"] for key in ("max_abs", "floor")]
    cotangents = [output["cotangent"] for output in meta["outputs"]]
    if not all(isinstance(t, str) for t in texts) or not all(isinstance(n, (int, float)) for n in (*numbers, *cotangents)):
        raise TypeError("an entry of meta.json is of another kind than it should be")


def entry_names(meta: dict[str, Any]) -> list[str]:
    """Return everything that gradients are asked for: inputs, initializers, and the parts of sums."""
    names: dict[str, None] = {}
    for record in meta["gradients"]:
        names.update(dict.fromkeys(name for name, _ in _parts(record)))
    return list(names)


def entry_gradients(model: Model, meta: dict[str, Any], data: dict[str, Array], engine: str) -> dict[str, Array]:
    """Return the gradient of sum(out * ct) for every name that the entry lists."""
    outputs = [o["name"] for o in meta["outputs"] if o["cotangent"]]
    joint = vjp(model, outputs, entry_names(meta), zero="allow")
    feeds = {i["name"]: data["in/" + i["name"]] for i in meta["inputs"]}
    roles = joint.roles
    feeds.update({roles["cotangent", name, ""]: data["ct/" + name] for name in outputs})
    program = joint.compile(engine=engine)
    results = program.run({k: v for k, v in feeds.items() if k in {i.name for i in joint.inputs}})
    return {wrt: results[name] for (role, _, wrt), name in roles.items() if role == "grad"}


def gradient_ratios(meta: dict[str, Any], data: dict[str, Array], gradients: dict[str, Array]) -> dict[str, float]:
    """Return, for every reference gradient, the largest difference divided by what is allowed."""
    records = meta["gradients"]
    largest = max((r["max_abs"] for r in records), default=0.0)
    ratios = {}
    for record in records:
        reference = data["grad/" + record["name"]].astype(np.float64)
        allowed = max(1e-4 * record["max_abs"], 20 * record["floor"], 1e-7 * largest, 1e-300)
        got = _summed(record, gradients, reference)
        ratios[record["name"]] = float(np.abs(got - reference).max(initial=0.0) / allowed) if got is not None else np.inf
    return ratios


def _parts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, layout) of what a record sums: itself, or the copies of one tied weight."""
    return [(p["name"], p["how"]) for p in record["sum_of"]] if "sum_of" in record else [(record["name"], "same")]


def _summed(record: dict[str, Any], gradients: dict[str, Array], reference: Array) -> Array | None:
    total = np.zeros(reference.shape)
    for name, how in _parts(record):
        part = gradients[name].astype(np.float64)
        if how.startswith("perm"):
            part = part.transpose(np.argsort([int(axis) for axis in how[4:]]))
        if part.size != reference.size:
            return None
        total = total + part.reshape(reference.shape)
    return total
