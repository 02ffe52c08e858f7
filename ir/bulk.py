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

MANY_OBJECTS = 1 << 17
"""When bulk work has made more than this, they are old at its end: the next collection of young objects would walk them all."""

_is_aging = False


def _resume(enabled: bool) -> None:
    if gc.get_count()[0] > MANY_OBJECTS or _is_aging:
        _age()
    if enabled:
        gc.enable()


def _age() -> None:
    """Move all objects to the oldest generation, without a look at them. What others have frozen stays frozen."""
    global _is_aging
    if gc.get_freeze_count() and not _is_aging:
        return
    _is_aging = True  # an interrupt that comes now leaves it so, and the end of the next bulk work goes on
    gc.freeze()
    gc.unfreeze()
    _is_aging = False


_collector: Held[bool] = Held(gc.isenabled, lambda _: gc.disable(), _resume)


WAITING_BYTES = 1 << 27
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
