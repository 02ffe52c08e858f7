"""Rows for the matmul operators."""

from __future__ import annotations

from tests.op_cases import Case, held, normal, positive

CASES: list[Case] = [
    Case("MatMul", [normal(3, 4), normal(4, 5)]),
    Case("MatMul", [normal(4), normal(4)], name="vectors"),
    Case("MatMul", [normal(4), normal(4, 5)], name="row"),
    Case("MatMul", [normal(3, 4), normal(4)], name="column"),
    Case("MatMul", [normal(4), normal(2, 3, 4, 5)], name="row-batch"),
    Case("MatMul", [normal(2, 3, 5, 4), normal(4)], name="column-batch"),
    Case("MatMul", [normal(2, 3, 4), normal(4, 5)], name="batch-matrix"),
    Case("MatMul", [normal(3, 4), normal(2, 4, 5)], name="matrix-batch"),
    Case("MatMul", [normal(2, 1, 3, 4), normal(5, 4, 2)], name="batch-broadcast"),
    Case("MatMul", [normal(0, 3, 4), normal(4, 5)], name="empty-batch"),
    Case("MatMul", [normal(3, 0), normal(0, 5)], name="empty-inner"),
    Case("Gemm", [normal(3, 4), normal(4, 5)], name="plain"),
    Case("Gemm", [normal(4, 3), normal(4, 5), normal(5)], {"transA": 1, "alpha": 0.5}, name="transA"),
    Case("Gemm", [normal(3, 4), normal(5, 4), normal(3, 1)], {"transB": 1, "beta": 2.0}, name="transB"),
    Case("Gemm", [normal(4, 3), normal(5, 4), normal()], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 0.25},
         name="both"),
    Case("Gemm", [normal(3, 4), normal(4, 5), normal(3, 5)], {"beta": 0.0}, name="beta-zero"),
    Case("Gemm", [held(normal(3, 4)), held(normal(4, 5)), normal(1, 5)], {"beta": 3.0}, name="only-c"),
]
