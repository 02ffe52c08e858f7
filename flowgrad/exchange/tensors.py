"""TensorProto to array and back, with every extent checked against the payload before anything is built."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, TypeProto

from flowgrad.exchange.external import ExternalFolder
from flowgrad.ir.dtypes import optional_of, sequence_of
from flowgrad.ir.errors import ExternalDataError, InputError, LimitError, UnsupportedError, ValidationError
from flowgrad.ir.graph import Array
from flowgrad.ir.limits import Limits, check_empty
from flowgrad.ir.literals import SUBBYTE
from flowgrad.ir.types import DType, Type, dtype_of

_INT32_FIELD = {"int32", "int16", "int8", "uint16", "uint8", "bool", "float16", "bfloat16", "float8_e4m3fn",
                "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "uint4", "int4",
                "float4_e2m1fn", "uint2", "int2", "float6_e2m3fn", "float6_e3m2fn"}
_FIELDS = {"float32": "float_data", "complex64": "float_data", "int64": "int64_data", "float64": "double_data",
           "complex128": "double_data", "uint32": "uint64_data", "uint64": "uint64_data", "string": "string_data"}
_FIELDS |= dict.fromkeys(_INT32_FIELD, "int32_data")
_PAYLOADS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_BITS = {name: mask.bit_length() for name, mask in SUBBYTE.items()}
_GROUPS = {2: (4, 1), 4: (2, 1), 6: (4, 3)}
"""How many numbers of few bits share how many bytes, the lowest bits of the first byte first."""


def element_type(number: int, where: str = "") -> DType:
    """Return the DType for an ONNX element type; ValidationError for an unknown one."""
    try:
        return dtype_of(int(number))
    except InputError as error:
        raise ValidationError(f"unknown element type {number}", code="dtype", where=where) from error


def container_type(proto: TypeProto, where: str = "") -> DType:
    """Return the DType of a sequence or an optional value, or of the tensor that one holds.

    Raises ValidationError for an unknown element type or nesting that the standard does not have, UnsupportedError for
    anything else.
    """
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        return element_type(proto.tensor_type.elem_type, where)
    if kind not in ("sequence_type", "optional_type"):
        raise UnsupportedError(f"{where!r} is of {(kind or 'no type').removesuffix('_type')}: values are tensors, sequences of "
                               "tensors, or optional ones of these", code="type", where=where)
    held = container_type(getattr(proto, kind).elem_type, where)
    try:
        return sequence_of(held) if kind == "sequence_type" else optional_of(held)
    except InputError as error:
        raise ValidationError(str(error), code="dtype", where=where) from error


def type_proto(type_: Type, keep_names: bool = False) -> TypeProto:
    """Return a type as a TypeProto; names of extents are kept on demand, except those of our own making."""
    proto = TypeProto()
    if type_.dtype.element is not None:
        held = proto.sequence_type if type_.dtype.kind == "sequence" else proto.optional_type
        element = type_.dtype.element
        held.elem_type.CopyFrom(type_proto(Type(element, () if element.element is not None else None)))
        return proto
    tensor = proto.tensor_type
    tensor.elem_type = type_.dtype.onnx
    if type_.shape is None:
        return proto
    tensor.shape.SetInParent()
    for dim in type_.shape:
        entry = tensor.shape.dim.add()
        if isinstance(dim, int):
            entry.dim_value = dim
        elif keep_names and not any(n.startswith("_d") for n in dim.names()):
            entry.dim_param = repr(dim)
    return proto


def array_of(proto: TensorProto, folder: ExternalFolder, limits: Limits) -> Array:
    """Return the data of a tensor. Raises ValidationError, LimitError or ExternalDataError before it allocates."""
    name = proto.name
    dtype = element_type(proto.data_type, name)
    shape = _shape(proto, limits)
    count = math.prod(shape)
    bits = _BITS.get(dtype.name, 8 * dtype.itemsize)
    size = (count * bits + 7) // 8
    limits.check("tensor_bytes", size, name)
    check_empty(shape, dtype.itemsize, name)
    if proto.HasField("segment"):
        raise UnsupportedError("tensors in segments are not supported", code="segment", where=name)
    filled = [f for f in _PAYLOADS if len(getattr(proto, f))]
    if proto.data_location == TensorProto.EXTERNAL:
        return _from_external(proto, folder, dtype, shape, size, filled)
    if proto.data_location != TensorProto.DEFAULT or proto.external_data:
        raise ExternalDataError("external data without its mark, or a mark that is unknown", code="keys", where=name)
    if proto.HasField("raw_data"):
        if filled or dtype.kind == "string":
            raise ValidationError("a tensor with raw data and other data", code="tensor", where=name)
        return _from_bytes(proto.raw_data, dtype, shape, size, name)
    return _from_fields(proto, filled, dtype, shape, count)


def _shape(proto: TensorProto, limits: Limits) -> tuple[int, ...]:
    shape = tuple(int(d) for d in proto.dims)
    limits.check("rank", len(shape), proto.name)
    if any(d < 0 for d in shape):
        raise ValidationError(f"negative extent in {list(shape)}", code="tensor", where=proto.name)
    limits.check("dim", max(shape, default=0), proto.name)
    return shape


def _from_external(
    proto: TensorProto, folder: ExternalFolder, dtype: DType, shape: tuple[int, ...], size: int, filled: list[str]
) -> Array:
    if filled or proto.HasField("raw_data") or dtype.kind == "string":
        raise ExternalDataError("an external tensor with data of its own, or of strings", code="keys", where=proto.name)
    entries = {e.key: e.value for e in proto.external_data}
    if len(entries) != len(proto.external_data):
        raise ExternalDataError("an entry of external data is given twice", code="keys", where=proto.name)
    return _from_bytes(folder.read(entries, size, proto.name), dtype, shape, size, proto.name)


def _from_bytes(data: bytes | bytearray, dtype: DType, shape: tuple[int, ...], size: int, name: str) -> Array:
    if len(data) != size:
        raise ValidationError(f"tensor {name!r} of {dtype.name}{list(shape)} needs {size} bytes, it has {len(data)}",
                              code="tensor", where=name)
    if dtype.name in _BITS:
        return unpacked(np.frombuffer(data, np.uint8), dtype, shape)
    if dtype.kind == "bool":
        flags: Array = np.frombuffer(data, np.uint8) != 0
        return flags.reshape(shape)
    array = np.frombuffer(data, dtype.numpy)
    if sys.byteorder == "little" or dtype.itemsize == 1:
        return array.reshape(shape)
    unit = dtype.itemsize // (2 if dtype.kind == "complex" else 1)
    return array.view(f"u{unit}").byteswap().view(dtype.numpy).reshape(shape)


def unpacked(packed: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Return numbers of 2, 4 or 6 bits, the lowest bits first; what stands after the last of ``shape`` is left out."""
    bits = _BITS[dtype.name]
    count, (per, size) = math.prod(shape), _GROUPS[bits]
    words: Array = packed if size == 1 else _words(packed, size)
    shifts = np.arange(per, dtype=words.dtype) * bits
    codes: Array = ((words[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count].astype(np.uint8)
    if dtype.kind == "int":
        signed = codes.astype(np.int8)
        signed[codes >= 1 << (bits - 1)] -= 1 << bits
        return signed.astype(dtype.numpy).reshape(shape)
    return (codes.view(dtype.numpy) if dtype.kind == "float" else codes.astype(dtype.numpy)).reshape(shape)


def _words(packed: Array, size: int) -> Array:
    """Return every ``size`` bytes as one number, the first byte its lowest; bytes that are missing are 0."""
    padded = np.zeros(-(-packed.size // size) * size, np.uint32)
    padded[: packed.size] = packed
    words: Array = (padded.reshape(-1, size) << np.arange(0, 8 * size, 8, dtype=np.uint32)).sum(1, dtype=np.uint32)
    return words


def _from_fields(
    proto: TensorProto, filled: list[str], dtype: DType, shape: tuple[int, ...], count: int
) -> Array:
    field = _FIELDS[dtype.name]
    if any(f != field for f in filled):
        raise ValidationError(f"a tensor of {dtype.name} with {filled[0]}", code="tensor", where=proto.name)
    payload = getattr(proto, field)
    bits = _BITS.get(dtype.name)
    packs = bits is not None and _GROUPS[bits][1] == 1  # else an entry for each number
    needed = -(-count // _GROUPS[bits][0]) if bits and packs else count * (2 if dtype.kind == "complex" else 1)
    if len(payload) != needed:
        raise ValidationError(f"tensor {proto.name!r} of {dtype.name}{list(shape)} needs {needed} entries, it has "
                              f"{len(payload)}", code="tensor", where=proto.name)
    if dtype.kind == "string":
        return _strings(payload, shape, proto.name)
    if dtype.kind == "complex":
        return np.asarray(payload, np.float32 if dtype.name == "complex64" else np.float64).view(dtype.numpy).reshape(shape)
    if dtype.kind == "float" and dtype.itemsize <= 2:
        codes = _narrowed(payload, np.uint8 if dtype.itemsize == 1 else np.uint16, proto.name)
        if bits and not packs and codes.max(initial=0) >= 1 << bits:
            raise ValidationError(f"an entry of tensor {proto.name!r} has more than {bits} bits", code="tensor", where=proto.name)
        return unpacked(codes, dtype, shape) if packs else codes.view(dtype.numpy).reshape(shape)
    if bits:
        return unpacked(_narrowed(payload, np.uint8, proto.name), dtype, shape)
    if dtype.kind == "float":
        return np.asarray(payload, dtype.numpy).reshape(shape)
    if dtype.kind == "bool":
        flags: Array = np.asarray(payload, np.int32) != 0
        return flags.reshape(shape)
    return _narrowed(payload, dtype.numpy, proto.name).reshape(shape)


def _narrowed(payload: Any, dtype: Any, name: str) -> Array:
    wide = np.asarray(payload, np.uint64 if np.dtype(dtype) == np.uint64 else np.int64)
    narrow: Array = wide.astype(dtype)
    if not np.array_equal(wide, narrow):
        raise ValidationError(f"an entry of tensor {name!r} does not fit {np.dtype(dtype)}", code="tensor", where=name)
    return narrow


def _strings(payload: Any, shape: tuple[int, ...], name: str) -> Array:
    array = np.empty(len(payload), object)
    for index, raw in enumerate(payload):
        array[index] = text_of(raw, name)
    return array.reshape(shape)


def text_of(raw: bytes, where: str = "") -> str:
    """Return UTF-8 bytes as text; ValidationError if they are none."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValidationError(f"text that is not UTF-8: {raw[:40]!r}", code="utf8", where=where) from error


def dense_of(proto: onnx.SparseTensorProto, folder: ExternalFolder, limits: Limits) -> Array:
    """Return a sparse tensor in dense form. Raises LimitError if that is more than 64 Ki times what is stored."""
    values, indices = array_of(proto.values, folder, limits), array_of(proto.indices, folder, limits)
    shape = tuple(int(d) for d in proto.dims)
    count = math.prod(shape)
    if values.ndim != 1 or any(d < 0 for d in shape) or indices.dtype != np.int64:
        raise ValidationError("a sparse tensor whose parts do not fit", code="sparse", where=proto.values.name)
    if len(shape) > limits.rank or count > 65536 * (values.size + 1):
        raise LimitError(f"a sparse tensor of shape {list(shape)} with {values.size} entries", code="sparse",
                         where=proto.values.name)
    check_empty(shape, values.dtype.itemsize, proto.values.name)
    inside: Any = len(shape) == indices.shape[-1] if indices.ndim == 2 else indices.ndim == 1
    if not inside or len(indices) != values.size:
        raise ValidationError("a sparse tensor whose indices do not fit", code="sparse", where=proto.values.name)
    bounds = np.asarray(shape, np.int64) if indices.ndim == 2 else np.int64(count)
    if np.any(indices < 0) or np.any(indices >= bounds):
        raise ValidationError("a sparse tensor with an index out of range", code="sparse", where=proto.values.name)
    dense = np.zeros(shape, values.dtype)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    return dense


def tensor_of(array: Array, name: str = "") -> TensorProto:
    """Return an array as a TensorProto with raw data (strings apart)."""
    dtype = dtype_of(array.dtype)
    proto = TensorProto(name=name, data_type=dtype.onnx, dims=array.shape)
    if dtype.kind == "string":
        proto.string_data.extend(str(s).encode("utf-8") for s in array.reshape(-1))
        return proto
    proto.raw_data = raw_bytes(array)
    return proto


def raw_bytes(array: Array) -> bytes:
    """Return the elements as ONNX stores them: little-endian, types under a byte packed, low bits first."""
    dtype = dtype_of(array.dtype)
    if bits := _BITS.get(dtype.name):
        return _packed(array, dtype, bits).tobytes()
    if sys.byteorder == "little" or dtype.itemsize == 1:
        return array.tobytes()
    unit = dtype.itemsize // (2 if dtype.kind == "complex" else 1)
    return np.ascontiguousarray(array).view(f"u{unit}").byteswap().tobytes()


def _packed(array: Array, dtype: DType, bits: int) -> Array:
    flat = np.ascontiguousarray(array).reshape(-1)
    codes = flat.view(np.uint8) if dtype.kind == "float" else flat.astype(np.int8).view(np.uint8)
    codes = codes & np.uint8((1 << bits) - 1)
    per, size = _GROUPS[bits]
    word = np.uint8 if size == 1 else np.uint32
    padded: Array = np.zeros(-(-codes.size // per) * per, word)
    padded[: codes.size] = codes
    words: Array = np.zeros(padded.size // per, word)
    for place in range(per):
        words |= padded[place::per] << word(place * bits)
    if size == 1:
        return words
    spread: Array = (words[:, None] >> np.arange(0, 8 * size, 8, dtype=np.uint32)).astype(np.uint8)
    return spread.reshape(-1)[: (codes.size * bits + 7) // 8]
