"""Adapters for opsets 1 to 6: broadcasting by attribute, and what later became inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from flowgrad.exchange.adapters import before
from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.graph import Value


@before(7, "Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")
def broadcast_by_attribute(b: ImportBuilder, call: ImportedNode) -> None:
    """With ``broadcast``, the second operand stood at ``axis`` of the first, or at its end."""
    given, axis = call.take("broadcast", 0), call.take("axis")
    if given and axis is not None:
        call.inputs[1] = _at_axis(b, call, call.input(1), int(axis))


def _at_axis(b: ImportBuilder, call: ImportedNode, value: Value, axis: int) -> Value:
    """Return ``value`` with axes of extent 1 behind, so that its first one lies at ``axis`` of the first input."""
    rank, own = call.input(0).type.rank, value.type.rank
    if rank is None or own is None:
        raise UnsupportedError(f"{call.op} of opset {call.version} with operands of unknown rank", code="rank",
                               where=call.label)
    behind = rank - (axis % rank if rank else 0) - own
    if behind < 0:
        raise ValidationError(f"{value!r} does not fit at axis {axis} of {call.input(0)!r}", code="shape", where=call.label)
    return b.Unsqueeze(value, list(range(own, own + behind))) if behind else value


@before(7, "PRelu")
def slope_by_channel(b: ImportBuilder, call: ImportedNode) -> None:
    """A slope of several entries was one for each channel."""
    slope = call.input(1)
    if slope.type.rank == 1 and slope.type.shape != (1,):
        call.inputs[1] = _at_axis(b, call, slope, 1)


@before(7, "Gemm")
def gemm_broadcasts(b: ImportBuilder, call: ImportedNode) -> None:
    """The third operand is broadcast in any case."""
    call.take("broadcast")


@before(7, "BatchNormalization")
def batch_normalization_mode(b: ImportBuilder, call: ImportedNode) -> None:
    """The number of outputs says whether it trains, besides an attribute."""
    call.take("is_test")


@before(7, "Dropout")
def dropout_mode(b: ImportBuilder, call: ImportedNode) -> None:
    """An attribute said whether anything is dropped."""
    if not call.take("is_test", 0):
        raise UnsupportedError(f"Dropout of opset {call.version} in training mode (is_test=0)", code="attribute",
                               where=call.label)


@before(7, "GRU", "LSTM", "RNN")
def recurrent_outputs(b: ImportBuilder, call: ImportedNode) -> None:
    """All outputs can be had."""
    call.take("output_sequence")


@before(7, "Upsample")
def upsample_by_side(b: ImportBuilder, call: ImportedNode) -> None:
    """The scales of height and width were attributes of their own."""
    height, width = call.take("height_scale"), call.take("width_scale")
    if height is not None and width is not None:
        call.attributes["scales"] = (1.0, 1.0, float(height), float(width))


@before(6, "Cast")
def cast_by_name(b: ImportBuilder, call: ImportedNode) -> None:
    """The type was given by its name."""
    name = call.attributes.get("to")
    if isinstance(name, (str, bytes)):
        call.attributes["to"] = TensorProto.DataType.Value(name.decode() if isinstance(name, bytes) else name)


@before(6, "Selu")
def selu_constants(b: ImportBuilder, call: ImportedNode) -> None:
    """The constants were rounded."""
    call.attributes = {"alpha": 1.6732, "gamma": 1.0507} | call.attributes


@before(6, "Tile")
def tile_one_axis(b: ImportBuilder, call: ImportedNode) -> None:
    """One axis was repeated, both numbers were inputs."""
    tiles, axis, rank = call.input(1).constant, call.input(2).constant, call.input(0).type.rank
    if tiles is None or axis is None or rank is None:
        raise UnsupportedError("Tile of an opset below 6 with numbers that only the run tells", code="input", where=call.label)
    repeats = np.ones(rank, np.int64)
    repeats[int(axis.reshape(-1)[0])] = int(tiles.reshape(-1)[0])
    call.inputs = [call.input(0), b.graph.add_constant(repeats)]


@before(5, "Reshape")
def reshape_by_attribute(b: ImportBuilder, call: ImportedNode) -> None:
    """The shape was an attribute."""
    shape = call.take("shape")
    if shape is None:
        raise ValidationError("Reshape needs a shape", code="attribute", where=call.label)
    call.set_input(1, b.ints(list(shape)))


@before(4, "Concat")
def concat_axis(b: ImportBuilder, call: ImportedNode) -> None:
    """The axis had a default."""
    call.attributes.setdefault("axis", 1)


@before(2, "Pad")
def pad_name(b: ImportBuilder, call: ImportedNode) -> None:
    """The attribute had another name."""
    call.attributes["pads"] = call.take("paddings", ())


@before(2, "GlobalLpPool", "LpPool")
def whole_norm(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None] | None:
    """The norm was a float."""
    p = call.attributes.get("p", 2.0)
    if p != int(p):
        raise UnsupportedError(f"{call.op} with the norm {p}", code="attribute", where=call.label)
    call.attributes["p"] = int(p)
    return None
