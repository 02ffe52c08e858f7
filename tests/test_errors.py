"""Errors: codes, places, and text that is safe to show."""

from __future__ import annotations

import inspect
import unicodedata

import hypothesis.strategies as st
import pytest
from hypothesis import given

from flowgrad.ir import errors
from flowgrad.ir.errors import FlowgradError, InputError, UnsupportedError, ValidationError, safe_text, suggestion

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, FlowgradError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_every_error_has_code_place_and_exit_code(kind: type[FlowgradError]) -> None:
    error = kind("what went wrong", where="%y = Neg(%x)")
    assert error.code == kind.__name__
    assert str(error) == "what went wrong\n  at %y = Neg(%x)"
    assert error.exit_code in range(2, 9)
    assert kind("x", code="finer").code == "finer"


def test_errors_are_what_python_code_expects() -> None:
    assert issubclass(UnsupportedError, NotImplementedError)
    assert issubclass(InputError, ValueError)
    assert not issubclass(ValidationError, ValueError)


@given(st.text(max_size=400))
def test_shown_text_has_no_character_that_acts(text: str) -> None:
    shown = safe_text(text)
    assert len(shown) <= 300
    assert all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") for c in shown)


@pytest.mark.parametrize("evil", ["\x1b[31m", "\u202e", "\u2066", "\x07", "\r", "\x7f", "\x9b", "\ud800", "\u200f"])
def test_evil_characters_are_spelt_out(evil: str) -> None:
    error = ValidationError(f"a{evil}b", where=evil)
    assert evil[0] not in str(error)
    assert f"\\u{ord(evil[0]):04x}" in str(error)


def test_long_messages_are_cut() -> None:
    assert len(str(ValidationError("x" * 10_000))) == errors.MESSAGE_LIMIT
    assert safe_text("abc", 3) == "abc"
    assert safe_text("abcd", 3) == "ab…"


def test_suggestions_name_the_nearest() -> None:
    assert suggestion("Sotfmax", ["Softmax", "Relu"]) == "; did you mean 'Softmax'?"
    assert suggestion("xyz", ["Softmax"]) == ""
