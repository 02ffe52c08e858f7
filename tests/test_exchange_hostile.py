"""Damaged and hostile files end in a typed error, early and cheaply."""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from flowgrad.exchange.external import ExternalFolder
from flowgrad.exchange.reader import read_onnx
from flowgrad.exchange.tensors import array_of, raw_bytes, tensor_of
from flowgrad.ir.errors import (
    ExternalDataError,
    FlowgradError,
    LimitError,
    LoadError,
    UnsupportedError,
    ValidationError,
)
from flowgrad.ir.limits import Limits
from flowgrad.ir.types import dtype_of
from tests.onnx_models import info, model


def relu(**changes: Any) -> ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"], name="n")], {"x": (2, 3)}, ["y"], **changes)


def with_weight(tensor: TensorProto) -> ModelProto:
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (2, 3)}, ["y"])
    proto.graph.initializer.append(tensor)
    return proto


# ---- bytes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\0", b"hello world", b"\x08", b"\xff" * 40, b"\x0b\x0b", b"\x3a\x05abc",
                                  b"PK\x03\x04", b"\x08\x08"], ids=repr)
def test_garbage_is_no_model(data: bytes) -> None:
    with pytest.raises(LoadError):
        read_onnx(data)


def test_every_truncation_is_an_error() -> None:
    data = relu().SerializeToString()
    for length in range(len(data)):
        with pytest.raises(FlowgradError):
            read_onnx(data[:length])


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_never_end_in_an_untyped_error(seed: int) -> None:
    rng = random.Random(seed)
    body = helper.make_graph([helper.make_node("Add", ["i", "w"], ["o"])], "b", [], [info("o", None)])
    node = helper.make_node("If", ["c"], ["o"], then_branch=body, else_branch=body)
    base = model([node], {"c": np.asarray(True), "i": (2,)}, ["o"], initializers={"w": np.ones(2, np.float32)})
    data = base.SerializeToString()
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 5])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            read_onnx(bytes(changed))
        except FlowgradError:
            continue


def test_text_that_is_not_utf8() -> None:
    data = relu().SerializeToString().replace(b"\x01x", b"\x01\xff")
    with pytest.raises(LoadError, match="UTF-8"):
        read_onnx(data)


def test_a_file_that_is_no_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path / "missing.onnx", tmp_path, fifo):
        with pytest.raises(LoadError):
            read_onnx(path)


# ---- limits -------------------------------------------------------------------------------------------------------------


def test_file_size(tmp_path: Path) -> None:
    data = relu().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data)
    for source in (data, tmp_path / "m.onnx"):
        read_onnx(source, Limits(file_bytes=len(data)))
        with pytest.raises(LimitError, match="file_bytes"):
            read_onnx(source, Limits(file_bytes=len(data) - 1))


def test_a_flood_of_empty_nodes_is_counted_before_it_is_parsed() -> None:
    inner = b"\x0a\x00" * 100_000
    data = b"\x08\x08\x3a" + _varint(len(inner)) + inner
    tracemalloc.start()
    with pytest.raises(LimitError, match="nodes"):
        read_onnx(data, Limits(nodes=1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def test_limits_hold_exactly() -> None:
    chain = [helper.make_node("LeakyRelu", [f"v{i}"], [f"v{i + 1}"], alpha=0.5) for i in range(10)]
    proto = model(chain, {"v0": (2, 3)}, ["v10"], initializers={"w": np.ones((2, 3), np.float32)})
    data = proto.SerializeToString()
    for name, needed in (("nodes", 10), ("values", 11), ("attributes", 1), ("rank", 2), ("dim", 3),
                         ("tensor_bytes", 24), ("expanded_nodes", 10), ("name_bytes", 9), ("file_bytes", len(data))):
        read_onnx(data, Limits(**{name: needed}))
        with pytest.raises(LimitError) as caught:
            read_onnx(data, Limits(**{name: needed - 1}))
        assert caught.value.code == name


def test_names_and_text() -> None:
    proto = relu()
    proto.graph.node[0].name = "n" * 5000
    with pytest.raises(LimitError, match="name_bytes"):
        read_onnx(proto.SerializeToString())
    proto = relu()
    proto.doc_string = "d" * 5000
    read_onnx(proto.SerializeToString())
    with pytest.raises(LimitError, match="string_bytes"):
        read_onnx(proto.SerializeToString(), Limits(string_bytes=4000))


@pytest.mark.parametrize("depth", [40, 300])
def test_nested_subgraphs(depth: int) -> None:
    data = b""
    for _ in range(depth):  # GraphProto { node { attribute { g { ... } } } }
        attribute = b"\x0a\x01b\x32" + _varint(len(data)) + data + b"\xa0\x01\x05"
        node = b"\x2a" + _varint(len(attribute)) + attribute + b"\x22\x02If"
        data = b"\x0a" + _varint(len(node)) + node
    with pytest.raises((LimitError, LoadError)):
        read_onnx(b"\x08\x08\x3a" + _varint(len(data)) + data)


def function_of(name: str, calls: list[str]) -> onnx.FunctionProto:
    nodes = [helper.make_node(c, ["x"], [f"y{i}"], domain="f") for i, c in enumerate(calls)]
    nodes.append(helper.make_node("Relu", ["x"], ["y"]))
    return helper.make_function("f", name, ["x"], ["y"], nodes, [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)])


def test_functions_that_multiply_are_counted_not_expanded() -> None:
    functions = [function_of(f"F{i}", [f"F{i + 1}"] * 10 if i < 19 else []) for i in range(20)]
    proto = model([helper.make_node("F0", ["x"], ["y"], domain="f")], {"x": (2,)}, ["y"], functions=functions,
                  domains={"f": 1})
    with pytest.raises(LimitError, match="expanded_nodes"):
        read_onnx(proto)


def test_functions_that_call_themselves() -> None:
    for functions in ([function_of("F0", ["F0"])], [function_of("F0", ["F1"]), function_of("F1", ["F0"])]):
        proto = model([helper.make_node("F0", ["x"], ["y"], domain="f")], {"x": (2,)}, ["y"], functions=functions,
                      domains={"f": 1})
        with pytest.raises(ValidationError, match="calls itself"):
            read_onnx(proto)


def test_functions_nested_too_deeply() -> None:
    functions = [function_of(f"F{i}", [f"F{i + 1}"] if i < 79 else []) for i in range(80)]
    proto = model([helper.make_node("F0", ["x"], ["y"], domain="f")], {"x": (2,)}, ["y"], functions=functions,
                  domains={"f": 1})
    with pytest.raises(LimitError, match="function_depth"):
        read_onnx(proto)


@pytest.mark.parametrize("op", ["ConstantOfShape", "Range", "Expand", "Tile"])
def test_bombs_allocate_nothing(op: str) -> None:
    huge = np.array([2**45], np.int64)
    inputs: dict[str, Any] = {"a": huge}
    if op == "Range":
        inputs = {"a": np.int64(0), "b": np.int64(2**45), "c": np.int64(1)}
    elif op != "ConstantOfShape":
        inputs = {"x": np.ones(1, np.int64), "a": huge}
    attributes = {"value": helper.make_tensor("v", TensorProto.INT64, [1], [1])} if op == "ConstantOfShape" else {}
    arrays = {k: np.asarray(v) for k, v in inputs.items()}
    node = helper.make_node(op, list(arrays), ["y"], **attributes)
    proto = model([node, helper.make_node("Add", ["y", "y"], ["z"])], {}, ["z"], initializers=arrays,
                  output_dtype=TensorProto.INT64)
    tracemalloc.start()
    try:
        graph = read_onnx(proto)
        assert graph.outputs[0].type.static_shape == (2**45,)
    except UnsupportedError:
        assert op == "Tile"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


# ---- meaning ------------------------------------------------------------------------------------------------------------


def _cycle(m: ModelProto) -> None:
    del m.graph.node[:]
    m.graph.node.extend([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
                         helper.make_node("Relu", ["b"], ["y"])])


def _input_twice(m: ModelProto) -> None:
    m.graph.input.append(m.graph.input[0])


def _rename_output(name: str) -> Callable[[ModelProto], None]:
    def change(m: ModelProto) -> None:
        m.graph.output[0].name = name

    return change


def _node(**fields: Any) -> Callable[[ModelProto], None]:
    def change(m: ModelProto) -> None:
        for key, value in fields.items():
            getattr(m.graph.node[0], key)[:] = value

    return change


def _attribute(*attributes: AttributeProto) -> Callable[[ModelProto], None]:
    return lambda m: m.graph.node[0].attribute.extend(attributes)


def _wrong_info(m: ModelProto) -> None:
    m.graph.output[0].CopyFrom(info("y", (2, 4)))


def _wrong_dtype(m: ModelProto) -> None:
    m.graph.output[0].CopyFrom(info("y", (2, 3), TensorProto.INT32))


def _unknown_type(m: ModelProto) -> None:
    m.graph.input[0].type.tensor_type.elem_type = 77


def _no_opset(m: ModelProto) -> None:
    m.graph.node[0].domain = "nowhere"


def _mixed_types(m: ModelProto) -> None:
    m.graph.input.append(info("k", (2, 3), TensorProto.INT32))
    m.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "k"], ["y"]))


INVALID: dict[str, Callable[[ModelProto], None]] = {
    "cycle": _cycle, "input twice": _input_twice, "dangling output": _rename_output("nowhere"),
    "nameless output": _rename_output(""), "dangling input": _node(input=["nowhere"]),
    "output shadows input": _node(output=["x"]), "too many inputs": _node(input=["x", "x"]),
    "no input": _node(input=[]), "no output": _node(output=[]), "too many outputs": _node(output=["y", "z"]),
    "unknown attribute": _attribute(helper.make_attribute("zzz", 1)),
    "attribute twice": _attribute(helper.make_attribute("a", 1), helper.make_attribute("a", 1)),
    "declared shape": _wrong_info, "declared dtype": _wrong_dtype, "element type": _unknown_type, "opset": _no_opset,
    "mixed dtypes": _mixed_types,
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_models(name: str) -> None:
    proto = relu()
    INVALID[name](proto)
    for source in (proto, proto.SerializeToString()):
        with pytest.raises(ValidationError):
            read_onnx(source, strict=name == "declared shape")


def test_all_unknown_operators_are_named_at_once() -> None:
    nodes = [helper.make_node("Frobnicate", ["x"], ["a"], name="first"), helper.make_node("Frobnicate", ["x"], ["c"]),
             helper.make_node("FusedFrobnicate", ["a"], ["b"], domain="com.microsoft"), helper.make_node("Relu", ["b"], ["y"])]
    with pytest.raises(UnsupportedError) as caught:
        read_onnx(model(nodes, {"x": (2,)}, ["y"], domains={"com.microsoft": 1}))
    for part in ("2 operators", "Frobnicate (node 'first' and 1 more)", "com.microsoft:FusedFrobnicate (node 'b')"):
        assert part in str(caught.value)


def unknown_behind_weights(place: str) -> onnx.ModelProto:
    """An operator that nobody knows behind a weight: in the main graph, the branch of an If, or a function."""
    bad = helper.make_node("Frobnicate", ["h"], ["b"], domain="own")
    nodes, functions = [helper.make_node("MatMul", ["x", "w"], ["h"])], []
    if place == "branch":
        branches = [helper.make_graph([n], "g", [], [helper.make_tensor_value_info("b", 1, None)])
                    for n in (bad, helper.make_node("Relu", ["h"], ["b"]))]
        nodes.append(helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1]))
    elif place == "function":
        functions = [helper.make_function("own", "F", ["h"], ["b"], [bad], [helper.make_opsetid("own", 1)])]
        nodes.append(helper.make_node("F", ["h"], ["y"], domain="own"))
    else:
        nodes += [bad, helper.make_node("Identity", ["b"], ["y"])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 2]), helper.make_tensor_value_info("c", 9, [])],
                              [helper.make_tensor_value_info("y", 1, None)], [numpy_helper.from_array(np.ones((2, 2), np.float32), "w")])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, ir_version=9, opset_imports=opsets, functions=functions)


@pytest.mark.parametrize("place", ["main", "branch", "function"])
def test_unknown_operators_are_found_before_weights_are_read(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: Any) -> Any:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("flowgrad.exchange.scopes.array_of", read)
    with pytest.raises(UnsupportedError, match="own:Frobnicate"):
        read_onnx(unknown_behind_weights(place).SerializeToString())


def test_weights_in_blocks_of_a_processor_are_refused_with_the_way_out() -> None:
    node = helper.make_node("ReorderInput", ["x"], ["y"], domain="com.microsoft.nchwc")
    with pytest.raises(UnsupportedError, match=r"nchwc:ReorderInput \(node 'y'\).*up to ORT_ENABLE_EXTENDED"):
        read_onnx(model([node], {"x": (1, 8, 2, 2)}, ["y"], domains={"com.microsoft.nchwc": 1}))


def test_own_operators_are_not_read_from_files() -> None:
    for domain in ("", "flowgrad"):
        node = helper.make_node("SumTo", ["x", "s"], ["y"], domain=domain)
        with pytest.raises(UnsupportedError, match="SumTo"):
            read_onnx(model([node], {"x": (2,), "s": np.ones(1, np.int64)}, ["y"], domains={"flowgrad": 1} if domain else None))


def test_an_operator_on_tensors_takes_no_sequence() -> None:
    proto = relu()
    proto.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None))
    with pytest.raises(ValidationError, match=r"Relu of opset \d+ takes no sequence.float32"):
        read_onnx(proto)


def test_training_information_is_refused() -> None:
    proto = relu()
    proto.training_info.add()
    with pytest.raises(UnsupportedError, match="training"):
        read_onnx(proto)


# ---- tensors ------------------------------------------------------------------------------------------------------------


def _tensor(**fields: Any) -> TensorProto:
    tensor = TensorProto(name="w", data_type=fields.pop("data_type", TensorProto.FLOAT), dims=fields.pop("dims", [2, 3]))
    for key, value in fields.items():
        if key == "raw_data":
            tensor.raw_data = value
        else:
            getattr(tensor, key).extend(value)
    return tensor


BAD_TENSORS = {
    "too little": _tensor(raw_data=bytes(20)), "too much": _tensor(raw_data=bytes(28)), "nothing": _tensor(),
    "negative": _tensor(dims=[-2, -3], raw_data=bytes(24)), "overflow": _tensor(dims=[2**32, 2**32], raw_data=b""),
    "huge and empty": _tensor(dims=[0, 2**62], raw_data=bytes(4)), "wrong field": _tensor(int64_data=[1] * 6),
    "two fields": _tensor(raw_data=bytes(24), float_data=[1.0] * 6), "unknown type": _tensor(data_type=99),
    "undefined type": _tensor(data_type=0, raw_data=bytes(24)),
    "out of range": _tensor(data_type=TensorProto.INT8, int32_data=[300] * 6),
    "too many bits": _tensor(data_type=TensorProto.FLOAT6E2M3, int32_data=[64] * 6),
    "raw strings": _tensor(data_type=TensorProto.STRING, raw_data=bytes(6)),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_lie(name: str) -> None:
    tracemalloc.start()
    with pytest.raises((ValidationError, LimitError)):
        read_onnx(with_weight(BAD_TENSORS[name]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_unused_tensors_are_checked_too() -> None:
    proto = relu()
    proto.graph.initializer.append(BAD_TENSORS["too little"])
    with pytest.raises(ValidationError):
        read_onnx(proto)


@pytest.mark.parametrize("dtype", [dtype_of(n).name for n in range(1, 29)])
def test_tensors_of_every_type(dtype: str) -> None:
    kind = dtype_of(dtype)
    numbers = np.array([0, 1, 1, 0, 1, 0, 1])
    numbers = np.ones(7) if dtype == "float8_e8m0fnu" else numbers  # which has no zero
    array = np.array(["a", "", "é"], object) if kind.kind == "string" else numbers.astype(kind.numpy)
    there = array_of(tensor_of(array, "t"), ExternalFolder(None), Limits())
    assert there.dtype == array.dtype and there.shape == array.shape
    assert np.array_equal(there, array)
    if kind.kind != "string":
        theirs = numpy_helper.from_array(array, "t")
        assert raw_bytes(array) == theirs.raw_data
        made = helper.make_tensor("t", kind.onnx, [7], numbers.astype(np.float32) if kind.is_float else numbers)
        assert np.array_equal(array_of(made, ExternalFolder(None), Limits()), array)


# ---- external data ------------------------------------------------------------------------------------------------------


def external_model(folder: Path, location: str, **entries: Any) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path = folder / "m.onnx"
    path.write_bytes(with_weight(tensor).SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    weights = np.arange(6, dtype=np.float32).tobytes()
    (inside / "w.bin").write_bytes(bytes(8) + weights)
    (inside / "sub" / "w.bin").write_bytes(weights)
    (tmp_path / "outside.bin").write_bytes(weights)
    (inside / "link").symlink_to(tmp_path / "outside.bin")
    (inside / "linked").symlink_to(inside / "sub")
    os.link(tmp_path / "outside.bin", inside / "hard")
    os.mkfifo(inside / "fifo")
    return inside


@pytest.mark.parametrize(("location", "entries"), [("w.bin", {"offset": 8, "length": 24}), ("w.bin", {"offset": 8}),
                                                   ("sub/w.bin", {}), ("./sub/./w.bin", {"length": 24})])
def test_external_data_beneath_the_folder(folder: Path, location: str, entries: dict[str, Any]) -> None:
    graph = read_onnx(external_model(folder, location, **entries))
    assert graph.value("w").constant is not None
    np.testing.assert_array_equal(graph.value("w").constant, np.arange(6, dtype=np.float32).reshape(2, 3))


def test_external_data_that_is_replaced_while_it_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, path = os.open, external_model(folder, "sub/w.bin")

    def open_and_replace(name: str, flags: int, *args: Any, **keywords: Any) -> int:
        descriptor = opened(name, flags, *args, **keywords)
        if name == "w.bin":
            (folder / "new").write_bytes(bytes(24))
            (folder / "new").replace(folder / "sub" / "w.bin")
        return descriptor

    monkeypatch.setattr(os, "open", open_and_replace)
    weights = read_onnx(path).value("w").constant
    np.testing.assert_array_equal(weights, np.arange(6, dtype=np.float32).reshape(2, 3))


OUTSIDE = ["../outside.bin", "sub/../../outside.bin", "/etc/passwd", "link", "linked/w.bin", "hard", "fifo", "sub", "",
           ".", "..", "missing", "w.bin\0", "a//b", "C:\\w.bin", "file:///etc/passwd", "~/w.bin", "/proc/self/mem",
           "*/_ORT_MEM_ADDR_/*"]


@pytest.mark.parametrize("location", OUTSIDE, ids=repr)
def test_external_data_elsewhere(folder: Path, location: str) -> None:
    with pytest.raises(ExternalDataError):
        read_onnx(external_model(folder, location))


LYING = [{"offset": 9}, {"offset": -1}, {"length": 23}, {"length": 25, "offset": 0}, {"offset": 2**63}, {"offset": "1e3"},
         {"offset": "0x8"}, {"length": 2**62}, {"basepath": "/"}, {"checksum": "x", "offset": 2**40}]


@pytest.mark.parametrize("entries", LYING, ids=repr)
def test_external_entries_that_lie(folder: Path, entries: dict[str, Any]) -> None:
    with pytest.raises(ExternalDataError):
        read_onnx(external_model(folder, "w.bin", **entries))


def test_external_data_needs_a_path(folder: Path) -> None:
    path = external_model(folder, "w.bin", offset=8)
    with pytest.raises(ExternalDataError, match="path"):
        read_onnx(path.read_bytes())


def test_huge_external_tensors_allocate_nothing(folder: Path) -> None:
    path = external_model(folder, "w.bin")
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].dims[:] = [2**30, 1]
    path.write_bytes(proto.SerializeToString())
    tracemalloc.start()
    with pytest.raises(ExternalDataError):
        read_onnx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_nested_loops_with_changing_shapes_are_read_in_linear_time() -> None:
    body: onnx.GraphProto | None = None
    for level in range(25):
        names = {k: f"{k}{level}" for k in ("i", "c", "d", "v", "w")}
        inner = [helper.make_node("Identity", [names["c"]], [names["d"]]),
                 helper.make_node("Concat", [names["v"], "x"], [f"t{level}"], axis=0)]
        if body is None:
            inner.append(helper.make_node("Identity", [f"t{level}"], [names["w"]]))
        else:
            inner.append(helper.make_node("Loop", ["n", "", f"t{level}"], [names["w"]], body=body))
        body = helper.make_graph(
            inner, f"body{level}",
            [info(names["i"], (), TensorProto.INT64), info(names["c"], (), TensorProto.BOOL), info(names["v"], None)],
            [info(names["d"], (), TensorProto.BOOL), info(names["w"], None)])
    proto = model([helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)],
                  {"n": info("n", (), TensorProto.INT64), "x": (2,)}, ["y"])
    graph = read_onnx(proto, Limits(expanded_nodes=20_000))
    assert graph.outputs[0].type.dtype.name == "float32"
