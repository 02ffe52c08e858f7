"""Adapters that bring nodes of older opsets to the meaning the representation has, one per change of the standard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.ops.control.loop_layout import slice_type
from flowgrad.ir.process_state import quiet
from flowgrad.ir.types import FLOAT32, INT64, Dim, Type

Adapter = Callable[[ImportBuilder, ImportedNode], Sequence[Value | None] | None]
"""Changes the call and returns None, or returns the values of its outputs (None for those nobody wants)."""

ADAPTERS: dict[tuple[str, str], list[tuple[int, Adapter]]] = {}
"""By domain and op: (first opset that needs no adapting, adapter), from old to new."""

FORMALS: dict[tuple[str, str], Callable[[ImportedNode], list[Type]]] = {}
"""By domain and op: the types of the formal inputs of the subgraphs of an operator that adapters turn into others."""

FORMULAS: set[str] = set()
"""Operators of the default domain that have no form of their own: what their adapters return stands for them."""

RENAMED = {"Scatter": "ScatterElements", "Upsample": "Resize"}
"""What adapters turn operators into that the standard has dropped."""

HINTS = {
    "com.microsoft.nchwc": " (com.microsoft.nchwc holds weights in blocks of the processor that onnxruntime optimised the file for,"
                           " whose size the file does not tell: optimise it up to ORT_ENABLE_EXTENDED)",
}
"""What else is said where operators of a domain are not supported."""

EVERY_OPSET = 10**9


def before(version: int, *ops: str, domain: str = "") -> Callable[[Adapter], Adapter]:
    """Register an adapter for calls of ``ops`` in opsets below ``version``."""

    def register(adapter: Adapter) -> Adapter:
        for op in ops:
            ADAPTERS.setdefault((domain, op), []).append((version, adapter))
            ADAPTERS[domain, op].sort(key=lambda pair: pair[0])
        return adapter

    return register


def _rank(value: Value, call: ImportedNode) -> int:
    if value.type.rank is None:
        raise UnsupportedError(f"{call.op} of opset {call.version} on a tensor of unknown rank", code="rank",
                               where=call.label)
    return value.type.rank


def _ints(b: ImportBuilder, numbers: Sequence[int]) -> Value:
    return b.graph.add_constant(np.asarray(numbers, np.int64).reshape(-1))


# ---- attributes that became inputs --------------------------------------------------------------------------------------


def _attribute_to_input(b: ImportBuilder, call: ImportedNode, name: str, index: int) -> None:
    numbers = call.take(name)
    if numbers is not None and len(numbers):
        call.set_input(index, _ints(b, numbers))


@before(13, "Squeeze", "Unsqueeze", "ReduceSum")
@before(18, "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSumSquare")
def axes_to_input(b: ImportBuilder, call: ImportedNode) -> None:
    """The attribute axes became an input."""
    _attribute_to_input(b, call, "axes", 1)


@before(13, "Split")
def split_to_input(b: ImportBuilder, call: ImportedNode) -> None:
    """The attribute split became an input."""
    _attribute_to_input(b, call, "split", 1)


@before(18, "Split")
def split_counts(b: ImportBuilder, call: ImportedNode) -> None:
    """Equal parts without sizes: as many as there are outputs, which later must be said."""
    if call.optional(1) is not None:
        return
    count = len(call.outputs)
    axis = int(call.attributes.get("axis", 0))
    extent = call.input(0).shape[axis] if call.input(0).type.shape is not None else None
    if isinstance(extent, int) and extent % count:
        raise ValidationError(f"{extent} does not split into {count} equal parts", code="shape", where=call.label)
    call.attributes["num_outputs"] = count


@before(EVERY_OPSET, "Split")
def split_count_fits(b: ImportBuilder, call: ImportedNode) -> None:
    """As many parts as outputs, whatever the attribute claims."""
    if call.attributes.get("num_outputs", len(call.outputs)) != len(call.outputs):
        raise ValidationError(f"num_outputs={call.attributes['num_outputs']} with {len(call.outputs)} outputs",
                              code="attribute", where=call.label)


@before(10, "Slice")
def slice_to_inputs(b: ImportBuilder, call: ImportedNode) -> None:
    """The attributes starts, ends and axes became inputs."""
    starts, ends, axes = call.take("starts"), call.take("ends"), call.take("axes")
    if starts is None or ends is None:
        raise ValidationError("Slice needs starts and ends", code="attribute", where=call.label)
    call.set_input(1, _ints(b, starts))
    call.set_input(2, _ints(b, ends))
    if axes is not None:
        call.set_input(3, _ints(b, axes))


@before(11, "Pad")
def pads_to_input(b: ImportBuilder, call: ImportedNode) -> None:
    """The attributes pads and value became inputs."""
    pads, value = call.take("pads"), call.take("value", 0.0)
    if pads is None:
        raise ValidationError("Pad needs pads", code="attribute", where=call.label)
    call.set_input(1, _ints(b, pads))
    if value:
        call.set_input(2, b.scalar(value, call.input(0).type.dtype))


@before(10, "TopK")
def k_to_input(b: ImportBuilder, call: ImportedNode) -> None:
    """The attribute k became an input."""
    k = call.take("k")
    if k is None:
        raise ValidationError("TopK needs k", code="attribute", where=call.label)
    call.set_input(1, _ints(b, [k]))


@before(11, "Clip")
def bounds_to_inputs(b: ImportBuilder, call: ImportedNode) -> None:
    """The attributes min and max became inputs; their defaults were the ends of float32, so they stay bounds."""
    largest = float(np.finfo(np.float32).max)
    dtype = call.input(0).type.dtype
    for index, (name, default) in enumerate((("min", -largest), ("max", largest)), 1):
        bound = call.take(name, default)
        scalar = quiet(np.asarray)(bound, dtype.numpy)
        if np.isfinite(scalar.astype(np.float64)):
            call.set_input(index, b.graph.add_constant(scalar))


@before(20, "DFT")
def dft_axis_to_input(b: ImportBuilder, call: ImportedNode) -> None:
    """The attribute axis, by default 1, became an input, by default -2."""
    call.set_input(2, b.graph.add_constant(np.asarray(call.take("axis", 1), np.int64)))


@before(12, "Dropout")
def dropout_ratio_to_input(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None] | None:
    """Inference only; the mask was of the input's dtype before opset 10, and is true everywhere."""
    ratio = call.take("ratio", 0.5)
    data = call.input(0)
    call.inputs = [data, b.scalar(ratio, FLOAT32)]
    if call.version >= 10 or not call.wants(1):
        return None
    y, mask = b.add_several("Dropout", call.inputs, call.attributes, outputs=2)
    return y, b.cast_like(mask, data)


# ---- another meaning ----------------------------------------------------------------------------------------------------


@before(13, "Softmax", "LogSoftmax", "Hardmax")
def softmax_over_all_following(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None] | None:
    """The op worked on all axes from ``axis`` (by default 1) on, flattened into one."""
    x = call.input(0)
    axis = int(call.take("axis", 1))
    rank = x.type.rank
    if rank is not None:
        if not -rank <= axis <= rank:
            raise ValidationError(f"axis {axis} is out of range for rank {rank}", code="attribute", where=call.label)
        axis = axis % rank if axis < 0 else axis
        if axis == rank - 1 or (axis < rank and all(d == 1 for d in x.shape[axis + 1 :])):
            call.attributes["axis"] = axis - rank
            return None
    y = b.add(call.op, [b.Flatten(x, axis=axis)], {"axis": 1})
    return (b.Reshape(y, b.shape(x), allowzero=1),)


@before(9, "BatchNormalization")
def batch_normalization_spatial(b: ImportBuilder, call: ImportedNode) -> None:
    """The attribute spatial is gone; statistics per activation have no counterpart."""
    if call.take("spatial", 1) != 1:
        raise UnsupportedError("BatchNormalization with spatial=0", code="attribute", where=call.label)


@before(14, "BatchNormalization")
def batch_normalization_training(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None] | None:
    """More outputs than one meant training; the saved statistics, outputs 3 and 4, are those of the batch."""
    if not any(call.wants(i) for i in range(1, 5)):
        return None
    call.attributes["training_mode"] = 1
    if not (call.wants(3) or call.wants(4)):
        call.outputs = call.outputs[:3]
        return None
    y, mean, var = b.add_several("BatchNormalization", call.inputs, call.attributes, outputs=3)
    x = call.input(0)
    rank = _rank(x, call)
    axes = [a for a in range(rank) if a != 1]
    batch_mean = b.ReduceMean(x, axes, keepdims=1)
    centred = b.Sub(x, batch_mean)
    batch_var = b.ReduceMean(b.Mul(centred, centred), axes, keepdims=0)
    return y, mean, var, b.Squeeze(batch_mean, axes), batch_var


@before(21, "GroupNormalization")
def group_normalization_per_channel(b: ImportBuilder, call: ImportedNode) -> None:
    """Scale and bias were given per group, now per channel."""
    x, groups = call.input(0), int(call.attributes.get("num_groups", 1))
    _rank(x, call)
    channels = b.extent(x, 1)
    each = b.Div(channels, [groups])
    for index in (1, 2):
        column = b.Reshape(call.input(index), [-1, 1])
        spread = b.Expand(column, b.Concat(_ints(b, [1]), each, axis=0))
        call.inputs[index] = b.Reshape(spread, channels)


@before(16, "RoiAlign")
def roi_align_without_offset(b: ImportBuilder, call: ImportedNode) -> None:
    """Coordinates were not shifted by half a pixel."""
    call.attributes["coordinate_transformation_mode"] = "output_half_pixel"


@before(20, "GridSample")
def grid_sample_modes(b: ImportBuilder, call: ImportedNode) -> None:
    """The modes were called after images."""
    mode = call.take("mode", "bilinear")
    call.attributes["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)


@before(11, "Scatter")
def scatter_renamed(b: ImportBuilder, call: ImportedNode) -> None:
    """Scatter is now called ScatterElements."""
    call.op = "ScatterElements"


# ---- resizing -----------------------------------------------------------------------------------------------------------


@before(9, "Upsample")
def upsample_scales_to_input(b: ImportBuilder, call: ImportedNode) -> None:
    """The attribute scales became an input."""
    scales = call.take("scales")
    if scales is None:
        raise ValidationError("Upsample needs scales", code="attribute", where=call.label)
    call.set_input(1, b.graph.add_constant(np.asarray(scales, np.float32)))


@before(11, "Upsample", "Resize")
def resize_asymmetric(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None] | None:
    """Before opset 11 coordinates were divided by the scale; nearest took the floor, or the ceiling where it shrinks."""
    x, scales = call.input(0), call.input(1)
    mode = {"bilinear": "linear", "trilinear": "linear"}.get(m := call.take("mode", "nearest"), m)
    if mode not in ("nearest", "linear"):
        raise UnsupportedError(f"{call.op} of opset {call.version} with mode {mode!r}", code="attribute", where=call.label)
    common = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
    constant = scales.constant
    grows = constant is not None and bool(np.all(constant >= 1))
    if mode == "linear" or grows or call.op == "Upsample":
        call.op, call.inputs = "Resize", [x, None, scales]
        call.attributes = common | ({"nearest_mode": "floor"} if mode == "nearest" else {})
        return None
    shrinking, growing = b.Min(scales, 1.0), b.Max(scales, 1.0)
    if constant is not None:
        shrinking = b.graph.add_constant(np.minimum(constant, np.float32(1)))
        growing = b.graph.add_constant(np.maximum(constant, np.float32(1)))
    smaller = b.add("Resize", [x, None, shrinking], common | {"nearest_mode": "ceil"})
    return (b.add("Resize", [smaller, None, growing], common | {"nearest_mode": "floor"}),)


@before(13, "Resize")
def resize_empty_inputs(b: ImportBuilder, call: ImportedNode) -> None:
    """Inputs that do not count had to be there, empty."""
    if call.version < 11:
        return
    for index in (1, 2):
        value = call.optional(index)
        if value is not None and value.type.shape == (0,):
            call.inputs[index] = None


_SHIFTED = {"floor": "round_prefer_ceil", "round_prefer_floor": "ceil"}
"""Which rounding of x - 1/2 is a rounding of x."""


@before(13, "Resize")
def resize_for_nearest(b: ImportBuilder, call: ImportedNode) -> None:
    """Coordinates (i + 1/2) / scale are half a pixel above those of half_pixel, which another rounding makes up for."""
    if call.attributes.get("coordinate_transformation_mode") != "tf_half_pixel_for_nn":
        return
    mode, rounding = call.attributes.get("mode", "nearest"), call.attributes.get("nearest_mode", "round_prefer_floor")
    if mode != "nearest" or rounding not in _SHIFTED:
        raise UnsupportedError(f"Resize with coordinates tf_half_pixel_for_nn, mode {mode!r} and nearest_mode {rounding!r}",
                               code="attribute", where=call.label)
    call.attributes |= {"coordinate_transformation_mode": "half_pixel", "nearest_mode": _SHIFTED[rounding]}


@before(EVERY_OPSET, "Slice", "Pad")
def wide_axes(b: ImportBuilder, call: ImportedNode) -> None:
    """Starts, ends, axes and steps of 32 bits become ones of 64: the checker reads no others where it infers shapes."""
    for index, value in enumerate(call.inputs):
        if value is not None and (index == 3 or (index and call.op == "Slice")) and value.type.dtype != INT64:
            known = value.constant
            wide = b.cast(value, INT64) if known is None else b.graph.add_constant(known.astype(np.int64))
            call.set_input(index, wide)


# ---- control flow -------------------------------------------------------------------------------------------------------


def scans_batches(call: ImportedNode) -> bool:
    """True for a Scan of opset 8, which all inputs reach with a batch axis first."""
    return call.op == "Scan" and call.version < 9


def formals_within_batch(call: ImportedNode) -> list[Type]:
    """Return the types of the formal inputs of a Scan of opset 8: states without their batch, slices of sequences."""
    if call.optional(0) is not None:
        raise UnsupportedError("Scan of opset 8 with sequence lengths", code="input", where=call.label)
    count = int(call.attributes.get("num_scan_inputs", 0))
    items = [slice_type(v.type, 0) for v in call.inputs if v is not None]
    return [*items[: len(items) - count], *(slice_type(t, 0) for t in items[len(items) - count :])]


def scan_over_batch(b: ImportBuilder, call: ImportedNode, body: Graph) -> Sequence[Value | None]:
    """A Scan over the batch, in it the Scan over the sequence."""
    count = int(call.required("num_scan_inputs"))
    values = [v for v in call.inputs if v is not None]
    states = len(values) - count
    outer = Graph(f"{call.label}_batch", b.graph.limits)
    outer._next_dim = max(b.graph._next_dim, body._next_dim)
    inner = ImportBuilder(outer, set())
    formals = [outer.add_input(inner.fresh(f"{v.name}_item"), v.type.with_shape(v.shape[1:])) for v in values]
    captured = [outer.add_input(inner.fresh(v.name), v.type) for v in call.captures]
    attributes: dict[str, Any] = {"num_scan_inputs": count}
    directions = call.attributes.get("directions")
    if directions:
        attributes["scan_input_directions"] = tuple(directions)
    node = inner.add_node("Scan", formals, attributes, outputs=len(body.outputs), captures=captured,
                          subgraphs={"body": body})
    assert states <= len(node.outputs)
    for value in node.results:
        outer.add_output(value)
    made = b.add_node("Scan", values, {"num_scan_inputs": len(values)}, outputs=len(body.outputs),
                      captures=call.captures, subgraphs={"body": outer})
    return made.outputs


def is_unknown(dim: object) -> bool:
    """True for an extent about which nothing is known: one that only has a name of our own making."""
    return isinstance(dim, Dim) and all(n.startswith("_d") for n in dim.names())
