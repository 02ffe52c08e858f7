"""Every error a user can meet, and the one function that makes foreign text safe to show."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable

MESSAGE_LIMIT = 2_000

MOST_KNOWN = 2_000
"""How many names a suggestion is looked for among: the search takes far longer than what failed."""


class FlowgradError(Exception):
    """The base of all errors of the product.

    ``code`` is a stable, finer distinction within the class; ``where`` names the place (a node in printed IR,
    an ONNX name, a file), ``message`` is the text without it. ``exit_code`` is what the command line returns.

    Examples:
        >>> try:
        ...     fg.grad(model, of="los")
        ... except fg.FlowgradError as error:
        ...     print(error.code, "-", error)
        name - no output, value or node 'los' in 'mlp'; did you mean 'loss'?
    """

    exit_code = 3

    def __init__(self, message: str, *, code: str = "", where: str = "") -> None:
        self.code = code or type(self).__name__
        self.where = safe_line(where, 300)
        self.message = safe_text(message, MESSAGE_LIMIT)
        super().__init__(f"{self.message}\n  at {self.where}" if self.where else self.message)


class LoadError(FlowgradError):
    """A file is not what it says it is, or is damaged."""


class ValidationError(FlowgradError):
    """A graph breaks a rule of the representation."""


class ExternalDataError(LoadError):
    """A tensor stored outside the model file cannot be had safely."""


class UnsupportedError(FlowgradError, NotImplementedError):
    """The file is valid, and uses something that is not supported."""


class NotDifferentiableError(FlowgradError):
    """No derivative exists, or none that may be claimed."""


class LimitError(FlowgradError):
    """A limit given by the caller would be passed."""

    exit_code = 4


class ResourceError(FlowgradError):
    """Memory, threads or disk space ran out."""

    exit_code = 5


class InputError(FlowgradError, ValueError):
    """A name, a shape, a dtype or an option given by the caller is wrong."""

    exit_code = 2


class PassError(FlowgradError):
    """A pass broke its promise."""

    exit_code = 6


class RunError(FlowgradError):
    """A node failed while the graph ran."""

    exit_code = 6


class SaveError(FlowgradError):
    """A file could not be written; what was there before is unharmed."""

    exit_code = 7


class EngineError(FlowgradError):
    """An engine that was asked for cannot start."""

    exit_code = 8


def safe_text(text: object, limit: int = 300) -> str:
    """Return ``text`` without control, bidirectional or undecodable characters, cut to ``limit`` characters."""
    shown = "".join(c if _is_safe(c) else f"\\u{ord(c):04x}" for c in str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def safe_line(text: object, limit: int = 2_000) -> str:
    """Return ``text`` like ``safe_text``, on one line."""
    return safe_text(text, limit).replace("\n", "\\n")


def _is_safe(character: str) -> bool:
    return character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def suggestion(name: object, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string; for no text, that names are."""
    if not isinstance(name, str):
        return f"; a name is a text, not {type(name).__name__}"
    import difflib

    names = list(itertools.islice(known, MOST_KNOWN)) if len(name) < 200 else []
    folded = name.casefold()
    close = [n for n in names if n.casefold() == folded][:1] or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {safe_text(repr(close[0]))}?" if close else ""
