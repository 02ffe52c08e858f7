"""Rows for the random operators."""

from __future__ import annotations

from tests.op_cases import Case

CASES: list[Case] = []
