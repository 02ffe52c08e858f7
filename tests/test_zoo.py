"""Real exported models with reference gradients, in the NumPy engine and exported to a stock runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowgrad.tools.zoo import check_entry, line

ZOO = Path(__file__).resolve().parent.parent.parent / "shared" / "zoo"
CORE = ("mlp", "siren", "lenet", "autoencoder", "molecule_energy", "bilstm_tagger", "timm_resnet18_narrow_train")

pytestmark = pytest.mark.skipif(not ZOO.is_dir(), reason="the models are not here")


@pytest.mark.parametrize("engine", ["numpy", "ort"])
@pytest.mark.parametrize("entry", CORE)
def test_gradients_agree_with_the_references(entry: str, engine: str) -> None:
    if engine == "ort":
        pytest.importorskip("onnxruntime")
    verdict = check_entry(ZOO / entry, engine)
    assert verdict.status == "ok", line(verdict)
