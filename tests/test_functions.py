"""Objective and VectorFunction: what SciPy's solvers are given, against differences and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import INITIALIZER, Array, Graph
from flowgrad.ir.types import FLOAT32, FLOAT64, Dim, Type

T = np.linspace(0, 1, 7)


def rosenbrock() -> fg.Model:
    """Return sum (a - h)^2 + 100 (t - h^2)^2 of float32 x, with h all but its last and t all but its first entry."""
    graph = Graph("rosenbrock")
    b = Builder(graph)
    x, a = graph.add_input("x", Type(FLOAT32, (5,))), graph.add_input("a", Type(FLOAT32, ()))
    head, tail = b.Slice(x, [0], [4]), b.Slice(x, [1], [5])
    valley, slope = b.Sub(tail, b.Mul(head, head)), b.Sub(a, head)
    graph.add_output(b.ReduceSum(b.Add(b.Mul(b.Mul(valley, valley), 100.0), b.Mul(slope, slope)), keepdims=0), "f")
    return fg.Model(graph)


def decay() -> fg.Model:
    """Return c exp(k t) + o at the times t, and the sum of c and k."""
    graph = Graph("decay")
    b = Builder(graph)
    x, t = graph.add_input("x", Type(FLOAT64, (2,))), graph.add_input("t", Type(FLOAT64, (Dim.named("T"),)))
    o = graph.add_constant(np.array(0.5), "o", INITIALIZER)
    c, k = (b.Gather(x, np.int64(i)) for i in range(2))
    graph.add_output(b.Add(b.Mul(c, b.Exp(b.Mul(t, k))), o), "y")
    graph.add_output(b.ReduceSum(x, keepdims=1), "total")
    return fg.Model(graph)


def chain(count: int = 6) -> fg.Model:
    """Return x[i] x[i + 1]: a Jacobian of two diagonals."""
    graph = Graph("chain")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (count,)))
    graph.add_output(b.Mul(b.Slice(x, [0], [count - 1]), b.Slice(x, [1], [count])), "y")
    return fg.Model(graph)


def differences(function: Any, x: Array) -> Array:
    """Return central differences of a function of a vector, a column for each entry."""
    steps = 1e-6 * np.eye(x.size)
    return np.stack([(np.asarray(function(x + s)) - np.asarray(function(x - s))) / 2e-6 for s in steps], axis=-1)


def test_an_objective_has_value_gradient_and_hessian_in_float64() -> None:
    f = fg.Objective(rosenbrock(), wrt="x", fixed={"a": 1})
    x = np.array([0.3, -0.2, 0.5, 0.9, -1.1])
    assert f.fun(np.ones(5)) == 0.0
    gradient, hessian = f.jac(x), f.hess(x)
    assert gradient.dtype == hessian.dtype == np.float64 and gradient.flags.c_contiguous
    np.testing.assert_allclose(gradient, differences(f.fun, x), rtol=1e-6)
    np.testing.assert_allclose(hessian, differences(f.jac, x), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(f.hessp(x, x[::-1]), hessian @ x[::-1], rtol=1e-12)
    value, both = f.fun_and_jac(x)
    assert value == f.fun(x) and (both == gradient).all()


def test_solvers_probe_with_integers_and_other_inputs_come_with_a_call() -> None:
    f = fg.Objective(rosenbrock(), wrt="x", fixed={"a": 1})
    assert f.fun(np.ones(5, np.int8)) == f.fun([1, 1, 1, 1, 1]) == 0.0
    assert f.fun(np.ones(5), a=3) == pytest.approx(16.0)


def test_several_variables_lie_one_after_the_other() -> None:
    f = fg.Objective(rosenbrock(), wrt=["a", "x"], start={"a": 2}, bounds={"a": (0, None)})
    assert f.x0.tolist() == [2, 0, 0, 0, 0, 0]
    named = f.unpack(np.arange(6))
    assert named["a"] == 0 and named["x"].tolist() == [1, 2, 3, 4, 5]
    assert f.pack(named).tolist() == [0, 1, 2, 3, 4, 5]
    x = np.linspace(-1, 1, 6)
    np.testing.assert_allclose(f.hess(x), differences(f.jac, x), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(f.hessp(x, np.ones(6)), f.hess(x).sum(1), rtol=1e-12)


def test_weights_are_variables_that_have_a_value() -> None:
    f = fg.Objective(fg.load("tests/data/mlp.onnx"), "loss", "params", fixed={"x": np.ones((2, 4)), "target": [0, 2]})
    assert f.x0.size == 4 * 8 + 8 + 8 * 3 + 3
    np.testing.assert_allclose(f.jac(f.x0), differences(f.fun, f.x0), rtol=1e-5, atol=1e-8)


def test_a_number_that_is_no_parameter_is_a_variable_if_it_is_named() -> None:
    model = fg.load(b"""graph @g (%t: f64[3]) -> (%y: f64[3])
        literals (%"onnx::Mul_1": f64[] = 2.0) {
        %y: f64[3] = Mul(%t, %"onnx::Mul_1")
    }""")
    f = fg.VectorFunction(model, wrt="onnx::*", fixed={"t": [1.0, 2.0, 3.0]})
    assert f.x0.tolist() == [2.0]
    assert f.fun([5.0]).tolist() == [5.0, 10.0, 15.0]
    assert f.jac([5.0]).tolist() == [[1.0], [2.0], [3.0]]


def test_an_inner_value_can_be_the_function() -> None:
    model = fg.load(b"""graph @g (%x: f64[2]) -> (%y: f64[]) {
        %d: f64[2] = Mul(%x, %x)
        %y: f64[] = ReduceSum(%d) {keepdims=0}
    }""")
    f = fg.VectorFunction(model, of="d")
    assert f.fun([2.0, 3.0]).tolist() == [4.0, 9.0]
    assert f.jac([2.0, 3.0]).tolist() == [[4.0, 0.0], [0.0, 6.0]]


def test_a_vector_function_has_a_jacobian() -> None:
    f = fg.VectorFunction(decay(), wrt="x", fixed={"t": T})
    x = np.array([3.0, -2.0])
    np.testing.assert_allclose(f.fun(x), [*(3 * np.exp(-2 * T) + 0.5), 1.0], rtol=1e-12)
    expected = np.stack([np.exp(-2 * T), 3 * T * np.exp(-2 * T)], axis=1)
    np.testing.assert_allclose(f.jac(x), [*expected, [1, 1]], rtol=1e-12)
    assert f.fun(x, t=T[:2]).size == 3
    one = fg.VectorFunction(decay(), "y", "x", fixed={"t": T})
    np.testing.assert_allclose(one.jac(x), expected, rtol=1e-12)


def test_a_sparse_jacobian_is_the_dense_one() -> None:
    pytest.importorskip("scipy")
    x = np.linspace(1, 2, 6)
    found = fg.VectorFunction(chain(), sparse=True).jac(x)
    assert found.nnz == 10
    np.testing.assert_allclose(found.toarray(), fg.VectorFunction(chain()).jac(x), rtol=1e-12)


def test_hessians_of_weighed_outputs_are_what_constraints_want() -> None:
    f = fg.VectorFunction(decay(), wrt=["x", "o"], fixed={"t": T}, start={"o": 0.3})
    x, v = np.array([0.7, -1.2, 0.4]), np.arange(1.0, T.size + 2)
    np.testing.assert_allclose(f.hess(x, v), differences(lambda at: v @ f.jac(at), x), rtol=1e-6, atol=1e-6)
    with pytest.raises(InputError, match="v is a vector of 8 real numbers, one for each element of y, total, got 3"):
        f.hess(x, np.ones(3))


def test_sparse_hessians_are_the_dense_ones() -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    x, v = np.arange(1.0, 7), np.arange(5.0)
    found = fg.VectorFunction(chain(), sparse=True).hess(x, v)
    assert scipy_sparse.issparse(found) and found.nnz == 10
    np.testing.assert_allclose(found.toarray(), fg.VectorFunction(chain()).hess(x, v), rtol=1e-14)
    x = np.array([0.3, -0.2, 0.5, 0.9, -1.1])
    found = fg.Objective(rosenbrock(), wrt="x", fixed={"a": 1}, sparse=True).hess(x)
    assert scipy_sparse.issparse(found) and found.nnz == 13
    np.testing.assert_allclose(found.toarray(), fg.Objective(rosenbrock(), wrt="x", fixed={"a": 1}).hess(x), rtol=1e-14)


def test_scipy_solves_with_them() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    f = fg.Objective(rosenbrock(), wrt="x", fixed={"a": 1}, bounds={"x": (-2, None)})
    for method, derivatives in (("BFGS", {"jac": f.jac}), ("trust-exact", {"jac": f.jac, "hess": f.hess}),
                                ("L-BFGS-B", {"jac": f.jac, "bounds": f.bounds}),
                                ("trust-constr", {"jac": f.jac, "hess": f.hess, "bounds": f.bounds})):
        solved = optimize.minimize(f.fun, f.x0, method=method, **derivatives)
        np.testing.assert_allclose(solved.x, 1, atol=1e-4, err_msg=method)
    assert optimize.minimize(f.fun_and_jac, f.x0, jac=True).success
    g = fg.VectorFunction(decay(), "y", "x", fixed={"t": T}, start={"x": [1, -1]})
    data = 3 * np.exp(-2 * T) + 0.5
    solved = optimize.least_squares(lambda x: g.fun(x) - data, g.x0, jac=g.jac)
    np.testing.assert_allclose(solved.x, [3, -2], rtol=1e-8)


def test_the_model_can_keep_its_type() -> None:
    f = fg.Objective(rosenbrock(), wrt="x", fixed={"a": 1}, dtype=None)
    assert f.unpack(np.ones(5))["x"].dtype == np.float32 and f.jac(np.zeros(5)).dtype == np.float64


@pytest.mark.parametrize(("call", "said"), [
    (lambda: fg.Objective(chain(), wrt="x"), "of= must name"),
    (lambda: fg.Objective(rosenbrock(), wrt="z"), "no output, value or node 'z'"),
    (lambda: fg.Objective(rosenbrock(), wrt="x", start={"y": 1}), "'y' is no variable"),
    (lambda: fg.Objective(rosenbrock(), wrt="x", bounds={"y": (0, 1)}), "'y' is no variable"),
    (lambda: fg.Objective(rosenbrock(), wrt="x", fixed={"b": 1}), "no other input 'b'"),
    (lambda: fg.Objective(rosenbrock(), wrt="x", start={"x": np.ones(3)}), "has shape"),
    (lambda: fg.VectorFunction(decay(), wrt="t"), "say its shape by start="),
    (lambda: fg.Objective(rosenbrock(), wrt="x", fixed={"a": 1}).fun(np.ones(4)), "a vector of 5 real numbers"),
    (lambda: fg.Objective(rosenbrock(), wrt="x", fixed={"a": 1}).fun(np.ones(5) * 1j), "real numbers"),
    (lambda: fg.Objective(rosenbrock(), wrt="x").fun(np.ones(5)), "'a'"),
])
def test_wrong_calls_say_the_way_out(call: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


def products() -> fg.Model:
    """Return the sum of x (p q), with p of any two extents and q the shape of their product."""
    graph = Graph("products")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (2,)))
    p, q = (graph.add_input(name, Type(FLOAT64, (Dim.named("R"), Dim.named("C")))) for name in ("p", "q"))
    flat = b.ReduceSum(b.Sub(b.Mul(p, 2.0), q), np.array([1]), keepdims=0)
    graph.add_output(b.ReduceSum(b.Mul(x, b.Slice(b.Concat(flat, flat, axis=0), [0], [2])), keepdims=0), "f")
    return fg.Model(graph)


def test_what_was_computed_last_is_told_apart_by_names_and_shapes() -> None:
    f = fg.Objective(products(), wrt="x")
    x, one, two = np.ones(2), np.array([[1.0, 2.0]]), np.array([[5.0, 7.0]])
    assert f.fun(x, p=one, q=two) == -12.0
    assert f.fun(x, q=one, p=two) == 42.0, "the same bytes in the same order, under other names"
    assert f.fun(x, p=one.T, q=two.T) == -6.0
    assert f.fun(x, p=one, q=two) == -12.0, "the same bytes in other shapes"


def test_other_inputs_may_have_the_names_of_arguments() -> None:
    f = fg.Objective(rosenbrock(), wrt="a")
    x = np.array([0.3, -0.2, 0.5, 0.9, -1.1])
    assert f.jac([1.0], x=x) == pytest.approx(2 * (4 - x[:4].sum()))
