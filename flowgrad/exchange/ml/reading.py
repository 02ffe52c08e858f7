"""What adapters of ai.onnx.ml share: attributes as arrays, inputs as rows, weights as parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flowgrad.exchange.adapters import EVERY_OPSET, Adapter, before
from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.graph import INITIALIZER, Array, Value
from flowgrad.ir.types import FLOAT32, DType

ML = "ai.onnx.ml"


def adapts(*ops: str) -> Callable[[Adapter], Adapter]:
    """Register an adapter for operators of ai.onnx.ml, in all opsets."""
    return before(EVERY_OPSET, *ops, domain=ML)


def demand(call: ImportedNode, holds: bool, reason: str) -> None:
    """Raise ValidationError with what is wrong with a node, unless ``holds``."""
    if not holds:
        raise ValidationError(f"{call.op}: {reason}", code="attribute", where=call.label)


def unsupported(call: ImportedNode, reason: str) -> UnsupportedError:
    """Return the error for a form of an operator that is refused."""
    return UnsupportedError(f"{call.op} {reason}", code="attribute", where=call.label)


def vector(call: ImportedNode, name: str, dtype: Any = np.float32) -> Array:
    """Return a list attribute, or the tensor ``<name>_as_tensor`` in its own dtype; an empty vector if there is none."""
    tensor = call.take(f"{name}_as_tensor")
    listed = np.asarray(call.take(name, ()), dtype).reshape(-1)
    if tensor is None:
        return listed
    demand(call, not listed.size, f"{name} is given twice")
    demand(call, isinstance(tensor, np.ndarray) and tensor.dtype.kind == "f", f"{name}_as_tensor holds no floats")
    return np.asarray(tensor).reshape(-1)


def either(call: ImportedNode, *names: str) -> Array:
    """Return the one of several attributes that is given, as a vector of numbers or strings. Raises ValidationError."""
    given = [(n, v) for n in names if (v := call.take(n)) is not None and len(v)]
    demand(call, len(given) == 1, f"one of {', '.join(names)} is needed, {len(given)} are given")
    name, value = given[0]
    if isinstance(value, np.ndarray):
        return value.reshape(-1)
    return np.asarray(value, object if "strings" in name else np.float32 if "float" in name else np.int64)


def holds(array: Array, dtype: DType) -> bool:
    """Return whether the elements of an array are elements of ``dtype`` too."""
    return array.dtype == object or np.array_equal(array.astype(dtype.numpy).astype(array.dtype), array,
                                                   equal_nan=array.dtype.kind == "f")


def rows(b: ImportBuilder, call: ImportedNode) -> Value:
    """Return the input as float32 rows of features; a vector is one row."""
    x = call.input(0)
    if x.type.rank not in (1, 2):
        shown = "unknown rank" if x.type.rank is None else f"rank {x.type.rank}"
        raise UnsupportedError(f"{call.op} on a tensor of {shown}, not 1 or 2", code="rank", where=call.label)
    x = x if x.type.dtype == FLOAT32 else b.cast(x, FLOAT32)
    return x if x.type.rank == 2 else b.Unsqueeze(x, [0])


def check_features(call: ImportedNode, x: Value, count: int) -> None:
    """Raise ValidationError if rows are known to have another number of features."""
    given = x.shape[1]
    demand(call, not isinstance(given, int) or given == count, f"expected {count} features, got {given}")


def weight(b: ImportBuilder, call: ImportedNode, name: str, array: Array) -> Value:
    """Add numbers that were trained, as a parameter called after the node."""
    return b.graph.add_constant(array, b.fresh(f"{call.label}_{name}"), INITIALIZER)


def affine(b: ImportBuilder, call: ImportedNode, x: Value, targets: int, coefficients: Array, intercepts: Array) -> Value:
    """Return x W^T + c for W [targets, features]."""
    demand(call, targets > 0 and coefficients.size > 0 and coefficients.size % targets == 0,
           f"{coefficients.size} coefficients for {targets} targets")
    demand(call, intercepts.size in (0, targets), f"{intercepts.size} intercepts for {targets} targets")
    check_features(call, x, coefficients.size // targets)
    matrix = weight(b, call, "coefficients", coefficients.reshape(targets, -1))
    bias = weight(b, call, "intercepts", intercepts) if intercepts.size else None
    return b.Gemm(x, matrix, bias, transB=1)
