"""Transforms that change what is differentiated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, NotDifferentiableError
from flowgrad.ir.graph import Graph
from flowgrad.ir.types import FLOAT64, Dim, Type
from flowgrad.model import Model

DATA = Path(__file__).parent / "data"


def network() -> Model:
    return fg.load(DATA / "mlp.onnx").astype("float64")


def rectified() -> Model:
    graph = Graph("rectified")
    x = graph.add_input("x", Type(FLOAT64, (Dim.named("N"), 3)))
    b = Builder(graph)
    hidden = b.add("Relu", [x], name="hidden")
    graph.add_output(b.ReduceSum(b.Mul(hidden, np.array([1.0, -2.0, 3.0])), keepdims=0), "y")
    return Model(graph)


def test_pick_differentiates_the_chosen_class() -> None:
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((4, 4)), np.array([0, 2, 1, 2])
    picked = fg.grad(network(), fg.pick("logits", index="chosen"), "x")
    assert [i.name for i in picked.inputs] == ["x", "target", "chosen"]
    got = picked(x=x, target=target, chosen=target)["x_grad"]
    seeds = np.eye(3)[target]
    expected = fg.vjp(network(), "logits", "x")(x=x, target=target, logits_grad=seeds)["x_grad"]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    first = fg.grad(network(), fg.pick("logits", index=1), "x")(x=x, target=target)["x_grad"]
    one = np.tile(np.eye(3)[1], (4, 1))
    np.testing.assert_allclose(
        first, fg.vjp(network(), "logits", "x")(x=x, target=target, logits_grad=one)["x_grad"], rtol=1e-12)


def test_stop_gradient_lets_the_value_through_and_no_derivative() -> None:
    model = fg.stop_gradient(network(), "hidden_in")
    feeds = {"x": np.ones((2, 4)), "target": np.array([0, 1])}
    assert model(feeds)["loss"] == network()(feeds)["loss"]
    with pytest.raises(NotDifferentiableError, match="StopGradient"):
        fg.grad(model, "loss", "w1")
    assert fg.grad(model, "loss", "w2")(feeds)["w2_grad"].any()
    assert "StopGradient" not in {n.op_type for n in model.to_onnx().graph.node}


def test_override_adjoint() -> None:
    x = np.array([[-1.0, 2.0, 3.0], [1.0, 1.0, -1.0]])
    plain = fg.grad(rectified(), "y", "x")(x=x)["x_grad"]
    np.testing.assert_array_equal(plain, np.where(x > 0, [1.0, -2.0, 3.0], 0.0))
    through = fg.override_adjoint(rectified(), fg.straight_through, op="Relu")
    np.testing.assert_array_equal(fg.grad(through, "y", "x")(x=x)["x_grad"], np.tile([1.0, -2.0, 3.0], (2, 1)))
    guided = fg.override_adjoint(rectified(), fg.guided, names="hidden")
    np.testing.assert_array_equal(fg.grad(guided, "y", "x")(x=x)["x_grad"], np.where(x > 0, [1.0, 0.0, 3.0], 0.0))
    for other in (guided.optimized(), guided.astype("float32")):
        found = fg.grad(other, "y", "x")(x=x.astype(other.inputs[0].dtype))["x_grad"]
        np.testing.assert_array_equal(found, np.where(x > 0, [1.0, 0.0, 3.0], 0.0))
    with pytest.raises(NotDifferentiableError, match="overridden"):
        fg.jvp(guided, "y", "x")
    with pytest.raises(InputError, match="no node of op"):
        fg.override_adjoint(rectified(), fg.guided, op="Rely")


def test_compose_feeds_one_model_into_another() -> None:
    both = fg.compose(network(), rectified(), {"logits": "x"})
    assert [i.name for i in both.inputs] == ["x", "target"]
    assert [o.name for o in both.outputs] == ["y", "loss"]
    feeds = {"x": np.full((2, 4), 0.3), "target": np.array([0, 1])}
    inner = network()(feeds)["logits"]
    assert both(feeds)["y"] == pytest.approx(rectified()(x=inner)["y"])
    assert fg.grad(both, "y", "x")(feeds)["x_grad"].shape == (2, 4)
    with pytest.raises(InputError, match="did you mean 'logits'"):
        fg.compose(network(), rectified(), {"logit": "x"})


def test_unbatch_takes_the_batch_axis_out() -> None:
    graph = network().graph.copy()
    graph.remove(next(e for e in graph.output_entries if e.name == "loss"))
    single = fg.unbatch(Model(graph))
    assert [i.shape for i in single.inputs] == [(4,), ()]
    x = np.linspace(-1, 1, 4)
    got = single(x=x, target=np.array(1))["logits"]
    np.testing.assert_allclose(got, network()(x=x[None], target=np.array([1]))["logits"][0], rtol=1e-12)


@pytest.mark.parametrize("text, axis, message", [
    ("(%x: f64[N,2]) -> (%y: f64[N,2]) { %y: f64[N,2] = Tanh(%x) }", 2, r"input 'x' is f64\[N,2\], which has no axis 2"),
    ("(%x: f64[N,2]) -> (%y: f64[N]) { %y: f64[N] = ReduceSum(%x, [1]) {keepdims=0} }", 1, "input 'x' has a fixed batch extent 2"),
    ("(%x: f64[2,N]) -> (%y: f64[2]) { %y: f64[2] = ReduceSum(%x, [1]) {keepdims=0} }", 1, r"output 'y' is f64\[2\], which has no axis 1"),
    ("(%x: f64[N,2]) -> (%y: f64[2]) { %y: f64[2] = ReduceSum(%x, [0]) {keepdims=0} }", 0, "output 'y' has the extent 2"),
    ("(%x: f64[*]) -> (%y: f64[*]) { %y: f64[*] = Tanh(%x) }", 0, "input 'x' has a rank that only the run can tell: load .*shapes="),
])
def test_what_has_no_batch_axis_is_refused(text: str, axis: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fg.unbatch(fg.load(f"graph @g {text}".encode()), axis)


def test_keep_and_inner_names_survive_optimisation() -> None:
    gradient = fg.grad(network(), "loss", "hidden", keep="hidden_in").optimized()
    feeds: dict[str, Any] = {"x": np.ones((2, 4)), "target": np.array([0, 1])}
    assert set(gradient(feeds)) == {"hidden_grad", "hidden_in"}
    assert "hidden" in gradient.graph.values


def test_a_part_of_a_model_takes_inner_values_as_inputs() -> None:
    model = fg.load("tests/data/mlp.onnx")
    x, target = np.ones((2, 4), np.float32), np.array([0, 2])
    whole = fg.vjp(model, of="logits", wrt="x", keep="hidden")(x=x, target=target, logits_grad=np.ones((2, 3), np.float32))
    head = fg.extract(model, inputs="hidden", outputs="logits")
    assert [i.name for i in head.inputs] == ["hidden"] and [p.name for p in head.params if p.included] == ["w2", "b2"]
    np.testing.assert_array_equal(head(hidden=whole["hidden"])["logits"], whole["logits"])
    body = fg.extract(model, outputs="hidden")
    assert [i.name for i in body.inputs] == ["x"]
    np.testing.assert_array_equal(body(x=x)["hidden"], whole["hidden"])
    joined = fg.compose(body, head, {"hidden": "hidden"})
    np.testing.assert_array_equal(joined(x=x)["logits"], whole["logits"])
    with pytest.raises(InputError, match="'loss' need 'target' as well"):
        fg.extract(model, inputs="hidden", outputs="loss")
    with pytest.raises(InputError, match="did you mean 'hidden'"):
        fg.extract(model, inputs="hiden")


def test_weights_are_read_and_get_other_values_and_shapes() -> None:
    model = fg.load("tests/data/mlp.onnx")
    weights = model.state_dict()
    assert {n: a.shape for n, a in weights.items()} == {"w1": (4, 8), "b1": (8,), "w2": (8, 3), "b2": (3,)}
    again = model.with_params({n: np.array(a) for n, a in weights.items()})
    x, target = np.ones((2, 4), np.float32), np.array([0, 2])
    np.testing.assert_array_equal(again(x=x, target=target)["loss"], model(x=x, target=target)["loss"])
    wider = model.with_params({"w2": np.ones((8, 5), np.float32), "b2": np.zeros(5, np.float32)})
    assert [o.shape for o in wider.outputs if o.name == "logits"] == [("N", 5)]
    assert wider(x=x, target=target)["logits"].shape == (2, 5)
    assert set(fg.grad(wider, of="loss", wrt="params")(x=x, target=target)) == {"w1_grad", "b1_grad", "w2_grad", "b2_grad"}
    with pytest.raises(InputError, match=r"does not take 'w2' of shape \[7, 3\]"):
        model.with_params({"w2": np.ones((7, 3), np.float32)})
    with pytest.raises(InputError, match="'w2' is f32"):
        model.with_params({"w2": np.ones((8, 3))})


def test_parameters_are_found_by_name_and_hold_their_arrays() -> None:
    model = fg.load("tests/data/mlp.onnx")
    assert model.params["w1"] is model.params[0] and [p.name for p in model.params[1:]] == ["b1", "w2", "b2"]
    np.testing.assert_array_equal(model.params["w1"].value, model.state_dict()["w1"])
    with pytest.raises(ValueError, match="read-only"):
        model.params["w1"].value[0] = 1
    with pytest.raises(InputError, match="no parameter 'w3'; there are: w1, b1"):
        model.params["w3"]
    with pytest.raises(InputError, match="'x' is not stored in the model"):
        assert model.inputs[0].value is None
