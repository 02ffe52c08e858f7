"""Settings of the process and of the thread that a call changes for its own time, and puts back however it ends.

An interrupt (Ctrl-C) is raised between any two bytecodes of the main thread, those of a ``finally`` among them. So
nothing here rests on a piece of clean-up running to its end.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


def quiet(function: Callable[P, R]) -> Callable[P, R]:
    """Let ``function`` run without floating-point warnings.

    NumPy keeps the setting in a context variable: it is changed in a copy of the context, which ends with the call.
    """

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **keywords: P.kwargs) -> R:
        return copy_context().run(_without_warnings, function, arguments, keywords)

    return wrapped


def _without_warnings(function: Callable[..., R], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> R:
    with np.errstate(all="ignore"):
        return function(*arguments, **keywords)


class _Holder:
    """One call that needs a setting changed: it counts for as long as it lives, so that none is forgotten."""

    __slots__ = ("__weakref__", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class Held(Generic[S]):
    """A setting of the process that is changed while at least one call holds it. Made once, for good.

    ``read`` returns the setting, ``change`` and ``restore`` are given what was read. One interrupt, wherever it comes,
    leaves the setting as it was; if another cuts the clean-up short too, the next call puts it right.
    """

    def __init__(self, read: Callable[[], S], change: Callable[[S], object], restore: Callable[[S], object]) -> None:
        self._read, self._change, self._restore = read, change, restore
        self._lock = threading.RLock()  # a signal handler may come back here
        self._holders: set[weakref.ref[_Holder]] = set()
        self._before: tuple[S] | None = None  # what to restore, from before the change until after the restoration
        self._changed = False
        if hasattr(os, "register_at_fork"):  # the state is whole in a child, and the lock is its own
            os.register_at_fork(before=self._lock.acquire, after_in_parent=self._lock.release,
                                after_in_child=self._forked)

    def during(self, function: Callable[..., R], *arguments: Any, **keywords: Any) -> R:
        """Call ``function`` with the setting changed."""
        holder = _Holder()
        known = weakref.ref(holder)
        try:
            try:
                self._enter(known)
                return function(*arguments, **keywords)
            finally:
                self._leave(known)
        finally:
            if self._before is not None:  # others hold it, or an interrupt came into the clean-up
                self._leave(known)

    def _enter(self, known: weakref.ref[_Holder]) -> None:
        with self._lock:
            self._holders.add(known)
            if not self._changed:
                self._settle()

    def _leave(self, known: weakref.ref[_Holder]) -> None:
        with self._lock:
            self._holders.discard(known)
            self._settle()

    def _settle(self) -> None:
        """Bring the setting in line with the holders; may be cut short anywhere and called again."""
        before = self._before
        if self._holders and self._is_held():
            if not self._changed:
                before = self._before = before or (self._read(),)
                self._change(before[0])
                self._changed = True
        elif before is not None:
            self._changed = False
            self._restore(before[0])
            self._before = None

    def _is_held(self) -> bool:
        while self._holders:
            known = next(iter(self._holders))
            if known() is not None:
                return True
            self._holders.discard(known)
        return False

    def _forked(self) -> None:
        """Forget, in a child, the calls of threads that do not exist there."""
        me = threading.get_ident()
        self._holders = {known for known in self._holders if (holder := known()) is not None and holder.thread == me}
        self._settle()
        self._lock.release()
