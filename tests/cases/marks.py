"""Rows for the operators that change derivatives and no value."""

from __future__ import annotations

from tests.op_cases import Case, normal

CASES = [Case("StopGradient", (normal(2, 3),), expected=lambda x: x)]
