"""Regular expressions in the syntax of RE2: whether they match a whole text, in time linear in it, and longest matches.

Neither depends on which repeats are greedy or what groups capture, so that is not kept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flowgrad.ir.limits import check_time

Chars = Callable[[str], bool]

MOST_INSTRUCTIONS = 20_000
"""Instructions of a program at most: counted repeats multiply."""

MOST_REPEATS, DEEPEST = 1000, 100
"""What a counted repeat may count to, and how deep groups may be nested."""

_KNOWN_STEPS = 2**14

_PERL: dict[str, Chars] = {
    "d": lambda c: "0" <= c <= "9", "s": lambda c: c in "\t\n\f\r ",
    "w": lambda c: "0" <= c <= "9" or "A" <= c <= "Z" or "a" <= c <= "z" or c == "_",
}
_POSIX: dict[str, Chars] = {
    "alnum": lambda c: c.isascii() and c.isalnum(), "alpha": lambda c: c.isascii() and c.isalpha(), "ascii": str.isascii,
    "blank": lambda c: c in "\t ", "cntrl": lambda c: c < " " or c == "\x7f", "digit": _PERL["d"],
    "graph": lambda c: "!" <= c <= "~", "lower": lambda c: "a" <= c <= "z", "print": lambda c: " " <= c <= "~",
    "punct": lambda c: "!" <= c <= "~" and not c.isalnum(), "space": lambda c: c in "\t\n\v\f\r ",
    "upper": lambda c: "A" <= c <= "Z", "word": _PERL["w"], "xdigit": lambda c: c in "0123456789abcdefABCDEF",
}
_CONTROLS = {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}
_CATEGORIES = {"C": "cfos", "L": "lmotu", "M": "cen", "N": "dlo", "P": "cdefios", "S": "ckmo", "Z": "lps"}
_ASSERTIONS = {"A": "begin", "z": "end", "b": "word", "B": "inside"}


class PatternError(ValueError):
    """A pattern that is none of RE2, or that goes beyond what is done here."""


class Instruction(NamedTuple):
    """``chars``: one that fits leads to ``then``. ``holds``: an assertion does. Neither: ``then`` or ``other``, at once."""

    then: int
    other: int = -1
    chars: Chars | None = None
    holds: str = ""


# ---- reading ------------------------------------------------------------------------------------------------------------


def _either(first: Chars, second: Chars) -> Chars:
    return lambda c: first(c) or second(c)


def _no(chars: Chars) -> Chars:
    return lambda c: not chars(c)


def _between(low: str, high: str) -> Chars:
    return lambda c: low <= c <= high


def _any_case(chars: Chars) -> Chars:
    return lambda c: chars(c) or any(len(v) == 1 and chars(v) for v in (c.lower(), c.upper(), c.swapcase()))


class _Reader:
    """Reads a pattern into a tree: ("chars", f), ("holds", name), ("all", parts), ("one", parts), ("repeat", part, low, high)."""

    def __init__(self, pattern: str) -> None:
        self.text, self.at, self.depth, self.flags = pattern, 0, 0, frozenset[str]()

    def whole(self) -> Any:
        tree = self.branches()
        if self.at < len(self.text):
            raise PatternError("a parenthesis closes nothing")
        return tree

    def next(self, prefix: str) -> bool:
        """Go over ``prefix`` if it comes next."""
        found = self.text.startswith(prefix, self.at)
        self.at += len(prefix) if found else 0
        return found

    def take(self) -> str:
        if self.at >= len(self.text):
            raise PatternError("it ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def branches(self) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise PatternError(f"groups are nested more than {DEEPEST} deep")
        found = [self.sequence()]
        while self.next("|"):
            found.append(self.sequence())
        self.depth -= 1
        return ("one", found) if len(found) > 1 else found[0]

    def sequence(self) -> Any:
        parts: list[Any] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            if self.next(r"\Q"):
                quoted, _, _ = self.text[self.at :].partition(r"\E")
                self.at = min(len(self.text), self.at + len(quoted) + 2)
                parts += [self.repeated(self.literal(c)) if i == len(quoted) - 1 else self.literal(c) for i, c in enumerate(quoted)]
            else:
                parts.append(self.repeated(self.atom()))
        return "all", parts

    def repeated(self, part: Any) -> Any:
        bounds = self.bounds()
        if bounds is None:
            return part
        self.next("?")  # a lazy one: the same texts match
        if self.bounds() is not None:
            raise PatternError("a repeat is repeated")
        return "repeat", part, *bounds

    def bounds(self) -> tuple[int, int | None] | None:
        """Read a repeat, if one comes next: how often at least and at most."""
        for sign, low, high in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self.next(sign):
                return low, high
        end = self.text.find("}", self.at)
        if end < 0 or not self.text.startswith("{", self.at):
            return None
        least, comma, most = self.text[self.at + 1 : end].partition(",")
        if not (least.isascii() and least.isdigit()) or (most and not (most.isascii() and most.isdigit())) or len(least + most) > 12:
            return None  # plain text
        self.at = end + 1
        low, high = int(least), int(most) if most else None if comma else int(least)
        if max(low, high or 0) > MOST_REPEATS or (high is not None and high < low):
            raise PatternError(f"the repeat {{{least}{comma}{most}}}")
        return low, high

    def literal(self, char: str) -> Any:
        return "chars", self.folded(_between(char, char))

    def folded(self, chars: Chars) -> Chars:
        return _any_case(chars) if "i" in self.flags else chars

    def atom(self) -> Any:
        char = self.take()
        if char == "(":
            return self.group()
        if char == "[":
            return "chars", self.bracket()
        if char == ".":
            return "chars", (lambda c: True) if "s" in self.flags else _no(_between("\n", "\n"))
        if char in "^$":
            name = "begin" if char == "^" else "end"
            return "holds", f"line_{name}" if "m" in self.flags else name
        if char in "*+?":
            raise PatternError(f"{char} repeats nothing")
        if char != "\\":
            return self.literal(char)
        if self.at < len(self.text) and self.text[self.at] in _ASSERTIONS:
            return "holds", _ASSERTIONS[self.take()]
        chars = self.set_escape()
        return ("chars", chars) if chars is not None else self.literal(self.escape())

    def group(self) -> Any:
        outer = self.flags
        if self.next("?") and not self.named():
            chosen, minus = set(outer), False
            while (flag := self.take()) not in ":)":
                if flag not in "imsU-" or (flag == "-" and minus):
                    raise PatternError(f"the group (?{flag}")
                minus = minus or flag == "-"
                (chosen.discard if minus else chosen.add)(flag)
            self.flags = frozenset(chosen)
            if flag == ")":
                return "all", []  # for the rest of the group that it is in
        inner = self.branches()
        if not self.next(")"):
            raise PatternError("a group does not end")
        self.flags = outer
        return inner

    def named(self) -> bool:
        if self.text.startswith(("<=", "<!"), self.at) or not (self.next("P<") or self.next("<")):
            return False
        name, closed, _ = self.text[self.at :].partition(">")
        if not closed or not name or not all(map(_PERL["w"], name)):
            raise PatternError("a group has no name")
        self.at += len(name) + 1
        return True

    def set_escape(self) -> Chars | None:
        """Read the rest of ``\\d``, ``\\pL`` and their like after the backslash, if one is there."""
        letter = self.text[self.at : self.at + 1]
        if letter.lower() in _PERL and letter:
            self.at += 1
            chars = _PERL[letter.lower()]
            return chars if letter.islower() else _no(chars)
        if letter not in ("p", "P"):
            return None
        self.at += 1
        name = self.take()
        if name == "{":
            name, closed, _ = self.text[self.at :].partition("}")
            self.at += len(name) + len(closed)
        negative = (letter == "P") != name.startswith("^")
        name = name.removeprefix("^")
        if len(name) > 2 or name[:1] not in _CATEGORIES or name[1:] not in _CATEGORIES[name[0]]:
            raise PatternError(f"the class \\p{{{name}}}")
        chars = self.folded(lambda c: unicodedata.category(c).startswith(name))
        return _no(chars) if negative else chars

    def escape(self) -> str:
        """Read the rest of an escaped character."""
        char = self.take()
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char == "x":
            digits = self.take()
            if digits == "{":
                digits, _, _ = self.text[self.at :].partition("}")
                self.at += len(digits) + 1
            else:
                digits += self.take()
            return self.numbered(digits, 16)
        if char in "01234567":
            rest = self.text[self.at : self.at + 2]
            more = rest[: len(rest) - len(rest.lstrip("01234567"))]
            if char != "0" and not more:
                raise PatternError(f"the reference \\{char}")
            self.at += len(more)
            return self.numbered(char + more, 8)
        if not char.isascii() or _PERL["w"](char):
            raise PatternError(f"the escape \\{char}")
        return char

    @staticmethod
    def numbered(digits: str, base: int) -> str:
        if not digits or len(digits) > 8 or not all(map(_POSIX["xdigit"], digits)) or int(digits, base) > 0x10FFFF:
            raise PatternError(f"the character {digits!r}")
        return chr(int(digits, base))

    def bracket(self) -> Chars:
        negative = self.next("^")
        chars: Chars = lambda c: False  # noqa: E731
        first = True
        while first or not self.next("]"):
            first = False
            chars = _either(chars, self.bracket_item())
        return _no(chars) if negative else chars

    def bracket_item(self) -> Chars:
        if self.next("[:"):
            name, closed, _ = self.text[self.at :].partition(":]")
            known = _POSIX.get(name.removeprefix("^"))
            if not closed or known is None:
                raise PatternError(f"the class [:{name[:20]}")
            self.at += len(name) + 2
            known = self.folded(known)
            return _no(known) if name.startswith("^") else known
        low = self.take()
        if low == "\\":
            chars = self.set_escape()
            if chars is not None:
                return chars
            low = self.escape()
        high = low
        if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
            self.at += 1
            high = self.take()
            high = self.escape() if high == "\\" else high
            if high < low:
                raise PatternError(f"the range {low}-{high}")
        return self.folded(_between(low, high))


# ---- matching -----------------------------------------------------------------------------------------------------------

_BEGIN, _END, _NEWLINE, _WORD, _OTHER = range(5)


def _kind(char: str) -> int:
    return _NEWLINE if char == "\n" else _WORD if _PERL["w"](char) else _OTHER


_HOLDS: dict[str, Callable[[int, int], bool]] = {
    "begin": lambda before, after: before == _BEGIN, "end": lambda before, after: after == _END,
    "line_begin": lambda before, after: before in (_BEGIN, _NEWLINE), "line_end": lambda before, after: after in (_END, _NEWLINE),
    "word": lambda before, after: (before == _WORD) != (after == _WORD),
    "inside": lambda before, after: (before == _WORD) == (after == _WORD),
}


class _State:
    """Where all ways through a program stand after some text, and what is known of how they go on."""

    __slots__ = ("at", "before", "ends", "steps")

    def __init__(self, at: frozenset[int], before: int) -> None:
        self.at, self.before = at, before
        self.steps: dict[str, _State | None] = {}
        self.ends: dict[int, bool] = {}


class Pattern:
    """A pattern, made ready. Raises PatternError for what RE2 does not read."""

    def __init__(self, pattern: str) -> None:
        self._program = [Instruction(-1)]  # the end
        self._start = _State(frozenset([self._built(_Reader(pattern).whole(), 0)]), _BEGIN)
        self._states: dict[tuple[frozenset[int], int], _State] = {}
        self._count = 0

    def fullmatch(self, text: str) -> bool:
        """Return whether the whole of ``text`` matches. All ways through the program are followed at once."""
        state = self._start
        for char in text:
            known = state.steps
            following = known[char] if char in known else self._step(state, char)
            if following is None:
                return False
            state = following
        return self._ends(state, _END)

    def longest(self, text: str, start: int) -> int | None:
        """Return where the longest match that begins at ``start`` ends, None if there is none."""
        before = _kind(text[start - 1]) if start else _BEGIN
        state = self._states.setdefault((self._start.at, before), _State(self._start.at, before))
        found = None
        for place in range(start, len(text) + 1):
            after = _kind(text[place]) if place < len(text) else _END
            if self._ends(state, after):
                found = place
            if after == _END:
                break
            char = text[place]
            following = state.steps[char] if char in state.steps else self._step(state, char)
            if following is None:
                break
            state = following
        return found

    def matches(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where matches begin and end: the leftmost one, of those the longest, then on behind it.

        Behind an empty one the search goes on after one more character.
        """
        start = 0
        while start <= len(text):
            check_time()
            end = self.longest(text, start)
            if end is None:
                start += 1
                continue
            yield start, end
            start = max(end, start + 1)

    def _ends(self, state: _State, after: int) -> bool:
        """Return whether a match may end here, before a character of the kind ``after``."""
        if after not in state.ends:
            state.ends[after] = 0 in self._closure(state.at, state.before, after)
        return state.ends[after]

    def _step(self, state: _State, char: str) -> _State | None:
        """Return the state after one more character, None if no way goes on, and remember it for a while."""
        if self._count >= _KNOWN_STEPS:
            self._start, self._states, self._count = _State(self._start.at, _BEGIN), {}, 0
        kind = _kind(char)
        reached = (self._program[i] for i in self._closure(state.at, state.before, kind))
        at = frozenset(i.then for i in reached if i.chars is not None and i.chars(char))
        following = self._states.setdefault((at, kind), _State(at, kind)) if at else None
        state.steps[char] = following
        self._count += 1
        return following

    def _closure(self, states: frozenset[int], before: int, after: int) -> set[int]:
        """Return the states that are reached without a character, between two of these kinds."""
        seen, pending = set[int](), list(states)
        while pending:
            state = pending.pop()
            if state in seen or state < 0:
                continue
            seen.add(state)
            instruction = self._program[state]
            if instruction.chars is not None or (instruction.holds and not _HOLDS[instruction.holds](before, after)):
                continue
            pending += [instruction.then, instruction.other]
        return seen

    def _add(self, instruction: Instruction) -> int:
        if len(self._program) >= MOST_INSTRUCTIONS:
            raise PatternError(f"it takes more than {MOST_INSTRUCTIONS:,} instructions")
        self._program.append(instruction)
        return len(self._program) - 1

    def _built(self, tree: Any, then: int) -> int:
        """Add the instructions of a tree, which go on with ``then``, and return the first."""
        kind, what = tree[0], tree[1]
        if kind == "chars":
            return self._add(Instruction(then, chars=what))
        if kind == "holds":
            return self._add(Instruction(then, holds=what))
        if kind == "all":
            for part in reversed(what):
                then = self._built(part, then)
            return then
        if kind == "one":
            first = self._built(what[-1], then)
            for part in reversed(what[:-1]):
                first = self._add(Instruction(self._built(part, then), first))
            return first
        low, high = tree[2:]
        if high is None:
            loop = self._add(Instruction(-1, then))
            self._program[loop] = Instruction(self._built(what, loop), then)
            then = loop
        for _ in range(0 if high is None else high - low):
            then = self._add(Instruction(self._built(what, then), then))  # leaving one out leaves out those behind as well
        for _ in range(low):
            then = self._built(what, then)
        return then
