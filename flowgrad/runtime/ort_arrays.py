"""Arrays of types that NumPy itself does not have, bfloat16 and the floats of eight bits, in and out of onnxruntime."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from flowgrad.ir.types import DType


def is_foreign(dtype: DType) -> bool:
    """True for a type whose arrays onnxruntime takes and gives as memory alone."""
    return dtype.name == "bfloat16" or dtype.name.startswith("float8")


def run_on_memory(session: Any, feeds: Mapping[str, tuple[DType, Array]], outputs: Sequence[DType]) -> list[Array]:
    """Return the outputs of a session that has tensors alone, some of them of foreign types."""
    results = session.run_with_ort_values(None, {name: _given(dtype, array) for name, (dtype, array) in feeds.items()})
    return [_taken(dtype, value) for dtype, value in zip(outputs, results, strict=True)]


def _given(dtype: DType, array: Array) -> Any:
    from onnxruntime import OrtValue

    memory = np.ascontiguousarray(array).reshape(array.shape)
    if not is_foreign(dtype):
        return OrtValue.ortvalue_from_numpy(memory)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(memory.view(f"u{dtype.itemsize}"), dtype.onnx)


def _taken(dtype: DType, value: Any) -> Array:
    if not is_foreign(dtype):
        return np.asarray(value.numpy())
    shape = tuple(value.shape())
    size = math.prod(shape) * dtype.itemsize
    memory = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(memory, dtype.numpy).reshape(shape).copy()
