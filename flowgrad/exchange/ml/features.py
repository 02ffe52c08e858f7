"""Operators on rows of features: scaling, filling gaps, joining."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.exchange.ml.reading import adapts, demand, holds, unsupported, vector, weight
from flowgrad.ir.graph import Array, Value
from flowgrad.ir.types import FLOAT32


@adapts("ArrayFeatureExtractor")
def array_feature_extractor(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """Z = X[..., Y], which Gather does; a vector X gives a row."""
    x, indices = call.input(0), b.Reshape(call.input(1), [-1])
    if x.type.rank is None:
        raise unsupported(call, "on a tensor of unknown rank")
    taken = b.Gather(x, indices, axis=-1)
    return (b.Unsqueeze(taken, [0]) if x.type.rank == 1 else taken,)


def _by_column(call: ImportedNode, x: Value, name: str, values: Array) -> None:
    """Raise ValidationError unless there is one value for all columns, or one for each of a row or of rows."""
    demand(call, values.size > 0, f"{name} is missing")
    if values.size == 1:
        return
    demand(call, x.type.rank in (1, 2), f"{values.size} entries of {name} for {x!r}")
    extent = x.shape[-1]
    demand(call, not isinstance(extent, int) or extent == values.size, f"{values.size} entries of {name} for {extent} columns")


@adapts("Scaler")
def scaler(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """Y = (X - offset) scale."""
    y = x = b.cast(call.input(0), FLOAT32) if call.input(0).type.dtype != FLOAT32 else call.input(0)
    offset, scale = vector(call, "offset"), vector(call, "scale")
    for name, values in (("offset", offset), ("scale", scale)):
        if values.size:
            _by_column(call, x, name, values)
    if offset.size:
        y = b.Sub(y, weight(b, call, "offset", offset))
    return (b.Mul(y, weight(b, call, "scale", scale)) if scale.size else y,)


@adapts("Normalizer")
def normalizer(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """Rows divided by their largest element, their L1 or their L2 norm; by 1 where that is 0."""
    x, norm = call.input(0), call.take("norm", "MAX")
    demand(call, norm in ("MAX", "L1", "L2"), f"norm {norm!r} is none of MAX, L1, L2")
    if x.type.rank not in (1, 2):
        raise unsupported(call, f"on {x!r}, which is no row nor a matrix")
    x = x if x.type.dtype == FLOAT32 else b.cast(x, FLOAT32)
    if norm == "MAX":
        size = b.ReduceMax(x, [-1], keepdims=1)
    else:
        size = b.ReduceSum(b.Abs(x) if norm == "L1" else b.Mul(x, x), [-1], keepdims=1)
    size = b.Where(b.Equal(size, 0.0), 1.0, size)
    return (b.Div(x, b.Sqrt(size) if norm == "L2" else size),)


@adapts("Imputer")
def imputer(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """The elements that are equal to replaced_value (NaN is equal to NaN) become imputed_value, of all columns or of each."""
    x = call.input(0)
    is_float = x.type.dtype.is_float
    kind = "floats" if is_float else "int64s"
    values = vector(call, f"imputed_value_{kind}", np.float32 if is_float else np.int64)
    _by_column(call, x, f"imputed_value_{kind}", values)
    replaced = call.take("replaced_value_float", 0.0) if is_float else call.take("replaced_value_int64", 0)
    demand(call, holds(values, x.type.dtype), f"what gaps become is no element of {x!r}")
    filled = b.graph.add_constant(values.astype(x.type.dtype.numpy))
    gaps = b.IsNaN(x) if replaced != replaced else b.Equal(x, b.scalar(replaced, x.type.dtype))
    return (b.Where(gaps, filled, x),)


@adapts("Binarizer")
def binarizer(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """1 where X > threshold, else 0: a step, whose derivative is 0."""
    x = call.input(0)
    limit = b.scalar(call.take("threshold", 0.0), FLOAT32)
    return (b.cast_like(b.Greater(b.cast(x, FLOAT32) if x.type.dtype != FLOAT32 else x, limit), x),)


@adapts("FeatureVectorizer")
def feature_vectorizer(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """The columns of all inputs side by side, each cut, or filled up with zeros, to its width."""
    parts = [v for v in call.inputs if v is not None]
    widths = list(call.take("inputdimensions", ())) or [None] * len(parts)
    demand(call, len(widths) == len(parts) > 0, f"{len(widths)} inputdimensions for {len(parts)} inputs")
    return (b.Concat(*(_fitted(b, call, v, w) for v, w in zip(parts, widths, strict=True)), axis=1),)


def _fitted(b: ImportBuilder, call: ImportedNode, x: Value, width: int | None) -> Value:
    if x.type.rank != 2:
        raise unsupported(call, f"of {x!r}: what columns a tensor that is no matrix has, runtimes do not agree upon")
    x = x if x.type.dtype == FLOAT32 else b.cast(x, FLOAT32)
    given = x.shape[1]
    if width is None or given == width:
        return x
    if not isinstance(given, int):
        raise unsupported(call, f"of {x!r}, whose width only the run tells, for {width} columns")
    demand(call, width >= 0, f"an input has {width} columns")
    if width < given:
        return b.Slice(x, [0], [width], [1])
    return b.Pad(x, [0, 0, 0, width - given])


@adapts("ZipMap")
def zip_map(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """The scores as they are: which column is which label, says a remark, and no dictionaries are made."""
    x = call.input(0)
    labels = call.take("classlabels_int64s", ()) or call.take("classlabels_strings", ())
    call.keeps_type = False
    shown = ", ".join(repr(label) for label in labels[:8]) + (", ..." if len(labels) > 8 else "")
    call.remarks.append(f"ZipMap left out: %{call.label} is a tensor, its columns are the labels {shown}")
    if x.type.rank == 1:
        return (b.Unsqueeze(x, [0]),)
    demand(call, x.type.shape is None or not isinstance(x.shape[-1], int) or x.shape[-1] == len(labels),
           f"{len(labels)} labels for {x!r}")
    return (x,)
