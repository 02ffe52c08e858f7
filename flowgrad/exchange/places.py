"""Where in a file an error is: the node with what it takes, under the names of the file, and who called it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from onnx import NodeProto

from flowgrad.ir.errors import FlowgradError, UnsupportedError
from flowgrad.ir.graph import Value

MOST_INPUTS = 8
"""How many inputs of a node are shown."""

_OPEN_SHAPES = ("rank", "shape")


class Place(NamedTuple):
    """A node that is being read, with the values that its names stand for; ``function`` is the one of the file it lies in.

    ``is_branch``: it lies in a branch of the node before it.
    """

    node: NodeProto
    values: Mapping[str, Value]
    function: str
    is_branch: bool


def at_place(error: FlowgradError, places: Sequence[Place]) -> FlowgradError:
    """Return ``error`` with the last of ``places`` as its place, and those before it as the calls that lead there."""
    node = places[-1].node
    message = error.message if node.op_type in error.message else f"{node.op_type}: {error.message}"
    if isinstance(error, UnsupportedError) and error.code in _OPEN_SHAPES:
        message += "; shapes={...} at load (--input-shapes) fixes those of the inputs"
    return type(error)(message, code=error.code, where=_shown(places))


def in_body_of(error: FlowgradError, places: Sequence[Place]) -> FlowgradError:
    """Return an error that has its place, in a subgraph of the last of ``places``."""
    return type(error)(error.message, code=error.code,
                       where=f"{error.where}; in a subgraph of {_named(places[-1].node)} ({places[-1].node.op_type})")


def _shown(places: Sequence[Place]) -> str:
    node, values, function, _ = places[-1]
    named = f"node {node.name!r}" if node.name else ""
    inside = f"in function {function!r}" if function else ""
    head = " ".join(part for part in (named, inside) if part)
    calls = "".join(_leading(outer, inner) for outer, inner in zip(reversed(places[:-1]), reversed(places), strict=False))
    return f"{head}: {_picture(node, values)}{calls}" if head else f"{_picture(node, values)}{calls}"


def _leading(outer: Place, inner: Place) -> str:
    if inner.is_branch:
        return f"; in a subgraph of {_named(outer.node)} ({outer.node.op_type})"
    return f"; called by {_named(outer.node)}{f' in function {outer.function!r}' if outer.function else ''}"


def _named(node: NodeProto) -> str:
    return f"node {node.name!r}" if node.name else f"the node that makes {next(iter(node.output), '')!r}"


def _picture(node: NodeProto, values: Mapping[str, Value]) -> str:
    """Return ``y = domain:Op(x: f32[2,3], w: f32[4,5])``."""
    inputs = ", ".join(_input(name, values) for name in node.input[:MOST_INPUTS])
    more = ", ..." if len(node.input) > MOST_INPUTS else ""
    op = f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return f"{', '.join(o for o in node.output if o)} = {op}({inputs}{more})"


def _input(name: str, values: Mapping[str, Value]) -> str:
    value = values.get(name)
    return f"{name}: {value.type!r}" if value is not None else name or "-"
