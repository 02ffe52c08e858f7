"""Registries: named things that users may add to, and scopes that take back what was added inside them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from flowgrad.ir.errors import FlowgradError, suggestion

T = TypeVar("T")
Undo = Callable[[], None]

LISTED = 30
"""An error about an unknown name lists what there is if it is no more than this."""

_loading = threading.RLock()
"""Held by the thread that imports what a registry has of its own."""

if hasattr(os, "register_at_fork"):  # a module half imported at the fork would never be ready in the child
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)

_registries: list[Registry[Any]] = []

_JOURNAL: ContextVar[list[Undo] | None] = ContextVar("journal", default=None)


@contextmanager
def scoped() -> Iterator[None]:
    """Take back, at the end of the block, every operator, rule and pass that the block registered.

    Scopes nest, and belong to the thread (or task) that enters them.

    Examples:
        >>> with fg.scoped():
        ...     @fg.op("Thrice", domain="flowgrad")
        ...     def thrice(x, *, out=None):
        ...         return np.multiply(x, 3, out=out)
        >>> fg.load(b"graph @g (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Thrice(%x) }")
        Traceback (most recent call last):
        flowgrad.ir.errors.UnsupportedError: ...
    """
    for registry in _registries:  # what the project registers itself is not the block's, whoever imports it
        registry.load_own()
    journal: list[Undo] = []
    token = _JOURNAL.set(journal)
    try:
        yield
    finally:
        _JOURNAL.reset(token)
        for undo in reversed(journal):
            undo()


def on_scope_end(undo: Undo) -> None:
    """Call ``undo`` when the innermost scope ends; outside scopes, what was registered stays."""
    journal = _JOURNAL.get()
    if journal is not None:
        journal.append(undo)


@contextmanager
def outside_scopes() -> Iterator[None]:
    """Let what the block registers stay: modules of the project are imported once, whoever asks first."""
    token = _JOURNAL.set(None)
    try:
        yield
    finally:
        _JOURNAL.reset(token)


class Registry(Generic[T]):
    """Things of one kind by name. ``load`` imports what the project itself registers, at first use.

    ``entries`` holds what is registered so far; ``error`` is the class of the error for an unknown name.
    """

    def __init__(self, kind: str, load: Callable[[], None], error: type[FlowgradError]) -> None:
        self.kind = kind
        self.error = error
        self._load: Callable[[], None] | None = load  # None: done
        self._begun = self._cut_short = False
        self.entries: dict[str, T] = {}
        self.passing: dict[str, T] = {}
        """Those of the entries that go when a scope ends."""
        _registries.append(self)

    def add(self, name: str, thing: T) -> None:
        """Register ``thing``. Raises the registry's error if the name is taken."""
        if name in self.entries and not (self._begun and self._cut_short):
            raise self.error(f"there is {self.kind} {name!r} already; register inside flowgrad.scoped() what is not to stay",
                             code=self.kind.split()[-1])
        self.entries[name] = thing
        if _JOURNAL.get() is not None:
            self.passing[name] = thing
            on_scope_end(lambda: self._remove(name, thing))

    def _remove(self, name: str, thing: T) -> None:
        if self.entries.get(name) is thing:
            del self.entries[name]
            self.passing.pop(name, None)

    def find(self, name: str) -> T | None:
        """Return what is called ``name``, or None."""
        if self._load is not None:
            self.load_own()
        return self.entries.get(name)

    def get(self, name: str) -> T:
        """Return what is called ``name``; the registry's error, with a suggestion, if there is nothing."""
        found = self.find(name)
        if found is None:
            raise self.error(f"no {self.kind.split()[-1]} {name!r}{suggestion(name, self.entries)}{self._listing()}",
                             code=self.kind.split()[-1])
        return found

    def _listing(self) -> str:
        known = sorted(self.entries)
        return f"; there are: {', '.join(known)}" if len(known) <= LISTED else ""

    def all(self) -> dict[str, T]:
        """Return everything by name, in alphabetical order."""
        self.load_own()
        return dict(sorted(self.entries.items()))

    def load_part(self, load: Callable[[], object]) -> None:
        """Import some of what the project itself registers, unless all of it is there, or being imported."""
        if self._load is None:
            return
        with _loading:
            if self._load is None or self._begun:
                return
            self._begun, done = True, False
            try:
                with outside_scopes():
                    load()
                done = True
            finally:  # as below
                self._begun, self._cut_short = False, self._cut_short or not done

    def load_own(self) -> None:
        """Import what the project itself registers, once."""
        if self._load is None:
            return
        with _loading:
            if self._load is None or self._begun:  # what is loaded may look things up
                return
            try:
                self._begun = True
                with outside_scopes():
                    self._load()
                self._load = None
            finally:  # what was cut short is tried again at the next use, and registers again
                self._begun, self._cut_short = False, self._load is not None
