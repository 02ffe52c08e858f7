"""Kinds of attributes, as the annotations of a kernel's keyword-only parameters state them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_INT64 = 2**63


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and -_INT64 <= value < _INT64


def _is_float(value: Any) -> bool:
    return isinstance(value, float) or _is_int(value)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_SINGLE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (_is_int, "a 64-bit integer"), "float": (_is_float, "a float"), "str": (_is_text, "text"),
    "Array": (_is_array, "an array"),
}


def kind_conflict(annotation: Any, value: Any) -> str:
    """Return what a parameter annotated so expects, if ``value`` is nothing of the kind; else an empty string.

    Annotations other than ``int``, ``float``, ``str``, ``Array``, sequences of these and ``| None`` allow anything.
    """
    kind = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    if kind.endswith(" | None"):
        if value is None:
            return ""
        kind = kind.removesuffix(" | None")
    if kind in _SINGLE:
        fits, expected = _SINGLE[kind]
        return "" if fits(value) else expected
    item = kind.removeprefix("Sequence[").removesuffix("]")
    if item == kind or item not in _SINGLE:
        return ""
    fits, expected = _SINGLE[item]
    return "" if isinstance(value, (tuple, list)) and all(fits(x) for x in value) else f"a list, each of it {expected}"
