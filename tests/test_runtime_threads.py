"""Programs in threads: the same bits, errors that reach the caller, forks and pools."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import PARAMETER, Graph
from flowgrad.ir.types import FLOAT32, Type
from flowgrad.passes.differentiate import adjoint
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.runtime.splits import SplitKernel
from tests.runtime_graphs import N, assert_bitwise, feed, mlp


def wide() -> Graph:
    graph = Graph("wide")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (512, 700)))
    w = graph.add_input("w", Type(FLOAT32, (700, 600)))
    y = b.Tanh(b.MatMul(x, w))
    graph.add_output(b.ReduceSum(y, keepdims=0), "s")
    graph.add_output(b.Mul(b.Add(y, graph.add_constant(np.ones((600,), np.float32))), y), "z")
    t = b.Transpose(x)
    graph.add_output(b.MatMul(t, y), "g")
    graph.add_output(b.Exp(b.Neg(t)), "e")
    graph.add_output(b.Gemm(x, y, transA=1), "tn")
    graph.add_output(b.Gemm(y, w, graph.add_constant(np.ones((700,), np.float32)), transB=1), "nt")
    graph.add_output(b.Gemm(x, w, graph.add_constant(np.ones((512, 1), np.float32)), alpha=0.5, beta=2.0), "nn")
    graph.add_output(b.Gemm(w, x, transA=1, transB=1), "tt")
    return graph


def test_thread_counts_give_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    feeds = {"x": (rng.standard_normal((512, 700)) / 26).astype(np.float32),
             "w": rng.standard_normal((700, 600)).astype(np.float32)}
    graph = wide()
    one = NumpyProgram(graph, threads=1).run(feeds)
    for count in (2, 4, 7):
        assert_bitwise(NumpyProgram(graph, threads=count).run(feeds), one)
    for name, array in evaluate(graph, feeds).items():
        np.testing.assert_allclose(one[name], array, rtol=2e-4, atol=1e-3)


def test_convolutions_in_pieces() -> None:
    graph = Graph("images")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (N, 16, 40, 40)))
    w = graph.add_constant(np.random.default_rng(0).standard_normal((32, 16, 3, 3)).astype(np.float32) / 12, "w", PARAMETER)
    y = b.Tanh(b.Conv(x, w, pads=[1, 1, 1, 1]))
    loss = b.ReduceSum(b.Mul(y, y), keepdims=0)
    graph.add_output(loss, "loss")
    found = adjoint(graph, [(loss, graph.add_constant(np.ones((), np.float32)))], [x, w])
    for name, value in zip(("x_bar", "w_bar"), found, strict=True):
        assert value is not None
        graph.add_output(value, name)
    rng = np.random.default_rng(2)
    program = NumpyProgram(graph, threads=1)
    for count in (7, 2, 11):
        feeds = {"x": rng.standard_normal((count, 16, 40, 40)).astype(np.float32)}
        one = program.run(feeds)
        for threads in (2, 4):
            other = NumpyProgram(graph, threads=threads)
            assert_bitwise(other.run(feeds), one)
            assert_bitwise(other.run(feeds), one)
        for name, array in evaluate(graph, feeds).items():
            np.testing.assert_allclose(one[name], array, rtol=2e-4, atol=2e-4 * np.abs(array).max())
    splits = [f for s in [program._executor.specialisation([feeds["x"]]).first]
              for bound in s.code.bound for f in bound if isinstance(f, SplitKernel)]
    assert any(f.works[0] for f in splits)  # a convolution, with scratch for each piece


def test_forked_children_run() -> None:
    feeds = {"x": np.ones((512, 700), np.float32), "w": np.ones((700, 600), np.float32)}
    program = NumpyProgram(wide(), threads=3)
    expected = program.run(feeds)
    with multiprocessing.get_context("fork").Pool(2) as workers:
        for got in workers.map(program.run, [feeds, feeds]):
            assert_bitwise(got, expected)


def test_eight_threads_share_a_program() -> None:
    graph = mlp()
    program = NumpyProgram(graph, threads=2)
    feeds = [feed(1 + seed % 3, seed=seed) for seed in range(8)]
    expected = [evaluate(graph, f) for f in feeds]

    def work(index: int) -> None:
        for _ in range(200):
            assert_bitwise(program.run(feeds[index]), expected[index])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_threads_share_large_work_and_the_pool() -> None:
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((512, 700)).astype(np.float32), "w": rng.standard_normal((700, 600)).astype(np.float32)}
    program = NumpyProgram(wide(), threads=3)
    expected = program.run(feeds)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(3):
                assert_bitwise(program.run(feeds), expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_errors_in_pool_threads_reach_the_caller() -> None:
    from flowgrad.runtime.threads import pool

    def task(piece: int) -> None:
        if piece == 3:
            raise ValueError("piece three")

    with pytest.raises(ValueError, match="piece three"):
        pool.each(task, 8, 4)
    done: list[int] = []
    pool.each(done.append, 100, 4)
    assert sorted(done) == list(range(100))


def test_nested_pool_calls_finish() -> None:
    from flowgrad.runtime.threads import pool

    done: list[int] = []
    pool.each(lambda i: pool.each(lambda j: done.append(10 * i + j), 10, 4), 10, 4)
    assert sorted(done) == list(range(100))


def test_blas_limit_is_given_back() -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    def counts() -> list[int]:
        return [e["num_threads"] for e in threadpool_info() if e["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = counts()
        NumpyProgram(wide()).run({"x": np.ones((512, 700), np.float32), "w": np.ones((700, 600), np.float32)})
        assert counts() == before
