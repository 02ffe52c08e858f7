"""The msgpack form: what it holds, that equal graphs give equal bytes, and how it meets damage and hostility."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings

from flowgrad.ir.compare import same_graph
from flowgrad.ir.errors import (
    EngineError,
    ExternalDataError,
    FlowgradError,
    LimitError,
    LoadError,
    SaveError,
    UnsupportedError,
    ValidationError,
)
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Graph
from flowgrad.ir.limits import Limits
from flowgrad.ir.pack import graph_digest, is_packed, load, pack, save, unpack
from flowgrad.ir.precheck import precheck
from flowgrad.ir.text import format_graph, large_constants, parse_graph
from flowgrad.ir.types import FLOAT32, Type
from tests import ir_graphs
from tests.op_cases import Case, all_cases

MIB = 2**20


def sealed(body: bytes) -> bytes:
    """Return a file with the right digest: ``body`` is everything before it."""
    return body + hashlib.blake2b(body, digest_size=32).digest()


def rewritten(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the file with its map changed, and head and digest right again. The file must hold no tensors."""
    content = msgpack.unpackb(data)
    change(content)
    content.pop("digest")
    tensors = content.pop("tensors")
    parts = [bytes([0x82 + len(content)])]
    for key, value in content.items():
        parts += [msgpack.packb(key), b"\xcf" + bytes(8) if key == "head" else msgpack.packb(value)]
    head = b"".join(parts)
    place = head.index(b"\xa4head\xcf") + 6
    head = head[:place] + len(head).to_bytes(8, "big") + head[place + 8 :]
    return sealed(head + b"\xa7tensors\xdd" + len(tensors).to_bytes(4, "big") + b"\xa6digest\xc4\x20")


def graph_of(content: dict[str, Any]) -> dict[str, Any]:
    return content["graphs"][-1]  # type: ignore[no-any-return]


# ---- what it holds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ir_graphs.SAMPLES)
def test_samples_unpack_to_the_same_graph_and_bytes(name: str) -> None:
    graph = ir_graphs.SAMPLES[name]()
    data = pack(graph)
    again = unpack(data)
    assert same_graph(graph, again) is None
    assert format_graph(again) == format_graph(graph)
    assert pack(again) == data
    assert pack(graph.copy()) == data
    assert graph_digest(again) == data[-32:].hex()


@settings(deadline=None, max_examples=60)
@given(ir_graphs.graphs())
def test_random_graphs_unpack_to_the_same_graph_and_bytes(graph: Graph) -> None:
    data = pack(graph)
    again = unpack(data)
    assert same_graph(graph, again) is None
    assert pack(again) == data


@pytest.mark.parametrize("case", all_cases(), ids=lambda c: c.id)
def test_every_operator_unpacks_to_the_same(case: Case) -> None:
    for symbolic in {False, case.symbolic}:
        graph, node = case.graph(case.arrays(), symbolic)
        data = pack(graph)
        again = unpack(data)
        assert same_graph(graph, again) is None
        assert pack(parse_graph(format_graph(graph), large_constants(graph))) == data
        for mine, other in zip(node.outputs, again.nodes()[-1].outputs, strict=True):
            if mine is not None and mine.symbolic is not None and other is not None:
                assert other.symbolic is not None and other.symbolic.tolist() == mine.symbolic.tolist()


def test_any_reader_opens_it() -> None:
    content = msgpack.unpackb(pack(ir_graphs.mlp()))
    assert list(content) == ["magic", "version", "head", "graphs", "tensors", "digest"]
    assert (content["magic"], content["version"]) == ("flowgrad", 1)
    weight = np.frombuffer(content["tensors"][1], "<f4").reshape(4, 18)
    assert np.array_equal(weight, np.linspace(-1, 1, 72, dtype=np.float32).reshape(4, 18))


def test_tensors_begin_at_multiples_of_64_and_are_not_copied() -> None:
    data = pack(ir_graphs.mlp())
    array = unpack(data).value("fc1/weight").producer.data
    assert array is not None and not array.flags.writeable
    offset = array.ctypes.data - np.frombuffer(data, np.uint8).ctypes.data
    assert 0 < offset < len(data) and offset % 64 == 0


def test_bytes_do_not_depend_on_edit_history() -> None:
    plain, edited = ir_graphs.mlp(), ir_graphs.mlp()
    from flowgrad.ir.builder import Builder

    x = edited.value("x")
    first = Builder(edited).Neg(x)
    second = Builder(edited).Mul(first, 17.0)
    edited.new_origin("nothing", [first.producer])
    edited.remove(second.producer)
    edited.remove(first.producer)
    assert pack(edited) == pack(plain)


def test_origins_keep_their_parents() -> None:
    graph = unpack(pack(ir_graphs.mlp()))
    origin = graph.origins[graph.nodes()[-1].origin]
    assert origin.pass_name == "adjoint"
    assert [graph.origins[p].pass_name for p in origin.parents] == ["fuse", ""]


def test_unpacked_graphs_run() -> None:
    graph = ir_graphs.mlp(2)
    feeds = {"x": np.ones((2, 4), np.float32)}
    for name, array in evaluate(graph, feeds).items():
        assert np.array_equal(evaluate(unpack(pack(graph)), feeds)[name], array)


def test_what_the_form_cannot_hold_is_a_save_error() -> None:
    for attribute in (2**70, "\ud800", object()):
        graph = Graph("g")
        x = graph.add_input("x", Type(FLOAT32, (2,)))
        graph.add_node("Neg", [x], [("y", x.type)], {"a": attribute})
        with pytest.raises(SaveError):
            pack(graph)


# ---- damage -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ir_graphs.SAMPLES)
def test_every_flipped_byte_is_found(name: str) -> None:
    data = pack(ir_graphs.SAMPLES[name]())
    for at in range(len(data)):
        for mask in (0x01, 0xFF):
            with pytest.raises(LoadError):
                unpack(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])


@pytest.mark.parametrize("name", ["tiny", "branches"])
def test_every_truncation_is_found(name: str) -> None:
    data = pack(ir_graphs.SAMPLES[name]())
    for length in range(len(data)):
        with pytest.raises(LoadError):
            unpack(data[:length])


def test_every_truncation_with_a_right_digest_is_found() -> None:
    body = pack(ir_graphs.tiny())[:-32]
    for length in range(len(body)):
        with pytest.raises(LoadError):
            unpack(sealed(body[:length]))


@pytest.mark.parametrize("name", ["tiny", "absences", "branches"])
def test_every_flipped_byte_with_a_right_digest_is_read_or_refused(name: str) -> None:
    body = pack(ir_graphs.SAMPLES[name]())[:-32]
    accepted = 0
    for at in range(len(body)):
        for mask in (0x01, 0x10, 0x80):
            changed = sealed(body[:at] + bytes([body[at] ^ mask]) + body[at + 1 :])
            try:
                unpack(changed)
                accepted += 1  # a letter of a name, a bit of a constant
            except FlowgradError:
                continue
    assert accepted < 3 * len(body)


def test_bytes_after_the_end_are_refused() -> None:
    data = pack(ir_graphs.tiny())
    with pytest.raises(LoadError):
        unpack(data + b"\0")
    with pytest.raises(LoadError):
        unpack(sealed(data + data[:-32]))


# ---- hostile files ------------------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize(("message", "reason"), [
    (nested(100), "depth is 65"), (b"\x82\xa1a\x01\xa1a\x02", "twice"), (b"\x81\x01\x02", "no string"),
    (b"\x81\x90\x01", "no string"), (b"\x81\xc4\x01a\x01", "no string"), (b"\xd4\x01\x00", "allowed"), (b"\xc1", "allowed"),
    (b"\xc7\x01\x01\x00", "allowed"), (b"\xdd\xff\xff\xff\xff", "beyond the end"), (b"\xdf\xff\xff\xff\xff", "beyond the end"),
    (b"\xdb\xff\xff\xff\xff", "beyond the end"), (b"\xc6\xff\xff\xff\xff", "beyond the end"), (b"\xa2\xc3\x28", "UTF-8"),
    (b"\xa3\xed\xa0\x80", "UTF-8"), (b"\x01\x02", "follow"), (b"", "too early"), (b"\xcb\x00", "too early"),
    (b"\xc5\x00", "too early"), (b"\x92\x01", "beyond the end"),
])
def test_the_scan_refuses(message: bytes, reason: str) -> None:
    with pytest.raises((LoadError, LimitError), match=reason):
        precheck(message, Limits())


@pytest.mark.parametrize("value", [
    None, True, 0, -1, -33, 127, 128, 2**16, 2**32, 2**64 - 1, -(2**63), 1.5, "", "é" * 40, "a" * 300, "a" * 70_000, b"", b"x" * 300,
    b"x" * 70_000, [], list(range(20)), [0] * 70_000, {}, {"a": [1, {"b": None}]}, {str(i): i for i in range(300)},
])
def test_the_scan_accepts_what_msgpack_writes(value: object) -> None:
    data = msgpack.packb(value)
    precheck(data, Limits())
    precheck(memoryview(data), Limits())
    for length in range(0, len(data), max(1, len(data) // 50)):
        with pytest.raises(LoadError):
            precheck(data[:length], Limits())


@pytest.mark.parametrize("message", [
    b"\xdd\x00\x04\x00\x00" + b"\x90" * (MIB // 4), b"\xdd\x00\x04\x00\x00" + b"\x80" * (MIB // 4), nested(4 * MIB),
    b"\xdd\xff\xff\xff\xff" + b"\x90" * MIB, b"\x91\xdb\xff\xff\xff\xff" + b"a" * MIB,
])
def test_bombs_are_scanned_without_memory(message: bytes) -> None:
    tracemalloc.start()
    try:
        precheck(message, Limits())
    except (LoadError, LimitError):
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MIB


def bomb_entry(content: dict[str, Any]) -> None:
    graph_of(content)["nodes"] = [[[[]] * 5_000]]


@pytest.mark.parametrize("change", [
    lambda c: graph_of(c)["types"].__setitem__(0, ["float32", [2**40, 2**40]]),
    lambda c: graph_of(c)["constants"].append(["big", "initializer", 0, 0]),
    lambda c: graph_of(c).__setitem__("nodes", [[]] * 300_000),
    lambda c: c.__setitem__("graphs", [{}] * 300_000),
    lambda c: graph_of(c).__setitem__("inputs", [["x", 0]] * 50_000),
    bomb_entry,
])
def test_bombs_are_refused_without_memory(change: Callable[[dict[str, Any]], object]) -> None:
    data = rewritten(pack(ir_graphs.tiny()), change)
    tracemalloc.start()
    try:
        with pytest.raises(FlowgradError):
            unpack(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * MIB + 4 * len(data)


def set_type(shape: list[int | str] | None, dtype: str = "int64") -> Callable[[dict[str, Any]], object]:
    return lambda c: graph_of(c)["types"].__setitem__(0, [dtype, shape])


def set_constant(*row: object) -> Callable[[dict[str, Any]], object]:
    return lambda c: graph_of(c)["constants"].__setitem__(0, list(row))


def set_node(field: int, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda c: graph_of(c)["nodes"][0].__setitem__(field, value)


@pytest.mark.parametrize("change", [
    lambda c: c.__setitem__("version", 2), lambda c: c.__setitem__("extra", 1), lambda c: c.__setitem__("graphs", []),
    lambda c: c.__setitem__("graphs", 5), lambda c: c["graphs"].insert(0, c["graphs"][0]),
    lambda c: graph_of(c).__setitem__("extra", 1), lambda c: graph_of(c).pop("outputs"),
    lambda c: graph_of(c).__setitem__("name", 5), lambda c: graph_of(c).__setitem__("metadata", {"a": 1}),
    set_type([2, 2]), set_type([-2]), set_type([True]), set_type(None),
    set_type(["N"]), set_type(["2"]), set_type(["N + 1"]), set_type(["N//0"]), set_type([2], "float31"), set_type([3], "int32"),
    set_type([2**62, 4]), set_type([0, 2**62]),
    set_constant("", "literal", 0, b"short"), set_constant("", "parameter", 0, bytes(16)),
    set_constant("c", "odd", 0, bytes(16)), set_constant("c", "literal", 9, bytes(16)), set_constant("c", "literal", 0, 0),
    set_constant("c", "literal", 0, ["a", "b"]), set_constant("c", "literal", 0, {"weights": "c"}),
    set_constant("c", "literal", 0), set_constant("x", "literal", 0, bytes(16)), set_constant("c", "literal", -1, bytes(16)),
    set_node(0, "Sotfmax"), set_node(0, 5), set_node(1, [0, 99]), set_node(1, [0, -1]), set_node(1, [0, True]),
    set_node(1, [0, 2]), set_node(1, [0]), set_node(2, ["y"]), set_node(2, ["", 0]), set_node(2, ["x", 0]), set_node(2, []),
    set_node(1, {"a": 1}), set_node(1, 3), set_node(2, None),
    lambda c: graph_of(c)["nodes"][0].append({"axis": 1}), lambda c: graph_of(c)["nodes"][0].extend([{}, 7]),
    lambda c: graph_of(c)["nodes"][0].extend([{}, 0, "", {}, [], {"body": 0}]),
    lambda c: graph_of(c)["nodes"][0].extend([{}, 0, "", {"k": 1}]),
    lambda c: graph_of(c)["nodes"][0].extend([{}, 0, "", {}, [], {}, 1]),
    lambda c: graph_of(c)["outputs"].append(["z", 77]), lambda c: graph_of(c)["outputs"].append(["y", 0]),
    lambda c: graph_of(c)["origins"].append(["p", ["x"], [5]]), lambda c: graph_of(c)["inputs"].append(["x", 0]),
    lambda c: graph_of(c)["inputs"].append(5),
])
def test_forms_that_do_not_hold_are_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises((LoadError, ValidationError, LimitError, UnsupportedError)):
        unpack(rewritten(pack(ir_graphs.tiny()), change))


def test_the_helper_that_rewrites_changes_nothing_by_itself() -> None:
    data = pack(ir_graphs.tiny())
    assert rewritten(data, lambda c: None) == data


@pytest.mark.parametrize(("limits", "name"), [
    (Limits(file_bytes=100), "file_bytes"), (Limits(header_bytes=100), "header_bytes"), (Limits(nodes=2), "nodes"),
    (Limits(values=3), "values"), (Limits(name_bytes=9), "name_bytes"), (Limits(string_bytes=100), "string_bytes"),
    (Limits(rank=1), "rank"), (Limits(dim=17), "dim"), (Limits(tensor_bytes=287), "tensor_bytes"), (Limits(depth=4), "depth"),
    (Limits(attributes=1), "attributes"),
])
def test_limits_hold(limits: Limits, name: str) -> None:
    with pytest.raises(LimitError) as caught:
        unpack(pack(ir_graphs.mlp()), limits)
    assert caught.value.code == name


def test_limits_hold_exactly() -> None:
    data = pack(ir_graphs.mlp())
    unpack(data, Limits(file_bytes=len(data), nodes=4, rank=2, dim=18, tensor_bytes=288))
    with pytest.raises(LimitError):
        pack(ir_graphs.mlp(), Limits(file_bytes=len(data) - 1))


def test_the_slow_msgpack_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from msgpack.fallback import Unpacker

    monkeypatch.setattr(msgpack, "Unpacker", Unpacker)
    with pytest.raises(EngineError, match="C extension"):
        unpack(pack(ir_graphs.tiny()))


# ---- files --------------------------------------------------------------------------------------------------------------------


def test_files_load_as_they_were_saved(tmp_path: Path) -> None:
    graph = ir_graphs.mlp()
    path = tmp_path / "model.msgpack"
    save(graph, path)
    assert path.read_bytes() == pack(graph)
    assert is_packed(path.read_bytes()[:64])
    for mapped in (False, True):
        again = load(path, mmap=mapped)
        data = again.value("fc1/weight").producer.data
        assert same_graph(graph, again) is None
        assert data is not None and not data.flags.writeable and data.ctypes.data % 64 == 0
    assert os.listdir(tmp_path) == ["model.msgpack"]


def test_large_tensors_go_to_a_safetensors_file(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    graph = ir_graphs.constants()
    graph.add_constant(np.arange(100.0), "large")
    graph.add_constant(np.zeros((40, 40), np.complex64), "large complex")
    save(graph, tmp_path / "m.msgpack", external=True)
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 2 and names[0].startswith("m-") and names[0].endswith(".safetensors")
    assert same_graph(load(tmp_path / "m.msgpack"), graph) is None
    with pytest.raises(LoadError, match="use load"):
        unpack((tmp_path / "m.msgpack").read_bytes())
    weights = tmp_path / names[0]
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ExternalDataError, match="not the one"):
        load(tmp_path / "m.msgpack")
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LoadError, match="cannot open"):
        load(tmp_path / "m.msgpack")


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/passwd", "w", "", "a/b.safetensors", "..", "\0.safetensors"])
def test_weights_elsewhere_are_not_opened(tmp_path: Path, name: str) -> None:
    from flowgrad.ir.weights import read_weights

    with pytest.raises(ExternalDataError, match="no name of a weights file"):
        read_weights(tmp_path, name, b"", Limits())


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "missing", Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(LoadError):
            load(path)
    (tmp_path / "empty").touch()
    for mapped in (False, True):
        with pytest.raises(LoadError):
            load(tmp_path / "empty", mmap=mapped)


def test_what_is_no_regular_file_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "link", tmp_path / "fifo", tmp_path, tmp_path / "missing" / "x", Path("a\0b")):
        for external in (False, True):
            with pytest.raises(SaveError):
                save(ir_graphs.mlp(), path, external=external)
    assert (tmp_path / "target").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["fifo", "link", "target"]


@pytest.mark.parametrize("step", ["open", "fsync", "replace", "write"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "m.msgpack"
    save(ir_graphs.tiny(), path)
    before = path.read_bytes()

    def fail(*args: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "write":
        monkeypatch.setattr("builtins.open", lambda *a, **k: _Full(os.fdopen(a[0], "wb")))
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(SaveError, match="No space left"):
        save(ir_graphs.mlp(), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.msgpack"]


class _Full:
    """A file on a full disk."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()

    def write(self, chunk: object) -> None:
        raise OSError(28, "No space left on device")


def test_an_exception_of_the_graph_leaves_no_file(tmp_path: Path) -> None:
    graph = ir_graphs.tiny()
    graph.set_attributes(graph.nodes()[0], {"a": object()})
    with pytest.raises(SaveError):
        save(graph, tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_long_graphs_take_no_stack() -> None:
    graph = ir_graphs.chain(20_000)
    assert same_graph(unpack(pack(graph)), graph) is None


def test_the_weights_file_is_that_of_the_library(tmp_path: Path) -> None:
    from flowgrad.ir.weights import write_weights

    library = pytest.importorskip("safetensors.numpy")
    tensors: dict[str, Any] = {"b": np.ones((2, 3), np.float32), 'a"\u00e9': np.zeros(3, np.int8), "c": np.ones(1), "t": np.zeros(2, bool),
               "e": np.zeros((0, 2), np.float32)}
    written = write_weights(tmp_path / "m.msgpack", tensors)
    assert (tmp_path / written.file).read_bytes() == library.save(tensors)
