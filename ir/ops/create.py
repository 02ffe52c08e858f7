"""Operators that make tensors from shapes and bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.graph import Array, Node
from flowgrad.ir.ops.operands import int_list, known_dims, known_length, unknown_shape
from flowgrad.ir.ops.registry import Trait, attr, op
from flowgrad.ir.types import FLOAT32, Type, dtype_of


@op("ConstantOfShape", since=9, outputs=("output",), traits=(Trait.ZERO, Trait.SHAPE_ARITHMETIC))
def constant_of_shape(input: Array, *, value: Any = None, out: Array | None = None) -> Array:
    number = np.zeros(1, np.float32) if value is None else np.asarray(value).reshape(1)
    if out is None:
        return np.full(int_list(input) or (), number[0], number.dtype)
    out.fill(number[0])
    return out


@constant_of_shape.types
def _(node: Node) -> Type:
    value = attr(node, "value")
    dtype = FLOAT32 if value is None else dtype_of(np.asarray(value).dtype)
    dims = known_dims(node.input(0))
    return Type(dtype, unknown_shape(known_length(node.input(0))) if dims is None else tuple(dims))
