"""The transforms on small models that ship with the tests: values, names, errors, any order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, NotDifferentiableError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.types import BOOL, FLOAT64, Dim, Type
from flowgrad.model import Model
from flowgrad.passes.differences import directional_derivative

DATA = Path(__file__).parent / "data"


def mlp() -> tuple[Model, dict[str, Array]]:
    rng = np.random.default_rng(0)
    return fg.load(DATA / "mlp.onnx").astype("float64"), {"x": rng.standard_normal((5, 4)), "target": np.array([0, 2, 1, 1, 0])}


def loop(steps: int) -> tuple[Model, dict[str, Array]]:
    rng = np.random.default_rng(0)
    return fg.load(DATA / "loop.onnx").astype("float64"), {
        "steps": np.array(steps), "x": rng.standard_normal((2, 3)), "h": rng.standard_normal((2, 3))}


def branch(sign: float) -> tuple[Model, dict[str, Array]]:
    rng = np.random.default_rng(0)
    return fg.load(DATA / "branch.onnx").astype("float64"), {"x": sign * rng.uniform(0.1, 1.0, (4, 3))}


MODELS = {
    "mlp": (mlp, (), ["x", "w1", "b1", "w2", "b2"]),
    "loop": (loop, (4,), ["x", "h", "w"]),
    "loop, no trips": (loop, (0,), ["x", "h", "w"]),
    "branch, warm": (branch, (1.0,), ["x", "w", "v"]),
    "branch, cold": (branch, (-1.0,), ["x", "w", "v"]),
}


def values_at(model: Model, feeds: Mapping[str, Array], wrt: list[str]) -> dict[str, Array]:
    return {n: feeds[n] if n in feeds else np.asarray(model.graph.value(n).producer.data) for n in wrt}


def fed(model: Model, wrt: list[str]) -> Model:
    """A model whose constants in ``wrt`` can be fed."""
    from flowgrad.passes.selection import find_wrt

    graph = model.graph.copy()
    find_wrt(graph, wrt)
    return model.with_graph(graph)


@pytest.mark.parametrize("name", MODELS)
def test_vjp_and_jvp_agree_with_differences(name: str) -> None:
    make, arguments, wrt = MODELS[name]
    model, feeds = make(*arguments)  # type: ignore[operator]
    rng = np.random.default_rng(5)
    at = values_at(model, feeds, wrt)
    direction = {n: np.asarray(rng.standard_normal(a.shape)) for n, a in at.items()}
    moved = fed(model, wrt)
    outputs = model(feeds)
    cotangents = {n: np.asarray(rng.standard_normal(y.shape)) for n, y in outputs.items()}
    expected = {n: directional_derivative(
        lambda p, n=n: evaluate(moved.graph, p)[n], {**feeds, **at}, direction, 1e-3)[0] for n in outputs}  # type: ignore[misc]

    reverse = fg.vjp(model, wrt=wrt)
    gradients = reverse({**feeds, **{reverse.roles["cotangent", n, ""]: c for n, c in cotangents.items()}})
    got = sum(np.sum(gradients[f"{n}_grad"] * direction[n]) for n in wrt)
    want = sum(np.sum(expected[n] * cotangents[n]) for n in outputs)
    assert got == pytest.approx(want, rel=1e-7, abs=1e-8)

    forward = fg.jvp(model, wrt=wrt)
    tangents = forward({**feeds, **{forward.roles["tangent", "", n]: d for n, d in direction.items()}})
    for n in outputs:
        np.testing.assert_allclose(tangents[f"{n}_tangent"], expected[n], rtol=1e-7, atol=1e-8)
        np.testing.assert_array_equal(tangents[n], outputs[n])


@pytest.mark.parametrize("name", MODELS)
def test_hvp_agrees_with_differences_of_the_gradient(name: str) -> None:
    make, arguments, wrt = MODELS[name]
    model, feeds = make(*arguments)  # type: ignore[operator]
    scalar = summed(model, "loss" if name == "mlp" else model.outputs[0].name)
    first, product = fg.grad(scalar, "total_of_it", wrt), fg.hvp(scalar, "total_of_it", wrt)
    rng = np.random.default_rng(6)
    at = values_at(model, feeds, wrt)
    direction = {n: np.asarray(rng.standard_normal(a.shape)) for n, a in at.items()}
    got = product({**feeds, **{f"{n}_tangent": d for n, d in direction.items()}})
    for n in wrt:
        expected, _ = directional_derivative(
            lambda p, n=n: first(p)[f"{n}_grad"], {**feeds, **at}, direction, 1e-3)  # type: ignore[misc]
        np.testing.assert_allclose(got[f"{n}_hvp"], expected, rtol=1e-6, atol=1e-7)


def summed(model: Model, output: str) -> Model:
    """The model with the sum of squares of one output as an output called ``total_of_it``."""
    graph = model.graph.copy()
    b = Builder(graph)
    y = next(e.input(0) for e in graph.output_entries if e.name == output)
    graph.add_output(b.ReduceSum(b.Mul(y, y), keepdims=0), "total_of_it")
    return model.with_graph(graph)


def test_grad_nested_three_times_is_the_third_derivative() -> None:
    """y = sum(x^5): y''' = 60 x^2, each time through a scalar sum."""
    graph = Graph("power")
    x = graph.add_input("x", Type(FLOAT64, (Dim.named("N"),)))
    b = Builder(graph)
    graph.add_output(b.ReduceSum(b.Pow(x, 5.0), keepdims=0), "y0")
    model = Model(graph)
    for order in range(3):
        model = fg.grad(model, f"y{order}", "x")
        inner = model.graph.copy()
        found = inner.output_entries[0].input(0)
        inner.add_output(Builder(inner).ReduceSum(found, keepdims=0), f"y{order + 1}")
        model = Model(inner)
    at = np.array([0.5, -1.5, 2.0])
    np.testing.assert_allclose(model(x=at)[model.outputs[0].name], 60 * at**2, rtol=1e-12)


def test_names_and_roles() -> None:
    model, _ = mlp()
    gradient = fg.grad(model, "loss", ["w1", "x"], keep="logits")
    assert [o.name for o in gradient.outputs] == ["w1_grad", "x_grad", "logits"]
    assert gradient.roles["grad", "loss", "w1"] == "w1_grad"
    assert [o.name for o in fg.value_and_grad(model, wrt="params", of="loss").outputs] == [
        "loss", "w1_grad", "b1_grad", "w2_grad", "b2_grad"]
    assert [i.name for i in fg.vjp(model, "logits").inputs] == ["x", "target", "logits_grad"]
    assert [o.name for o in fg.vjp(model, "logits").outputs] == ["loss", "logits", "x_grad"]
    assert [i.name for i in fg.jvp(model, "logits", "w*").inputs] == ["x", "target", "w1_tangent", "w2_tangent"]
    assert [i.name for i in fg.hvp(model, "loss", "x").inputs] == ["x", "target", "x_tangent"]


def test_a_parameter_keeps_its_default_and_can_be_fed() -> None:
    model, feeds = mlp()
    gradient = fg.value_and_grad(model, "loss", "w1")
    doubled = 2 * np.asarray(model.graph.value("w1").producer.data)
    assert gradient({**feeds, "w1": doubled})["loss"] != gradient(feeds)["loss"]
    assert gradient({**feeds, "w1": doubled})["loss"] == model.with_params({"w1": doubled})(feeds)["loss"]


def test_inner_values_can_be_differentiated_and_kept() -> None:
    model, feeds = mlp()
    result = fg.grad(model, "loss", "hidden", keep="hidden_in")(feeds)
    assert result["hidden_grad"].shape == result["hidden_in"].shape == (5, 8)


def test_the_caller_never_sees_its_graph_change() -> None:
    model, _ = mlp()
    before = str(model)
    fg.hvp(model, "loss", "params")
    assert str(model) == before


@pytest.mark.parametrize(("call", "says"), [
    (lambda m: fg.grad(m, "los"), "did you mean 'loss'"),
    (lambda m: fg.grad(m, "logits"), "not a scalar"),
    (lambda m: fg.grad(m, "loss", "w3"), "no output, value or node 'w3'"),
    (lambda m: fg.grad(m, "loss", "target"), "only floats have derivatives"),
    (lambda m: fg.vjp(m, wrt="v*"), "matches 'v*'"),
    (lambda m: m(x=np.ones((2, 4), np.float32), target=np.array([0, 1])), "float64"),
    (lambda m: m(x=np.ones((2, 5)), target=np.array([0, 1])), "shape"),
    (lambda m: m(y=np.ones((2, 5)), target=np.array([0, 1])), "no input 'y'"),
    (lambda m: m.with_params({"w1": np.ones(3)}), "w1"),
])
def test_bad_names_shapes_and_dtypes_are_input_errors(call: Any, says: str) -> None:
    model, _ = mlp()
    with pytest.raises(InputError) as caught:
        call(model)
    assert says in str(caught.value)


def piecewise() -> Model:
    graph = Graph("piecewise")
    x = graph.add_input("x", Type(FLOAT64, (3,)))
    b = Builder(graph)
    graph.add_output(b.ReduceSum(b.Floor(x), keepdims=0), "y")
    graph.add_output(b.ReduceSum(b.Mul(graph.add_input("u", Type(FLOAT64, (3,))), 2.0), keepdims=0), "z")
    return Model(graph)


def test_a_gradient_that_is_zero_by_steps_is_an_error_that_names_them() -> None:
    with pytest.raises(NotDifferentiableError, match="Floor"):
        fg.grad(piecewise(), "y", "x")
    assert not fg.grad(piecewise(), "y", "x", zero="allow")(x=np.ones(3), u=np.ones(3))["x_grad"].any()


def test_no_path_at_all_gives_zeros_and_a_note() -> None:
    gradient = fg.grad(piecewise(), "z", "x")
    assert not gradient(x=np.ones(3), u=np.ones(3))["x_grad"].any()
    assert "does not depend on 'x'" in gradient.notes[0]


@pytest.mark.parametrize("column_major", [0, 1])
def test_windows_that_see_pads_alone_pass_nothing_on(column_major: int) -> None:
    """Of five windows of two over each channel of two pixels the outer two see pads alone."""
    source = ("graph @g (%x: f64[1,2,2,1]) -> (%y: f64[1,2,5,1]) { %y: f64[1,2,5,1] = MaxPool(%x) "
              f"{{kernel_shape=[2, 1], pads=[2, 0, 2, 0], storage_order={column_major}}} }}")
    gradient = fg.vjp(fg.load(source.encode()), "y", "x")
    feeds = {"x": np.array([1.0, 2.0, 4.0, 3.0]).reshape(1, 2, 2, 1), "y_grad": np.arange(1.0, 11.0).reshape(1, 2, 5, 1)}
    np.testing.assert_array_equal(gradient(feeds)["x_grad"].ravel(), [2.0, 3.0 + 4.0, 7.0 + 8.0, 9.0])
    again = fg.vjp(gradient, "x_grad", "y_grad")
    back = again({**feeds, "x_grad_grad": np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)})
    np.testing.assert_array_equal(back[again.outputs[-1].name].ravel(), [0, 1, 2, 2, 0, 0, 3, 3, 4, 0])


UNRANKED = "graph @g (%x: f64[*]) -> (%y: f64[*]) { %y: f64[*] = Sin(%x) }"
COUNTED = """graph @g (%x: f64[N], %m: bool[N]) -> (%y: f64[M]) {
    %c: f64[M] = Compress(%x, %m) {axis = 0}
    %y: f64[M] = Sin(%c)
}"""


@pytest.mark.parametrize("shape", [(), (3,), (5, 2, 3), (3, 2)])
@pytest.mark.parametrize(("way", "name"), [(fg.vjp, "y_grad"), (fg.jvp, "x_tangent")])
def test_what_is_fed_for_a_value_of_unknown_rank_has_its_shape(way: Any, name: str, shape: tuple[int, ...]) -> None:
    derivative, x = way(fg.load(UNRANKED.encode())), np.ones((2, 3))
    with pytest.raises(InputError, match=r"shape \[.*\] is fed for a value of shape \[2, 3\]"):
        derivative({"x": x, name: np.ones(shape)})
    assert all(v.shape == (2, 3) for v in derivative({"x": x, name: x}).values())


def test_what_is_fed_for_an_extent_that_only_the_run_tells_has_it() -> None:
    model = fg.load(COUNTED.encode())
    gradient, feeds = fg.vjp(model), {"x": np.ones(3), "m": np.array([True, True, False])}
    with pytest.raises(InputError, match=r"shape \[1\] is fed for a value of shape \[2\]"):
        gradient({**feeds, "y_grad": np.ones(1)})
    np.testing.assert_allclose(gradient({**feeds, "y_grad": np.ones(2)})["x_grad"], [np.cos(1), np.cos(1), 0])
    assert "OfShape" in {n.op for n in gradient.graph.nodes()}
    assert "OfShape" not in {n.op for n in fg.jvp(model).graph.nodes()}  # N is checked as it is fed


def test_exported_cotangents_do_not_broadcast() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = fg.vjp(fg.load(UNRANKED.encode())).to_onnx().SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(exported, options)
    assert session.run(["x_grad"], {"x": np.ones((2, 3)), "y_grad": np.ones((2, 3))})[0].shape == (2, 3)
    with pytest.raises(Exception, match="Reshape"):
        session.run(["x_grad"], {"x": np.ones((2, 3)), "y_grad": np.ones(3)})


def test_exported_derivatives_can_bear_the_names_of_casadi() -> None:
    model = fg.load(b"graph @g (%x: f64[2]) -> (%f: f64[]) {\n  %f: f64[] = ReduceSumSquare(%x) {keepdims=0}\n}")
    names = {}
    for made in (fg.vjp(model), fg.jvp(model), fg.hvp(model), fg.jacobian(model), fg.hessian(model)):
        again = fg.load(made.to_onnx(naming="casadi"))
        names.update({i.name: 1 for i in again.inputs} | {o.name: 1 for o in again.outputs})
        plain = made({i.name: np.ones(2 if i.shape else ()) for i in made.inputs})
        named = again({i.name: np.ones(2 if i.shape else ()) for i in again.inputs})
        for array, other in zip(plain.values(), named.values(), strict=True):
            np.testing.assert_array_equal(array, other)
        assert set(again.roles) == set(made.roles)
    assert set(names) == {"x", "f", "adj_f", "adj_x", "fwd_x", "fwd_f", "fwd_adj_x", "jac_f_x", "hess_f_x_x"}
    with pytest.raises(InputError, match="naming is"):
        fg.vjp(model).to_onnx(naming="casady")  # type: ignore[arg-type]


def test_products_by_a_value_and_what_is_computed_from_it_are_refused() -> None:
    """The gradient by x is 2 h (1 - h^2), written in h: moving h alone would move the slope of tanh as well."""
    model = fg.load(b"""graph @g (%x: f64[]) -> (%f: f64[]) {
  %h: f64[] = Tanh(%x)
  %f: f64[] = Mul(%h, %h)
}""")
    with pytest.raises(InputError, match="'h' is computed from another value in wrt"):
        fg.hvp(model, "f", ["x", "h"])
    x = np.array(0.7)
    np.testing.assert_allclose(fg.hessian(model, "f", ["x", "h"])(x=x)["x_h_hessian"], 2 * (1 - np.tanh(x) ** 2), rtol=1e-12)
    np.testing.assert_allclose(fg.hvp(model, "f", "h")(x=x, h_tangent=np.array(1.0))["h_hvp"], 2.0)


def test_of_unknown_rank_one_type_may_stand_for_two_shapes() -> None:
    """A cotangent is summed to the shape of what was broadcast, also where both types say no more than that they are floats."""
    unknown = Type(FLOAT64, None)
    graph = Graph("difference")
    x, y = graph.add_input("x", unknown), graph.add_input("y", unknown)
    graph.add_output(Builder(graph).Sub(x, y), "z")
    found = fg.vjp(fg.Model(graph))(x=np.ones((2, 3)), y=np.ones((1, 1)), z_grad=np.ones((2, 3)))
    np.testing.assert_array_equal(found["x_grad"], np.ones((2, 3)))
    np.testing.assert_array_equal(found["y_grad"], [[-6.0]])


def test_tangents_of_unknown_rank_have_the_shape_of_their_values() -> None:
    """What selects from one operand that was broadcast beside others has a tangent as large as all of it."""
    unknown = Type(FLOAT64, None)
    graph = Graph("selection")
    chosen, x, y = graph.add_input("chosen", Type(BOOL, None)), graph.add_input("x", unknown), graph.add_input("y", unknown)
    b = Builder(graph)
    graph.add_output(b.ReduceSum(b.Where(chosen, x, y), keepdims=0), "z")
    found = fg.jvp(fg.Model(graph), wrt="x")(chosen=np.array(True), x=np.ones((1, 1)), y=np.ones((2, 3)), x_tangent=np.ones((1, 1)))
    np.testing.assert_array_equal(found["z_tangent"], 6.0)
