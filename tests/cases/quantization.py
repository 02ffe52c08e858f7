"""Rows for the quantization operators."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from flowgrad.ir.graph import Array
from flowgrad.ir.types import dtype_of
from tests.op_cases import Case, const, fixed, normal, positive

HALVES = [-1e9, -200.0, -128.5, -3.5, -2.5, -1.5, -0.5, -0.0, 0.5, 1.5, 2.5, 3.5, 7.5, 127.5, 300.0, 70000.0, 1e9]
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint4", "int4", "uint2", "int2")
EIGHTHS = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn")


def array(data: Any, dtype: str) -> Array:
    return np.asarray(data).astype(dtype_of(dtype).numpy)


def whole(dtype: str, *shape: int) -> Array:
    """Return all kinds of numbers of an integer type."""
    info = ml_dtypes.iinfo(dtype_of(dtype).numpy)  # type: ignore[no-untyped-call]
    count = int(np.prod(shape))
    return array(np.linspace(int(info.min), int(info.max), count).round().reshape(shape), dtype)


def nearest(x: Array, scale: Array, zero: Array, *, precision: int = 0, **_: Any) -> Array:
    """Quantize in the precision that the standard names."""
    chosen = dtype_of(precision).numpy if precision else scale.dtype
    ratio = (x.astype(chosen) / scale.astype(chosen)).astype(np.float64)
    info = ml_dtypes.iinfo(zero.dtype)  # type: ignore[no-untyped-call]
    made: Array = np.clip(np.rint(ratio) + zero.astype(np.float64), int(info.min), int(info.max)).astype(zero.dtype)
    return made


def product(a: Array, a_scale: Array, a_zero: Array, b: Array, b_scale: Array, b_zero: Array, y_scale: Array, y_zero: Array,
            **_: Any) -> Array:
    """Multiply row by row and column by column, in integers."""
    def laid(v: Array) -> Array:
        return v[:, None] if v.ndim == 1 and v.size > 1 else v

    total = np.matmul(a.astype(np.int64) - laid(a_zero).astype(np.int64), b.astype(np.int64) - b_zero.astype(np.int64))
    real = total.astype(np.float32) * (laid(a_scale) * b_scale / y_scale)
    info = np.iinfo(y_zero.dtype)
    made: Array = np.clip(np.rint(real) + y_zero.astype(np.float32), info.min, info.max).astype(y_zero.dtype)
    return made


ROUND = [Case("QuantizeLinear", [fixed(HALVES, "float32"), const(1.0, "float32"), fixed(array(1, t))],
              name=t, expected=nearest) for t in INTEGERS]
QUANTIZE = [
    Case("QuantizeLinear", [normal(3, 4, dtype="float32"), positive(dtype="float32")]),
    Case("QuantizeLinear", [normal(3, 4), positive(4), fixed([1, 2, 3, 250], "uint8")], name="axis-float64"),
    Case("QuantizeLinear", [normal(3, 4, dtype="float32"), positive(3, low=0.01, high=0.02, dtype="float32"),
                            fixed([0, -5, 100], "int8")], {"axis": -2}, name="first-axis"),
    Case("QuantizeLinear", [normal(dtype="float32"), positive(1, dtype="float32"), fixed([1], "int8")], name="scalar"),
    Case("QuantizeLinear", [normal(2, 0, dtype="float32"), positive(2, dtype="float32")], {"axis": 0}, name="empty"),
    Case("QuantizeLinear", [normal(2, 7, dtype="float32"), positive(2, 3, low=0.1, dtype="float32"),
                            fixed(whole("int4", 2, 3))], {"block_size": 3}, name="blocks-remainder"),
    Case("QuantizeLinear", [normal(4, 2, 3), positive(2, 2, 3, low=0.1)], {"axis": 0, "block_size": 2, "output_dtype": 3},
         name="blocks-first-float64"),
    Case("QuantizeLinear", [normal(3, 4, dtype="float16"), positive(4, dtype="float16")], {"output_dtype": 5}, name="float16"),
    Case("QuantizeLinear", [normal(3, 4, dtype="float32"), positive(4, low=0.02, dtype="float16"), fixed([0] * 4, "int8")],
         name="half-scale", expected=nearest),
    Case("QuantizeLinear", [normal(50, dtype="float32"), positive(low=0.02, dtype="float32"), fixed(7, "uint8")],
         {"precision": 10}, name="half-precision", expected=nearest),
    Case("QuantizeLinear", [normal(50, dtype="float16"), positive(low=0.02, dtype="float16"), fixed(7, "uint8")],
         {"precision": 1}, name="full-precision", expected=nearest),
    Case("QuantizeLinear", [fixed([-7, 3, 900], "int32"), positive(dtype="float32"), fixed(7, "int8")], name="int32"),
    Case("QuantizeLinear", [fixed([-7, 3, 900], "int32"), fixed(2, "int32"), fixed(7, "int8")], name="int32-scale"),
    Case("QuantizeLinear", [normal(9, dtype="float32"), fixed(array(0.125, "float8_e8m0fnu"))], {"output_dtype": 22},
         name="power-scale", reference=False,
         expected=lambda x, s, output_dtype: np.clip(np.rint(x * 8), -8, 7).astype(ml_dtypes.int4)),
    Case("QuantizeLinear", [fixed([np.inf, -np.inf, np.nan], "float32"), fixed(1.0, "float32"), fixed(5, "int8")],
         name="not-finite", reference=False, expected=lambda *_: np.array([127, -128, -128], np.int8)),
    *(Case("QuantizeLinear", [fixed(HALVES, "float32"), fixed(1.5, "float32"), fixed(array([0], t))], {"saturate": s},
           name=f"{t}-saturate{s}", symbolic=False, note="NumPy does not take the NaN of narrow types as equal")
      for t in EIGHTHS for s in (0, 1)),
]
DEQUANTIZE = [
    *(Case("DequantizeLinear", [fixed(whole(t, 3, 4)), positive(4), fixed(whole(t, 4))], name=t) for t in INTEGERS),
    Case("DequantizeLinear", [fixed(whole("uint8", 3, 4)), positive()], name="no-zero-point"),
    Case("DequantizeLinear", [fixed(whole("int8", 3, 4)), positive(1), const([3], "int8")], name="one-scale"),
    Case("DequantizeLinear", [fixed(whole("int8", 3, 4)), positive(3), const([3, 0, -128], "int8")], {"axis": -2}, name="rows"),
    Case("DequantizeLinear", [fixed([-7, 3, 2**20], "int32"), positive()], name="int32"),
    Case("DequantizeLinear", [fixed(whole("int8", 2, 7)), positive(2, 3), fixed(whole("int8", 2, 3))], {"block_size": 3},
         name="blocks-remainder"),
    Case("DequantizeLinear", [fixed(whole("uint4", 4, 2, 3)), positive(2, 2, 3)], {"axis": 0, "block_size": 2},
         name="blocks-first"),
    Case("DequantizeLinear", [fixed(whole("int8", 3, 4)), positive(3, 1)], {"axis": -1, "block_size": 4}, name="blocks-one"),
    Case("DequantizeLinear", [fixed(whole("int8", 3, 4)), positive(3, 1)], {"block_size": 2**40}, name="block-of-any-size",
         expected=lambda x, s, block_size: x * s),
    Case("DequantizeLinear", [fixed(whole("int8", 0, 4)), positive(4)], name="empty"),
    Case("DequantizeLinear", [fixed(whole("int8", 0, 4)), positive(0, 2)], {"block_size": 2}, name="empty-blocks"),
    Case("DequantizeLinear", [fixed(whole("int8"), "int8"), positive()], name="scalar"),
    Case("DequantizeLinear", [fixed(whole("int8", 3, 4)), positive(4, dtype="float32")], {"output_dtype": 10}, name="float16"),
    Case("DequantizeLinear", [fixed(whole("int8", 3, 4)), positive(4, dtype="float16")], {"output_dtype": 1}, name="half-scale"),
    Case("DequantizeLinear", [fixed(whole("int8", 3, 4)), fixed(array([0.5, 1, 2, 4], "float8_e8m0fnu"))], {"output_dtype": 1},
         name="power-scale", reference=False,
         expected=lambda x, s, output_dtype: x.astype(np.float32) * s.astype(np.float32)),
    *(Case("DequantizeLinear", [fixed(array(np.linspace(-6, 6, 12).reshape(3, 4), t)), positive(4)], name=t) for t in EIGHTHS),
]
GEOMETRY: dict[str, Any] = {"strides": (2, 1), "pads": (1, 0, 1, 2), "dilations": (1, 2)}
CONSTANT = [
    *(Case("QuantizeLinear", [fixed(HALVES, "float32"), const(1.5, "float32"), const(array(1, t))], name=f"{t}-constant",
           expected=nearest) for t in INTEGERS),
    Case("QuantizeLinear", [normal(3, 4), const([0.1, 0.2, 0.3, 0.4]), const([1, 2, 3, -4], "int8")], name="axis-constant"),
    Case("QuantizeLinear", [normal(), const(0.1)], name="scalar-constant"),
    *(Case("DequantizeLinear", [fixed(whole(t, 3, 4)), const([0.1, 0.2, 0.3, 0.4]), const(whole(t, 4))], name=f"{t}-constant")
      for t in INTEGERS),
    Case("DequantizeLinear", [fixed(whole("int8", 2, 7)), const(np.full((2, 3), 0.1, np.float32))], {"block_size": 3},
         name="blocks-constant"),
]
PRODUCTS = [
    Case("MatMulInteger", [fixed(whole("uint8", 3, 4)), fixed(whole("int8", 4, 5))]),
    Case("MatMulInteger", [fixed(whole("int8", 2, 3, 4)), fixed(whole("uint8", 4, 5)), const(5, "int8"),
                           fixed([0, 1, 2, 3, 255], "uint8")], name="columns"),
    Case("MatMulInteger", [fixed(whole("uint8", 3, 4)), fixed(whole("uint8", 4)), fixed([0, 7, 255], "uint8")], name="rows",
         reference=False, expected=lambda a, b, z: (a.astype(np.int32) - z[:, None].astype(np.int32)) @ b.astype(np.int32)),
    Case("MatMulInteger", [fixed(np.full((1, 40000), 255), "uint8"), fixed(np.full((40000, 1), 255), "uint8")], name="wraps"),
    Case("QLinearMatMul", [fixed(whole("uint8", 3, 4)), fixed(0.01, "float32"), fixed(100, "uint8"), fixed(whole("int8", 4, 5)),
                           fixed(0.02, "float32"), fixed(3, "int8"), fixed(0.4, "float32"), fixed(-7, "int8")],
         expected=product),
    Case("QLinearMatMul", [fixed(whole("uint8", 3, 4)), fixed([0.01, 0.02, 0.001], "float32"), fixed([100, 0, 7], "uint8"),
                           fixed(whole("int8", 2, 4, 5)), fixed([[[0.02, 0.1, 0.2, 0.3, 0.4]]] * 2, "float32"),
                           fixed([[[3, 0, 0, 0, 1]]] * 2, "int8"), fixed([0.4], "float32"), fixed([7], "uint8")],
         name="rows-columns", expected=product),
    Case("QLinearMatMul", [fixed(whole("uint8", 4)), fixed(0.01, "float16"), fixed(100, "uint8"), fixed(whole("int8", 4, 5)),
                           fixed(0.02, "float16"), fixed(3, "int8"), fixed(0.4, "float16"), fixed(-7, "int8")], name="vector"),
    Case("QLinearMatMul", [fixed(whole("uint8", 3, 4)), fixed(0.01), fixed(100, "uint8"), fixed(whole("int8", 4, 5)),
                           fixed(0.02), fixed(3, "int8"), fixed(0.4), fixed(-7, "int8")], name="float64"),
    Case("QLinearMatMul", [fixed(array([[1.0, -2, 0.5]], "float8_e4m3fn")), fixed(0.5, "float32"),
                           fixed(array(0, "float8_e4m3fn")), fixed(array([[3.0], [1], [448]], "float8_e4m3fn")),
                           fixed(2.0, "float32"), fixed(array(0, "float8_e4m3fn")), fixed(1.0, "float32"),
                           fixed(array(0, "float8_e4m3fn"))], name="float8", reference=False,
         expected=lambda *_: array([[224.0]], "float8_e4m3fn")),
    Case("ConvInteger", [fixed(whole("uint8", 2, 4, 5, 6)), fixed(whole("int8", 6, 2, 3, 2)), const(3, "uint8"),
                         fixed([0, 1, -1, 5, 3, 3], "int8")], {"group": 2, **GEOMETRY}, name="groups"),
    Case("ConvInteger", [fixed(whole("uint8", 1, 2, 7)), fixed(whole("uint8", 3, 2, 3))], {"auto_pad": "SAME_UPPER"}, name="line"),
    *(Case("QLinearConv", [fixed(whole("uint8", 2, 4, 5, 6)), fixed(0.01, "float32"), fixed(100, "uint8"),
                           fixed(whole("int8", 6, 2, 3, 2)), fixed(scale, "float32"), fixed(zero, "int8"), fixed(0.3, "float32"),
                           fixed(120, "uint8"), *bias], {"group": 2, **GEOMETRY}, name=name)
      for name, scale, zero, bias in (("one", 0.02, 3, ()), ("channels", [0.02, 0.1, 0.01, 0.03, 0.02, 0.02], [0, 1, 2, -3, 4, 5],
                                                             (fixed([0, 100, -5000, 7, 20000, 1], "int32"),)))),
]

CASES: list[Case] = [*ROUND, *QUANTIZE, *DEQUANTIZE, *CONSTANT, *PRODUCTS]
