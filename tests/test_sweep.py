"""The command ``sweep``: every elementwise operator has a closed form and is within its bound at some points."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mpmath")

from flowgrad.tools.maintenance import sweep  # noqa: E402 - what it imports is optional
from flowgrad.tools.maintenance.closed_forms import FORMS  # noqa: E402


def test_every_elementwise_operator_has_a_closed_form() -> None:
    assert not sweep.missing()


@pytest.mark.parametrize("name", FORMS)
def test_a_few_points(name: str) -> None:
    for line, good in sweep.lines(name, "float32", 1):
        assert good, line


def test_what_is_off_is_found() -> None:
    right = sweep.Exact(FORMS["Exp"], [np.array([0.0, 1.0, 200.0], np.float32)]).part((0,))
    got = np.array([1, np.e, np.inf], np.float32)
    assert right.errors(got).max() < 1
    assert 0.5 <= right.errors(np.nextafter(got, np.float32(9)))[:2].max() <= 1.5
    assert (right.errors(-got) > 1e6).all() and np.isinf(right.errors(got * np.float32("nan"))).all()
