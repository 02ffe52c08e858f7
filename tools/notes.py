"""What the command line says on stderr: notes, and progress for anything that takes more than a second."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from flowgrad.ir.errors import safe_text


def note(text: str, quiet: bool = False) -> None:
    """Print a line on stderr."""
    if not quiet:
        print(safe_text(text, 2_000), file=sys.stderr)


@contextlib.contextmanager
def progress(what: str, quiet: bool = False, patience: float = 1.0) -> Iterator[None]:
    """Say ``what`` is going on once it has taken ``patience`` seconds: a spinner on a terminal, else one line."""
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
    from rich.console import Console

    with Console(stderr=True).status(what):
        done.wait()
