"""Quantized models: values as onnxruntime has them, weights that are made of integers, derivatives as if unrounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import flowgrad as fg
from flowgrad.ir.errors import InputError, NotDifferentiableError, ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array
from flowgrad.ir.ops.registry import all_ops
from flowgrad.ir.types import dtype_of
from flowgrad.model import Model
from flowgrad.passes.differences import directional_derivative


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def from_nodes(nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, tuple[int, Sequence[Any]]], outputs: Mapping[str, int],
               weights: Mapping[str, Any], opset: int = 21, domains: Sequence[str] = ()) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "quantized", [helper.make_tensor_value_info(n, *t) for n, t in inputs.items()],
        [helper.make_tensor_value_info(n, t, None) for n, t in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()])
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


# ---- values of onnxruntime ------------------------------------------------------------------------------------------------


def random(dtype: str, *shape: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return np.asarray((rng.standard_normal(shape) * 30).astype(np.float32).astype(dtype_of(dtype).numpy))
    bounds = {"int4": (-8, 7), "uint4": (0, 15), "int32": (-10**6, 10**6)}.get(dtype) or (
        np.iinfo(dtype).min, np.iinfo(dtype).max)
    return np.asarray(rng.integers(bounds[0], bounds[1] + 1, shape).astype(dtype_of(dtype).numpy))


TIES = np.arange(-600, 600, 0.5).astype(np.float32)
ODD = np.array([np.nan, np.inf, -np.inf, 1e20, -1e20], np.float32)
QUANTIZED = ("uint8", "int8", "uint16", "int16", "uint4", "int4")
ROWS: list[tuple[str, str, list[Any], dict[str, Any]]] = [
    *(("QuantizeLinear", f"{t}-{name}", [x, np.float32(scale), np.asarray(3).astype(dtype_of(t).numpy)], {})
      for t in QUANTIZED for name, x, scale in (("plain", random("float32", 40, 50), 0.37), ("ties", TIES, 1.0), ("odd", ODD, 0.37))),
    *(("QuantizeLinear", t, [random("float32", 40, 50), np.float32(0.37), np.zeros((), dtype_of(t).numpy)], {"saturate": s})
      for t in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz") for s in (0, 1)),
    ("QuantizeLinear", "blocks", [random("float32", 40, 50), np.abs(random("float32", 10, 50)) + 1, random("int8", 10, 50)],
     {"block_size": 4, "axis": 0}),
    *(("DequantizeLinear", t, [random(t, 40, 50), np.abs(random("float32", 50)), random(t, 50, seed=1)], {}) for t in QUANTIZED),
    *(("DequantizeLinear", f"{t}-blocks", [random(t, 40, 50), np.abs(random("float32", 40, 13)), None], {"block_size": 4})
      for t in (*QUANTIZED, "float8_e4m3fn", "float8_e5m2")),
    ("DequantizeLinear", "int32", [random("int32", 40, 50), np.float32(0.37)], {}),
    ("DequantizeLinear", "half", [random("int8", 40, 50), random("float16", 50), random("int8", 50)], {}),
    *(("MatMulInteger", f"{a}-{b}", [random(a, 20, 30), random(b, 30, 25), np.asarray(3, a), np.asarray(5, b)], {})
      for a, b in (("uint8", "uint8"), ("int8", "int8"), ("int8", "uint8"))),
    *(("QLinearMatMul", f"{a}-{b}", [random(a, 20, 30), np.float32(0.01), np.asarray(3, a), random(b, 30, 25) // 2, np.float32(0.02),
                                     np.asarray(5, b), np.float32(0.4), np.asarray(7, a)], {})
      for a, b in (("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8"))),
    *(("ConvInteger", f"{a}-{b}", [random(a, 2, 4, 9, 8), random(b, 6, 2, 3, 3) // 2, np.asarray(3, a), np.asarray(5, b)],
       {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 1]}) for a in ("uint8", "int8") for b in ("uint8", "int8")),
    *(("QLinearConv", f"{a}-{b}", [random(a, 2, 4, 9, 8), np.float32(0.02), np.asarray(3, a), random(b, 6, 2, 3, 3) // 2,
                                   np.linspace(0.01, 0.1, 6).astype(np.float32), np.full(6, zero, b), np.float32(0.3),
                                   np.asarray(7, a), random("int32", 6) // 300], {"group": 2, "pads": [1, 1, 1, 1]})
      for a, b, zero in (("uint8", "uint8", 128), ("uint8", "int8", 0), ("int8", "int8", 0))),
    *(("DynamicQuantizeLinear", name, [x], {}) for name, x in (
        ("both", random("float32", 40)), ("below", -np.abs(random("float32", 40))), ("above", np.abs(random("float32", 40))))),
]


@pytest.mark.parametrize(("op", "arrays", "attributes"), [(op, a, k) for op, _, a, k in ROWS], ids=[f"{r[0]}-{r[1]}" for r in ROWS])
def test_results_are_those_of_onnxruntime_to_the_bit(op: str, arrays: list[Any], attributes: dict[str, Any]) -> None:
    names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    outputs = ["q", "scale", "zero"] if op.startswith("Dynamic") else ["q"]
    nodes = [helper.make_node(op, names, outputs, **attributes), helper.make_node("Cast", ["q"], ["y"], to=1)]
    model = from_nodes(nodes, {"unused": (1, [1])}, {"y": 1}, {f"x{i}": a for i, a in enumerate(arrays) if a is not None})
    feeds = {"unused": np.zeros(1, np.float32)}
    np.testing.assert_array_equal(fg.load(model)(feeds)["y"], session(model).run(None, feeds)[0])


def test_the_type_of_the_scale_is_the_precision_of_the_division() -> None:
    text = b"graph @g (%x: f16[1], %s: f16[]) -> (%y: i8[1]) { %y: i8[1] = QuantizeLinear(%x, %s) {output_dtype=3} }"
    scale = np.float16(0.37)
    x = next(v for v in np.linspace(1, 40, 5000).astype(np.float16)
             if np.rint(v / scale) != np.rint(np.float32(v) / np.float32(scale)))
    assert fg.load(text)(x=x.reshape(1), s=scale)["y"] == np.rint(x / scale)


@pytest.mark.parametrize(("scale", "zero", "attributes"), [
    ("f32[3]", "i8[4]", ""), ("f32[4]", "i8[3]", ""), ("f32[2,4]", "i8[2,4]", ""), ("f32[2,3]", "i8[2,2]", "{block_size=2}"),
    ("f32[2]", "i8[2]", "{block_size=2}"), ("f32[4]", "i8[4]", "{axis=2}"), ("f32[2,2]", "i8[2,2]", "{block_size=-2}"),
    ("f32[4]", "i8[4]", "{output_dtype=2}"), ("f32[4]", "i8[4]", "{precision=6}"), ("f32[4]", "i32[4]", ""),
])
def test_scales_and_zero_points_must_fit(scale: str, zero: str, attributes: str) -> None:
    text = f"graph @g (%x: f32[2,4], %s: {scale}, %z: {zero}) -> (%y: i8[2,4]) {{ %y: i8[2,4] = QuantizeLinear(%x, %s, %z) "
    with pytest.raises(ValidationError, match=r"fit|axis|block_size|output_dtype|precision|gives no"):
        fg.load(f"{text}{attributes} }}".encode())


# ---- derivatives ------------------------------------------------------------------------------------------------------------


PAIR = b"""graph @pair (%x: f64[3,4], %s: f64[4], %z: i8[4]) -> (%y: f64[3,4]) {
  %q: i8[3,4] = QuantizeLinear(%x, %s, %z)
  %d: f64[3,4] = DequantizeLinear(%q, %s, %z)
  %y: f64[3,4] = Mul(%d, %d)
}"""


def fed(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((3, 4)) * 60, "s": rng.uniform(0.2, 0.6, 4), "z": np.array([0, 5, -20, 127], np.int8)}


def test_quantization_is_flat_unless_asked() -> None:
    model = fg.load(PAIR)
    with pytest.raises(NotDifferentiableError, match="QuantizeLinear at 'q'"):
        fg.vjp(model, "y", "x")
    feeds = fed() | {"y_grad": np.ones((3, 4))}
    assert not fg.vjp(model, "y", "x", zero="allow")(feeds)["x_grad"].any()
    results = fg.vjp(model, ["y"], "s", keep=["q", "d"])(feeds)
    kept = results["q"].astype(float) - feeds["z"]
    np.testing.assert_allclose(results["s_grad"], (2 * results["d"] * kept).sum(0), rtol=1e-13)


def test_a_pair_is_a_clipped_identity() -> None:
    feeds = fed()
    model = fg.through_quantization(fg.load(PAIR))
    np.testing.assert_array_equal(model(feeds)["y"], fg.load(PAIR)(feeds)["y"])
    ratio = feeds["x"] / feeds["s"] + feeds["z"]
    inside, below = (ratio >= -128) & (ratio <= 127), ratio < -128
    assert inside.any() and below.any() and (ratio > 127).any()
    results = fg.vjp(model, "y", ["x", "s"], keep="d")(feeds | {"y_grad": np.ones((3, 4))})
    d_bar = 2 * results["d"]
    np.testing.assert_allclose(results["x_grad"], np.where(inside, d_bar, 0), rtol=1e-13)
    step = np.where(inside, results["d"] / feeds["s"] - feeds["x"] / feeds["s"], np.where(below, -128, 127) - feeds["z"].astype(float))
    np.testing.assert_allclose(results["s_grad"], (d_bar * step).sum(0), rtol=1e-12)


def test_all_modes_and_forms_pass_quantization_alike() -> None:
    feeds, model = fed(), fg.through_quantization(fg.load(PAIR))
    rng = np.random.default_rng(1)
    x_dot, y_bar = rng.standard_normal((2, 3, 4))
    results = fg.vjp(model, "y", "x")(feeds | {"y_grad": y_bar})
    tangent = fg.jvp(model, "y", "x")(feeds | {"x_tangent": x_dot})["y_tangent"]
    assert np.sum(tangent * y_bar) == pytest.approx(np.sum(results["x_grad"] * x_dot), rel=1e-12)
    others = {"optimized": model.optimized(), "exported": fg.load(model.to_onnx()),
              "expanded": model.optimized("expand"), "packed": packed(model)}
    for name, other in others.items():
        again = fg.vjp(other, "y", "x")(feeds | {"y_grad": y_bar})
        np.testing.assert_allclose(again["x_grad"], results["x_grad"], rtol=1e-12, err_msg=name)


def packed(model: Model) -> Model:
    from flowgrad.ir.pack import pack

    return fg.load(pack(model.graph))


def test_a_hessian_passes_quantization() -> None:
    """y = d^2 with d taken as x inside the range: the second derivative is 2 there."""
    feeds, model = fed(), fg.through_quantization(fg.load(PAIR))
    gradient = fg.vjp(model, "y", "x")
    second = fg.vjp(gradient, "x_grad", "x")(feeds | {"y_grad": np.ones((3, 4)), "x_grad_grad": np.ones((3, 4))})
    found = next(v for k, v in second.items() if v.shape == (3, 4) and k not in ("y", "x_grad"))
    ratio = feeds["x"] / feeds["s"] + feeds["z"]
    np.testing.assert_allclose(found, np.where((ratio >= -128) & (ratio <= 127), 2.0, 0.0), rtol=1e-12)


def test_the_exported_gradient_runs_in_onnxruntime() -> None:
    model = fg.through_quantization(fg.load(PAIR)).astype("float32")
    feeds = {k: a.astype(np.float32) if a.dtype == np.float64 else a for k, a in fed().items()} | {"y_grad": np.ones((3, 4), np.float32)}
    gradient = fg.vjp(model, "y", ["x", "s"])
    got = gradient(feeds)
    run = session(gradient.to_onnx())
    for entry, value in zip(run.get_outputs(), run.run(None, feeds), strict=True):
        np.testing.assert_allclose(got[entry.name], value, rtol=1e-5, atol=1e-5)


def test_a_choice_marked_as_a_surrogate_is_one_only_if_it_always_chooses_alike() -> None:
    exported = fg.through_quantization(fg.load(PAIR)).to_onnx()
    assert "Surrogate" in {n.op for n in fg.load(exported).graph.nodes()}
    chosen = next(i for i in exported.graph.initializer if i.data_type == onnx.TensorProto.BOOL)
    chosen.CopyFrom(onnx.numpy_helper.from_array(np.asarray(False), chosen.name))
    assert "Surrogate" not in {n.op for n in fg.load(exported).graph.nodes()}


MOVED = b"""graph @moved (%x: f64[2,3], %s: f64[]) -> (%y: f64[3,2]) {
  %q: u8[2,3] = QuantizeLinear(%x, %s, u8(7))
  %t: u8[3,2] = Transpose(%q) {perm=[1,0]}
  %y: f64[3,2] = DequantizeLinear(%t, %s, u8(7))
}"""


def test_what_moves_elements_between_them_is_passed_too() -> None:
    model = fg.through_quantization(fg.load(MOVED))
    y_bar = np.arange(6.0).reshape(3, 2)
    got = fg.vjp(model, "y", "x")(x=np.array([[1.0, 2, 3], [-9, 40, 999]]), s=np.array(0.5), y_grad=y_bar)["x_grad"]
    np.testing.assert_allclose(got, y_bar.T * [[1, 1, 1], [0, 1, 0]], rtol=1e-13)


def test_a_model_without_quantization_has_nothing_to_pass() -> None:
    with pytest.raises(InputError, match="nothing to pass"):
        fg.through_quantization(fg.load(b"graph @g (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Tanh(%x) }"))


def test_what_cannot_be_passed_says_why() -> None:
    with pytest.raises(NotDifferentiableError, match="through_quantization gives a model"):
        fg.vjp(fg.load(PAIR), "y", "x")
    with pytest.raises(InputError, match="QuantizeLinear at 'q' gives no floats"):
        fg.override_adjoint(fg.load(PAIR), fg.guided, op="QuantizeLinear")


TWO = b"""graph @g (%x: f64[3], %s: f64[]) -> (%y: f64[3]) {
    %q: i8[3] = QuantizeLinear(%x, %s, i8(0))
    %d: f64[3] = DequantizeLinear(%q, %s, i8(0))
    %r: i8[3] = QuantizeLinear(%x, f64(0.5), i8(0))
    %e: f64[3] = DequantizeLinear(%r, f64(0.5), i8(0))
    %y: f64[3] = Mul(%d, %e)
}"""


def test_straight_through_of_chosen_quantizers() -> None:
    """By operator as ``through_quantization``; by name, the other factor stays a number."""
    feeds = {"x": np.array([0.26, -0.4, 7.0]), "s": np.float64(0.1), "y_grad": np.ones(3)}
    plain = fg.load(TWO)
    every = fg.vjp(fg.override_adjoint(plain, fg.straight_through, op="QuantizeLinear"), "y", "x")(feeds)["x_grad"]
    np.testing.assert_array_equal(every, fg.vjp(fg.through_quantization(plain), "y", "x")(feeds)["x_grad"])
    one = fg.override_adjoint(plain, fg.straight_through, names="q")
    found = fg.vjp(one, "y", "x", keep="e", zero="allow")(feeds)
    np.testing.assert_allclose(found["x_grad"], found["e"], rtol=1e-15)


POWERS = {
    "scale": b"graph @g (%x: f8e8m0[3]) -> (%y: f32[3]) { %y: f32[3] = DequantizeLinear(i8([1, 2, 3]), %x) {axis=0, output_dtype=1} }",
    "cast": b"graph @g (%x: f8e8m0[3]) -> (%y: f32[3]) { %y: f32[3] = Cast(%x) {to=1} }",
}


@pytest.mark.parametrize("text", POWERS.values(), ids=POWERS)
def test_powers_of_two_carry_no_derivative(text: bytes) -> None:
    """They have no sign: a negative cotangent in that type would come out positive."""
    with pytest.raises(NotDifferentiableError, match="float8_e8m0fnu"):
        fg.vjp(fg.load(text), "y", "x")


def test_no_tangent_is_told_in_powers_of_two() -> None:
    with pytest.raises(NotDifferentiableError, match="float8_e8m0fnu"):
        fg.jvp(fg.load(b"graph @g (%x: f32[3]) -> (%y: f8e8m0[3]) { %y: f8e8m0[3] = Cast(%x) {to=24} }"), "y", "x")


def test_numbers_that_are_floats_carry_a_derivative_and_their_zero_points_none() -> None:
    text = b"""graph @g (%x: f8e5m2[3], %s: f32[], %z: f8e5m2[]) -> (%y: f32[3]) { %y: f32[3] = DequantizeLinear(%x, %s, %z) }"""
    narrow = dtype_of("float8_e5m2").numpy
    feeds = {"x": np.array([1, -2, 4]).astype(narrow), "s": np.float32(0.5), "z": np.asarray(0).astype(narrow),
             "y_grad": np.array([1, -8, 2], np.float32)}
    got = fg.vjp(fg.load(text), "y", ["x", "s"])(feeds)
    np.testing.assert_array_equal(got["x_grad"].astype(np.float32), [0.5, -4, 1])
    assert got["s_grad"] == 1 + 16 + 8
    with pytest.raises(NotDifferentiableError, match="zero point"):
        fg.vjp(fg.load(text), "y", "z")


def integer_networks() -> dict[str, bytes]:
    return {
        "QLinearMatMul": b"""graph @m (%x: f64[2,3], %w: f64[3,4]) -> (%y: f64[2,4]) {
            %a: u8[2,3] = QuantizeLinear(%x, 0.001, u8(100))
            %b: i8[3,4] = QuantizeLinear(%w, 0.002, i8(3))
            %c: u8[2,4] = QLinearMatMul(%a, 0.001, u8(100), %b, 0.002, i8(3), 0.004, u8(90))
            %y: f64[2,4] = DequantizeLinear(%c, f64(0.004), u8(90)) }""",
        "MatMulInteger": b"""graph @m (%x: f64[2,3], %w: f64[3,4]) -> (%y: f64[2,4]) {
            %a: u8[2,3] = QuantizeLinear(%x, 0.001, u8(100))
            %b: i8[3,4] = QuantizeLinear(%w, 0.002, i8(3))
            %c: i32[2,4] = MatMulInteger(%a, %b, u8(100), i8(3))
            %d: f64[2,4] = Cast(%c) {to=11}
            %y: f64[2,4] = Mul(%d, f64(0.000002)) }""",
        "QLinearConv": b"""graph @m (%x: f64[2,3,5], %w: f64[4,3,2]) -> (%y: f64[2,4,4]) {
            %a: u8[2,3,5] = QuantizeLinear(%x, 0.001, u8(100))
            %b: i8[4,3,2] = QuantizeLinear(%w, [0.002, 0.003, 0.004, 0.002], i8([3, 0, 1, 2])) {axis=0}
            %c: u8[2,4,4] = QLinearConv(%a, 0.001, u8(100), %b, [0.002, 0.003, 0.004, 0.002], i8([3, 0, 1, 2]), 0.004, u8(90), i32([0, 900, 40, -900]))
            %y: f64[2,4,4] = DequantizeLinear(%c, f64(0.004), u8(90)) }""",
        "ConvInteger": b"""graph @m (%x: f64[2,3,5], %w: f64[4,3,2]) -> (%y: f64[2,4,4]) {
            %a: u8[2,3,5] = QuantizeLinear(%x, 0.001, u8(100))
            %b: i8[4,3,2] = QuantizeLinear(%w, 0.002, i8(3)) {axis=0}
            %c: i32[2,4,4] = ConvInteger(%a, %b, u8(100), i8(3)) {pads=[0, 0]}
            %d: f64[2,4,4] = Cast(%c) {to=11}
            %y: f64[2,4,4] = Mul(%d, f64(0.000002)) }""",
    }


@pytest.mark.parametrize("name", integer_networks())
def test_integer_products_have_the_derivative_of_products_of_reals(name: str) -> None:
    """Operands are multiples of their scales in their range, so the reals are known: differences of their product."""
    model = fg.through_quantization(fg.load(integer_networks()[name]))
    rng = np.random.default_rng(0)
    shapes = {v.name: v.type.static_shape for v in model.graph.inputs}
    feeds = {"x": np.round(rng.uniform(-0.09, 0.15, shapes["x"]), 3), "w": rng.integers(-50, 50, shapes["w"]) * 0.004}
    scale = np.array([0.002, 0.003, 0.004, 0.002])[:, None, None] if name == "QLinearConv" else 0.002
    feeds["w"] = np.round(feeds["w"] / scale / 2) * scale
    y_bar = rng.standard_normal(model(feeds)["y"].shape)
    got = fg.vjp(model, "y", ["x", "w"])(feeds | {"y_grad": y_bar})
    bias = np.array([0, 900, 40, -900]) * 0.001 * scale.reshape(-1) if name == "QLinearConv" else 0  # type: ignore[union-attr]

    def real(at: Mapping[str, Array]) -> Array:
        if "MatMul" in name:
            return np.asarray(np.sum(at["x"] @ at["w"] * y_bar))
        windows = np.lib.stride_tricks.sliding_window_view(at["x"], 2, axis=2)
        return np.asarray(np.sum((np.einsum("ncok,mck->nmo", windows, at["w"]) + np.reshape(bias, (-1, 1))) * y_bar))

    for x in ("x", "w"):
        direction = {x: rng.standard_normal(shapes[x])}
        expected, _ = directional_derivative(real, feeds, direction, 1e-2)
        assert np.sum(got[f"{x}_grad"] * direction[x]) == pytest.approx(float(expected), rel=2e-6)


def test_what_the_unrounded_rules_say_is_what_is_rounded() -> None:
    """The second operand of every surrogate differs from the first by one step of rounding at most, or two after a product."""
    rng = np.random.default_rng(0)
    for name, text in integer_networks().items():
        model = fg.through_quantization(fg.load(text))
        graph = model.graph.copy()
        pairs = [(n.input(0).name, n.input(1).name) for n in graph.nodes() if n.op == "Surrogate"]
        for value in dict.fromkeys(v for pair in pairs for v in pair):
            graph.add_output(graph.value(value), graph.unique_output_name(value))
        shapes = {v.name: v.type.static_shape for v in graph.inputs}
        results = evaluate(graph, {"x": rng.uniform(-0.3, 0.3, shapes["x"]), "w": rng.uniform(-0.5, 0.5, shapes["w"])})
        for rounded, real in pairs[:2]:
            np.testing.assert_allclose(results[rounded], results[real], atol=0.5 + 1e-3, err_msg=f"{name} {rounded}")
        whole, real = pairs[2]
        np.testing.assert_allclose(results[whole], results[real], atol=0.5 + 1e-3, err_msg=f"{name} {whole}")


def test_every_quantizing_operator_says_what_it_rounds() -> None:
    quantizing = {name for name, d in all_ops().items() if any("zero_point" in n for n in d.inputs)}
    assert len(quantizing) > 4
    assert quantizing == {name for name in quantizing if all_ops()[name].unrounded_rule is not None}


# ---- weights ----------------------------------------------------------------------------------------------------------------


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_d"]),
        helper.make_node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w"], axis=1),
        helper.make_node("Transpose", ["w"], ["w_t"], perm=[1, 0]),
        helper.make_node("Gemm", ["x_d", "w_t", "b"], ["h"], transB=1),
        helper.make_node("ReduceSum", ["h"], ["y"], keepdims=0),
    ]
    weights = {"x_scale": np.float32(0.01), "x_zero": np.uint8(128), "w_q": rng.integers(-128, 128, (3, 4)).astype(np.int8),
               "w_scale": rng.uniform(0.01, 0.02, 4).astype(np.float32), "w_zero": np.zeros(4, np.int8),
               "b": np.ones(4, np.float32)}
    return from_nodes(nodes, {"x": (1, [2, 3])}, {"y": 1}, weights)


def test_what_is_made_of_integers_is_a_weight_and_its_scale_a_setting() -> None:
    model = fg.load(network())
    found = {p.name: p for p in model.params}
    assert [name for name, p in found.items() if p.included] == ["b", "w"]
    assert "setting of DequantizeLinear" in found["w_scale"].reason and "weight of Gemm" in found["w"].reason
    x = np.array([[0.1, 0.2, -0.3], [0.5, 0.25, 1.0]], np.float32)
    results = fg.grad(model, "y", "params")(x=x)
    np.testing.assert_allclose(results["w_grad"], np.tile(x.sum(0)[:, None], (1, 4)), rtol=1e-6)
    scales = fg.grad(model, "y", "w_scale")(x=x)["w_scale_grad"]
    w_q = onnx.numpy_helper.to_array(network().graph.initializer[2]).astype(float)
    np.testing.assert_allclose(scales, (w_q * x.sum(0)[:, None]).sum(0), rtol=1e-5)
    through = fg.grad(fg.through_quantization(model), "y", ["x", "w"])(x=x)
    np.testing.assert_allclose(through["x_grad"], np.tile((w_q * found_scale()).sum(1), (2, 1)), rtol=1e-5)
    assert [p.name for p in model.optimized().params if p.included] == ["b", "w_t"]  # folded, like one of floats


def found_scale() -> Array:
    return onnx.numpy_helper.to_array(network().graph.initializer[3])


def test_weights_that_are_quantized_in_the_model_learn_through_it() -> None:
    nodes = [helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
             helper.make_node("MatMul", ["x", "d"], ["h"]), helper.make_node("ReduceSum", ["h"], ["y"], keepdims=0)]
    w = np.array([[0.3, 9.0], [-0.7, 0.2]], np.float32)
    model = fg.load(from_nodes(nodes, {"x": (1, [1, 2])}, {"y": 1}, {"w": w, "s": np.float32(0.05), "z": np.int8(0)}))
    x = np.array([[2.0, 3.0]], np.float32)
    assert [p.name for p in model.params if p.included] == ["d"]
    through = fg.through_quantization(model)
    assert {p.name for p in through.params if p.included} == {"w", "s"}
    got = fg.grad(through, "y", "w")(x=x)["w_grad"]
    np.testing.assert_allclose(got, [[2, 0], [3, 3]], rtol=1e-6)
