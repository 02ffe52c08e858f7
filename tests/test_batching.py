"""vmap: a model of many examples gives what the model of one gives for each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import flowgrad as fg
from flowgrad.ir.batching import BatchBuilder
from flowgrad.ir.errors import InputError, PassError, RunError, UnsupportedError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.registry import op
from flowgrad.ir.registry import scoped
from flowgrad.ir.verify import verify
from tests.batching_sweep import loops

ZOO = Path(__file__).resolve().parent.parent.parent / "shared" / "zoo"
RNG = np.random.default_rng(0)


def load(text: str) -> fg.Model:
    return fg.load(text.encode())


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture
def mlp() -> fg.Model:
    return fg.load("tests/data/mlp.onnx")


def agrees(many: fg.Model, one: fg.Model, feeds: Mapping[str, Array], axes: Mapping[str, int], rtol: float = 0) -> None:
    """Check each example of ``many``, axes first, against ``one``."""
    verify(many.graph)
    found = many(feeds)
    count = next(feeds[name].shape[axis] for name, axis in axes.items())
    for i in range(count):
        each = {name: np.take(a, i, axes[name]) if name in axes else a for name, a in feeds.items()}
        for name, wanted in one(each).items():
            np.testing.assert_allclose(found[name][i], wanted, rtol=rtol, atol=rtol, err_msg=f"{name}[{i}]")


# ---- per-example gradients --------------------------------------------------------------------------------------------------


def test_gradients_of_many_examples_are_those_of_each(mlp: fg.Model) -> None:
    one = fg.grad(mlp, of="loss", wrt="params")
    feeds = {"x": normal(5, 2, 4), "target": RNG.integers(0, 3, (5, 2))}
    agrees(fg.vmap(one), one, feeds, {"x": 0, "target": 0}, 1e-6)


def test_a_model_taken_apart_and_put_together_is_the_model(mlp: fg.Model) -> None:
    again = fg.vmap(fg.unbatch(mlp))
    plain = [n.op for n in mlp.graph.nodes() if n.op not in ("ReduceSum", "ReduceMean")]
    assert [n.op for n in again.graph.nodes()][: len(plain) - 1] == plain[: len(plain) - 1]


MLP_GRADIENT = """\
%loss_squeeze: i64[] = Squeeze([3], [0])
%loss_expand_1: f32[1,3] = Expand(0.0, [1,3])
%x_batch: f32[examples,1,4] = Unsqueeze(%x, [1])
%hidden_in: f32[examples,8] = Gemm(%x, %w1, %b1) @fc1
%hidden_examples: f32[examples,8] = Tanh(%hidden_in)
%hidden: f32[examples,1,8] = Reshape(%hidden_examples, [-1,1,8])
%logits: f32[examples,3] = Gemm(%hidden_examples, %w2, %b2) @fc2
%loss: f32[examples], %loss_log_prob: f32[examples,3] = SoftmaxCrossEntropyLoss(%logits, %target) {reduction="none"}
%loss_less: bool[examples] = Less(%target, 0)
%loss_where: i64[examples] = Where(%loss_less, %loss_squeeze, %target)
%loss_unsqueeze: i64[examples,1] = Unsqueeze(%loss_where, [1])
%loss_cast: f32[] = Cast(1) {to=1}
%loss_div: f32[] = Div(1.0, %loss_cast)
%loss_expand: f32[1] = Expand(%loss_div, [1])
%loss_neg: f32[1] = Neg(%loss_expand)
%loss_unsqueeze_1: f32[1,1] = Unsqueeze(%loss_neg, [1])
%loss_scatter_elements_shape: i64[1] = Shape(%x) {end=1, start=0}
%loss_scatter_elements_concat: i64[2] = Concat(%loss_scatter_elements_shape, [3]) {axis=0}
%loss_scatter_elements_expand: f32[examples,3] = Expand(%loss_expand_1, %loss_scatter_elements_concat)
%loss_scatter_elements_concat_1: i64[2] = Concat(%loss_scatter_elements_shape, [1]) {axis=0}
%loss_scatter_elements_expand_1: f32[examples,1] = Expand(%loss_unsqueeze_1, %loss_scatter_elements_concat_1)
%loss_scatter_elements: f32[examples,3] = ScatterElements(%loss_scatter_elements_expand, %loss_unsqueeze, %loss_scatter_elements_expand_1) {axis=1}
%loss_exp: f32[examples,3] = Exp(%loss_log_prob)
%loss_reduce_sum: f32[examples,1] = ReduceSum(%loss_scatter_elements, [1]) {keepdims=1}
%loss_mul: f32[examples,3] = Mul(%loss_reduce_sum, %loss_exp)
%b2_bar: f32[examples,3] = Sub(%loss_scatter_elements, %loss_mul)
%logits_bar: f32[examples,1,3] = Reshape(%b2_bar, [-1,1,3])
%hidden_bar: f32[examples,8] = Gemm(%b2_bar, %w2) {alpha=1.0, transB=1}
%w2_bar_transpose: f32[examples,8,1] = Transpose(%hidden) {perm=[0,2,1]}
%w2_bar: f32[examples,8,3] = Mul(%w2_bar_transpose, %logits_bar)
%hidden_mul: f32[examples,8] = Mul(%hidden_examples, %hidden_examples)
%hidden_sub: f32[examples,8] = Sub(1.0, %hidden_mul)
%b1_bar: f32[examples,8] = Mul(%hidden_bar, %hidden_sub)
%hidden_in_bar: f32[examples,1,8] = Reshape(%b1_bar, [-1,1,8])
%w1_bar_transpose: f32[examples,4,1] = Transpose(%x_batch) {perm=[0,2,1]}
%w1_bar: f32[examples,4,8] = Mul(%w1_bar_transpose, %hidden_in_bar)
"""


def test_the_graph_of_per_example_gradients_is_a_plain_one(mlp: fg.Model) -> None:
    many = fg.vmap(fg.grad(fg.unbatch(mlp), of="loss", wrt="params"))
    assert nodes_of(many) == MLP_GRADIENT


def nodes_of(model: fg.Model) -> str:
    """Return the lines of the nodes of a model without their origins."""
    lines = str(model).split("\n{\n")[1].splitlines()[:-1]
    return "".join(re.sub(r"\s+from .*", "", line).strip() + "\n" for line in lines)


@pytest.mark.parametrize(("entry", "most"), [("mlp", 1.3), ("lenet", 1.6)])
def test_gradients_of_models_keep_their_size(entry: str, most: float) -> None:
    if not ZOO.is_dir():
        pytest.skip("the models are not here")
    model = with_loss(fg.load(ZOO / entry / "model.onnx"))
    plain, one = fg.grad(model, of="loss", wrt="params"), fg.grad(fg.unbatch(model), of="loss", wrt="params")
    many = fg.vmap(one)
    assert not any(n.op == "Scan" for n in many.graph.nodes())
    assert len(many.graph.nodes()) <= most * len(plain.graph.nodes())
    feeds = {i.name: np.stack([feed_of(i) for _ in range(4)]) for i in one.inputs}
    agrees(many, one, feeds, dict.fromkeys(feeds, 0), 1e-5)
    for name, total in plain(feeds).items():
        np.testing.assert_allclose(many(feeds)[name].sum(0), total, rtol=1e-5, atol=1e-5)


def with_loss(model: fg.Model) -> fg.Model:
    output = model.outputs[0]
    classes = output.shape[1] if output.shape else 0
    loss = load(f"""graph @loss (%logits: f32[batch,{classes}], %target: i64[batch]) -> (%loss: f32[]) {{
        %loss: f32[] = SoftmaxCrossEntropyLoss(%logits, %target) {{reduction="sum"}}
    }}""")
    return fg.compose(model, loss, {output.name: "logits"})


def feed_of(info: Any) -> Array:
    if info.dtype == "int64":
        return np.asarray(RNG.integers(0, 5, info.shape))
    return normal(*info.shape)


ATTENTION = """graph @attention (%x: f32[T,6]) -> (%y: f32[T,6])
    params (
      %q: f32[6,6] = Q,
      %k: f32[6,6] = K,
      %v: f32[6,6] = V,
      %scale: f32[6] = [1.0,1.0,1.0,2.0,2.0,2.0]
    )
{
  %n: f32[T,6] = LayerNormalization(%x, %scale)
  %queries: f32[T,6] = MatMul(%n, %q)
  %keys: f32[T,6] = MatMul(%n, %k)
  %values: f32[T,6] = MatMul(%n, %v)
  %turned: f32[6,T] = Transpose(%keys) {perm=[1,0]}
  %scores: f32[T,T] = MatMul(%queries, %turned)
  %shares: f32[T,T] = Softmax(%scores)
  %mixed: f32[T,6] = MatMul(%shares, %values)
  %y: f32[T,6] = Add(%x, %mixed)
}"""

ATTENTION_OF_MANY = """\
%n: f32[examples,T,6] = LayerNormalization(%x, %scale) {axis=2}
%queries_reshape: f32[T*examples,6] = Reshape(%n, [-1,6])
%queries_mat_mul: f32[T*examples,6] = MatMul(%queries_reshape, %q)
%queries_shape: i64[1] = Shape(%x) {end=1, start=0}
%queries_shape_1: i64[1] = Shape(%n) {end=2, start=1}
%queries_concat: i64[3] = Concat(%queries_shape, %queries_shape_1, [6]) {axis=0}
%queries: f32[examples,T,6] = Reshape(%queries_mat_mul, %queries_concat) {allowzero=1}
%keys_mat_mul: f32[T*examples,6] = MatMul(%queries_reshape, %k)
%keys: f32[examples,T,6] = Reshape(%keys_mat_mul, %queries_concat) {allowzero=1}
%values_mat_mul: f32[T*examples,6] = MatMul(%queries_reshape, %v)
%values: f32[examples,T,6] = Reshape(%values_mat_mul, %queries_concat) {allowzero=1}
%turned: f32[examples,6,T] = Transpose(%keys) {perm=[0,2,1]}
%scores: f32[examples,T,T] = MatMul(%queries, %turned)
%shares: f32[examples,T,T] = Softmax(%scores) {axis=2}
%mixed: f32[examples,T,6] = MatMul(%shares, %values)
%y: f32[examples,T,6] = Add(%x, %mixed)
"""


def attention() -> fg.Model:
    rng = np.random.default_rng(2)
    text = ATTENTION
    for name in "QKV":
        text = text.replace(f"= {name},", f"= {np.round(rng.standard_normal((6, 6)), 2).tolist()},")
    return load(text)


def test_the_graph_of_an_attention_block() -> None:
    model = attention()
    many = fg.vmap(model)
    assert nodes_of(many) == ATTENTION_OF_MANY
    agrees(many, model, {"x": normal(3, 4, 6)}, {"x": 0}, 1e-5)


@pytest.mark.parametrize("outer", [False, True])
def test_an_attention_block_in_onnxruntime(outer: bool) -> None:
    one = fg.vjp(attention(), wrt=["x", "q"])
    many = fg.vmap(one) if outer else fg.vjp(fg.vmap(attention(), {"x": 0, "q": 0}), wrt=["x", "q"])
    feeds = {"x": normal(3, 4, 6), "y_grad": normal(3, 4, 6)}
    if not outer:
        feeds["q"] = normal(3, 6, 6)
    session = onnxruntime.InferenceSession(many.to_onnx().SerializeToString())
    names = [o.name for o in session.get_outputs()]
    found, wanted = dict(zip(names, session.run(None, feeds), strict=True)), many(feeds)
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, atol=1e-4)


# ---- axes -------------------------------------------------------------------------------------------------------------------

AFFINE = """graph @affine (%x: f32[3], %b: f32[2]) -> (%y: f32[2], %twice: f32[2]) params (
    %w: f32[3,2] = [[1.0,2.0],[3.0,4.0],[5.0,6.0]]
) {
    %product: f32[2] = MatMul(%x, %w)
    %y: f32[2] = Add(%product, %b)
    %twice: f32[2] = Add(%b, %b)
}"""


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_an_axis_for_all_inputs(axis: int) -> None:
    model = load(AFFINE)
    feeds = {"x": np.moveaxis(normal(5, 3), 0, axis), "b": np.moveaxis(normal(5, 2), 0, axis)}
    agrees(fg.vmap(model, axis), model, feeds, {"x": axis, "b": axis}, 1e-6)


def test_inputs_that_are_not_named_are_shared() -> None:
    model = load(AFFINE)
    many = fg.vmap(model, {"x": 1, "b": None})
    assert [(v.name, v.shape) for v in many.inputs] == [("x", (3, "examples")), ("b", (2,))]
    feeds = {"x": normal(3, 5), "b": normal(2)}
    agrees(many, model, feeds, {"x": 1}, 1e-5)
    assert many(feeds)["twice"].shape == (5, 2)  # what all examples share is repeated


def test_weights_that_are_named_become_inputs() -> None:
    model = load(AFFINE)
    many = fg.vmap(model, {"w": -1})
    assert [v.name for v in many.inputs] == ["x", "b", "w"] and not many.params
    w, x, b = normal(3, 2, 4), normal(3), normal(2)
    found = many(x=x, b=b, w=w)["y"]
    np.testing.assert_allclose(found, np.einsum("k,kne->en", x, w) + b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("axes", "shapes"), [
    (1, ((2, 5), (2, 5))), (-1, ((2, 5), (2, 5))), ({"y": 1}, ((2, 5), (5, 2))), ({"twice": -1}, ((5, 2), (2, 5))),
])
def test_axes_of_outputs(axes: Any, shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    feeds = {"x": normal(5, 3), "b": normal(5, 2)}
    plain, turned = fg.vmap(load(AFFINE))(feeds), fg.vmap(load(AFFINE), out_axes=axes)(feeds)
    for name, shape in zip(("y", "twice"), shapes, strict=True):
        assert turned[name].shape == shape
        np.testing.assert_array_equal(turned[name] if shape[0] == 5 else turned[name].T, plain[name])


def test_examples_of_examples_have_dims_of_their_own() -> None:
    model = load(AFFINE)
    twice = fg.vmap(fg.vmap(model, {"x": 0}), {"x": 0, "b": 0})
    assert [v.shape for v in twice.inputs] == [("examples_1", "examples", 3), ("examples_1", 2)]
    x, b = normal(2, 4, 3), normal(2, 2)
    found = twice(x=x, b=b)["y"]
    for i in range(2):
        for j in range(4):
            np.testing.assert_allclose(found[i, j], model(x=x[i, j], b=b[i])["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one(count: int) -> None:
    found = fg.vmap(load(AFFINE))(x=normal(count, 3), b=normal(count, 2))
    assert {name: a.shape for name, a in found.items()} == {"y": (count, 2), "twice": (count, 2)}


def test_roles_pinned_names_and_weights_stay(mlp: fg.Model) -> None:
    one = fg.value_and_grad(mlp, of="loss", wrt=["w1", "x"])
    many = fg.vmap(one)
    assert many.roles == one.roles and [o.name for o in many.outputs] == [o.name for o in one.outputs]
    assert [p.name for p in many.params] == [p.name for p in one.params]
    assert set(one.graph.pinned) == set(many.graph.pinned)


# ---- misuse -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "message"), [
    ({"in_axes": None}, "splits no input"),
    ({"in_axes": {}}, "splits no input"),
    ({"in_axes": {"z": 0}}, "no input or weight 'z'"),
    ({"in_axes": {"bb": 0}}, "did you mean 'b'"),
    ({"in_axes": 2}, "no axis 2 among its 2"),
    ({"in_axes": {"x": -3}}, "no axis -3"),
    ({"in_axes": {"x": True}}, "no axis True"),
    ({"in_axes": {"x": 0.5}}, "no axis 0.5"),
    ({"out_axes": 2}, "'y' has no axis 2"),
    ({"out_axes": {"z": 0}}, "no output 'z'"),
    ({"out_axes": {"y": None}}, "no axis None"),
    ({"randomness": "each"}, "randomness is 'error', 'same' or 'different'"),
])
def test_misuse(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        fg.vmap(load(AFFINE), **arguments)


def test_examples_of_unequal_number_are_refused_by_the_run() -> None:
    with pytest.raises(InputError, match="examples"):
        fg.vmap(load(AFFINE))(x=normal(4, 3), b=normal(5, 2))


RAGGED = """graph @g (%x: f32[4], %n: i64[1]) -> (%y: f32[_d1], %z: i64[1,_d2]) {
    %y: f32[_d1] = Expand(%x, %n)
    %z: i64[1,_d2] = NonZero(%x)
}"""


def test_all_ragged_results_are_named_at_once() -> None:
    with pytest.raises(UnsupportedError, match="different extents") as caught:
        fg.vmap(load(RAGGED))
    assert "Expand" in str(caught.value) and "NonZero" in str(caught.value)


def test_sequences_are_refused_by_name() -> None:
    model = load("""graph @g (%x: f32[4]) -> (%y: f32[1]) {
        %s: sequence.f32[] = SplitToSequence(%x) {axis=0}
        %y: f32[1] = SequenceAt(%s, 0)
    }""")
    with pytest.raises(UnsupportedError, match=r"SplitToSequence[^\n]*\n\s+sequences"):
        fg.vmap(model)


def test_inputs_that_are_sequences_have_no_axis() -> None:
    model = load("graph @g (%s: sequence.f32[]) -> (%y: f32[1]) { %y: f32[1] = SequenceAt(%s, 0) }")
    with pytest.raises(UnsupportedError, match="'s' cannot be split into examples"):
        fg.vmap(model)


def test_slices_of_their_own_are_checked_by_the_run() -> None:
    model = load("""graph @g (%x: f32[4], %start: i64[1], %end: i64[1]) -> (%y: f32[_d1]) {
        %y: f32[_d1] = Slice(%x, %start, %end)
    }""")
    many = fg.vmap(model)
    x = normal(2, 4)
    found = many(x=x, start=np.array([[0], [1]]), end=np.array([[2], [3]]))["y"]
    np.testing.assert_array_equal(found, [x[0, :2], x[1, 1:3]])
    with pytest.raises(RunError, match="must agree"):
        many(x=x, start=np.array([[0], [1]]), end=np.array([[2], [2]]))


def test_a_rule_that_gives_the_wrong_shape_is_found() -> None:
    with scoped():
        @op("Twofold")
        def twofold(x: Array) -> Array:
            return np.asarray(2 * x)

        @twofold.types
        def _(node: Node) -> Any:
            return node.input(0).type

        @twofold.batch
        def _(b: BatchBuilder, node: Node, x: Value) -> Any:
            return b.ReduceSum(x, keepdims=0)

        model = load("graph @g (%x: f32[4]) -> (%y: f32[4]) { %y: f32[4] = Twofold(%x) }")
        with pytest.raises(PassError, match="the batching rule of Twofold gave"):
            fg.vmap(model)


def test_an_operator_without_a_rule_runs_one_by_one() -> None:
    with scoped():
        @op("Reversed")
        def reversed_(x: Array) -> Array:
            return np.asarray(x[::-1])

        @reversed_.types
        def _(node: Node) -> Any:
            return node.input(0).type

        many = fg.vmap(load("graph @g (%x: f32[4]) -> (%y: f32[4]) { %y: f32[4] = Reversed(%x) }"))
        assert loops(many.graph) == 1
        x = normal(3, 4)
        np.testing.assert_array_equal(many(x=x)["y"], x[:, ::-1])


def test_a_rule_of_the_user_for_the_adjoint_is_kept(mlp: fg.Model) -> None:
    model = load("graph @g (%x: f32[4]) -> (%y: f32[4]) { %y: f32[4] = Relu(%x) }")
    guided = fg.override_adjoint(model, fg.guided, op="Relu")
    derivative = fg.vjp(fg.vmap(guided))
    found = derivative(x=np.array([[1, -1, 2, 3]], np.float32), y_grad=np.array([[1, 1, -1, 2]], np.float32))
    np.testing.assert_array_equal(found["x_grad"], [[1, 0, 0, 2]])


# ---- random numbers ---------------------------------------------------------------------------------------------------------

NOISE = """graph @g (%x: f32[1000]) -> (%y: f32[1000], %z: f32[1000]) {
    %noise: f32[1000] = RandomNormalLike(%x)
    %y: f32[1000] = Add(%x, %noise)
    %z: f32[1000] = Dropout(%x, 0.5, bool(true))
}"""


def test_random_numbers_need_a_word() -> None:
    with pytest.raises(UnsupportedError, match="randomness='same' or 'different'") as caught:
        fg.vmap(load(NOISE))
    assert "RandomNormalLike" in str(caught.value) and "Dropout" in str(caught.value)


@pytest.mark.parametrize("mode", ["", ", 0.5", ", 0.5, bool(false)"])
def test_a_dropout_at_inference_draws_nothing(mode: str) -> None:
    model = load(f"graph @g (%x: f32[3]) -> (%y: f32[3]) {{ %a: f32[3] = Dropout(%x{mode}) %y: f32[3] = Mul(%a, %a) }}")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(fg.vmap(model)(x=x)["y"], x * x)
    np.testing.assert_array_equal(fg.vmap(fg.vjp(model))(x=x, y_grad=np.ones_like(x))["x_grad"], 2 * x)
    np.testing.assert_array_equal(fg.jacobian(model, "y", "x")(x=x[0])["y_x_jacobian"], np.diag(2 * x[0]))


@pytest.mark.parametrize("shared", [False, True])
def test_random_numbers_of_examples(shared: bool) -> None:
    found = fg.vmap(load(NOISE), randomness="same" if shared else "different")(x=np.ones((2, 1000), np.float32))
    for name in ("y", "z"):
        assert np.array_equal(found[name][0], found[name][1]) == shared, name
    assert 300 < np.count_nonzero(found["z"][0]) < 700 and set(np.unique(found["z"])) == {0, 2}


def test_shared_numbers_do_not_depend_on_the_examples() -> None:
    model = load("""graph @g (%x: f32[3]) -> (%y: f32[3]) {
        %noise: f32[3] = RandomUniform() {shape=[3]}
        %y: f32[3] = Add(%x, %noise)
    }""")
    same = fg.vmap(model, randomness="same")(x=np.zeros((4, 3), np.float32))["y"]
    different = fg.vmap(model, randomness="different")(x=np.zeros((4, 3), np.float32))["y"]
    assert len(np.unique(same, axis=0)) == 1 and len(np.unique(different, axis=0)) == 4


# ---- subgraphs --------------------------------------------------------------------------------------------------------------

BRANCHES = """graph @g (%c: bool[], %x: f32[3], %w: f32[3]) -> (%y: f32[3]) {
  %y: f32[3] = If(%c) captures (%x, %w)
    then_branch = graph @t (%x: f32[3], %w: f32[3]) -> (%y: f32[3]) {
      %y: f32[3] = Mul(%x, %w)
    }
    else_branch = graph @e (%x: f32[3], %w: f32[3]) -> (%y: f32[3]) {
      %y: f32[3] = Log(%w)
    }
}"""


@pytest.mark.parametrize("taken", [True, False])
def test_branches_of_a_shared_condition(taken: bool) -> None:
    model = load(BRANCHES)
    many = fg.vmap(model, {"x": 0})
    assert [n.op for n in many.graph.nodes()] == ["If"]
    agrees(many, model, {"c": np.array(taken), "x": normal(2, 3), "w": np.ones(3, np.float32)}, {"x": 0})


def test_elementwise_branches_of_conditions_of_their_own_are_chosen_from() -> None:
    model = load(BRANCHES)
    many = fg.vmap(model)
    assert [n.op for n in many.graph.nodes()] == ["Mul", "Log", "Unsqueeze", "Where"]
    feeds = {"c": np.array([True, False]), "x": normal(2, 3), "w": np.array([[0, 1, 2], [3, 4, 5]], np.float32)}
    with np.errstate(divide="ignore"):
        agrees(many, model, feeds, {"c": 0, "x": 0, "w": 0})
        found = fg.vjp(many, wrt=["x", "w"])(**feeds, y_grad=np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(found["w_grad"][0], feeds["x"][0])
    np.testing.assert_allclose(found["w_grad"][1], 1 / feeds["w"][1], rtol=1e-6)


def test_other_branches_of_conditions_of_their_own_are_run_one_by_one() -> None:
    model = load(BRANCHES.replace("Log(%w)", "CumSum(%w, 0)"))
    many = fg.vmap(model)
    assert loops(many.graph) == 1
    agrees(many, model, {"c": np.array([True, False]), "x": normal(2, 3), "w": normal(2, 3)}, {"c": 0, "x": 0, "w": 0})


RECURRENCE = """graph @g (%steps: i64[], %x: f32[3], %h: f32[3]) -> (%last: f32[3], %count: i64[], %rows: f32[_d1,3]) {
  %last: f32[3], %count: i64[], %rows: f32[_d1,3] = Loop(%steps, _, %h, 0) captures (%x)
    body = graph @body (%i: i64[], %more: bool[], %h: f32[3], %n: i64[], %x: f32[3])
        -> (%going: bool[], %next: f32[3], %m: i64[], %row: f32[3])
    {
      %going: bool[] = Identity(%more)
      %sum: f32[3] = Add(%h, %x)
      %next: f32[3] = Tanh(%sum)
      %m: i64[] = Add(%n, %i)
      %row: f32[3] = Mul(%next, %h)
    }
}"""


@pytest.mark.parametrize("names", [("x",), ("h",), ("x", "h")])
def test_a_loop_runs_for_all_examples(names: tuple[str, ...]) -> None:
    model = load(RECURRENCE)
    many = fg.vmap(model, dict.fromkeys(names, 0))
    loop = next(n for n in many.graph.nodes() if n.op == "Loop")
    assert not loops(many.graph) and loop.output(1).type.shape == ()  # the count stays one for all
    feeds = {"steps": np.array(4), "x": normal(3), "h": normal(3), **{name: normal(2, 3) for name in names}}
    agrees(many, model, feeds, dict.fromkeys(names, 0), 1e-6)


def test_loops_of_unequal_length_run_one_by_one() -> None:
    model = load(re.sub(r", %row(s: f32\[_d1,3\]|: f32\[3\](?=\)))", "", RECURRENCE))
    many = fg.vmap(model)
    assert loops(many.graph) == 1
    feeds = {"steps": np.array([1, 1]), "x": normal(2, 3), "h": normal(2, 3)}
    agrees(many, model, feeds, dict.fromkeys(feeds, 0))


def test_derivatives_of_a_loop_of_many_examples() -> None:
    model = load(RECURRENCE)
    one = fg.vjp(model, of="last", wrt=["x", "h"])
    many = fg.vmap(one, {"x": 0, "h": 0, "last_grad": 0})
    feeds = {"steps": np.array(3), "x": normal(2, 3), "h": normal(2, 3), "last_grad": normal(2, 3)}
    agrees(many, one, feeds, {"x": 0, "h": 0, "last_grad": 0}, 1e-6)
    other = fg.vjp(fg.vmap(model, {"x": 0, "h": 0}), of="last", wrt=["x", "h"])
    for name, found in other(feeds).items():
        np.testing.assert_allclose(found, many(feeds)[name], rtol=1e-6, atol=1e-7)
