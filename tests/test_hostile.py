"""What hostile files and their like are answered: a typed error that names the place, early and cheaply."""

from __future__ import annotations

import errno
import io
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper

import flowgrad as fg
from flowgrad.ir import files as ir_files
from flowgrad.ir.attribute_kinds import kind_conflict
from flowgrad.ir.errors import (
    FlowgradError,
    LimitError,
    LoadError,
    PassError,
    RunError,
    SaveError,
    UnsupportedError,
    ValidationError,
    safe_line,
)
from flowgrad.ir.files import write_file
from flowgrad.ir.graph import Graph
from flowgrad.ir.limits import Limits
from flowgrad.ir.ops.registry import all_ops, op
from flowgrad.ir.pack import pack
from flowgrad.model import load
from flowgrad.tools import cli, samples
from flowgrad.tools.arrays import read_arrays, save_arrays
from flowgrad.tools.maintenance import hostile, hostile_files
from tests.onnx_models import info, model

ESC = "\x1b[31m"


# ---- attributes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("annotation", "fits", "does_not"), [
    ("int", [0, -1, 2**63 - 1], [1.0, "1", (1,), 2**63]),
    ("float", [0.5, 1], ["1", (0.5,)]),
    ("str", ["", "a"], [1, ("a",)]),
    ("int | None", [None, 3], [0.5]),
    ("Sequence[int]", [(), (1, 2)], [1, (0.5,), ("a",), None]),
    ("Sequence[float] | None", [None, (0.5, 1)], ["ab", 0.5]),
    ("Array", [np.zeros(2)], [1, (1,), "a", None]),
    ("Any", [object()], []),
])
def test_kinds_of_attributes(annotation: str, fits: list[Any], does_not: list[Any]) -> None:
    assert not any(kind_conflict(annotation, value) for value in fits)
    assert all(kind_conflict(annotation, value) for value in does_not)


def test_every_attribute_of_every_operator_states_a_kind_that_is_checked() -> None:
    for definition in all_ops().values():
        for name, kind in definition.kinds.items():
            assert kind_conflict(kind, object()) or definition.name == "ConstantOfShape", (definition.name, name, kind)


WRONG = [AttributeProto(name="", type=AttributeProto.INTS, ints=[1, 2]), AttributeProto(name="", type=AttributeProto.STRING, s=b"a"),
         AttributeProto(name="", type=AttributeProto.FLOATS, floats=[0.5])]


@pytest.mark.parametrize("wrong", WRONG, ids=["ints", "string", "floats"])
@pytest.mark.parametrize(("name", "attribute"), [("Celu", "alpha"), ("Gemm", "transA"), ("LeakyRelu", "alpha"), ("Softmax", "axis"),
                                                 ("LRN", "size"), ("LogSoftmax", "axis"), ("Selu", "gamma")])
def test_an_attribute_of_another_kind_is_refused_at_load(name: str, attribute: str, wrong: AttributeProto) -> None:
    node = helper.make_node(name, ["x", "x"] if name == "Gemm" else ["x"], ["y"])
    given = AttributeProto()
    given.CopyFrom(wrong)
    given.name = attribute
    node.attribute.append(given)
    with pytest.raises(ValidationError, match=attribute) as caught:
        load(model([node], {"x": (2, 2)}, ["y"]))
    assert caught.value.where


def test_text_with_an_attribute_beyond_64_bits() -> None:
    with pytest.raises(FlowgradError, match="axis"):
        load(b"graph @g (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Softmax(%x) {axis=99999999999999999999} }")


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Hardmax"])
def test_an_axis_that_is_not_there(name: str) -> None:
    node = helper.make_node(name, ["x"], ["y"], axis=3)
    with pytest.raises(ValidationError, match="no axis 3 at rank 2"):
        load(model([node], {"x": (2, 2)}, ["y"], opset=13))
    loaded = load(model([node], {"x": None}, ["y"], opset=13))
    with pytest.raises(RunError, match="no axis 3 at rank 1"):
        loaded(x=np.ones(4, np.float32))


# ---- edges of stages ------------------------------------------------------------------------------------------------------


def test_a_rule_that_fails_is_an_error_that_names_the_node() -> None:
    with fg.scoped():

        @op("Broken")
        def broken(x: Any) -> Any:
            return x

        broken.types(lambda node: node.input(0).type)
        broken.adjoint(lambda b, node, y_bar: [][0])
        loaded = load(b"graph @g (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Broken(%x) }")
        with pytest.raises(PassError, match="the adjoint rule of Broken failed") as caught:
            fg.vjp(loaded)
        assert "%y = Broken" in caught.value.where


# ---- limits ---------------------------------------------------------------------------------------------------------------


def loop(trips: int, op_name: str = "Add", scanned: int = 0, **more: Any) -> Any:
    body = helper.make_graph(
        [helper.make_node(op_name, ["a", "a"], ["b"], **more), helper.make_node("Identity", ["c"], ["d"])], "body",
        [info("i", (), TensorProto.INT64), info("c", (), TensorProto.BOOL), info("a", None)],
        [info("d", (), TensorProto.BOOL), info("b", None), *[info("b", None)] * scanned])
    node = helper.make_node("Loop", ["m", "flag", "x"], ["y", *["z"] * scanned], body=body)
    return model([node], {}, ["y", *["z"] * scanned], initializers={"m": np.asarray(trips), "flag": np.asarray(True), "x": np.zeros(1, np.float32)})


def test_folding_leaves_an_endless_loop_to_the_run_which_refuses_it() -> None:
    started = time.process_time()
    loaded = load(loop(2**62), limits=Limits(loop_steps=50))
    loaded.optimized()
    with pytest.raises(LimitError, match="loop_steps"):
        loaded()
    assert time.process_time() - started < 5


def test_a_run_ends_when_its_time_is_over() -> None:
    loaded = load(loop(2**62))
    started = time.monotonic()
    with pytest.raises(LimitError, match="wall_seconds"):
        loaded.compile(limits=Limits(wall_seconds=0.1, loop_steps=2**62)).run({})
    assert time.monotonic() - started < 10


def test_rows_that_a_loop_stacks_keep_to_the_limits() -> None:
    loaded = load(loop(2**40, scanned=1), limits=Limits(tensor_bytes=4096))
    with pytest.raises(LimitError, match="tensor_bytes"):
        loaded()


def test_what_nested_calls_hold_is_counted_together() -> None:
    """Each of three scan outputs, one inside the other, keeps to the limit; together they do not."""
    def stacked(depth: int) -> onnx.GraphProto:
        name, inner = f"s{depth}", f"s{depth - 1}"
        nodes = [helper.make_node("Loop", ["rows", ""], [inner], body=stacked(depth - 1))] if depth else [
            helper.make_node("Tanh", ["x"], ["s-1"])]
        nodes += [helper.make_node("Identity", [inner], [name]), helper.make_node("Identity", [f"c{depth}"], [f"d{depth}"])]
        return helper.make_graph(nodes, "body", [info(f"i{depth}", (), TensorProto.INT64), info(f"c{depth}", (), TensorProto.BOOL)],
                                 [info(f"d{depth}", (), TensorProto.BOOL), info(name, None)])

    nested = load(model([helper.make_node("Loop", ["rows", ""], ["y"], body=stacked(2))], {"x": (64,)}, ["y"],
                        initializers={"rows": np.asarray(4)}))
    x = np.ones(64, np.float32)
    whole = 4**3 * x.nbytes  # and a quarter and a sixteenth of it while it is filled
    assert nested.compile(limits=Limits(live_bytes=3 * whole)).run({"x": x})["y"].nbytes == whole
    with pytest.raises(LimitError, match="live_bytes"):
        nested.compile(limits=Limits(live_bytes=whole + whole // 8)).run({"x": x})


def test_memory_that_calls_give_back_is_not_counted() -> None:
    looped = load(loop(1000, scanned=1)).compile(limits=Limits(live_bytes=100_000))
    for _ in range(3):
        looped.run({})


def test_outputs_of_a_body_that_have_one_name_can_be_saved(tmp_path: Path) -> None:
    loaded = load(loop(3, scanned=1))
    loaded.save(tmp_path / "m.msgpack")
    assert np.array_equal(load(tmp_path / "m.msgpack")()["y"], loaded()["y"])


def test_inputs_are_not_made_beyond_the_limits() -> None:
    relu = load(model([helper.make_node("Relu", ["x"], ["y"])], {"x": (2**20, 0, 2**40)}, ["y"]))
    with pytest.raises(LimitError, match="tensor_bytes"):
        samples.sample_inputs(relu.graph, 0, {})


# ---- accepted although bad ------------------------------------------------------------------------------------------------


def relu() -> Any:
    return model([helper.make_node("Elu", ["x"], ["y"])], {"x": (2,)}, ["y"])


@pytest.mark.parametrize("version", [2**62, -1, 1000])
def test_versions_that_no_file_has(version: int) -> None:
    proto = relu()
    proto.ir_version = version
    with pytest.raises(UnsupportedError, match="IR version"):
        load(proto)


def test_a_reference_to_an_attribute_outside_a_function() -> None:
    proto = relu()
    proto.graph.node[0].attribute.add(name="alpha", ref_attr_name="a", type=AttributeProto.FLOAT)
    with pytest.raises(ValidationError, match="'a' of a function"):
        load(proto)


def test_a_function_that_imports_no_opset() -> None:
    function = helper.make_function("d", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [])
    proto = model([helper.make_node("F", ["x"], ["y"], domain="d")], {"x": (2,)}, ["y"], functions=[function], domains={"d": 1})
    with pytest.raises(ValidationError, match="imports no opset"):
        load(proto)


@pytest.mark.parametrize("sparse", [False, True])
def test_extents_beyond_the_address_space_beside_a_zero(sparse: bool) -> None:
    shape = [0, *[2**40] * 3]
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (2,)}, ["y"])
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[0] if sparse else shape)
    if sparse:
        entries = TensorProto(name="i", data_type=TensorProto.INT64, dims=[0])
        proto.graph.sparse_initializer.add(values=tensor, indices=entries, dims=shape)
    else:
        proto.graph.initializer.append(tensor)
    with pytest.raises(LimitError, match="no array has the shape"):
        load(proto)


def test_extents_beyond_the_address_space_in_a_packed_file() -> None:
    graph = Graph("g")
    graph.add_output(graph.add_constant(np.zeros((0, 2**40, 3), np.float32), "w", "initializer"), "y")
    data = bytearray(pack(graph))
    at = data.index(msgpack.packb(2**40))
    data[at:at + 9] = msgpack.packb(2**63 - 1)
    with pytest.raises(LimitError, match="no array has the shape"):
        load(hostile_files.sealed(bytes(data)), limits=Limits(dim=2**63 - 1))


# ---- arrays ---------------------------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_by_what_it_declares(tmp_path: Path) -> None:
    with (zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
          archive.open("x.npy", "w") as member):
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (1 << 27,)})
        for _ in range(128):
            member.write(bytes(1 << 20))
    with pytest.raises(LimitError, match="unpack to"):
        read_arrays([str(tmp_path / "bomb.npz")])


@pytest.mark.parametrize("header", [b"{'descr': '<f4', 'fortran_order': False, 'shape': (01,), }", b"{'descr': [(", b"{1: 2, 'a': 3}"])
def test_headers_that_are_none(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(4))
    with pytest.raises(LoadError):
        read_arrays([f"x={tmp_path / 'x.npy'}"])


def test_an_archive_given_by_a_name_says_how_it_is_given(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(2))
    with pytest.raises(LoadError, match=r"no \.npy file of version 1\.0: an \.npz file is given without a NAME="):
        read_arrays([f"x={tmp_path / 'x.npz'}"])


def test_damaged_archives(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.arange(40.0))
    data = stream.getvalue()
    for at in range(0, len(data), 3):
        (tmp_path / "x.npz").write_bytes(data[:at] + bytes((data[at] ^ 0x55,)) + data[at + 1:])
        try:
            read_arrays([str(tmp_path / "x.npz")])
        except FlowgradError:
            continue


def test_outputs_of_any_name_are_saved(tmp_path: Path) -> None:
    arrays = {name: np.arange(3.0) for name in ("file", "allow_pickle", "self", "\U0001f600" * 60, "a/b")}
    save_arrays(str(tmp_path / "o.npz"), arrays)
    with np.load(tmp_path / "o.npz") as archive:
        assert set(archive.files) == set(arrays)
        assert all(np.array_equal(archive[n], a) for n, a in arrays.items())
    load(relu()).save(tmp_path / ("\U0001f600" * 60))


# ---- terminal -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["run"], ["inspect", "--nodes", "--params"], ["gradcheck"], ["opt"], ["grad", "--vjp"],
                                     ["inspect", "--json"], ["run", "--json"], ["run", "--outputs", f"{ESC}\nX"]])
def test_nothing_that_a_file_says_reaches_the_terminal_raw(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = f"{ESC}\r\x07\x00\u202e\x7f\nFORGED"
    nodes = [helper.make_node("Tanh", [f"x{evil}"], [f"h{evil}"], name=evil),
             helper.make_node("Round", [f"h{evil}"], ["r"]), helper.make_node("Add", ["r", f"h{evil}"], [f"y{evil}"])]
    proto = model(nodes, {f"x{evil}": (2,)}, [f"y{evil}"])
    proto.graph.name = evil
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    cli.main([command[0], str(tmp_path / "m.onnx"), *command[1:]])
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not any(c in text for c in "\x1b\r\x07\x00\u202e\x7f")
        assert not any(line.startswith("FORGED") for line in text.splitlines())


def test_one_line_stays_one() -> None:
    assert safe_line("a\nb\x1b") == "a\\nb\\u001b"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is full is needed")
def test_a_full_standard_output_is_a_failed_save(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(relu().SerializeToString())
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert cli.main(["inspect", str(tmp_path / "m.onnx")]) == 7
        monkeypatch.undo()
    assert "No space left" in capsys.readouterr().err


# ---- saving ---------------------------------------------------------------------------------------------------------------


def test_the_next_save_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    target, left, other = tmp_path / "m", tmp_path / ".m.0123.tmp", tmp_path / ".n.0123.tmp"
    for path in (left, other):
        path.write_bytes(b"half")
    with ir_files.new_file(target) as running:
        write_file(target, [b"whole"])
        assert running.temporary.exists()  # of a save that goes on
        running.stream.write(b"later")
        running.finish()
    assert not left.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".n.0123.tmp", "m"]
    assert target.read_bytes() == b"later"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_what_the_system_refuses_is_a_save_error(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(SaveError, match=os.strerror(number)):
        load(relu()).save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"], ids=["null", "surrogate"])
def test_paths_that_are_none(name: str, tmp_path: Path) -> None:
    loaded = load(relu())
    for action in (lambda p: load(p), lambda p: loaded.save(p), lambda p: loaded.to_onnx(p)):
        with pytest.raises((LoadError, SaveError)):
            action(tmp_path / name)


# ---- the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*hostile_files.CLASSES, *hostile_files.FORMS])
def test_files_of_every_kind_are_made_the_same_for_the_same_seed(kind: str) -> None:
    assert [hostile_files.hostile_file(kind, s) for s in range(5)] == [hostile_files.hostile_file(kind, s) for s in range(5)]


def test_the_command_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert hostile.main(["--kinds", "npz", "--files", "4", "--minutes", "1"]) == 0
    assert "4 files" in capsys.readouterr().out
