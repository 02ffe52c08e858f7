"""Tensors beside the msgpack file: a ``.safetensors`` file whose digest the map holds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from flowgrad.ir.errors import EngineError, ExternalDataError, SaveError
from flowgrad.ir.files import new_file, read_file
from flowgrad.ir.graph import Array
from flowgrad.ir.limits import Limits
from flowgrad.ir.literals import little_endian

EXTERNAL_BYTES = 1 << 32
"""Tensors of this size and more do not fit a msgpack binary."""

_PLAIN = frozenset(("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16",
                    "uint8", "bool"))


@dataclass(frozen=True)
class Weights:
    """A written weights file: its name, its digest, and the key of each array by ``id``."""

    file: str
    digest: bytes
    keys: dict[int, str]


def write_weights(beside: Path, tensors: Mapping[str, Array]) -> Weights:
    """Write ``tensors`` next to the file ``beside``, under a name made of its stem and their digest. Raises SaveError.

    Dtypes that safetensors lacks are kept as bytes.
    """
    library = _library()
    plain = {name: little_endian(a) if a.dtype.name in _PLAIN else _as_bytes(a) for name, a in tensors.items()}
    with new_file(beside) as new:
        try:
            library.save_file(plain, os.fspath(new.temporary))
        except _library_errors() as error:
            raise SaveError(f"cannot write the weights: {error}", code="safetensors", where=str(beside)) from error
        with new.temporary.open("rb") as file:
            digest = hashlib.file_digest(file, _hash).digest()
        name = f"{beside.stem[:80]}-{digest.hex()[:16]}.safetensors"
        new.finish(beside.parent / name)
    return Weights(name, digest, {id(a): n for n, a in tensors.items()})


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
        return dict(_library().load(bytes(data)))
    except _library_errors() as error:
        raise ExternalDataError(f"not a safetensors file: {error}", code="safetensors", where=name) from error


def _hash(data: Any = b"") -> Any:
    return hashlib.blake2b(data, digest_size=32)


def _as_bytes(array: Array) -> Array:
    return little_endian(array).reshape(-1).view(np.uint8)


def _library() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise EngineError("large tensors need safetensors: pip install 'flowgrad[weights]'", code="weights") from error
    return safetensors.numpy


def _library_errors() -> tuple[type[Exception], ...]:
    from safetensors import SafetensorError

    return (SafetensorError, KeyError, TypeError, ValueError)
