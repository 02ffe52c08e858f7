"""ONNX files in: any opset becomes a graph, and a hostile file becomes a typed error."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import FunctionProto, ModelProto

from flowgrad import ir
from flowgrad.exchange.declared import steers_shapes
from flowgrad.exchange.external import ExternalFolder
from flowgrad.exchange.frames import Function
from flowgrad.exchange.functions import Key, check_calls, domain_of
from flowgrad.exchange.importer import Importer
from flowgrad.exchange.known import check_known
from flowgrad.exchange.precheck import precheck
from flowgrad.exchange.scopes import Region, RegionReader
from flowgrad.ir.errors import FlowgradError, LoadError, ResourceError, UnsupportedError, ValidationError
from flowgrad.ir.files import open_file
from flowgrad.ir.fixed_shapes import Shapes
from flowgrad.ir.graph import Graph
from flowgrad.ir.limits import Limits, limits_or_default

OLDEST_OPSET = 1
PRODUCER = "flowgrad"

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | ModelProto


def read_onnx(
    source: Source, limits: Limits | None = None, *, strict: bool = False, notes: list[str] | None = None,
    shapes: Shapes | None = None,
) -> Graph:
    """Return the graph of an ONNX model: a path, the bytes of a file, or a ModelProto.

    Weights in other files are read only for a path, from beneath its folder. What the file says and is not true, such as
    the shape of a value, is added to ``notes``, and refused if ``strict``. ``shapes`` fixes those of inputs. Raises LoadError
    for what is no ONNX file, ValidationError for one that breaks the standard, UnsupportedError (with all operators that are
    missing), ExternalDataError, InputError for wrong ``shapes``, LimitError.
    """
    limits = limits_or_default(limits)
    if isinstance(source, ModelProto):
        return _graph(source, ExternalFolder(None), limits, strict, notes, shapes)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _graph(_parsed(bytes(source), limits), ExternalFolder(None), limits, strict, notes, shapes)
    path = Path(source)
    model = _parsed(_contents(path, limits), limits)  # the bytes of the file are not held beyond this
    with ExternalFolder(path.parent) as folder:
        return _graph(model, folder, limits, strict, notes, shapes)


def _contents(path: Path, limits: Limits) -> bytes:
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            limits.check("file_bytes", size, str(path))
            return file.read(size + 1)
    except OSError as error:
        raise LoadError(f"cannot read the file: {error}", code="file", where=str(path)) from error


def _parsed(data: bytes, limits: Limits) -> ModelProto:
    limits.check("file_bytes", len(data))
    if not data:
        raise LoadError("the file is empty", code="empty")
    precheck(data, limits)
    try:
        model: ModelProto = ModelProto.FromString(data)
        return model
    except DecodeError as error:
        raise LoadError(f"not an ONNX file: {error}", code="protobuf") from error
    except MemoryError as error:
        raise ResourceError("out of memory", code="memory") from error


def _graph(model: ModelProto, folder: ExternalFolder, limits: Limits, strict: bool, notes: list[str] | None,
           shapes: Shapes | None) -> Graph:
    if not model.HasField("graph") or not model.ir_version:
        raise LoadError("not an ONNX model: it has no graph or no IR version", code="empty")
    if not 0 < model.ir_version <= onnx.IR_VERSION:
        raise UnsupportedError(f"IR version {model.ir_version} is not supported, only 1 to {onnx.IR_VERSION}",
                               code="ir_version")
    if model.training_info:
        raise UnsupportedError("models with training information are not supported", code="training_info")
    opsets = _opsets(model.opset_import)
    declared = _declared_functions(model, opsets)
    check_known(model.graph.node, opsets, declared)
    regions = RegionReader(folder, limits)
    functions = {key: Function(regions.function(proto), own, {a.name: a for a in proto.attribute_proto})
                 for key, (proto, own) in declared.items()}
    main = regions.graph(model.graph)
    check_calls(main, {k: f.region for k, f in functions.items()}, limits)

    def importer(defaults: Collection[str]) -> Importer:
        made = Importer(regions, functions, folder, limits, strict, defaults)
        made.own_names = model.producer_name == PRODUCER
        made.shapes = shapes or {}
        return made

    made, graph = _imported(model, main, opsets, importer)
    graph.metadata = _metadata(model)
    if notes is not None:
        notes += made.notes
    return graph


def _imported(
    model: ModelProto, main: Region, opsets: Mapping[str, int], importer: Callable[[Collection[str]], Importer]
) -> tuple[Importer, Graph]:
    """Import the main graph; inputs with a default value can be fed, unless shapes depend on them.

    Before IR version 4 every initializer had to be an input, and none could be fed.
    """
    defaults = {i.name for i in model.graph.input if i.name in main.initializers} if model.ir_version >= 4 else set()
    if defaults:
        made = importer(defaults)
        try:
            graph = made.main(model.graph, main, opsets)
        except FlowgradError:  # an operator wants to know one of them before the run
            defaults = set()
        else:
            fixed = {v.name for v in graph.parameters if steers_shapes(v)}
            if not fixed:
                return made, graph
            defaults -= fixed
    made = importer(defaults)
    return made, made.main(model.graph, main, opsets)


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    opsets: dict[str, int] = {}
    for entry in imports:
        domain = domain_of(entry.domain)
        if domain in opsets and opsets[domain] != entry.version:
            raise ValidationError(f"two opsets of domain {domain or 'ai.onnx'!r} are imported", code="opset")
        opsets[domain] = entry.version
    version = opsets.get("", ir.OPSET)
    if version < OLDEST_OPSET or version > ir.OPSET:
        raise UnsupportedError(f"opset {version} is not supported, only {OLDEST_OPSET} to {ir.OPSET}", code="opset")
    return opsets


def _declared_functions(model: ModelProto, opsets: Mapping[str, int]) -> dict[Key, tuple[FunctionProto, dict[str, int]]]:
    """Return the functions of a model and the opsets that each is written in."""
    found: dict[Key, tuple[FunctionProto, dict[str, int]]] = {}
    for proto in model.functions:
        key = (domain_of(proto.domain), proto.name, proto.overload)
        if key in found:
            raise ValidationError(f"the function {proto.name!r} is defined twice", code="name", where=proto.name)
        if proto.node and not proto.opset_import:
            raise ValidationError(f"the function {proto.name!r} imports no opset", code="opset", where=proto.name)
        found[key] = proto, dict(opsets) | _opsets(proto.opset_import)
    return found


def _metadata(model: ModelProto) -> dict[str, str]:
    found = {p.key: p.value for p in model.metadata_props}
    fields = {"domain": model.domain, "doc_string": model.doc_string, "graph_doc_string": model.graph.doc_string,
              "model_version": str(model.model_version) if model.model_version else ""}
    if model.producer_name != PRODUCER:
        fields |= {"producer_name": model.producer_name, "producer_version": model.producer_version}
    return found | {f"onnx.{k}": v for k, v in fields.items() if v}


