"""Files as they are found: shapes that are not true, ranks that only the run tells, inputs with defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import flowgrad as fg
from flowgrad.ir.errors import FlowgradError, InputError, PassError, UnsupportedError, ValidationError
from flowgrad.ir.pack import pack
from flowgrad.ir.verify import verify
from flowgrad.tools.cli import main

X = np.arange(6.0, dtype=np.float32).reshape(2, 3) - 2.5


def info(name: str, shape: Any, dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any] | None = None,
          opset: int = 18) -> ModelProto:
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    made: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def branch(op: str, inputs: list[str], **attributes: Any) -> Any:
    return helper.make_graph([helper.make_node(op, inputs, ["z"], **attributes)], "b", [], [info("z", None)])


def in_onnxruntime(proto: ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def agrees(proto: ModelProto, feeds: dict[str, Any], wrt: str, expected: Any, runs: bool = True) -> fg.Model:
    """Check value and gradient of sum(y * y) / 2, here and of the exported files in onnxruntime.

    Unless it ``runs``, onnxruntime refuses the file itself.
    """
    of = "y"
    loaded = fg.load(proto)
    y = loaded(feeds)[of]
    gradient = fg.vjp(loaded, of=of, wrt=wrt)
    fed = {**feeds, f"{of}_grad": y}
    np.testing.assert_allclose(gradient(fed)[f"{wrt}_grad"], expected, rtol=1e-5, atol=1e-6)
    if runs:
        np.testing.assert_allclose(in_onnxruntime(proto, feeds)[of], y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(in_onnxruntime(loaded.to_onnx(), feeds)[of], y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(in_onnxruntime(gradient.to_onnx(), fed)[f"{wrt}_grad"], expected, rtol=1e-5, atol=1e-6)
    return loaded


# ---- declared shapes ----------------------------------------------------------------------------------------------------


NEGATED = [helper.make_node("Neg", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])]


@pytest.mark.parametrize(("inner", "outer"), [(None, (6,)), ((1, 3), (2, 3)), ((2, 3, 1), (3, 2)), (("n", 4), None)])
def test_shapes_that_are_not_true_do_not_count(inner: Any, outer: Any) -> None:
    proto = model(NEGATED, [info("x", (2, 3))], [info("y", outer)])
    if inner:
        proto.graph.value_info.append(info("h", inner))
    loaded = agrees(proto, {"x": X}, "x", X)
    wrong = {"h"} if inner else set()
    wrong |= {"y"} if outer not in ((2, 3), None) else set()
    assert {n.split(":")[0] for n in loaded.notes} == {f"%{name}" for name in wrong}
    with pytest.raises(ValidationError, match=r"%. *: f32\[2,3\] is declared with shape"):
        fg.load(proto, strict=True)


@pytest.mark.parametrize("declared", [(6,), (1, 3), (2, 3)])
@pytest.mark.parametrize("count", [2, "k"])
def test_shapes_of_what_only_the_run_tells_are_not_believed(declared: Any, count: Any) -> None:
    nodes = [helper.make_node("Reshape", ["x", "t"], ["h"]), helper.make_node("Mul", ["h", "w"], ["y"])]
    w = np.array([[2.0, 3.0, 4.0]], np.float32)
    proto = model(nodes, [info("x", (2, 3)), info("t", (count,), TensorProto.INT64)], [info("y", None)], {"w": w})
    proto.graph.value_info.append(info("h", declared))
    feeds = {"x": X, "t": np.array([2, 3])}
    agrees(proto, feeds, "x", X * w * w, runs=declared != (6,))
    gradient = fg.vjp(fg.load(proto), of="y", wrt="w")
    np.testing.assert_allclose(gradient({**feeds, "y_grad": np.ones_like(X)})["w_grad"], X.sum(0, keepdims=True))


def test_a_squeeze_that_is_not_one_and_a_declared_rank() -> None:
    """As PyTorch exports squeeze(-1) of an extent it does not know, with the rank of one of both branches declared."""
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "last"], ["n"]),
             helper.make_node("Equal", ["n", "one"], ["c"]),
             helper.make_node("If", ["c"], ["h"], then_branch=branch("Squeeze", ["x", "axes"]),
                              else_branch=branch("Identity", ["x"])),
             helper.make_node("Softmax", ["h"], ["y"], axis=-1)]
    constants = {"last": np.array(-1), "one": np.array(1), "axes": np.array([-1])}
    for x_shape in (("a", "b"), (2, 3)):
        proto = model(nodes, [info("x", x_shape)], [info("y", ("a",))], constants)
        e = np.exp(X - X.max(1, keepdims=True))
        p = e / e.sum(1, keepdims=True)
        agrees(proto, {"x": X}, "x", p * (p - (p * p).sum(1, keepdims=True)), runs=x_shape != (2, 3))


def test_commands_say_so_and_refuse_with_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model(NEGATED, [info("x", (2, 3))], [info("y", (6,))]).SerializeToString())
    for command in (["run"], ["grad", "--vjp"], ["opt", "-O0"], ["inspect"], ["gradcheck"]):
        assert main([command[0], str(path), *command[1:]]) == 0
        assert "%y: f32[2,3] is declared with shape [6]" in capsys.readouterr().err
        assert main([command[0], str(path), *command[1:], "--strict"]) == 3
        assert "ValidationError" in capsys.readouterr().err


def test_another_element_type_is_refused() -> None:
    proto = model(NEGATED, [info("x", (2, 3))], [info("y", (2, 3), TensorProto.DOUBLE)])
    with pytest.raises(ValidationError, match="float64"):
        fg.load(proto)


# ---- branches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("op", "inputs", "attributes"), [
    ("Transpose", ["x"], {"perm": [1, 0]}), ("Concat", ["x", "w"], {"axis": 0}), ("MatMul", ["x", "w"], {}),
    ("Squeeze", ["x", "one"], {}),
])
def test_a_branch_that_is_never_taken_may_be_for_another_rank(
    op: str, inputs: list[str], attributes: dict[str, Any], swapped: bool
) -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Size", ["s"], ["r"]),
             helper.make_node("Equal", ["r", "three" if swapped else "two"], ["c"])]
    other, taken = branch(op, inputs, **attributes), branch("Neg", ["x"])
    nodes.append(helper.make_node("If", ["c"], ["y"], then_branch=taken if swapped else other,
                                  else_branch=other if swapped else taken))
    constants = {"two": np.array(2), "three": np.array(3), "w": np.ones((7, 2), np.float32), "one": np.array([1])}
    x = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    for shape in ((2, 3, 4), ("n", "k", 4)):
        proto = model(nodes, [info("x", shape)], [info("y", None)], constants)
        loaded = agrees(proto, {"x": x}, "x", x, runs=False)
        assert "If" not in {n.op for n in loaded.graph.nodes()}


def test_a_branch_that_may_be_taken_has_to_fit() -> None:
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Transpose", ["x"], perm=[0]),
                            else_branch=branch("Neg", ["x"]))
    with pytest.raises(ValidationError, match="does not permute"):
        fg.load(model([node], [info("x", (2, 3)), info("c", (), TensorProto.BOOL)], [info("y", None)]))


def inside(nodes: list[Any]) -> Any:
    return helper.make_graph(nodes, "b", [], [info("z", None)])


def held(name: str, array: Any) -> Any:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array, np.float32), f"{name}_value"))


def test_a_branch_that_is_always_taken_stands_for_its_if() -> None:
    """Names of both branches are free for others; what the branch takes from outside and holds itself stays what it is."""
    then = inside([held("k", [2.0, 3.0]), helper.make_node("Mul", ["x", "k"], ["h"]), helper.make_node("Neg", ["h"], ["z"])])
    other = inside([helper.make_node("MatMul", ["x", "x"], ["h"]), helper.make_node("Neg", ["h"], ["z"])])
    nodes = [helper.make_node("If", ["yes"], ["a"], then_branch=then, else_branch=other, name="first"),
             helper.make_node("If", ["no"], ["y"], then_branch=other, else_branch=then, name="second")]
    next(a for a in nodes[1].attribute if a.name == "else_branch").g.node[1].input[0] = "a"
    proto = model(nodes, [info("x", (2,))], [info("y", None)], {"yes": np.array(True), "no": np.array([False])})
    loaded = agrees(proto, {"x": np.array([1.0, -1.0], np.float32)}, "x", np.array([16.0, -81.0], np.float32))
    assert [n.op for n in loaded.graph.nodes()] == ["Mul", "Neg", "Mul", "Neg"]
    assert {"a", "y", "h", "h_1"} <= set(loaded.graph.values)


def test_an_error_in_the_branch_that_is_taken_names_node_and_if() -> None:
    then = inside([helper.make_node("MatMul", ["x", "x"], ["z"], name="inner")])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=branch("Neg", ["x"]), name="outer")
    with pytest.raises(ValidationError, match=r"node 'inner': z = MatMul\(x: f32\[2,3\], x: f32\[2,3\]\); in a subgraph of node "
                                              r"'outer' \(If\)"):
        fg.load(model([node], [info("x", (2, 3))], [info("y", None)], {"yes": np.array(True)}))


def test_weights_in_the_constant_nodes_of_branches_are_parameters() -> None:
    """Those of products, also further in and rearranged; what is only added or multiplied, and masks, stay where they are."""
    weights = [[1.0, 2.0], [3.0, 4.0]]
    within = helper.make_node("If", ["c"], ["h"], then_branch=inside([helper.make_node("MatMul", ["t", "v"], ["z"])]),
                              else_branch=inside([helper.make_node("MatMul", ["t", "u"], ["z"])]))
    then = inside([held("w", weights), held("v", weights), held("b", [1.0, 5.0]), held("mask", np.eye(2)), held("u", weights),
                   helper.make_node("Transpose", ["w"], ["wt"]), helper.make_node("MatMul", ["x", "wt"], ["m"]),
                   helper.make_node("MatMul", ["m", "mask"], ["t"]), within, helper.make_node("Add", ["h", "b"], ["s"]),
                   helper.make_node("Mul", ["s", "u"], ["z"])])
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=branch("Neg", ["x"]))
    proto = model([node], [info("x", (2, 2)), info("c", (), TensorProto.BOOL)], [info("y", None)])
    loaded = fg.load(proto)
    assert [p.name for p in loaded.params if p.included] == ["w", "v"]
    feeds = {"x": np.array([[1, 2], [3, 4]], np.float32), "c": np.array(True), "y_grad": np.ones((2, 2), np.float32)}
    gradient = fg.vjp(loaded, wrt="params")
    w, u = np.array(weights), np.array(weights)
    np.testing.assert_allclose(gradient(feeds)["v_grad"], (feeds["x"] @ w.T).T @ u)
    np.testing.assert_allclose(gradient(feeds)["w_grad"], (feeds["x"].T @ (u @ w.T)).T)
    exported = in_onnxruntime(gradient.to_onnx(), feeds)
    np.testing.assert_allclose(exported["w_grad"], gradient(feeds)["w_grad"])


# ---- ranks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "attributes", "shapes"), [
    ("Conv", {}, [(3, 2, 1, 1), (3,)]), ("ConvTranspose", {}, [(2, 3, 1, 1), (3,)]),
    ("MaxPool", {"kernel_shape": [2, 1]}, []), ("AveragePool", {"kernel_shape": [1, 2]}, []),
    ("Transpose", {"perm": [0, 2, 3, 1]}, []),
])
def test_what_an_operator_demands_tells_the_rank(op: str, attributes: dict[str, Any], shapes: list[Any]) -> None:
    """The If before it squeezes or not, so that nothing else does."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "last"], ["n"]),
             helper.make_node("Equal", ["n", "one"], ["c"]),
             helper.make_node("If", ["c"], ["h"], then_branch=branch("Squeeze", ["x", "axes"]),
                              else_branch=branch("Identity", ["x"])),
             helper.make_node(op, ["h", *weights], ["y"], **attributes)]
    proto = model(nodes, [info("x", ("n", 2, "h", "w"))], [info("y", None)],
                  {"last": np.array(-1), "one": np.array(1), "axes": np.array([-1]), **weights})
    plain = model([helper.make_node(op, ["x", *weights], ["y"], **attributes)], [info("x", (2, 2, 4, 3))], [info("y", None)],
                  weights)
    x = rng.standard_normal((2, 2, 4, 3)).astype(np.float32)
    for wrt in ("x", *weights):
        known = fg.load(plain)
        expected = fg.vjp(known, of="y", wrt=wrt)({"x": x, "y_grad": known(x=x)["y"]})[f"{wrt}_grad"]
        agrees(proto, {"x": x}, wrt, expected)
        for source in (fg.load(proto), fg.load(proto).optimized()):
            derived = fg.vjp(source, of="y", wrt=wrt)
            verify(derived.optimized().graph)
            again = fg.load(pack(derived.graph))
            np.testing.assert_allclose(again({"x": x, "y_grad": known(x=x)["y"]})[f"{wrt}_grad"], expected, rtol=1e-5, atol=1e-6)
    squeezed = x[..., :1]
    for shape in (("n", 2, "h", "w"), squeezed.shape):
        proto.graph.input[0].CopyFrom(info("x", shape))
        with pytest.raises(FlowgradError) as caught:
            fg.load(proto)(x=squeezed)
        assert not isinstance(caught.value, PassError)


@pytest.mark.parametrize("rank_known", [False, True])
@pytest.mark.parametrize("op", ["If", "Loop"])
def test_captures_and_unknown_ranks_come_back_out(op: str, rank_known: bool) -> None:
    w = np.array([2.0, -3.0, 0.5], np.float32)
    if op == "If":
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Mul", ["x", "w"]), else_branch=branch("Neg", ["x"]))
        factor = w
    else:
        body = helper.make_graph(
            [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Mul", ["s", "w"], ["t"])], "b",
            [info("i", (), TensorProto.INT64), info("c", (), TensorProto.BOOL), info("s", None)],
            [info("d", (), TensorProto.BOOL), info("t", None)])
        node = helper.make_node("Loop", ["n", "c", "x"], ["y"], body=body)
        factor = w**3
    inputs = [info("x", (2, 3) if rank_known else None), info("c", (), TensorProto.BOOL), info("w", None)]
    proto = model([node], inputs, [info("y", None)], {"n": np.array(3)})
    agrees(proto, {"x": X, "c": np.array(True), "w": w}, "x", X * factor**2)


# ---- inputs with a default ----------------------------------------------------------------------------------------------


def scaled(**constants: Any) -> ModelProto:
    nodes = [helper.make_node("Mul", ["x", "s"], ["h"]), helper.make_node("Gather", ["h", "i"], ["g"], axis=0),
             helper.make_node("Reshape", ["g", "t"], ["y"])]
    kinds = {"s": TensorProto.FLOAT, "i": TensorProto.INT64, "t": TensorProto.INT64}
    return model(nodes, [info("x", (2, 3)), *(info(n, np.shape(v), kinds[n]) for n, v in constants.items())],
                 [info("y", None)], constants)


def test_an_initializer_that_is_an_input_too_can_be_fed() -> None:
    s, i, t = np.array([1, 2, 3], np.float32), np.array([1, 1, 0]), np.array([9])
    loaded = fg.load(scaled(s=s, i=i, t=t))
    other, swapped = np.array([4, 5, 6], np.float32), np.array([0, 1, 0])
    cotangent = np.arange(9, dtype=np.float32)
    for form in (loaded, fg.load(loaded.to_onnx()), fg.load(str(loaded).encode()), loaded.optimized()):
        np.testing.assert_array_equal(form(x=X)["y"], (X * s)[i].ravel())
        np.testing.assert_array_equal(form(x=X, s=other)["y"], (X * other)[i].ravel())
        np.testing.assert_array_equal(form(x=X, i=swapped)["y"], (X * s)[swapped].ravel())
        with pytest.raises(InputError, match="no input 't'"):
            form(x=X, t=t)
        rows = np.zeros_like(X)
        np.add.at(rows, i, cotangent.reshape(3, 3))
        gradient = fg.vjp(form, of="y", wrt=["x", "s"])
        got = gradient(x=X, y_grad=cotangent)
        np.testing.assert_allclose(got["x_grad"], rows * s)
        np.testing.assert_allclose(got["s_grad"], (rows * X).sum(0))
        np.testing.assert_allclose(gradient(x=X, y_grad=cotangent, s=other)["x_grad"], rows * other)
        fed = {"x": X, "y_grad": cotangent, "s": other}
        np.testing.assert_allclose(in_onnxruntime(gradient.to_onnx(), fed)["x_grad"], rows * other)
        np.testing.assert_allclose(gradient.compile(engine="ort").run(fed)["x_grad"], rows * other)
    np.testing.assert_array_equal(in_onnxruntime(loaded.to_onnx(), {"x": X, "s": other})["y"], (X * other)[i].ravel())


def test_old_files_list_all_initializers_and_none_can_be_fed() -> None:
    proto = scaled(s=np.ones(3, np.float32), i=np.array([1]), t=np.array([3]))
    proto.ir_version = 3
    with pytest.raises(InputError, match="no input 's'"):
        fg.load(proto)(x=X, s=np.ones(3, np.float32))


def test_an_input_with_a_default_is_judged_by_its_use() -> None:
    norm = helper.make_node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["y"])
    vectors = {n: np.full(3, v, np.float32) for n, v in (("scale", 2), ("bias", 1), ("mean", 0), ("var", 4))}
    proto = model([norm], [info("x", (2, 3)), *(info(n, (3,)) for n in vectors)], [info("y", None)], vectors)
    included = {p.name: p.included for p in fg.load(proto).params}
    assert included == {"scale": True, "bias": True, "mean": False, "var": False}


def test_a_condition_with_a_default_is_decided_in_the_run() -> None:
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Neg", ["x"]), else_branch=branch("Identity", ["x"]))
    loaded = fg.load(model([node], [info("x", (2, 3)), info("c", (), TensorProto.BOOL)], [info("y", None)],
                           {"c": np.array(True)}))
    for form in (loaded, loaded.optimized(), fg.load(loaded.to_onnx())):
        np.testing.assert_array_equal(form(x=X)["y"], -X)
        np.testing.assert_array_equal(form(x=X, c=np.array(False))["y"], X)


# ---- small ones ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "picked"), [("floor", [1, 3]), ("round_prefer_floor", [1, 3])])
def test_resize_with_the_coordinates_of_keras(mode: str, picked: list[int]) -> None:
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest", nearest_mode=mode,
                            coordinate_transformation_mode="tf_half_pixel_for_nn")
    node.input[1] = "roi"
    proto = model([node], [info("x", (1, 1, 1, 4))], [info("y", None)],
                  {"roi": np.zeros(0, np.float32), "s": np.array([1, 1, 1, 0.5], np.float32)}, opset=11)
    x = np.arange(4.0, dtype=np.float32).reshape(1, 1, 1, 4) + 1
    assert fg.load(proto)(x=x)["y"].ravel().tolist() == x.ravel()[picked].tolist()
    agrees(proto, {"x": x}, "x", np.where(np.isin(np.arange(4), picked), x, 0))


@pytest.mark.parametrize("fed", [False, True])
@pytest.mark.parametrize("op", ["Slice", "Pad"])
def test_axes_of_32_bits(op: str, fed: bool) -> None:
    narrow = TensorProto.INT32
    if op == "Slice":
        operands = {"starts": np.array([0], np.int32), "ends": np.array([2], np.int32), "axes": np.array([1], np.int32)}
        inputs, expected = list(operands), np.where(np.arange(3) < 2, X, 0)
    else:
        operands, inputs, expected = {"axes": np.array([1], np.int32)}, ["pads", "", "axes"], X
    node = helper.make_node(op, ["x", *inputs], ["y"])
    given = operands if fed else {}
    proto = model([node], [info("x", (2, 3)), *(info(n, (1,), narrow) for n in given)], [info("y", None)],
                  {"pads": np.array([1, 1]), **({} if fed else operands)})
    agrees(proto, {"x": X, **given}, "x", expected, runs=fed or op == "Slice")


def test_zeros_without_a_value_take_part_in_a_change_of_type() -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("ConstantOfShape", ["s"], ["z"]),
             helper.make_node("Add", ["x", "z"], ["y"])]
    loaded = fg.load(model(nodes, [info("x", ("n", 3))], [info("y", None)]))
    for dtype in ("float64", "float16", "bfloat16"):
        y = loaded.astype(dtype)(x=X.astype(fg.load(loaded.to_onnx()).astype(dtype).graph.inputs[0].type.dtype.numpy))["y"]
        np.testing.assert_array_equal(y.astype(np.float32), X)
    assert fg.gradcheck(loaded, {"x": X})


# ---- the first opsets ---------------------------------------------------------------------------------------------------


R = np.random.default_rng(1)
IMAGE = R.standard_normal((1, 2, 3, 4)).astype(np.float32)
FIRST: dict[str, tuple[int, str, dict[str, Any], dict[str, Any], Any]] = {
    "add at an axis": (6, "Add", {"broadcast": 1, "axis": 1}, {"b": np.array([1, 2], np.float32)},
                       IMAGE + np.array([1, 2], np.float32).reshape(2, 1, 1)),
    "add at the end": (6, "Mul", {"broadcast": 1}, {"b": np.array([1, 2, 3, 4], np.float32)},
                       IMAGE * np.array([1, 2, 3, 4], np.float32)),
    "add in the middle": (4, "Sub", {"broadcast": 1, "axis": -2}, {"b": np.array([1, 2, 3], np.float32)},
                          IMAGE - np.array([1, 2, 3], np.float32).reshape(3, 1)),
    "the same": (3, "Div", {"consumed_inputs": [0, 0]}, {"b": IMAGE * 2 + 9}, IMAGE / (IMAGE * 2 + 9)),
    "relu": (1, "Relu", {"consumed_inputs": [0]}, {}, np.maximum(IMAGE, 0)),
    "slope": (6, "PRelu", {}, {"b": np.array([2, 3], np.float32)},
              np.where(IMAGE < 0, IMAGE * np.array([2, 3], np.float32).reshape(2, 1, 1), IMAGE)),
    "reshape": (4, "Reshape", {"shape": [0, -1]}, {}, IMAGE.reshape(1, -1)),
    "concat": (3, "Concat", {}, {"b": IMAGE}, np.concatenate([IMAGE, IMAGE], 1)),
    "tile": (5, "Tile", {}, {"b": np.array(2.0, np.float32), "c": np.array(3.0, np.float32)}, np.tile(IMAGE, (1, 1, 1, 2))),
    "pad": (1, "Pad", {"paddings": [0, 0, 0, 1, 0, 0, 0, 0]}, {}, np.pad(IMAGE, ((0, 0), (0, 0), (0, 0), (1, 0)))),
    "upsample": (1, "Upsample", {"height_scale": 2.0, "width_scale": 1.0, "mode": "nearest"}, {}, IMAGE.repeat(2, 2)),
    "dropout": (6, "Dropout", {"is_test": 1, "ratio": 0.5}, {}, IMAGE),
    "norm": (1, "GlobalLpPool", {"p": 2.0}, {}, np.sqrt((IMAGE**2).sum((2, 3), keepdims=True))),
    "selu": (1, "Selu", {}, {}, 1.0507 * np.where(IMAGE > 0, IMAGE, 1.6732 * (np.exp(IMAGE) - 1))),
    "cast": (1, "Cast", {"to": "DOUBLE"}, {}, IMAGE.astype(np.float64)),
    "batch": (6, "BatchNormalization", {"is_test": 1, "epsilon": 0.0},
              {n: np.array(v, np.float32) for n, v in (("s", [1, 2]), ("b", [3, 4]), ("m", [1, 0]), ("v", [4, 1]))},
              (IMAGE - np.array([1, 0], np.float32).reshape(2, 1, 1)) * np.array([0.5, 2], np.float32).reshape(2, 1, 1)
              + np.array([3, 4], np.float32).reshape(2, 1, 1)),
}


@pytest.mark.parametrize("name", FIRST)
def test_files_of_the_first_opsets(name: str) -> None:
    opset, op, attributes, constants, expected = FIRST[name]
    node = helper.make_node(op, ["x", *constants], ["y"], **attributes)
    dtype = TensorProto.DOUBLE if op == "Cast" else TensorProto.FLOAT
    loaded = fg.load(model([node], [info("x", IMAGE.shape)], [info("y", None, dtype)], constants, opset=opset))
    np.testing.assert_allclose(loaded(x=IMAGE)["y"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(in_onnxruntime(loaded.to_onnx(), {"x": IMAGE})["y"], expected, rtol=1e-5, atol=1e-6)
    assert fg.gradcheck(loaded, {"x": IMAGE})


def test_dropout_that_trains_is_refused() -> None:
    node = helper.make_node("Dropout", ["x"], ["y"])
    with pytest.raises(UnsupportedError, match="training mode"):
        fg.load(model([node], [info("x", (2, 3))], [info("y", None)], opset=6))
