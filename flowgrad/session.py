"""A session with the shape of onnxruntime's, for code that was written for it: ``import flowgrad as ort``.

What has a meaning here is carried out; what tunes onnxruntime's own allocators, threads and logs is accepted and does
nothing, as ``SessionOptions`` lists; what would change results and cannot be done is refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.errors import EngineError, InputError, RunError, UnsupportedError, suggestion
from flowgrad.ir.graph import DEFAULT, Array, Graph, Value
from flowgrad.ir.types import Dim
from flowgrad.model import Model, load
from flowgrad.runtime.bindings import IOBinding, OrtValue
from flowgrad.runtime.engines import compile_graph
from flowgrad.runtime.profile import Profile

CPU = "CPUExecutionProvider"

NO_VERSION = 2**63 - 1
"""What onnxruntime says of a file that has no version."""

FRESH = "_d"
"""How the names of extents begin that the file does not name; onnxruntime shows None for these."""


class GraphOptimizationLevel(IntEnum):
    """How much a graph is optimised: not at all with ORT_DISABLE_ALL, by the standard passes with any other.

    Examples:
        >>> options = fg.SessionOptions()
        >>> options.graph_optimization_level = fg.GraphOptimizationLevel.ORT_DISABLE_ALL
        >>> fg.InferenceSession("tests/data/mlp.onnx", options).run(["loss"], batch)[0].shape
        ()
    """

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(IntEnum):
    """Accepted; operators run one after the other, each on several cores.

    Examples:
        >>> fg.SessionOptions().execution_mode
        <ExecutionMode.ORT_SEQUENTIAL: 0>
    """

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


class _Options:
    """Named fields with defaults; a misspelt one is an AttributeError, as in onnxruntime."""

    _defaults: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self._entries: dict[str, str] = {}
        for name, value in self._defaults.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._defaults and not name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no field {name!r}{suggestion(name, self._defaults)}")
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no field {name!r}{suggestion(name, self._defaults)}")

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)


class SessionOptions(_Options):
    """The options of a session, with onnxruntime's names.

    Carried out: ``intra_op_num_threads`` (0: all cores), ``graph_optimization_level``, ``enable_profiling`` and
    ``profile_file_prefix``, ``optimized_model_filepath`` (written as ONNX), ``add_free_dimension_override_by_name``,
    ``add_initializer``. Accepted without effect: ``enable_cpu_mem_arena``, ``enable_mem_pattern``, ``enable_mem_reuse``,
    ``execution_mode``, ``execution_order``, ``inter_op_num_threads``, ``log_severity_level``, ``log_verbosity_level``, ``logid``,
    ``use_deterministic_compute`` (runs always are), ``use_per_session_threads``, ``add_session_config_entry``. Refused:
    ``register_custom_ops_library``, ``add_free_dimension_override_by_denotation``, ``add_provider`` of anything but the CPU.

    Examples:
        >>> options = fg.SessionOptions()
        >>> options.intra_op_num_threads = 1
        >>> fg.InferenceSession("tests/data/mlp.onnx", options).run(["loss"], batch)[0].shape
        ()
    """

    _defaults = {
        "enable_cpu_mem_arena": True, "enable_mem_pattern": True, "enable_mem_reuse": True, "enable_profiling": False,
        "execution_mode": ExecutionMode.ORT_SEQUENTIAL, "execution_order": 0,
        "graph_optimization_level": GraphOptimizationLevel.ORT_ENABLE_ALL, "inter_op_num_threads": 0, "intra_op_num_threads": 0,
        "log_severity_level": -1, "log_verbosity_level": 0, "logid": "", "optimized_model_filepath": "",
        "profile_file_prefix": "onnxruntime_profile_", "use_deterministic_compute": False, "use_per_session_threads": True,
    }

    def __init__(self) -> None:
        super().__init__()
        self._extents: dict[str, int] = {}
        self._initializers: dict[str, Array] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Keep an entry; none has an effect."""
        self._entries[key] = value

    def get_session_config_entry(self, key: str) -> str:
        """Return an entry that was added. Raises InputError for any other."""
        if key not in self._entries:
            raise InputError(f"no config entry {key!r}{suggestion(key, self._entries)}", code="name")
        return self._entries[key]

    def add_free_dimension_override_by_name(self, name: str, extent: int) -> None:
        """Fix the extent of a named dim."""
        self._extents[name] = int(extent)

    def add_initializer(self, name: str, value: Any) -> None:
        """Give an initializer of the model another value: an OrtValue or an array."""
        self._initializers[name] = value.numpy() if isinstance(value, OrtValue) else np.asarray(value)

    def add_provider(self, name: str, options: Mapping[str, Any] | None = None) -> None:
        """Accept the CPU. Raises EngineError for another provider."""
        _check_providers([name])

    def add_free_dimension_override_by_denotation(self, denotation: str, extent: int) -> None:
        """Refuse: denotations of dims are not kept. Raises UnsupportedError."""
        raise UnsupportedError(f"denotations of dims ({denotation!r}) are not kept: use add_free_dimension_override_by_name, or "
                               "flowgrad.load(path, shapes=...)", code="option")

    def register_custom_ops_library(self, path: str) -> None:
        """Refuse: compiled operators cannot be called. Raises UnsupportedError."""
        raise UnsupportedError(f"{path!r}: operators compiled for onnxruntime cannot be called here; declare them by flowgrad.op, with "
                               "a kernel in NumPy", code="option")


class RunOptions(_Options):
    """The options of a run, with onnxruntime's names: ``terminate`` makes it fail, the others have no effect.

    Examples:
        >>> options = fg.RunOptions()
        >>> options.logid = "first"
        >>> fg.InferenceSession("tests/data/mlp.onnx").run(["loss"], batch, options)[0].shape
        ()
    """

    _defaults = {"log_severity_level": -1, "log_verbosity_level": 0, "logid": "", "only_execute_path_to_fetches": False, "terminate": False}

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Keep an entry; none has an effect."""
        self._entries[key] = value


@dataclass(frozen=True)
class NodeArg:
    """An input or output: its name, ONNX type (``tensor(float)``) and shape (integers, names, None)."""

    name: str
    type: str
    shape: list[int | str | None]


@dataclass(frozen=True)
class ModelMetadata:
    """What a file says of itself."""

    custom_metadata_map: dict[str, str]
    description: str
    domain: str
    graph_description: str
    graph_name: str
    producer_name: str
    version: int


class InferenceSession:
    """Runs a model: a path, bytes, an onnx.ModelProto, a Model or a Graph.

    ``sess_options`` are this module's or onnxruntime's own; ``threads`` goes before ``intra_op_num_threads``. ``providers`` may name
    the CPU alone, or before others, which are not here. Raises EngineError for an engine or provider that cannot start, and as
    ``load`` and ``compile`` do.

    Examples:
        >>> session = fg.InferenceSession("tests/data/mlp.onnx")
        >>> session.run(["logits"], batch)[0].shape
        (2, 3)
    """

    def __init__(self, path_or_model: Any, sess_options: Any = None, providers: Sequence[Any] | None = None,
                 provider_options: Sequence[Any] | None = None, *, engine: str = "numpy", threads: int | None = None) -> None:
        _check_providers(providers)
        options = SessionOptions() if sess_options is None else sess_options
        self._options, self._engine, self._threads = options, engine, threads
        wanted = threads if threads is not None else options.intra_op_num_threads or None
        model = _prepared(model_of(path_or_model, getattr(options, "_extents", {})), options)
        self._model, self._graph = model, model.graph
        if options.optimized_model_filepath:
            model.to_onnx(options.optimized_model_filepath, passes="")
        self._program = model.compile(engine, wanted) if int(options.graph_optimization_level) else compile_graph(self._graph, engine, wanted)
        self._outputs = {entry.name: entry.input(0) for entry in self._graph.output_entries}
        self._profiles: list[Profile] = []
        self._started = time.time_ns()

    def __reduce__(self) -> tuple[Any, ...]:
        return _session, (self._model.graph, self._options, self._engine, self._threads)

    # ---- running ------------------------------------------------------------------------------------------------------

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None) -> list[Array]:
        """Return the outputs called ``output_names`` (None, or no names: all) in that order."""
        names = list(output_names or self._outputs)
        for name in names:
            if name not in self._outputs:
                raise InputError(f"no output {name!r}{suggestion(name, self._outputs)}", code="name")
        if run_options is not None and run_options.terminate:
            raise RunError("the run was ended by its options: terminate is set", code="terminated")
        feeds = {name: a.numpy() if isinstance(a, OrtValue) else a for name, a in input_feed.items()}
        results = self._program.run(feeds) if not self._options.enable_profiling else self._profiled(feeds)
        return [results[name] for name in names]

    def _profiled(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        profile = self._program.profile(feeds)
        self._profiles.append(profile)
        return profile.outputs

    def run_with_ort_values(self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, OrtValue],
                            run_options: Any = None) -> list[OrtValue]:
        """Run on OrtValues, and return such."""
        return [OrtValue(a) for a in self.run(output_names, input_dict_ort_values, run_options)]

    def run_async(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any],
                  callback: Callable[[list[Array], Any, str], None], user_data: Any, run_options: Any = None) -> None:
        """Run in another thread, and call ``callback`` with the outputs, ``user_data``, and what went wrong ("" if nothing)."""
        def work() -> None:
            try:
                results, wrong = self.run(output_names, input_feed, run_options), ""
            except Exception as error:  # handed to the callback, which is all that the caller sees
                results, wrong = [], f"{type(error).__name__}: {error}"
            callback(results, user_data, wrong)

        threading.Thread(target=work).start()

    def io_binding(self) -> IOBinding:
        """Return a new binding of inputs and outputs to memory."""
        return IOBinding({v.name: v for v in self._graph.inputs}, list(self._outputs))

    def run_with_iobinding(self, iobinding: IOBinding, run_options: Any = None) -> None:
        """Run on what is bound; the binding holds the outputs then."""
        names = iobinding.output_names
        iobinding.take(self.run(names, iobinding.feeds, run_options) if names else [])

    # ---- looking ------------------------------------------------------------------------------------------------------

    def get_inputs(self) -> list[NodeArg]:
        """Return name, type and shape of every input."""
        return [_argument(v.name, v) for v in self._graph.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """Return name, type and shape of every output."""
        return [_argument(name, v) for name, v in self._outputs.items()]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """Return name, type and shape of every initializer that can be fed."""
        return [_argument(v.name, v) for v in self._graph.constants if v.producer.role == DEFAULT]

    def get_modelmeta(self) -> ModelMetadata:
        """Return what the file says of itself."""
        kept = self._graph.metadata
        own = {name: kept.get(f"onnx.{name}", "") for name in ("doc_string", "domain", "graph_doc_string", "producer_name")}
        version = kept.get("onnx.model_version", "")
        return ModelMetadata({k: v for k, v in kept.items() if not k.startswith("onnx.")}, own["doc_string"], own["domain"],
                             own["graph_doc_string"], self._graph.name, own["producer_name"], int(version) if version.isdigit() else NO_VERSION)

    def get_providers(self) -> list[str]:
        """Return the names of the providers in use."""
        return [CPU]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """Return the options of each provider: the CPU has none."""
        return {CPU: {}}

    def set_providers(self, providers: Sequence[Any] | None = None, provider_options: Sequence[Any] | None = None) -> None:
        """Accept the CPU. Raises EngineError if it is not among ``providers``."""
        _check_providers(providers)

    def get_session_options(self) -> Any:
        """Return the options that the session was made with."""
        return self._options

    def disable_fallback(self) -> None:
        """Do nothing: there is no fallback."""

    def enable_fallback(self) -> None:
        """Do nothing: an engine that cannot start is an error."""

    # ---- profiles -----------------------------------------------------------------------------------------------------

    def end_profiling(self) -> str:
        """Write what the runs so far did as a Chrome trace, and return the name of the file ("" without enable_profiling)."""
        if not self._options.enable_profiling:
            return ""
        path = f"{self._options.profile_file_prefix}{time.strftime('%Y-%m-%d_%H-%M-%S')}.json"
        Profile({}, [event for profile in self._profiles for event in profile.events]).save(Path(path))
        self._profiles = []
        return path

    def get_profiling_start_time_ns(self) -> int:
        """Return when the session was made."""
        return self._started


def _session(graph: Graph, options: Any, engine: str, threads: int | None) -> InferenceSession:
    return InferenceSession(graph, options, engine=engine, threads=threads)


def model_of(source: Any, extents: Mapping[str, int] | None = None) -> Model:
    """Return the model of a Model, a Graph, or a file or bytes that ``flowgrad.load`` reads, with the extents of dims given."""
    if isinstance(source, Model):
        return source
    return Model(source) if isinstance(source, Graph) else load(source, shapes=dict(extents or {}) or None)


def _prepared(model: Model, options: Any) -> Model:
    """Return a model with the initializers that options give, optimised as they say."""
    replaced = getattr(options, "_initializers", {})
    model = model.with_params(replaced) if replaced else model
    return model.optimized() if int(options.graph_optimization_level) else model


def _check_providers(providers: Sequence[Any] | None) -> None:
    names = [p if isinstance(p, str) else p[0] for p in providers or ()]
    if names and CPU not in names:
        raise EngineError(f"no provider {names[0]!r}: only {CPU} is here", code="provider")


def _argument(name: str, value: Value) -> NodeArg:
    return NodeArg(name, value.type.dtype.onnx_type, [_extent(d) for d in value.type.shape or ()])


def _extent(dim: Any) -> int | str | None:
    if isinstance(dim, int):
        return dim
    named = isinstance(dim, Dim) and not any(n.startswith(FRESH) and n[len(FRESH):].isdigit() for n in dim.names())
    return repr(dim) if named else None


# ---- functions of the module onnxruntime --------------------------------------------------------------------------------


def get_available_providers() -> list[str]:
    """Return the names of the providers that are here: the CPU.

    Examples:
        >>> fg.get_available_providers()
        ['CPUExecutionProvider']
    """
    return [CPU]


def get_all_providers() -> list[str]:
    """Return the names of all providers: the CPU.

    Examples:
        >>> fg.get_all_providers()
        ['CPUExecutionProvider']
    """
    return [CPU]


def get_device() -> str:
    """Return what computes: "CPU".

    Examples:
        >>> fg.get_device()
        'CPU'
    """
    return "CPU"
