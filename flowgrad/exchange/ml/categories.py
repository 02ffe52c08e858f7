"""Tables from keys to values: categories become numbers, labels or rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.exchange.ml.reading import adapts, demand, either, holds
from flowgrad.ir.graph import Array, Value
from flowgrad.ir.types import INT64

KINDS = ("strings", "int64s", "floats", "tensor")


def _looked_up(b: ImportBuilder, call: ImportedNode, keys: Array, values: Array, default: Array) -> Value:
    """Return the value of the key of every element, ``default`` for those that are no key."""
    x = call.input(0)
    demand(call, len(keys) == len(values), f"{len(keys)} keys for {len(values)} values")
    exact = keys.dtype.kind == x.type.dtype.numpy.kind and holds(keys, x.type.dtype)
    demand(call, exact, f"the keys are of {keys.dtype}, the input is {x!r}")
    demand(call, len(set(keys.tolist())) == len(keys), "a key is given twice")
    table = np.concatenate([values, default.reshape(1).astype(values.dtype)])
    index = b.KeyIndex(x, b.graph.add_constant(keys.astype(x.type.dtype.numpy)))
    return b.Gather(b.graph.add_constant(table), index, axis=0)


def _default(call: ImportedNode, values: Array) -> Array:
    """Take the defaults, and return that of the kind of the values."""
    tensor = call.take("default_tensor")
    given = {"O": call.take("default_string", "_Unused"), "i": call.take("default_int64", -1),
             "f": call.take("default_float", -0.0)}
    if tensor is not None:
        demand(call, isinstance(tensor, np.ndarray) and tensor.size == 1 and tensor.dtype == values.dtype,
               "default_tensor is not one element of the type of the values")
        return np.asarray(tensor)
    return np.asarray(given[values.dtype.kind], values.dtype)


@adapts("LabelEncoder")
def label_encoder(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """The value of each key; in the first opset strings or their numbers."""
    if call.version < 2:
        classes = np.asarray(call.take("classes_strings", ()), object)
        return (_mapped(b, call, classes, np.arange(len(classes))),)
    keys = either(call, *(f"keys_{k}" for k in KINDS))
    values = either(call, *(f"values_{k}" for k in KINDS))
    return (_looked_up(b, call, keys, values, _default(call, values)),)


@adapts("CategoryMapper")
def category_mapper(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """Strings to numbers, or numbers to strings, by parallel lists."""
    strings, numbers = np.asarray(call.take("cats_strings", ()), object), np.asarray(call.take("cats_int64s", ()), np.int64)
    return (_mapped(b, call, strings, numbers),)


def _mapped(b: ImportBuilder, call: ImportedNode, strings: Array, numbers: Array) -> Value:
    demand(call, len(strings) > 0, "there are no categories")
    forward = call.input(0).type.dtype.kind == "string"
    keys, values = (strings, numbers) if forward else (numbers, strings)
    return _looked_up(b, call, keys, values, _default(call, values))


@adapts("OneHotEncoder")
def one_hot_encoder(b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
    """A row of zeros with a 1 at the category of each element; one that is none fails, or is all zeros (``zeros``).

    Numbers are cut to integers first.
    """
    x, keys = call.input(0), either(call, "cats_int64s", "cats_strings")
    demand(call, (keys.dtype == object) == (x.type.dtype.kind == "string"), f"the categories are no elements of {x!r}")
    demand(call, len(set(keys.tolist())) == len(keys), "a category is given twice")
    b.graph.limits.check("tensor_bytes", 4 * len(keys) * len(keys), call.label)
    x = x if x.type.dtype.kind == "string" or x.type.dtype == INT64 else b.cast(x, INT64)
    lines = np.eye(len(keys) + bool(call.take("zeros", 1)), len(keys), dtype=np.float32)
    return (b.Gather(b.graph.add_constant(lines), b.KeyIndex(x, b.graph.add_constant(keys)), axis=0),)
