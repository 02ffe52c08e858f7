"""What a derivative is does not depend on what was done to the model before: right all the same, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.errors import InputError, NotDifferentiableError
from flowgrad.ir.graph import Array
from flowgrad.model import Model

TRANSFORMED: dict[str, Callable[[Model], Model]] = {
    "as it is": lambda m: m,
    "optimized": lambda m: m.optimized(),
    "exported": lambda m: fg.load(m.to_onnx()),
    "twice": lambda m: fg.load(m.optimized().to_onnx()).optimized(),
}
transformed = pytest.mark.parametrize("transform", TRANSFORMED.values(), ids=list(TRANSFORMED))


def text(source: str) -> Model:
    return fg.load(source.encode())


# ---- weights ------------------------------------------------------------------------------------------------------------


def weighted() -> Model:
    """y = sum(x w + exp(w)) = 1 + 2 + e + e^2 for x = 1."""
    return text("""graph @g (%x: f64[2]) -> (%y: f64[])
        initializers (%w: f64[2] = [1, 2]) {
        %a: f64[2] = Mul(%x, %w)
        %b: f64[2] = Exp(%w)
        %c: f64[2] = Add(%a, %b)
        %y: f64[] = ReduceSum(%c) {keepdims=0} }""")


@transformed
def test_a_weight_with_several_users_stands_for_all_of_them(transform: Callable[[Model], Model]) -> None:
    model, x = transform(weighted()), np.ones(2)
    np.testing.assert_allclose(fg.grad(model, "y", "w")(x=x)["w_grad"], x + np.exp([1.0, 2.0]), rtol=1e-15)
    np.testing.assert_allclose(model.with_params({"w": np.zeros(2)})(x=x)["y"], 2.0, rtol=1e-15)
    np.testing.assert_allclose(model(x=x)["y"], 3 + np.e + np.e**2, rtol=1e-15)


def test_a_weight_with_one_user_gives_way_to_what_is_computed_from_it() -> None:
    model = text("""graph @g (%x: f64[2]) -> (%y: f64[2]) initializers (%w: f64[2] = [1, 2]) {
        %b: f64[2] = Exp(%w)
        %y: f64[2] = Mul(%x, %b) }""").optimized()
    assert [p.name for p in model.params] == ["b"]
    with pytest.raises(InputError, match="'w'"):
        fg.vjp(model, "y", "w")


def test_a_program_folds_what_shared_weights_allow() -> None:
    assert "Exp" not in str(weighted().compile().plan({}))


def test_arrays_of_the_caller_are_copied() -> None:
    w = np.array([1.0, 2.0])
    model = weighted().with_params({"w": w})
    before = model(x=np.ones(2))["y"]
    w[:] = 10.0
    assert model(x=np.ones(2))["y"] == before
    assert fg.grad(model, "y", "w")(x=np.ones(2))["w_grad"][0] == 1 + np.exp(1.0)


def scaled(formula: str, scale: float) -> Model:
    """z = a formula of x and of a trained number called scale."""
    return text(f"""graph @g (%x: f64[3]) -> (%z: f64[]) initializers (%scale: f64[] = {scale}) {{
        {formula}
        %z: f64[] = ReduceSum(%y) {{keepdims=0}} }}""")


ROOT = """%s: f64[] = ReduceSumSquare(%x) {keepdims=0}
        %m: f64[] = Mul(%s, %scale)
        %y: f64[] = Sqrt(%m)"""


@pytest.mark.parametrize(("formula", "scale", "other", "right"), [
    (ROOT, 3.0, 7.0, lambda x, c: np.sqrt(c) * x / np.sqrt(np.sum(x * x))),
    ("%y: f64[3] = Pow(%x, %scale)", 2.0, 7.0, lambda x, c: c * x ** (c - 1)),
])
def test_trained_numbers_are_not_taken_for_granted(
    formula: str, scale: float, other: float, right: Callable[[Array, float], Array]
) -> None:
    x, step = np.array([1.0, 2.0, 2.0]), 1e-6
    gradient = fg.grad(scaled(formula, scale), "z", "x")
    np.testing.assert_allclose(gradient(x=x)["x_grad"], right(x, scale), rtol=1e-14)
    np.testing.assert_allclose(gradient.with_params({"scale": np.float64(other)})(x=x)["x_grad"], right(x, other), rtol=1e-14)
    second = fg.vjp(gradient, "x_grad", "scale")(x=x, x_grad_grad=np.ones(3))["scale_grad"]
    slope = (right(x, scale + step) - right(x, scale - step)).sum() / (2 * step)
    np.testing.assert_allclose(second, slope, rtol=1e-8)


def test_a_number_that_a_repair_took_for_granted_has_no_name_any_more() -> None:
    gradient = fg.grad(scaled(ROOT.replace("Mul(%s, %scale)", "Pow(%s, %scale)").replace("Sqrt(%m)", "Identity(%m)"), 0.5), "z", "x")
    np.testing.assert_array_equal(gradient(x=np.zeros(3))["x_grad"], np.zeros(3))
    with pytest.raises(InputError, match="'scale'"):
        gradient.with_params({"scale": np.float64(1.0)})
    with pytest.raises(InputError, match="'scale'"):
        fg.vjp(gradient, "x_grad", "scale")


@pytest.mark.parametrize("formula", ["%s: i32[3] = Mul(%x, %x) %y: i32[3] = Pow(%s, 0.5)",
                                     "%s: i32[3] = Pow(%x, 0.5) %y: i32[3] = Mul(%s, %s)"])
def test_repairs_of_integers_that_would_overflow_or_round_are_left_alone(formula: str) -> None:
    model = text(f"graph @g (%x: i32[3], %u: f64[]) -> (%y: i32[3], %v: f64[]) {{ {formula} %v: f64[] = Exp(%u) }}")
    assert not [n for n in fg.grad(model, "v", "u", keep="y").notes if "repaired" in n]


def test_narrow_deviations_whose_norm_is_no_number_of_their_type_are_repaired_in_a_wider_one() -> None:
    model = text("""graph @g (%x: f16[N]) -> (%y: f16[]) {
        %s: f16[N] = Mul(%x, %x) %m: f16[] = ReduceMean(%s) {keepdims=0} %y: f16[] = Sqrt(%m) }""")
    gradient = fg.vjp(model)
    assert any("scaled_norm" in note for note in gradient.notes)
    outputs = gradient(x=np.full(70_000, 250, np.float16), y_grad=np.array(1024, np.float16))
    assert outputs["y"] == 250
    np.testing.assert_allclose(outputs["x_grad"][-1], 1024 / 70_000, rtol=2e-3)


# ---- inner values -------------------------------------------------------------------------------------------------------


def test_an_inner_value_that_took_over_the_users_of_another_is_refused() -> None:
    model = text("""graph @g (%x: f64[2]) -> (%y: f64[2]) {
        %a: f64[2] = Exp(%x)
        %b: f64[2] = Exp(%x)
        %y: f64[2] = Mul(%a, %b) }""")
    feeds = {"x": np.zeros(2), "y_grad": np.ones(2)}
    np.testing.assert_array_equal(fg.vjp(model, "y", "a")(feeds)["a_grad"], np.ones(2))
    left = {v.name for v in model.optimized().graph.values.values()} & {"a", "b"}
    with pytest.raises(InputError, match="no longer stands for what it did: 'cse'"):
        fg.vjp(model.optimized(), "y", left.pop())
    with pytest.raises(InputError, match="no longer stands"):
        fg.stop_gradient(fg.load(model.to_onnx(passes="cse")), "a")


def test_an_inner_value_that_users_get_round_is_refused() -> None:
    model = text("""graph @g (%x: f64[2,3]) -> (%y: f64[2,3], %p: f64[2,3]) {
        %p: f64[2,3] = Softmax(%x)
        %y: f64[2,3] = Log(%p) }""")
    feeds = {"x": np.zeros((2, 3)), "y_grad": np.ones((2, 3))}
    np.testing.assert_allclose(fg.vjp(model, "y", "p")(feeds)["p_grad"], np.full((2, 3), 3.0), rtol=1e-14)
    with pytest.raises(InputError, match="'p' no longer stands"):
        fg.vjp(model.optimized(), "y", "p")
    np.testing.assert_allclose(fg.vjp(model.optimized(), "y", "x")(feeds)["x_grad"], np.zeros((2, 3)), atol=1e-15)


@transformed
def test_stopped_gradients_stay_stopped(transform: Callable[[Model], Model]) -> None:
    model = text("graph @g (%x: f64[2]) -> (%y: f64[2]) { %a: f64[2] = Exp(%x) %y: f64[2] = Mul(%a, %x) }")
    stopped = transform(fg.stop_gradient(model, "a"))
    found = fg.vjp(stopped, "y", "x")(x=np.array([0.0, 1.0]), y_grad=np.ones(2))["x_grad"]
    np.testing.assert_allclose(found, [1.0, np.e], rtol=1e-15)


@transformed
@pytest.mark.parametrize("axes", ["", ", i64([1])"])
def test_second_derivatives_of_products_at_zeros(transform: Callable[[Model], Model], axes: str) -> None:
    """The Hessian of x0 x1 x2 x3 at (0, 2, 0, 3) has one pair of entries: 2 3 at (0, 2)."""
    model = text(f"graph @g (%x: f64[1,4]) -> (%z: f64[1,1]) {{ %z: f64[1,1] = ReduceProd(%x{axes}) }}")
    gradient = transform(fg.grad(model, "z", "x"))
    again = fg.vjp(gradient, "x_grad", "x")
    found = again(x=np.array([[0.0, 2.0, 0.0, 3.0]]), x_grad_grad=np.array([[1.0, 0.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(found[again.outputs[-1].name], [[0.0, 0.0, 6.0, 0.0]])


# ---- other adjoint rules ------------------------------------------------------------------------------------------------

X, Y_BAR = np.array([0.3, 0.6, -1.2]), np.array([-1.0, 1.0, 1.0])
GUIDED = np.array([0.0, 1.0, 0.0])


def rectified(rule: Any = fg.guided) -> Model:
    return fg.override_adjoint(text("graph @b (%u: f64[3]) -> (%y: f64[3]) { %y: f64[3] = Relu(%u) }"), rule, op="Relu")


def shifted() -> Model:
    return text("graph @a (%x: f64[3]) -> (%h: f64[3]) { %h: f64[3] = Add(%x, f64(0.0)) }")


OVERRIDDEN: dict[str, Callable[[], tuple[Model, str]]] = {
    "second": lambda: (fg.compose(shifted(), rectified(), {"h": "u"}), "x"),
    "first": lambda: (fg.compose(rectified(), shifted(), {"y": "x"}), "u"),
    "optimized": lambda: (rectified().optimized(), "u"),
    "other type": lambda: (rectified().astype("float32").astype("float64").optimized(), "u"),
    "after a derivative": lambda: (fg.vjp(rectified(), "y", "u").optimized(), "u"),
}


@pytest.mark.parametrize("made", OVERRIDDEN.values(), ids=list(OVERRIDDEN))
def test_other_adjoint_rules_go_with_the_model(made: Callable[[], tuple[Model, str]]) -> None:
    model, name = made()
    gradient = fg.vjp(model, model.outputs[0].name, name)
    seeds = {i.name: Y_BAR for i in gradient.inputs if i.name != name}
    np.testing.assert_array_equal(gradient({name: X, **seeds})[gradient.outputs[-1].name], GUIDED)
    with pytest.raises(NotDifferentiableError, match="overridden"):
        fg.jvp(model, model.outputs[0].name, name)


def test_other_adjoint_rules_hold_for_one_sample() -> None:
    model = text("graph @b (%u: f64[N,3]) -> (%y: f64[N,3]) { %y: f64[N,3] = Relu(%u) }")
    one = fg.unbatch(fg.override_adjoint(model, fg.guided, op="Relu"))
    np.testing.assert_array_equal(fg.vjp(one.optimized(), "y", "u")(u=X, y_grad=Y_BAR)["u_grad"], GUIDED)


def test_other_adjoint_rules_hold_in_pipelines() -> None:
    found = rectified().optimized("adjoint{wrt=u},canonicalize,fold,cse,dce")(u=X, y_grad=Y_BAR)
    np.testing.assert_array_equal(found["u_grad"], GUIDED)
    with pytest.raises(NotDifferentiableError, match="overridden"):
        rectified().optimized("tangent{wrt=u}")


@pytest.mark.parametrize("choice", [False, True])
def test_other_adjoint_rules_hold_in_bodies(choice: bool) -> None:
    model = text("""graph @g (%u: f64[3], %c: bool[]) -> (%y: f64[3]) {
        %y: f64[3] = If(%c) captures (%u)
          then_branch = graph @t (%v: f64[3]) -> (%r: f64[3]) { %r: f64[3] = Relu(%v) }
          else_branch = graph @e (%v: f64[3]) -> (%s: f64[3]) { %s: f64[3] = Add(%v, %v) } }""")
    guided = fg.override_adjoint(model, fg.guided, op="Relu").optimized()
    found = fg.vjp(guided, "y", "u")(u=X, c=np.array(choice), y_grad=Y_BAR)["u_grad"]
    np.testing.assert_array_equal(found, GUIDED if choice else 2 * Y_BAR)
    with pytest.raises(NotDifferentiableError, match="overridden"):
        fg.jvp(guided, "y", "u")


def test_steps_with_another_adjoint_rule_refuse_tangents() -> None:
    model = text("""graph @g (%x: f64[3]) -> (%z: f64[]) {
        %r: f64[3] = Round(%x)
        %q: f64[3] = Mul(%r, %r)
        %z: f64[] = ReduceSum(%q) {keepdims=0} }""")
    through = fg.override_adjoint(model, fg.straight_through, op="Round")
    np.testing.assert_array_equal(fg.grad(through, "z", "x")(x=np.array([0.3, 1.6, 2.2]))["x_grad"], [0.0, 4.0, 4.0])
    for transform in (fg.jvp, fg.hvp):
        with pytest.raises(NotDifferentiableError, match="overridden"):
            transform(through, "z", "x")


# ---- roles and zeros ----------------------------------------------------------------------------------------------------


def product() -> Model:
    return text("""graph @g (%x: f64[3], %w: f64[3]) -> (%z: f64[]) {
        %p: f64[3] = Mul(%x, %w)
        %q: f64[3] = Mul(%p, %p)
        %z: f64[] = ReduceSum(%q) {keepdims=0} }""")


def test_earlier_derivatives_are_not_taken_for_ones_own() -> None:
    feeds = {"x": np.full(3, 2.0), "w": np.ones(3), "w_tangent": np.ones(3)}
    for first in (product(), fg.value_and_grad(product(), "z", "x"), fg.value_and_grad(product(), "z", ["w", "x"])):
        found = fg.hvp(first, "z", "w")
        assert [o.name for o in found.outputs] == ["z", "w_grad", "w_hvp"]
        np.testing.assert_array_equal(found(feeds)["w_hvp"], np.full(3, 8.0))


def test_what_is_zero_by_steps_is_refused_beside_others_too() -> None:
    model = text("""graph @g (%x: f64[3], %u: f64[3]) -> (%y: f64[3]) {
        %r: f64[3] = Round(%x)
        %y: f64[3] = Mul(%r, %u) }""")
    for transform in (fg.vjp, fg.jvp):
        for wrt in (["x"], ["x", "u"] if transform is fg.vjp else ["x"]):
            with pytest.raises(NotDifferentiableError, match="'x' to 'y' crosses .*Round"):
                transform(model, "y", wrt)
    found = fg.vjp(model, "y", ["x", "u"], zero="allow")
    assert any("by steps alone" in note for note in found.notes)
    np.testing.assert_array_equal(found(x=X, u=X, y_grad=Y_BAR)["x_grad"], np.zeros(3))


def test_a_value_of_which_only_the_shape_matters_is_no_step() -> None:
    model = text("""graph @g (%x: f64[N], %u: f64[]) -> (%y: f64[N]) {
        %s: i64[1] = Shape(%x)
        %y: f64[N] = Expand(%u, %s) }""")
    found = fg.vjp(model, "y", ["x", "u"])(x=X, u=np.array(2.0), y_grad=Y_BAR)
    assert found["u_grad"] == 1.0 and not found["x_grad"].any()


LIMITS: list[tuple[str, str, dict[str, Array], Array]] = [
    ("Exp(%x)", "float64", {"x": np.array([100.0, 1.0])}, np.exp([100.0, 1.0])),
    ("Sqrt(%x)", "float64", {"x": np.array([1e-90, 4.0])}, np.array([0.5e45, 0.25])),
]


@pytest.mark.parametrize(("formula", "dtype", "feeds", "right"), LIMITS, ids=[c[0] for c in LIMITS])
def test_limits_of_a_type_go_with_the_type(formula: str, dtype: str, feeds: dict[str, Array], right: Array) -> None:
    model = text(f"graph @g (%x: f32[2]) -> (%z: f32[]) {{ %y: f32[2] = {formula} %z: f32[] = ReduceSum(%y) {{keepdims=0}} }}")
    found = fg.grad(model, "z", "x").astype(dtype)(feeds)["x_grad"]
    np.testing.assert_allclose(found, right, rtol=1e-14)


def test_masks_of_a_type_go_with_the_type() -> None:
    model = text("""graph @g (%x: f32[2], %m: bool[2]) -> (%y: f32[2]) {
        %s: f32[2] = Where(%m, %x, f32(-3.4028235e38))
        %y: f32[2] = Softmax(%s) }""")
    found = model.astype("float16")(x=np.array([1, 2], np.float16), m=np.array([False, False]))["y"]
    np.testing.assert_array_equal(found, [0.5, 0.5])


# ---- loops without iterations ---------------------------------------------------------------------------------------------


def powers() -> Model:
    """q_t = w x^t for t < trips, s = w x^trips; z = sum(q) + sum(s)."""
    return text("""graph @g (%x: f64[n], %trips: i64[]) -> (%z: f64[], %q: f64[m,3])
        initializers (%w: f64[3] = [1, 2, 3]) {
        %s: f64[3], %q: f64[m,3] = Loop(%trips, bool(true), %w) captures (%x)
          body = graph @b (%i: i64[], %c: bool[], %s0: f64[*], %x: f64[n]) -> (%c1: bool[], %s1: f64[n], %y: f64[3]) {
            %c1: bool[] = Identity(%c)
            %s1: f64[n] = Mul(%s0, %x)
            %y: f64[3] = Identity(%s0) }
        %a: f64[] = ReduceSum(%q) {keepdims=0}
        %b: f64[] = ReduceSum(%s) {keepdims=0}
        %z: f64[] = Add(%a, %b) }""")


@transformed
@pytest.mark.parametrize("trips", [0, 1, 3])
def test_loops_keep_their_types_and_gradients_over_any_number_of_iterations(
    transform: Callable[[Model], Model], trips: int
) -> None:
    model, feeds = transform(powers()), {"x": np.full(3, 2.0), "trips": np.array(trips)}
    assert model(feeds)["q"].shape == (trips, 3)
    found = fg.grad(model, "z", ["x", "w"])(feeds)
    t, w = np.arange(trips + 1), np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(found["w_grad"], np.full(3, np.sum(2.0**t)), rtol=1e-15)
    np.testing.assert_allclose(found["x_grad"], w * np.sum(t * 2.0 ** (t - 1)), rtol=1e-15)


def test_a_loop_without_condition_whose_state_nobody_needs_is_exported() -> None:
    model = text("""graph @g (%x: f64[2], %n: i64[]) -> (%y: f64[p,2]) {
        %s: f64[2], %y: f64[p,2] = Loop(%n, _, %x)
          body = graph @b (%i: i64[], %c: bool[], %s0: f64[2]) -> (%c1: bool[], %s1: f64[2], %r: f64[2]) {
            %c1: bool[] = Identity(%c)
            %s1: f64[2] = Identity(%s0)
            %r: f64[2] = Cos(%s0) } }""")
    again = fg.load(model.to_onnx())
    feeds = {"x": np.array([0.0, 1.0]), "n": np.array(2)}
    np.testing.assert_array_equal(again(feeds)["y"], np.tile(np.cos(feeds["x"]), (2, 1)))
