"""Operators on strings. Strings have no derivative: no cotangent passes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.errors import LimitError, UnsupportedError, ValidationError
from flowgrad.ir.graph import Array, Node
from flowgrad.ir.infer import describe
from flowgrad.ir.limits import check_scratch
from flowgrad.ir.ops.registry import FLOWGRAD, Trait, attr, broadcasted, op
from flowgrad.ir.regular_expressions import Pattern, PatternError
from flowgrad.ir.types import BOOL, INT64, UNKNOWN, Type


def _mapped(function: Callable[..., Any], dtype: Any, *arrays: Array) -> Array:
    """Return what a function of Python makes of every element, in the shape of the broadcast arrays."""
    return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays)).astype(dtype)


# ---- StringConcat -------------------------------------------------------------------------------------------------------


MOST_TEXT = 2**28
"""Characters in a result at most: strings that are joined with themselves double."""


@op("StringConcat", since=20, outputs=("Z",), traits=(Trait.BROADCASTS, Trait.ELEMENTWISE, Trait.ZERO))
def string_concat(x: Array, y: Array) -> Array:
    length = int(_mapped(lambda a, b: len(a) + len(b), np.int64, x, y).sum())
    if length > MOST_TEXT:
        raise LimitError(f"StringConcat makes {length:,} characters, the limit is {MOST_TEXT:,}", code="text")
    return _mapped(lambda a, b: a + b, object, x, y)


string_concat.types(broadcasted)


# ---- StringSplit --------------------------------------------------------------------------------------------------------


@op("StringSplit", since=20, outputs=("Y", "Z"), traits=(Trait.ZERO,))
def string_split(x: Array, *, delimiter: str | None = None, maxsplit: int | None = None) -> tuple[Array, Array]:
    """Return the parts of each element, filled up with empty strings, and how many there are.

    Without a delimiter parts are what stands between white space.
    """
    most = -1 if maxsplit is None else maxsplit
    parts = [text.split(delimiter or None, most) for text in x.reshape(-1)]
    counts = np.array([len(p) for p in parts], np.int64)
    width = int(counts.max(initial=0))
    check_scratch(8 * width * len(parts), "StringSplit")
    result = np.full((len(parts), width), "", object)
    result[np.arange(width) < counts[:, None]] = [part for p in parts for part in p]
    return result.reshape(*x.shape, width), counts.reshape(x.shape)


@string_split.types
def _(node: Node) -> list[Type]:
    x = node.input(0).type
    return [x.with_shape(None if x.shape is None else (*x.shape, UNKNOWN)), x.with_dtype(INT64)]


# ---- StringNormalizer ---------------------------------------------------------------------------------------------------

_CASES: dict[str, Callable[[str], str]] = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}


@op("StringNormalizer", since=10, traits=(Trait.ZERO,))
def string_normalizer(
    x: Array, *, case_change_action: str = "NONE", is_case_sensitive: int = 0, locale: str = "", stopwords: Sequence[str] = (),
) -> Array:
    """Return a row of words without stop words, in lower or upper case; one empty string if none is left.

    Cases are those of Unicode, whatever ``locale`` says.
    """
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
        raise ValueError(f"expected the shape [C] or [1, C], got {list(x.shape)}")
    compared = str if is_case_sensitive else str.lower
    stops = {compared(word) for word in stopwords}
    change = _CASES[case_change_action]
    kept = [change(word) for word in x.reshape(-1) if compared(word) not in stops]
    return np.array(kept or [""], object).reshape(*x.shape[:-1], -1)


@string_normalizer.types
def _(node: Node) -> Type:
    x, case = node.input(0).type, attr(node, "case_change_action")
    if case not in _CASES:
        raise ValidationError(f"case_change_action {case!r} is none of {', '.join(_CASES)}", code="attribute",
                              where=describe(node))
    if x.shape is None:
        return x
    if len(x.shape) not in (1, 2) or (len(x.shape) == 2 and isinstance(x.shape[0], int) and x.shape[0] != 1):
        raise ValidationError(f"StringNormalizer takes the shape [C] or [1, C], got {x!r}", code="shape", where=describe(node))
    keeps_all = not attr(node, "stopwords") and isinstance(x.shape[-1], int) and x.shape[-1] > 0
    return x.with_shape((*(1 for _ in x.shape[:-1]), x.shape[-1] if keeps_all else UNKNOWN))


# ---- RegexFullMatch -----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def compiled(pattern: str) -> Pattern:
    """Return a pattern of RE2. Raises UnsupportedError for what it is not, and for scripts (``\\p{Greek}``)."""
    try:
        return Pattern(pattern)
    except PatternError as error:
        raise UnsupportedError(f"the pattern {pattern[:80]!r} is not read: {error}", code="attribute") from error


@op("RegexFullMatch", since=20, traits=(Trait.ELEMENTWISE, Trait.ZERO))
def regex_full_match(x: Array, *, pattern: str = "") -> Array:
    match = compiled(pattern).fullmatch
    return _mapped(match, bool, x)


@regex_full_match.types
def _(node: Node) -> Type:
    compiled(attr(node, "pattern"))
    return node.input(0).type.with_dtype(BOOL)


# ---- Tokenizer ----------------------------------------------------------------------------------------------------------


@op("Tokenizer", since=1, domain=FLOWGRAD, traits=(Trait.ZERO,))
def tokenizer(
    x: Array, *, mark: int = 0, mincharnum: int = 1, pad_value: str = "", separators: Sequence[str] = (), tokenexp: str = "",
) -> Array:
    """Return the tokens of each text along a new last axis, filled up with ``pad_value``: com.microsoft's Tokenizer.

    Tokens are what ``tokenexp`` matches, or what is left between the matches of all ``separators``, of ``mincharnum``
    characters at least; single characters if the pattern is ``.``, or the one separator is empty. With ``mark``, the
    characters 2 and 3 stand before and behind the tokens, if any text has one.
    """
    rows = [_tokens(text, mincharnum, separators, tokenexp) for text in x.reshape(-1)]
    if mark and any(rows):
        rows = [["\x02", *row, "\x03"] for row in rows]
    width = max(map(len, rows), default=0)
    check_scratch(8 * width * len(rows), "Tokenizer")
    result = np.full((len(rows), width), pad_value, object)
    for filled, row in zip(result, rows, strict=True):
        filled[: len(row)] = row
    return result.reshape(*x.shape, width)


def _tokens(text: str, shortest: int, separators: Sequence[str], pattern: str) -> list[str]:
    if list(separators) == [""] or (not separators and pattern == "."):
        return list(text)
    if not separators:
        return [text[a:b] for a, b in compiled(pattern).matches(text) if b - a >= shortest]
    parts = [text]
    for separator in separators:
        parts = [piece for part in parts for piece in _between(part, separator) if len(piece) >= shortest]
    return parts


def _between(text: str, separator: str) -> list[str]:
    """Return what stands between the matches of a pattern; an empty match takes the character behind it away."""
    pieces, start = [], 0
    for a, b in compiled(separator).matches(text):
        pieces.append(text[start:a])
        start = max(b, a + 1)
    return [*pieces, text[start:]]


@tokenizer.types
def _(node: Node) -> Type:
    """Raises ValidationError for wrong attributes, UnsupportedError for patterns that are not read."""
    x, separators, pattern = node.input(0).type, attr(node, "separators"), attr(node, "tokenexp")
    if x.rank not in (None, 1, 2):
        raise ValidationError(f"Tokenizer takes the shape [C] or [N, C], got {x!r}", code="shape", where=describe(node))
    single = list(separators) == [""] or (not separators and pattern == ".")
    if attr(node, "mincharnum") < 1 or (single and attr(node, "mincharnum") > 1) or not (separators or pattern):
        raise ValidationError("Tokenizer needs separators or tokenexp, and mincharnum from 1 on (1 for single characters)",
                              code="attribute", where=describe(node))
    for expression in separators or (pattern,):
        compiled(expression)
    return x.with_shape(None if x.shape is None else (*x.shape, UNKNOWN))
