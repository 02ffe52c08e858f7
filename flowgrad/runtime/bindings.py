"""OrtValues and bindings of inputs and outputs to memory, with onnxruntime's calls."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.errors import EngineError, InputError, suggestion
from flowgrad.ir.graph import Array, Value
from flowgrad.ir.types import dtype_of


class OrtValue:
    """An array on the CPU, or a list of them (a sequence).

    Examples:
        >>> fg.OrtValue.ortvalue_from_numpy(np.ones((2, 3))).shape()
        [2, 3]
    """

    def __init__(self, value: Any) -> None:
        self._value = value

    @staticmethod
    def ortvalue_from_numpy(numpy_obj: Any, device_type: str = "cpu", device_id: int = 0) -> OrtValue:
        """Return an OrtValue of an array. Raises EngineError for another device than the CPU."""
        check_device(device_type)
        return OrtValue(np.asarray(numpy_obj))

    @staticmethod
    def ortvalue_from_shape_and_type(shape: Sequence[int], element_type: Any, device_type: str = "cpu", device_id: int = 0) -> OrtValue:
        """Return an OrtValue of zeros."""
        check_device(device_type)
        return OrtValue(np.zeros(tuple(shape), dtype_of(element_type).numpy if isinstance(element_type, int) else element_type))

    def numpy(self) -> Any:
        """Return the array (or list) itself."""
        return self._value

    def shape(self) -> list[int]:
        """Return the extents."""
        return list(self._value.shape)

    def data_type(self) -> str:
        """Return the type as ONNX writes it: ``tensor(float)``."""
        if not self.is_tensor():
            return f"seq({OrtValue(self._value[0]).data_type()})" if self._value else "seq(tensor(float))"
        return dtype_of(self._value.dtype).onnx_type

    def element_type(self) -> int:
        """Return the number of the element type in ONNX."""
        return dtype_of(self._value.dtype).onnx

    def device_name(self) -> str:
        """Return "cpu"."""
        return "cpu"

    def data_ptr(self) -> int:
        """Return the address of the first element."""
        return int(self._value.ctypes.data)

    def tensor_size_in_bytes(self) -> int:
        """Return the bytes of the array."""
        return int(self._value.nbytes)

    def is_tensor(self) -> bool:
        """Return whether this is one array."""
        return isinstance(self._value, np.ndarray)

    def is_tensor_sequence(self) -> bool:
        """Return whether this is a list of arrays."""
        return isinstance(self._value, list)

    def is_sparse_tensor(self) -> bool:
        """Return False: there are none."""
        return False

    def has_value(self) -> bool:
        """Return whether there is a value (not an empty optional one)."""
        return self._value is not None

    def update_inplace(self, np_arr: Any) -> None:
        """Write an array of the same shape and dtype over this one. Raises InputError for another."""
        array = np.asarray(np_arr)
        if array.shape != self._value.shape or array.dtype != self._value.dtype:
            raise InputError(f"this OrtValue holds {self._value.dtype.name}{self.shape()}, got {array.dtype.name}{list(array.shape)}",
                             code="shape")
        self._value[...] = array


class IOBinding:
    """Which memory the inputs of a session are read from, and which its outputs are written to.

    Examples:
        >>> session = fg.InferenceSession("tests/data/mlp.onnx")
        >>> binding = session.io_binding()
        >>> binding.bind_cpu_input("x", batch["x"])
        >>> binding.bind_cpu_input("target", batch["target"])
        >>> binding.bind_output("logits")
        >>> session.run_with_iobinding(binding)
        >>> binding.copy_outputs_to_cpu()[0].shape
        (2, 3)
    """

    def __init__(self, inputs: Mapping[str, Value], outputs: Sequence[str]) -> None:
        self._inputs, self._known = inputs, outputs
        self.feeds: dict[str, Any] = {}
        self._targets: dict[str, OrtValue | None] = {}
        self._results: list[OrtValue] = []

    @property
    def output_names(self) -> list[str]:
        """The outputs that are bound, in the order in which they were."""
        return list(self._targets)

    # ---- inputs -------------------------------------------------------------------------------------------------------

    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
        """Read an input from an array. Raises InputError for an unknown name."""
        self._check(name, self._inputs, "input")
        self.feeds[name] = np.asarray(arr_on_cpu)

    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None:
        """Read an input from an OrtValue."""
        self._check(name, self._inputs, "input")
        self.feeds[name] = ortvalue.numpy()

    def bind_input(self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int) -> None:
        """Read an input from memory at an address, which must stay as it is until the run is over."""
        check_device(device_type)
        self._check(name, self._inputs, "input")
        self.feeds[name] = _memory(element_type, shape, buffer_ptr)

    def clear_binding_inputs(self) -> None:
        """Forget the inputs."""
        self.feeds = {}

    # ---- outputs ------------------------------------------------------------------------------------------------------

    def bind_output(self, name: str, device_type: str = "cpu", device_id: int = 0, element_type: Any = None,
                    shape: Sequence[int] | None = None, buffer_ptr: int | None = None) -> None:
        """Ask for an output; with an address, write it there."""
        check_device(device_type)
        self._check(name, self._known, "output")
        self._targets[name] = None if buffer_ptr is None else OrtValue(_memory(element_type, shape or (), buffer_ptr))

    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None:
        """Ask for an output, and write it into an OrtValue."""
        self._check(name, self._known, "output")
        self._targets[name] = ortvalue

    def clear_binding_outputs(self) -> None:
        """Forget the outputs."""
        self._targets, self._results = {}, []

    def take(self, results: Sequence[Any]) -> None:
        """Hold the outputs of a run, written where they were asked for. Raises InputError where one does not fit."""
        self._results = []
        for target, result in zip(self._targets.values(), results, strict=True):
            if target is not None:
                target.update_inplace(result)
            self._results.append(OrtValue(result) if target is None else target)

    def get_outputs(self) -> list[OrtValue]:
        """Return the outputs of the last run, in the order in which they were bound."""
        return list(self._results)

    def copy_outputs_to_cpu(self) -> list[Any]:
        """Return the outputs of the last run as arrays."""
        return [value.numpy() for value in self._results]

    def synchronize_inputs(self) -> None:
        """Do nothing: memory of the CPU is always up to date."""

    def synchronize_outputs(self) -> None:
        """Do nothing: a run is over when it returns."""

    def _check(self, name: str, known: Any, what: str) -> None:
        if name not in known:
            raise InputError(f"no {what} {name!r}{suggestion(name, known)}; there are: {', '.join(known)}", code="name")


def check_device(name: str) -> None:
    """Raise EngineError for another device than the CPU."""
    if name.lower() != "cpu":
        raise EngineError(f"no device {name!r}: only the CPU is here", code="provider")


def _memory(element_type: Any, shape: Sequence[int], address: int) -> Array:
    """Return the array that lies at an address, not copied."""
    dtype = dtype_of(element_type).numpy if isinstance(element_type, int) else np.dtype(element_type)
    size = dtype.itemsize * math.prod(shape)
    buffer: Any = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(buffer, dtype).reshape(tuple(shape))
