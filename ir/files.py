"""Whole files: read within limits, written so that a crash leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flowgrad.ir.errors import LoadError, SaveError
from flowgrad.ir.limits import Limits

ALIGNMENT = 64
_PIECE = 1 << 26
_STREAMED = 1 << 20
_SUFFIX = ".tmp"


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
    descriptor = _opened(path, follow=True)
    try:
        if not _size(descriptor, path):
            return memoryview(b"")
        return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise LoadError(f"cannot map the file: {error.strerror}", code="file", where=str(path)) from error
    finally:
        os.close(descriptor)


def open_file(path: Path) -> BinaryIO:
    """Return a regular file open for reading, at once: a pipe is not waited for.

    Raises OSError as ``open`` does, LoadError if it is no regular file.
    """
    descriptor = _descriptor(path)
    try:
        _size(descriptor, path)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_stream(stream: BinaryIO, limits: Limits, where: str) -> bytes:
    """Return what is left in ``stream``. Raises LimitError once more has come than a file may hold."""
    pieces: list[bytes] = []
    size = 0
    while piece := stream.read(_STREAMED):
        size += len(piece)
        limits.check("file_bytes", size, where)
        pieces.append(piece)
    return b"".join(pieces)


def _descriptor(path: Path, flags: int = 0) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, str(error)) from error


def _opened(path: Path, follow: bool) -> int:
    try:
        return _descriptor(path, 0 if follow else os.O_NOFOLLOW)
    except OSError as error:
        raise LoadError(f"cannot open the file: {error.strerror}", code="file", where=str(path)) from error


def _size(descriptor: int, path: Path) -> int:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise LoadError(f"not a regular file but {_kind(status.st_mode)}", code="file", where=str(path))
    return status.st_size


@dataclass(frozen=True)
class NewFile:
    """A file in the making: what is written to ``stream`` lies at ``temporary``, beside the ``path`` it is for."""

    path: Path
    temporary: Path
    stream: BinaryIO

    def finish(self, path: Path | None = None) -> None:
        """Put the file in its place (or at another ``path`` of the same folder) in one step."""
        target = path or self.path
        _check_destination(target)
        self.stream.flush()
        _flush(self.temporary, os.O_RDONLY)
        os.replace(self.temporary, target)
        _flush(target.parent, os.O_RDONLY | os.O_DIRECTORY)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[NewFile]:
    """Make a file beside ``path``; without ``finish`` nothing is left of it, and what was there before is unharmed.

    Raises SaveError if ``path`` is there and no regular file, and for what the system refuses inside the block.
    """
    _check_destination(path)
    try:
        _remove_leftovers(path)
        temporary, descriptor = _new_temporary(path)
        try:
            with open(descriptor, "wb", buffering=1 << 20) as stream:
                yield NewFile(path, temporary, stream)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _save_error(path, error) from error


def _new_temporary(path: Path) -> tuple[Path, int]:
    """Return a new file beside ``path``, locked for as long as it is open, and its descriptor."""
    while True:
        temporary = path.parent / f"{_prefix(path)}{os.urandom(8).hex()}{_SUFFIX}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: nothing is taken for a leftover there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # else another save removed it before it was locked
            return temporary, descriptor
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove what saves of ``path`` that were killed have left beside it: files that nobody holds a lock of."""
    prefix = _prefix(path)
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(_SUFFIX) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(descriptor)


def _prefix(path: Path) -> str:
    """Return how the temporary files of ``path`` begin: short enough for any name in UTF-8."""
    return f".{path.name[:50]}."


def write_file(path: Path, chunks: Iterable[Any], check: Callable[[Path], object] | None = None) -> None:
    """Write ``chunks`` (bytes-like) as the file ``path``: old or complete new file, whatever happens.

    ``check`` may look at the new file before it takes the place of the old one. Raises SaveError like ``new_file``.
    """
    with new_file(path) as new:
        for chunk in chunks:
            new.stream.write(chunk)
        if check is not None:
            new.stream.flush()
            check(new.temporary)
        new.finish()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as the file ``path``, like ``write_file``."""
    write_file(path, [text.encode()])


def _check_destination(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise _save_error(path, error) from error
    if not stat.S_ISREG(mode):
        raise SaveError(f"the destination is {_kind(mode)}", code="destination", where=str(path))


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _save_error(path: Path, error: Exception) -> SaveError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return SaveError(f"cannot write the file: {reason}", code="file", where=str(path))


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not flags & os.O_DIRECTORY:  # some file systems cannot flush a directory
            raise
    finally:
        os.close(descriptor)
