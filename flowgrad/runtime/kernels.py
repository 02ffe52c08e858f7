"""From a step to something to call: what its op offers for speed where that fits, else the op's own kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowgrad.ir.errors import RunError
from flowgrad.ir.evaluate import bind_kernel, fitted
from flowgrad.ir.graph import Array, Node
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.registry import REQUIRED, OpDef
from flowgrad.ir.types import Type
from flowgrad.runtime.splits import Blocks, Cuts, SplitKernel, cuts_of

Kernel = Callable[..., Any]

SPREAD_ELEMENTS = 1024
"""Constant operands of elementwise ops with results of at most this many elements are stored in the full shape."""


def takes_out(node: Node, definition: OpDef) -> bool:
    """True if the kernel fills a buffer for the only output, in its declared dtype."""
    if "out" not in definition.special or "subgraphs" in definition.special:
        return False
    if len(node.outputs) != 1 or node.outputs[0] is None:
        return False
    if node.outputs[0].type.dtype.numpy.hasobject:
        return False
    if "to_dtype" in definition.special:
        return True
    return not any(dtype.is_narrow for dtype in {v.type.dtype for v in (*node.operands, *node.results)})


def pieces_of(node: Node, definition: OpDef) -> Cuts:
    """Return the pieces that a step runs in, each with scratch of its own; none where it runs whole."""
    cuts = cuts_of(node, definition) if takes_out(node, definition) else ()
    return cuts if len(cuts) > 1 else ()


def may_overwrite(node: Node, definition: OpDef) -> bool:
    """True if the kernel may write its result over an operand."""
    if not definition.in_place:
        return False
    return definition.ufunc is not None or all(v.type.dtype.is_float for v in node.operands)


@dataclass(slots=True)
class Bound:
    """A kernel and how to call it: with the inputs, keywords, and ``out`` by position or by keyword."""

    function: Kernel
    keywords: dict[str, Any] = field(default_factory=dict)
    positional_out: bool = False


def bind(node: Node, definition: OpDef, blocks: Blocks) -> Bound:
    """Return the kernel of a step with its attributes bound (``out``, ``work``, ``rng``, ``subgraphs`` left open)."""
    cuts = pieces_of(node, definition)
    ufunc = _ufunc(node, definition)
    if cuts and ufunc is not None:
        return Bound(SplitKernel(node, definition, ufunc, cuts, blocks), positional_out=True)
    direct = None if cuts else _specialised(node, definition) or ufunc
    if direct is not None:
        return Bound(direct, positional_out=True)
    keywords = {n: definition.attribute(node, n) for n, default in definition.attributes.items()
                if n in node.attributes or default is REQUIRED}
    if "count" in definition.special:
        keywords["count"] = len(node.outputs)
    if "to_dtype" in definition.special:
        keywords["to_dtype"] = next(v.type.dtype.numpy for v in node.results)
    function = bind_kernel(node, definition)
    return Bound(SplitKernel(node, definition, function, cuts, blocks) if cuts else function, keywords)


def _specialised(node: Node, definition: OpDef) -> Kernel | None:
    if definition.specialise_rule is None or not takes_out(node, definition):
        return None
    return None if any(v.type.dtype.is_narrow for v in node.operands) else definition.specialise_rule(node)


def _ufunc(node: Node, definition: OpDef) -> np.ufunc | None:
    if definition.ufunc is None or not takes_out(node, definition):
        return None
    dtypes = {v.type.dtype for v in node.operands}
    return definition.ufunc if len(dtypes) == 1 and not dtypes.pop().numpy.hasobject else None


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
