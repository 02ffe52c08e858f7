"""Files written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from onnx import TensorProto

from flowgrad.exchange.tensors import raw_bytes
from flowgrad.ir.errors import SaveError
from flowgrad.ir.graph import Array

_ALIGNMENT = 4096


def write_whole(target: Path, data: bytes, check: Callable[[Path], None] | None = None) -> None:
    """Write ``data`` to ``target`` through a file beside it, which ``check`` may look at first. Raises SaveError."""
    _refuse_links(target)
    temporary = _temporary(target)
    try:
        with _create(temporary) as file:
            file.write(data)
            _flush(file)
        if check is not None:
            check(temporary)
        os.replace(temporary, target)
        _flush_folder(target)
    except OSError as error:
        raise SaveError(f"cannot write the file: {error}", code="file", where=os.fspath(target)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_links(target: Path) -> None:
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SaveError(f"cannot write the file: {error}", code="file", where=os.fspath(target)) from error
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
        raise SaveError(f"the destination is {kind}", code="link", where=os.fspath(target))


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")


def _create(path: Path) -> BinaryIO:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), "wb")


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(target: Path) -> None:
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class DataFile:
    """The file beside a model that holds its large weights; named after their digest, so a pair is never mixed."""

    def __init__(self, model: Path) -> None:
        _refuse_links(model)
        self._model = model
        self._temporary = _temporary(model)
        self._digest = hashlib.sha256()
        self._tensors: list[TensorProto] = []
        self._at = 0
        try:
            self._file = _create(self._temporary)
        except OSError as error:
            raise SaveError(f"cannot write beside the model: {error}", code="file", where=os.fspath(model)) from error

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def store(self, tensor: TensorProto, data: Array) -> bool:
        """Append the elements of a tensor and note in it where they are."""
        raw = raw_bytes(data)
        self._write(b"\0" * (-self._at % _ALIGNMENT))
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="")
        tensor.external_data.add(key="offset", value=str(self._at))
        tensor.external_data.add(key="length", value=str(len(raw)))
        self._tensors.append(tensor)
        self._write(raw)
        return True

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise SaveError(f"cannot write beside the model: {error}", code="file",
                            where=os.fspath(self._model)) from error
        self._digest.update(data)
        self._at += len(data)

    def finish(self) -> None:
        """Bring the file to its name and tell the tensors."""
        name = f"{self._model.name}.{self._digest.hexdigest()[:16]}.data"
        target = self._model.with_name(name)
        _refuse_links(target)
        try:
            _flush(self._file)
            os.replace(self._temporary, target)
            _flush_folder(target)
        except OSError as error:
            raise SaveError(f"cannot write beside the model: {error}", code="file", where=os.fspath(target)) from error
        for tensor in self._tensors:
            tensor.external_data[0].value = name
