"""Rows for the elementwise operators."""

from __future__ import annotations

from tests.op_cases import Case

CASES: list[Case] = []
