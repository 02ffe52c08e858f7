"""The msgpack form: one plain map of graph, tensors and a digest of all. The same graph gives the same bytes.

::

    {"magic": "flowgrad", "version": 1, "head": bytes before "tensors",
     "graphs": [subgraphs before their owners, then the graph],
     "weights": {"file": name, "digest": bytes}           # only if large tensors lie in a .safetensors file
     "tensors": [padding, data, padding, data, ...],      # each data begins at a multiple of 64, little-endian
     "digest": blake2b of everything before it}

A graph is a map of tables; types, values and origins are referred to by number. Values are numbered from inputs over
constants to the outputs of the nodes, in topological order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from flowgrad.ir.bulk import bulk
from flowgrad.ir.canonical import subgraph_names, written_constants, written_origins
from flowgrad.ir.errors import SaveError
from flowgrad.ir.files import ALIGNMENT, map_file, read_file, write_file
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.limits import Limits, limits_or_default
from flowgrad.ir.literals import little_endian
from flowgrad.ir.types import Dim, Type, dtype_of
from flowgrad.ir.unpack import GRAPH_KEYS, INLINE_BYTES, MAGIC, VERSION, is_packed, read_frame, unpack, unpack_frame
from flowgrad.ir.weights import EXTERNAL_BYTES, Weights, write_weights

__all__ = ["graph_digest", "is_packed", "load", "pack", "save", "unpack"]

Buffer = bytes | memoryview


def pack(graph: Graph, limits: Limits | None = None) -> bytes:
    """Return the msgpack form of ``graph``. Raises LimitError, SaveError for what the form cannot hold."""
    chunks = list(_chunks(graph, None))
    limits_or_default(limits).check("file_bytes", sum(_length(c) for c in chunks), "pack")
    return b"".join(chunks)


def graph_digest(graph: Graph) -> str:
    """Return a digest of all that the msgpack form holds, as hexadecimal digits."""
    *_, digest = _chunks(graph, None)
    return bytes(digest).hex()


@bulk
def save(graph: Graph, path: str | Path, *, external: bool = False) -> None:
    """Write the msgpack form to ``path``; the file that was there stays whole until the new one is.

    Tensors of 4 GiB and more (with ``external`` all large ones) go to a ``.safetensors`` file beside it, which is named
    after its contents and written first. Raises SaveError.
    """
    target = Path(path)
    large = _external_tensors(graph, external)
    weights = write_weights(target, large) if large else None
    write_file(target, _chunks(graph, weights))


def load(path: str | Path, limits: Limits | None = None, mmap: bool = False) -> Graph:
    """Return the graph in a msgpack file, checked in full: digest, limits, form, and the graph itself.

    ``mmap`` maps the constants without reading them, and does not check the digest: for trusted files.
    Raises LoadError, LimitError, ValidationError.
    """
    source, limits = Path(path), limits_or_default(limits)
    data = map_file(source) if mmap else read_file(source, limits)
    limits.check("file_bytes", len(data), str(source))
    return unpack_frame(read_frame(data, limits, check_digest=not mmap), limits, source.parent)


# ---- the whole ------------------------------------------------------------------------------------------------------------


def _length(chunk: Any) -> int:
    return memoryview(chunk).nbytes


def _external_tensors(graph: Graph, external: bool) -> dict[str, Array]:
    least = INLINE_BYTES + 1 if external else EXTERNAL_BYTES
    found: dict[str, Array] = {}
    for number, current in enumerate(_graphs(graph)):
        for value in written_constants(current, current.nodes()):
            data = value.producer.data
            if data is None or data.dtype == object or data.nbytes < least:
                continue
            name = value.name if current is graph else f"{number}/{value.name}"
            while name in found:
                name += "_"
            found[name] = data
    return found


def _graphs(graph: Graph) -> list[Graph]:
    """Return the subgraphs, each before its owner, and the graph itself last."""
    found: list[Graph] = []
    pending = [graph]
    while pending:
        current = pending.pop()
        found.append(current)
        for node in current.nodes() if current.has_subgraphs else ():
            pending.extend(node.subgraphs[name] for name in subgraph_names(node))
    return found[::-1]


def _chunks(graph: Graph, weights: Weights | None) -> Iterator[Buffer]:
    """Yield the file in pieces, the digest last."""
    digest = hashlib.blake2b(digest_size=32)
    for chunk in _before_digest(graph, weights):
        digest.update(chunk)
        yield chunk
    yield digest.digest()


def _before_digest(graph: Graph, weights: Weights | None) -> Iterator[Buffer]:
    writer = _Writer(weights)
    body = writer.graphs(_graphs(graph))
    packer = writer.packer
    if weights is not None:
        body += packer.pack("weights") + packer.pack({"file": weights.file, "digest": weights.digest})
    start = packer.pack_map_header(6 + (weights is not None)) + packer.pack("magic") + packer.pack(MAGIC)
    start += packer.pack("version") + packer.pack(VERSION) + packer.pack("head")
    head = len(start) + 9 + len(body)
    yield start + b"\xcf" + head.to_bytes(8, "big") + body
    opening = packer.pack("tensors") + b"\xdd" + (2 * len(writer.tensors)).to_bytes(4, "big")
    yield opening
    at = head + len(opening)
    for array in writer.tensors:
        padding = -(at + 7) % ALIGNMENT
        yield b"\xc4" + bytes([padding]) + bytes(padding) + b"\xc6" + array.nbytes.to_bytes(4, "big")
        yield little_endian(array).reshape(-1).view(np.uint8).data
        at += 7 + padding + array.nbytes
    yield packer.pack("digest") + b"\xc4\x20"


class _Writer:
    """Turns graphs into tables, and collects the large tensors."""

    def __init__(self, weights: Weights | None) -> None:
        self.weights = weights
        self.tensors: list[Array] = []
        self.packer = msgpack.Packer(use_bin_type=True)

    def graphs(self, graphs: list[Graph]) -> bytes:
        """Return the key and the packed list of graphs."""
        places = {id(g): i for i, g in enumerate(graphs)}
        parts = [self.packer.pack("graphs"), self.packer.pack_array_header(len(graphs))]
        for graph in graphs:
            parts += self.graph(graph, places)
        return b"".join(parts)

    def graph(self, graph: Graph, places: dict[int, int]) -> Iterator[bytes]:
        """Yield one graph, packed table by table."""
        tables = _Tables(graph, places)
        inputs = [(v.name, tables.define(v)) for v in graph.inputs]
        constants = [self.constant(v, tables) for v in written_constants(graph, tables.nodes)]
        nodes = [tables.node(n) for n in tables.nodes]
        outputs = [(n.name, tables.number(n.input(0))) for n in graph.output_entries]
        parts = (graph.name, dict(sorted(graph.metadata.items())), tables.types, tables.origins, inputs, constants,
                 nodes, outputs)
        yield self.packer.pack_map_header(len(parts))
        for name, part in zip(GRAPH_KEYS, parts, strict=True):
            yield self.packer.pack(name) + self.part(part, graph)

    def part(self, part: Any, graph: Graph) -> bytes:
        """Return a table, packed."""
        try:
            return self.packer.pack(part)  # type: ignore[no-any-return]
        except (OverflowError, TypeError, UnicodeEncodeError, ValueError) as error:
            raise SaveError(f"the msgpack form cannot hold this: {error}", code="pack", where=graph.name) from error

    def constant(self, value: Value, tables: _Tables) -> tuple[str, str, int, Any]:
        """Return name, role, type and data of a constant."""
        data = value.producer.data
        if data is None:
            raise SaveError(f"the constant %{value.name} has no data", code="constant")
        return value.name, value.producer.role, tables.define(value), self.stored(data)

    def stored(self, data: Array) -> Any:
        """Return strings as a list, small data as bytes, the place of a tensor, or its key in the weights file."""
        if data.dtype == object:
            return data.ravel().tolist()
        if data.nbytes <= INLINE_BYTES:
            return little_endian(data).tobytes()
        if self.weights is not None and id(data) in self.weights.keys:
            return {"weights": self.weights.keys[id(data)]}
        if data.nbytes >= EXTERNAL_BYTES:
            raise SaveError("a tensor of 4 GiB or more needs a weights file: use save", code="tensor")
        self.tensors.append(data)
        return len(self.tensors) - 1


class _Tables:
    """The numbering of types, values and origins of one graph."""

    def __init__(self, graph: Graph, places: dict[int, int]) -> None:
        self.nodes = graph.nodes()
        self.places = places
        self.types: list[tuple[str, list[int | str] | None]] = []
        self._types: dict[Type, int] = {}
        self._values: dict[Value, int] = {}
        origins, self._origins = written_origins(graph, self.nodes)
        self.origins = [tuple(o) for o in origins[1:]]

    def define(self, value: Value) -> int:
        """Number a value; return the number of its type."""
        self._values[value] = len(self._values)
        number = self._types.setdefault(value.type, len(self.types))
        if number == len(self.types):
            self.types.append(_packed_type(value.type))
        return number

    def number(self, value: Value | None) -> int | None:
        """Return the number of a value."""
        return None if value is None else self._values[value]

    def node(self, node: Node) -> list[Any]:
        """Return a node as a list, its empty last fields left out."""
        numbers = self._values
        inputs = [None if v is None else numbers[v] for v in node.inputs]
        captures = [numbers[v] for v in node.captures]
        outputs: list[Any] = []
        for value in node.outputs:
            outputs += (None, None) if value is None else (value.name, self.define(value))
        row = [
            node.op, inputs, outputs,
            {k: _packed_attribute(v) for k, v in sorted(node.attributes.items())} if node.attributes else {},
            self._origins[node.origin],
            node.name,
            dict(sorted(node.metadata.items())) if node.metadata else {},
            captures,
            {name: self.places[id(node.subgraphs[name])] for name in subgraph_names(node)} if node.subgraphs else {},
        ]
        while len(row) > 3 and not row[-1]:
            row.pop()
        return row


def _packed_type(type_: Type) -> tuple[str, list[int | str] | None]:
    shape = type_.shape
    return type_.dtype.name, None if shape is None else [repr(d) if isinstance(d, Dim) else int(d) for d in shape]


def _packed_attribute(given: Any) -> Any:
    if isinstance(given, np.ndarray):
        data = given.ravel().tolist() if given.dtype == object else little_endian(given).tobytes()
        return {"dtype": dtype_of(given.dtype).name, "shape": list(given.shape), "data": data}
    return list(given) if isinstance(given, tuple) else given
