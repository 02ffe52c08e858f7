"""ONNX in and out: what a graph keeps, how subgraphs and functions come in, and what the writer stamps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import flowgrad
from flowgrad.exchange.reader import read_onnx
from flowgrad.exchange.writer import save_onnx, write_onnx
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, SaveError, ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import INITIALIZER, LITERAL, PARAMETER, Array, Graph
from flowgrad.ir.ops.registry import find_op
from flowgrad.ir.types import FLOAT16, FLOAT32, FLOAT64, INT64, Dim, Type, dtype_of
from flowgrad.ir.verify import verify
from flowgrad.model import Model
from flowgrad.transforms.derivatives import vjp
from tests.exchange_sweep import Case, close, file_cases, node_cases, run_case
from tests.onnx_models import info, model, onnxruntime_outputs

ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"
ENTRIES = sorted(p.parent.name for p in ZOO.glob("*/model.onnx"))
RNG = np.random.default_rng(0)


def f32(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def round_trip(graph: Graph) -> Graph:
    """Return the graph after writing and reading; both must be sound."""
    verify(graph)
    again = read_onnx(write_onnx(graph))
    verify(again)
    return again


# ---- what a graph keeps ----------------------------------------------------------------------------------------------------


def test_names_roles_dims_and_metadata_survive() -> None:
    constant = helper.make_node("Constant", [], ["c"], name="const", value_floats=[1.0, 2.0, 3.0])
    add = helper.make_node("Add", ["x", "w"], ["h"], name="layer/add", doc_string="adds")
    add.metadata_props.add(key="scope", value="layer")
    proto = model([constant, add, helper.make_node("Mul", ["h", "c"], ["y"])], {"x": ("batch", 3)}, ["y"],
                  initializers={"w": f32(3)})
    proto.doc_string, proto.model_version, proto.domain = "a model", 7, "org.test"
    proto.metadata_props.add(key="author", value="me")
    graph = read_onnx(proto)
    for g in (graph, round_trip(graph)):
        assert list(g.values) == list(graph.values)
        assert g.value("x").type == Type(FLOAT32, (Dim.named("batch"), 3))
        assert g.value("y").type == Type(FLOAT32, (Dim.named("batch"), 3))
        assert g.value("c").producer.role == LITERAL and g.value("w").producer.role == INITIALIZER
        node = g.value("h").producer
        assert (node.name, node.metadata) == ("layer/add", {"scope": "layer", "onnx.doc_string": "adds"})
        assert g.metadata == {"author": "me", "onnx.doc_string": "a model", "onnx.model_version": "7",
                              "onnx.domain": "org.test"}


def test_initializers_that_are_inputs_are_constants() -> None:
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (3,), "w": (3,)}, ["y"],
                  initializers={"w": f32(3)}, ir_version=3)
    graph = read_onnx(proto)
    assert [v.name for v in graph.inputs] == ["x"]
    assert graph.value("w").producer.role == INITIALIZER


@pytest.mark.parametrize(("attributes", "dtype", "shape"), [
    ({"value_int": 3}, np.int64, ()), ({"value_ints": [1, 2]}, np.int64, (2,)), ({"value_ints": []}, np.int64, (0,)),
    ({"value_float": 1.5}, np.float32, ()), ({"value_floats": [1.0, 2.0]}, np.float32, (2,)),
    ({"value_string": "é"}, object, ()), ({"value_strings": ["a", "b"]}, object, (2,)),
    ({"value": numpy_helper.from_array(np.ones((2, 2), np.float16))}, np.float16, (2, 2)),
], ids=lambda p: next(iter(p)) if isinstance(p, dict) else "")
def test_constants_of_every_form(attributes: dict[str, Any], dtype: Any, shape: tuple[int, ...]) -> None:
    constant = helper.make_node("Constant", [], ["c"])
    kinds = {"value_ints": onnx.AttributeProto.INTS}
    constant.attribute.extend(helper.make_attribute(k, v, attr_type=kinds.get(k)) for k, v in attributes.items())
    proto = model([constant, helper.make_node("Identity", ["c"], ["y"])],
                  {}, ["y"], output_dtype=dtype_of(np.dtype(dtype)).onnx if dtype is not object else 8)
    array = read_onnx(proto).value("c").constant
    assert array is not None and array.dtype == dtype and array.shape == shape


def test_sparse_constants_become_dense() -> None:
    values, indices = np.array([1.0, 2.0], np.float32), np.array([1, 5])
    sparse = helper.make_sparse_tensor(numpy_helper.from_array(values, "v"), numpy_helper.from_array(indices), [2, 3])
    node = helper.make_node("Constant", [], ["c"], sparse_value=sparse)
    proto = model([node, helper.make_node("Identity", ["c"], ["y"])], {}, ["y"])
    np.testing.assert_array_equal(evaluate(read_onnx(proto))["y"], np.array([[0, 1, 0], [0, 0, 2]], np.float32))


def test_nodes_in_any_order() -> None:
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Neg", ["x"], ["a"])]
    graph = read_onnx(model(nodes, {"x": (2,)}, ["y"]))
    assert [n.op for n in graph.nodes()] == ["Neg", "Relu"]


def test_declared_extents_are_believed_only_of_own_files() -> None:
    shape = helper.make_node("Reshape", ["x", "s"], ["y"])
    proto = model([shape], {"x": ("n",), "s": info("s", (2,), TensorProto.INT64)}, ["y"])
    proto.graph.output[0].CopyFrom(info("y", (4, "anything")))
    for producer, first in (("", None), ("flowgrad", 4)):
        proto.producer_name = producer
        shape_ = read_onnx(proto).value("y").type.shape
        assert shape_ is not None and shape_[1] != Dim.named("anything")
        assert shape_[0] == first if first else not isinstance(shape_[0], int)


def test_long_chains_without_recursion() -> None:
    nodes = [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(20_000)]
    graph = read_onnx(model(nodes, {"v0": (2,)}, ["v20000"]))
    assert len(graph) == 20_000
    assert len(read_onnx(write_onnx(graph))) == 20_000


# ---- functions -------------------------------------------------------------------------------------------------------------


def test_functions_are_inlined_with_attributes_and_defaults() -> None:
    scale = helper.make_node("Constant", [], ["k"])
    scale.attribute.add(name="value_float", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT)
    body = [scale, helper.make_node("Mul", ["a", "k"], ["r"])]
    imports = [helper.make_opsetid("", 18)]
    function = helper.make_function("f", "Scale", ["a"], ["r"], body, imports,
                                    attribute_protos=[helper.make_attribute("factor", 2.0)])
    calls = [helper.make_node("Scale", ["x"], ["r"], domain="f", name="one"),
             helper.make_node("Scale", ["r"], ["y"], domain="f", name="two", factor=5.0)]
    graph = read_onnx(model(calls, {"x": (2,)}, ["y"], functions=[function], domains={"f": 1}))
    verify(graph)
    np.testing.assert_allclose(evaluate(graph, {"x": np.ones(2, np.float32)})["y"], [10.0, 10.0])
    assert "one/k" in graph.values and "two/k" in graph.values


def test_function_outputs_that_are_inputs_or_shared() -> None:
    body = [helper.make_node("Neg", ["a"], ["n"])]
    function = helper.make_function("f", "F", ["a"], ["a", "n", "m"], [*body, helper.make_node("Identity", ["n"], ["m"])],
                                    [helper.make_opsetid("", 18)])
    graph = read_onnx(model([helper.make_node("F", ["x"], ["p", "", "q"], domain="f")], {"x": (2,)}, ["p", "q"],
                            functions=[function], domains={"f": 1}))
    got = evaluate(graph, {"x": np.ones(2, np.float32)})
    assert got["p"][0] == 1 and got["q"][0] == -1


def test_operators_without_a_kernel_are_expanded_by_their_body() -> None:
    assert find_op("Shrink") is not None or find_op("CenterCropPad") is None
    data = f32(5, 4)
    node = helper.make_node("CenterCropPad", ["x", "s"], ["y"])
    proto = model([node], {"x": data.shape}, ["y"], initializers={"s": np.array([3, 4])})
    np.testing.assert_allclose(evaluate(read_onnx(proto), {"x": data})["y"], data[1:4])


# ---- subgraphs -------------------------------------------------------------------------------------------------------------


def if_model() -> onnx.ModelProto:
    """Both branches have an initializer of the same name, one captures x, one an outer branch's value."""
    def branch(name: str, op: str, weight: Array) -> onnx.GraphProto:
        inner = helper.make_graph([helper.make_node("Mul", ["h", "x"], ["in_" + name])], name + "_in", [],
                                  [info("in_" + name, None)])
        nodes = [helper.make_node(op, ["x", "w"], ["h"]),
                 helper.make_node("If", ["c"], ["out_" + name], then_branch=inner, else_branch=inner)]
        return helper.make_graph(nodes, name, [], [info("out_" + name, None)],
                                 [numpy_helper.from_array(weight, "w")])

    node = helper.make_node("If", ["c"], ["y"], name="choice",
                            then_branch=branch("then", "Add", np.full(3, 2.0, np.float32)),
                            else_branch=branch("else", "Sub", np.full(3, 5.0, np.float32)))
    return model([node], {"c": np.asarray(True), "x": (3,)}, ["y"])


@pytest.mark.parametrize("choice", [True, False])
def test_nested_branches(choice: bool) -> None:
    if find_op("If") is None:
        pytest.skip("If is not there yet")
    proto = if_model()
    graph = read_onnx(proto)
    feeds = {"c": np.asarray(choice), "x": f32(3)}
    hoisted = [v for v in graph.constants if v.producer.role == INITIALIZER]
    assert {v.name for v in hoisted} == {"w", "w_1"}
    (node,) = graph.nodes()
    assert all(not [v for v in g.constants if v.producer.role == INITIALIZER] for g in node.subgraphs.values())
    expected = feeds["x"] * (feeds["x"] + 2 if choice else feeds["x"] - 5)
    for g in (graph, round_trip(graph)):
        np.testing.assert_allclose(evaluate(g, feeds)["y"], expected, rtol=1e-6)
    np.testing.assert_allclose(onnxruntime_outputs(write_onnx(graph), feeds)[0], expected, rtol=1e-6)


def test_loops_whose_carried_value_grows() -> None:
    if find_op("Loop") is None:
        pytest.skip("Loop is not there yet")
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Concat", ["v", "x"], ["v2"], axis=0)], "body",
        [info("i", (), TensorProto.INT64), info("c", (), TensorProto.BOOL), info("v", None)],
        [info("c2", (), TensorProto.BOOL), info("v2", None)],
    )
    proto = model([helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)],
                  {"n": info("n", (), TensorProto.INT64), "x": (2,)}, ["y"])
    graph = read_onnx(proto)
    feeds = {"n": np.asarray(3), "x": f32(2)}
    for g in (graph, round_trip(graph)):
        assert g.outputs[0].type.shape is None or not g.outputs[0].type.is_static
        np.testing.assert_array_equal(evaluate(g, feeds)["y"], np.tile(feeds["x"], 4))


def test_small_integers_are_copied_into_subgraphs() -> None:
    if find_op("If") is None:
        pytest.skip("If is not there yet")
    branch = helper.make_graph([helper.make_node("Reshape", ["x", "s"], ["o"])], "b", [], [info("o", None)])
    proto = model([helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
                  {"c": np.asarray(True), "x": (6,)}, ["y"], initializers={"s": np.array([2, 3])})
    graph = read_onnx(proto)
    assert graph.outputs[0].type == Type(FLOAT32, (2, 3))
    assert [v.name for v in graph.nodes()[0].captures] == ["x"]


# ---- writing ---------------------------------------------------------------------------------------------------------------


def small() -> tuple[Graph, Builder]:
    graph = Graph("small")
    return graph, Builder(graph)


def test_outputs_get_their_names_by_identity() -> None:
    graph, b = small()
    x = graph.add_input("x", Type(FLOAT32, (2,)))
    y = b.Neg(x)
    for value, name in ((x, "same"), (x, "x"), (y, "y1"), (y, "y2"), (graph.add_constant(np.float32(3)), "three")):
        graph.add_output(value, name)
    feeds = {"x": np.array([1, 2], np.float32)}
    for got in (evaluate(round_trip(graph), feeds), dict(zip(["same", "x", "y1", "y2", "three"],
                onnxruntime_outputs(write_onnx(graph), feeds), strict=True))):
        np.testing.assert_array_equal(got["same"], feeds["x"])
        np.testing.assert_array_equal(got["x"], feeds["x"])
        np.testing.assert_array_equal(got["y1"], -feeds["x"])
        np.testing.assert_array_equal(got["y2"], -feeds["x"])
        assert got["three"] == 3


def test_the_stamp_is_the_lowest_that_is_right() -> None:
    def stamp(op: str, dtype: Any, **attributes: Any) -> int:
        graph, b = small()
        x = graph.add_input("x", Type(dtype, (2, 3)))
        graph.add_output(b.add(op, [x], attributes))
        return int(write_onnx(graph).opset_import[0].version)

    assert stamp("Relu", FLOAT32) == 18
    assert stamp("Gelu", FLOAT32) == 20
    assert stamp("Cast", FLOAT32, to=TensorProto.FLOAT8E4M3FN) == 19
    assert stamp("Cast", FLOAT32, to=TensorProto.INT4) == 21
    assert stamp("Cast", FLOAT32, to=TensorProto.INT64, saturate=1) == 18


@pytest.mark.parametrize(("mode", "opset"), [("DCR", 18), ("CRD", 28)])
def test_a_mode_that_came_later_is_stamped(mode: str, opset: int) -> None:
    graph, b = small()
    graph.add_output(b.SpaceToDepth(graph.add_input("x", Type(FLOAT32, (1, 1, 2, 2))), blocksize=2, mode=mode))
    assert write_onnx(graph).opset_import[0].version == opset


def test_the_opset_can_be_raised_and_not_lowered() -> None:
    graph, b = small()
    graph.add_output(b.Gelu(graph.add_input("x", Type(FLOAT32, (2,)))))
    assert write_onnx(graph, opset=25).opset_import[0].version == 25
    for opset in (19, 29, 7):
        with pytest.raises(InputError, match="opset"):
            write_onnx(graph, opset=opset)


def test_parameters_and_symbolic_extents_survive() -> None:
    graph, b = small()
    n = Dim.named("N")
    x = graph.add_input("x", Type(FLOAT32, (2 * n, n)))
    w = graph.add_constant(f32(1), "w", PARAMETER)
    graph.add_output(b.Mul(x, w), "y")
    again = round_trip(graph)
    assert again.value("x").type == x.type
    assert again.value("w").producer.role == INITIALIZER


def test_names_that_collide_over_scopes_are_made_unique() -> None:
    if find_op("If") is None:
        pytest.skip("If is not there yet")
    graph, b = small()
    x = graph.add_input("x", Type(FLOAT32, (2,)))
    condition = graph.add_input("c", Type(b.scalar(True, INT64).type.dtype, ()))
    subgraphs = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "Abs")):
        inner = Graph("same")
        taken = inner.add_input("x", x.type)
        inner.add_output(Builder(inner).add(op, [taken], name="y"))
        subgraphs[name] = inner
    graph.add_output(b.add("If", [b.Cast(condition, to=TensorProto.BOOL)], name="y", captures=[x],
                           subgraphs=subgraphs))
    feeds = {"x": np.array([-1, 2], np.float32), "c": np.asarray(0)}
    for g in (graph, round_trip(graph)):
        np.testing.assert_array_equal(evaluate(g, feeds)["y"], [1, 2])


def test_own_operators_are_expanded() -> None:
    graph, b = small()
    x = graph.add_input("x", Type(FLOAT32, (Dim.named("N"), 3)))
    shape = graph.add_input("s", Type(INT64, (1,)))
    graph.add_output(b.SumTo(x, shape), "y")
    proto = write_onnx(graph)
    assert all(n.op_type != "SumTo" for n in proto.graph.node)
    feeds = {"x": f32(4, 3), "s": np.array([3])}
    np.testing.assert_allclose(onnxruntime_outputs(proto, feeds)[0], feeds["x"].sum(0), rtol=1e-5)


def test_writing_is_deterministic() -> None:
    graph = read_onnx(if_model())
    assert write_onnx(graph).SerializeToString() == write_onnx(graph.copy()).SerializeToString()


# ---- files -----------------------------------------------------------------------------------------------------------------


def weighted() -> Graph:
    graph, b = small()
    x = graph.add_input("x", Type(FLOAT32, (64,)))
    w = graph.add_constant(f32(64, 64), "w", INITIALIZER)
    v = graph.add_constant(f32(64, 32), "v", INITIALIZER)
    graph.add_output(b.MatMul(b.MatMul(x, w), v), "y")
    return graph


def test_files_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    save_onnx(weighted(), path)
    assert [n.op for n in read_onnx(path).nodes()] == ["MatMul", "MatMul", "Identity"]
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_large_weights_lie_beside_the_model(tmp_path: Path) -> None:
    path, graph = tmp_path / "m.onnx", weighted()
    save_onnx(graph, path, embedded_bytes=1000)
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 2 and names[1].startswith("m.onnx.") and names[1].endswith(".data")
    assert path.stat().st_size < 2000
    x = f32(64)
    expected = evaluate(graph, {"x": x})["y"]
    np.testing.assert_array_equal(evaluate(read_onnx(path), {"x": x})["y"], expected)
    np.testing.assert_allclose(onnx.reference.ReferenceEvaluator(str(path)).run(None, {"x": x})[0],  # type: ignore[index]
                               expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_unknown_rank_is_written_with_its_weights_beside_it(tmp_path: Path) -> None:
    graph, b = small()
    x = graph.add_input("x", Type(FLOAT32, None))
    graph.add_output(b.MatMul(x, graph.add_constant(f32(64, 64), "w", INITIALIZER)), "y")
    path = tmp_path / "m.onnx"
    save_onnx(graph, path, embedded_bytes=1000)
    assert len(os.listdir(tmp_path)) == 2
    again, feeds = read_onnx(path), {"x": f32(64)}
    assert again.inputs[0].type == x.type
    np.testing.assert_array_equal(evaluate(again, feeds)["y"], evaluate(graph, feeds)["y"])


def test_outputs_that_the_standard_requires_are_named() -> None:
    graph, b = small()
    graph.add_output(b.TopK(graph.add_input("x", Type(FLOAT32, (5,))), [2]), "y")
    (node,) = read_onnx(write_onnx(graph)).nodes()[:1]
    assert node.op == "TopK" and len(node.results) == 2


def test_destinations_that_are_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "m.onnx").symlink_to(tmp_path / "target")
    for size in (2**30, 10):
        with pytest.raises(SaveError, match="link"):
            save_onnx(weighted(), tmp_path / "m.onnx", embedded_bytes=size)
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "target"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for size in (2**30, 10):
        with pytest.raises(SaveError):
            save_onnx(weighted(), tmp_path / "missing" / "m.onnx", embedded_bytes=size)


def test_a_failed_check_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise onnx.checker.ValidationError("no")

    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    for size in (2**30, 10):
        with pytest.raises(SaveError, match="checker"):
            save_onnx(weighted(), path, embedded_bytes=size)
    assert path.read_bytes() == b"old"


# ---- the models of others --------------------------------------------------------------------------------------------------


def sample() -> list[Case]:
    """Every twentieth single-operator case, and the small whole models."""
    return [*node_cases()[::20], *(c for c in file_cases() if c[0] == "simple")]


def test_backend_models_in_and_out() -> None:
    outcomes = {f"{suite}/{name}": run_case(proto, sets) for suite, name, proto, sets in sample()}
    wrong = {k: v for k, v in outcomes.items() if v[0] not in ("ok", "refused")}
    assert not wrong
    assert sum(v[0] == "ok" for v in outcomes.values()) > 60


@pytest.mark.parametrize("entry", ENTRIES)
def test_zoo(entry: str) -> None:
    data = np.load(ZOO / entry / "data.npz")
    proto = onnx.load(ZOO / entry / "model.onnx")
    missing = sorted({n.op_type for n in proto.graph.node if n.op_type == "LSTM" and find_op("LSTM") is None})
    if missing:
        pytest.skip(f"{missing} are not there yet")
    graph = read_onnx(ZOO / entry / "model.onnx")
    meta = json.loads((ZOO / entry / "meta.json").read_text())
    for g in (graph, round_trip(graph)):
        got = evaluate(g, {v.name: np.asarray(data["in/" + v.name]) for v in g.inputs})
        for output in meta["outputs"]:
            expected = data[f"out/{output['name']}"]
            assert close(got[output["name"]], expected.astype(got[output["name"]].dtype)), output["name"]


def test_a_conflict_with_the_declared_type_names_the_value() -> None:
    proto = model([helper.make_node("Relu", ["x"], ["y"])], {"x": (2, 3)}, ["y"])
    proto.graph.value_info.append(info("y", (3, 2)))
    with pytest.raises(ValidationError, match="%y"):
        read_onnx(proto, strict=True)


@pytest.mark.parametrize("entry", [e for e in ("mlp", "lenet", "hf_gpt2") if e in ENTRIES])
def test_exported_gradients_in_onnxruntime(entry: str) -> None:
    """What is written is plain ONNX: another runtime gets the reference gradients from it."""
    data = np.load(ZOO / entry / "data.npz")
    meta = json.loads((ZOO / entry / "meta.json").read_text())
    records = [r for r in meta["gradients"] if r["kind"] != "initializer_sum" and r.get("used") is not False]
    of = [o["name"] for o in meta["outputs"] if o["cotangent"]]
    derived = flowgrad.vjp(Model(read_onnx(ZOO / entry / "model.onnx")), of=of, wrt=[r["name"] for r in records])
    proto = write_onnx(derived.graph)
    assert {n.domain for n in proto.graph.node} == {""}
    feeds = {i.name: np.asarray(data["in/" + i.name]) for i in proto.graph.input if "in/" + i.name in data}
    feeds |= {f"{name}_grad": np.asarray(data["ct/" + name]) for name in of}
    got = dict(zip([o.name for o in proto.graph.output], onnxruntime_outputs(proto, feeds), strict=True))
    largest = max(r["max_abs"] for r in records)
    for record in records:
        allowed = max(1e-4 * record["max_abs"], 20 * record["floor"], 1e-7 * largest)
        error = np.abs(got[record["name"] + "_grad"] - data["grad/" + record["name"]]).max(initial=0)
        assert error <= allowed, record["name"]


def test_a_constant_image_of_narrow_floats_is_normalized_to_zeros() -> None:
    """What is added to the deviation, 1e-9, is 0 in float16."""
    graph = Graph()
    x = graph.add_input("x", Type(FLOAT16, (2, 1, 3)))
    graph.add_output(Builder(graph).MeanVarianceNormalization(x, axes=(1,)), "y")
    given = {"x": f32(2, 1, 3).astype(np.float16)}
    assert not evaluate(read_onnx(write_onnx(graph)), given)["y"].any()
    assert not evaluate(graph, given)["y"].any()


def test_a_pad_of_named_axes_is_written_for_all_axes() -> None:
    """The optimiser of onnxruntime 1.32 moves a Transpose past a Pad as if its pads were those of all axes."""
    graph = Graph()
    x = graph.add_input("x", Type(FLOAT32, (2, 4, 1)))
    b = Builder(graph)
    turned = b.Transpose(x, perm=(2, 0, 1))
    graph.add_output(b.Transpose(b.Pad(turned, [1, 2], None, [2]), perm=(1, 2, 0)), "y")
    proto = write_onnx(graph)
    (pad,) = (n for n in proto.graph.node if n.op_type == "Pad")
    assert len([name for name in pad.input if name]) == 2
    given = f32(2, 4, 1)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"x": given})[0], np.pad(given, [(0, 0), (1, 2), (0, 0)]))


def test_a_center_crop_of_named_axes_is_written_for_all_axes() -> None:
    """onnxruntime 1.32 makes a Pad of named axes of it, and fails where a Transpose is moved past that."""
    graph = Graph()
    x = graph.add_input("x", Type(FLOAT32, (Dim.named("N"), Dim.named("M"), 2)))
    b = Builder(graph)
    cropped = b.CenterCropPad(b.Transpose(x, perm=(1, 0, 2)), [1, 4], axes=(1, 2))
    graph.add_output(b.Transpose(b.Exp(cropped), perm=(1, 0, 2)), "y")
    given = f32(3, 2, 2)
    session = onnxruntime.InferenceSession(write_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    expected = np.exp(np.pad(given[1:2], [(0, 0), (0, 0), (1, 1)]))
    np.testing.assert_allclose(session.run(None, {"x": given})[0], expected, rtol=1e-6)


@pytest.mark.parametrize("between", ["Transpose", "Cast", "Add"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3)])
def test_a_turned_matrix_times_a_vector_is_a_product_of_matrices(shape: tuple[int, ...], between: str) -> None:
    """The optimiser of onnxruntime 1.32 takes a Transpose into such a product, and the product of a vector forgets it."""
    graph = Graph()
    x, v = graph.add_input("x", Type(FLOAT32, shape)), graph.add_input("v", Type(FLOAT64, (4,)))
    b = Builder(graph)
    turned = b.Transpose(x, perm=[*range(len(shape) - 2), len(shape) - 1, len(shape) - 2])
    vector = v if between == "Cast" else b.cast(v, FLOAT32)
    matrix = {"Transpose": turned, "Cast": b.cast(turned, FLOAT64), "Add": b.Add(turned, turned)}[between]
    graph.add_output(b.MatMul(matrix, vector), "y")
    given, weights = f32(*shape), np.array([1.0, -2.0, 0.5, 3.0])
    expected = (1 + (between == "Add")) * np.swapaxes(given, -1, -2).astype(np.float64) @ weights
    session = onnxruntime.InferenceSession(write_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": given, "v": weights})[0]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_operators_that_runtimes_lack_are_written_in_others() -> None:
    """A remainder of floats with the sign of the divisor, SwiGLU, and Range of vectors of one element."""
    graph = Graph()
    x, y = graph.add_input("x", Type(FLOAT32, (2, 4))), graph.add_input("y", Type(FLOAT32, (4,)))
    count = graph.add_input("count", Type(INT64, (1,)))
    b = Builder(graph)
    for name, made in {"rest": b.Mod(x, y), "gated": b.SwiGLU(x, x, alpha=1.5), "steps": b.Range(0, count, 1)}.items():
        graph.add_output(made, name)
    proto = write_onnx(graph)
    assert proto.opset_import[0].version == 18
    feeds = {"x": f32(2, 4), "y": np.array([0.5, -0.5, 2.0, -3.0], np.float32), "count": np.array([3])}
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for got, expected in zip(session.run(None, feeds), evaluate(graph, feeds).values(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)  # a remainder is as exact as what it remains of


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_corners_of_fractional_extents_are_written_out(mode: str) -> None:
    """onnxruntime aligns them by the extent rounded down, the cases of the standard by the extent times the scale."""
    graph = Graph()
    x = graph.add_input("x", Type(FLOAT32, (Dim.named("N"), 2, 4, 3)))
    scales = np.array([1, 1, 0.7, 1.5], np.float32)
    graph.add_output(Builder(graph).Resize(x, None, scales, coordinate_transformation_mode="align_corners", mode=mode), "y")
    joint = vjp(Model(graph), of="y")
    feeds = {"x": f32(2, 2, 4, 3), "y_grad": f32(2, 2, 2, 4)}
    session = onnxruntime.InferenceSession(joint.to_onnx().SerializeToString(), providers=["CPUExecutionProvider"])
    for got, expected in zip(session.run(None, feeds), joint(feeds).values(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("axes", [None, (2, 3), (3,)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_gradients_of_a_kept_aspect_ratio_are_exported_for_any_sizes(policy: str, axes: Any, mode: str) -> None:
    graph = Graph()
    x, sizes = graph.add_input("x", Type(FLOAT32, (1, 2, 3, 5))), graph.add_input("sizes", Type(INT64, (len(axes or "1234"),)))
    graph.add_output(Builder(graph).Resize(x, None, None, sizes, axes=axes, mode=mode, keep_aspect_ratio_policy=policy), "y")
    joint = vjp(Model(graph), of="y", wrt="x")
    feeds = {"x": f32(1, 2, 3, 5), "sizes": np.array([1, 2, 7, 8] if axes is None else [7, 8][-len(axes):])}
    feeds["y_grad"] = f32(*evaluate(graph, feeds)["y"].shape)
    again = read_onnx(joint.to_onnx())
    np.testing.assert_allclose(evaluate(again, feeds)["x_grad"], joint(feeds)["x_grad"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("names", [["a", "", "c"], ["", "b"], ["a"]], ids=["inside", "first and last", "last two"])
@pytest.mark.parametrize("form", ["sizes", "run time", "even"])
def test_all_pieces_of_a_split_are_written(names: list[str], form: str) -> None:
    graph, b = small()
    x, sizes = graph.add_input("x", Type(FLOAT32, (6, 2))), np.array([2, 2, 2])
    if form == "even":
        node = b.add_node("Split", [x], {"num_outputs": 3}, outputs=names)
    else:
        given = b.ints([2, 2, 2]) if form == "sizes" else graph.add_input("sizes", Type(INT64, (3,)))
        node = b.add_node("Split", [x, given], outputs=names)
    for value in node.results:
        graph.add_output(b.Neg(value), f"minus_{value.name}")
    model = write_onnx(graph)
    (split,) = (n for n in model.graph.node if n.op_type == "Split")
    assert len(split.output) == 3 and all(split.output)
    feeds = {"x": np.arange(12, dtype=np.float32).reshape(6, 2), **({"sizes": sizes} if form == "run time" else {})}
    found = dict(zip((o.name for o in model.graph.output), onnxruntime_outputs(model, feeds), strict=True))
    for name, piece in zip(names, np.split(feeds["x"], 3), strict=False):
        if name:
            np.testing.assert_array_equal(found[f"minus_{name}"], -piece)
