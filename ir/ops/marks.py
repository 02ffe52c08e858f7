"""Operators that change derivatives and no value."""

from __future__ import annotations

from typing import Any

from flowgrad.ir.graph import Array, Node
from flowgrad.ir.ops.registry import Trait, op


@op("StopGradient", own=True, traits=(Trait.ELEMENTWISE, Trait.VIEW, Trait.ZERO))
def stop_gradient(x: Array) -> Array:
    return x


@stop_gradient.expansion
def _(b: Any, node: Node) -> Any:
    """y = x; that no derivative passes has been settled by then."""
    return b.Identity(node.input(0))
