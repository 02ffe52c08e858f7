"""One line on stderr that says how far something is: rewritten in place on a terminal, written once at the end elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

INTERVAL = 0.1
"""Seconds between two changes of the line."""

FRAMES = "|/-\\"


class StatusLine:
    """A status of at most one line; with ``quiet_end`` nothing is left of it."""

    def __init__(self, since: float | None = None, quiet_end: bool = False) -> None:
        self.since = time.monotonic() if since is None else since
        self.quiet_end = quiet_end
        self.live = sys.stderr.isatty()
        self._text, self._drawn, self._frame = "", 0.0, 0

    def __enter__(self) -> StatusLine:
        return self

    def show(self, text: str) -> None:
        """Let the line say ``text`` and the time that has passed."""
        self._text = text
        now = time.monotonic()
        if self.live and now - self._drawn >= INTERVAL:
            self._drawn, self._frame = now, self._frame + 1
            self._draw(f"{FRAMES[self._frame % len(FRAMES)]} {self._line()}")

    def _line(self) -> str:
        return f"{self._text}  {time.monotonic() - self.since:.1f} s"

    def _draw(self, line: str) -> None:
        width = max(shutil.get_terminal_size().columns - 1, 1)
        print(f"\r{line[:width]:{width}}", end="", file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self._draw("")
            print("\r", end="", file=sys.stderr, flush=True)
        if self._text and not self.quiet_end:
            print(self._line(), file=sys.stderr)
