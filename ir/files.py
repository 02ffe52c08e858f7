"""Whole files: read within limits, written so that a crash leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.errors import LoadError, SaveError
from flowgrad.ir.limits import Limits

ALIGNMENT = 64
_PIECE = 1 << 26


def read_file(path: Path, limits: Limits, *, follow: bool = True) -> memoryview:
    """Return the bytes of a regular file in memory aligned to 64 bytes, read-only.

    Raises LoadError if it is missing, no regular file or cut off while read; LimitError if it is too large.
    """
    descriptor = _opened(path, follow)
    try:
        size = _size(descriptor, path)
        limits.check("file_bytes", size, str(path))
        buffer = np.empty(size + ALIGNMENT, np.uint8)
        start = -buffer.ctypes.data % ALIGNMENT
        target = memoryview(buffer.data)[start : start + size]
        done = 0
        while done < size:
            count = os.readv(descriptor, [target[done : done + _PIECE]])
            if not count:
                raise LoadError(f"the file shrank while it was read, at byte {done} of {size}", code="file",
                                where=str(path))
            done += count
    except OSError as error:
        raise LoadError(f"cannot read the file: {error.strerror}", code="file", where=str(path)) from error
    finally:
        os.close(descriptor)
    return target.toreadonly()


def map_file(path: Path) -> memoryview:
    """Return the bytes of a regular file without reading them: they are mapped into memory."""
    import mmap

    descriptor = _opened(path, follow=True)
    try:
        if not _size(descriptor, path):
            return memoryview(b"")
        return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise LoadError(f"cannot map the file: {error.strerror}", code="file", where=str(path)) from error
    finally:
        os.close(descriptor)


def _opened(path: Path, follow: bool) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        return os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise LoadError(f"cannot open the file: {reason}", code="file", where=str(path)) from error


def _size(descriptor: int, path: Path) -> int:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise LoadError("not a regular file", code="file", where=str(path))
    return status.st_size


def write_file(path: Path, chunks: Iterable[Any]) -> None:
    """Write ``chunks`` (bytes-like) as the file ``path``: old or complete new file, whatever happens.

    Raises SaveError if it cannot be written or ``path`` is a symbolic link; no other file is left then.
    """

    def fill(temporary: Path) -> None:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with open(descriptor, "wb", buffering=1 << 20) as file:
            for chunk in chunks:
                file.write(chunk)

    replace_file(path, fill)


def replace_file(path: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` write a new file at a temporary path, then put it at ``path`` in one step. Raises SaveError."""
    directory = path.parent
    temporary = directory / f".{path.name[:100]}.{secrets.token_hex(8)}.tmp"
    try:
        if path.is_symlink():
            raise SaveError("the destination is a symbolic link", code="symlink", where=str(path))
        if path.is_dir():
            raise SaveError("the destination is a directory", code="directory", where=str(path))
        try:
            fill(temporary)
            _flush(temporary, os.O_RDONLY)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
        _flush(directory, os.O_RDONLY | os.O_DIRECTORY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SaveError(f"cannot write the file: {reason}", code="file", where=str(path)) from error


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not flags & os.O_DIRECTORY:  # some file systems cannot flush a directory
            raise
    finally:
        os.close(descriptor)
