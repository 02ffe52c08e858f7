"""The limits object itself; what each reader does with it is tested with the reader."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, LimitError
from flowgrad.ir.graph import Graph
from flowgrad.ir.limits import Limits, limits_or_default
from flowgrad.ir.types import BOOL, FLOAT32, INT64, Type
from flowgrad.model import Model

NAMES = [f.name for f in fields(Limits)]


@pytest.mark.parametrize("name", NAMES)
def test_each_limit_holds_at_its_value_and_not_one_above(name: str) -> None:
    limits = Limits(**{name: 7})
    limits.check(name, 7)
    with pytest.raises(LimitError, match=f"{name} is 8, the limit is 7") as caught:
        limits.check(name, 8, "here")
    assert caught.value.code == name
    assert caught.value.where == "here"
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", NAMES)
def test_strict_is_never_above_default_nor_default_above_unlimited(name: str) -> None:
    strict, default = getattr(Limits.strict(), name), getattr(Limits.default(), name)
    assert strict <= default <= getattr(Limits.unlimited(), name)


def test_huge_values_are_named() -> None:
    with pytest.raises(LimitError, match="more than"):
        Limits().check("tensor_bytes", 10**5000)


@pytest.mark.parametrize("wrong", [-1, math.nan, "7", None, True])
def test_a_limit_is_a_number(wrong: object) -> None:
    with pytest.raises(InputError, match="nodes"):
        Limits(nodes=wrong)  # type: ignore[arg-type]


def test_limits_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Limits().nodes = 1  # type: ignore[misc]
    assert limits_or_default(None) == Limits.default()
    assert limits_or_default(Limits.strict()) == Limits.strict()


@pytest.mark.parametrize(("text", "expected"), [
    ("wall_seconds=1.5,live_bytes=2GiB", Limits(wall_seconds=1.5, live_bytes=2**31)), ("default", Limits()),
    ("strict, loop_steps=1e3", replace(Limits.strict(), loop_steps=1000)), ("unlimited", Limits.unlimited()),
])
def test_limits_are_read_from_text(text: str, expected: Limits) -> None:
    assert Limits.parse(text) == expected


@pytest.mark.parametrize(("text", "match"), [
    ("strikt", "did you mean 'strict'"), ("wall_second=1", "did you mean 'wall_seconds'"), ("nodes=many", "no number"),
    ("nodes=-1", "at least 0"), ("nodes=5,strict", "no limit 'strict'"), ("nodes", "no limits called 'nodes'"),
])
def test_limits_that_are_misspelt_are_named(text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Limits.parse(text)


def endless(steps: int) -> Model:
    """y = 2^steps x, in a loop whose condition stays."""
    graph, body = Graph("endless"), Graph("body")
    body.add_input("i", Type(INT64, ()))
    going, state = body.add_input("going", Type(BOOL, ())), body.add_input("state", Type(FLOAT32, ()))
    body.add_output(going, "stays")
    body.add_output(Builder(body).Add(state, state), "twice")
    x = graph.add_input("x", Type(FLOAT32, ()))
    graph.add_output(Builder(graph).add("Loop", [np.int64(steps), None, x], subgraphs={"body": body}), "y")
    return Model(graph)


def test_a_loop_that_is_sure_to_pass_the_limit_does_not_start() -> None:
    model = endless(10**15)
    with pytest.raises(LimitError, match=r"loop_steps is 1,000,000,000,000,000, .* --limits loop_steps"):
        model(x=np.float32(1))
    assert endless(5)(x=np.float32(1))["y"] == 32
