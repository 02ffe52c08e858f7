"""The reader of the msgpack form: scanned in full before anything is built, then entry by entry into a graph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from flowgrad.ir.errors import EngineError, FlowgradError, InputError, LoadError
from flowgrad.ir.files import ALIGNMENT
from flowgrad.ir.graph import (
    BUFFER,
    DEFAULT,
    INITIALIZER,
    INLINE_ELEMENTS,
    LITERAL,
    PARAMETER,
    Array,
    Graph,
    Origin,
    Value,
)
from flowgrad.ir.infer import stored_symbolic_value
from flowgrad.ir.limits import Limits, check_empty, limits_or_default
from flowgrad.ir.literals import SUBBYTE, little_endian
from flowgrad.ir.ops.registry import opdef
from flowgrad.ir.precheck import ITEM_DEPTH, precheck
from flowgrad.ir.types import Dim, DimLike, DType, Type, dtype_of, parse_dim
from flowgrad.ir.verify import verify
from flowgrad.ir.weights import read_weights

MAGIC = "flowgrad"
VERSION = 1
INLINE_BYTES = 64
"""Constants of at most this many bytes lie in the graph, not among the tensors."""

GRAPH_KEYS = ("name", "metadata", "types", "origins", "inputs", "constants", "nodes", "outputs")
ROLES = (LITERAL, INITIALIZER, PARAMETER, DEFAULT, BUFFER)

_OPENING = b"\xa5magic\xa8flowgrad\xa7version"
_CLOSING = b"\xa6digest\xc4\x20"
_DIGEST = 32


@dataclass(frozen=True)
class Frame:
    """A file whose outline holds: all of it, where the graphs end, and whether weights lie in another file."""

    data: memoryview
    head: int
    has_weights: bool


def is_packed(head: bytes) -> bool:
    """Return whether a file that begins with ``head`` (20 bytes at least) claims to be the msgpack form."""
    return len(head) > 1 and head[0] & 0xF0 == 0x80 and bytes(head[1 : 1 + len(_OPENING)]) == _OPENING


def unpack(data: bytes | bytearray | memoryview, limits: Limits | None = None) -> Graph:
    """Return the graph in ``data``, checked in full: digest, limits, form, and the graph itself.

    Constants share memory with ``data`` if it is bytes. Raises LoadError, LimitError, ValidationError.
    """
    limits = limits_or_default(limits)
    whole = memoryview(data if isinstance(data, bytes) else bytes(data))
    limits.check("file_bytes", len(whole))
    return unpack_frame(read_frame(whole, limits, check_digest=True), limits, None)


def read_frame(data: memoryview, limits: Limits, *, check_digest: bool) -> Frame:
    """Check opening, version, digest and the msgpack form of a whole file."""
    start = 1 + len(_OPENING)
    if not is_packed(bytes(data[:start])):
        raise LoadError("not a flowgrad msgpack file", code="magic")
    if len(data) < start + 15 + len(_CLOSING) + _DIGEST:
        raise LoadError("the file is cut off", code="damaged")
    if check_digest and hashlib.blake2b(data[:-_DIGEST], digest_size=_DIGEST).digest() != data[-_DIGEST:]:
        raise LoadError("the file is damaged: its digest is not that of its contents", code="digest")
    if data[start] != VERSION:
        raise LoadError(f"the file has version {data[start]}, this program reads version {VERSION}", code="version")
    if bytes(data[start + 1 : start + 7]) != b"\xa4head\xcf":
        raise _wrong("the length of the head is not where it should be")
    head = int.from_bytes(data[start + 7 : start + 15], "big")
    if not start + 15 <= head < len(data):
        raise _wrong("the head goes beyond the file")
    limits.check("header_bytes", head)
    precheck(data, limits, filled=(3, ITEM_DEPTH))
    if data[0] not in (0x86, 0x87) or bytes(data[-_DIGEST - len(_CLOSING) : -_DIGEST]) != _CLOSING:
        raise _wrong("there are other keys than there should be")
    if bytes(data[head : head + 8]) != b"\xa7tensors" or data[head + 8] != 0xDD:
        raise _wrong("the tensors do not follow the head")
    return Frame(data, head, data[0] == 0x87)


def unpack_frame(frame: Frame, limits: Limits, directory: Path | None) -> Graph:
    """Return the verified graph of a frame; a weights file is looked for in ``directory``."""
    try:
        graph = _Reader(frame, limits, directory).read()
    except (msgpack.UnpackException, ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, FlowgradError):
            raise
        raise _wrong(f"{type(error).__name__}: {error}") from error
    verify(graph)
    return graph


def _wrong(message: str) -> LoadError:
    return LoadError(f"the file does not have the form of a graph: {message}", code="form")


def _need(condition: object, message: str) -> None:
    if not condition:
        raise _wrong(message)


class _Tensors:
    """The tensors of a frame, to be taken in order."""

    def __init__(self, frame: Frame) -> None:
        self.data = frame.data
        self.at = frame.head + 13
        count = int.from_bytes(frame.data[frame.head + 9 : self.at], "big")
        _need(count % 2 == 0, "padding and data do not come in pairs")
        self.left = count // 2
        self.taken = 0

    def take(self, number: int) -> memoryview:
        """Return the bytes of the next tensor, which must be called ``number``."""
        _need(number == self.taken and self.left, "the tensors are not used in order, each once")
        _need(self.data[self.at] == 0xC4, "a tensor has no padding before it")
        padding = self.data[self.at + 1]
        start = self.at + 2 + padding
        _need(self.data[start] == 0xC6, "a tensor is no binary with a length of four bytes")
        _need((start + 5) % ALIGNMENT == 0 and padding < ALIGNMENT, f"a tensor does not begin at a multiple of {ALIGNMENT}")
        _need(not any(self.data[self.at + 2 : start]), "the padding is not empty")
        size = int.from_bytes(self.data[start + 1 : start + 5], "big")
        self.at = start + 5 + size
        self.taken += 1
        self.left -= 1
        return self.data[start + 5 : self.at]


class _Reader:
    """Builds the graphs of a frame that ``precheck`` has accepted."""

    def __init__(self, frame: Frame, limits: Limits, directory: Path | None) -> None:
        if "fallback" in msgpack.Unpacker.__module__:
            raise EngineError("msgpack runs without its C extension, which is not safe for files: reinstall it",
                              code="msgpack")
        self.frame = frame
        self.limits = limits
        self.directory = directory
        self.stream: Any = msgpack.Unpacker(None, raw=False, max_buffer_size=max(frame.head, 16))
        self.stream.feed(frame.data[: frame.head])
        self.tensors = _Tensors(frame)
        self.weights: dict[str, Array] = {}
        self.wanted: list[tuple[str, Type, Callable[[Array], None]]] = []
        self.graphs: list[Graph | None] = []
        self.nodes = 0
        self.values = 0
        self.dims: dict[str, DimLike] = {}

    def read(self) -> Graph:
        """Return the last graph, with all others in their places."""
        keys = self.stream.read_map_header()
        for name in ("magic", "version", "head"):
            _need(self.stream.unpack() == name and self.stream.unpack() is not None, f"no {name}")
        self.weights = self.weights_ahead() if self.frame.has_weights else {}
        _need(keys == 6 + self.frame.has_weights and self.stream.unpack() == "graphs", "no graphs")
        for _ in range(self.stream.read_array_header()):
            self.graphs.append(self.graph())
        if self.frame.has_weights:
            _need(self.stream.unpack() == "weights" and self.stream.unpack(), "no weights")
        _need(self.stream.tell() == self.frame.head, "unknown keys after the graphs")
        _need(not self.tensors.left and self.tensors.at == len(self.frame.data) - len(_CLOSING) - _DIGEST,
              "there are tensors that nothing uses")
        _need(self.graphs, "no graph")
        *others, graph = self.graphs
        _need(graph is not None and all(g is None for g in others), "a subgraph belongs to no node")
        assert graph is not None
        return graph

    def weights_ahead(self) -> dict[str, Array]:
        """Read the weights file, whose name comes after the graphs."""
        ahead: Any = msgpack.Unpacker(None, raw=False, max_buffer_size=max(self.frame.head, 16))
        ahead.feed(self.frame.data[: self.frame.head])
        ahead.read_map_header()
        for _ in range(8):
            ahead.skip()
        _need(ahead.unpack() == "weights", "no weights")
        entry = ahead.unpack()
        _need(isinstance(entry, dict) and entry.keys() == {"file", "digest"}, "the weights have other keys")
        name, digest = entry["file"], entry["digest"]
        _need(isinstance(name, str) and isinstance(digest, bytes), "the weights are not a name and a digest")
        if self.directory is None:
            raise LoadError("the tensors lie in another file: use load with the path", code="weights")
        return read_weights(self.directory, name, digest, self.limits)

    # ---- graphs ---------------------------------------------------------------------------------------------------------

    def key(self, name: str) -> None:
        """Step over a key of a graph."""
        _need(self.stream.unpack() == name, f"no {name} where they should be")

    def table(self, name: str) -> range:
        """Step into a list."""
        self.key(name)
        return range(self.stream.read_array_header())

    def graph(self) -> Graph:
        """Read one graph."""
        _need(self.stream.read_map_header() == len(GRAPH_KEYS), "a graph has other keys")
        self.key("name")
        graph = Graph(self.text(self.stream.unpack()), self.limits)
        self.key("metadata")
        graph.metadata = self.metadata(self.stream.unpack())
        types = [self.type(self.stream.unpack()) for _ in self.table("types")]
        graph.origins += [self.origin(self.stream.unpack(), number + 1) for number in self.table("origins")]
        values: list[Value] = []
        for _ in self.table("inputs"):
            name, type_ = self.stream.unpack()
            values.append(graph.add_input(self.text(name), types[_place(type_, types)]))
        for _ in self.table("constants"):
            values.append(self.constant(graph, types, self.stream.unpack()))
        for _ in self.table("nodes"):
            self.node(graph, types, values, self.stream.unpack())
        for _ in self.table("outputs"):
            name, number = self.stream.unpack()
            graph.add_output(values[_place(number, values)], self.text(name))
        self.values += len(values)
        self.limits.check("values", self.values)
        graph.reserve_dims()
        return graph

    def text(self, given: Any) -> str:
        """Return a name."""
        _need(isinstance(given, str), "a name is no string")
        if len(given) * 4 > self.limits.name_bytes:
            self.limits.check("name_bytes", len(given.encode()), given[:40])
        return given  # type: ignore[no-any-return]

    def metadata(self, given: Any) -> dict[str, str]:
        """Return a map of strings."""
        _need(isinstance(given, dict) and all(isinstance(v, str) for v in given.values()), "metadata are not strings")
        return given  # type: ignore[no-any-return]

    def type(self, row: Any) -> Type:
        """Return a type."""
        name, dims = row
        _need(isinstance(name, str) and (dims is None or isinstance(dims, list)), "a type is not a dtype and extents")
        self.limits.check("rank", 0 if dims is None else len(dims))
        try:
            dtype = dtype_of(name)
        except InputError as error:
            raise _wrong(str(error)) from error
        return Type.read(dtype, None if dims is None else tuple(self.dim(d) for d in dims))

    def dim(self, given: Any) -> DimLike:
        """Return an extent."""
        if isinstance(given, str):
            if given not in self.dims:
                dim = parse_dim(given)
                _need(isinstance(dim, Dim) and repr(dim) == given, "an extent is not canonical")
                self.limits.check("dim_terms", dim.size)  # type: ignore[union-attr]  # an integer was refused
                self.dims[given] = dim
            return self.dims[given]
        _need(type(given) is int and given >= 0, "an extent is no integer")
        self.limits.check("dim", given)
        return int(given)

    def origin(self, row: Any, number: int) -> Origin:
        """Return an origin; its parents come before it."""
        name, names, parents = row
        _need(isinstance(names, list) and isinstance(parents, list), "an origin is not names and parents")
        _need(all(type(p) is int and 0 <= p < number for p in parents), "an origin comes from a later one")
        return Origin(self.text(name), tuple(self.text(n) for n in names), tuple(parents))

    # ---- constants --------------------------------------------------------------------------------------------------------

    def constant(self, graph: Graph, types: list[Type], row: Any) -> Value:
        """Add a constant."""
        name, role, number, stored = row
        type_ = types[_place(number, types)]
        _need(role in ROLES, f"no role {role!r}")
        array = self.array(type_, stored)
        if not self.text(name):
            before = graph.version
            _need(role == LITERAL and array.size <= INLINE_ELEMENTS and array.dtype != object, "a constant has no name")
            value = graph.add_constant(array)
            _need(graph.version != before, "two nameless literals are equal")
            return value
        return graph.add_constant(array, name, role)

    def array(self, type_: Type, stored: Any) -> Array:
        """Return the data of a constant of a given type."""
        shape, count = type_.static_shape, 1
        for extent in shape:
            count *= extent
        if not count:
            check_empty(shape, type_.dtype.itemsize, "a constant")
        if isinstance(stored, list):
            return _strings(stored, shape, count, type_.dtype)
        self.limits.check("tensor_bytes", count * type_.dtype.itemsize)
        if isinstance(stored, dict):
            _need(stored.keys() == {"weights"} and stored["weights"] in self.weights, "a tensor is not in the weights file")
            data: Any = little_endian(self.weights[stored["weights"]]).reshape(-1).view(np.uint8)
        else:
            data = stored if isinstance(stored, bytes) else self.tensors.take(_integer(stored))
            _need(isinstance(stored, bytes) == (len(data) <= INLINE_BYTES), "a constant does not lie where its size says")
        return _from_bytes(data, shape, count, type_.dtype)

    # ---- nodes ------------------------------------------------------------------------------------------------------------

    def node(self, graph: Graph, types: list[Type], values: list[Value], row: Any) -> None:
        """Add a node."""
        self.nodes += 1
        if self.nodes > self.limits.nodes:
            self.limits.check("nodes", self.nodes)
        _need(isinstance(row, list) and 3 <= len(row) <= 9, "a node has other fields")
        op, inputs, outputs, attributes, origin, name, metadata, captures, subgraphs = row + _EMPTY[len(row) - 3 :]
        _need(isinstance(attributes, dict) and isinstance(subgraphs, dict), "attributes or subgraphs are no map")
        opdef(self.text(op))
        node = graph.add_node(
            op,
            [None if i is None else values[_place(i, values)] for i in inputs],
            [self.output(types, outputs[i], outputs[i + 1]) for i in range(0, len(outputs), 2)],
            {k: self.attribute(v) for k, v in attributes.items()} if attributes else None,
            captures=[values[_place(i, values)] for i in captures] if captures else (),
            subgraphs={k: self.subgraph(v) for k, v in subgraphs.items()} if subgraphs else None,
            origin=_place(origin, graph.origins),
            name=self.text(name),
        )
        if metadata:
            node.metadata = self.metadata(metadata)
        values.extend(node.results)
        first = node.outputs[0] if node.outputs else None
        if first is not None and first.type.dtype.is_integer:
            first.symbolic = stored_symbolic_value(node)

    def output(self, types: list[Type], name: Any, type_: Any) -> tuple[str, Type] | None:
        """Return name and type of an output."""
        if name is None and type_ is None:
            return None
        _need(name, "an output has no name")
        return self.text(name), types[_place(type_, types)]

    def subgraph(self, number: Any) -> Graph:
        """Return a subgraph, which must not be used twice."""
        place = _place(number, self.graphs)
        graph, self.graphs[place] = self.graphs[place], None
        if graph is None:
            raise _wrong("a subgraph belongs to two nodes")
        return graph

    def attribute(self, given: Any) -> Any:
        """Return the value of an attribute."""
        if isinstance(given, list):
            return tuple(given)
        if not isinstance(given, dict):
            return given
        _need(given.keys() == {"dtype", "shape", "data"} and isinstance(given["data"], (bytes, list)), "no attribute")
        type_ = self.type((given["dtype"], given["shape"]))
        if isinstance(given["data"], list):
            return self.array(type_, given["data"])
        shape, count = type_.static_shape, int(np.prod(np.array(type_.static_shape, object), initial=1))
        return _from_bytes(given["data"], shape, count, type_.dtype)


_EMPTY: list[Any] = [{}, 0, "", {}, [], {}]


def _integer(given: Any) -> int:
    _need(type(given) is int, "a number is no integer")
    return int(given)


def _place(number: Any, table: list[Any]) -> int:
    if type(number) is not int or not 0 <= number < len(table):
        raise _wrong(f"{number!r} points to nothing")
    return number


def _strings(stored: list[Any], shape: tuple[int, ...], count: int, dtype: DType) -> Array:
    _need(dtype.kind == "string" and len(stored) == count and all(isinstance(s, str) for s in stored),
          "the strings of a constant do not fit its type")
    array = np.empty(count, object)
    array[:] = stored
    return array.reshape(shape)


def _from_bytes(data: Any, shape: tuple[int, ...], count: int, dtype: DType) -> Array:
    size = count * dtype.itemsize
    _need(dtype.kind != "string" and len(data) == size,
          f"{dtype.name}{list(shape)} takes {size} bytes, and {len(data)} are there")
    flat = np.frombuffer(data, np.uint8)
    if dtype.kind == "bool" or dtype.name in SUBBYTE:
        most = SUBBYTE.get(dtype.name, 1)
        _need(not size or int(flat.max()) <= most, f"there are bytes that are no {dtype.name}")
    array = flat.view(dtype.numpy).reshape(shape)
    return little_endian(array).reshape(shape)
