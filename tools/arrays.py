"""Arrays of the command line in and out: ``.npz`` and ``.npy``, read without trust and without pickle."""

from __future__ import annotations

import io
import lzma
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np

from flowgrad.ir.errors import FlowgradError, InputError, LimitError, LoadError, SaveError
from flowgrad.ir.files import new_file, open_file
from flowgrad.ir.graph import Array
from flowgrad.ir.limits import Limits
from flowgrad.tools.files import size_text, write_bytes_on_stdout, wrote

MOST_PACKED = 100
"""An archive that unpacks to more than this many times its size is refused, unless it is small."""

MOST_SMALL = 1 << 26

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What reading an archive raises for one that is damaged, encrypted, or packed in a way that Python does not know."""


def read_arrays(items: Iterable[str]) -> dict[str, Array]:
    """Read ``F.npz`` and ``NAME=F.npy`` arguments into arrays by name.

    Headers are checked against the file's size before anything is allocated; no pickle. Raises LoadError, InputError.
    """
    arrays: dict[str, Array] = {}
    for item in items:
        name, equals, path = item.partition("=")
        if equals:
            arrays[name] = _read_npy_file(Path(path))
        elif item.endswith(".npz"):
            arrays.update(_read_npz(Path(item)))
        else:
            raise InputError(f"--inputs takes F.npz or NAME=F.npy, got {item!r}", code="usage")
    return arrays


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with open_file(path) as stream, zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            _check_sizes(members, path)
            return {info.filename.removesuffix(".npy"): _read_member(archive, info, path) for info in members}
    except (OSError, *_DAMAGED) as error:
        raise LoadError(f"cannot read {os.fspath(path)!r}: {error}", code="npz") from error


def _check_sizes(members: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Raise LimitError for more than a run may hold, or for what packs far better than numbers do."""
    total, packed = sum(i.file_size for i in members), sum(i.compress_size for i in members)
    Limits.default().check("live_bytes", total, str(path))
    if total > MOST_SMALL and total > MOST_PACKED * packed:
        raise LimitError(f"{size_text(packed)} unpack to {size_text(total)}: more than {MOST_PACKED} times as much; save "
                         "the arrays unpacked (numpy.savez)", code="file_bytes", where=str(path))


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Array:
    with archive.open(info) as stream:
        return _read_npy(stream, info.file_size, f"{path}:{info.filename}")  # type: ignore[arg-type]


def _read_npy_file(path: Path) -> Array:
    try:
        with open_file(path) as stream:
            return _read_npy(stream, os.fstat(stream.fileno()).st_size, str(path))
    except OSError as error:
        raise LoadError(f"cannot read {os.fspath(path)!r}: {error.strerror}", code="npy") from error


def _read_npy(stream: BinaryIO, size: int, where: str) -> Array:
    try:
        head = stream.read(min(size, 10))
        length = int.from_bytes(head[8:10], "little")
        version = tuple(head[6:8])
        if head[:6] != b"\x93NUMPY" or version != (1, 0) or length > 10_000:
            hint = ": an .npz file is given without a NAME=" if where.endswith(".npz") else ""
            raise LoadError(f"{where} is no .npy file of version 1.0{hint}", code="npy")
        header = io.BytesIO(head + stream.read(length))
        np.lib.format.read_magic(header)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    except FlowgradError:
        raise
    except (*_DAMAGED, SyntaxError, TokenError, TypeError, LookupError, ArithmeticError) as error:
        raise LoadError(f"{where}: {error}", code="npy") from error
    if dtype.hasobject or dtype.itemsize * math.prod(shape) != size - 10 - length:
        raise LoadError(f"{where}: the header says {dtype}{list(shape)}, which is not what the file holds", code="npy")
    data: Any = np.frombuffer(_exactly(stream, size - 10 - length, where), dtype)
    return np.array(data.reshape(shape[::-1]).T if fortran else data.reshape(shape))


def _exactly(stream: BinaryIO, size: int, where: str) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise LoadError(f"{where} ends after {len(data)} of {size} bytes", code="npy")
    return data


def save_arrays(target: str, arrays: dict[str, Array]) -> str:
    """Write arrays as ``.npz`` under any names, whole or not at all; ``-`` is standard output. Return a sentence about it.

    Raises SaveError.
    """
    if target == "-":
        stream = io.BytesIO()
        _write_npz(stream, arrays)
        write_bytes_on_stdout(stream.getvalue(), "an .npz file")
        return f"wrote npz on standard output ({size_text(len(stream.getvalue()))})"
    path = Path(target)
    replacing = path.exists()
    with new_file(path) as new:
        _write_npz(new.stream, arrays)
        new.finish()
    return wrote(path, replacing)


def _write_npz(stream: BinaryIO, arrays: dict[str, Array]) -> None:
    with zipfile.ZipFile(stream, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            _write_member(archive, name, array)


def _write_member(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    try:
        with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=array.dtype == object)
    except ValueError as error:
        raise SaveError(f"the output {name!r} cannot be written as .npz: {error}", code="npz") from error
