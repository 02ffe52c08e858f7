"""Rows for the operators on bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx import TensorProto

from tests.op_cases import Case, In, fixed, normal

FLOAT4 = In(lambda rng: np.array([-6.0, 1.5]).astype(ml_dtypes.float4_e2m1fn))

CASES: list[Case] = [
    Case("BitCast", [normal(2, 3)], {"to": TensorProto.INT64}),
    Case("BitCast", [fixed([1.0, -2.0], "float32")], {"to": TensorProto.UINT32}, name="float32"),
    Case("BitCast", [fixed([0x3F80, 0x4000], "int16")], {"to": TensorProto.BFLOAT16}, name="bfloat16"),
    Case("BitCast", [fixed([1.0, np.inf], "float16")], {"to": TensorProto.BFLOAT16}, name="between-floats"),
    Case("BitCast", [fixed([0, 1, 2], "uint8")], {"to": TensorProto.BOOL}, name="bool",
         expected=lambda x, to: np.array([False, True, True])),
    Case("BitCast", [fixed([True, False])], {"to": TensorProto.INT8}, name="from-bool"),
    Case("BitCast", [FLOAT4], {"to": TensorProto.INT4}, name="packed"),
    Case("BitCast", [fixed(1.0, "float64")], {"to": TensorProto.UINT64}, name="scalar"),
    Case("BitCast", [normal(0, 2)], {"to": TensorProto.INT64}, name="nothing"),
]
