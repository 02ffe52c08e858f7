"""Tensors beside the msgpack file: a ``.safetensors`` file whose digest the map holds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from flowgrad.ir.errors import EngineError, ExternalDataError, SaveError
from flowgrad.ir.files import new_file, read_file
from flowgrad.ir.graph import Array
from flowgrad.ir.limits import Limits
from flowgrad.ir.literals import little_endian

EXTERNAL_BYTES = 1 << 32
"""Tensors of this size and more do not fit a msgpack binary."""

_PLAIN = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
          "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL"}
"""What safetensors calls the dtypes that it has."""

_ALIGNMENT = 8


@dataclass(frozen=True)
class Weights:
    """A written weights file: its name, its digest, and the key of each array by ``id``."""

    file: str
    digest: bytes
    keys: dict[int, str]


def write_weights(beside: Path, tensors: Mapping[str, Array]) -> Weights:
    """Write ``tensors`` next to the file ``beside``, under a name made of its stem and their digest. Raises SaveError.

    Dtypes that safetensors lacks are kept as bytes. The library itself would write a file of its own, which other
    processes that save here could not know for one in the making.
    """
    plain = {name: little_endian(a) if a.dtype.name in _PLAIN else _as_bytes(a) for name, a in tensors.items()}
    with new_file(beside) as new:
        digest = _write(new.stream, plain)
        name = f"{beside.stem[:80]}-{digest.hex()[:16]}.safetensors"
        new.finish(beside.parent / name)
    return Weights(name, digest, {id(a): n for n, a in tensors.items()})


def _write(stream: BinaryIO, tensors: Mapping[str, Array]) -> bytes:
    """Write the safetensors form (length of the header, JSON, elements; widest dtypes first) and return its digest."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    head, at = {}, 0
    for name, array in ordered:
        head[name] = {"dtype": _PLAIN[array.dtype.name], "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    import json

    try:
        text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise SaveError(f"a tensor has a name that is no text: {error}", code="name") from error
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = _hash()
    pieces: list[Any] = [len(text).to_bytes(8, "little"), text, *(_as_bytes(a).data for _, a in ordered)]
    for piece in pieces:
        stream.write(piece)
        digest.update(piece)
    return bytes(digest.digest())


def read_weights(directory: Path, name: str, digest: bytes, limits: Limits) -> dict[str, Array]:
    """Return the tensors of a weights file that lies in ``directory`` itself and has the given digest.

    Raises ExternalDataError for any other name, a link, or other contents.
    """
    if not name or name != os.path.basename(name) or name in (".", "..") or "\0" in name or not name.endswith(
        ".safetensors"
    ):
        raise ExternalDataError(f"{name!r} is no name of a weights file in the same directory", code="path")
    data = read_file(directory / name, limits, follow=False)
    if _hash(data).digest() != digest:
        raise ExternalDataError("the weights file is not the one that was saved with the graph", code="digest",
                                where=name)
    try:
        return dict(safetensors_library("large tensors").load(bytes(data)))
    except safetensors_errors() as error:
        raise ExternalDataError(f"not a safetensors file: {error}", code="safetensors", where=name) from error


def _hash(data: Any = b"") -> Any:
    return hashlib.blake2b(data, digest_size=32)


def _as_bytes(array: Array) -> Array:
    return little_endian(array).reshape(-1).view(np.uint8)


def safetensors_library(what: str) -> ModuleType:
    """Return safetensors.numpy, which ``what`` need; EngineError where it is not installed."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise EngineError(f"{what} need safetensors: pip install 'flowgrad[weights]'", code="weights") from error
    return safetensors.numpy


def safetensors_errors() -> tuple[type[Exception], ...]:
    """Return what the library raises, and what its results raise, for a file that is none of its form."""
    from safetensors import SafetensorError

    return (SafetensorError, KeyError, TypeError, ValueError)
