"""Bulk work on graphs, with the cyclic garbage collector held still.

A graph of 100,000 nodes is millions of objects that all live on; every full collection walks them in vain, which made
copying three times slower. Nothing that bulk work drops is needed back before it ends.

The collector counts objects, not the bytes that they hold, and values and nodes know each other: the weights of a few
dropped models would wait for it for long. So the bytes are counted here.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any, TypeVar

from flowgrad.ir.process_state import Held

Function = TypeVar("Function", bound=Callable[..., Any])

_collector: Held[bool] = Held(gc.isenabled, lambda _: gc.disable(), lambda enabled: gc.enable() if enabled else None)


WAITING_BYTES = 1 << 28
"""When dropped graphs held more than this, the end of bulk work collects them."""

_waiting = 0


def dropped(count: int) -> None:
    """Note that arrays of ``count`` bytes wait for the collector."""
    global _waiting
    _waiting += count


def bulk(function: Function) -> Function:
    """Run ``function`` with the collector off; it comes back on when the last such call ends."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        result = _collector.during(function, *arguments, **keywords)
        if _waiting > WAITING_BYTES and gc.isenabled():
            _collect()
        return result

    return wrapped  # type: ignore[return-value]


def _collect() -> None:
    global _waiting
    _waiting = 0
    gc.collect()
