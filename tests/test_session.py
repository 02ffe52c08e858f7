"""Scripts written for onnxruntime, run with ``import flowgrad as ort`` in its place: the same is returned."""

from __future__ import annotations

import ctypes
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import flowgrad as fg

DATA = Path(__file__).resolve().parent / "data"
MLP = str(DATA / "mlp.onnx")
FEEDS = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4), "target": np.array([0, 2])}

Script = Callable[[Any], Any]
SCRIPTS: list[Script] = []


def script(function: Script) -> Script:
    SCRIPTS.append(function)
    return function


@script
def first_outputs(ort: Any) -> Any:
    session = ort.InferenceSession(MLP, providers=["CUDAExecutionProvider", "CPUExecutionProvider"][1:])
    name = session.get_inputs()[0].name
    return session.run(None, {name: FEEDS["x"], session.get_inputs()[1].name: FEEDS["target"]})


@script
def what_goes_in_and_out(ort: Any) -> Any:
    session = ort.InferenceSession(Path(MLP).read_bytes(), providers=ort.get_available_providers()[-1:])
    named = [(a.name, a.type, a.shape) for a in (*session.get_inputs(), *session.get_outputs())]
    return named, len(session.get_overridable_initializers())


@script
def options_of_every_kind(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(MLP, options, providers=[("CPUExecutionProvider", {})])
    return session.run(["loss"], FEEDS), options.get_session_config_entry("session.intra_op.allow_spinning")


@script
def without_optimisations(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(MLP, sess_options=options, providers=["CPUExecutionProvider"]).run(["logits", "loss"], FEEDS)


@script
def bound_to_cpu_memory(ort: Any) -> Any:
    session = ort.InferenceSession(MLP, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", FEEDS["x"])
    binding.bind_ortvalue_input("target", ort.OrtValue.ortvalue_from_numpy(FEEDS["target"], "cpu", 0))
    binding.bind_output("logits", "cpu")
    binding.bind_output("loss")
    session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu(), [v.shape() for v in binding.get_outputs()], binding.get_outputs()[0].data_type()


@script
def bound_to_addresses(ort: Any) -> Any:
    session = ort.InferenceSession(MLP, providers=["CPUExecutionProvider"])
    binding, out = session.io_binding(), np.zeros((2, 3), np.float32)
    binding.bind_input("x", "cpu", 0, np.float32, FEEDS["x"].shape, FEEDS["x"].ctypes.data)
    binding.bind_input("target", "cpu", 0, np.int64, [2], FEEDS["target"].ctypes.data)
    binding.bind_output("logits", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    session.run_with_iobinding(binding)
    return out


@script
def bound_to_a_value(ort: Any) -> Any:
    session = ort.InferenceSession(MLP, providers=["CPUExecutionProvider"])
    binding, out = session.io_binding(), ort.OrtValue.ortvalue_from_shape_and_type([2, 3], np.float32)
    for name, array in FEEDS.items():
        binding.bind_cpu_input(name, array)
    binding.bind_ortvalue_output("logits", out)
    session.run_with_iobinding(binding)
    return out.numpy(), out.element_type(), out.device_name(), out.is_tensor(), out.has_value()


@script
def on_values(ort: Any) -> Any:
    session = ort.InferenceSession(MLP, providers=["CPUExecutionProvider"])
    feeds = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in FEEDS.items()}
    return [value.numpy() for value in session.run_with_ort_values(["loss"], feeds)]


@script
def what_the_file_says(ort: Any) -> Any:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(MLP)
    found = [ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).get_modelmeta().version]
    model.producer_name, model.domain, model.doc_string, model.model_version, model.graph.doc_string = "p", "d", "text", 7, "graph"
    onnx.helper.set_model_props(model, {"names": "cat, dog"})
    meta = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).get_modelmeta()
    return found, (meta.producer_name, meta.graph_name, meta.domain, meta.description, meta.version, meta.graph_description,
                   dict(meta.custom_metadata_map))


@script
def run_options(ort: Any) -> Any:
    options = ort.RunOptions()
    options.log_severity_level = 3
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = ort.InferenceSession(MLP, providers=["CPUExecutionProvider"])
    session.disable_fallback()
    return session.run([], FEEDS, run_options=options), session.get_providers(), session.get_provider_options()


@script
def in_the_background(ort: Any) -> Any:
    done, got = threading.Event(), []

    def callback(results: Any, user_data: Any, error: str) -> None:
        got.append((results, user_data, error))
        done.set()

    session = ort.InferenceSession(MLP, providers=["CPUExecutionProvider"])
    session.run_async(["loss"], FEEDS, callback, "mine")
    assert done.wait(60)
    return got


@script
def extents_that_are_fixed(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.add_free_dimension_override_by_name("N", 2)
    session = ort.InferenceSession(MLP, options, providers=["CPUExecutionProvider"])
    return [a.shape for a in session.get_inputs()], session.run(None, FEEDS)


@script
def a_profile(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = "profile_of_mlp"
    session = ort.InferenceSession(MLP, options, providers=["CPUExecutionProvider"])
    session.run(None, FEEDS)
    name = session.end_profiling()
    with open(name) as file:
        events = json.load(file)
    gemms = [e for e in events if e["cat"] == "Node" and e["name"] == "fc2_kernel_time"]
    return name.startswith("profile_of_mlp"), [e["args"]["op_name"] for e in gemms], gemms[0]["args"]["output_type_shape"]


@script
def in_another_process(ort: Any) -> Any:
    session: Any = ort.InferenceSession(MLP, providers=["CPUExecutionProvider"])
    return pickle.loads(pickle.dumps(session)).run(None, FEEDS) if ort is fg else session.run(None, FEEDS)


def same(got: Any, expected: Any) -> bool:
    if isinstance(expected, (list, tuple)):
        return len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, (np.ndarray, np.generic)):
        return bool(got.dtype == expected.dtype and got.shape == expected.shape and np.allclose(got, expected, rtol=1e-5, atol=1e-6))
    return bool(got == expected)


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    ort = pytest.importorskip("onnxruntime")
    assert isinstance(ort, ModuleType)
    return ort


@pytest.mark.parametrize("run", SCRIPTS, ids=lambda run: run.__name__)
def test_a_script_returns_what_it_does_with_onnxruntime(run: Script, reference: ModuleType, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert same(run(fg), run(reference))


def test_options_of_onnxruntime_itself_are_taken(reference: Any) -> None:
    options = reference.SessionOptions()
    options.intra_op_num_threads = 1
    session = fg.InferenceSession(MLP, options)
    assert session.get_session_options() is options
    assert session.run(["loss"], FEEDS)[0].shape == ()


def test_extents_that_the_file_does_not_name_are_none() -> None:
    onnx = pytest.importorskip("onnx")
    info, types = onnx.helper.make_tensor_value_info, onnx.TensorProto
    graph = onnx.helper.make_graph([onnx.helper.make_node("NonZero", ["x"], ["z"])], "g", [info("x", types.FLOAT, [None, "N", 3])],
                                   [info("z", types.INT64, None)])
    session = fg.InferenceSession(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8))
    assert session.get_inputs()[0].shape == [None, "N", 3] and session.get_outputs()[0].shape == [3, None]


def test_an_optimised_model_is_written_and_initializers_are_replaced(tmp_path: Path) -> None:
    options = fg.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    options.add_initializer("b2", fg.OrtValue.ortvalue_from_numpy(np.full(3, 7, np.float32)))
    logits = fg.InferenceSession(MLP, options).run(["logits"], FEEDS)[0]
    plain = fg.load(MLP)
    expected = plain.with_params({"b2": np.full(3, 7, np.float32)})(FEEDS)["logits"]
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    np.testing.assert_allclose(fg.load(tmp_path / "o.onnx")(FEEDS)["logits"], expected, rtol=1e-6)


@pytest.mark.parametrize(("call", "error", "said"), [
    (lambda: fg.InferenceSession(MLP, providers=["CUDAExecutionProvider"]), fg.FlowgradError, "only CPUExecutionProvider"),
    (lambda: setattr(fg.SessionOptions(), "intra_op_threads", 1), AttributeError, "did you mean 'intra_op_num_threads'"),
    (lambda: fg.SessionOptions().register_custom_ops_library("a.so"), fg.FlowgradError, "flowgrad.op"),
    (lambda: fg.SessionOptions().add_free_dimension_override_by_denotation("DATA_BATCH", 1), fg.FlowgradError, "by_name"),
    (lambda: fg.OrtValue.ortvalue_from_numpy(np.ones(1), "cuda", 0), fg.FlowgradError, "only the CPU"),
    (lambda: fg.InferenceSession(MLP).run(["los"], FEEDS), ValueError, "did you mean 'loss'"),
    (lambda: fg.InferenceSession(MLP).io_binding().bind_cpu_input("y", np.ones(1)), ValueError, "no input 'y'"),
    (lambda: fg.OrtValue(np.ones(2)).update_inplace(np.ones(3)), ValueError, "this OrtValue holds"),
])
def test_what_cannot_be_done_is_refused(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def test_a_run_that_is_told_to_end_fails() -> None:
    options = fg.RunOptions()
    options.terminate = True
    with pytest.raises(fg.FlowgradError, match="terminate"):
        fg.InferenceSession(MLP).run(None, FEEDS, options)


def test_memory_at_an_address_is_not_copied() -> None:
    array = np.arange(6, dtype=np.float32)
    binding = fg.InferenceSession(MLP).io_binding()
    binding.bind_input("x", "cpu", 0, 1, [2, 3], array.ctypes.data)
    array[0] = 5
    assert binding.feeds["x"][0, 0] == 5 and ctypes.sizeof(ctypes.c_float) == 4
