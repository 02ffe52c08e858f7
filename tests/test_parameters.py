"""What ``"params"`` stands for: the same in transforms and in pipelines, scalars and models without inputs included."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import INITIALIZER, Array, Graph
from flowgrad.ir.pack import pack
from flowgrad.ir.types import FLOAT32, Type
from flowgrad.passes.parameters import candidates

BATCH_NORM = """
graph @g (%x: f32[2,3,4]) -> (%y: f32[])
    initializers (%scale: f32[3] = [1.0,2.0,3.0], %shift: f32[3] = [0.0,1.0,2.0], %mean: f32[3] = [0.5,0.5,0.5],
                  %var: f32[3] = [1.0,1.0,2.0], %gain: f32[] = 2.0, %low: f32[] = -1.0, %unused: f32[2] = [1.0,2.0])
{
  %n: f32[2,3,4] = BatchNormalization(%x, %scale, %shift, %mean, %var)
  %c: f32[2,3,4] = Clip(%n, %low)
  %g: f32[2,3,4] = Mul(%c, %gain)
  %h: f32[2,3,4] = Mul(%g, 0.5)
  %y: f32[] = ReduceSum(%h) {keepdims=0}
}
"""

WITHOUT_INPUTS = """
graph @g () -> (%y: f32[])
    initializers (%w: f32[3] = [1.0,2.0,3.0], %s: f32[] = 2.0, %bound: f32[] = 0.0)
{
  %c: f32[3] = Clip(%w, %bound)
  %e: f32[3] = Exp(%c)
  %m: f32[3] = Mul(%e, %s)
  %y: f32[] = ReduceSum(%m) {keepdims=0}
}
"""


def included(text: str) -> list[str]:
    return [p.name for p in fg.load(text.encode()).params if p.included]


def reasons(text: str) -> dict[str, str]:
    return {p.name: p.reason for p in fg.load(text.encode()).params if not p.included}


def test_weights_and_scalars_count_settings_do_not() -> None:
    assert included(BATCH_NORM) == ["scale", "shift", "gain"]
    assert reasons(BATCH_NORM) == {
        "mean": "a setting of BatchNormalization at 'n', not a weight",
        "var": "a setting of BatchNormalization at 'n', not a weight",
        "low": "a setting of Clip at 'c', not a weight",
        "unused": "no output needs it",
    }


def test_a_model_without_inputs_has_parameters() -> None:
    assert included(WITHOUT_INPUTS) == ["w", "s"]
    model = fg.load(WITHOUT_INPUTS.encode())
    gradient = fg.value_and_grad(model, of="y", wrt="params")({})
    np.testing.assert_allclose(gradient["w_grad"], 2 * np.exp([1.0, 2.0, 3.0]), rtol=1e-6)
    np.testing.assert_allclose(gradient["s_grad"], np.exp([1.0, 2.0, 3.0]).sum(), rtol=1e-6)


def test_what_is_behind_a_setting_is_a_setting() -> None:
    text = """
    graph @g (%x: f32[3]) -> (%y: f32[3]) initializers (%a: f32[] = 1.0, %b: f32[] = 2.0)
    { %low: f32[] = Neg(%a) %both: f32[] = Neg(%b) %c: f32[3] = Clip(%x, %low) %d: f32[3] = Clip(%c, %both)
      %y: f32[3] = Mul(%d, %both) }
    """
    assert included(text) == ["b"]


@pytest.mark.parametrize(("more", "used", "expected"), [
    ("", "Add(%h, %v)", ["w", "v"]),
    ("initializers (%b: f32[2] = [1.0,2.0])", "Add(%h, %b)", ["b", "w", "v"]),
    ("initializers (%m: f32[2,2] = [[0.0,1.0],[1.0,0.0]])", "MatMul(%h, %m)", ["m", "w"]),
])
def test_constant_nodes_hold_weights_where_matrices_lie_in_them(more: str, used: str, expected: list[str]) -> None:
    """All of several elements if most matrices do, else the matrices."""
    text = f"""
    graph @g (%x: f32[3,2]) -> (%y: f32[3,2]) {more}
        literals (%w: f32[2,2] = [[1.0,2.0],[3.0,4.0]], %v: f32[2] = [1.0,2.0], %one: f32[1] = [1.0], %s: f32[] = 2.0)
    {{ %k: f32[2,2] = Transpose(%w) {{perm=[0,1]}} %h: f32[3,2] = MatMul(%x, %k) %g: f32[3,2] = {used} %c: f32[3,2] = Mul(%g, %one)
      %d: f32[3,2] = Add(%c, %s) %y: f32[3,2] = Add(%d, %v) }}
    """
    assert included(text) == expected
    gradient = fg.vjp(fg.load(text.encode()), of="y", wrt="w")  # by name, always
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(gradient(x=x, y_grad=np.ones_like(x))["w_grad"], x.T @ np.ones((3, 2), np.float32))


def test_computed_weights_stand_for_themselves() -> None:
    text = """
    graph @g (%x: f32[3]) -> (%y: f32[3])
    { %w: f32[3] = ConstantOfShape([3]) {value=f32([2.0])} %v: f32[3] = Neg(%w) %y: f32[3] = Mul(%x, %v) }
    """
    assert included(text) == ["v"]


@pytest.mark.parametrize("text", [BATCH_NORM, WITHOUT_INPUTS], ids=["batch_norm", "without_inputs"])
@pytest.mark.parametrize("wrt", ["params", "*s*", "[params,inputs]", "*"])
def test_wrt_means_the_same_in_the_pipeline(text: str, wrt: str) -> None:
    model = fg.load(text.encode())
    names = [n.strip("[]") for n in wrt.split(",")]
    if "inputs" in names and not model.inputs:
        names.remove("inputs")
        wrt = f"[{','.join(n.strip('[]') for n in names)}]"
    piped = fg.PassManager(f"adjoint{{wrt={wrt},of=y}}").run(model).model
    made = [o.name for o in piped.outputs if o.name.endswith("_grad")]
    assert made == [o.name for o in fg.value_and_grad(model, of="y", wrt=names).outputs if o.name.endswith("_grad")]
    assert made


def test_the_pipeline_takes_inner_values_and_suggests_names() -> None:
    model = fg.load(WITHOUT_INPUTS.encode())
    piped = fg.PassManager("adjoint{wrt=e,of=y}").run(model).model
    assert [o.name for o in piped.outputs] == ["y", "e_grad"]
    with pytest.raises(InputError, match="did you mean"):
        fg.PassManager("adjoint{wrt=wx,of=y}").run(model)
    with pytest.raises(InputError, match="names nothing"):
        fg.PassManager("adjoint{wrt=inputs}").run(model)


def test_an_error_lists_the_constants_that_are_no_parameters() -> None:
    model = fg.load(b"""graph @g (%t: f64[3]) -> (%y: f64[3]) literals (%"onnx::Mul_1": f64[] = 2.0) {
        %y: f64[3] = Mul(%t, %"onnx::Mul_1")
    }""")
    with pytest.raises(InputError, match=r"parameters: none; constants .* \(model.params says why\): onnx::Mul_1: f64\[\]"):
        fg.vjp(model, wrt="params")


def test_a_thousand_outputs_without_inputs_are_looked_through_once() -> None:
    body = "\n".join(f"%v{i + 1}: f32[2] = Neg(%v{i})" for i in range(3000))
    outputs = ", ".join(f"%v{i}: f32[2]" for i in range(1, 3001))
    assert included(f"graph @g () -> ({outputs}) initializers (%v0: f32[2] = [1.0,2.0]) {{ {body} }}") == ["v0"]


@pytest.mark.parametrize(("name", "counts"), [
    ("logit_scale", True), ("layer.0.temperature", True), ("alpha", True), ("encoder/scale:0", True), ("gamma_1", True),
    ("val_12", False), ("scalar_tensor_default_3", False), ("/gelu/Constant_output_0", False), ("onnx::Mul_37", False),
    ("const_fold_opt__41", False), ("model/dense/mul/y:0", False), ("Const_2:0", False), ("128", False), ("zeros", False),
    ("threshold_cast", False), ("minus_one", False), ("two", False), ("half", False), ("x.val_1", False), ("value_embedding.scale", True), ("constants.c", True),
])
def test_scalars_with_the_names_of_literals_are_literals(name: str, counts: bool) -> None:
    text = f'graph @g (%a: f32[3]) -> (%out: f32[3]) initializers (%"{name}": f32[] = 2.0) {{ %out: f32[3] = Mul(%a, %"{name}") }}'
    assert included(text) == ([name] if counts else [])
    if not counts:
        assert "exporters" in reasons(text)[name]


def test_a_number_with_axes_counts_under_any_name() -> None:
    """Exporters reshape the slope of a PRelu on the way, and call it as they call the numbers of formulas."""
    text = """graph @g (%a: f32[3,1]) -> (%out: f32[3,1]) initializers (%val_12: f32[1,1] = [[2.0]])
    { %out: f32[3,1] = PRelu(%a, %val_12) }"""
    assert included(text) == ["val_12"]


def test_a_filling_in_a_constant_node_is_no_weight_where_others_lie_elsewhere() -> None:
    text = """
    graph @g (%x: f32[3,2]) -> (%y: f32[3,2]) initializers (%m: f32[2,2] = [[0.0,1.0],[1.0,0.0]])
        literals (%z: f32[3,2] = [[0.0,0.0],[0.0,0.0],[0.0,0.0]], %i: i64[1,2] = [[0,1]])
    { %h: f32[3,2] = MatMul(%x, %m) %g: f32[1,2] = Slice(%h, [0], [1]) %y: f32[3,2] = ScatterElements(%z, %i, %g) }
    """
    assert included(text) == ["m"]


def test_what_only_comparisons_take_is_a_setting() -> None:
    text = """
    graph @g (%x: f32[3]) -> (%y: f32[3]) initializers (%bound: f32[3] = [0.1,0.2,0.3])
    { %c: bool[3] = Greater(%x, %bound) %y: f32[3] = Where(%c, %x, 0.0) }
    """
    assert included(text) == []
    assert reasons(text)["bound"].startswith("a setting of Greater")


@pytest.mark.parametrize(("inner", "outer", "expected"), [
    ("%n, -100.0, %w", "%e, 0.0, %k", []),
    ("%n, -100.0, %w", "%e, 0.0, %w", ["w"]),
    ("%e, -100.0, %w", "%e, 0.0, %k", ["w"]),
    ("%e, %w, -100.0", "%n, %k, 0.0", []),
    ("%g, %w, -100.0", "%n, %k, 0.0", ["w"]),
], ids=["mask", "chosen elsewhere", "chosen where it differs", "mask the other way", "chosen where it is greater"])
def test_what_is_chosen_only_where_it_equals_something_is_a_setting(inner: str, outer: str, expected: list[str]) -> None:
    """The numbers of windows, of which a mask is made, pass on no change: Where(w == 0, 0, Where(w != 0, -100, w))."""
    text = f"""
    graph @g (%x: f32[3]) -> (%y: f32[3]) initializers (%w: f32[3] = [0.0,1.0,2.0])
    {{ %e: bool[3] = Equal(%w, 0.0) %n: bool[3] = Not(%e) %g: bool[3] = Greater(%w, 0.0)
      %k: f32[3] = Where({inner}) %m: f32[3] = Where({outer}) %y: f32[3] = Add(%x, %m) }}
    """
    assert included(text) == expected


@pytest.mark.parametrize(("stored", "expected"), [("[2,2] = [[1.0,2.0],[3.0,4.0]]", ["w"]), ("[2] = [1.0,2.0]", ["w", "t"])])
def test_what_is_made_of_numbers_of_the_graph_is_a_weight_only_where_most_matrices_are(stored: str, expected: list[str]) -> None:
    text = f"""
    graph @g (%x: f32[3,2]) -> (%y: f32[3,2]) initializers (%w: f32{stored})
    {{ %t: f32[2,2] = ConstantOfShape([2, 2]) {{value=f32([0.5])}} %h: f32[3,2] = MatMul(%x, %t)
      %v: f32{stored.split(" ")[0]} = Neg(%w) %y: f32[3,2] = {"MatMul" if "2,2" in stored else "Mul"}(%h, %v) }}
    """
    assert included(text) == expected


# ---- what no training gives -------------------------------------------------------------------------------------------------


def reasons_of(constants: dict[str, Array], users: str) -> dict[str, str]:
    """Return which constants are left out of the parameters, and why; ``users`` are nodes on x [2, 8] and on them."""
    graph = Graph("g")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (2, 8)))
    values = {name: graph.add_constant(array, name, INITIALIZER) for name, array in constants.items()}
    for op in users.split():
        for value in values.values():
            graph.add_output(getattr(b, op)(x, value))
    return {c.value.name: c.reason for c in candidates(graph) if not c.included}


ANGLES = np.outer(np.arange(2), 0.3 ** np.arange(8)).astype(np.float32)
LOW = np.finfo(np.float32).min


@pytest.mark.parametrize(("mask", "is_out"), [
    (np.triu(np.full((8, 8), LOW, np.float32), 1), True),
    (np.triu(np.full((8, 8), -np.inf, np.float32), 1), True),
    (np.triu(np.full((8, 8), -1e4, np.float32), 1), True),
    (np.full((1, 8), -1e9, np.float32), True),
    (np.full((), LOW, np.float32), True),
    (np.zeros((8, 8), np.float32), False),
    (np.eye(8, dtype=np.float32), False),
    (np.triu(np.full((8, 8), -1.0, np.float32), 1), False),
    (np.triu(np.full((2, 8), -100, np.float32), 1), True),
    (np.where(np.arange(8) > 2, -100, 0).astype(np.float32), False),
    (np.linspace(-2e3, 0, 8, dtype=np.float32), False),
    (np.full((8,), np.nan, np.float32), False),
    (np.full((), -2e3, np.float32), False),
])
def test_masks_are_no_weights_and_zeros_are(mask: Array, is_out: bool) -> None:
    found = reasons_of({"layer.bias": mask}, "MatMul" if mask.shape == (8, 8) else "Add")
    assert found == ({"layer.bias": "a mask or a bound: it holds what hides scores, which no training gives"} if is_out else {})


def test_cosines_and_sines_of_the_same_angles_are_no_weights() -> None:
    cosines, sines = np.cos(ANGLES), np.sin(ANGLES)
    assert set(reasons_of({"c": cosines, "w": np.random.default_rng(0).random((2, 8), np.float32), "s": sines}, "Mul")) == {"c", "s"}
    assert reasons_of({"c": cosines, "s": sines * np.float32(0.999)}, "Mul") == {}  # what training has moved
    assert reasons_of({"c": np.ones((2, 8), np.float32), "s": np.zeros((2, 8), np.float32)}, "Mul") == {}
    halves = np.concatenate([np.sin(ANGLES[:, ::2]), np.cos(ANGLES[:, ::2])], -1)
    neighbours = np.stack([np.sin(ANGLES[:, ::2]), np.cos(ANGLES[:, ::2])], -1).reshape(2, 8)
    for table in (halves, neighbours):
        assert set(reasons_of({"position": table}, "Add")) == {"position"}


def frequencies(numbers: Array, end: str) -> list[str]:
    text = f"""
    graph @g (%t: f32[2,1]) -> (%y: f32[2,4], %z: f32[2,4]) initializers (%f: f32[4] = {numbers.tolist()})
    {{ %a: f32[1,4] = Unsqueeze(%f, [0]) %p: f32[2,4] = MatMul(%t, %a) %y: f32[2,4] = Sin(%p) %z: f32[2,4] = {end}(%p) }}
    """
    return included(text)


def test_frequencies_of_equal_ratios_are_no_weights_if_only_angles_are_made_of_them() -> None:
    geometric = np.float32(10.0) ** -np.arange(4, dtype=np.float32)
    assert frequencies(geometric, "Cos") == []
    assert frequencies(geometric, "Exp") == ["f"]
    assert frequencies(geometric * np.array([1, 1, 1.001, 1], np.float32), "Cos") == ["f"]
    assert frequencies(np.ones(4, np.float32), "Cos") == ["f"]


@pytest.mark.parametrize(("name", "number", "use", "counts"), [
    ("zeros_1", 0.0, "ScatterElements(%c, %i, %x)", False),
    ("memory", 0.0, "ScatterElements(%c, %i, %x)", True),
    ("zeros_1", 0.0, "ScatterElements(%x, %i, %c)", True),
    ("zeros_1", 0.0, "Add(%x, %c)", True),
])
def test_the_ground_of_a_scatter_is_no_weight_under_the_name_of_a_filling(name: str, number: float, use: str, counts: bool) -> None:
    text = f"""
    graph @g (%x: f32[2,2], %i: i64[2,2]) -> (%y: f32[2,2])
        initializers (%{name}: f32[2,2] = [[{number},{number}],[{number},{number}]])
    {{ %y: f32[2,2] = {use.replace("%c", "%" + name)} }}
    """
    assert included(text) == ([name] if counts else [])


@pytest.mark.parametrize(("names", "scale", "shift", "expected"), [
    (("val_3", "val_4"), 1.0, 0.0, []),
    (("norm.weight", "norm.bias"), 1.0, 0.0, ["norm.weight", "norm.bias"]),
    (("val_3", "val_4"), 0.0, 1.0, ["val_3", "val_4"]),
])
def test_ones_and_zeros_of_a_normalisation_within_another_are_no_weights(
    names: tuple[str, str], scale: float, shift: float, expected: list[str],
) -> None:
    first, second = names
    text = f"""
    graph @g (%x: f32[2,2,3]) -> (%y: f32[2,2,3])
        initializers (%"{first}": f32[2] = [{scale},{scale}], %"{second}": f32[2] = [{shift},{shift}])
    {{ %y: f32[2,2,3] = InstanceNormalization(%x, %"{first}", %"{second}") }}
    """
    assert included(text) == expected


@pytest.mark.parametrize(("name", "heads", "after", "expected"), [
    ("val_3", 1, "Softmax", []), ("val_3", 2, "Softmax", ["val_3"]), ("val_3", 1, "Relu", ["val_3"]), ("bias", 1, "Softmax", ["bias"]),
])
def test_a_mask_that_hides_nothing_is_no_weight(name: str, heads: int, after: str, expected: list[str]) -> None:
    text = f"""graph @g (%x: f32[1,{heads},1,2]) -> (%y: f32[1,{heads},1,2])
        initializers (%{name}: f32[1,{heads},1,2] = {np.zeros((1, heads, 1, 2)).tolist()})
    {{ %s: f32[1,{heads},1,2] = Add(%x, %{name}) %y: f32[1,{heads},1,2] = {after}(%s) }}"""
    assert included(text) == expected


@pytest.mark.parametrize(("name", "number", "expected"), [("val_16", 0.0, []), ("h0", 0.0, ["h0"]), ("val_16", 1.0, ["val_16"])])
def test_a_first_state_of_zeros_is_no_weight(name: str, number: float, expected: list[str]) -> None:
    text = f"""graph @g (%x: f32[3,1,1], %w: f32[1,1,1]) -> (%y: f32[3,1,1,1]) initializers (%{name}: f32[1,1,1] = [[[{number}]]])
    {{ %y: f32[3,1,1,1], _ = RNN(%x, %w, %w, _, _, %{name}) {{hidden_size=1}} }}"""
    assert included(text) == expected


@pytest.mark.parametrize(("name", "number", "counts"), [
    ("val_9", 0.5, False), ("val_9", 0.25, True), ("val_9", 0.5 ** 0.5, False), ("val_9", 2.0, True), ("temperature", 0.5, True),
])
def test_the_root_of_the_extent_that_is_summed_over_is_a_scale(name: str, number: float, counts: bool) -> None:
    text = f"""graph @g (%x: f32[3,4]) -> (%y: f32[3,4]) initializers (%{name}: f32[1] = [{number}]) {{ %y: f32[3,4] = Mul(%x, %{name}) }}"""
    assert included(text) == ([name] if counts else [])


def test_what_was_named_before_or_stands_alone_can_be_named() -> None:
    text = b"graph @g (%x: f32[2]) -> (%y: f32[2]) initializers (%m: f32[2] = [0.0,-10000.0]) { %y: f32[2] = Add(%x, %m) }"
    model = fg.load(text)
    assert [p.included for p in model.params] == [False]
    gradient = fg.vjp(model, wrt="m")
    assert [p.included for p in gradient.params if p.name == "m"] == [True]


@pytest.mark.parametrize("text", [
    "graph @g (%x: f32[2]) -> (%s: sequence.f32[], %y: f32[2]) initializers (%w: f32[2] = [1.0,2.0])"
    " { %s: sequence.f32[] = SequenceConstruct(%w) %y: f32[2] = Neg(%x) }",
    "graph @g (%i: i64[]) -> (%y: f32[2]) initializers (%w: f32[2] = [1.0,2.0])"
    " { %s: sequence.f32[] = SequenceConstruct(%w, %w) %y: f32[2] = SequenceAt(%s, %i) }",
], ids=["output", "chosen"])
def test_a_weight_that_goes_into_a_sequence_is_a_parameter(text: str) -> None:
    assert included(text) == ["w"]


# ---- what a file says -------------------------------------------------------------------------------------------------------


def marked(kinds: dict[str, str]) -> onnx.ModelProto:
    """Return a model that adds vectors to x, each marked as PyTorch's exporter marks initializers."""
    chain = ["x", *(f"{name}_sum" for name in kinds)]
    nodes = [onnx.helper.make_node("Add", [before, name], [after]) for name, before, after in zip(kinds, chain, chain[1:], strict=False)]
    inputs, outputs = ([onnx.helper.make_tensor_value_info(name, 1, [2])] for name in (chain[0], chain[-1]))
    stored = [onnx.numpy_helper.from_array(np.ones(2, np.float32), name) for name in kinds]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, stored)
    for name, kind in kinds.items():
        graph.value_info.add(name=name).metadata_props.add(key="pkg.torch.export.graph_signature.InputSpec.kind", value=kind)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def test_buffers_are_no_parameters_and_stay_buffers_in_every_form() -> None:
    model = fg.load(marked({"weight": "PARAMETER", "mean": "BUFFER", "lifted": "CONSTANT_TENSOR"}))
    assert "initializers (%weight: f32[2] = [1.0,1.0])" in str(model)
    assert "buffers (%mean: f32[2] = [1.0,1.0], %lifted: f32[2] = [1.0,1.0])" in str(model)
    for form in (model, fg.load(str(model).encode()), fg.load(pack(model.graph)), fg.load(model.to_onnx()), model.astype("float64")):
        assert [(p.name, p.included) for p in form.params] == [("weight", True), ("mean", False), ("lifted", False)]
        assert "the file says" in form.params[1].reason
    gradient = fg.vjp(model, wrt="mean")  # what is left out can be named
    assert [p.name for p in gradient.params if p.included] == ["weight", "mean"]
