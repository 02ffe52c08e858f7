"""Kernels write into the buffers they are given, with the results they return without; the hot ones allocate nothing."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import bind_kernel, kernel_keywords
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.ops.registry import opdef
from flowgrad.ir.types import type_of
from tests.op_cases import Case, all_cases

BUFFERED = [c for c in all_cases() if "out" in opdef(c.op).special]
STRING = "O"


def buffers(case: Case, arrays: list[Array | None]) -> tuple[Any, list[Array | None], dict[str, Any]]:
    """Return the kernel of a case, its inputs and the keywords it takes, scratch buffers full of rubbish included."""
    _, node = case.graph(arrays)
    definition = opdef(case.op)
    keywords = kernel_keywords(node, definition)
    if definition.work_rule is not None:
        keywords["work"] = [np.full(t.static_shape, 123, t.dtype.numpy) for t in definition.work_rule(node)]
    return bind_kernel(node, definition), arrays, keywords


@pytest.mark.parametrize("case", BUFFERED, ids=[c.id for c in BUFFERED])
def test_a_buffer_changes_nothing(case: Case) -> None:
    kernel, inputs, keywords = buffers(case, case.arrays())
    with np.errstate(all="ignore"):
        plain = kernel(*inputs, **{k: v for k, v in keywords.items() if k != "work"})
        expected = np.asarray(plain[0] if isinstance(plain, tuple) else plain)
        out = np.full(expected.shape, None if expected.dtype.kind == STRING else 1, expected.dtype)
        result = kernel(*inputs, **keywords, out=out)
    first = np.asarray(result[0] if isinstance(result, tuple) else result)
    assert first.dtype == expected.dtype and first.shape == expected.shape
    assert first.dtype.kind == STRING or first.tobytes() == expected.tobytes()


ROWS, COLUMNS = 64, 4096
HOT = [("Add", 2, {}), ("Sub", 2, {}), ("Mul", 2, {}), ("Div", 2, {}), ("Exp", 1, {}), ("Tanh", 1, {}), ("Relu", 1, {}),
       ("Sigmoid", 1, {}), ("Elu", 1, {}), ("Selu", 1, {}), ("Softplus", 1, {}), ("Mish", 1, {}), ("Swish", 1, {}),
       ("Erf", 1, {}), ("Gelu", 1, {}), ("Gelu", 1, {"approximate": "tanh"}), ("Softmax", 1, {}),
       ("LogSoftmax", 1, {}), ("LeakyRelu", 1, {}), ("HardSigmoid", 1, {}), ("HardSwish", 1, {}), ("Max", 3, {}),
       ("Greater", 2, {}), ("Sqrt", 1, {}), ("Neg", 1, {}), ("Sum", 3, {})]


@pytest.mark.parametrize(("name", "count", "attributes"), HOT, ids=[f"{h[0]}{len(h[2]) or ''}" for h in HOT])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hot_kernels_allocate_nothing(name: str, count: int, attributes: dict[str, Any], dtype: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.standard_normal((ROWS, COLUMNS)), dtype) for _ in range(count)]
    graph = Graph("hot")
    b = Builder(graph)
    node = b.add_node(name, [graph.add_input(f"x{i}", type_of(a)) for i, a in enumerate(arrays)], attributes)
    keywords = kernel_keywords(node, opdef(name))
    if (rule := opdef(name).work_rule) is not None:
        keywords["work"] = [np.empty(t.static_shape, t.dtype.numpy) for t in rule(node)]
    out = np.empty(node.output().type.static_shape, node.output().type.dtype.numpy)
    with np.errstate(all="ignore"):
        assert opdef(name).kernel(*arrays, **keywords, out=out) is out
        tracemalloc.start()
        opdef(name).kernel(*arrays, **keywords, out=out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < out.nbytes / 8  # NumPy's reductions take a small buffer of fixed size


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 4, 5)])
@pytest.mark.parametrize("zero", [0.0, -0.0, 1.0])
@pytest.mark.parametrize("swapped", [False, True])
def test_selections_between_numbers_and_zeros_have_the_bits_of_any_selection(
    dtype: str, shape: tuple[int, ...], zero: float, swapped: bool,
) -> None:
    rng = np.random.default_rng(0)
    special = rng.choice([np.nan, np.inf, -np.inf, -0.0], shape)
    numbers = np.where(rng.random(shape) < 0.5, special, rng.standard_normal(shape)).astype(dtype)
    condition, other = rng.random(shape) < 0.5, np.array(zero, dtype)
    operands = (condition, other, numbers) if swapped else (condition, numbers, other)
    expected = np.where(*operands)
    for out in (np.full(shape, 7, dtype), np.full((*shape, 2), 7, dtype)[..., 0]):
        assert opdef("Where").kernel(*operands, out=out) is out
        assert out.dtype == dtype and out.tobytes() == expected.tobytes()
