"""Resize: separable interpolation, its derivative, and that in plain ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, looped, within_batch
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.convolution.batching import scaled_shape
from flowgrad.ir.ops.convolution.window import shape_in
from flowgrad.ir.ops.operands import joined, known_dims, known_ints, normal_axes, sum_of
from flowgrad.ir.ops.registry import FLOWGRAD, NO_GRADIENT, attr, op, refuse
from flowgrad.ir.ops.resize.interpolation import Axis, Sampling, interpolate, matrix, plan, spread, taps
from flowgrad.ir.types import UNKNOWN, Dim, DimLike, Shape, Type, floor_div

ATTRIBUTES = ("antialias", "axes", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside",
              "keep_aspect_ratio_policy", "mode", "nearest_mode")
CHOICES = {
    "mode": ("nearest", "linear", "cubic"),
    "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    "coordinate_transformation_mode": ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners",
                                       "asymmetric", "tf_crop_and_resize"),
    "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
}
BETWEEN_CORNERS = ("align_corners", "tf_crop_and_resize")


def linear_part(node: Node) -> dict[str, Any]:
    """Return the attributes of the linear map: all but the value beyond the input, which is a constant term."""
    return {name: node.attributes[name] for name in ATTRIBUTES if name in node.attributes}


@op("Resize", new_dtypes=("roi",), since=18, extents=("scales", "sizes"), settings=("roi",), float32_inputs=("scales",),
    values_since={("coordinate_transformation_mode", "half_pixel_symmetric"): 19})
def resize(
    x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None, *,
    antialias: int = 0, axes: Sequence[int] | None = None, coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75, exclude_outside: int = 0, extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
) -> Array:
    how = Sampling(mode, nearest_mode, coordinate_transformation_mode, bool(antialias), cubic_coeff_a, bool(exclude_outside))
    y = x if x.dtype.kind == "f" or mode == "nearest" else x.astype(np.float64)
    for axis in plan(x.shape, roi, scales, sizes, axes, keep_aspect_ratio_policy, coordinate_transformation_mode):
        if not axis.is_unchanged:
            y = interpolate(y, axis, how, extrapolation_value)
    if y.dtype != x.dtype:
        limits = np.iinfo(x.dtype)
        y = np.clip(np.rint(y), limits.min, limits.max).astype(x.dtype)
    return y.copy() if y is x else y


def _absent(value: Value | None) -> bool:
    return value is None or value.type.shape == (0,)


@resize.types
def _(node: Node) -> Type:
    x = node.input(0)
    for name, legal in CHOICES.items():
        if attr(node, name) not in legal:
            raise ValidationError(f"{name} is {attr(node, name)!r}, not one of {', '.join(legal)}", code="attribute",
                                  where=node.label)
    if attr(node, "antialias") and attr(node, "mode") == "nearest":
        raise ValidationError("antialias needs linear or cubic interpolation", code="attribute", where=node.label)
    if x.type.shape is None:
        return x.type
    return x.type.with_shape(_made(node, x))


def _operands(node: Node) -> tuple[Value | None, Value | None, Value | None]:
    roi, scales, sizes = (None if _absent(v) else v for v in map(node.optional, (1, 2, 3)))
    return roi, scales, sizes


def _made(node: Node, x: Value) -> tuple[DimLike, ...]:
    _, scales, sizes = _operands(node)
    if scales is None and sizes is None:
        raise ValidationError("Resize needs scales or sizes", code="input", where=node.label)
    rank = len(x.shape)
    axes = attr(node, "axes")
    chosen = [a % rank for a in axes] if axes is not None else list(range(rank))
    made: list[DimLike] = list(x.shape)
    if scales is not None:
        factors = scales.constant
        if factors is not None and factors.shape != (len(chosen),):
            raise ValidationError(f"Resize takes one scale for each of {len(chosen)} axes, got {factors.size}", code="shape",
                                  where=node.label)
        for i, a in enumerate(chosen):
            made[a] = UNKNOWN if factors is None else scaled_extent(x.shape[a], float(factors[i]))
        return tuple(made)
    wanted = known_dims(sizes) or [UNKNOWN] * len(chosen)
    if attr(node, "keep_aspect_ratio_policy") != "stretch":
        numbers = known_ints(sizes)
        if numbers is None or not all(isinstance(x.shape[a], int) for a in chosen):
            wanted = [UNKNOWN] * len(chosen)
        else:
            factors_ = [n / max(int(x.shape[a]), 1) for n, a in zip(numbers, chosen, strict=True)]  # type: ignore[arg-type]
            scale = min(factors_) if attr(node, "keep_aspect_ratio_policy") == "not_larger" else max(factors_)
            wanted = [int(scale * int(x.shape[a]) + 0.5) for a in chosen]  # type: ignore[arg-type]
    for a, extent in zip(chosen, wanted, strict=True):
        made[a] = extent
    return tuple(made)


def scaled_extent(size: DimLike, scale: float) -> DimLike:
    """Return floor(size * scale) as the standard computes it, in float32; UNKNOWN where only the run can tell."""
    if not isinstance(size, Dim):
        return int(np.floor(np.float32(size) * np.float32(scale)))
    if scale == int(scale):
        return size * int(scale)
    inverse = 1 / scale if scale > 0 else 0.0
    if inverse == int(inverse) and int(inverse) & (int(inverse) - 1) == 0 and inverse:
        return floor_div(size, int(inverse))
    return UNKNOWN


def is_misread(node: Node) -> bool:
    """Between corners the standard samples the scaled extent, as its tests show; runtimes sample its whole part.

    Where that is the extent there was, they do not sample at all.
    """
    x = node.input(0)
    axes = _known_axes(node, x.type.shape, *_operands(node)) if x.type.dtype.is_float else None
    if axes is None or not any(axis.is_cut for axis in axes):
        return False
    return attr(node, "coordinate_transformation_mode") in BETWEEN_CORNERS or all(axis.made == axis.size for axis in axes)


resize.expands_on_export(is_misread)


@resize.expansion
def _(b: Builder, node: Node) -> Any:
    """The weighted sum of what is gathered at each tap, axis by axis."""
    y = node.input(0)
    axes = _known_axes(node, y.type.shape, *_operands(node))
    if axes is None:
        return refuse("the extents and scales of a Resize in other operators must be known before the run")
    for axis in axes:
        y = _gathered(b, node, y, axis)
    return y


def _known_axes(node: Node, shape: Shape | None, roi: Value | None, scales: Value | None, sizes: Value | None
                ) -> list[Axis] | None:
    """Return the axes that change, if everything about them is known before the run."""
    given = [None if v is None else v.constant for v in (roi, scales, sizes)]
    if shape is None or any(v is not None and c is None for v, c in zip((roi, scales, sizes), given, strict=True)):
        return None
    axes, factors = attr(node, "axes"), given[1]
    chosen = [a % len(shape) for a in axes] if axes is not None else list(range(len(shape)))
    changed = [a for i, a in enumerate(chosen) if roi is not None or factors is None or factors[i] != 1]
    extents = [n if isinstance(n, int) else 1 for n in shape]
    if not all(isinstance(shape[a], int) for a in changed):
        return None
    made = plan(extents, given[0], factors, given[2], axes, attr(node, "keep_aspect_ratio_policy"),
                attr(node, "coordinate_transformation_mode"))
    return [axis for axis in made if axis.axis in changed and not axis.is_unchanged]


def _gathered(b: Builder, node: Node, x: Value, axis: Axis) -> Value:
    at, weights, beyond = taps(axis, _sampling(node))
    dtype, column = x.type.dtype, (axis.made, *(1,) * (len(x.shape) - 1 - axis.axis))
    parts = [b.Gather(x, at[:, tap], axis=axis.axis) for tap in range(at.shape[1])]
    if attr(node, "mode") != "nearest":
        parts = [b.Mul(p, weights[:, tap].astype(dtype.numpy).reshape(column)) for tap, p in enumerate(parts)]
    total = sum_of(b, parts)
    value = b.scalar(attr(node, "extrapolation_value"), dtype)
    return total if beyond is None else b.Where(beyond.reshape(column), value, total)


@resize.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = the transposed interpolation of y_bar; scales, sizes and roi choose positions and get none."""
    roi, scales, sizes = _operands(node)
    x = node.input(0)
    x_bar = b.ResizeGrad(y_bar, b.shape(x), roi, scales, sizes, **linear_part(node))
    return [x_bar, NO_GRADIENT, NO_GRADIENT, NO_GRADIENT][: len(node.inputs)]


@resize.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, *others: Value | None) -> Any:
    """y_dot = the interpolation of x_dot, with 0 beyond the input."""
    return None if x_dot is None else b.Resize(x_dot, *_operands(node), **linear_part(node))


# ---- the derivative -------------------------------------------------------------------------------------------------------


@op("ResizeGrad", new_dtypes=("roi",), domain=FLOWGRAD, outputs=("x_bar",), extents=("x_shape",), float32_inputs=("scales",))
def resize_grad(
    y_bar: Array, x_shape: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None, *,
    antialias: int = 0, axes: Sequence[int] | None = None, coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75, exclude_outside: int = 0, keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
) -> Array:
    how = Sampling(mode, nearest_mode, coordinate_transformation_mode, bool(antialias), cubic_coeff_a, bool(exclude_outside))
    shape = [int(n) for n in x_shape]
    x_bar = np.ascontiguousarray(y_bar)
    for axis in plan(shape, roi, scales, sizes, axes, keep_aspect_ratio_policy, coordinate_transformation_mode):
        if not axis.is_unchanged:
            x_bar = spread(x_bar, axis, how)
    return x_bar.copy() if x_bar is y_bar else x_bar


@resize_grad.types
def _(node: Node) -> Type:
    return Type(node.input(0).type.dtype, shape_in(node.input(1)))


def _grad_operands(node: Node) -> tuple[Value | None, Value | None, Value | None]:
    return node.optional(2), node.optional(3), node.optional(4)


@resize_grad.adjoint
def _(b: DerivativeBuilder, node: Node, x_bar_bar: Value) -> Any:
    """The transpose of the transpose: the interpolation itself."""
    y_bar_bar = b.Resize(x_bar_bar, *_grad_operands(node), **linear_part(node))
    return [y_bar_bar, *[NO_GRADIENT] * 4][: len(node.inputs)]


@resize_grad.tangent
def _(b: DerivativeBuilder, node: Node, y_dot: Value | None, *others: Value | None) -> Any:
    """Linear in y_bar alone."""
    return None if y_dot is None else b.ResizeGrad(y_dot, *node.inputs[1:], **linear_part(node))


@resize_grad.expansion
def _(b: Builder, node: Node) -> Any:
    """A product with the interpolation matrix along every axis that changes.

    The matrix is a constant where all extents are known, else the same Resize of an identity matrix.
    """
    y_bar = node.input(0)
    roi, scales, sizes = _grad_operands(node)
    axes = _known_axes(node, shape_in(node.input(1)), roi, scales, sizes)
    if axes is not None:
        for axis in axes:
            y_bar = _along(b, y_bar, b.value(_constant_matrix(node, axis)), axis.axis)
        return y_bar
    if sizes is None or attr(node, "keep_aspect_ratio_policy") == "stretch":
        return _run_time_product(b, node)
    if attr(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return refuse("a kept aspect ratio of a crop needs extents known before the run")
    return _kept_aspect_product(b, node, sizes)


def _constant_matrix(node: Node, axis: Axis) -> Array:
    return matrix(axis, _sampling(node)).astype(node.input(0).type.dtype.numpy)


def _sampling(node: Node) -> Sampling:
    return Sampling(attr(node, "mode"), attr(node, "nearest_mode"), attr(node, "coordinate_transformation_mode"),
                    bool(attr(node, "antialias")), attr(node, "cubic_coeff_a"), bool(attr(node, "exclude_outside")))


def _along(b: Builder, x: Value, square: Value, axis: int) -> Value:
    """Return the product of ``x`` with a matrix along one axis."""
    rank = len(x.shape)
    if axis == rank - 1:
        return b.MatMul(x, square)
    swap = list(range(rank))
    swap[axis], swap[-1] = swap[-1], swap[axis]
    return b.Transpose(b.MatMul(b.Transpose(x, perm=swap), square), perm=swap)


def _run_time_product(b: Builder, node: Node) -> Value:
    total, x_shape = node.input(0), node.input(1)
    roi, scales, sizes = _grad_operands(node)
    rank = len(total.shape)
    axes = attr(node, "axes")
    chosen = [a % rank for a in axes] if axes is not None else list(range(rank))
    how = {k: v for k, v in linear_part(node).items() if k not in ("axes", "keep_aspect_ratio_policy")}
    for i, axis in enumerate(chosen):
        if scales is not None and scales.constant is not None and scales.constant[i] == 1 and roi is None:
            continue
        size = b.Slice(x_shape, [axis], [axis + 1])
        zeros = b.Expand(b.scalar(0, total.type.dtype), b.Concat(size, size, axis=0))
        identity = b.EyeLike(zeros)
        part = None if roi is None else _roi_entries(b, roi, i, len(chosen))
        if scales is not None:
            factor = b.Slice(scales, [i], [i + 1])
            rows = b.Resize(identity, part, b.Concat(b.value(np.ones(1, np.float32)), factor, axis=0), None, **how)
        else:
            rows = b.Resize(identity, part, None, b.Concat(size, b.Slice(sizes, [i], [i + 1]), axis=0), **how)
        total = _along(b, total, b.Transpose(rows, perm=[1, 0]), axis)
    return total


def _kept_aspect_product(b: Builder, node: Node, sizes: Value) -> Value:
    """The matrix of an axis is the same Resize of all its unit vectors, spread over the other axes that share the scale."""
    total, x_shape = node.input(0), node.input(1)
    rank, axes = len(total.shape), attr(node, "axes")
    chosen = [a % rank for a in axes] if axes is not None else list(range(rank))
    how = {**linear_part(node), "axes": tuple(c + 1 for c in chosen)}
    for axis in chosen:
        size = b.Slice(x_shape, [axis], [axis + 1])
        units = b.EyeLike(b.Expand(b.scalar(0, total.type.dtype), b.Concat(size, size, axis=0)))
        extents = [b.Slice(x_shape, [c], [c + 1]) if c in chosen else b.ints([1]) for c in range(rank)]
        others = [c + 1 for c in range(rank) if c != axis]
        spread = b.Expand(b.Unsqueeze(units, others), b.Concat(size, *extents, axis=0))
        made = b.Resize(spread, None, None, sizes, **how)
        rows = b.Squeeze(b.Slice(made, [0] * len(others), [1] * len(others), others), others)
        total = _along(b, total, b.Transpose(rows, perm=[1, 0]), axis)
    return total


def _roi_entries(b: Builder, roi: Value, at: int, count: int) -> Value:
    zero, one = (b.value(np.array([v], roi.type.dtype.numpy)) for v in (0.0, 1.0))
    low, high = b.Slice(roi, [at], [at + 1]), b.Slice(roi, [count + at], [count + at + 1])
    return b.Concat(zero, low, one, high, axis=0)


# ---- many examples ----------------------------------------------------------------------------------------------------------


def _keeps_samples(node: Node, roi: Value | None, scales: Value | None) -> bool:
    """Return whether it is known that the first axis is not resized."""
    axes = attr(node, "axes")
    if axes is not None:
        return 0 not in normal_axes(axes, len(node.input(0).shape))
    factors = None if scales is None else scales.constant
    return roi is None and factors is not None and factors[:1].tolist() == [1.0]


def _named_axes(node: Node, rank: int) -> tuple[int, ...]:
    axes = attr(node, "axes")
    return tuple(1 + a for a in (range(rank) if axes is None else normal_axes(axes, rank)))


@resize.batch
def _(b: BatchBuilder, node: Node, x: Value, *others: Value | None) -> Any:
    """More images, if the first axis is theirs; else the same axes by name."""
    if any(b.holds(v) for v in others) or node.input(0).type.rank is None:
        return looped(b, node, x, *others)
    roi, scales, _ = _operands(node)
    if _keeps_samples(node, roi, scales):
        return within_batch(0)(b, node, x, *others)
    return again(b, node, [x, *others], axes=_named_axes(node, len(x.shape) - 1))


@resize_grad.batch
def _(b: BatchBuilder, node: Node, y_bar: Value, x_shape: Value, *others: Value | None) -> Any:
    """More images, if the first axis is theirs; else the same axes by name."""
    if any(b.holds(v) for v in (x_shape, *others)) or node.input(0).type.rank is None:
        return looped(b, node, y_bar, x_shape, *others)
    roi, scales, _ = _grad_operands(node)
    if _keeps_samples(node, roi, scales):
        return within_batch(0)(b, node, y_bar, scaled_shape(b, x_shape), *others)
    return again(b, node, [y_bar, joined(b, [b.count, x_shape]), *others], axes=_named_axes(node, len(y_bar.shape) - 1))
