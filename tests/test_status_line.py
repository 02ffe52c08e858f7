"""The line that says how far something is."""

from __future__ import annotations

import io
import sys

import pytest

from flowgrad.ir.status_line import StatusLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_the_line_change_in_place_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setenv("COLUMNS", "30")
    with StatusLine() as status:
        status.show("step 1")
        status.show("step 2")  # too soon to be drawn
    shown = screen.getvalue()
    assert shown.startswith("\r/ step 1  0.0 s") and "step 2" not in shown.partition("\n")[0].rpartition("\r")[0]
    assert shown.rpartition("\r")[2].startswith("step 2  ") and shown.endswith(" s\n")
    assert all(len(part) <= 29 for part in shown.split("\r")[:-1])


def test_a_file_gets_the_last_line_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with StatusLine() as status:
        for step in range(100):
            status.show(f"step {step}")
    with StatusLine(quiet_end=True) as status:
        status.show("nothing stays of this")
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("step 99  ") and err.count("\n") == 1
