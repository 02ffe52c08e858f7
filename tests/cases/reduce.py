"""Rows for the reduce operators."""

from __future__ import annotations

from tests.op_cases import Case

CASES: list[Case] = []
