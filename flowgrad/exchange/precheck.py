"""A look through the bytes of an ONNX file that counts before protobuf builds anything."""

from __future__ import annotations

import functools
from typing import NamedTuple

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor  # type: ignore[import-untyped]

from flowgrad.ir.errors import LimitError, LoadError
from flowgrad.ir.limits import Limits

WIRE_DEPTH = 100
"""Levels of messages that protobuf itself reads; a subgraph takes three of them."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MESSAGES_PER_NODE = 16
_LONG_TEXT = {"doc_string", "value"}


class _Field(NamedTuple):
    message: Descriptor | None
    is_text: bool
    is_long: bool
    is_packable: bool


@functools.cache
def _fields(descriptor: Descriptor) -> dict[int, _Field]:
    return {f.number: _Field(f.message_type, f.type == FieldDescriptor.TYPE_STRING, f.name in _LONG_TEXT,
                             f.cpp_type not in (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_MESSAGE))
            for f in descriptor.fields}


def precheck(data: bytes, limits: Limits) -> None:
    """Walk the wire form of a ModelProto once, without recursion.

    Raises LoadError where it is damaged or text is not UTF-8, LimitError where messages, nodes, names, text or
    nesting pass ``limits``.
    """
    budget = _Budget(limits)
    stack: list[tuple[int, Descriptor]] = [(len(data), onnx.ModelProto.DESCRIPTOR)]
    fields = _fields(onnx.ModelProto.DESCRIPTOR)
    at, end = 0, len(data)
    is_ascii = data.isascii()
    while True:
        if at == end:
            stack.pop()
            if not stack:
                return
            end, descriptor = stack[-1]
            fields = _fields(descriptor)
            continue
        tag, at = (data[at], at + 1) if data[at] < 128 else _varint(data, at, end)  # at < end
        wire = tag & 7
        if tag >> 3 == 0 or tag >> 3 > 2**29 - 1:
            raise LoadError(f"not an ONNX file: field number {tag >> 3} at byte {at}", code="wire")
        if wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire == _BYTES:
            length, at = (data[at], at + 1) if at < end and data[at] < 128 else _varint(data, at, end)
            if length > end - at:
                raise LoadError(f"the file is cut short or damaged: a field at byte {at} claims {length} bytes, "
                                f"{end - at} are left", code="truncated")
            field = fields.get(tag >> 3)
            if field is not None and field.message is not None:
                budget.enter(field.message, len(stack))
                stack.append((at + length, field.message))
                fields, end = _fields(field.message), at + length
                continue
            if field is not None and field.is_text:
                budget.text(length, field.is_long)
                if not is_ascii:
                    _check_text(data[at : at + length])
            at += length
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
            if at > end:
                raise LoadError("the file is cut short", code="truncated")
        else:
            raise LoadError(f"not an ONNX file: wire type {wire} at byte {at}", code="wire")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    if at < end and (byte := data[at]) < 128:
        return byte, at + 1
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise LoadError(f"the file is cut short or damaged: no number ends at byte {at}", code="truncated")


def _check_text(raw: bytes) -> None:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LoadError(f"a name or text in the file is not UTF-8: {raw[:40]!r}", code="utf8") from error


class _Budget:
    """What a file may hold, counted down."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.nodes = self.messages = self.characters = 0

    def enter(self, descriptor: Descriptor, depth: int) -> None:
        if depth > WIRE_DEPTH:
            raise LimitError(f"messages are nested more than {WIRE_DEPTH} deep", code="depth")
        self.messages += 1
        if self.messages > _MESSAGES_PER_NODE * self.limits.nodes:
            raise LimitError(f"the file holds more than {_MESSAGES_PER_NODE} messages for each of the "
                             f"{self.limits.nodes:,} nodes it may have; raise it with Limits(nodes=...)", code="nodes")
        if descriptor.name == "NodeProto":
            self.nodes += 1
            self.limits.check("nodes", self.nodes)

    def text(self, length: int, is_long: bool) -> None:
        self.characters += length
        if self.characters > self.limits.string_bytes:
            self.limits.check("string_bytes", self.characters)
        if length > self.limits.name_bytes and not is_long:
            self.limits.check("name_bytes", length)
