"""with_loss: each loss against its formula in NumPy, its derivative against what the formula says, and its refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Array

RNG = np.random.default_rng(3)
CLASSES = 5
SCORES = 2 * RNG.standard_normal((4, CLASSES, 3))
LABELS = RNG.integers(0, CLASSES, (4, 3))
SHARES = RNG.random((4, CLASSES, 3)) / 3
CLASS_WEIGHTS = RNG.random(CLASSES) + 0.1
NUMBERS, TARGETS = RNG.standard_normal((2, 6, 4))
SIGNS = np.sign(TARGETS)
POSITIVE = (TARGETS > 0).astype(np.float64)


def identity(shape: tuple[int, ...], ending: str = "Identity(%x)") -> fg.Model:
    type_ = f"f64[{','.join(map(str, shape))}]"
    return fg.load(f"graph @g (%x: {type_}) -> (%y: {type_}) {{\n  %y: {type_} = {ending}\n}}".encode())


def log_softmax(y: Array, axis: int = 1) -> Array:
    shifted = y - y.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def softplus(y: Array) -> Array:
    return np.logaddexp(0, y)


def picked(weights: Array | None = None, ignored: int | None = None, smoothing: float = 0.0) -> tuple[Array, Array]:
    """Return the loss of each label and its weight."""
    log_prob = log_softmax(SCORES)
    share = np.ones(CLASSES) if weights is None else weights
    kept = np.ones(LABELS.shape) if ignored is None else ignored != LABELS
    w = share[LABELS] * kept
    hard = -np.take_along_axis(log_prob, LABELS[:, None], 1)[:, 0] * w
    soft = -(log_prob * share[:, None]).mean(1) * kept
    return (1 - smoothing) * hard + smoothing * soft, w


def huber(d: Array, delta: float) -> Array:
    return np.where(np.abs(d) <= delta, d * d / 2, delta * (np.abs(d) - delta / 2))


ELEMENTWISE = [
    ("mean_squared_error", {}, TARGETS, (NUMBERS - TARGETS) ** 2, 2 * (NUMBERS - TARGETS)),
    ("mean_absolute_error", {}, TARGETS, np.abs(NUMBERS - TARGETS), np.sign(NUMBERS - TARGETS)),
    ("huber", {"delta": 0.7}, TARGETS, huber(NUMBERS - TARGETS, 0.7), np.clip(NUMBERS - TARGETS, -0.7, 0.7)),
    ("hinge", {}, SIGNS, np.maximum(0, 1 - SIGNS * NUMBERS), -SIGNS * (SIGNS * NUMBERS < 1)),
    ("poisson", {}, POSITIVE, np.exp(NUMBERS) - POSITIVE * NUMBERS, np.exp(NUMBERS) - POSITIVE),
    ("sigmoid_cross_entropy", {}, POSITIVE, softplus(NUMBERS) - POSITIVE * NUMBERS, 1 / (1 + np.exp(-NUMBERS)) - POSITIVE),
    ("sigmoid_cross_entropy", {"weights": 3.0}, POSITIVE,
     3 * POSITIVE * softplus(-NUMBERS) + (1 - POSITIVE) * softplus(NUMBERS),
     (1 - POSITIVE) / (1 + np.exp(-NUMBERS)) - 3 * POSITIVE / (1 + np.exp(NUMBERS))),
]


@pytest.mark.parametrize(("loss", "options", "target", "value", "slope"), ELEMENTWISE)
def test_losses_of_numbers(loss: str, options: dict[str, Any], target: Array, value: Array, slope: Array) -> None:
    reduce: dict[str, Any] = {"none": lambda a: a, "sum": np.sum, "mean": np.mean}
    for reduction, function in reduce.items():
        model = fg.with_loss(identity((6, 4)), loss, reduction=reduction, **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(model(x=NUMBERS, target=target)["loss"], function(value), rtol=1e-12)
    model = fg.grad(fg.with_loss(identity((6, 4)), loss, reduction="sum", **options), of="loss", wrt="x")
    np.testing.assert_allclose(model(x=NUMBERS, target=target)["x_grad"], slope, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("ignored", [None, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_labels(weights: Array | None, ignored: int | None, smoothing: float) -> None:
    each, shares = picked(weights, ignored, smoothing)
    expected = {"none": each, "sum": each.sum(), "mean": each.sum() / shares.sum()}
    for reduction, value in expected.items():
        model = fg.with_loss(identity((4, CLASSES, 3)), "softmax_cross_entropy", reduction=reduction,  # type: ignore[arg-type]
                             weights=weights, ignore_index=ignored, label_smoothing=smoothing)
        np.testing.assert_allclose(model(x=SCORES, target=LABELS)["loss"], value, rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_the_classes_lie_along_any_axis(axis: int) -> None:
    scores = np.moveaxis(SCORES, 1, axis)
    model = fg.with_loss(identity(scores.shape), "softmax_cross_entropy", axis=axis, reduction="none")
    np.testing.assert_allclose(model(x=scores, target=LABELS)["loss"], picked()[0], rtol=1e-12)


def test_one_example_has_a_vector_of_scores_and_one_label() -> None:
    model = fg.grad(fg.with_loss(identity((CLASSES,)), "softmax_cross_entropy"), of="loss", wrt="x")
    scores, label = SCORES[0, :, 0], LABELS[0, 0]
    expected = np.exp(log_softmax(scores, 0)) - np.eye(CLASSES)[label]
    np.testing.assert_allclose(model(x=scores, target=label)["x_grad"], expected, rtol=1e-12)


def test_cross_entropy_of_probabilities() -> None:
    smooth = 0.9 * SHARES + 0.1 / CLASSES
    each = -(smooth * CLASS_WEIGHTS[:, None] * log_softmax(SCORES)).sum(1)
    model = fg.with_loss(identity(SCORES.shape), "softmax_cross_entropy", labels="probabilities", weights=CLASS_WEIGHTS,
                         label_smoothing=0.1)
    np.testing.assert_allclose(model(x=SCORES, target=SHARES)["loss"], each.mean(), rtol=1e-12)


def test_divergence_of_probabilities_some_of_which_are_zero() -> None:
    shares = SHARES.copy()
    shares[0, 0] = 0
    own = np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0)
    model = fg.with_loss(identity(SCORES.shape), "kl_divergence", reduction="none")
    result = fg.vjp(model, of="loss", wrt=["x", "target"])(x=SCORES, target=shares, loss_grad=np.ones((4, 3)))
    np.testing.assert_allclose(result["loss"], (own - shares * log_softmax(SCORES)).sum(1), rtol=1e-12)
    assert np.isfinite(result["target_grad"]).all()


def test_sum_of_squares_is_one_number_per_example() -> None:
    model = fg.with_loss(identity((6, 4)), "sum_of_squares", reduction="none")
    np.testing.assert_allclose(model(x=NUMBERS, target=TARGETS)["loss"], ((NUMBERS - TARGETS) ** 2).sum(1) / 2, rtol=1e-12)


def test_gaussian_takes_a_variance_from_the_model() -> None:
    text = b"""graph @g (%x: f64[6,4]) -> (%y: f64[6,4], %v: f64[6,4]) {
  %y: f64[6,4] = Identity(%x)
  %v: f64[6,4] = Exp(%x)
}"""
    model = fg.with_loss(fg.load(text), "gaussian", output="y", variance="v", reduction="none")
    variance = np.exp(NUMBERS)
    expected = (np.log(variance) + (NUMBERS - TARGETS) ** 2 / variance) / 2
    np.testing.assert_allclose(model(x=NUMBERS, target=TARGETS)["loss"], expected, rtol=1e-12)


def test_a_model_can_be_the_loss() -> None:
    text = b"""graph @loss (%a: f64[N,4], %wanted: f64[N,4], %scale: f64[]) -> (%e: f64[N,4]) {
  %d: f64[N,4] = Sub(%a, %wanted)
  %e: f64[N,4] = Mul(%d, %scale)
}"""
    model = fg.with_loss(identity((6, 4)), fg.load(text))
    result = model(x=NUMBERS, wanted=TARGETS, scale=np.float64(2))
    np.testing.assert_allclose(result["loss"], 2 * (NUMBERS - TARGETS).mean(), rtol=1e-12)
    assert [i.name for i in model.inputs] == ["x", "wanted", "scale"]


def test_weights_can_be_an_input() -> None:
    model = fg.with_loss(identity(SCORES.shape), "softmax_cross_entropy", weights="w")
    each, shares = picked(CLASS_WEIGHTS)
    np.testing.assert_allclose(model(x=SCORES, target=LABELS, w=CLASS_WEIGHTS)["loss"], each.sum() / shares.sum(), rtol=1e-12)


def test_float16_scores_count_more_labels_than_float16_counts() -> None:
    model = fg.with_loss(fg.load(b"graph @g (%x: f16[N,2]) -> (%y: f16[N,2]) {\n  %y: f16[N,2] = Identity(%x)\n}"),
                         "softmax_cross_entropy", label_smoothing=0.5)
    loss = model(x=np.zeros((70_000, 2), np.float16), target=np.zeros(70_000, np.int64))["loss"]
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-3)


@pytest.mark.parametrize(("ending", "loss"), [
    ("Softmax(%x) {axis=1}", "softmax_cross_entropy"), ("Sigmoid(%x)", "sigmoid_cross_entropy"),
    ("Softmax(%x) {axis=1}", "kl_divergence"), ("Sigmoid(%x)\n  %z: f32[6,4] = Cast(%y) {to=1}", "sigmoid_cross_entropy"),
])
def test_what_went_through_the_same_function_is_refused_and_the_logits_are_named(ending: str, loss: str) -> None:
    with pytest.raises(InputError, match="give it the logits, output='x'"):
        fg.with_loss(identity((6, 4), ending), loss, output="z" if "%z" in ending else None)


@pytest.mark.parametrize("divisor", ["ReduceSum(%a, [-1])", "ReduceSum(%p, [-1])", "ReduceL1(%p, [-1])"])
def test_probabilities_that_were_divided_by_their_sum_are_refused(divisor: str) -> None:
    model = fg.load(f"""graph @g (%x: f32[N,3]) -> (%y: f32[N,3]) {{
        %p: f32[N,3] = Softmax(%x) {{axis=-1}}
        %a: f32[N,3] = Abs(%p)
        %s: f32[N,1] = {divisor} {{keepdims=1}}
        %zero: bool[N,1] = Equal(%s, 0.0)
        %d: f32[N,1] = Where(%zero, 1.0, %s)
        %q: f32[N,3] = Div(%p, %d)
        %y: f32[N,3] = Identity(%q)
    }}""".encode())
    with pytest.raises(InputError, match="give it the logits, output='x'"):
        fg.with_loss(model, "softmax_cross_entropy")


@pytest.mark.parametrize("body", [
    "%e: f32[N,3] = Exp(%x) %s: f32[N,1] = ReduceSum(%e, [-1]) {keepdims=1} %y: f32[N,3] = Div(%e, %s)",
    "%m: f32[N,1] = ReduceMax(%x, [-1]) {keepdims=1} %c: f32[N,3] = Sub(%x, %m) %e: f32[N,3] = Exp(%c) "
    "%s: f32[N,1] = ReduceSum(%e, [-1]) {keepdims=1} %r: f32[N,1] = Reciprocal(%s) %y: f32[N,3] = Mul(%r, %e)",
    "%p: f32[N,3] = Softmax(%x) %y: f32[N,3] = LpNormalization(%p) {p=1, axis=-1}",
    "%p: f32[N,3] = Softmax(%x) %s: f32[N,1] = ReduceL1(%p, [-1]) {keepdims=1} %d: f32[N,1] = Clip(%s, 1e-12) %y: f32[N,3] = Div(%p, %d)",
    "%p: f32[N,3] = Softmax(%x) %s: f32[N,1] = ReduceSum(%p, [-1]) {keepdims=1} %d: f32[N,1] = Add(%s, 1e-8) %y: f32[N,3] = Div(%p, %d)",
    "%p: f32[N,3] = Softmax(%x) %s: f32[N,1] = ReduceSum(%p, [-1]) {keepdims=1} %d: f32[N,1] = Max(1e-8, %s) %y: f32[N,3] = Div(%p, %d)",
    "%p: f32[N,3] = Softmax(%x) %y: f32[N,3] = Clip(%p, 1e-7, 0.9999999)",
    "%n: f32[N,3] = Neg(%x) %e: f32[N,3] = Exp(%n) %a: f32[N,3] = Add(1.0, %e) %y: f32[N,3] = Reciprocal(%a)",
    "%n: f32[N,3] = Neg(%x) %e: f32[N,3] = Exp(%n) %a: f32[N,3] = Add(%e, 1.0) %y: f32[N,3] = Div(1.0, %a)",
], ids=["quotient", "shifted", "norm", "clipped", "guarded", "maximum", "bounds", "reciprocal", "logistic"])
def test_a_softmax_and_a_sigmoid_are_known_however_they_are_written(body: str) -> None:
    model = fg.load(f"graph @g (%x: f32[N,3]) -> (%y: f32[N,3]) {{ {body} }}".encode())
    with pytest.raises(InputError, match="give it the logits, output='x'"):
        fg.with_loss(model, "softmax_cross_entropy")


@pytest.mark.parametrize("body", [
    "%e: f32[N,3] = Exp(%x) %y: f32[N,3] = Identity(%e)",
    "%p: f32[N,3] = Softmax(%x) %y: f32[N,3] = LpNormalization(%p) {p=2, axis=-1}",
    "%p: f32[N,3] = Softmax(%x) %y: f32[N,3] = Log(%p)",
    "%y: f32[N,3] = LogSoftmax(%x)",
    "%e: f32[N,3] = Exp(%x) %a: f32[N,3] = Add(%e, 1.0) %y: f32[N,3] = Reciprocal(%a)",
])
def test_other_scores_are_taken(body: str) -> None:
    model = fg.load(f"graph @g (%x: f32[N,3]) -> (%y: f32[N,3]) {{ {body} }}".encode())
    assert fg.with_loss(model, "softmax_cross_entropy").outputs[-1].name == "loss"


def test_a_quotient_of_other_things_is_no_share() -> None:
    model = fg.load(b"""graph @g (%x: f32[N,3]) -> (%y: f32[N,3]) {
        %p: f32[N,3] = Softmax(%x) {axis=-1}
        %s: f32[N,1] = ReduceSum(%x, [-1]) {keepdims=1}
        %y: f32[N,3] = Div(%p, %s)
    }""")
    assert fg.with_loss(model, "softmax_cross_entropy").outputs[-1].name == "loss"


def test_an_inner_value_gives_its_name_to_the_target() -> None:
    model = fg.load(b"""graph @g (%x: f32[N,3]) -> (%y: f32[N,3], %c: i64[N]) {
        %y: f32[N,3] = Identity(%x)
        %label: i64[N] = ArgMax(%x) {axis=1, keepdims=0}
        %c: i64[N] = Identity(%label)
    }""")
    made = fg.with_loss(model, "softmax_cross_entropy", output="y", target="label")
    assert [v.name for v in made.inputs] == ["x", "label"]
    found = made(x=np.zeros((2, 3), np.float32), label=np.array([2, 1]))
    assert found["c"].tolist() == [0, 0] and np.isclose(found["loss"], np.log(3))
    assert [v.name for v in fg.grad(model, fg.pick("y", index="label"), "x").inputs] == ["x", "label"]


@pytest.mark.parametrize(("arguments", "said"), [
    ({"loss": "softmax_crossentropy"}, "did you mean 'softmax_cross_entropy'"),
    ({"loss": "huber", "weights": 2.0}, "these do: sigmoid_cross_entropy, softmax_cross_entropy"),
    ({"loss": "huber", "delta": 0.0}, "delta is above 0"),
    ({"loss": "huber", "reduction": "average"}, "reduction is 'mean', 'sum', 'none'"),
    ({"loss": "huber", "output": "z"}, "no output, value or node 'z'"),
    ({"loss": "softmax_cross_entropy", "axis": 2}, "no axis 2 of classes"),
    ({"loss": "softmax_cross_entropy", "weights": [1.0, 2.0]}, "there are 4 classes"),
    ({"loss": "softmax_cross_entropy", "labels": "one_hot"}, "labels are 'indices' or 'probabilities'"),
    ({"loss": "softmax_cross_entropy", "label_smoothing": 2.0}, "label_smoothing is from 0 to 1"),
    ({"loss": "gaussian"}, "needs variance="),
])
def test_wrong_calls_say_the_way_out(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fg.with_loss(identity((6, 4)), **arguments)


def test_a_loss_of_integers_is_refused() -> None:
    model = fg.load(b"graph @g (%x: f32[N]) -> (%y: i64[N]) {\n  %y: i64[N] = Cast(%x) {to=7}\n}")
    with pytest.raises(InputError, match="0 float outputs"):
        fg.with_loss(model, "huber")
    with pytest.raises(InputError, match="a loss takes floats"):
        fg.with_loss(model, "huber", output="y")
