"""A line on stderr that shows how far long work has come: nothing, unless it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flowgrad.ir.status_line import StatusLine


@contextmanager
def bar(wanted: bool, what: str, total: int | None = None) -> Iterator[Callable[[int, str], None]]:
    """Yield a function that shows how many steps of ``total`` are done, and a remark."""
    if not wanted:
        yield lambda done, remark: None
        return
    of = "" if total is None else f"/{total}"
    with StatusLine() as status:
        yield lambda done, remark: status.show(f"{what} {done}{of}  {remark}".rstrip())
