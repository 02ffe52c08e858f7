"""From a step to something to call: ufuncs straight where that is all a kernel does, fixed splits for large work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowgrad.ir.errors import RunError
from flowgrad.ir.evaluate import WIDENED, bind_kernel, fitted
from flowgrad.ir.graph import Array, Node
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import REQUIRED, OpDef
from flowgrad.ir.types import Type
from flowgrad.runtime.fast import fast_kernel
from flowgrad.runtime.images import ImageSplit, image_spans
from flowgrad.runtime.splits import split_kernel

Kernel = Callable[..., Any]

UFUNCS: dict[str, np.ufunc] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Neg": np.negative, "Exp": np.exp, "Sqrt": np.sqrt,
    "Tanh": np.tanh, "Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal, "Equal": np.equal, "And": np.logical_and, "Or": np.logical_or,
    "Not": np.logical_not, "MatMul": np.matmul,
}
"""Ops whose kernel is exactly one ufunc call: the ufunc is called without a Python frame between (tested bitwise)."""

FLOAT_UFUNCS: dict[str, np.ufunc] = {"Div": np.divide}
"""The same, for float operands only."""

IN_PLACE = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Exp", "Sqrt", "Tanh", "And", "Or", "Not", "Relu", "Sigmoid"})
"""Elementwise ops whose kernel may write over an operand (tested: same bits with ``out`` being an operand)."""


SPREAD_ELEMENTS = 1024
"""Constant operands of elementwise ops with results of at most this many elements are stored in the full shape."""


def takes_out(node: Node, definition: OpDef) -> bool:
    """True if the kernel fills a buffer for the only output, in its declared dtype."""
    if "out" not in definition.special or "subgraphs" in definition.special:
        return False
    if len(node.outputs) != 1 or node.outputs[0] is None:
        return False
    if node.outputs[0].type.dtype.kind == "string":
        return False
    widened = any(v is not None and v.type.dtype.name in WIDENED for v in (*node.inputs, *node.outputs))
    return not widened or "to_dtype" in definition.special


def splits_by_image(node: Node, definition: OpDef) -> bool:
    """True if the step runs in spans of images, which bring scratch of their own."""
    return takes_out(node, definition) and len(image_spans(node)) > 1


def may_overwrite(node: Node) -> bool:
    """True if the kernel may write its result over an operand."""
    if node.op not in IN_PLACE:
        return False
    return node.op in UFUNCS or all(v is None or v.type.dtype.is_float for v in node.inputs)


@dataclass(slots=True)
class Bound:
    """A kernel and how to call it: with the inputs, keywords, and ``out`` by position or by keyword."""

    function: Kernel
    keywords: dict[str, Any] = field(default_factory=dict)
    positional_out: bool = False


def bind(node: Node, definition: OpDef, threads: int) -> Bound:
    """Return the kernel of a step with its attributes bound (``out``, ``work``, ``rng``, ``subgraphs`` left open)."""
    ufunc = _ufunc(node, definition)
    if ufunc is not None:
        split = split_kernel(node, ufunc, threads)
        return Bound(split or fast_kernel(node) or ufunc, positional_out=True)
    if takes_out(node, definition) and not any(v is not None and v.type.dtype.name in WIDENED for v in node.inputs):
        split = split_kernel(node, definition.kernel, threads)
        fast = None if split is not None else fast_kernel(node)
        if fast is not None:
            return Bound(fast, positional_out=True)
    keywords = {n: definition.attribute(node, n) for n, default in definition.attributes.items()
                if n in node.attributes or default is REQUIRED}
    if "count" in definition.special:
        keywords["count"] = len(node.outputs)
    if "to_dtype" in definition.special:
        keywords["to_dtype"] = next(v.type.dtype.numpy for v in node.outputs if v is not None)
    function = bind_kernel(node, definition)
    if splits_by_image(node, definition):
        return Bound(ImageSplit(node, definition, image_spans(node), threads), keywords)
    if function is definition.kernel and takes_out(node, definition) and not definition.special & {"rng", "work"}:
        function = split_kernel(node, function, threads) or function
    return Bound(function, keywords)


def _ufunc(node: Node, definition: OpDef) -> np.ufunc | None:
    if definition.name not in UFUNCS and definition.name not in FLOAT_UFUNCS:
        return None
    if not takes_out(node, definition) or node.outputs[0] is None:
        return None
    kinds = {v.type.dtype.kind for v in node.inputs if v is not None}
    if kinds & {"string"} or len({v.type.dtype for v in node.inputs if v is not None}) != 1:
        return None
    if definition.name in FLOAT_UFUNCS:
        return FLOAT_UFUNCS[definition.name] if kinds == {"float"} else None
    return UFUNCS[definition.name]


def spread(constant: Array, node: Node) -> Array:
    """Return a constant operand of a small elementwise op in the shape of the result.

    Broadcasting costs a ufunc call more than the call itself where the arrays are small.
    """
    result = node.output().type
    size = result.size
    if constant.shape == result.shape or not isinstance(size, int) or size > SPREAD_ELEMENTS:
        return constant
    return np.ascontiguousarray(np.broadcast_to(constant, result.static_shape))


def check_result(result: Any, type_: Type, node: Node) -> Array:
    """Return what a kernel returned as an array of exactly ``type_``; RunError if its shape differs."""
    array = fitted(result, type_.dtype)
    if array.shape != type_.shape:
        raise RunError(f"{node.op} returned shape {list(array.shape)}, its type rule says {type_!r}", code="shape",
                       where=describe(node))
    return array


class Several:
    """Checks the results of a kernel with several outputs; returns one array per present output."""

    __slots__ = ("node", "types")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.types = [(i, v.type) for i, v in enumerate(node.outputs) if v is not None]

    def __call__(self, results: Any) -> list[Array]:
        if not isinstance(results, (tuple, list)):
            results = (results,)
        return [check_result(results[i], type_, self.node) for i, type_ in self.types]


class Single:
    """Brings the result of a kernel with one output to its declared type."""

    __slots__ = ("index", "node", "type")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.index, self.type = next((i, v.type) for i, v in enumerate(node.outputs) if v is not None)

    def __call__(self, result: Any) -> Array:
        if isinstance(result, (tuple, list)):
            result = result[self.index]
        return check_result(result, self.type, self.node)


def fill(out: Array, result: Any) -> None:
    """Copy what a kernel returned into the buffer that it was asked to fill."""
    if isinstance(result, (tuple, list)):
        result = result[0]
    if result is not out:
        array = np.asarray(result)
        if array.shape != out.shape:
            raise RunError(f"a kernel returned shape {list(array.shape)} for a buffer of {list(out.shape)}", code="shape")
        np.copyto(out, array, casting="unsafe")


def detached(array: Array, arena: Array) -> Array:
    """Return ``array``, copied if it looks at ``arena``: kernels may return views of what they are given."""
    base: Any = array
    while base is not None:
        if base is arena:
            return array.copy()
        base = getattr(base, "base", None)
    return array


def owned(array: Array, others: Sequence[Any]) -> Array:
    """Return ``array`` if nothing else can see its memory, else a copy."""
    if array.base is not None or not array.flags.writeable or any(array is other for other in others):
        return array.copy()
    return array
