"""What users pass is of the kind that is asked for, or an InputError says what that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from flowgrad.ir.errors import InputError


def is_word(given: object, words: Iterable[str]) -> bool:
    """Return whether ``given`` is one of ``words``, whatever it is."""
    return isinstance(given, str) and given in words


def is_whole(given: object) -> bool:
    """Return whether ``given`` is a whole number, which a truth value is not."""
    return isinstance(given, (int, np.integer)) and not isinstance(given, bool)


def check_flag(name: str, given: object) -> None:
    """Raise InputError unless the argument ``name`` is True or False."""
    if not isinstance(given, (bool, np.bool_)):
        raise InputError(f"{name} is True or False, got {given!r}", code="option")


def check_positive(name: str, given: object) -> None:
    """Raise InputError unless the argument ``name`` is a positive number."""
    is_number = isinstance(given, (int, float, np.integer, np.floating)) and not isinstance(given, bool)
    if not is_number or not 0 < given < math.inf:  # type: ignore[operator]
        raise InputError(f"{name} is a positive number, got {given!r}", code="option")


def check_mapping(name: str, given: object, what: str) -> None:
    """Raise InputError unless the argument ``name`` is a mapping, of ``what``."""
    if not isinstance(given, Mapping):
        raise InputError(f"{name} is a mapping of {what}, not {type(given).__name__}", code="type")


def check_kind(name: str, given: object, kind: type[Any], hint: str = "") -> None:
    """Raise InputError unless the argument ``name`` is of ``kind``."""
    if not isinstance(given, kind):
        raise InputError(f"{name} is a {kind.__name__}, not {type(given).__name__}{hint}", code="type")
