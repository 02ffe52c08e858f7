"""Optional values: a tensor or a sequence that may be absent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.dtypes import Option, boxed, content_of, optional_of
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.operands import sum_of
from flowgrad.ir.ops.registry import FLOWGRAD, Trait, attr, like_first, op
from flowgrad.ir.ops.sequences import sequence_add, sequence_zeros
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


# ---- what derivatives need ----------------------------------------------------------------------------------------------


@op("OptionalZeros", since=15, domain=FLOWGRAD, outputs=("output",), traits=(Trait.ZERO,))
def optional_zeros(x: Array) -> Array:
    """Zeros of what an optional value holds; an absent one stays absent."""
    held = content_of(x).value
    if held is None:
        return boxed(Option(None))
    return boxed(Option(sequence_zeros.kernel(held) if _is_boxed(held) else np.zeros_like(held)))


def _is_boxed(array: Array) -> bool:
    """Return whether an array holds a sequence."""
    return array.dtype == object and not array.ndim and isinstance(content_of(array), tuple)


optional_zeros.types(like_first)


@optional_zeros.expansion
def _(b: Builder, node: Node) -> Any:
    return _if_present(b, node.operands, lambda inner, held: inner.zeros_like(held[0]))


@op("OptionalAdd", since=15, domain=FLOWGRAD, outputs=("output",), traits=(Trait.LINEAR,))
def optional_add(x: Array, y: Array) -> Array:
    """The sum of what two optional values hold, that are absent together or not."""
    a, c = content_of(x).value, content_of(y).value
    if a is None or c is None:
        if a is not c:
            raise ValueError("one of two optional values is absent, the other is not")
        return boxed(Option(None))
    return boxed(Option(sequence_add.kernel(a, c) if _is_boxed(a) else np.add(a, c)))


@optional_add.types
def _(node: Node) -> Type:
    if node.input(0).type.dtype != node.input(1).type.dtype:
        raise ValidationError("optional values of different types cannot be added", code="dtype", where=describe(node))
    return node.input(0).type


@optional_add.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar, for both."""
    return y_bar, y_bar


@optional_add.expansion
def _(b: Builder, node: Node) -> Any:
    return _if_present(b, node.operands, sum_of)


def _if_present(b: Builder, optionals: Sequence[Value], function: Callable[[Builder, list[Value]], Value]) -> Value:
    """Return ``function`` of what optional values hold, as an optional value; an absent one if the first is absent."""
    present, absent = Graph("present"), Graph("absent")
    inner = Builder(present)
    for graph in (present, absent):
        for k, x in enumerate(optionals):
            graph.add_input(f"optional_{k}", x.type)
    made = function(inner, [inner.OptionalGetElement(formal) for formal in present.inputs])
    present.add_output(inner.Optional(made), "made")
    absent.add_output(Builder(absent).Optional(type=_held(optionals[0].type.dtype).name), "made")
    branches = {"then_branch": present, "else_branch": absent}
    return b.add("If", [b.OptionalHasElement(optionals[0])], captures=optionals, subgraphs=branches)
