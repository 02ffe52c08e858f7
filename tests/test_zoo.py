"""Real exported models with reference gradients, in the NumPy engine and exported to a stock runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, same_array
from flowgrad.ir.ops.operands import sum_of
from flowgrad.model import Model
from flowgrad.passes import available
from flowgrad.passes.differences import moved
from flowgrad.passes.manager import DEFAULT_PIPELINE
from flowgrad.tools.zoo import check_entry, entry_names, line, read_entry

ZOO = Path(__file__).resolve().parent.parent.parent / "shared" / "zoo"
ENTRIES = sorted(p.parent.name for p in ZOO.glob("*/model.onnx"))
CORE = ("mlp", "siren", "lenet", "autoencoder", "molecule_energy", "bilstm_tagger", "timm_resnet18_narrow_train")

pytestmark = pytest.mark.skipif(not ZOO.is_dir(), reason="the models are not here")


@pytest.mark.parametrize("engine", ["numpy", "ort"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_gradients_agree_with_the_references(entry: str, engine: str) -> None:
    if engine == "ort":
        pytest.importorskip("onnxruntime")
    verdict = check_entry(ZOO / entry, engine)
    assert verdict.status == "ok", line(verdict)


def relative(got: Array, expected: Array) -> float:
    return float(np.abs(got - expected).max(initial=0.0) / max(np.abs(expected).max(initial=0.0), 1e-6))


@pytest.mark.parametrize("entry", CORE)
def test_forward_mode_and_second_order_agree_with_differences(entry: str) -> None:
    """In float64: jvp against differences of the outputs, hvp against differences of the gradient, wrt everything."""
    meta, data = read_entry(ZOO / entry)
    wrt = entry_names(meta)
    model = scalar_model(fg.load(ZOO / entry / "model.onnx").astype("float64"), meta, data)
    feeds = {i["name"]: wide(data["in/" + i["name"]]) for i in meta["inputs"]}
    gradient, product, push = fg.grad(model, "paired", wrt), fg.hvp(model, "paired", wrt), fg.jvp(model, wrt=wrt)
    at = {n: feeds[n] if n in feeds else np.asarray(gradient.graph.value(n).producer.data) for n in wrt}
    rng = np.random.default_rng(1)
    direction = {n: np.asarray(rng.standard_normal(a.shape)) * max(1e-2, float(np.abs(a).max())) for n, a in at.items()}
    tangents = {f"{n}_tangent": d for n, d in direction.items()}
    step = 1e-6
    pushed, products = push({**feeds, **tangents}), product({**feeds, **tangents})
    plus, minus = (gradient_and_outputs(gradient, push, moved({**feeds, **at}, direction, s), tangents) for s in (step, -step))
    for name in [o.name for o in model.outputs]:
        if pushed[name].dtype == np.float64:
            assert relative(pushed[f"{name}_tangent"], (plus[name] - minus[name]) / (2 * step)) < 1e-5, name
    scale = max(np.abs(p).max() for n, p in products.items() if n.endswith("_hvp"))
    for name in wrt:
        expected = (plus[f"{name}_grad"] - minus[f"{name}_grad"]) / (2 * step)
        assert float(np.abs(products[f"{name}_hvp"] - expected).max()) < 1e-5 * scale, name


def gradient_and_outputs(gradient: Model, push: Model, feeds: dict[str, Array], tangents: dict[str, Array]
                         ) -> dict[str, Array]:
    return {**push({**feeds, **tangents}), **gradient(feeds)}


def wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def scalar_model(model: Model, meta: dict[str, Any], data: dict[str, Array]) -> Model:
    """The model with sum(out * ct) as an output called ``paired``."""
    graph = model.graph.copy()
    b = Builder(graph)
    outputs = {e.name: e.input(0) for e in graph.output_entries}
    parts = [b.ReduceSum(b.Mul(outputs[o["name"]], wide(data["ct/" + o["name"]])), keepdims=0)
             for o in meta["outputs"] if o["cotangent"]]
    graph.add_output(sum_of(b, parts), "paired")
    return model.with_graph(graph)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_pass_alone_and_all_keep_outputs_and_gradients(entry: str) -> None:
    meta, data = read_entry(ZOO / entry)
    outputs = [o["name"] for o in meta["outputs"] if o["cotangent"]]
    joint = fg.vjp(fg.load(ZOO / entry / "model.onnx"), outputs, entry_names(meta), zero="allow")
    feeds = {i["name"]: data["in/" + i["name"]] for i in meta["inputs"]}
    feeds |= {joint.roles["cotangent", name, ""]: data["ct/" + name] for name in outputs}
    expected = evaluate(joint.graph, feeds)
    for name in ("stabilize", "canonicalize", "fold", "cse", "simplify", "dce", DEFAULT_PIPELINE):
        got = evaluate(joint.optimized(name).graph, feeds)
        exact = "," not in name and available()[name].kind == "exact"
        for output, array in expected.items():
            if exact:
                assert same_array(got[output], array), f"{name}: {output}"
            else:
                largest = max(1e-30, float(np.abs(array).max(initial=0.0)))
                off = float(np.abs(got[output].astype(np.float64) - array.astype(np.float64)).max(initial=0.0))
                assert off <= 1e-4 * largest, f"{name}: {output}"
