"""Sequences and optional values beyond single operators: fed and returned, in control flow, in files, in errors."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.dtypes import sequence_of
from flowgrad.ir.errors import (
    InputError,
    LoadError,
    NotDifferentiableError,
    RunError,
    UnsupportedError,
    ValidationError,
)
from flowgrad.ir.fixed_shapes import fix_shapes
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.text import format_graph, parse_graph
from flowgrad.ir.types import BOOL, FLOAT64, INT64, Dim, Type, dtype_of

DOUBLE = TensorProto.DOUBLE
node = helper.make_node


def tensor(name: str, shape: Sequence[Any] | None, kind: int = DOUBLE) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def sequence(name: str) -> Any:
    return helper.make_tensor_sequence_value_info(name, DOUBLE, None)


def model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> fg.Model:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return fg.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def squares() -> fg.Model:
    """A sequence in; the square of one of its tensors, and the sequence with that square at its end, out."""
    return model([node("SequenceAt", ["s", "i"], ["a"]), node("Mul", ["a", "a"], ["b"]),
                  node("SequenceInsert", ["s", "b"], ["o"])],
                 [sequence("s"), tensor("i", [], TensorProto.INT64)], [sequence("o"), tensor("b", None)])


def repeated() -> fg.Model:
    """The sum of n copies of x**2, collected in a sequence by a Loop."""
    body = helper.make_graph(
        [node("Identity", ["going"], ["on"]), node("Mul", ["x", "x"], ["xx"]), node("SequenceInsert", ["s", "xx"], ["t"])],
        "body", [tensor("i", [], TensorProto.INT64), tensor("going", [], TensorProto.BOOL), sequence("s")],
        [tensor("on", [], TensorProto.BOOL), sequence("t")])
    return model([node("SequenceEmpty", [], ["s0"], dtype=DOUBLE), node("Loop", ["n", "", "s0"], ["all"], body=body),
                  node("ConcatFromSequence", ["all"], ["c"], axis=0), node("ReduceSum", ["c"], ["loss"], keepdims=0)],
                 [tensor("x", ["N"]), tensor("n", [], TensorProto.INT64)], [tensor("loss", [])])


def collected(count: int | None, reads: bool) -> fg.Model:
    """The sum of the squares of v, sin(u) u + v, ..., collected by a Loop; u is v, or what stands last in the sequence."""
    names = ["last" if reads else "v"] * 2
    body = helper.make_graph(
        [node("Identity", ["going"], ["on"]), node("Constant", [], ["end"], value_int=-1), node("SequenceAt", ["s", "end"], ["last"]),
         node("Sin", names[:1], ["sin"]), node("Mul", ["sin", *names[:1]], ["p"]), node("Add", ["p", "v"], ["w"]),
         node("SequenceInsert", ["s", "w"], ["t"])],
        "body", [tensor("i", [], TensorProto.INT64), tensor("going", [], TensorProto.BOOL), tensor("v", None), sequence("s")],
        [tensor("on", [], TensorProto.BOOL), tensor("w", None), sequence("t")])
    inputs = [tensor("x", [2] if count else ["N"]), *([] if count else [tensor("n", [], TensorProto.INT64)])]
    trips = [node("Constant", [], ["n"], value_int=count)] if count else []
    return model([*trips, node("SequenceConstruct", ["x"], ["s0"]), node("Loop", ["n", "", "x", "s0"], ["last", "all"], body=body),
                  node("ConcatFromSequence", ["all"], ["c"], axis=0), node("ReduceSumSquare", ["c"], ["loss"], keepdims=0)],
                 inputs, [tensor("loss", [])])


def grown(count: int | None) -> fg.Model:
    """The sum of squares of v, which each iteration makes longer by sin(|v|^2)."""
    body = helper.make_graph(
        [node("Identity", ["going"], ["on"]), node("ReduceSumSquare", ["v"], ["n"], keepdims=1), node("Sin", ["n"], ["sin"]),
         node("Concat", ["v", "sin"], ["w"], axis=0)],
        "body", [tensor("i", [], TensorProto.INT64), tensor("going", [], TensorProto.BOOL), tensor("v", ["P"])],
        [tensor("on", [], TensorProto.BOOL), tensor("w", ["Q"])])
    inputs = [tensor("x", [2] if count else ["N"]), *([] if count else [tensor("n", [], TensorProto.INT64)])]
    trips = [node("Constant", [], ["n"], value_int=count)] if count else []
    return model([*trips, node("Loop", ["n", "", "x"], ["v"], body=body), node("ReduceSumSquare", ["v"], ["loss"], keepdims=0)],
                 inputs, [tensor("loss", [])])


def branches() -> fg.Model:
    """The sum of [x, x] or of [exp x], made in the branches of an If."""
    taken = helper.make_graph([node("SequenceConstruct", ["x", "x"], ["a"])], "t", [], [sequence("a")])
    other = helper.make_graph([node("Exp", ["x"], ["e"]), node("SequenceConstruct", ["e"], ["b"])], "e", [], [sequence("b")])
    return model([node("If", ["c"], ["s"], then_branch=taken, else_branch=other),
                  node("ConcatFromSequence", ["s"], ["cc"], axis=0), node("ReduceSum", ["cc"], ["loss"], keepdims=0)],
                 [tensor("x", ["N"]), tensor("c", [], TensorProto.BOOL)], [tensor("loss", [])])


ITEMS: list[Array] = [np.ones(2), np.arange(6.0).reshape(2, 3)]


@pytest.mark.parametrize("engine", ["numpy", "ort"])
def test_sequences_are_fed_and_returned_as_lists(engine: str) -> None:
    if engine == "ort":
        pytest.importorskip("onnxruntime")
    out: dict[str, Any] = squares().compile(engine).run({"s": ITEMS, "i": np.int64(-1)})
    assert [a.shape for a in out["o"]] == [(2,), (2, 3), (2, 3)]
    np.testing.assert_array_equal(out["o"][2], ITEMS[1] ** 2)


def test_returned_tensors_are_the_callers() -> None:
    """Neither what was fed nor what another run will return may change with them."""
    program = squares().compile()
    feeds: dict[str, Any] = {"s": [a.copy() for a in ITEMS], "i": np.int64(1)}
    first: dict[str, Any] = program.run(feeds)
    for array in first["o"]:
        array[...] = 7
    np.testing.assert_array_equal(feeds["s"][0], ITEMS[0])
    second: dict[str, Any] = program.run(feeds)
    np.testing.assert_array_equal(second["o"][2], ITEMS[1] ** 2)


@pytest.mark.parametrize("given, message", [
    ([np.ones(2, np.float32)], "is float32, expected float64"), (np.ones(2), "a list of float64 arrays"),
    (None, "a list of float64 arrays"), ("abc", "a list of float64 arrays"), ([None], "expected float64"),
])
def test_wrong_sequences_are_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        squares()({"s": given, "i": np.int64(0)})


@pytest.mark.parametrize("items, place", [(ITEMS, 2), (ITEMS, -3), ([], 0)])
def test_places_outside_a_sequence_are_refused(items: list[Array], place: int) -> None:
    with pytest.raises(RunError, match=f"SequenceAt.*position {place}"):
        squares()({"s": items, "i": np.int64(place)})


def optional_input() -> fg.Model:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(DOUBLE, None))
    there = helper.make_graph([node("OptionalGetElement", ["x"], ["e"])], "t", [], [tensor("e", None)])
    absent = helper.make_graph([node("Constant", [], ["z"], value_float=0.0), node("Cast", ["z"], ["d"], to=DOUBLE)], "e", [],
                               [tensor("d", None)])
    return model([node("OptionalHasElement", ["x"], ["has"]), node("If", ["has"], ["y"], then_branch=there, else_branch=absent)],
                 [helper.make_value_info("x", kind)], [tensor("y", None)])


def test_optional_values_may_be_absent() -> None:
    given = optional_input()
    np.testing.assert_array_equal(given({"x": np.arange(3.0)})["y"], np.arange(3.0))
    assert given({"x": None})["y"] == 0
    with pytest.raises(InputError, match="no value given for input 'x'"):
        given({})


def test_optional_outputs_are_none_or_what_they_hold() -> None:
    graph = Graph("g")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (2,)))
    graph.add_output(b.Optional(x), "tensor")
    graph.add_output(b.Optional(b.SequenceConstruct(x, x)), "list")
    graph.add_output(b.Optional(type="sequence.float64"), "none")
    out: dict[str, Any] = fg.Model(graph)({"x": np.ones(2)})
    assert out["tensor"].tolist() == [1, 1] and [a.tolist() for a in out["list"]] == [[1, 1], [1, 1]]
    assert out["none"] is None


def differences(made: fg.Model, feeds: dict[str, Array], step: float = 1e-6) -> Array:
    slopes = np.zeros_like(feeds["x"])
    for k in range(len(slopes)):
        sides = []
        for sign in (1, -1):
            x = feeds["x"].copy()
            x[k] += sign * step
            sides.append(made({**feeds, "x": x})["loss"])
        slopes[k] = (sides[0] - sides[1]) / (2 * step)
    return slopes


CONTROL = [(repeated, {"n": np.int64(3)}), (repeated, {"n": np.int64(1)}), (branches, {"c": np.array(True)}),
           (branches, {"c": np.array(False)}),
           (lambda: collected(3, False), {}), (lambda: collected(None, False), {"n": np.int64(3)}),
           (lambda: collected(3, True), {}), (lambda: collected(None, True), {"n": np.int64(3)}),
           (lambda: grown(3), {}), (lambda: grown(None), {"n": np.int64(3)})]


@pytest.mark.parametrize("make, more", CONTROL)
def test_derivatives_pass_sequences_in_control_flow(make: Any, more: dict[str, Array]) -> None:
    """Against differences, in reverse and forward mode, here and exported; second order against differences of first."""
    made, feeds = make(), {"x": np.array([0.3, -1.2]), **more}
    gradient = fg.grad(made, "loss", "x")
    expected = differences(made, feeds)
    np.testing.assert_allclose(gradient(feeds)["x_grad"], expected, rtol=1e-6)
    v = np.array([0.7, 0.4])
    forward = fg.jvp(made, "loss", "x")({**feeds, "x_tangent": v})
    np.testing.assert_allclose(forward["loss_tangent"], expected @ v, rtol=1e-6)
    again = fg.load(gradient.to_onnx())
    np.testing.assert_allclose(again(feeds)["x_grad"], expected, rtol=1e-6)
    steps = [gradient({**feeds, "x": feeds["x"] + s * v})["x_grad"] for s in (1e-5, -1e-5)]
    second = fg.hvp(made, "loss", "x")({**feeds, "x_tangent": v})
    np.testing.assert_allclose(second["x_hvp"], (steps[0] - steps[1]) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("make, more", CONTROL)
def test_exported_derivatives_run_in_onnxruntime(make: Any, more: dict[str, Array], threads: int) -> None:
    pytest.importorskip("onnxruntime")
    made, feeds = make(), {"x": np.array([0.3, -1.2]), **more}
    gradient, second = fg.grad(made, "loss", "x"), fg.hvp(made, "loss", "x")
    tangent = {**feeds, "x_tangent": np.array([0.7, 0.4])}
    for one, given, name in ((gradient, feeds, "x_grad"), (second, tangent, "x_hvp")):
        np.testing.assert_allclose(one.compile("ort", threads=threads).run(given)[name], one(given)[name], rtol=1e-12)


@pytest.mark.parametrize("count", [3, None])
def test_states_that_grow_are_differentiated_twice_in_reverse(count: int | None) -> None:
    """The rank of such a state is known; its extents are names of its own."""
    made, feeds = grown(count), {"x": np.array([0.3, -1.2]), **({} if count else {"n": np.int64(3)})}
    v = np.array([0.7, 0.4])
    twice = fg.vjp(fg.grad(made, "loss", "x"), "x_grad", "x")
    found = list(twice({**feeds, "x_grad_grad": v}).values())[-1]
    np.testing.assert_allclose(found, fg.hvp(made, "loss", "x")({**feeds, "x_tangent": v})["x_hvp"], rtol=1e-12)


def test_gradients_of_sequences_are_sequences() -> None:
    """b = s[i]^2, and o is s with b at its end: cotangents and gradients of a sequence have its extents."""
    feeds: dict[str, Any] = {"s": ITEMS, "i": np.int64(-1)}
    seed = np.full((2, 3), 0.5)
    found: dict[str, Any] = fg.vjp(squares(), "b", "s")({**feeds, "b_grad": seed})
    assert [a.tolist() for a in found["s_grad"]] == [[0, 0], ITEMS[1].tolist()]
    seeds = [np.ones(2), np.ones((2, 3)), seed]
    both: dict[str, Any] = fg.vjp(squares(), "o", "s")({**feeds, "o_grad": seeds})
    assert [a.tolist() for a in both["s_grad"]] == [[1, 1], (1 + ITEMS[1]).tolist()]
    pushed: dict[str, Any] = fg.jvp(squares(), "o", "s")({**feeds, "s_tangent": [np.ones(2), np.ones((2, 3))]})
    assert [a.tolist() for a in pushed["o_tangent"]] == [[1, 1], [[1] * 3] * 2, (2 * ITEMS[1]).tolist()]


def test_gradients_of_optional_values_are_optional() -> None:
    """Where a branch of an If does not use the value, the gradient holds zeros, or is absent as the value is."""
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(DOUBLE, None))
    made = model([node("OptionalGetElement", ["x"], ["e"]), node("Mul", ["e", "e"], ["y"])],
                 [helper.make_value_info("x", kind)], [tensor("y", None)])
    out: dict[str, Any] = fg.vjp(made, "y", "x")({"x": np.arange(3.0), "y_grad": np.ones(3)})
    assert out["x_grad"].tolist() == [0, 2, 4]
    unused = fg.vjp(optional_input(), "y", "x")
    for given, seed, wanted in ((np.arange(3.0), np.ones(3), [1, 1, 1]), (None, np.ones(()), None)):
        for engine in ("numpy", *(["ort"] if importlib.util.find_spec("onnxruntime") else [])):
            found = unused.compile(engine).run({"x": given, "y_grad": seed})["x_grad"]
            assert found is None if wanted is None else found.tolist() == wanted


def test_cotangents_of_an_optional_value_add_up() -> None:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(DOUBLE, None))
    made = model([node("OptionalGetElement", ["x"], ["e"]), node("OptionalGetElement", ["x"], ["f"]), node("Mul", ["e", "f"], ["y"])],
                 [helper.make_value_info("x", kind)], [tensor("y", None)])
    derivative = fg.vjp(made, "y", "x")
    for again in (derivative, fg.load(derivative.to_onnx())):
        assert again({"x": np.arange(3.0), "y_grad": np.ones(3)})["x_grad"].tolist() == [0, 2, 4]


def test_a_container_is_no_scalar() -> None:
    with pytest.raises(InputError, match="not a scalar"):
        fg.grad(squares(), "o", "s")
    with pytest.raises(InputError, match="not a scalar|scalar float outputs"):
        fg.grad(squares(), None, "s")


def test_what_a_sequence_hides_is_not_taken_for_zero() -> None:
    """With zeros allowed, a path through a sequence still counts: only piecewise constant operators give zeros."""
    graph = Graph("g")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (3,)))
    y = b.ConcatFromSequence(b.SplitToSequence(b.Mul(x, x), axis=0), axis=0)
    graph.add_output(b.ReduceSum(y, keepdims=0), "loss")
    found = fg.grad(fg.Model(graph), "loss", "x", zero="allow")({"x": np.arange(3.0)})
    np.testing.assert_array_equal(found["x_grad"], 2 * np.arange(3.0))


def test_the_length_of_a_sequence_is_a_shape() -> None:
    graph = Graph("g")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (Dim.named("N"),)))
    count = b.SequenceLength(b.SplitToSequence(x, axis=0))
    graph.add_output(b.Cast(count, to=11), "loss")
    assert fg.grad(fg.Model(graph), "loss", "x")({"x": np.ones(3)})["x_grad"].tolist() == [0, 0, 0]


def test_gradients_of_a_sequence_that_a_loop_reads() -> None:
    """y = a^(n + 1): every iteration reads the captured sequence, so that cotangents of sequences are summed."""
    body = helper.make_graph(
        [node("SequenceAt", ["s", "zero"], ["e"]), node("Mul", ["st", "e"], ["st2"]), node("Identity", ["c"], ["c2"])],
        "body", [tensor("i", [], TensorProto.INT64), tensor("c", [], TensorProto.BOOL), tensor("st", [2])],
        [tensor("c2", [], TensorProto.BOOL), tensor("st2", [2])])
    made = model([node("Constant", [], ["zero"], value_int=0), node("SequenceConstruct", ["a"], ["s"]),
                  node("Loop", ["n", "", "a"], ["y"], body=body)],
                 [tensor("a", [2]), tensor("n", [], TensorProto.INT64)], [tensor("y", [2])])
    feeds = {"a": np.array([2.0, 3.0]), "n": np.array(2), "y_grad": np.ones(2)}
    np.testing.assert_allclose(fg.vjp(made, "y", "a")(feeds)["a_grad"], 3 * feeds["a"] ** 2)


def test_what_is_read_of_a_sequence_alone_gets_a_cotangent() -> None:
    """Reading one tensor after the other makes zeros for the sequence once, in the branches of control flow not at all."""
    graph = Graph("g")
    b = Builder(graph)
    xs = [graph.add_input(n, Type(FLOAT64, (2,))) for n in "xy"]
    s = b.SequenceConstruct(*xs)
    parts = [b.Mul(b.SequenceAt(s, np.int64(k)), float(k + 1)) for k in (0, 1, 0)]
    graph.add_output(b.ReduceSum(b.Sum(*parts), keepdims=0), "loss")
    gradient = fg.grad(fg.Model(graph), "loss", ["x", "y"])
    assert [n.op for n in gradient.graph.nodes()].count("SequenceZeros") == 1
    found = gradient({"x": np.ones(2), "y": np.ones(2)})
    assert found["x_grad"].tolist() == [2, 2] and found["y_grad"].tolist() == [2, 2]


def test_a_sequence_that_is_needed_whole_in_every_iteration_is_refused() -> None:
    """What is read stands in a sequence that an iteration makes and drops: zeros like it need all of s, which grows."""
    graph = Graph("g")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (2,)))
    body = Graph("body")
    inner = Builder(body)
    body.add_input("i", Type(INT64, ()))
    going = body.add_input("going", Type(BOOL, ()))
    v, s = body.add_input("v", Type(FLOAT64, (2,))), body.add_input("s", Type(sequence_of(FLOAT64), ()))
    head = inner.SequenceAt(inner.SequenceInsert(s, inner.Sin(v)), np.int64(0))
    for value in (going, inner.Mul(v, head), inner.SequenceInsert(s, v)):
        body.add_output(value, "")
    last, *_ = b.add_several("Loop", [np.int64(2), None, x, b.SequenceConstruct(x)], outputs=2, subgraphs={"body": body})
    graph.add_output(b.ReduceSum(last, keepdims=0), "loss")
    with pytest.raises(NotDifferentiableError, match="no sequence of sequences"):
        fg.grad(fg.Model(graph), "loss", "x")


def test_an_axis_of_extent_zero_has_no_pieces() -> None:
    graph = Graph("g")
    b = Builder(graph)
    x, y = (graph.add_input(n, Type(FLOAT64, (Dim.named(n.upper()), 2))) for n in "xy")
    pieces = b.SequenceInsert(b.SplitToSequence(x, np.int64(1), axis=0), y)
    graph.add_output(b.ConcatFromSequence(pieces, axis=0), "z")
    found = fg.vjp(fg.Model(graph), "z")({"x": np.ones((0, 2)), "y": np.ones((1, 2)), "z_grad": np.full((1, 2), 3.0)})
    assert found["x_grad"].shape == (0, 2) and found["y_grad"].tolist() == [[3, 3]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("make, more", CONTROL[:1] + CONTROL[2:3])
def test_containers_are_converted_with_the_rest(make: Any, more: dict[str, Array], dtype: str) -> None:
    made = fg.grad(make(), "loss", "x").astype(dtype)
    x = np.array([0.5, -1.25]).astype(dtype_of(dtype).numpy)
    expected = fg.grad(make(), "loss", "x")({"x": x.astype(np.float64), **more})["x_grad"]
    found = made({"x": x, **more})["x_grad"]
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=1e-2)
    assert {v.type.dtype for v in squares().astype(dtype).graph.inputs} == {sequence_of(dtype_of(dtype)), INT64}


# ---- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [squares, repeated, branches, optional_input])
def test_containers_survive_every_form(make: Any, tmp_path: Path) -> None:
    made = make()
    text = format_graph(made.graph)
    assert format_graph(parse_graph(text)) == text
    made.save(tmp_path / "m.msgpack")
    assert format_graph(fg.load(tmp_path / "m.msgpack").graph) == text
    exported = made.to_onnx()
    assert [v.type.dtype for v in fg.load(exported).graph.inputs] == [v.type.dtype for v in made.graph.inputs]


def test_names_of_container_types() -> None:
    assert dtype_of("sequence.f32") is dtype_of("sequence.float32")
    assert repr(Type(dtype_of("optional.sequence.float64"), ())) == "optional.sequence.f64[]"
    for name in ("sequence.sequence.f32", "optional.optional.f32", "sequence.", "sequence.x", "list.f32"):
        with pytest.raises(InputError):
            dtype_of(name)


def test_containers_have_no_extents() -> None:
    with pytest.raises(LoadError, match="has no extents"):
        parse_graph("graph @g (%x: sequence.f32[3]) -> (%x: sequence.f32[3])\n    opset 20\n{\n}\n")


def test_maps_are_refused_by_name() -> None:
    kind = onnx.TypeProto()
    kind.map_type.key_type = TensorProto.INT64
    kind.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(UnsupportedError, match="'x' is of map"):
        model([node("Identity", ["x"], ["y"])], [helper.make_value_info("x", kind)], [helper.make_value_info("y", kind)])


def test_tensors_of_different_types_make_no_sequence() -> None:
    b = Builder(graph := Graph("g"))
    x, i = graph.add_input("x", Type(FLOAT64, ())), graph.add_input("i", Type(INT64, ()))
    with pytest.raises(ValidationError, match="one element type"):
        b.SequenceConstruct(x, i)
    with pytest.raises(ValidationError, match="takes a sequence"):
        b.SequenceAt(x, i)
    with pytest.raises(ValidationError):
        b.SequenceInsert(b.SequenceEmpty(dtype=BOOL.onnx), x)


def test_what_is_known_of_members() -> None:
    b = Builder(graph := Graph("g"))
    x = graph.add_input("x", Type(FLOAT64, (Dim.named("N"), 3)))
    y = graph.add_input("y", Type(FLOAT64, (2, 3)))
    s = graph.add_input("s", Type(sequence_of(FLOAT64), ()))
    assert b.SequenceAt(b.SequenceConstruct(x, y), np.int64(0)).type.shape[1:] == (3,)  # type: ignore[index]
    assert b.SequenceAt(b.SequenceInsert(b.SequenceConstruct(y), y), np.int64(0)).type.shape == (2, 3)
    assert b.SequenceAt(b.SequenceInsert(s, y), np.int64(0)).type.shape is None
    assert b.ConcatFromSequence(b.SequenceConstruct(y, y), axis=-1, new_axis=1).type.rank == 3
    long = b.SequenceConstruct(y)
    for _ in range(100):
        long = b.SequenceInsert(long, y)
    assert b.SequenceAt(long, np.int64(0)).type.shape == (2, 3)
    assert b.SequenceAt(b.SequenceInsert(long, x), np.int64(0)).type.shape[1:] == (3,)  # type: ignore[index]


def test_members_follow_extents_that_are_fixed() -> None:
    given = model([node("SequenceConstruct", ["x"], ["s"]),
                   node("SequenceAt", ["s", "i"], ["y"])],
                  [tensor("x", ["N", 3]), tensor("i", [], TensorProto.INT64)], [tensor("y", None)])
    assert fg.load(given.to_onnx(), shapes={"N": 2}).graph.value("y").type.shape == (2, 3)
    graph = given.graph.copy()
    fix_shapes(graph, {"N": 2})
    assert graph.value("y").type.shape == (2, 3)
