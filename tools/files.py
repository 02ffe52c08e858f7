"""Files of the command line: graphs in and out, and what is said about files."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from flowgrad.ir.errors import InputError
from flowgrad.ir.files import open_file, read_stream, write_text
from flowgrad.ir.limits import Limits
from flowgrad.ir.roles import with_roles
from flowgrad.ir.text import large_constants
from flowgrad.model import Model, load
from flowgrad.passes.hooks import PIPELINE, WITH_DATA

HEADER_BYTES = 1 << 16

FORMS = ("ir", "msgpack", "onnx")

_EXTENT = re.compile(r"[0-9]{1,18}")

def add_loading(parser: argparse._ActionsContainer) -> None:
    """Declare the options of how a graph is loaded: fixed shapes, and limits, which hold for all that is done with it."""
    parser.add_argument("--limits", default="", metavar="LIMITS",
                        help="strict, or wall_seconds=60,live_bytes=2GiB,... (the fields of fg.Limits)")
    parser.add_argument("--input-shapes", action="append", default=[], metavar="SHAPE",
                        help="x:1,3,?,224 for an input, or N:4 for a named dim (repeatable)")


def load_graph(source: str, strict: bool = False, shapes: Sequence[str] = (), limits: str = "") -> Model:
    """Load GRAPH: a ``.msgpack``, ``.onnx`` or text file, or ``-`` for standard input; the rest as on the command line."""
    bounds = Limits.parse(limits) if limits else Limits.default()
    data = read_stream(sys.stdin.buffer, bounds, "standard input") if source == "-" else source
    return load(data, strict=strict, shapes=parse_shapes(shapes), limits=bounds)


def parse_shapes(items: Sequence[str]) -> dict[str, tuple[int | None, ...] | int]:
    """Parse ``x:1,3,?,224``, ``N:4`` and ``N=4`` arguments. Raises InputError."""
    return dict(_parse_shape(item) for item in items)


def _parse_shape(item: str) -> tuple[str, tuple[int | None, ...] | int]:
    name, colon, dims = item.rpartition(":")
    parts = [d.strip() for d in dims.split(",") if d.strip()]
    if colon and all(d == "?" or _EXTENT.fullmatch(d) for d in parts):
        return name, tuple(None if d == "?" else int(d) for d in parts)
    dim, equals, extent = item.rpartition("=")
    if equals and _EXTENT.fullmatch(extent):
        return dim, int(extent)
    raise InputError(f"--input-shapes takes NAME:1,3,224,224 (? for an extent that stays open) or DIM:1, got {item!r}",
                     code="usage")


def add_saving(parser: argparse._ActionsContainer) -> None:
    """Declare the options of how a graph is written."""
    parser.add_argument("--emit", choices=FORMS, help="the form of OUT (default: what its name ends in; of -, text)")
    parser.add_argument("--opset", type=int, help="opset stamp of an .onnx file, if higher than needed")


def form_of(target: str, emit: str | None) -> str:
    """Return the form in which OUT is written: "onnx", "msgpack" or "ir". Raises InputError if nothing tells."""
    if emit is not None or target == "-":
        return emit or "ir"
    form = {".txt": "ir"}.get(suffix := Path(target).suffix, suffix[1:])
    if form not in FORMS:
        raise InputError(f"cannot tell the form of {target!r}: end it in .onnx, .msgpack or .ir, or give --emit", code="file")
    return form


def save_graph(model: Model, target: str, opset: int | None = None, emit: str | None = None) -> str:
    """Write a model in the form that ``emit`` or the name of ``target`` says; return a sentence about it.

    ``-`` is standard output: the text form, or a binary one if ``emit`` says so and it is no terminal.
    """
    form = form_of(target, emit)
    if target == "-":
        return _save_on_stdout(model, form, opset)
    path = Path(target)
    replacing, left_out = path.exists(), ""
    if form == "onnx":
        model.to_onnx(path, opset=opset, passes="")  # the commands ran the passes that were asked for
    elif form == "msgpack":
        model.save(path)
    else:
        left_out = _write_text(path, model)
    return wrote(path, replacing) + left_out


def wrote(path: Path, replacing: bool = False) -> str:
    """Return the sentence about a file that was written."""
    return f"wrote {path} ({size_text(path.stat().st_size)}{', replacing the old file' if replacing else ''})"


def _save_on_stdout(model: Model, form: str, opset: int | None) -> str:
    if form == "ir":
        print(model)
        return ""
    data = packed(model) if form == "msgpack" else model.to_onnx(opset=opset, passes="").SerializeToString()
    write_bytes_on_stdout(data, f"a graph in the form {form}")
    return f"wrote {form} on standard output ({size_text(len(data))})"


def packed(model: Model) -> bytes:
    """Return the msgpack form of a model."""
    from flowgrad.ir.pack import pack

    return pack(with_roles(model.graph, model.roles))


def write_bytes_on_stdout(data: bytes, what: str) -> None:
    """Write bytes on standard output. Raises InputError if that is a terminal."""
    if sys.stdout.isatty():
        raise InputError(f"{what} is binary, and standard output is a terminal: lead it into a file or a pipe, or name a file",
                         code="usage")
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _write_text(path: Path, model: Model) -> str:
    """Write a model as text, and in its first line what text does not hold; return that for a note."""
    large = large_constants(model.graph)
    if not large:
        write_text(path, f"{model}\n")
        return ""
    said = f"{len(large)} large constants ({size_text(sum(a.nbytes for a in large.values()))})"
    write_text(path, f"# without the data of {said}\n{model}\n")
    return f", without the data of {said}: to load it again, write .msgpack or .onnx"


def reproducer(source: str) -> tuple[str | None, str]:
    """Return the pipeline and the graph file of a reproducer; (None, ``source``) for any other graph."""
    path = Path(source)
    if source == "-" or not path.is_file():
        return None, source
    with open_file(path) as file:
        head = file.read(HEADER_BYTES).decode("utf-8", "replace").splitlines()
    if not head or not head[0].startswith(PIPELINE):
        return None, source
    pipeline = head[0].removeprefix(PIPELINE).strip()
    data = next((line.removeprefix(WITH_DATA).strip() for line in head if line.startswith(WITH_DATA)), "")
    return pipeline, str(path.parent / Path(data).name) if data else source


def size_text(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return ""
