"""Element types, and the containers of tensors that the standard knows: sequences and optional values.

A sequence or an optional value is held as an array without axes whose only element is a tuple of arrays, or None: for all
that does not look inside it is a scalar of its own kind.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from flowgrad.ir.errors import InputError
from flowgrad.ir.kept import kept


@dataclass(frozen=True, eq=False)
class DType:
    """An element type: its name (NumPy's), short name (the text form's), number (ONNX's) and NumPy dtype.

    There is one of each, so that comparing them costs nothing.
    """

    name: str
    short: str
    onnx: int
    numpy: np.dtype[Any]
    kind: str  # "float", "complex", "int", "uint", "bool", "string", "sequence" or "optional"
    element: DType | None = None  # of a sequence or an optional value: what it holds

    @property
    def is_float(self) -> bool:
        """True for the types that can carry a derivative."""
        return self.kind == "float"

    @kept
    def carries(self) -> bool:
        """True for floats and for what holds floats: cotangents pass such values."""
        return self.is_float if self.element is None else self.element.carries

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def itemsize(self) -> int:
        """Bytes an element takes in memory (packed 4-bit and 2-bit types take a whole byte in NumPy)."""
        return int(self.numpy.itemsize)

    @kept
    def is_narrow(self) -> bool:
        """True for floats of less than 32 bits, which nothing is computed in."""
        return self.is_float and self.itemsize < 4

    @property
    def wide(self) -> DType:
        """The type that is computed in: float32 for narrower floats."""
        return FLOAT32 if self.is_narrow else self

    @property
    def onnx_type(self) -> str:
        """The type as schemas and onnxruntime write it: tensor(float), seq(tensor(float)), optional(tensor(float))."""
        if self.element is not None:
            return f"{'seq' if self.kind == 'sequence' else 'optional'}({self.element.onnx_type})"
        return f"tensor({_ONNX_NAMES.get(self.name, self.name)})"

    def __repr__(self) -> str:
        return self.short

    def __reduce__(self) -> tuple[Any, ...]:
        return dtype_of, (self.name,)


_ONNX_NAMES = {"float32": "float", "float64": "double", "float8_e4m3fn": "float8e4m3fn",
               "float8_e4m3fnuz": "float8e4m3fnuz", "float8_e5m2": "float8e5m2", "float8_e5m2fnuz": "float8e5m2fnuz",
               "float8_e8m0fnu": "float8e8m0", "float4_e2m1fn": "float4e2m1", "float6_e2m3fn": "float6e2m3",
               "float6_e3m2fn": "float6e3m2"}

_DTYPES = tuple(
    DType(name, short, number, np.dtype(numpy), kind)
    for name, short, number, numpy, kind in (
        ("float32", "f32", 1, np.float32, "float"),
        ("uint8", "u8", 2, np.uint8, "uint"),
        ("int8", "i8", 3, np.int8, "int"),
        ("uint16", "u16", 4, np.uint16, "uint"),
        ("int16", "i16", 5, np.int16, "int"),
        ("int32", "i32", 6, np.int32, "int"),
        ("int64", "i64", 7, np.int64, "int"),
        ("string", "str", 8, np.object_, "string"),
        ("bool", "bool", 9, np.bool_, "bool"),
        ("float16", "f16", 10, np.float16, "float"),
        ("float64", "f64", 11, np.float64, "float"),
        ("uint32", "u32", 12, np.uint32, "uint"),
        ("uint64", "u64", 13, np.uint64, "uint"),
        ("complex64", "c64", 14, np.complex64, "complex"),
        ("complex128", "c128", 15, np.complex128, "complex"),
        ("bfloat16", "bf16", 16, ml_dtypes.bfloat16, "float"),
        ("float8_e4m3fn", "f8e4m3fn", 17, ml_dtypes.float8_e4m3fn, "float"),
        ("float8_e4m3fnuz", "f8e4m3fnuz", 18, ml_dtypes.float8_e4m3fnuz, "float"),
        ("float8_e5m2", "f8e5m2", 19, ml_dtypes.float8_e5m2, "float"),
        ("float8_e5m2fnuz", "f8e5m2fnuz", 20, ml_dtypes.float8_e5m2fnuz, "float"),
        ("uint4", "u4", 21, ml_dtypes.uint4, "uint"),
        ("int4", "i4", 22, ml_dtypes.int4, "int"),
        ("float4_e2m1fn", "f4e2m1", 23, ml_dtypes.float4_e2m1fn, "float"),
        ("float8_e8m0fnu", "f8e8m0", 24, ml_dtypes.float8_e8m0fnu, "float"),
        ("uint2", "u2", 25, ml_dtypes.uint2, "uint"),
        ("int2", "i2", 26, ml_dtypes.int2, "int"),
        ("float6_e2m3fn", "f6e2m3", 27, ml_dtypes.float6_e2m3fn, "float"),
        ("float6_e3m2fn", "f6e3m2", 28, ml_dtypes.float6_e3m2fn, "float"),
    )
)
_BY_NAME = {d.name: d for d in _DTYPES} | {d.short: d for d in _DTYPES}
_BY_ONNX = {d.onnx: d for d in _DTYPES}
_BY_NUMPY = {d.numpy: d for d in _DTYPES}

FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = (_BY_NAME[n] for n in ("float32", "float64", "float16", "bfloat16"))
INT64, INT32, UINT8, BOOL, STRING = (_BY_NAME[n] for n in ("int64", "int32", "uint8", "bool", "string"))


def dtype_of(what: object) -> DType:
    """Return the DType for a name ("float32", "f32", "sequence.f32"), ONNX number, NumPy dtype (of any byte order) or scalar type.

    Raises InputError for anything else.
    """
    if isinstance(what, DType):
        return what
    if isinstance(what, str) and what in _BY_NAME:
        return _BY_NAME[what]
    if isinstance(what, str) and (match := _CONTAINER.fullmatch(what)):
        element = dtype_of(match["element"])
        return sequence_of(element) if match["kind"] == "sequence" else optional_of(element)
    if isinstance(what, int) and not isinstance(what, bool) and what in _BY_ONNX:
        return _BY_ONNX[what]
    if isinstance(what, (np.dtype, type)):
        found = np.dtype(what).newbyteorder("=")
        if found in _BY_NUMPY:
            return _BY_NUMPY[found]
        if found.kind in "US":
            return STRING
    raise InputError(f"no element type {what!r}", code="dtype")


# ---- containers -----------------------------------------------------------------------------------------------------------

_CONTAINER = re.compile(r"(?P<kind>sequence|optional)\.(?P<element>(?:sequence\.)?[a-z0-9_]+)")


@functools.cache
def sequence_of(element: DType) -> DType:
    """Return the type of a sequence of tensors of one element type. Raises InputError for a sequence of anything else."""
    if element.element is not None:
        raise InputError(f"no sequence of {element.name}: sequences hold tensors", code="dtype")
    return DType(f"sequence.{element.name}", f"sequence.{element.short}", -1, np.dtype(object), "sequence", element)


@functools.cache
def optional_of(element: DType) -> DType:
    """Return the type of a tensor or sequence that may be absent. Raises InputError for an optional optional value."""
    if element.kind == "optional":
        raise InputError(f"no optional value of {element.name}", code="dtype")
    return DType(f"optional.{element.name}", f"optional.{element.short}", -1, np.dtype(object), "optional", element)


@dataclass(frozen=True, slots=True)
class Option:
    """The content of an optional value: an array (a sequence as it is held), or None."""

    value: np.ndarray[Any, Any] | None


def boxed(content: tuple[Any, ...] | Option) -> np.ndarray[Any, Any]:
    """Return the array without axes that holds a sequence of arrays, or an optional value."""
    box = np.empty(1, object)
    box[0] = content
    return box.reshape(())


def content_of(box: np.ndarray[Any, Any]) -> Any:
    """Return what ``boxed`` was given."""
    return box.item()


def fed_container(given: Any, dtype: DType) -> np.ndarray[Any, Any]:
    """Return what a user gives for a container (a list of arrays; an array or None) as it is held.

    Raises InputError where it is something else or holds other element types.
    """
    element = dtype.element
    assert element is not None
    if isinstance(given, np.ndarray) and given.dtype == object and not given.ndim:
        given = content_of(given)
    if dtype.kind == "optional":
        given = given.value if isinstance(given, Option) else given
        if given is None:
            return boxed(Option(None))
        return boxed(Option(_member(given, element) if element.element is None else fed_container(given, element)))
    if not isinstance(given, (list, tuple)):
        raise InputError(f"a list of {element.name} arrays is expected, got {type(given).__name__}", code="dtype")
    return boxed(tuple(_member(item, element) for item in given))


def _member(given: Any, dtype: DType) -> np.ndarray[Any, Any]:
    array = np.asarray(given, object if dtype.kind == "string" else None)
    if array.dtype != dtype.numpy:
        raise InputError(f"an element of a container is {array.dtype.name}, expected {dtype.name}", code="dtype")
    return array


def given_back(box: np.ndarray[Any, Any]) -> Any:
    """Return a container as users see it: a list of arrays, an array or None."""
    content = content_of(box)
    if not isinstance(content, Option):
        return [array.copy() for array in content]
    value = content.value
    if value is None:
        return None
    is_sequence = value.dtype == object and not value.ndim and isinstance(value.item(), tuple)
    return given_back(value) if is_sequence else value.copy()
