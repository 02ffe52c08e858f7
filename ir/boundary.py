"""The edge of a stage: what no check has foreseen becomes a typed error that names the node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from flowgrad.ir.errors import FlowgradError, ResourceError
from flowgrad.ir.infer import describe
from flowgrad.ir.node import Node

P = ParamSpec("P")
R = TypeVar("R")

UNFORESEEN = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What Python and NumPy raise for operands that a kernel or a rule did not expect."""


@contextmanager
def boundary(node: Node, doing: str, error: type[FlowgradError], code: str) -> Iterator[None]:
    """Turn what is unforeseen in the block into ``error``, and a failed allocation into ResourceError, at ``node``."""
    try:
        yield
    except FlowgradError:
        raise
    except MemoryError as cause:
        raise ResourceError(f"out of memory in {doing} {node.op}: {cause}", code="memory",
                            where=describe(node)) from cause
    except UNFORESEEN as cause:
        raise error(f"{doing} {node.op} failed ({type(cause).__name__}: {cause})", code=code,
                    where=describe(node)) from cause


def guarded(doing: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a stage end in ResourceError where memory, or Python's stack, does not suffice."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapped(*arguments: P.args, **keywords: P.kwargs) -> R:
            try:
                return function(*arguments, **keywords)
            except (MemoryError, RecursionError) as cause:
                raise ResourceError(f"out of memory {doing}: {cause}", code="memory") from cause

        return wrapped

    return decorate
