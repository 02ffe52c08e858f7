"""An adapter for suites of ONNX models that call ``run(model, inputs)`` and ``grad(model, inputs, cotangents)``.

Inputs are aligned with the graph inputs that have no initializer (None for an empty optional one), cotangents with the
graph outputs (None for one that takes no part). What the product refuses is passed on as NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.errors import NotDifferentiableError
from flowgrad.ir.graph import Array
from flowgrad.model import Model, load
from flowgrad.transforms.derivatives import vjp


def run(model: Any, inputs: Sequence[Any]) -> list[Array]:
    """Return the outputs of an onnx.ModelProto in order."""
    loaded = load(model)
    outputs = loaded(_feeds(loaded, model, inputs))
    return [outputs[o.name] for o in model.graph.output]


def grad(model: Any, inputs: Sequence[Any], cotangents: Sequence[Any]) -> dict[str, Array]:
    """Return the gradient of sum_k <output_k, cotangent_k> for every float input, by name."""
    loaded = load(model)
    feeds = _feeds(loaded, model, inputs)
    seeds = {o.name: np.asarray(ct) for o, ct in zip(model.graph.output, cotangents, strict=True) if ct is not None}
    wrt = [v.name for v in loaded.graph.inputs if v.type.dtype.carries and v.name in feeds]
    try:
        joint = vjp(loaded, list(seeds), wrt, zero="allow")
    except NotDifferentiableError as error:
        raise NotImplementedError(str(error)) from error
    dtypes = {v.name: v.type.dtype.numpy for v in joint.graph.inputs}
    names = {name: joint.roles["cotangent", name, ""] for name in seeds}
    results = joint({**feeds, **{names[name]: ct.astype(dtypes[names[name]]) for name, ct in seeds.items()}})
    return {w: results[name] for (role, _, w), name in joint.roles.items() if role == "grad"}


def _feeds(loaded: Model, model: Any, inputs: Sequence[Any]) -> dict[str, Any]:
    fixed = {i.name for i in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in fixed]
    known = {v.name for v in loaded.graph.inputs}
    containers = {v.name for v in loaded.graph.inputs if v.type.dtype.element is not None}
    feeds = {}
    for name, value in zip(names, inputs, strict=True):
        if name in known and (value is not None or name in containers):
            feeds[name] = value if name in containers else np.asarray(value)
    return feeds
