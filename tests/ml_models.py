"""Models of one operator of ai.onnx.ml."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, helper

from flowgrad.ir.graph import Array
from flowgrad.ir.types import dtype_of


def ml_model(op: str, feeds: dict[str, Array], attributes: dict[str, Any], outputs: int = 1, version: int = 3) -> ModelProto:
    """Return a model of one node; rows have an extent that only the run tells. Outputs are y0, y1, ..."""
    node = helper.make_node(op, list(feeds), [f"y{i}" for i in range(outputs)], domain="ai.onnx.ml", **attributes)
    inputs = [helper.make_tensor_value_info(k, dtype_of(a.dtype).onnx, [f"N{len(a)}", *a.shape[1:]]) for k, a in feeds.items()]
    declared = [helper.make_empty_tensor_value_info(name) for name in node.output]
    imports = [helper.make_opsetid("", 19), helper.make_opsetid("ai.onnx.ml", version)]
    return helper.make_model(helper.make_graph([node], "ml", inputs, declared), opset_imports=imports, ir_version=9)


def tree_lists(**more: Any) -> dict[str, Any]:
    """Return the lists nodes_* of two trees of features 0 and 1: nodes 1, 3 and 4 of the first are leaves, the second is one."""
    return {
        "nodes_treeids": [0, 0, 0, 0, 0, 7], "nodes_nodeids": [0, 1, 2, 3, 4, 0], "nodes_featureids": [0, 0, 1, 0, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "BRANCH_LT", "LEAF", "LEAF", "LEAF"], "nodes_values": [0.5, 0, 1.0, 0, 0, 0],
        "nodes_truenodeids": [1, 0, 3, 0, 0, 0], "nodes_falsenodeids": [2, 0, 4, 0, 0, 0], **more,
    }


def given_to(prefix: str, ids: list[int], weights: list[float]) -> dict[str, Any]:
    """Return the lists of weights: one entry for each leaf of ``tree_lists``, then again for more targets."""
    count = len(ids)
    return {f"{prefix}_treeids": [0, 0, 0, 7] * (count // 4), f"{prefix}_nodeids": [1, 3, 4, 0] * (count // 4),
            f"{prefix}_ids": ids, f"{prefix}_weights": weights}


TREE_ROWS: Array = np.array([[0.5, 0.0], [0.6, 0.9], [0.7, 1.0], [-3.0, 5.0]], np.float32)
