"""The engines by name, and what stands in the way of one that cannot start."""

from __future__ import annotations

from collections.abc import Callable

from flowgrad.ir.arguments import is_word
from flowgrad.ir.errors import EngineError, suggestion
from flowgrad.ir.graph import Graph
from flowgrad.ir.limits import Limits
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.runtime.ort_program import OrtProgram, is_installed
from flowgrad.runtime.program import Program

READY = "ready"


def _ort_state() -> str:
    return READY if is_installed() else "onnxruntime is not installed: pip install 'flowgrad[ort]'"


_ENGINES: dict[str, tuple[Callable[[Graph, int | None, Limits | None], Program], Callable[[], str]]] = {
    "numpy": (NumpyProgram, lambda: READY),
    "ort": (OrtProgram, _ort_state),
}


def engines() -> dict[str, str]:
    """Return every engine by name with ``"ready"``, or the reason why it cannot start.

    Examples:
        >>> fg.engines()["numpy"]
        'ready'
    """
    return {name: state() for name, (_, state) in _ENGINES.items()}


def compile_graph(graph: Graph, engine: str = "numpy", threads: int | None = None, limits: Limits | None = None) -> Program:
    """Return ``graph`` compiled for ``engine``; EngineError if it is unknown or cannot start."""
    if not is_word(engine, _ENGINES):
        raise EngineError(f"no engine {engine!r}{suggestion(str(engine), _ENGINES)}; engines: {', '.join(_ENGINES)}", code="name")
    make, state = _ENGINES[engine]
    if state() != READY:
        raise EngineError(f"the engine {engine!r} cannot start: {state()}", code="missing")
    return make(graph, threads, limits)
