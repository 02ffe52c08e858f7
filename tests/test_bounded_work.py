"""Small files that ask for much: loading, transforms and runs end soon, in a result or a typed error."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import (
    FlowgradError,
    InputError,
    LimitError,
    LoadError,
    UnsupportedError,
    ValidationError,
    suggestion,
)
from flowgrad.ir.graph import Graph, Node
from flowgrad.ir.limits import DIM_TERMS, Limits, check_time, in_time
from flowgrad.ir.ops.control import loop_layout
from flowgrad.ir.pack import pack
from flowgrad.ir.parse import parse_graph
from flowgrad.ir.text import format_graph
from flowgrad.ir.types import FLOAT32, INT64, UNKNOWN, Dim, Type
from flowgrad.ir.unpack import unpack
from flowgrad.ir.verify import verify
from flowgrad.model import Model, load
from flowgrad.passes.manager import PassManager
from tests.onnx_models import info, model

SECONDS, BYTES = 6.0, 50_000_000
"""Counting memory makes everything several times slower; what is guarded against takes minutes."""


@pytest.fixture(autouse=True, scope="module")
def _imports() -> None:
    """Import what is imported late, which is not what the tests measure."""
    loaded = load(model([helper.make_node("Tanh", ["x"], ["y"])], {"x": (2,)}, ["y"]))
    fg.vjp(loaded)(x=np.ones(2, np.float32), y_grad=np.ones(2, np.float32))
    loaded.to_onnx()


@contextmanager
def cheap() -> Iterator[None]:
    """Fail if the block takes more processor time or memory than a small file may."""
    tracemalloc.start()
    started = time.process_time()
    try:
        yield
    finally:
        seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert seconds < SECONDS and peak < BYTES, f"{seconds:.1f} s, {peak / 1e6:.0f} MB"


def seconds_of(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def read(text: str, limits: Limits | None = None) -> Model:
    return load(text.encode(), limits=limits)


# ---- symbolic extents -----------------------------------------------------------------------------------------------------


def squares(steps: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Shape", ["x"], ["s0"])]
    nodes += [helper.make_node("Mul", [f"s{i}", f"s{i}"], [f"s{i + 1}"]) for i in range(steps)]
    nodes.append(helper.make_node("Expand", ["one", f"s{steps}"], ["y"]))
    return model(nodes, {"x": ("N",)}, ["y"], initializers={"one": np.ones(1, np.float32)})


def divisions(steps: int) -> onnx.ModelProto:
    nodes = []
    for i in range(steps):
        x = "x" if i == 0 else f"c{i}"
        nodes += [helper.make_node("MaxPool", [x], [f"{p}{i}"], kernel_shape=[1], strides=[s]) for p, s in (("a", 2), ("b", 3))]
        nodes.append(helper.make_node("Concat", [f"a{i}", f"b{i}"], [f"c{i + 1}"], axis=2))
    return model(nodes, {"x": (1, 1, "N")}, [f"c{steps}"])


def products(steps: int) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(steps)]
    nodes = [helper.make_node("Concat", [n, "one"], [f"{n}_more"], axis=0) for n in names]
    nodes.append(helper.make_node("Identity", ["x0_more"], ["y0"]))
    for i in range(1, steps):
        nodes += [helper.make_node("Unsqueeze", [f"y{i - 1}", "last"], [f"u{i}"]),
                  helper.make_node("Mul", [f"u{i}", f"x{i}_more"], [f"m{i}"]),
                  helper.make_node("Reshape", [f"m{i}", "flat"], [f"y{i}"])]
    constants = {"one": np.ones(1, np.float32), "flat": np.array([-1]), "last": np.array([1])}
    return model(nodes, {n: (f"N{i}",) for i, n in enumerate(names)}, [f"y{steps - 1}"], initializers=constants)


def sums(steps: int) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(steps)]
    return model([helper.make_node("Concat", names, ["y"], axis=0)], {n: (f"N{i}",) for i, n in enumerate(names)}, ["y"])


@pytest.mark.parametrize(("proto", "extent"), [(squares(40), 0), (divisions(20), 3), (products(24), 0), (sums(500), 0)],
                         ids=["squares", "divisions", "products", "sums"])
def test_extents_that_explode_get_a_name(proto: onnx.ModelProto, extent: int) -> None:
    with cheap():
        loaded = load(proto)
        again = unpack(pack(loaded.graph))
        assert format_graph(parse_graph(format_graph(again))) == format_graph(loaded.graph)
        loaded.to_onnx()
        last = again.outputs[0].shape[-1]
        assert isinstance(last, Dim) and last.size <= DIM_TERMS and any(n.startswith("_d") for n in last.names())
        feeds = {v.name: np.ones([d if isinstance(d, int) else extent for d in v.shape], np.float32) for v in again.inputs}
        (y,) = loaded(feeds).values()
    expected = extent
    for _ in range(20):
        expected = -(-expected // 2) + -(-expected // 3)
    assert y.size in (expected, 1)


def test_derivatives_of_extents_that_explode() -> None:
    with cheap():
        gradient = fg.vjp(load(divisions(12)))
        gradient.to_onnx()
        assert unpack(pack(gradient.graph)).outputs


@pytest.mark.parametrize("dim", ["+".join(f"N{i}" for i in range(5_000)), "*".join(f"(N{i}+M{i})" for i in range(100)),
                                 "(" * 50 + "N" + "//2+1)" * 50], ids=["sum", "product", "division"])
def test_declared_extents_that_explode_are_refused(dim: str) -> None:
    with cheap(), pytest.raises(LimitError) as caught:
        read(f"graph @g (%x: f32[{dim}]) -> (%x: f32[{dim}]) {{ }}")
    assert caught.value.code == "dim_terms"
    proto = model([helper.make_node("Relu", ["x"], ["y"])], {"x": (dim,)}, ["y"])
    proto.producer_name = "flowgrad"
    with cheap(), pytest.raises(LimitError):
        load(proto)


def test_the_terms_of_a_declared_extent_are_limited() -> None:
    text = "graph @g (%x: f32[M+N]) -> (%x: f32[M+N]) { }"
    packed = pack(read(text, Limits(dim_terms=4)).graph)
    assert unpack(packed, Limits(dim_terms=4)).inputs[0].shape == (Dim.named("M") + Dim.named("N"),)
    for source in (text.encode(), packed):
        with pytest.raises(LimitError, match="dim_terms is 4, the limit is 3"):
            load(source, limits=Limits(dim_terms=3))


def test_the_terms_of_an_inferred_extent_are_limited() -> None:
    graph = Graph("g", Limits(dim_terms=3))
    b = Builder(graph)
    x, y = (graph.add_input(n, Type(FLOAT32, (Dim.named(n.upper()),))) for n in "xy")
    joined = b.Concat(x, y, axis=0)
    assert repr(joined.shape[0]) == "_d1"
    assert repr(Builder(Graph("h")).graph.resolve(Type(FLOAT32, (UNKNOWN, Dim.named("N")))).shape) == "(_d1, N)"


# ---- extents and ranks beyond the limits --------------------------------------------------------------------------------


def test_inferred_extents_keep_to_the_limits() -> None:
    nodes = [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(62)]
    proto = model(nodes, {"c0": (2,)}, ["c62"])
    with cheap(), pytest.raises(LimitError, match="dim is") as caught:
        load(proto)
    assert "Concat" in caught.value.where
    graph = Graph("g", Limits(dim=10, rank=2))
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (5,)))
    twice = b.Concat(x, x, axis=0)
    refused: list[tuple[str, Callable[[], object]]] = [
        ("dim", lambda: b.Concat(twice, x, axis=0)), ("rank", lambda: b.Unsqueeze(b.Unsqueeze(x, [0]), [0])),
        ("dim", lambda: graph.add_input("z", Type(FLOAT32, (11,)))),
    ]
    for name, action in refused:
        with pytest.raises(LimitError) as caught:
            action()
        assert caught.value.code == name
    verify(graph)


def test_extents_are_not_negative() -> None:
    with pytest.raises(ValidationError, match="negative"):
        Builder(Graph("g")).ConstantOfShape(np.array([3, -1]))


def test_what_is_built_keeps_to_the_limits_of_the_file() -> None:
    """A model read under limits can be saved and read again under them, and so can its derivatives."""
    limits = Limits.strict()
    gradient = fg.vjp(load(model([helper.make_node("Relu", ["x"], ["y"])], {"x": ("N", 3)}, ["y"]), limits=limits))
    assert gradient.graph.limits is gradient.optimized().graph.limits is limits
    assert gradient.astype("float64").graph.limits is limits
    assert load(pack(gradient.graph), limits=limits).graph.limits is limits
    assert load(str(gradient).encode(), limits=limits).graph.limits is limits


@pytest.mark.parametrize("node", [
    "Expand(%x, %s)", "Reshape(%x, %s)", "ConstantOfShape(%s)", "Squeeze(%x, %s)", "Unsqueeze(%x, %s)", "Slice(%x, %s, %s)",
    "Split(%x, %s)", "ReduceSum(%x, %s)", "Pad(%x, %s)", "Tile(%x, %s)", "AveragePoolGrad(%x, %s) {kernel_shape = [1]}",
    "ResizeGrad(%x, %s)", "Transpose(%x) {perm = [1099511627776]}", "Split(%x) {num_outputs = 1099511627776}",
])
def test_operands_longer_than_any_rank_are_refused(node: str) -> None:
    text = f"graph @g (%x: f32[2], %s: i64[1099511627776]) -> (%y: f32[*]) {{ %y: f32[*] = {node} }}"
    with cheap():
        if node.split("(")[0] in ("Pad", "ReduceSum", "Tile"):  # their rules make no room for the entries
            read(text).to_onnx()
            return
        with pytest.raises(FlowgradError):
            read(text)


# ---- what is declared small, and large in truth -------------------------------------------------------------------------


LARGE = ["Tile([1], [400000000])", "Range(0, 4000000000, 1)", "ConstantOfShape([4000000000]) {value = i64[1] [7]}",
         "Expand([1], [4000000000])", "Expand([[[1]]], [1, 1, 4000000000])", "Reshape([1, 2, 3], [1, 3, 1])"]


@pytest.mark.parametrize("node", LARGE)
def test_declared_types_are_not_believed(node: str) -> None:
    """Integers are computed while a file is read, since shapes depend on them."""
    text = f"graph @g () -> (%y: i64[4]) {{ %y: i64[4] = {node} }}"
    with cheap(), pytest.raises((ValidationError, LoadError)):
        read(text)
    with cheap():
        try:
            packed = pack(parse_graph(text))
        except FlowgradError:
            return
    with cheap(), pytest.raises(ValidationError):
        unpack(packed)


def test_symbolic_values_stay_small() -> None:
    """A thousand entries of a hundred terms each are no shape."""
    graph = Graph("g")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, tuple(Dim.named(f"N{i}") for i in range(30))))
    with cheap():
        total = b.ReduceProd(b.Shape(x), keepdims=1)
        for i in range(30):
            total = b.Add(total, b.Shape(x, start=i, end=i + 1))
        wide = b.Tile(total, [1000])
        for _ in range(300):
            wide = b.Mul(wide, b.Tile(total, [1000]))
    assert wide.symbolic is None
    big = b.Concat(b.Shape(x, start=0, end=1), [2**40], axis=0)
    assert b.Mul(big, [1, 2**22]).symbolic is not None
    assert b.Mul(b.Mul(big, [1, 2**22]), big).symbolic is None  # beyond int64, where a run wraps round


# ---- linear reading --------------------------------------------------------------------------------------------------------


def test_text_is_read_in_linear_time() -> None:
    """Neither lists, nor subgraphs, nor attributes, nor types ask for their line again and again."""
    rows = ",".join(["[1,2]"] * 20_000)
    listed = f"graph @g () -> (%w: i64[20000,2])\n literals (%w: i64[20000,2] = [{rows}])\n {{ }}"
    assert parse_graph(listed).constants[0].type == Type(INT64, (20_000, 2))
    assert seconds_of(lambda: parse_graph(listed)) < 1
    body = "\n".join(f"%v{i}: f32[{i}] = ConstantOfShape([{i}])" for i in range(5_000))
    assert seconds_of(lambda: parse_graph(f"graph @g () -> (%v0: f32[0])\n {{ {body} }}")) < 2


def test_errors_about_names_are_quick() -> None:
    names = [f"a_rather_long_name_of_a_value_{i}" for i in range(20_000)]
    with pytest.raises(InputError, match="did you mean"):
        raise InputError(suggestion("a_rather_long_name_of_a_value", names))
    assert seconds_of(lambda: suggestion("a_rather_long_name_of_a_value", names)) < 1
    assert suggestion("a" * 5_000, ["a" * 4_999]) == ""


# ---- windows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("attributes", [{"kernel_shape": [2**32, 2]}, {"kernel_shape": [2**20, 2**20], "pads": [2**20] * 4},
                                        {"kernel_shape": [0, 2]}], ids=["long", "wide", "empty"])
def test_kernels_without_a_bound_are_refused(op: str, attributes: dict[str, list[int]]) -> None:
    mode = "NOTSET" if "pads" in attributes else "SAME_LOWER"
    given: dict[str, Any] = {**attributes, "auto_pad": mode}
    proto = model([helper.make_node(op, ["x"], ["y"], **given)], {"x": (1, 3, 32, 32)}, ["y"])
    with cheap(), pytest.raises(ValidationError, match="taps"):
        load(proto)


# ---- bodies ---------------------------------------------------------------------------------------------------------------


def nested_ifs(depth: int) -> onnx.ModelProto:
    """Ifs in both branches of Ifs: 2 ** depth of them."""
    def body(level: int) -> onnx.GraphProto:
        name = f"r{level}"
        inner = [helper.make_node("Tanh", ["x"], [name])]
        if level:
            inner = [helper.make_node("If", ["flag"], [name], then_branch=body(level - 1), else_branch=body(level - 1))]
        return helper.make_graph(inner, "b", [], [info(name, None)])

    node = helper.make_node("If", ["flag"], ["y"], then_branch=body(depth), else_branch=body(depth))
    return model([node], {"x": (2,)}, ["y"], initializers={"flag": np.asarray(True)})


def wide_loop(states: int) -> onnx.ModelProto:
    """A Loop of many states and as many scan outputs."""
    names = [f"b{i}" for i in range(states)]
    body = helper.make_graph(
        [*(helper.make_node("Tanh", [f"a{i}"], [names[i]]) for i in range(states)), helper.make_node("Identity", ["c"], ["d"])],
        "body", [info("i", (), onnx.TensorProto.INT64), info("c", (), onnx.TensorProto.BOOL),
                 *(info(f"a{i}", None) for i in range(states))],
        [info("d", (), onnx.TensorProto.BOOL), *(info(n, None) for n in [*names, *names])])
    outputs = [f"y{i}" for i in range(2 * states)]
    return model([helper.make_node("Loop", ["m", "", *["x"] * states], outputs, body=body)], {"x": (2,)}, outputs,
                 initializers={"m": np.asarray(3)})


def calls_of(function: str, owner: Any, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how often a function of a module, or a method of a class, is called in an action."""
    count, real = 0, getattr(owner, function)

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal count
        count += 1
        return real(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, counted)
        action()
    return count


def test_bodies_within_bodies_are_not_copied_at_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    flat, deep = (calls_of("twin", Node, partial(fg.vjp, load(nested_ifs(n))), monkeypatch) for n in (2, 6))
    assert deep < 20 * flat  # of sixteen times as many


def test_a_body_that_is_needed_in_both_directions_is_held_once_in_each() -> None:
    """An If that depends on captures alone is computed again by the backward part of a loop."""
    def branch(name: str, op: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node(op, ["w"], [name])], name, [], [info(name, None)])

    body = helper.make_graph(
        [helper.make_node("If", ["flag"], ["v"], then_branch=branch("t", "Tanh"), else_branch=branch("e", "Exp")),
         helper.make_node("Mul", ["a", "v"], ["b"]), helper.make_node("Identity", ["c"], ["d"])],
        "body", [info("i", (), onnx.TensorProto.INT64), info("c", (), onnx.TensorProto.BOOL), info("a", None)],
        [info("d", (), onnx.TensorProto.BOOL), info("b", None)])
    nodes = [helper.make_node("ReduceMax", ["w"], ["most"], keepdims=0), helper.make_node("Less", ["most", "one"], ["flag"]),
             helper.make_node("Loop", ["m", "", "x"], ["y"], body=body)]
    derived = fg.vjp(load(model(nodes, {"x": (2,), "w": (2,)}, ["y"], initializers={
        "m": np.asarray(3), "one": np.asarray(1, np.float32)})))
    held = [id(inner) for _, node in derived.graph.walk() for inner in node.subgraphs.values()]
    assert len(held) == len(set(held)) > 4
    x, w = np.array([1.0, 2.0], np.float32), np.array([0.5, -0.5], np.float32)
    found = derived(x=x, w=w, y_grad=np.ones(2, np.float32))
    assert np.allclose(found["x_grad"], np.tanh(w) ** 3, rtol=1e-6)
    assert np.allclose(found["w_grad"], 3 * x * np.tanh(w) ** 2 * (1 - np.tanh(w) ** 2), rtol=1e-6)


@pytest.mark.parametrize("function", ["_carried_type", "_bind"])
def test_a_loop_of_many_states_is_typed_a_few_times_only(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (calls_of(function, loop_layout, partial(fg.vjp, load(wide_loop(n))), monkeypatch) for n in (4, 40))
    assert many <= 12 * few


def test_the_derivative_of_a_loop_without_states_is_exported() -> None:
    body = helper.make_graph(
        [helper.make_node("Tanh", ["x"], ["b"]), helper.make_node("Identity", ["c"], ["d"])], "body",
        [info("i", (), onnx.TensorProto.INT64), info("c", (), onnx.TensorProto.BOOL)],
        [info("d", (), onnx.TensorProto.BOOL), info("b", None)])
    loaded = load(model([helper.make_node("Loop", ["m", ""], ["y"], body=body)], {"x": (2,)}, ["y"],
                        initializers={"m": np.asarray(3)}))
    derived = fg.vjp(loaded)
    x, y_grad = np.array([0.5, 1.0], np.float32), np.ones((3, 2), np.float32)
    again = load(derived.to_onnx())(x=x, y_grad=y_grad)
    assert np.array_equal(again["x_grad"], derived(x=x, y_grad=y_grad)["x_grad"])


def test_needless_broadcasts_of_a_wide_sum_go_at_once() -> None:
    rows = [f"h{i}" for i in range(100)]
    nodes = [*(helper.make_node("ReduceSum", ["x"], [h], keepdims=1) for h in rows), helper.make_node("Concat", rows, ["y"], axis=0)]
    derived = fg.vjp(load(model(nodes, {"x": ("N",)}, ["y"])))
    step = PassManager("canonicalize").run(derived).steps[0]
    assert step.applied["drop_redundant_expand"] == 1
    found = derived.optimized()(x=np.ones(3, np.float32), y_grad=np.arange(100, dtype=np.float32))
    assert np.array_equal(found["x_grad"], [4950.0] * 3)


def test_products_of_very_many_operands_are_refused() -> None:
    equation = ",".join("a" * 64) + "->a"
    with pytest.raises(UnsupportedError, match="64 operands"):
        load(model([helper.make_node("Einsum", ["x"] * 64, ["y"], equation=equation)], {"x": (2,)}, ["y"]))


# ---- time -----------------------------------------------------------------------------------------------------------------


LONG_CHAIN = "graph @long (%v0: f32[2]) -> (%v50: f32[2]) {" + " ".join(
    f"%v{i + 1}: f32[2] = Tanh(%v{i})" for i in range(50)) + "}"

STAGES: dict[str, Callable[[Model], object]] = {
    "vjp": fg.vjp, "jvp": fg.jvp, "passes": Model.optimized, "compile": Model.compile, "export": Model.to_onnx,
    "export as it is": lambda m: m.to_onnx(passes=""),
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_ends_when_its_time_is_over(stage: str) -> None:
    late = Model(parse_graph(LONG_CHAIN, limits=Limits(wall_seconds=0.0)))
    with pytest.raises(LimitError, match="wall_seconds"):
        STAGES[stage](late)
    STAGES[stage](read(LONG_CHAIN))  # nothing of it is left behind


@pytest.mark.parametrize("form", ["text", "onnx", "msgpack"])
def test_loading_ends_when_its_time_is_over(form: str) -> None:
    loaded = read(LONG_CHAIN)
    data = {"text": LONG_CHAIN.encode(), "onnx": loaded.to_onnx().SerializeToString(), "msgpack": pack(loaded.graph)}[form]
    with pytest.raises(LimitError, match="wall_seconds"):
        load(data, limits=Limits(wall_seconds=0.0))
    load(data, limits=Limits(wall_seconds=60.0))


def test_stages_within_a_stage_share_its_time() -> None:
    limits = Limits(wall_seconds=0.05)

    def stage(count: int) -> None:
        for _ in range(count):
            time.sleep(0.01)
            in_time(limits, check_time)

    in_time(limits, stage, 1)
    with pytest.raises(LimitError, match="wall_seconds"):
        in_time(limits, stage, 100)
    check_time()


ROI = "graph @g (%x: f32[1,3,64,64], %r: f32[1,4], %i: i64[1]) -> (%y: f32[1,3,H,H]) {{ %y: f32[1,3,H,H] = RoiAlign(%x, %r, %i) {{{}}} }}"
IMAGE, FAR = np.ones((1, 3, 64, 64), np.float32), np.array([[0, 0, 1e6, 1e6]], np.float32)
REGION = {"x": IMAGE, "r": FAR, "i": np.zeros(1, np.int64)}


@pytest.mark.parametrize(("text", "feeds", "limit"), [
    (ROI.format("output_height = 100, output_width = 100"), REGION, "wall_seconds"),
    (ROI.format("output_height = 1, output_width = 1, sampling_ratio = 1000000"), REGION, "wall_seconds"),
    (ROI.format('output_height = 9, output_width = 9, sampling_ratio = 10000, mode = "max"'), REGION, "tensor_bytes"),
    ("graph @g (%x: f32[1,1,64,64], %r: f32[1,5]) -> (%y: f32[1,1,H,W]) {"
     " %y: f32[1,1,H,W] = MaxRoiPool(%x, %r) {pooled_shape = [10000, 1000]} }",
     {"x": IMAGE[:, :1], "r": np.array([[0, 0, 0, 64, 64]], np.float32)}, "wall_seconds"),
    ("graph @g (%x: f32[1,10,1], %n: i64[]) -> (%y: f32[1,M,2]) { %y: f32[1,M,2] = DFT(%x, %n) }",
     {"x": np.ones((1, 10, 1), np.float32), "n": np.array(10**8)}, "wall_seconds"),
    ("graph @g (%b: f32[1,N,4], %s: f32[1,1,N]) -> (%y: i64[M,3]) {"
     " %y: i64[M,3] = NonMaxSuppression(%b, %s, i64(1000000000), f32(0.5)) }",
     {"b": np.repeat(np.arange(30_000, dtype=np.float32), 4).reshape(1, -1, 4), "s": np.ones((1, 1, 30_000), np.float32)},
     "wall_seconds"),
    ("graph @g (%x: f32[1,N,1]) -> (%y: f32[1,F,M,2]) { %y: f32[1,F,M,2] = STFT(%x, i64(1), _, i64(4001)) }",
     {"x": np.ones((1, 20_000, 1), np.float32)}, "wall_seconds"),
], ids=["regions", "cells", "products", "bins", "points", "boxes", "frames"])
def test_one_kernel_ends_when_its_time_is_over(text: str, feeds: dict[str, Any], limit: str) -> None:
    model = read(text, Limits(wall_seconds=0.2))
    program = model.compile()
    started = time.process_time()
    with pytest.raises(LimitError, match=limit):
        program.run(feeds)
    assert time.process_time() - started < 2.0


def test_a_pool_of_no_channels_has_no_bins_to_fill() -> None:
    model = read("graph @g (%x: f32[1,0,6,6], %r: f32[1,5]) -> (%y: f32[1,0,H,W]) {"
                 " %y: f32[1,0,H,W] = MaxRoiPool(%x, %r) {pooled_shape = [100000, 100000]} }")
    with cheap():
        y = model(x=np.ones((1, 0, 6, 6), np.float32), r=np.array([[0, 0, 0, 6, 6]], np.float32))["y"]
    assert y.shape == (1, 0, 100_000, 100_000)
