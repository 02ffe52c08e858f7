"""Calls as new users write them: each works, or its message names the right call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.errors import InputError, LoadError, SaveError

TEXT = b"graph @g (%a: f32[2], %b: f32[2]) -> (%y: f32[]) { %m: f32[2] = Mul(%a, %b) %y: f32[] = ReduceSum(%m) {keepdims=0} }"
A, B = np.array([1, 2], np.float32), np.array([3, 4], np.float32)


@pytest.fixture
def model() -> fg.Model:
    return fg.load(TEXT)


def test_a_model_is_called_with_a_dict_with_keywords_or_in_order(model: fg.Model) -> None:
    for outputs in (model({"a": A, "b": B}), model(a=A, b=B), model(A, B), model(A, b=B),
                    model({"a": A}, b=B)):
        assert outputs["y"] == 11
    assert fg.grad(model)(A, B)["a_grad"].tolist() == [3, 4]


WRONG: list[tuple[Callable[[fg.Model], Any], str]] = [
    (lambda m: m(A, B, A), r"its inputs \(a, b\) in this order; got 3"),
    (lambda m: m({"a": A}, B), "takes one dict, or arrays"),
    (lambda m: m(A), "no value given for input 'b'"),
    (lambda m: m(a=A, b=None), "input 'b' is None"),
    (lambda m: m.compile().run({"a": A, "b": None}), r"input 'b' is None; f32\[2\] is expected"),
    (lambda m: m(A, [1.0, None]), r"input 'b' holds None; f32\[2\] is expected"),
    (lambda m: m(A, {1: 2}), "takes one dict, or arrays"),
    (lambda m: m(a=A, b={1: 2}), r"input 'b' is an object of type dict; f32\[2\] is expected"),
    (lambda m: m(A, [[1.0], [1.0, 2.0]]), "input 'b' is no array: .*inhomogeneous"),
    (lambda m: m(A, np.array(["1", "2"])), "input 'b' is string, expected float32"),
    (lambda m: m(A, np.array(["2020-01-01"] * 2, "M8[D]")), "input 'b' is datetime64"),
    (lambda m: m(A.astype(np.int8), B), r"input 'a' is int8, expected float32; convert it with .astype\('float32'\)"),
    (lambda m: fg.grad("model.onnx"), r"takes a Model, not str: load it first"),  # type: ignore[arg-type]
    (lambda m: fg.grad(m, 0), r"take names, not int"),  # type: ignore[arg-type]
    (lambda m: fg.grad(m, "y", 0), r"take names, not int"),  # type: ignore[arg-type]
    (lambda m: fg.vjp(m, A), r"take names, not ndarray: a transform makes a model, and feeds go to that"),  # type: ignore[arg-type]
    (lambda m: fg.jvp(m, wrt=A), r"take names, not ndarray"),  # type: ignore[arg-type]
    (lambda m: fg.grad(m, "y", "a", keep=3), r"take names, not int"),  # type: ignore[arg-type]
    (lambda m: fg.grad(m, "y", "A"), "did you mean 'a'"),
    (lambda m: fg.grad(m, "y", "param"), "did you mean 'params'"),
    (lambda m: m({"A": A, "b": B}), "did you mean 'a'"),
    (lambda m: fg.grad(m, "y", "a", zero="bogus"), "zero is 'error' or 'allow', got 'bogus'"),  # type: ignore[arg-type]
    (lambda m: fg.override_adjoint(m, fg.guided), "needs op= or names="),
    (lambda m: fg.override_adjoint(m, "guided", op="Mul"), "an adjoint rule is a function"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_a_wrong_call_names_the_right_one(model: fg.Model, call: Callable[[fg.Model], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(model)


def test_what_is_fed_for_texts_are_texts() -> None:
    model = fg.load(b"graph @g (%x: str[2]) -> (%y: str[2]) { %y: str[2] = Identity(%x) }")
    assert list(model(["a", "b"])["y"]) == list(model(np.array(["a", "b"], object))["y"]) == ["a", "b"]
    for wrong, message in (([1, 2], "holds numbers of type int64"), (["a", None], "holds None"), ([True], "holds numbers of type bool")):
        with pytest.raises(InputError, match=rf"input 'x' {message}.*; str\[2\] is expected"):
            model(np.array(wrong, object) if None in wrong else wrong)


def test_a_msgpack_file_is_not_called_onnx(model: fg.Model, tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="use to_onnx"):
        model.save(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_printed_text_taken_for_a_path_is_explained(model: fg.Model) -> None:
    with pytest.raises(LoadError, match="loaded as bytes"):
        fg.load(str(model))
    assert fg.load(str(model).encode()).outputs == model.outputs


UNTYPED: Any = fg
"""The calls, as one who does not look at types makes them."""


@pytest.mark.parametrize("call", [
    lambda m: UNTYPED.vmap(m, {0: 0}), lambda m: UNTYPED.vmap(m, 0, {None: 0}), lambda m: UNTYPED.hessian(m, of=[]), lambda m: UNTYPED.jacobian(m, of=[]),
    lambda m: UNTYPED.hessian(m, of=["loss", "loss"]), lambda m: m.with_params(3), lambda m: UNTYPED.with_loss(m, 3, output="logits"),
    lambda m: UNTYPED.with_loss(m, ["huber"], output="logits"), lambda m: UNTYPED.extract(m, "hidden", {"a": 1}), lambda m: UNTYPED.extract(m, [3]),
    lambda m: UNTYPED.inverse_outer_product(m, "logits", "w1", damping="a"),
    lambda m: UNTYPED.inverse_outer_product(m, "logits", "w1", damping=True),
    lambda m: UNTYPED.inverse_outer_product(m, "logits", "w1", damping=float("inf")),
], ids=range(13))
def test_arguments_of_wrong_kinds_are_typed_errors(call: Callable[[Any], object]) -> None:
    with pytest.raises(InputError):
        call(fg.load("tests/data/mlp.onnx"))
