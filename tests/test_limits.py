"""The limits object itself; what each reader does with it is tested with the reader."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields

import pytest

from flowgrad.ir.errors import InputError, LimitError
from flowgrad.ir.limits import Limits, limits_or_default

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
