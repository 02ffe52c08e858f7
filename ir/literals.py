"""Arrays as text: exact to the bit, short for the common dtypes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array
from flowgrad.ir.names import quote, unquote
from flowgrad.ir.process_state import quiet
from flowgrad.ir.types import BOOL, FLOAT32, INT64, DType, dtype_of

BARE = (INT64, FLOAT32, BOOL)
"""The dtypes that a literal has when it does not say: integers, decimals, ``true`` and ``false``."""

_SPECIAL = ("inf", "-inf", "nan", "-nan")
_PART: dict[str, np.dtype[Any]] = {"complex64": np.dtype(np.float32), "complex128": np.dtype(np.float64)}


SUBBYTE = {"uint4": 15, "int4": 15, "float4_e2m1fn": 15, "uint2": 3, "int2": 3, "float6_e2m3fn": 63, "float6_e3m2fn": 63}
"""The bits that count, of the dtypes that take a byte in NumPy and less in the standard."""


def little_endian(array: Array) -> Array:
    """Return the array in C order and little-endian, with no stray bits."""
    whole = np.ascontiguousarray(array)
    mask = SUBBYTE.get(dtype_of(array.dtype).name)
    if mask is not None:
        return (whole.view(np.uint8) & mask).view(whole.dtype)
    return whole.byteswap() if sys.byteorder == "big" else whole


def digest_of(array: Array) -> str:
    """Return the digest of dtype, shape and elements that the text form prints for a large constant."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{dtype_of(array.dtype).name}{list(array.shape)}".encode())
    if array.dtype == object:
        digest.update(repr(array.ravel().tolist()).encode("utf-8", "surrogatepass"))
    else:
        digest.update(little_endian(array).tobytes())
    return digest.hexdigest()


# ---- writing ------------------------------------------------------------------------------------------------------------


def literal(array: Array, *, explicit: bool = False) -> str:
    """Return an array as a literal that says its dtype (always, if ``explicit``) and shape where they are not plain."""
    dtype = dtype_of(array.dtype)
    body = elements(array)
    if array.size == 0 and array.shape != (0,):
        return f"{dtype.short}[{','.join(map(str, array.shape))}]({body})"
    is_plain = dtype in BARE and "0x" not in body and (array.size > 0 or dtype == INT64)
    return body if is_plain and not explicit else f"{dtype.short}({body})"


def elements(array: Array) -> str:
    """Return the elements as nested lists; a reader must know dtype and shape."""
    if array.size == 0:
        return "[]"
    texts = [_writer(dtype_of(array.dtype))(item) for item in array.ravel()]
    for extent in reversed(array.shape):
        texts = ["[" + ",".join(texts[i : i + extent]) + "]" for i in range(0, len(texts), extent)]
    return texts[0]


def float_text(number: float) -> str:
    """Return a Python float as text that reads back to the same bits."""
    return _float_text(np.float64(number), np.dtype(np.float64))


def _writer(dtype: DType) -> Callable[[Any], str]:
    if dtype.kind == "string":
        return quote
    if dtype.kind == "bool":
        return lambda item: "true" if item else "false"
    if dtype.kind == "complex":
        part = _PART[dtype.name]
        return lambda item: f"({_float_text(item.real, part)},{_float_text(item.imag, part)})"
    if dtype.kind == "float":
        return lambda item: _float_text(item, dtype.numpy)
    return lambda item: str(int(item))


def _float_text(item: Any, dtype: np.dtype[Any]) -> str:
    bits = np.asarray(item, dtype).tobytes()
    for text in (str(item), repr(float(item))):
        shown = text if text in _SPECIAL or "." in text or "e" in text else text + ".0"
        if _float_array([shown], dtype).tobytes() == bits:
            return shown
    return "0x" + (bits if sys.byteorder == "big" else bits[::-1]).hex()


# ---- reading ------------------------------------------------------------------------------------------------------------


def array_of(texts: Sequence[str], shape: tuple[int, ...], dtype: DType) -> Array:
    """Return the array of the element texts; ValidationError for what is no element of ``dtype``."""
    try:
        return _array(texts, dtype).reshape(shape)
    except (KeyError, OverflowError, ValueError) as error:
        raise ValidationError(f"no {dtype.name} elements: {error}", code="literal") from error


def bare_dtype(texts: Sequence[str]) -> DType | None:
    """Return the dtype of a literal that does not say it, None if its elements differ in kind."""
    kinds = {_bare_kind(text) for text in texts}
    return kinds.pop() if len(kinds) == 1 else None if kinds else INT64


def _bare_kind(text: str) -> DType | None:
    if text in ("true", "false"):
        return BOOL
    if text in _SPECIAL:
        return FLOAT32
    if text[0] in '"(' or text.startswith("0x"):
        return None
    return FLOAT32 if "." in text or "e" in text or "E" in text else INT64


def _array(texts: Sequence[str], dtype: DType) -> Array:
    if dtype.kind == "string":
        return _strings(texts)
    if dtype.kind == "bool":
        return np.array([{"true": True, "false": False}[t] for t in texts], np.bool_)
    if dtype.kind == "complex":
        return _complex_array(texts, dtype)
    if dtype.kind == "float":
        return _float_array(texts, dtype.numpy)
    numbers = [int(t) for t in texts]
    bounds: Any = ml_dtypes.iinfo(dtype.numpy)  # type: ignore[no-untyped-call]
    if any(not int(bounds.min) <= n <= int(bounds.max) for n in numbers):
        raise ValueError(f"an integer is outside {bounds.min} to {bounds.max}")
    return np.array(numbers, np.uint64 if dtype.kind == "uint" else np.int64).astype(dtype.numpy)


def _strings(texts: Sequence[str]) -> Array:
    result = np.empty(len(texts), object)
    for index, text in enumerate(texts):
        if not text.startswith('"'):
            raise ValueError(f"{text} is no string")
        result[index] = unquote(text)
    return result


def _complex_array(texts: Sequence[str], dtype: DType) -> Array:
    if any(not text.startswith("(") for text in texts):
        raise ValueError("a complex number is written (real,imaginary)")
    parts = [part for text in texts for part in text[1:-1].split(",")]
    return _float_array(parts, _PART[dtype.name]).view(dtype.numpy)


@quiet
def _float_array(texts: Sequence[str], dtype: np.dtype[Any]) -> Array:
    result = np.array([0.0 if t.startswith("0x") else float(t) for t in texts], np.float64).astype(dtype)
    for index, text in enumerate(texts):
        if text.startswith("0x"):
            result[index : index + 1] = _from_bits(text, dtype)
    return result


def _from_bits(text: str, dtype: np.dtype[Any]) -> Array:
    data = bytes.fromhex(text[2:])
    if len(data) != dtype.itemsize:
        raise ValueError(f"{text} has not the {dtype.itemsize} bytes of an element")
    return np.frombuffer(data if sys.byteorder == "big" else data[::-1], dtype)
