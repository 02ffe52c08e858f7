"""A look through a msgpack message that builds nothing: is it whole, plain and within limits?"""

from __future__ import annotations

from typing import Any

from flowgrad.ir.errors import LoadError
from flowgrad.ir.limits import Limits

ITEM_DEPTH = 5
"""How deep the entries of a graph's tables lie: message, graphs, graph, table, entry."""

ITEM_SPARE = 16
"""How many containers an entry may hold beyond one per attribute."""

_NUMBERS = {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
_PLAIN = dict.fromkeys((*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3), 1)
_SIZES = [{**_PLAIN, **_NUMBERS}.get(byte, 0) for byte in range(0x100)]
"""How many bytes a number, a truth value or nil takes, by its first one; 0 for all else."""
_STRINGS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}


def precheck(data: Any, limits: Limits, *, filled: tuple[int, ...] = ()) -> None:
    """Check that ``data`` (bytes or a memoryview of bytes) is exactly one msgpack message within ``limits``.

    Containers at the depths ``filled`` must not be empty: so a file full of empty ones ends at the first.

    Refuses extension types, keys that are not strings or come twice, strings that are not UTF-8, lengths beyond the
    end, and bytes left over: LoadError. Raises LimitError for depth, string bytes, keys of a map, containers of one
    table entry.
    """
    data = bytes(data)
    end = len(data)
    deepest, most_containers = limits.depth, limits.attributes + ITEM_SPARE
    stack: list[tuple[int, set[bytes] | None]] = []
    left = 1
    keys: set[bytes] | None = None  # of the map being read
    at = strings = containers = 0
    while True:
        while not left:
            if not stack:
                if at > end:
                    raise _damaged("the message ends too early", end)
                if at != end:
                    raise _damaged(f"{end - at} bytes follow the message", at)
                return
            left, keys = stack.pop()
        if at >= end:  # also where a number reached beyond it
            raise _damaged("the message ends too early", at)
        left -= 1
        byte = data[at]
        is_key = keys is not None and left & 1
        if size := _SIZES[byte]:
            if is_key:
                raise _damaged("a key is no string", at)
            at += size
            continue
        if 0xA0 <= byte <= 0xBF or byte in _STRINGS:
            start, length = (at + 1, byte & 31) if byte < 0xC0 else _length(data, at, _STRINGS[byte])
            if length > end - start:
                raise _damaged(f"a string of {length} bytes goes beyond the end", at)
            strings += length
            if strings > limits.string_bytes:
                limits.check("string_bytes", strings, f"byte {at}")
            text = data[start : start + length]
            if not text.isascii():
                _check_utf8(text, at)
            if is_key and keys is not None:
                if text in keys:
                    raise _damaged("a key comes twice", at)
                keys.add(text)
            at = start + length
            continue
        if is_key:
            raise _damaged("a key is no string", at)
        if byte in _BYTES:
            start, length = _length(data, at, _BYTES[byte])
            if length > end - start:
                raise _damaged(f"a binary of {length} bytes goes beyond the end", at)
            at = start + length
            continue
        start, count, is_map = (at + 1, byte & 15, False) if 0x90 <= byte <= 0x9F else _container(data, at)
        entries = 2 * count if is_map else count
        if entries > end - start:
            raise _damaged(f"a container of {count} entries goes beyond the end", at)
        stack.append((left, keys))
        if not entries and len(stack) in filled:
            raise _damaged("a container is empty", at)
        if len(stack) >= ITEM_DEPTH:
            containers = 0 if len(stack) == ITEM_DEPTH else containers + 1
            if len(stack) > deepest or containers > most_containers:
                _check_nesting(len(stack), containers, at, limits)
        if is_map and count > limits.attributes:
            limits.check("attributes", count, f"byte {at}")
        left, keys = entries, set() if is_map and count else None
        at = start


def _check_nesting(depth: int, containers: int, at: int, limits: Limits) -> None:
    if depth > limits.depth:
        limits.check("depth", depth, f"byte {at}")
    if containers > limits.attributes + ITEM_SPARE:
        limits.check("attributes", containers, f"byte {at}")


def _container(data: Any, at: int) -> tuple[int, int, bool]:
    """Return where the entries of a container begin, how many there are, and whether it is a map."""
    byte = data[at]
    if 0x80 <= byte <= 0x8F:
        return at + 1, byte & 15, True
    if byte in _ARRAYS:
        return *_length(data, at, _ARRAYS[byte]), False
    if byte in _MAPS:
        return *_length(data, at, _MAPS[byte]), True
    raise _damaged(f"the type byte {byte:#04x} stands for nothing that is allowed here", at)


def _length(data: Any, at: int, size: int) -> tuple[int, int]:
    """Return where the contents begin, and their length as declared in the ``size`` bytes after the type byte."""
    start = at + 1 + size
    if start > len(data):
        raise _damaged("the message ends too early", at)
    return start, int.from_bytes(data[at + 1 : start], "big")


def _check_utf8(text: bytes, at: int) -> None:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(f"a string is not UTF-8 ({error.reason})", at) from error


def _damaged(message: str, at: int) -> LoadError:
    return LoadError(f"not a whole msgpack file: {message}", code="damaged", where=f"byte {at}")
