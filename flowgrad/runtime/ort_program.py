"""The program of the engine "ort": a graph exported as plain ONNX and run by onnxruntime."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from flowgrad.ir.dtypes import given_back
from flowgrad.ir.errors import EngineError, InputError, RunError
from flowgrad.ir.feeds import Signature
from flowgrad.ir.graph import DEFAULT, Array, Graph
from flowgrad.ir.limits import Limits
from flowgrad.runtime.ort_arrays import is_foreign, run_on_memory
from flowgrad.runtime.profile import Profile
from flowgrad.runtime.program import check_threads, packed, unpacked


class OrtProgram:
    """A graph run by onnxruntime, which keeps no ``limits``, draws its own random numbers and holds parameters fixed.

    ``threads`` is the number of cores used for one operator (default: those that onnxruntime chooses). Raises
    EngineError if onnxruntime is missing or refuses the graph, SaveError if the graph has no ONNX form.
    """

    engine = "ort"

    def __init__(self, graph: Graph, threads: int | None = None, limits: Limits | None = None) -> None:
        from flowgrad.exchange.writer import write_onnx

        check_threads(threads)
        self.threads = threads
        self._graph, self._version = graph, graph.version
        self._signature = Signature(graph)
        self._output_names = [entry.name for entry in graph.output_entries]
        self._output_dtypes = [value.type.dtype for value in graph.outputs]
        dtypes = [*self._output_dtypes, *(t.dtype for t in self._signature.inputs.values())]
        self._on_memory = any(map(is_foreign, dtypes)) and all(t.element is None for t in dtypes)
        model = write_onnx(graph)
        # Inputs keep their order and outputs theirs in the export; only names may have been made valid for ONNX. Those with a
        # default value stand last.
        fed = [*self._signature.inputs, *(v.name for v in graph.parameters if v.producer.role == DEFAULT)]
        self._exported = dict(zip(fed, [i.name for i in model.graph.input], strict=True))
        self._session = self._started(model.SerializeToString())

    def _started(self, model: bytes, profile: str = "") -> Any:
        """Return a session of onnxruntime; one that writes a profile into files that begin with ``profile``, if that is given."""
        ort = _onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        try:
            return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base class for what it raises
            raise EngineError(f"onnxruntime cannot load the exported graph: {error}", code="ort") from error

    @property
    def input_names(self) -> list[str]:
        """The names that every run has to feed."""
        return list(self._signature.inputs)

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in order."""
        return list(self._output_names)

    def run(self, feeds: Mapping[str, Any], *, seed: int | None = None) -> dict[str, Array]:
        """Run on ``feeds`` (every input) and return the outputs by name.

        Raises InputError for a wrong name, dtype or shape, for a parameter and for any ``seed``; RunError where
        onnxruntime fails.
        """
        if seed is not None:
            raise InputError("the engine 'ort' cannot be seeded; the engine 'numpy' can", code="seed")
        return self._run(self._session, feeds)

    def profile(self, feeds: Mapping[str, Any], *, runs: int = 1, seed: int | None = None) -> Profile:
        """Run ``runs`` times in a session of its own that writes a profile, and return the outputs and that. Raises as ``run``."""
        import json
        import tempfile

        from flowgrad.exchange.writer import write_onnx

        if seed is not None:
            raise InputError("the engine 'ort' cannot be seeded; the engine 'numpy' can", code="seed")
        with tempfile.TemporaryDirectory() as folder:
            session = self._started(write_onnx(self._graph).SerializeToString(), os.path.join(folder, "profile"))
            outputs = [self._run(session, feeds) for _ in range(runs)][-1]
            with open(session.end_profiling(), encoding="utf-8") as file:
                events = json.load(file)
        return Profile(outputs, [e for e in events if e.get("ph") == "X"])

    def _run(self, session: Any, feeds: Mapping[str, Any]) -> dict[str, Array]:
        arrays = self._signature.checked(feeds)
        fixed = [name for name in arrays if name not in self._exported]
        if fixed:
            raise InputError(f"the engine 'ort' holds the parameter {fixed[0]!r} fixed: compile again after with_params, or "
                             "use the engine 'numpy'", code="parameter")
        given = {name: given_back(array) if self._signature.types[name].dtype.element is not None else array
                 for name, array in arrays.items()}
        try:
            if self._on_memory:
                fed = {self._exported[name]: (self._signature.types[name].dtype, array) for name, array in given.items()}
                results = run_on_memory(session, fed, self._output_dtypes)
            else:
                results = session.run(None, {self._exported[name]: array for name, array in given.items()})
        except Exception as error:
            raise RunError(f"onnxruntime: {error}", code="ort") from error
        return dict(zip(self._output_names, results, strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_bytes, (packed(self._graph, self._version), self.threads)


def _from_bytes(data: bytes, threads: int | None) -> OrtProgram:
    return OrtProgram(unpacked(data), threads)


def is_installed() -> bool:
    """Return whether onnxruntime can be imported, without importing it."""
    return importlib.util.find_spec("onnxruntime") is not None


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("the engine 'ort' needs onnxruntime: pip install 'flowgrad[ort]'", code="missing") from error
    return onnxruntime
