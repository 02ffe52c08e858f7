"""Convolution, transposed convolution, and the two derivatives of convolution as own operators.

Conv, ConvInputGrad and ConvWeightGrad are the three contractions of one trilinear form in (x, w, y_bar), so each is
the adjoint of the others and derivatives of any order stay among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops import convolution
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op
from flowgrad.ir.ops.window import SAME, Window, check_auto_pad, output_shape, shape_in, slide, spatial_tuple
from flowgrad.ir.types import FLOAT32, UNKNOWN, DimLike, Shape, Type

GEOMETRY = ("auto_pad", "dilations", "group", "pads", "strides")


def geometry(node: Node) -> dict[str, Any]:
    """Return the attributes that say how the kernel slides, as a node of this family takes them."""
    return {name: node.attributes[name] for name in GEOMETRY if name in node.attributes}


def kernel_of(node: Node, w: Value, rank: int) -> Shape:
    """Return the kernel extents: those of the weights, or the attribute where only that is known."""
    given = node.attributes.get("kernel_shape")
    known = w.type.shape[2:] if w.type.shape is not None else (UNKNOWN,) * rank
    if given is None:
        return known
    if any(isinstance(k, int) and k != g for k, g in zip(known, given, strict=True)):
        raise ValidationError(f"kernel_shape {list(given)} does not fit weights {w.type!r}", code="shape", where=node.label)
    return tuple(given)


def spatial_axes(rank: int) -> list[int]:
    """Return the axes that a bias is summed over: the batch and the image."""
    return [0, *range(2, rank)]


def check_channels(node: Node, channels: DimLike, per_group: DimLike, outputs: DimLike) -> None:
    """Raise ValidationError where group, channels and weights do not fit together."""
    group = attr(node, "group")
    if group < 1 or (isinstance(outputs, int) and outputs % group):
        raise ValidationError(f"group {group} does not divide {outputs!r} channels", code="attribute", where=node.label)
    if isinstance(channels, int) and isinstance(per_group, int) and channels != per_group * group:
        raise ValidationError(f"{channels} channels in {group} groups do not fit weights for {per_group} each",
                              code="shape", where=node.label)


# ---- Conv ---------------------------------------------------------------------------------------------------------------


@op("Conv", since=11)
def conv(
    x: Array, w: Array, b: Array | None = None, *,
    auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    kernel_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    out: Array | None = None, work: Sequence[Array] | None = None,
) -> Array:
    window = slide(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    return convolution.convolve(x, w, b, window, group, out, work)


@conv.types
def _(node: Node) -> Type:
    x, w = node.input(0), node.input(1)
    if x.type.shape is None or w.type.shape is None:
        return Type(x.type.dtype, None)
    batch, channels, *sizes = x.shape
    check_channels(node, channels, w.shape[1], w.shape[0])
    return Type(x.type.dtype, (batch, w.shape[0], *output_shape(node, tuple(sizes), kernel_of(node, w, len(sizes)))))


@conv.adjoint
def _(b: Any, node: Node, y_bar: Value) -> Any:
    """x_bar and w_bar are the other two contractions of the trilinear form; b_bar = sum of y_bar over batch and image."""
    x, w = node.input(0), node.input(1)
    how = geometry(node)
    x_bar = b.ConvInputGrad(y_bar, w, b.shape(x), **how)
    w_bar = b.ConvWeightGrad(x, y_bar, b.shape(w), **how)
    bias = b.ReduceSum(y_bar, spatial_axes(y_bar.type.rank), keepdims=0) if len(node.inputs) > 2 else None
    return [x_bar, w_bar, bias][: len(node.inputs)]


@conv.tangent
def _(b: Any, node: Node, x_dot: Value | None, w_dot: Value | None, bias_dot: Value | None = None) -> Any:
    """y_dot = conv(x_dot, w) + conv(x, w_dot) + b_dot."""
    x, w = node.input(0), node.input(1)
    terms = []
    for image, kernel in ((x_dot, w), (x, w_dot)):
        if image is not None and kernel is not None:
            terms.append(b.Conv(image, kernel, bias_dot, **geometry(node)))
            bias_dot = None
    if bias_dot is not None:
        rank = node.output().type.rank or 0
        column = b.Unsqueeze(bias_dot, list(range(1, rank - 1)))
        return b.Expand(column, b.shape(node.output()))
    return terms[0] if len(terms) == 1 else b.Add(*terms)


@conv.work
def _(node: Node) -> list[Type]:
    x, w = node.input(0), node.input(1)
    window = window_of(node, x.type.static_shape[2:], w.type.static_shape[2:])
    if window.is_pointwise and x.type.static_shape[2:] == window.output:
        return []
    shapes = convolution.scratch_shapes(*x.type.static_shape[:2], w.type.static_shape[0], window, attr(node, "group"),
                                        x.type.static_shape[2:])
    return scratch_types(node, shapes)


def scratch_types(node: Node, shapes: Sequence[tuple[int, ...]]) -> list[Type]:
    """Return the types of scratch arrays: kernels compute narrow floats in float32."""
    dtype = node.input(0).type.dtype
    return [Type(FLOAT32 if dtype.itemsize < 4 else dtype, shape) for shape in shapes]


def window_of(node: Node, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """Return the window geometry of a node on an image of known extents."""
    return slide(sizes, kernel, attr(node, "strides"), attr(node, "dilations"), attr(node, "pads"), attr(node, "auto_pad"))


# ---- the derivatives of Conv --------------------------------------------------------------------------------------------


@op("ConvInputGrad", own=True, outputs=("x_bar",), traits=(Trait.BILINEAR,))
def conv_input_grad(
    y_bar: Array, w: Array, x_shape: Array, *,
    auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    out: Array | None = None,
) -> Array:
    sizes = tuple(int(n) for n in x_shape[2:])
    window = slide(sizes, w.shape[2:], strides, dilations, pads, auto_pad)
    return convolution.input_gradient(y_bar, w, window, group, sizes, out)


@conv_input_grad.types
def _(node: Node) -> Type:
    y_bar, w, x_shape = (node.input(i) for i in range(3))
    shape = shape_in(x_shape)
    return Type(y_bar.type.dtype, shape)


@conv_input_grad.adjoint
def _(b: Any, node: Node, x_bar_bar: Value) -> Any:
    """The other two contractions of the trilinear form, with the cotangent of x_bar in the place of x."""
    y_bar, w = node.input(0), node.input(1)
    how = geometry(node)
    return b.Conv(x_bar_bar, w, **how), b.ConvWeightGrad(x_bar_bar, y_bar, b.shape(w), **how), NO_GRADIENT


@op("ConvWeightGrad", own=True, outputs=("w_bar",), traits=(Trait.BILINEAR,))
def conv_weight_grad(
    x: Array, y_bar: Array, w_shape: Array, *,
    auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    out: Array | None = None,
) -> Array:
    kernel = tuple(int(n) for n in w_shape[2:])
    window = slide(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
    return convolution.weight_gradient(x, y_bar, window, group, out)


@conv_weight_grad.types
def _(node: Node) -> Type:
    return Type(node.input(0).type.dtype, shape_in(node.input(2)))


@conv_weight_grad.adjoint
def _(b: Any, node: Node, w_bar_bar: Value) -> Any:
    """The other two contractions of the trilinear form, with the cotangent of w_bar in the place of w."""
    x, y_bar = node.input(0), node.input(1)
    how = geometry(node)
    return b.ConvInputGrad(y_bar, w_bar_bar, b.shape(x), **how), b.Conv(x, w_bar_bar, **how), NO_GRADIENT
