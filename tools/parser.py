"""The parser of the commands: argparse, with suggestions for what is misspelt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from flowgrad.ir.errors import safe_line, suggestion


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Leaves lines as they are written, and room for long options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


class Parser(argparse.ArgumentParser):
    """A parser that names the nearest option where one is unknown, and takes positional arguments behind options."""

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the arguments. Exits with code 2, as argparse does, for those that are wrong."""
        parsed, rest = self.parse_known_args(argv)
        if rest:  # OUT may stand behind the options
            parsed, rest = self.parse_known_intermixed_args(argv)
        for word in rest:
            name = word.partition("=")[0]
            if word.startswith("-"):
                self.error(f"no option {safe_line(name)!r}{suggestion(name, self.options())}")
            self.error(f"one argument too many: {safe_line(word)!r}")
        return parsed

    def format_usage(self) -> str:
        """Return one line: the arguments in order, and options that must be given; the others are listed below it."""
        places = [f"[{a.metavar}]" if a.nargs == "?" else str(a.metavar) for a in self._get_positional_actions()]
        places += [f"{a.option_strings[-1]} {a.metavar}" for a in self._actions if a.option_strings and a.required]
        return f"usage: {self.prog} {' '.join(places)} [options]\n"

    def format_help(self) -> str:
        """Return the help, with the short usage."""
        self.usage = self.format_usage().removeprefix("usage: ").rstrip()
        return super().format_help()

    def options(self) -> list[str]:
        """Return the long options, in order."""
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]


def count(text: str) -> int:
    """Return the number that ``text`` is, 0 or more: the type of an argument."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return number
