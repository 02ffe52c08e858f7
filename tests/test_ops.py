"""Every operator against onnx.reference and against differences, from the table of cases."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.errors import NotDifferentiableError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph, same_array
from flowgrad.ir.ops.registry import Trait, all_ops, opdef
from flowgrad.ir.types import Dim, Type, dtype_of
from flowgrad.passes.differentiate import with_adjoint
from tests.derivative_checks import check_gradients, check_tangents
from tests.op_cases import Case, all_cases, forms

CASES = all_cases()
IDS = [c.id for c in CASES]


def differentiable_inputs(case: Case, arrays: list[Array | None]) -> list[str]:
    return [f"x{i}" for i, (s, a) in enumerate(zip(case.inputs, arrays, strict=True))
            if s is not None and a is not None and s.differentiable and not s.constant and a.dtype == np.float64]


def is_checked(case: Case) -> bool:
    traits = opdef(case.op).traits
    differentiable = case.smooth and not case.refuses and not {Trait.ZERO, Trait.NON_DIFFERENTIABLE} & traits
    return differentiable and bool(differentiable_inputs(case, case.arrays()))


SMOOTH = [c for c in CASES if is_checked(c)]


def test_every_operator_has_rows() -> None:
    covered = {c.op for c in CASES}
    assert not sorted(set(all_ops()) - covered)


def test_case_ids_are_unique() -> None:
    twice = sorted({i for i in IDS if IDS.count(i) > 1})
    assert not twice


def test_every_operator_differentiates_or_says_why_not() -> None:
    silent = [o.name for o in all_ops().values()
              if not o.is_differentiable() and not {Trait.ZERO, Trait.NON_DIFFERENTIABLE} & o.traits]
    assert not silent


def onnx_reference(case: Case, graph: Graph, arrays: list[Array | None]) -> list[Array]:
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    node = graph.nodes()[0]
    inputs = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    outputs = [f"y{i}" if v is not None else "" for i, v in enumerate(node.outputs)]
    attributes: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in node.attributes.items()}
    attributes = {k: onnx.numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in attributes.items()}
    made = helper.make_node(case.op, inputs, outputs, **attributes)
    given = [helper.make_tensor_value_info(f"x{i}", dtype_of(a.dtype).onnx, a.shape)
             for i, a in enumerate(arrays) if a is not None]
    wanted = [helper.make_tensor_value_info(f"y{i}", v.type.dtype.onnx, None)
              for i, v in enumerate(node.outputs) if v is not None]
    model = helper.make_model(helper.make_graph([made], "case", given, wanted),
                              opset_imports=[helper.make_opsetid("", 28)])
    feeds = {f"x{i}": a for i, a in enumerate(arrays) if a is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference's own NumPy warnings say nothing about the project
        return list(ReferenceEvaluator(model).run(None, feeds))


def assert_close(got: Array, expected: Array, name: str) -> None:
    assert got.dtype == expected.dtype, f"{name}: {got.dtype}, expected {expected.dtype}"
    assert got.shape == expected.shape, f"{name}: {got.shape}, expected {expected.shape}"
    if got.dtype == object or got.dtype.kind in "biuS":
        assert np.array_equal(got, expected), name
        return
    wide = (np.complex128 if got.dtype.kind == "c" else np.float64)
    rtol = {8: 1e-10, 4: 1e-5, 16: 1e-10}.get(got.dtype.itemsize, 1e-2)
    np.testing.assert_allclose(got.astype(wide), np.asarray(expected).astype(wide), rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_kernel_and_types(case: Case) -> None:
    arrays = case.arrays()
    graph, node = case.graph(arrays)
    outputs = evaluate(graph, case.feeds(arrays))
    got = [outputs[v.name] for v in node.results]
    for value, array in zip(node.results, got, strict=True):
        assert_type_holds(value.type, array)
    expected = expected_outputs(case, graph, arrays)
    if expected is not None:
        for value, mine, theirs in zip(node.results, got, expected, strict=False):
            assert_close(mine, as_array(theirs), value.name)


def as_array(given: Any) -> Array:
    """Return an array, its strings as those of Python."""
    array = np.asarray(given)
    return array.astype(object) if array.dtype.kind == "U" else array


def expected_outputs(case: Case, graph: Graph, arrays: list[Array | None]) -> list[Any] | None:
    if case.expected is not None:
        result = case.expected(*arrays, **case.attributes)
        return list(result) if isinstance(result, (tuple, list)) else [result]
    return onnx_reference(case, graph, arrays) if case.reference else None


def assert_type_holds(type_: Type, array: Array) -> None:
    assert dtype_of(array.dtype) == type_.dtype
    if type_.shape is not None:
        assert len(type_.shape) == array.ndim
        assert all(isinstance(d, Dim) or d == n for d, n in zip(type_.shape, array.shape, strict=True))


@pytest.mark.parametrize("case", [c for c in CASES if c.symbolic], ids=[c.id for c in CASES if c.symbolic])
def test_symbolic_types(case: Case) -> None:
    """A graph whose extents are known only at run time gives the same values, and its dims evaluate to the truth."""
    arrays = case.arrays()
    static, _ = case.graph(arrays)
    graph, node = case.graph(arrays, symbolic=True)
    feeds = case.feeds(arrays)
    if Trait.RANDOM not in opdef(case.op).traits:
        expected, got = evaluate(static, feeds), evaluate(graph, feeds)
        for a, b in zip(expected.values(), got.values(), strict=True):
            assert same_array(a, b), f"{a} differs from {b}"
    got = evaluate(graph, feeds)
    env = {f"n{k[1:]}_{axis}": n for k, a in feeds.items() for axis, n in enumerate(a.shape)}
    for value in node.outputs:
        if value is not None and value.type.shape is not None:
            for dim, extent in zip(value.type.shape, got[value.name].shape, strict=True):
                if isinstance(dim, int) or dim.names() <= set(env):
                    assert (dim if isinstance(dim, int) else dim.evaluate(env)) == extent, (value, got[value.name].shape)


@pytest.mark.parametrize(("case", "symbolic"), forms(SMOOTH))
def test_adjoint(case: Case, symbolic: bool) -> None:
    arrays = case.arrays()
    wrt = differentiable_inputs(case, arrays)
    graph, _ = case.graph(arrays, symbolic)
    check_gradients(graph, case.feeds(arrays), wrt, step=case.step, rtol=case.rtol)


SECOND = [c for c in SMOOTH if c.second]


@pytest.mark.parametrize("case", SECOND, ids=[c.id for c in SECOND])
def test_second_order(case: Case) -> None:
    arrays = case.arrays()
    wrt = differentiable_inputs(case, arrays)
    graph, _ = case.graph(arrays, symbolic=case.symbolic)
    check_gradients(graph, case.feeds(arrays), wrt, step=case.step, rtol=10 * case.rtol, order=2)


@pytest.mark.parametrize("case", SMOOTH, ids=[c.id for c in SMOOTH])
def test_tangent(case: Case) -> None:
    arrays = case.arrays()
    wrt = differentiable_inputs(case, arrays)
    graph, _ = case.graph(arrays, symbolic=case.symbolic)
    check_tangents(graph, case.feeds(arrays), wrt, step=case.step, rtol=case.rtol)


REFUSED = [c for c in CASES if c.refuses]


@pytest.mark.parametrize("case", REFUSED, ids=[c.id for c in REFUSED])
def test_refusals_name_the_op(case: Case) -> None:
    arrays = case.arrays()
    graph, _ = case.graph(arrays)
    with pytest.raises(NotDifferentiableError, match=case.op):
        with_adjoint(graph, differentiable_inputs(case, arrays))
