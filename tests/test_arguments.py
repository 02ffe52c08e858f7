"""Arguments of the wrong kind are told by name, whatever they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.errors import FlowgradError, InputError

LOSS = fg.load(b"graph @g (%x: f64[3]) -> (%s: f64[]) { %y: f64[3] = Sin(%x)  %s: f64[] = ReduceSum(%y) {keepdims=0} }")
WAVE = fg.load(b"graph @g (%x: f64[4,3]) -> (%y: f64[4,3]) { %y: f64[4,3] = Sin(%x) }")

STRANGE = [object(), np.zeros(3), {"zz": 1}, [[]], b"a", float("nan"), -1, lambda: 0]
"""No name, number, word or model that anything takes, some of them without a truth value or a hash."""

CALLS: dict[str, Callable[[Any], Any]] = {
    **{f"{f.__name__} {name}": lambda given, f=f, name=name: f(LOSS, **{name: given})  # type: ignore[misc]
       for f in (fg.grad, fg.value_and_grad, fg.vjp, fg.jvp, fg.hvp, fg.jacobian, fg.hessian) for name in ("of", "wrt", "zero")},
    **{f"{f.__name__} seeds": lambda given, f=f: f(LOSS, seeds=given) for f in (fg.vjp, fg.jvp, fg.hvp)},  # type: ignore[misc]
    **{f"{f.__name__} {name}": lambda given, f=f, name=name: f(LOSS, **{name: given})  # type: ignore[misc]
       for f in (fg.jacobian, fg.hessian) for name in ("chunk_size", "sparse", "keep")},
    "jacobian mode": lambda given: fg.jacobian(WAVE, mode=given),
    "hessian diagonal": lambda given: fg.hessian(LOSS, diagonal=given),
    "gauss_newton at": lambda given: fg.gauss_newton(LOSS, wrt="x", at=given),
    "fisher of": lambda given: fg.fisher(WAVE, of=given, wrt="x"),
    "fisher link": lambda given: fg.fisher(WAVE, of="y", wrt="x", link=given),
    "fisher zero": lambda given: fg.fisher(WAVE, of="y", wrt="x", zero=given),
    "outer_product of": lambda given: fg.outer_product(WAVE, of=given, wrt="x"),
    "inverse_outer_product damping": lambda given: fg.inverse_outer_product(WAVE, "y", "x", damping=given),
    "vmap model": fg.vmap,
    "vmap randomness": lambda given: fg.vmap(WAVE, randomness=given),
    "vmap axis": lambda given: fg.vmap(WAVE, {"x": given if given != -1 else 9} if isinstance(given, int) else {"x": given}),
    "unbatch model": fg.unbatch,
    "unbatch axis": lambda given: fg.unbatch(WAVE, 5 if isinstance(given, int) else given),
    "checkpoint policy": lambda given: fg.checkpoint(fg.grad(LOSS), given),
    "pick index": lambda given: fg.grad(WAVE, fg.pick("y", cast(Any, 1.5) if isinstance(given, int) else given)),
    "stop_gradient model": lambda given: fg.stop_gradient(given, "y"),
    "compose wires": lambda given: fg.compose(WAVE, LOSS, given),
    "compose second": lambda given: fg.compose(WAVE, given, {"y": "x"}),
    "train_step optimizer": lambda given: fg.train_step(LOSS, given, wrt="x"),
    "train_step frozen": lambda given: fg.train_step(LOSS, wrt="x", frozen=given),
    "gradcheck modes": lambda given: fg.gradcheck(LOSS, {"x": np.ones(3)}, modes=given),
    "gradcheck inputs": lambda given: fg.gradcheck(LOSS, given),
    "gradcheck eps": lambda given: fg.gradcheck(LOSS, {"x": np.ones(3)}, eps=given),
    "compile threads": lambda given: LOSS.compile(threads=given),
    "compile engine": lambda given: LOSS.compile(engine=given),
    "optimized": lambda given: LOSS.optimized(given),
    "astype": lambda given: LOSS.astype(given),
    "VectorFunction sparse": lambda given: fg.VectorFunction(WAVE, sparse=given),
}


@pytest.mark.parametrize("call", CALLS)
def test_strange_arguments_are_told(call: str) -> None:
    for given in STRANGE:
        with pytest.raises(FlowgradError):
            CALLS[call](given)


@pytest.mark.parametrize("call", [
    lambda: fg.vjp(LOSS, of=["s", "s"]), lambda: fg.fisher(WAVE, of=["y", "y"], wrt="x"),
    lambda: fg.jacobian(WAVE, of=["y", "y"]),
    lambda: fg.gauss_newton(LOSS, wrt="x", at=["y", "y"]),
])
def test_what_is_differentiated_twice_is_told(call: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match="twice"):
        call()


@pytest.mark.parametrize("call", [
    lambda: fg.gauss_newton(LOSS, wrt="x", at=[]), lambda: fg.fisher(WAVE, of=[], wrt="x"), lambda: fg.jacobian(WAVE, of=[]),
    lambda: fg.outer_product(WAVE, of=[], wrt="x"), lambda: fg.vjp(WAVE, of=()), lambda: fg.jvp(WAVE, of=[]),
])
def test_nothing_to_differentiate_is_told(call: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match="empty: name what is to be differentiated"):
        call()


def test_two_names_of_one_value_count_once_in_a_gauss_newton_product() -> None:
    model = fg.load(b"""graph @g (%x: f64[3]) -> (%s: f64[], %a = %y: f64[3], %b = %y: f64[3]) {
        %y: f64[3] = Sin(%x)
        %z: f64[3] = Mul(%y, %y)
        %s: f64[] = ReduceSum(%z) {keepdims=0}
    }""")
    feeds = {"x": np.array([0.5, 1.0, 2.0]), "x_tangent": np.ones(3)}
    once, twice = (fg.gauss_newton(model, "s", "x", at=at)(feeds)["x_ggn"] for at in ("a", ["a", "b"]))
    np.testing.assert_allclose(once, 2 * np.cos(feeds["x"])**2, rtol=1e-12)
    np.testing.assert_array_equal(twice, once)
