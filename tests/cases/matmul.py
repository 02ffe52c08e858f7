"""Rows for the matmul operators."""

from __future__ import annotations

from tests.op_cases import Case, fixed, held, normal

EINSUMS: list[tuple[str, str, list[tuple[int, ...]]]] = [
    ("product", "ij,jk->ik", [(3, 4), (4, 2)]),
    ("implicit", "kj , ik", [(3, 4), (2, 3)]),
    ("transposed", "ijk->kij", [(2, 3, 4)]),
    ("trace", "ii->", [(3, 3)]),
    ("take-diagonal", "iji->ji", [(3, 2, 3)]),
    ("triple-diagonal", "iii->i", [(2, 2, 2)]),
    ("sum", "ijk->j", [(2, 3, 4)]),
    ("outer", "i,j->ij", [(3,), (4,)]),
    ("three", "ij,jk,k->i", [(3, 4), (4, 2), (2,)]),
    ("attention", "bqhd,bkhd->bhqk", [(2, 3, 2, 4), (2, 5, 2, 4)]),
    ("bilinear", "bi,oij,bj->bo", [(2, 3), (4, 3, 2), (2, 2)]),
    ("lone-sum", "ij,k->i", [(3, 4), (2,)]),
    ("dots", "...ij,jk->...ik", [(2, 5, 3, 4), (4, 2)]),
    ("dots-broadcast", "...i,...i->...", [(2, 1, 3), (5, 3)]),
    ("dots-moved", "i...j->j...i", [(2, 5, 3)]),
    ("dots-implicit", "...i,i", [(2, 3), (3,)]),
    ("no-dots-left", "...i->...", [(3,)]),
    ("scalar", ",ij->ij", [(), (2, 3)]),
    ("empty", "ij,jk->ik", [(3, 0), (0, 2)]),
    ("elementwise", "ij,ij->ij", [(2, 3), (2, 3)]),
]

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
    *(Case("Einsum", [normal(*shape) for shape in shapes], {"equation": equation}, name=name)
      for name, equation, shapes in EINSUMS),
    Case("Einsum", [normal(3, 3), normal(3)], {"equation": "ii,i->i"}, name="diagonal"),
    Case("Einsum", [normal(3), normal(1)], {"equation": "i,i->"}, name="broadcast-label"),
    Case("Einsum", [fixed([[1, 2], [3, 4]], "int64"), fixed([1, 1], "int64")], {"equation": "ij,j->i"}, name="int64"),
]
