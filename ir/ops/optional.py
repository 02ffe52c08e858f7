"""Optional values: a tensor or a sequence that may be absent."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.dtypes import Option, boxed, content_of, optional_of
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import Trait, attr, op
from flowgrad.ir.types import BOOL, DType, Type, dtype_of


def _held(dtype: DType) -> DType:
    """Return what an optional value of a type holds; of anything else, that itself."""
    return dtype.element if dtype.kind == "optional" and dtype.element is not None else dtype


@op("Optional", since=15, outputs=("output",), traits=(Trait.LINEAR,), dtype_attributes=("type",))
def optional(x: Array | None = None, *, type: str | None = None) -> Array:  # noqa: A002 - the standard's name
    return boxed(Option(None if x is None else x.copy()))


@optional.types
def _(node: Node) -> Type:
    """An optional value of the input's type, or of what ``type`` names if there is no input."""
    x = node.optional(0)
    if x is None and not attr(node, "type"):
        raise ValidationError("Optional without an input needs the attribute type", code="attribute", where=describe(node))
    return Type(optional_of(dtype_of(attr(node, "type")) if x is None else x.type.dtype), ())


@optional.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = what y_bar holds, in the shape of x."""
    x = node.input(0)
    held = b.OptionalGetElement(y_bar)
    return held if x.type.dtype.element is not None else b.Reshape(held, b.shape(x), allowzero=1)


@op("OptionalHasElement", since=15, outputs=("output",), traits=(Trait.ZERO, Trait.SHAPE_ONLY))
def optional_has_element(x: Array | None = None) -> Array:
    return np.asarray(x is not None and _content(x) is not None)


def _content(x: Array) -> Array | None:
    """Return what an optional value holds; anything else as it is."""
    content = content_of(x) if x.dtype == object and not x.ndim else x
    return content.value if isinstance(content, Option) else x


@optional_has_element.types
def _(node: Node) -> Type:
    return Type(BOOL, ())


@op("OptionalGetElement", since=15, outputs=("output",), traits=(Trait.LINEAR,))
def optional_get_element(x: Array) -> Array:
    content = _content(x)
    if content is None:
        raise ValueError("an optional value without an element")
    return content.copy()


@optional_get_element.types
def _(node: Node) -> Type:
    """What the optional value holds: a tensor of unknown rank, or a sequence; anything else is passed on."""
    x = node.input(0)
    held = _held(x.type.dtype)
    return x.type if held is x.type.dtype else Type(held, () if held.element is not None else None)


@optional_get_element.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar, optional if x is."""
    return b.Optional(y_bar) if node.input(0).type.dtype.kind == "optional" else y_bar
