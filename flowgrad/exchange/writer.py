"""Graphs out as plain ONNX: operators of the default domain, at the lowest opset that is right."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from flowgrad import ir
from flowgrad.exchange.data_file import DataFile
from flowgrad.exchange.functions import schema_of
from flowgrad.exchange.lowering import lowered
from flowgrad.exchange.reader import PRODUCER
from flowgrad.exchange.scopes import KIND
from flowgrad.exchange.stamps import LOWEST_STAMP, Stamps, attributes_of, ir_version_for
from flowgrad.exchange.tensors import tensor_of, type_proto
from flowgrad.ir.boundary import boundary
from flowgrad.ir.bulk import bulk
from flowgrad.ir.errors import InputError, SaveError
from flowgrad.ir.files import new_file, write_file
from flowgrad.ir.graph import BUFFER, DEFAULT, ENTRIES, LITERAL, Array, Graph, Node, Value
from flowgrad.ir.limits import check_time
from flowgrad.ir.ops.control.loop_layout import layout_of
from flowgrad.ir.ops.registry import opdef
from flowgrad.ir.types import Type

EMBEDDED_BYTES = 2**31 - 2**26
"""Above this size a file keeps its weights beside it: protobuf ends at 2 GiB."""

_EXTERNAL_ELEMENTS = 1024
_FIELDS = ("domain", "doc_string", "model_version", "graph_doc_string")

Store = Callable[[TensorProto, Array], bool]
"""Takes the data of a tensor elsewhere and returns True, or declines."""


@bulk
def write_onnx(graph: Graph, opset: int | None = None) -> ModelProto:
    """Return ``graph`` as an ONNX model that passes the checker.

    The opset is the lowest that is right for all nodes, 18 at least; ``opset`` raises it. Raises SaveError for what
    has no ONNX form, InputError for an opset that is too low or unknown.
    """
    if _size(graph) > EMBEDDED_BYTES:
        raise SaveError("the model passes 2 GiB: save it to a path, with its weights beside it", code="size")
    model = _Writer(opset, None).model(graph)
    _check(model)
    return model


def save_onnx(
    graph: Graph, path: str | os.PathLike[str], opset: int | None = None, *, embedded_bytes: int = EMBEDDED_BYTES
) -> ModelProto:
    """Write ``graph`` to an ONNX file, whole or not at all, and return the model.

    If it takes more than ``embedded_bytes``, its large weights go first into a file beside it, named after their
    digest. Raises SaveError; what was there before is then unharmed.
    """
    target = Path(path)
    if _size(graph) <= embedded_bytes:
        model = write_onnx(graph, opset)
        write_file(target, [_serialized(model)])
        return model
    with new_file(target) as file:
        data = DataFile(file)
        model = _Writer(opset, data.store).model(graph)
        data.finish()
    write_file(target, [_serialized(model)], check=lambda written: _check(model, written))
    return model


def _size(graph: Graph) -> int:
    arrays = [v.producer.data for v in graph.constants]
    return sum(a.nbytes for a in arrays if a is not None) + 512 * len(graph)


def _serialized(model: ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise SaveError(f"the model cannot be serialized: {error}", code="size") from error


def _check(model: ModelProto, written: Path | None = None) -> None:
    """Check a model, in the file ``written`` if it has weights beside it. Raises SaveError."""
    without_rank = [i for i in (*model.graph.input, *model.graph.output)
                    if i.type.HasField("tensor_type") and not i.type.tensor_type.HasField("shape")]
    try:
        if without_rank:
            _check_with_ranks(model, without_rank, written)
            onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        else:
            onnx.checker.check_model(model if written is None else os.fspath(written), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise SaveError(f"onnx.checker refuses the exported model: {error}", code="checker") from error


def _check_with_ranks(model: ModelProto, without_rank: Sequence[ValueInfoProto], written: Path | None) -> None:
    """Check all but shapes of a model; the checker refuses inputs and outputs of unknown rank, so it is shown some."""
    for info in without_rank:
        info.type.tensor_type.shape.SetInParent()
    try:
        if written is None:
            onnx.checker.check_model(model)
            return
        with NamedTemporaryFile(dir=written.parent) as shown:  # where the checker finds the weights
            shown.write(_serialized(model))
            shown.flush()
            onnx.checker.check_model(shown.name)
    finally:
        for info in without_rank:
            info.type.tensor_type.ClearField("shape")


class _Names:
    """Names of values over all scopes: each is given once."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self._counts: dict[str, int] = {}
        self.of: dict[Value, str] = {}

    def __getitem__(self, value: Value) -> str:
        return self.of[value]

    def bind(self, value: Value, name: str) -> None:
        """Let ``value`` be called ``name``, which may be that of another scope's value (a capture)."""
        self.of[value] = name

    def give(self, value: Value) -> str:
        """Return the name of a value, giving it one if it has none yet."""
        if value not in self.of:
            self.of[value] = self.fresh(value.name or "constant")
        return self.of[value]

    def fresh(self, base: str) -> str:
        """Return ``base`` made valid and unique, and take it."""
        if not base.isascii():
            base = base.encode("utf-8", "replace").decode("utf-8")
        name = base
        while name in self.taken:
            self._counts[base] = self._counts.get(base, 0) + 1
            name = f"{base}_{self._counts[base]}"
        self.taken.add(name)
        return name


class _Writer:
    def __init__(self, opset: int | None, store: Store | None) -> None:
        self.asked = opset
        self.store = store
        self.names = _Names()
        self.opset = LOWEST_STAMP
        self.types: dict[Type, TypeProto] = {}
        self.needed: dict[str, int] = {}
        """How many inputs an operator must have, by its name."""

    def model(self, graph: Graph) -> ModelProto:
        graph = lowered(graph)
        self.opset = self._stamp(graph)
        model = ModelProto(ir_version=ir_version_for(self.opset), producer_name=PRODUCER)
        model.opset_import.add(domain="", version=self.opset)
        self._metadata(model, graph)
        proto = model.graph
        proto.name = graph.name or "graph"
        for value in graph.inputs:
            self._reserve(value, value.name)
        for entry in graph.output_entries:
            if entry.input(0).name == entry.name:
                self._reserve(entry.input(0), entry.name)
            else:
                self._reserve_output(entry)
        self._fill(proto, graph, top=True)
        for entry in graph.output_entries:
            value = entry.input(0)
            if self.names[value] != entry.name:
                proto.node.add(op_type="Identity", input=[self.names[value]], output=[entry.name])
            proto.output.add(name=entry.name, type=type_proto(value.type, keep_names=True))
        return model

    def _stamp(self, graph: Graph) -> int:
        lowest = Stamps().lowest(graph)
        if self.asked is None:
            return lowest
        if not lowest <= self.asked <= ir.OPSET:
            raise InputError(f"opset {self.asked} does not do: this graph needs {lowest} to {ir.OPSET}", code="opset")
        return self.asked

    def _metadata(self, model: ModelProto, graph: Graph) -> None:
        kept = dict(graph.metadata)
        for field in _FIELDS:
            text = kept.pop(f"onnx.{field}", "")
            if field == "graph_doc_string":
                model.graph.doc_string = text
            elif field == "model_version":
                model.model_version = int(text or 0)
            elif text:
                setattr(model, field, text)
        for key in sorted(kept):
            model.metadata_props.add(key=key, value=kept[key])

    def _reserve(self, value: Value, name: str) -> None:
        if value in self.names.of:
            return
        if name in self.names.taken:
            raise SaveError(f"two inputs or outputs are called {name!r}", code="name", where=name)
        self.names.bind(value, self.names.fresh(name))

    def _reserve_output(self, entry: Node) -> None:
        if entry.name in self.names.taken:
            raise SaveError(f"two inputs or outputs are called {entry.name!r}", code="name", where=entry.name)
        self.names.taken.add(entry.name)

    # ---- graphs ----------------------------------------------------------------------------------------------------------

    def _fill(self, proto: GraphProto, graph: Graph, top: bool) -> None:
        """Write inputs, constants and nodes; all names of the scope are given before any subgraph is entered."""
        nodes = graph.nodes()
        constants = [v for v in graph.constants if v.uses or (top and v.producer.role != LITERAL)]
        for value in constants:
            self.names.give(value)
        for node in nodes:
            for made in node.outputs:
                if made is not None:
                    self.names.give(made)
        if top:
            for value in graph.inputs:
                proto.input.add(name=self.names[value], type=type_proto(value.type, keep_names=True))
        outputs = {n.input(0) for n in graph.output_entries}
        for value in constants:
            if value.producer.role == DEFAULT:
                proto.input.add(name=self.names[value], type=type_proto(value.type))
            self._constant(proto, value)
        for node in nodes:
            self._node(proto, node)
            if top:
                self._describe(proto, node.outputs, outputs)

    def _describe(self, proto: GraphProto, values: Iterable[Value | None], apart_from: Collection[Value]) -> None:
        for value in values:
            if value is None or value in apart_from:
                continue
            type_ = value.type
            if type_.shape is None:
                continue
            made = self.types.get(type_)
            if made is None:
                made = self.types[type_] = type_proto(type_, keep_names=True)
            proto.value_info.add(name=self.names[value], type=made)

    def _constant(self, proto: GraphProto, value: Value) -> None:
        data = value.producer.data
        assert data is not None
        name = self.names[value]
        if value.producer.role == BUFFER:
            proto.value_info.add(name=name, type=type_proto(value.type)).metadata_props.add(key=KIND, value="BUFFER")
        if self.store is not None and data.size >= _EXTERNAL_ELEMENTS and data.dtype != object:
            tensor = proto.initializer.add(name=name, data_type=value.type.dtype.onnx, dims=data.shape)
            if self.store(tensor, data):
                return
        is_weight_like = data.ndim > 0 and value.type.dtype.is_float
        if value.producer.role == LITERAL and (value.name or is_weight_like):
            attribute = onnx.helper.make_attribute("value", tensor_of(data))
            proto.node.add(op_type="Constant", name=value.producer.name, output=[name], attribute=[attribute])
        else:
            proto.initializer.append(tensor_of(data, name))

    def _node(self, proto: GraphProto, node: Node) -> None:
        check_time()
        names = self.names.of
        inputs = ["" if v is None else names[v] for v in node.inputs]
        outputs = ["" if v is None else names[v] for v in node.outputs]
        needed = self.needed.get(node.op)
        if needed is None:
            needed = self.needed[node.op] = schema_of(node.op, self.opset).min_input
        inputs += [""] * (needed - len(inputs))
        while len(inputs) > needed and not inputs[-1]:
            inputs.pop()
        while outputs and not outputs[-1]:
            outputs.pop()
        if node.subgraphs:
            outputs = self._all_outputs(node, outputs)
        made: NodeProto = proto.node.add(op_type=node.op, name=node.name, input=inputs, output=outputs)
        if opdef(node.op).attributes:
            with boundary(node, "writing the attributes of", SaveError, "attribute"):
                made.attribute.extend(attributes_of(node, self.opset))
        for name, subgraph in node.subgraphs.items():
            attribute = made.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
            self._subgraph(attribute.g, node, subgraph, f"{node.label}_{name}")
        for key in sorted(node.metadata) if node.metadata else ():
            if key == "onnx.doc_string":
                made.doc_string = node.metadata[key]
            else:
                made.metadata_props.add(key=key, value=node.metadata[key])

    def _all_outputs(self, node: Node, outputs: list[str]) -> list[str]:
        """Return as many outputs as the subgraphs return (of a Loop: besides its condition), all named."""
        lead = layout_of(node).lead_outputs if "body" in node.subgraphs else 0
        for subgraph in node.subgraphs.values():
            outputs = outputs + [""] * (len(subgraph.output_entries) - lead - len(outputs))
            outputs = [name or self.names.fresh(f"{node.label}_unused") for name in outputs]
        return outputs

    def _subgraph(self, proto: GraphProto, node: Node, graph: Graph, name: str) -> None:
        """Write a closed graph as one that takes its captures by name."""
        proto.name = graph.name or name
        formals = graph.inputs[: len(graph.inputs) - len(node.captures)]
        for inner, outer in zip(graph.inputs[len(formals) :], node.captures, strict=True):
            self.names.bind(inner, self.names[outer])
        for value in formals:
            proto.input.add(name=self.names.give(value), type=type_proto(value.type))
        self._fill(proto, graph, top=False)
        seen: set[Value] = set()
        for value in graph.outputs:
            named = self.names[value]
            if value.producer.op in ENTRIES or value in seen:
                named = self.names.fresh(f"{named}_out")
                proto.node.add(op_type="Identity", input=[self.names[value]], output=[named])
            seen.add(value)
            proto.output.add(name=named, type=type_proto(value.type.with_shape(None)))
