"""Small ONNX models for the tests of reading and writing, and runs of them elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from flowgrad.ir.graph import Array
from flowgrad.ir.types import dtype_of

Shape = Sequence[int | str | None] | None


def info(name: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """Return the declaration of a tensor."""
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    *,
    opset: int = 18,
    initializers: Mapping[str, Array] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Mapping[str, int] | None = None,
    ir_version: int = 8,
    output_dtype: int = TensorProto.FLOAT,
) -> ModelProto:
    """Return a model; ``inputs`` maps names to a shape (float32), an array (its type), or a ValueInfoProto."""
    declared = [_declared(name, what) for name, what in inputs.items()]
    graph = helper.make_graph(
        list(nodes), "test", declared, [helper.make_tensor_value_info(o, output_dtype, None) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in (initializers or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in (domains or {}).items())]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=list(functions))


def _declared(name: str, what: Any) -> onnx.ValueInfoProto:
    if isinstance(what, onnx.ValueInfoProto):
        return what
    if isinstance(what, np.ndarray):
        return info(name, what.shape, dtype_of(what.dtype).onnx)
    return info(name, what)


def onnxruntime_outputs(proto: ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Run a model as it is in onnxruntime, without its optimisations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(a) for a in session.run(None, dict(feeds))]
