"""Two of the light models of onnx through everything that ``flowgrad light`` checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowgrad.ir.errors import InputError
from flowgrad.tools.cli import main
from flowgrad.tools.light import check_model, line, models


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_a_light_model_is_right_in_every_way(name: str) -> None:
    pytest.importorskip("onnxruntime")
    report = check_model(models(None, [name])[0])
    assert report.outputs_ok
    assert not report.wrong, line(report)
    checks = {f"{weights}{engine}" for weights in ("", "smooth ") for engine in ("numpy", "unoptimised", "ort")}
    assert set(report.agreed) == checks
    assert set(report.agreed.values()) == {report.gradients}
    assert report.gradients == {"squeezenet": 53, "shufflenet": 151}[name]


def test_nine_models_come_with_onnx() -> None:
    assert len(models()) == 9


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model 'mobilenet'"):
        models(None, ["mobilenet"])
    with pytest.raises(InputError, match="no light_"):
        models(str(tmp_path))
    assert main(["light", "--engines", "cuda"]) == 2
