"""The file beside a model that holds its large weights."""

from __future__ import annotations

import hashlib

from onnx import TensorProto

from flowgrad.exchange.tensors import raw_bytes
from flowgrad.ir.files import NewFile
from flowgrad.ir.graph import Array

_ALIGNMENT = 4096


class DataFile:
    """Large weights on their way into ``file``, which gets its name from their digest: a pair is never mixed."""

    def __init__(self, file: NewFile) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._tensors: list[TensorProto] = []
        self._at = 0

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
        self._file.stream.write(data)
        self._digest.update(data)
        self._at += len(data)

    def finish(self) -> None:
        """Bring the file to its name and tell the tensors."""
        model = self._file.path
        name = f"{model.name}.{self._digest.hexdigest()[:16]}.data"
        self._file.finish(model.with_name(name))
        for tensor in self._tensors:
            tensor.external_data[0].value = name
