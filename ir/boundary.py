"""The edge of a stage: what no check has foreseen becomes a typed error that names the node."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import ParamSpec, TypeVar

from flowgrad.ir.errors import FlowgradError, ResourceError
from flowgrad.ir.infer import describe
from flowgrad.ir.node import Node

P = ParamSpec("P")
R = TypeVar("R")

UNFORESEEN = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What Python and NumPy raise for operands that a kernel or a rule did not expect."""


class boundary:  # noqa: N801 - reads like the functions of contextlib, and costs a third: it is entered at every node
    """Turn what is unforeseen in the block into ``error``, and a failed allocation into ResourceError, at ``node``."""

    __slots__ = ("code", "doing", "error", "node")

    def __init__(self, node: Node, doing: str, error: type[FlowgradError], code: str) -> None:
        self.node, self.doing, self.error, self.code = node, doing, error, code

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, cause: BaseException | None, where: TracebackType | None) -> None:
        if cause is None or isinstance(cause, FlowgradError):
            return
        node, doing = self.node, self.doing
        if isinstance(cause, MemoryError):
            raise ResourceError(f"out of memory in {doing} {node.op}: {cause}", code="memory",
                                where=describe(node)) from cause
        if isinstance(cause, UNFORESEEN):
            raise self.error(f"{doing} {node.op} failed ({type(cause).__name__}: {cause})", code=self.code,
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
