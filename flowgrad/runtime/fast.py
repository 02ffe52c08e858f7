"""Kernels bound to what a step knows: axes and flags decided once, one NumPy call a run, same bits as the op's kernel.

Each maker returns ``kernel(*inputs, out)`` or None where it has nothing better than the op's own kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flowgrad.ir.graph import Array, Node
from flowgrad.ir.ops.registry import attr

Kernel = Callable[..., Any]
MATRIX_DTYPES = ("float32", "float64")


def _gemm(node: Node) -> Kernel | None:
    if node.output().type.dtype.name not in MATRIX_DTYPES or attr(node, "alpha") != 1:
        return None
    product = _PRODUCTS[bool(attr(node, "transA")), bool(attr(node, "transB"))]
    if len(node.inputs) < 3 or node.inputs[2] is None or attr(node, "beta") == 0:
        return _ignoring_rest(product) if len(node.inputs) > 2 else product
    if attr(node, "beta") != 1:
        return None
    add = np.add

    def with_bias(a: Array, b: Array, c: Array, out: Array) -> None:
        product(a, b, out)
        add(out, c, out)

    return with_bias


def _ignoring_rest(product: Kernel) -> Kernel:
    def kernel(a: Array, b: Array, c: Array | None, out: Array) -> None:
        product(a, b, out)

    return kernel


def _nt(a: Array, b: Array, out: Array, dot: Any = np.dot) -> None:
    dot(a, b.T, out)


def _tn(a: Array, b: Array, out: Array, dot: Any = np.dot) -> None:
    dot(a.T, b, out)


def _tt(a: Array, b: Array, out: Array, dot: Any = np.dot) -> None:
    dot(a.T, b.T, out)


_PRODUCTS: dict[tuple[bool, bool], Kernel] = {
    (False, False): np.dot, (False, True): _nt, (True, False): _tn, (True, True): _tt,
}


def _matmul(node: Node) -> Kernel | None:
    """``np.dot`` has half the call cost of ``np.matmul`` for two float matrices."""
    if node.output().type.dtype.name not in MATRIX_DTYPES:
        return None
    return np.dot if all(v is not None and v.type.rank == 2 for v in node.inputs) else None


_REDUCTIONS: dict[str, np.ufunc] = {"ReduceSum": np.add, "ReduceMax": np.maximum, "ReduceMin": np.minimum}


def _reduction(node: Node) -> Kernel | None:
    data = node.input(0).type
    if not data.dtype.is_float or data.size == 0:
        return None
    axes: tuple[int, ...] = ()
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = node.inputs[1].constant
        if given is None:
            return None
        axes = tuple(sorted(int(a) % (data.rank or 1) for a in given.reshape(-1).tolist()))
    if not axes and attr(node, "noop_with_empty_axes"):
        return None
    chosen = axes or tuple(range(data.rank or 0))
    shape = node.output().type.static_shape
    if all(data.static_shape[a] == 1 for a in chosen):
        return _copying(shape, len(node.inputs))
    reduce: Any = _REDUCTIONS[node.op].reduce
    keep = bool(attr(node, "keepdims"))
    axis: Any = axes or None
    if len(node.inputs) > 1:
        def kernel(x: Array, _: Any, out: Array) -> None:
            reduce(x, axis, None, out, keep)
    else:
        def kernel(x: Array, out: Array) -> None:  # type: ignore[misc]
            reduce(x, axis, None, out, keep)

    return kernel


def _copying(shape: tuple[int, ...], inputs: int) -> Kernel:
    """Reducing axes of extent 1 copies."""
    copy = np.copyto
    if inputs > 1:
        return lambda x, _, out: copy(out, x.reshape(shape))
    return lambda x, out: copy(out, x.reshape(shape))


MAKERS: dict[str, Callable[[Node], Kernel | None]] = {
    "Gemm": _gemm, "MatMul": _matmul, **dict.fromkeys(_REDUCTIONS, _reduction),
}


def fast_kernel(node: Node) -> Kernel | None:
    """Return a kernel with everything bound that takes ``out`` last, or None."""
    maker = MAKERS.get(node.op)
    return None if maker is None else maker(node)
