"""Convolution, transposed convolution, and the two derivatives of convolution as operators too.

Conv, ConvInputGrad and ConvWeightGrad are the three contractions of one trilinear form in (x, w, y_bar), so each is
the adjoint of the others and derivatives of any order stay among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.convolution import batching, expansions, kernels
from flowgrad.ir.ops.convolution.automatic_pads import is_misread, is_misread_transpose, padded, padded_transpose
from flowgrad.ir.ops.convolution.expansions import Slide, pad_image, shape_tail, vector_tail
from flowgrad.ir.ops.convolution.window import (
    SAME,
    Window,
    check_auto_pad,
    check_rank,
    output_shape,
    shape_in,
    slide,
    spatial_tuple,
    split_pads,
)
from flowgrad.ir.ops.operands import sum_of
from flowgrad.ir.ops.registry import FLOWGRAD, NO_GRADIENT, Cut, Trait, attr, op
from flowgrad.ir.ops.splitting import PRODUCTS, spans
from flowgrad.ir.types import UNKNOWN, DimLike, Shape, Type

GEOMETRY = ("auto_pad", "dilations", "group", "pads", "strides")


def geometry(node: Node) -> dict[str, Any]:
    """Return the attributes that say how the kernel slides, as a node of this family takes them."""
    return {name: node.attributes[name] for name in GEOMETRY if name in node.attributes}


def kernel_of(node: Node, w: Value, rank: int) -> Shape:
    """Return the kernel extents: those of the weights, or the attribute where only that is known."""
    given = node.attributes.get("kernel_shape")
    known = w.type.shape[2:] if w.type.shape is not None else (UNKNOWN,) * rank
    check_rank(known, rank)
    if given is None:
        return known
    if len(given) != rank or any(isinstance(k, int) and k != g for k, g in zip(known, given, strict=True)):
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


def ranks_alike(node: Node) -> list[int | None]:
    """Image and weights have as many axes as each other."""
    x, w = node.input(0).type.rank, node.input(1).type.rank
    return [w if x is None else x] * 2


def bilinear_tangent(b: Builder, node: Node, x_dot: Value | None, w_dot: Value | None, bias_dot: Value | None) -> Value:
    """Return op(x_dot, w) + op(x, w_dot), the tangent of the bias added on the way."""
    x, w = node.input(0), node.input(1)
    terms = []
    for image, kernel in ((x_dot, w), (x, w_dot)):
        if image is not None and kernel is not None:
            terms.append(b.add(node.op, [image, kernel, bias_dot], node.attributes))
            bias_dot = None
    if not terms:
        column = b.Unsqueeze(bias_dot, list(range(1, len(x.shape) - 1)))
        return b.Expand(column, b.shape(node.output()))
    return sum_of(b, terms)


# ---- Conv ---------------------------------------------------------------------------------------------------------------


@op("Conv", since=11, traits=(Trait.MULTILINEAR,))
def conv(
    x: Array, w: Array, b: Array | None = None, *,
    auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    kernel_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    out: Array | None = None, work: Sequence[Array] | None = None,
) -> Array:
    window = slide(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    return kernels.convolve(x, w, b, window, group, out, work)


@conv.types
def _(node: Node) -> Type:
    x, w = node.input(0), node.input(1)
    return Type(x.type.dtype, convolved_shape(node, x, w))


def convolved_shape(node: Node, x: Value, w: Value) -> Shape | None:
    """Return the shape of an image ``x`` convolved by ``w`` as the attributes of ``node`` say."""
    if x.type.shape is None or w.type.shape is None:
        return None
    batch, channels, *sizes = x.shape
    check_channels(node, channels, w.shape[1], w.shape[0])
    return batch, w.shape[0], *output_shape(node, tuple(sizes), kernel_of(node, w, len(sizes)))


conv.ranks(ranks_alike)
conv.expands_on_export(is_misread)
conv.expansion(padded)


@conv.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar and w_bar are the other two contractions of the trilinear form; b_bar = sum of y_bar over batch and image."""
    x, w = node.input(0), node.input(1)
    how = geometry(node)
    x_bar = b.ConvInputGrad(y_bar, w, b.shape(x), **how)
    w_bar = b.ConvWeightGrad(b.support.read(x, y_bar, range(1 - len(x.shape), 0)), y_bar, b.shape(w), **how)
    bias = b.ReduceSum(y_bar, spatial_axes(len(y_bar.shape)), keepdims=0) if len(node.inputs) > 2 else None
    return [x_bar, w_bar, bias][: len(node.inputs)]


@conv.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, w_dot: Value | None, bias_dot: Value | None = None) -> Any:
    """y_dot = conv(x_dot, w) + conv(x, w_dot) + b_dot."""
    return bilinear_tangent(b, node, x_dot, w_dot, bias_dot)


@conv.work
def _(node: Node) -> list[Type]:
    x, w = node.input(0), node.input(1)
    window = window_of(node, x.type.static_shape[2:], w.type.static_shape[2:])
    batch, channels, *sizes = x.type.static_shape
    if window.is_pointwise and tuple(sizes) == window.output:  # the columns are the images themselves
        return []
    shapes = kernels.scratch_shapes(batch, channels, w.type.static_shape[0], window, attr(node, "group"), sizes)
    return scratch_types(node, shapes)


def split_by_image(node: Node, positions: Sequence[int]) -> list[tuple[Cut, ...]]:
    """Return the spans of images that the work of a node is cut into; ``positions`` are those of the windows.

    The first input and the output have one row per image, independent of each other.
    """
    images, kernel = node.input(0).type.static_shape, node.input(1).type.static_shape
    batch = images[0]
    work = batch * int(np.prod((*positions, *kernel), dtype=object))
    if batch < 2 or work < 2 * PRODUCTS:
        return []
    rest = (None,) * (len(node.inputs) - 1)
    return [((slice(*span),), *rest, (slice(*span),)) for span in spans(batch, -(-work // PRODUCTS))]


@conv.split
def _(node: Node) -> list[tuple[Cut, ...]]:
    return split_by_image(node, node.output().type.static_shape[2:])


def scratch_types(node: Node, shapes: Sequence[tuple[int, ...]]) -> list[Type]:
    """Return the types of scratch arrays: kernels compute narrow floats in float32."""
    return [Type(node.input(0).type.dtype.wide, shape) for shape in shapes]


def window_of(node: Node, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """Return the window geometry of a node on an image of known extents."""
    return slide(sizes, kernel, attr(node, "strides"), attr(node, "dilations"), attr(node, "pads"), attr(node, "auto_pad"))


# ---- the derivatives of Conv --------------------------------------------------------------------------------------------


@op("ConvInputGrad", domain=FLOWGRAD, outputs=("x_bar",), traits=(Trait.BILINEAR,), extents=("x_shape",))
def conv_input_grad(
    y_bar: Array, w: Array, x_shape: Array, *,
    auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    out: Array | None = None, work: Sequence[Array] | None = None,
) -> Array:
    sizes = tuple(int(n) for n in x_shape[2:])
    window = slide(sizes, w.shape[2:], strides, dilations, pads, auto_pad)
    return kernels.input_gradient(y_bar, w, window, group, sizes, out, work)


@conv_input_grad.types
def _(node: Node) -> Type:
    y_bar, w, x_shape = (node.input(i) for i in range(3))
    shape = shape_in(x_shape)
    return Type(y_bar.type.dtype, shape)


@conv_input_grad.work
def _(node: Node) -> list[Type]:
    w, group = node.input(1), attr(node, "group")
    batch, channels, *sizes = node.output().type.static_shape
    outputs = w.type.static_shape[0]
    window = window_of(node, tuple(sizes), w.type.static_shape[2:])
    return scratch_types(node, kernels.gradient_scratch_shapes(batch, channels, outputs, window, group, sizes))


@conv_input_grad.split
def _(node: Node) -> list[tuple[Cut, ...]]:
    return split_by_image(node, node.input(0).type.static_shape[2:])


@conv_input_grad.expansion
def _(b: Builder, node: Node) -> Value:
    """A transposed convolution, cut or padded to the image."""
    y_bar, w, x_shape = (node.input(i) for i in range(3))
    slide_ = Slide.of(b, node, len(y_bar.shape) - 2, shape_tail(b, x_shape))
    return expansions.input_gradient(b, slide_, y_bar, w, attr(node, "group"))


@conv_input_grad.adjoint
def _(b: DerivativeBuilder, node: Node, x_bar_bar: Value) -> Any:
    """The other two contractions of the trilinear form, with the cotangent of x_bar in the place of x."""
    y_bar, w = node.input(0), node.input(1)
    how = geometry(node)
    return b.Conv(x_bar_bar, w, **how), b.ConvWeightGrad(x_bar_bar, y_bar, b.shape(w), **how), NO_GRADIENT


@op("ConvWeightGrad", domain=FLOWGRAD, outputs=("w_bar",), traits=(Trait.BILINEAR,), extents=("w_shape",))
def conv_weight_grad(
    x: Array, y_bar: Array, w_shape: Array, *,
    auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    out: Array | None = None, work: Sequence[Array] | None = None,
) -> Array:
    kernel = tuple(int(n) for n in w_shape[2:])
    window = slide(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
    return kernels.weight_gradient(x, y_bar, window, group, out, work)


@conv_weight_grad.types
def _(node: Node) -> Type:
    return Type(node.input(0).type.dtype, shape_in(node.input(2)))


@conv_weight_grad.work
def _(node: Node) -> list[Type]:
    batch, channels, *sizes = node.input(0).type.static_shape
    outputs, _, *kernel = node.output().type.static_shape
    window = window_of(node, tuple(sizes), tuple(kernel))
    shapes = kernels.scratch_shapes(batch, channels, outputs, window, attr(node, "group"), sizes)
    return scratch_types(node, shapes)


@conv_weight_grad.expansion
def _(b: Builder, node: Node) -> Value:
    """A convolution with y_bar as the kernel, batch and channels swapped, strides as dilations."""
    x, y_bar, w_shape = (node.input(i) for i in range(3))
    slide_ = Slide.of(b, node, len(x.shape) - 2, vector_tail(b, x))
    return expansions.weight_gradient(b, slide_, x, y_bar, w_shape, attr(node, "group"))


@conv_weight_grad.adjoint
def _(b: DerivativeBuilder, node: Node, w_bar_bar: Value) -> Any:
    """The other two contractions of the trilinear form, with the cotangent of w_bar in the place of w."""
    x, y_bar = node.input(0), node.input(1)
    how = geometry(node)
    return b.ConvInputGrad(y_bar, w_bar_bar, b.shape(x), **how), b.Conv(x, w_bar_bar, **how), NO_GRADIENT


# ---- ConvTranspose ------------------------------------------------------------------------------------------------------


def transposed_window(
    sizes: Sequence[int], kernel: Sequence[int], *, auto_pad: str, dilations: Sequence[int] | None,
    output_padding: Sequence[int] | None, output_shape: Sequence[int] | None, pads: Sequence[int] | None,
    strides: Sequence[int] | None,
) -> tuple[Window, tuple[int, ...]]:
    """Return the window of the convolution that is transposed, and the extents of the image it makes."""
    rank = len(sizes)
    steps = spatial_tuple(strides, rank, 1, "strides")
    spread = spatial_tuple(dilations, rank, 1, "dilations")
    extra = spatial_tuple(output_padding, rank, 0, "output_padding")
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True)]
    full = [s * (n - 1) + e + r for s, n, e, r in zip(steps, sizes, extra, reach, strict=True)]
    begin, end = split_pads(pads if auto_pad == "NOTSET" else None, rank)
    made = [f - p - q for f, p, q in zip(full, begin, end, strict=True)]
    wanted = _wanted_extents(sizes, steps, auto_pad, output_shape)
    if wanted is not None:
        made = list(wanted)
        totals = [max(0, f - m) for f, m in zip(full, made, strict=True)]
        small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    return Window(tuple(kernel), steps, spread, begin, end, tuple(sizes)), tuple(made)


def _wanted_extents(sizes: Sequence[Any], steps: Sequence[int], auto_pad: str, given: Sequence[int] | None) -> Any:
    if given:
        return tuple(given)[-len(sizes):]
    return tuple(n * s for n, s in zip(sizes, steps, strict=True)) if auto_pad in SAME else None


@op("ConvTranspose", since=11, traits=(Trait.MULTILINEAR,))
def conv_transpose(
    x: Array, w: Array, b: Array | None = None, *,
    auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    kernel_shape: Sequence[int] | None = None, output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    out: Array | None = None,
) -> Array:
    window, sizes = transposed_window(x.shape[2:], w.shape[2:], auto_pad=auto_pad, dilations=dilations, pads=pads,
                                      output_padding=output_padding, output_shape=output_shape, strides=strides)
    y = kernels.input_gradient(x, w, window, group, sizes, out)
    if b is not None:
        y += b.reshape(-1, *(1,) * len(sizes))
    return y


@conv_transpose.types
def _(node: Node) -> Type:
    x, w = node.input(0), node.input(1)
    if x.type.shape is None or w.type.shape is None:
        return Type(x.type.dtype, None)
    mode, group = check_auto_pad(node), attr(node, "group")
    batch, channels, *sizes = x.shape
    check_channels(node, w.shape[0], UNKNOWN, channels)
    rank = len(sizes)
    kernel = kernel_of(node, w, rank)
    steps = spatial_tuple(attr(node, "strides"), rank, 1, "strides")
    wanted = _wanted_extents(sizes, steps, mode, attr(node, "output_shape"))
    if wanted is None:
        spread = spatial_tuple(attr(node, "dilations"), rank, 1, "dilations")
        extra = spatial_tuple(attr(node, "output_padding"), rank, 0, "output_padding")
        begin, end = split_pads(attr(node, "pads") if mode == "NOTSET" else None, rank)
        wanted = tuple(s * (n - 1) + e + (k - 1) * d + 1 - p - q for n, k, s, d, e, p, q in
                       zip(sizes, kernel, steps, spread, extra, begin, end, strict=True))
    return Type(x.type.dtype, (batch, w.shape[1] * group, *wanted))


conv_transpose.ranks(ranks_alike)
conv_transpose.expands_on_export(is_misread_transpose)
conv_transpose.expansion(padded_transpose)


@conv_transpose.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """With y the image that the convolution by w maps to x: x_bar = conv(y_bar, w), w_bar its weight derivative."""
    x, w = node.input(0), node.input(1)
    image, pads = _convolved(b, node, y_bar)
    how = {"dilations": node.attributes.get("dilations"), "strides": node.attributes.get("strides"),
           "group": attr(node, "group"), "pads": pads}
    x_bar = b.Conv(image, w, **how)
    w_bar = b.ConvWeightGrad(image, x, b.shape(w), **how)
    bias = b.ReduceSum(y_bar, spatial_axes(len(y_bar.shape)), keepdims=0) if len(node.inputs) > 2 else None
    return [x_bar, w_bar, bias][: len(node.inputs)]


def _convolved(b: Builder, node: Node, y_bar: Value) -> tuple[Value, tuple[int, ...]]:
    """Return y_bar and the pads with which a convolution of it has exactly the extents of x.

    Where pads alone cannot do that, y_bar is cut or padded to the span of all windows first.
    """
    x, w = node.input(0), node.input(1)
    rank = len(x.shape) - 2
    names = ("auto_pad", "dilations", "output_padding", "output_shape", "pads", "strides")
    given = {name: attr(node, name) for name in names}
    sizes, kernel = x.shape[2:], w.shape[2:]
    steps = spatial_tuple(given["strides"], rank, 1, "strides")
    extra = spatial_tuple(given["output_padding"], rank, 0, "output_padding")
    fixed = given["auto_pad"] not in SAME and not given["output_shape"]
    if fixed and all(e < s for e, s in zip(extra, steps, strict=True)):
        begin, end = split_pads(given["pads"] if given["auto_pad"] == "NOTSET" else None, rank)
        return y_bar, (*begin, *end)
    if all(isinstance(n, int) for n in (*sizes, *kernel)):
        window, made = transposed_window(sizes, kernel, **given)  # type: ignore[arg-type]
        after = [s - b_ - m for s, b_, m in zip(window.span, window.begin, made, strict=True)]
        return pad_image(b, y_bar, b.ints(window.begin), b.ints(after)), (0,) * (2 * rank)
    span, total = _spans(b, node, y_bar, kernel)
    small = b.Div(total, 2)
    begin_ = small if given["auto_pad"] == "SAME_UPPER" else b.Sub(total, small)
    if fixed:
        begin_ = b.ints(split_pads(given["pads"] if given["auto_pad"] == "NOTSET" else None, rank)[0])
    after_ = b.Sub(b.Sub(span, begin_), vector_tail(b, y_bar))
    return pad_image(b, y_bar, begin_, after_), (0,) * (2 * rank)


def _spans(b: Builder, node: Node, y_bar: Value, kernel: Shape) -> tuple[Value, Value]:
    """Return the span of all windows and how much of it (with the output padding) lies outside y, as vectors."""
    x, w = node.input(0), node.input(1)
    rank = len(kernel)
    slide_ = Slide(b, rank, vector_tail(b, y_bar), spatial_tuple(attr(node, "strides"), rank, 1, "strides"),
                   spatial_tuple(attr(node, "dilations"), rank, 1, "dilations"), split_pads(None, rank), "NOTSET")
    steps = b.Mul(b.Sub(vector_tail(b, x), 1), list(slide_.strides))
    span = b.Add(steps, slide_.reach(vector_tail(b, w)))
    extra = list(spatial_tuple(attr(node, "output_padding"), rank, 0, "output_padding"))
    total = b.Max(b.Sub(b.Add(span, extra), vector_tail(b, y_bar)), b.ints([0]))
    return span, total


@conv_transpose.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, w_dot: Value | None, bias_dot: Value | None = None) -> Any:
    """y_dot = conv_transpose(x_dot, w) + conv_transpose(x, w_dot) + b_dot."""
    return bilinear_tangent(b, node, x_dot, w_dot, bias_dot)


# ---- many examples ----------------------------------------------------------------------------------------------------------


@conv.batch
def _(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """More images, or more channels, or a product for each example."""
    return batching.convolution(b, node, xs)


@conv_input_grad.batch
def _(b: BatchBuilder, node: Node, *xs: Value) -> Any:
    """More images, or more channels, or a product for each example."""
    return batching.input_gradient(b, node, *xs)


@conv_weight_grad.batch
def _(b: BatchBuilder, node: Node, *xs: Value) -> Any:
    """More channels, or a product for each example."""
    return batching.weight_gradient(b, node, *xs)


@conv_transpose.batch
def _(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """More images, or more channels."""
    return batching.transposed(b, node, xs)
