"""Pipelines as text: ``"stabilize,canonicalize,fold{limit=1MiB},dce"``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowgrad.ir.errors import InputError, suggestion
from flowgrad.passes.registry import Pass, find_pass

_TOKEN = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([{}\[\],=])|([^\s{}\[\],="]+))')
_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_WORDS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


@dataclass(frozen=True)
class Stage:
    """One entry of a pipeline: a pass and the options it is given."""

    pass_: Pass
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.pass_.name

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}{{{','.join(f'{k}={_text(v)}' for k, v in self.options.items())}}}"


def parse_pipeline(pipeline: str | Iterable[str]) -> list[Stage]:
    """Read a pipeline: passes between commas, options between braces, lists between brackets.

    A list of strings may be given instead. Raises InputError for bad syntax, an unknown pass or option, with a
    suggestion, or an option value of the wrong type.
    """
    texts = [pipeline] if isinstance(pipeline, str) else list(pipeline) if isinstance(pipeline, Iterable) else [pipeline]
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"a pipeline is text, or a list of it, not {type(text).__name__}", code="type")
    return [stage for text in texts for stage in _Reader(text).stages()]


def format_pipeline(stages: Iterable[Stage]) -> str:
    """Return the text that ``parse_pipeline`` reads back."""
    return ",".join(str(stage) for stage in stages)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, bool]] = []  # the token, and whether it was quoted or a word
        at = 0
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if match is None:
                raise self.error(f"unexpected {text[at:].strip()[:1]!r}")
            quoted, mark, word = match.groups()
            literal = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else mark or word
            self.tokens.append((literal, mark is None))
            at = match.end()
        self.at = 0

    def error(self, what: str) -> InputError:
        return InputError(f"cannot read the pipeline {self.text!r}: {what}", code="pipeline")

    def stages(self) -> list[Stage]:
        found: list[Stage] = []
        while self.at < len(self.tokens):
            chosen = find_pass(self.word())
            options = self.options(chosen) if self.accept("{") else {}
            found.append(Stage(chosen, options))
            if self.at < len(self.tokens):
                self.expect(",")
        return found

    def options(self, chosen: Pass) -> dict[str, Any]:
        options: dict[str, Any] = {}
        while not self.accept("}"):
            if options:
                self.expect(",")
            name = self.word()
            if name not in chosen.options:
                known = ", ".join(chosen.options) or "none"
                raise InputError(f"pass {chosen.name!r} has no option {name!r}{suggestion(name, chosen.options)}; "
                                 f"it has: {known}", code="option")
            self.expect("=")
            given = self.listed() if self.accept("[") else self.word()
            options[name] = _converted(chosen, name, given)
        return options

    def listed(self) -> tuple[str, ...]:
        items: list[str] = []
        while not self.accept("]"):
            if items:
                self.expect(",")
            items.append(self.word())
        return tuple(items)

    def word(self) -> str:
        if self.at >= len(self.tokens) or not self.tokens[self.at][1]:
            raise self.error("a name or value is missing")
        self.at += 1
        return self.tokens[self.at - 1][0]

    def accept(self, mark: str) -> bool:
        found = self.at < len(self.tokens) and self.tokens[self.at] == (mark, False)
        self.at += found
        return found

    def expect(self, mark: str) -> None:
        if not self.accept(mark):
            raise self.error(f"expected {mark!r}")


def _converted(chosen: Pass, name: str, given: str | tuple[str, ...]) -> Any:
    default = chosen.options[name]
    if isinstance(default, tuple):
        return given if isinstance(given, tuple) else (given,)
    if isinstance(given, tuple):
        raise InputError(f"option {name!r} of {chosen.name!r} takes one value", code="option")
    if isinstance(default, bool):
        if given.lower() not in _WORDS:
            raise InputError(f"option {name!r} of {chosen.name!r} is true or false, got {given!r}", code="option")
        return _WORDS[given.lower()]
    if isinstance(default, int):
        return bytes_from(f"option {name!r} of {chosen.name!r}", given)
    return given


def bytes_from(what: str, given: int | str) -> int:
    """Return a number of bytes, given as one or as text like ``64`` or ``1MiB``; InputError, naming ``what``, for any other."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    match = re.fullmatch(r"(-?\d+)([A-Za-z]*)", given) if isinstance(given, str) else None
    if match is None or match[2] not in _SIZES:
        raise InputError(f"{what} is a number like 64 or 1MiB, got {given!r}", code="option")
    return int(match[1]) * _SIZES[match[2]]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(_text(v) for v in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    return text if re.fullmatch(r'[^\s{}\[\],="\\]+', text) else '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
