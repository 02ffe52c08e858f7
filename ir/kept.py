"""Properties computed at first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

R = TypeVar("R")


class kept(Generic[R]):
    """A property that is computed at its first use and kept with the object.

    The one of the standard library holds a lock of its class meanwhile (Python 3.11): one slow property stops those of
    all other objects, and a child that is forked meanwhile waits for ever.
    """

    def __init__(self, function: Callable[[Any], R]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> kept[R]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> R: ...

    def __get__(self, instance: object | None, owner: type) -> kept[R] | R:
        if instance is None:
            return self
        made: R = instance.__dict__.setdefault(self.function.__name__, self.function(instance))
        return made
