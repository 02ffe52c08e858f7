"""Names in the text form: which may stand bare, and how the others are quoted."""

from __future__ import annotations

import re
import unicodedata

from flowgrad.ir.errors import ValidationError

QUOTED = r'"(?:[^"\\\n]|\\.)*"'
"""The regular expression of a quoted string."""

LITERAL_NAME = re.compile(
    r"(?:.*[/.])?(?:(?:_?val|value|const|constant|const_fold_opt_|scalar\w*|tensor|zeros?|ones?|two|three|half|minus_one|full|eps|epsilon|threshold\w*)"
    r"(?:_?cast)?[_\d]*(?:_output_\d+|_value_\d+)?|onnx::\w+|\d+|[xy]|const\w*)(?::\d+)?", re.IGNORECASE)
"""The names that exporters give to the numbers of formulas: ``val_12``, ``/Constant_output_0``, ``onnx::Mul_3``, ``mul/y:0``.

A trained scalar has the name of its variable (``logit_scale``, ``layer.temperature``); the data of the two look alike.
"""

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
_LONG = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|.)", re.DOTALL)


def quote(text: str) -> str:
    """Return ``text`` in double quotes, with every character that does not show as itself escaped."""
    return '"' + "".join(_escaped(c) for c in text) + '"'


def unquote(text: str) -> str:
    """Return what ``quote`` was given; ValidationError for an unknown escape."""
    body = text[1:-1]
    return _ESCAPE.sub(_unescaped, body) if "\\" in body else body


def quote_bytes(data: bytes) -> str:
    """Return ``data`` as ``b"..."``, with everything outside printable ASCII escaped."""
    shown = "".join(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\x{c:02x}" for c in data)
    return f'b"{shown}"'


def unquote_bytes(text: str) -> bytes:
    """Return what ``quote_bytes`` was given."""
    try:
        return unquote(text[1:]).encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValidationError("bytes hold a character above 255; write it as \\x escapes", code="text") from error


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character < "\x7f" and character >= " ":
        return character
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def _unescaped(match: re.Match[str]) -> str:
    body = match.group(1)
    if body in _LONG:
        return _LONG[body]
    code = int(body[1:], 16) if len(body) > 1 else 0x110000
    if code > 0x10FFFF:
        raise ValidationError(f"unknown escape \\{body}", code="text")
    return chr(code)
