"""The table of operators in the documentation says what the code does."""

from __future__ import annotations

from flowgrad.tools.maintenance.coverage import PAGE, page, rows


def test_the_page_is_up_to_date_but_for_the_cases() -> None:
    """Run ``python -m flowgrad.tools.maintenance.coverage`` where it is not."""

    def settled(text: str) -> list[str]:
        return [line.rsplit("|", 2)[0] if line.startswith("| ") else line for line in text.splitlines()]

    assert settled(PAGE.read_text(encoding="utf-8")) == settled(page({}))


def test_every_operator_of_the_standard_is_read() -> None:
    refused = {(domain, op) for domain, op, forward, _, _ in rows() if forward == "refused"}
    assert refused == {("ai.onnx.ml", "CastMap"), ("ai.onnx.ml", "DictVectorizer")}
