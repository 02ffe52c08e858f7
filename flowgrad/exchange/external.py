"""Tensors stored outside the model file: opened beneath its folder, by descriptor, or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from flowgrad.ir.errors import ExternalDataError

_KEYS = {"location", "offset", "length", "checksum"}
_CHUNK = 1 << 30
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
"""How folders are opened: to look beneath them, which may be allowed where listing them is not."""


def open_beneath(directory: int, location: str) -> int:
    """Open the regular file ``location`` beneath the open ``directory`` for reading; the caller closes it.

    No component may be a link, and the file must have one name only, so that nothing outside is reached. A file that
    another process replaces just now has none, and is read as it was. Raises ExternalDataError.
    """
    parts = _parts(location)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.dup(directory)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        descriptor = os.open(parts[-1], flags | os.O_NONBLOCK, dir_fd=folder)
    except (OSError, ValueError) as error:
        raise ExternalDataError(f"cannot open the external data {location!r}: {error}", code="open",
                                where=location) from error
    finally:
        os.close(folder)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    what = "has other hard links" if stat.S_ISREG(status.st_mode) else "is no regular file"
    raise ExternalDataError(f"the external data {location!r} {what}", code="link", where=location)


def _parts(location: str) -> list[str]:
    parts = [p for p in location.split("/") if p != "."]
    unsafe = location.startswith("/") or "\0" in location or "\\" in location or ":" in location
    if unsafe or not parts or any(p in ("", "..") for p in parts):
        raise ExternalDataError(f"the external data {location!r} does not lie beneath the model's folder",
                                code="path", where=location)
    return parts


class ExternalFolder:
    """The folder of a model file, from which external tensors are read; None as path refuses them all."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._opened: dict[str, int] = {}
        try:
            self._directory = None if path is None else os.open(path, _FOLDER)
        except OSError as error:
            raise ExternalDataError(f"cannot open the folder of the model: {error.strerror}", code="open",
                                    where=os.fspath(path or "")) from error

    def __enter__(self) -> ExternalFolder:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._opened.values():
            os.close(descriptor)
        self._opened.clear()
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None

    def read(self, entries: Mapping[str, str], size: int, name: str) -> bytearray:
        """Return the ``size`` bytes of the tensor ``name`` that the external ``entries`` point at."""
        unknown = set(entries) - _KEYS
        if unknown or "location" not in entries:
            raise ExternalDataError(f"external data with the keys {sorted(entries)}", code="keys", where=name)
        if self._directory is None:
            raise ExternalDataError("the model keeps weights in another file: load it by its path, not from bytes",
                                    code="memory", where=name)
        descriptor = self._open(entries["location"])
        offset = _count(entries, "offset", 0, name)
        length = _count(entries, "length", size, name)
        there = os.fstat(descriptor).st_size
        if length != size or offset + size > there:
            raise ExternalDataError(f"tensor {name!r} needs {size} bytes, its entry says offset {offset} and length "
                                    f"{length}, the file {entries['location']!r} holds {there}", code="size", where=name)
        return _read(descriptor, offset, size, name)

    def _open(self, location: str) -> int:
        if location not in self._opened:
            if len(self._opened) >= 64:
                os.close(self._opened.pop(next(iter(self._opened))))
            assert self._directory is not None
            self._opened[location] = open_beneath(self._directory, location)
        return self._opened[location]


def _count(entries: Mapping[str, str], key: str, default: int, name: str) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ExternalDataError(f"the {key} {text!r} of external data is no number", code="keys", where=name)
    return int(text)


def _read(descriptor: int, offset: int, size: int, name: str) -> bytearray:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        try:
            got = os.preadv(descriptor, [view[at : at + _CHUNK]], offset + at)
        except (OSError, OverflowError) as error:
            raise ExternalDataError(f"cannot read the file of tensor {name!r}: {error}", code="read", where=name) from error
        if got == 0:
            raise ExternalDataError(f"the file of tensor {name!r} ended while it was read", code="size", where=name)
        at += got
    return data
