"""What the command line says: reports on stdout; on stderr notes, and progress for what takes more than a second."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

from flowgrad.ir.errors import safe_line, safe_text
from flowgrad.ir.status_line import StatusLine
from flowgrad.runtime.profile import Event, session_event

Report = TypeVar("Report", bound=Any)


def say(line: object) -> None:
    """Print one line on stdout: whatever a file put into it, it stays one, and moves no cursor."""
    print(safe_line(line), flush=True)


def say_json(data: Any) -> None:
    """Print one JSON object on stdout, in printable ASCII; floats that JSON has no numbers for are the texts nan, inf, -inf."""
    print(json.dumps(_plain(data), allow_nan=False).replace("\x7f", "\\u007f"), flush=True)


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _plain(item) for key, item in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(item) for item in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def note(text: str, quiet: bool = False) -> None:
    """Print a note on stderr; lines after the first are indented, so that none of them looks like another note."""
    if not quiet:
        print(safe_text(text, 2_000).replace("\n", "\n  "), file=sys.stderr)


def print_as_they_come(reports: Iterable[Report], line: Callable[[Report], str], as_json: bool) -> list[Report]:
    """Print a line for every report (dataclasses) as soon as it is made, or all as JSON at the end; return them."""
    done: list[Report] = []
    for report in reports:
        done.append(report)
        if not as_json:
            say(line(report))
    if as_json:
        say_json([asdict(r) for r in done])
    return done


@contextlib.contextmanager
def progress(what: str, quiet: bool = False, patience: float = 1.0) -> Iterator[None]:
    """Say ``what`` is going on once it has taken ``patience`` seconds: a spinner on a terminal, else one line."""
    started = time.perf_counter_ns()
    with _said(what, quiet, patience):
        yield
    PHASES.append(session_event(what, started, time.perf_counter_ns()))


PHASES: list[Event] = []
"""What the command has done so far, as events of a Chrome trace."""


@contextlib.contextmanager
def _said(what: str, quiet: bool, patience: float) -> Iterator[None]:
    if quiet:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(safe_text(what), done, patience), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(what: str, done: threading.Event, patience: float) -> None:
    started = time.monotonic()
    if done.wait(patience):
        return
    if not sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr)
        done.wait()
        print(f"{what}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        return
    with StatusLine(since=started, quiet_end=True) as status:
        while not done.wait(0.1):
            status.show(what)
