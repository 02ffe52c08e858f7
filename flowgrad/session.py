"""A session with the shape of onnxruntime's, for code that was written for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowgrad.ir.errors import EngineError, InputError, suggestion
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.types import Dim
from flowgrad.model import load
from flowgrad.runtime.engines import compile_graph

_ONNX_NAMES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class NodeArg:
    """An input or output: its name, ONNX type (``tensor(float)``) and shape (integers, names, None)."""

    name: str
    type: str
    shape: list[int | str | None]


class InferenceSession:
    """Runs a model: a path, bytes, an onnx.ModelProto, a Model or a Graph.

    ``sess_options.intra_op_num_threads`` is honoured unless ``threads`` is given; ``providers`` may name the CPU alone.
    Raises EngineError for an engine or provider that cannot start.

    Examples:
        >>> session = fg.InferenceSession("tests/data/mlp.onnx")
        >>> session.run(["logits"], batch)[0].shape
        (2, 3)
    """

    def __init__(self, path_or_model: Any, sess_options: Any = None, providers: Sequence[Any] | None = None, *,
                 engine: str = "numpy", threads: int | None = None) -> None:
        names = [p if isinstance(p, str) else p[0] for p in providers or ()]
        if names and "CPUExecutionProvider" not in names:
            raise EngineError(f"no provider {names[0]!r}: only CPUExecutionProvider is here", code="provider")
        wanted = getattr(sess_options, "intra_op_num_threads", 0) or None
        self._graph = graph_of(path_or_model)
        self._program = compile_graph(self._graph, engine, threads if threads is not None else wanted)
        self._outputs = {entry.name: entry.input(0) for entry in self._graph.output_entries}

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None) -> list[Array]:
        """Return the outputs called ``output_names`` (None: all) in that order."""
        names = list(self._outputs) if output_names is None else list(output_names)
        for name in names:
            if name not in self._outputs:
                raise InputError(f"no output {name!r}{suggestion(name, self._outputs)}", code="name")
        results = self._program.run(input_feed)
        return [results[name] for name in names]

    def get_inputs(self) -> list[NodeArg]:
        """Return name, type and shape of every input."""
        return [_argument(v.name, v) for v in self._graph.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """Return name, type and shape of every output."""
        return [_argument(name, v) for name, v in self._outputs.items()]

    def get_providers(self) -> list[str]:
        """Return the names of the providers in use."""
        return ["CPUExecutionProvider"]


def graph_of(source: Any) -> Graph:
    """Return the graph of a Graph, of anything with ``.graph``, or of a file or bytes that ``flowgrad.load`` reads."""
    if isinstance(source, Graph):
        return source
    held = getattr(source, "graph", None)
    return held if isinstance(held, Graph) else load(source).graph


def _argument(name: str, value: Value) -> NodeArg:
    dtype = value.type.dtype.name
    shape: list[int | str | None] = [d if isinstance(d, int) else repr(d) if isinstance(d, Dim) else None
                                     for d in value.type.shape or ()]
    return NodeArg(name, f"tensor({_ONNX_NAMES.get(dtype, dtype)})", shape)
