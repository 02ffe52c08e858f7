"""The engines by name, and what stands in the way of one that cannot start."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flowgrad.ir.errors import EngineError, InputError, RunError, suggestion
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.limits import Limits
from flowgrad.runtime.numpy_program import Program

READY = "ready"


class OrtProgram:
    """A graph run by onnxruntime: exported as plain ONNX, outputs by name."""

    engine = "ort"

    def __init__(self, graph: Graph, threads: int | None = None, limits: Limits | None = None) -> None:
        from flowgrad.exchange.writer import write_onnx

        ort = _onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        model = write_onnx(graph)
        self.output_names = [entry.name for entry in graph.output_entries]
        self.input_names = [v.name for v in graph.inputs]
        # Inputs keep their order and outputs theirs in the export; only names may have been made valid for ONNX.
        self._exported = {v.name: i.name for v, i in zip(graph.inputs, model.graph.input, strict=False)}
        self._parameters = [v.name for v in graph.parameters]
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base class for what it raises
            raise EngineError(f"onnxruntime cannot load the exported graph: {error}", code="ort") from error

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Run on ``feeds`` and return the outputs by name. Raises InputError for wrong names, RunError for the rest."""
        known = {*self._exported, *self._parameters}
        for name in feeds:
            if name not in known:
                raise InputError(f"no input {name!r}{suggestion(name, known)}", code="name")
        missing = [name for name in self.input_names if name not in feeds]
        if missing:
            raise InputError(f"no value given for input {missing[0]!r}", code="missing")
        given = {self._exported.get(name, name): np.asarray(value) for name, value in feeds.items()}
        try:
            results = self._session.run(None, given)
        except Exception as error:
            raise RunError(f"onnxruntime: {error}", code="ort") from error
        return dict(zip(self.output_names, results, strict=True))


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("the engine 'ort' needs onnxruntime; install flowgrad[ort]", code="missing") from error
    return onnxruntime


def _ort_state() -> str:
    found = importlib.util.find_spec("onnxruntime") is not None
    return READY if found else "onnxruntime is not installed; install flowgrad[ort]"


_ENGINES: dict[str, tuple[Callable[..., Any], Callable[[], str]]] = {
    "numpy": (Program, lambda: READY),
    "ort": (OrtProgram, _ort_state),
}


def engines() -> dict[str, str]:
    """Return every engine by name with ``"ready"``, or the reason why it cannot start."""
    return {name: state() for name, (_, state) in _ENGINES.items()}


def compile_graph(graph: Graph, engine: str = "numpy", threads: int | None = None, limits: Limits | None = None) -> Any:
    """Return ``graph`` compiled for ``engine``; EngineError if it is unknown or cannot start."""
    if engine not in _ENGINES:
        raise EngineError(f"no engine {engine!r}{suggestion(engine, _ENGINES)}; engines: {', '.join(_ENGINES)}", code="name")
    make, state = _ENGINES[engine]
    if state() != READY:
        raise EngineError(f"the engine {engine!r} cannot start: {state()}", code="missing")
    return make(graph, threads, limits)


def compile_model(model: Any, engine: str = "numpy", threads: int | None = None, limits: Limits | None = None) -> Any:
    """Return a program of ``model`` (anything with ``.graph``): optimised, then compiled for ``engine``."""
    optimized = getattr(model, "optimized", None)
    ready = model if optimized is None else optimized()
    return compile_graph(ready.graph, engine, threads, limits)
