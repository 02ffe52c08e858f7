"""From regions to the graph: nodes become typed operators, functions are inlined, subgraphs are closed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence

import onnx
from onnx import AttributeProto, NodeProto

from flowgrad.exchange.adapters import (
    ADAPTERS,
    FORMALS,
    formals_within_batch,
    scan_over_batch,
    scans_batches,
)
from flowgrad.exchange.attributes import constant_value, kind_of, value_of
from flowgrad.exchange.carried_states import read_states, unwrapped_states, widened, wrap_states
from flowgrad.exchange.declared import refine
from flowgrad.exchange.external import ExternalFolder
from flowgrad.exchange.frames import Frame, Function
from flowgrad.exchange.functions import (
    Key,
    body_for,
    domain_of,
    key_of,
    kind_conflict,
    plain_body,
    schema_defaults,
    type_conflict,
)
from flowgrad.exchange.imported_node import ImportBuilder, ImportedNode
from flowgrad.exchange.known import is_known
from flowgrad.exchange.places import Place, at_place, in_body_of
from flowgrad.exchange.scopes import HoistKey, Region, RegionReader, is_small_integer, not_trained
from flowgrad.exchange.tensors import container_type, element_type
from flowgrad.ir.errors import (
    FlowgradError,
    InputError,
    LimitError,
    ResourceError,
    UnsupportedError,
    ValidationError,
)
from flowgrad.ir.fixed_shapes import Shapes, fixed_shapes
from flowgrad.ir.graph import BUFFER, CONSTANT, DEFAULT, FEEDABLE, INITIALIZER, LITERAL, Array, Graph, Value
from flowgrad.ir.infer import draft
from flowgrad.ir.known import known_value
from flowgrad.ir.limits import Limits
from flowgrad.ir.ops.derivative.ordering import read_after
from flowgrad.ir.ops.registry import STANDS_FOR, OpDef, find_op
from flowgrad.ir.types import UNKNOWN, Dim, DimLike, Type, parse_dim

FRAME_DEPTH = 128
"""Functions within functions, the bodies that the standard gives for operators counted too."""

REPEATS = 64
"""How often bodies of Loops are read again for better types; nested ones would multiply without an end."""

MOST_NOTES = 50
"""How many remarks about a file are kept."""

_NO_NAME = {"", "?", "None", "-1", "*"}
_OURS = re.compile(r"_d(\d{1,18})")


class Importer:
    """Builds one graph out of regions."""

    def __init__(
        self, reader: RegionReader, functions: Mapping[Key, Function], folder: ExternalFolder, limits: Limits,
        strict: bool = False, defaults: Collection[str] = (),
    ) -> None:
        self.reader = reader
        self.functions = functions
        self.folder = folder
        self.limits = limits
        self.strict = strict
        self.defaults = frozenset(defaults)
        self.notes: list[str] = []
        self.count = 0
        self.repeats = 0
        self.own_names = False
        self.shapes: Shapes = {}
        self._bodies: dict[tuple[str, int], Function] = {}
        self._placed: FlowgradError | None = None

    # ---- the outermost graph -------------------------------------------------------------------------------------------

    def main(self, proto: onnx.GraphProto, region: Region, opsets: Mapping[str, int]) -> Graph:
        """Return the graph of the model's main graph."""
        graph = Graph(proto.name or "graph", self.limits)
        reserved = {*region.inputs, *region.initializers, *region.outputs, *(o for n in region.nodes for o in n.output)}
        frame = Frame(region, ImportBuilder(graph, reserved), opsets)
        self._skip_fresh_dims(graph, proto)
        declared = {i.name: self._type(graph, i) for i in proto.input if i.name not in region.initializers}
        for name, type_ in fixed_shapes(declared, self.shapes).types.items():
            frame.values[name] = graph.add_input(self._named(name), type_)
        buffers = not_trained(proto)
        for name, array in region.initializers.items():
            role = DEFAULT if name in self.defaults else BUFFER if name in buffers else INITIALIZER
            frame.values[name] = self._initializer(graph, name, array, role, region.declared.get(name, ()))
        for key, array in self.reader.hoisted.items():
            role = LITERAL if key in self.reader.literals else INITIALIZER
            frame.hoisted[key] = graph.add_constant(array, frame.b.fresh(key[1]), role)
        self.run(frame)
        if len(set(region.outputs)) != len(region.outputs):
            raise ValidationError("two outputs have the same name", code="name", where=region.name)
        for name in region.outputs:
            graph.add_output(frame.value(name), self._named(name))
        return graph

    @staticmethod
    def _named(name: str) -> str:
        if not name:
            raise ValidationError("an input or output has no name", code="name")
        return name

    @staticmethod
    def _skip_fresh_dims(graph: Graph, proto: onnx.GraphProto) -> None:
        for info in proto.input:
            for dim in info.type.tensor_type.shape.dim:
                for match in _OURS.finditer(dim.dim_param):
                    graph._next_dim = max(graph._next_dim, int(match[1]))

    def _initializer(self, graph: Graph, name: str, array: Array, role: str, declared: Sequence[onnx.TypeProto]) -> Value:
        value = graph.add_constant(array, self._named(name), role)
        for type_ in declared:
            conflict = refine(graph, value, type_)
            if conflict:
                raise ValidationError(conflict, code="shape", where=name)
        return value

    def _type(self, graph: Graph, info: onnx.ValueInfoProto) -> Type:
        if info.type.WhichOneof("value") != "tensor_type":
            return Type(container_type(info.type, info.name), ())
        tensor = info.type.tensor_type
        dtype = element_type(tensor.elem_type, info.name)
        if not tensor.HasField("shape"):
            return Type(dtype, None)
        self.limits.check("rank", len(tensor.shape.dim), info.name)
        return graph.resolve(Type(dtype, tuple(self._dim(d) for d in tensor.shape.dim)))

    def _dim(self, dim: onnx.TensorShapeProto.Dimension) -> DimLike:
        if dim.HasField("dim_value"):
            return UNKNOWN if dim.dim_value < 0 else int(dim.dim_value)
        if dim.dim_param in _NO_NAME:
            return UNKNOWN
        if not self.own_names:
            return Dim.named(dim.dim_param)
        parsed = parse_dim(dim.dim_param)
        if isinstance(parsed, Dim):
            self.limits.check("dim_terms", parsed.size)
        return parsed

    # ---- nodes -----------------------------------------------------------------------------------------------------------

    def run(self, frame: Frame) -> None:
        """Add the nodes of a frame and of all functions they call, without recursion."""
        stack = [frame]
        while stack:
            frame = stack[-1]
            called = None
            try:
                if frame.at == len(frame.region.nodes):
                    stack.pop()
                    frame.finish()
                    continue
                frame.at += 1
                called = self._step(frame, frame.at - 1)
            except FlowgradError as error:
                raise self._at_place(error, stack) from error
            if called is not None:
                if len(stack) >= FRAME_DEPTH:
                    raise LimitError(f"functions are nested more than {FRAME_DEPTH} deep", code="function_depth")
                stack.append(called)

    def _at_place(self, error: FlowgradError, stack: Sequence[Frame]) -> FlowgradError:
        """Return the error with the node of the file that it is at."""
        shown = list(itertools.takewhile(lambda frame: not frame.is_standard, stack))
        places = [Place(f.region.nodes[f.at - 1], f.values, f.function, f.is_branch) for f in shown]
        if places:
            error = in_body_of(error, places) if error is self._placed else at_place(error, places)
            self._placed = error
        return error

    def _step(self, frame: Frame, index: int) -> Frame | None:
        self.count += 1
        if self.count > self.limits.expanded_nodes:
            self.limits.check("expanded_nodes", self.count)
        if len(frame.b.graph.values) > self.limits.values:
            self.limits.check("values", len(frame.b.graph.values))
        node = frame.region.nodes[index]
        try:
            return self._node(frame, node, frame.region.subregions.get(index, {}))
        except InputError as error:
            raise ValidationError(error.message, code=error.code) from error
        except FlowgradError:
            raise
        except MemoryError as error:
            raise ResourceError(f"out of memory at {node.op_type}", code="memory") from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValidationError(f"{node.op_type} does not fit its inputs ({type(error).__name__}: {error})",
                                  code="type") from error

    def _node(self, frame: Frame, node: NodeProto, subregions: Mapping[str, Region]) -> Frame | None:
        key = key_of(node)
        protos = self._attribute_protos(frame, node)
        if key[:2] == ("", "Constant") and key not in self.functions:
            self._constant(frame, node, protos)
            return None
        version = frame.opsets.get(key[0], 1)
        made = list(node.output)
        call = ImportedNode(
            key[1], key[0], version, [frame.value(n) if n else None for n in node.input], {},
            [frame.output_name(n) for n in made] if frame.is_within else made, frame.prefix + node.name if node.name else "",
            node, subregions, scope=frame.value,
        )
        if key in self.functions:
            given = dict(self.functions[key].defaults) | {p.name: p for p in protos}
            return self._enter(frame, call, self.functions[key], given, key[1])
        if protos:
            call.attributes = {p.name: value_of(p, self.folder, self.limits) for p in protos if p.name not in subregions}
        if not key[0] and version < 6:
            call.take("consumed_inputs")  # an old hint for runtimes
        _check_types(call, protos)
        if taken := _branch_taken(call):
            return self._enter_branch(frame, call, subregions[taken])
        if not (key[0] or is_known("", call.op)):
            return self._enter(frame, call, self._body(call, protos), {p.name: p for p in protos})
        self._bind(frame, call, self._emit(frame, call))
        return None

    def _attribute_protos(self, frame: Frame, node: NodeProto) -> list[AttributeProto]:
        if not node.attribute:
            return []
        self.limits.check("attributes", len(node.attribute), node.name)
        found: dict[str, AttributeProto] = {}
        for attribute in node.attribute:
            proto = attribute
            if attribute.ref_attr_name:
                if frame.attributes is None:
                    raise ValidationError(f"the attribute {attribute.name!r} refers to {attribute.ref_attr_name!r} of a "
                                          "function, and stands in none", code="attribute", where=node.name)
                given = (frame.attributes or {}).get(attribute.ref_attr_name)
                if given is None:
                    continue
                proto = AttributeProto()
                proto.CopyFrom(given)
                proto.name = attribute.name
            if not proto.name or proto.name in found:
                raise ValidationError(f"the attribute {proto.name!r} is given twice or has no name", code="attribute",
                                      where=node.name)
            found[proto.name] = proto
        return list(found.values())

    def _constant(self, frame: Frame, node: NodeProto, protos: Sequence[AttributeProto]) -> None:
        if len(protos) != 1 or len(node.output) != 1 or not node.output[0]:
            raise ValidationError("a Constant node takes one attribute and has one output", code="attribute",
                                  where=node.name)
        array = constant_value(value_of(protos[0], self.folder, self.limits), protos[0].name)
        name = frame.output_name(node.output[0])
        value = frame.b.graph.add_constant(array, name, LITERAL)
        value.producer.name = node.name
        self._declare(frame, value, node.output[0])
        frame.values[node.output[0]] = value

    def _emit(self, frame: Frame, call: ImportedNode) -> Sequence[Value | None]:
        b = frame.b
        b.prefix = call.label
        since = b.graph._next_key
        if call.subregions:
            self._close(frame, call)
            if scans_batches(call):
                return b.name_results(scan_over_batch(b, call, call.subgraphs["body"]), call.outputs, since)
            if states := unwrapped_states(call):
                wrap_states(call, states)
                names, call.outputs = call.outputs, [n and b.fresh(n) for n in call.outputs]
                return b.name_results(read_states(b, self._add(b, call), states), names, since)
        for version, adapter in ADAPTERS.get((call.domain, call.op), ()):
            if call.version < version:
                results = adapter(b, call)
                if results is not None:
                    return b.name_results(results, call.outputs, since)
        return self._add(b, call)

    def _add(self, b: ImportBuilder, call: ImportedNode) -> Sequence[Value | None]:
        definition = find_op(call.op)
        if definition is None:
            raise UnsupportedError(f"{call.op} is not supported", code="op", where=call.label)
        names = list(call.outputs)
        while names and not names[-1]:
            names.pop()
        most = len(definition.outputs) - len(definition.residuals)
        if not names or (len(names) > most and not definition.variadic_outputs):
            raise ValidationError(f"{call.op} with {len(names)} outputs", code="arity", where=call.label)
        _take_ranks(b.graph, definition, call)
        metadata = {p.key: p.value for p in call.proto.metadata_props}
        op, inputs = _stood_for(call, metadata.pop(STANDS_FOR, "")) if metadata else (call.op, call.inputs)
        attributes = call.attributes if op == call.op else {}  # what marked nodes stand for has none
        node = b.add_node(op, inputs, attributes, outputs=names, captures=call.captures, subgraphs=call.subgraphs,
                          name=call.name)
        node.metadata = metadata
        if call.proto.doc_string:
            node.metadata["onnx.doc_string"] = call.proto.doc_string
        return node.outputs

    def _bind(self, frame: Frame, call: ImportedNode, results: Sequence[Value | None]) -> None:
        keeps_type = call.keeps_type and frame.region.declared
        for name, value in zip(call.proto.output, results, strict=False):
            if name and value is not None:
                if keeps_type:
                    self._declare(frame, value, name)
                frame.values[name] = value
        for remark in call.remarks:
            self.note(remark)

    def _declare(self, frame: Frame, value: Value, name: str) -> None:
        for declared in frame.region.declared.get(name, ()):
            conflict = refine(frame.b.graph, value, declared, trusted=self.own_names)
            if conflict and self.strict:
                raise ValidationError(f"{conflict}; without strict, what the operators say counts", code="shape",
                                      where=value.name)
            if conflict:
                self.note(f"{conflict}: what the operators say counts")

    def note(self, text: str) -> None:
        """Keep a remark for whoever loads the file; each once, and not thousands."""
        if text not in self.notes and len(self.notes) < MOST_NOTES:
            self.notes.append(text)

    # ---- functions -------------------------------------------------------------------------------------------------------

    def _body(self, call: ImportedNode, protos: Sequence[AttributeProto]) -> Function:
        node = NodeProto()
        node.CopyFrom(call.proto)
        del node.attribute[:]
        node.attribute.extend(protos)
        return self._body_function(node, call.version, [None if v is None else v.type for v in call.inputs])

    def _body_function(self, node: NodeProto, version: int, types: Sequence[Type | None]) -> Function:
        plain = plain_body(node.op_type, version)
        if plain is not None and (node.op_type, version) in self._bodies:
            return self._bodies[node.op_type, version]
        proto = body_for(node, version, types)
        if proto is None:
            raise UnsupportedError(f"{node.op_type} in this form is not supported", code="op",
                                   where=node.name or next(iter(node.output), ""))
        opsets = {domain_of(o.domain): o.version for o in proto.opset_import}
        defaults = schema_defaults(node.op_type, version) | {a.name: a for a in proto.attribute_proto}
        function = Function(self.reader.function(proto, strict=False), opsets, defaults)
        if plain is not None:
            self._bodies[node.op_type, version] = function
        return function

    def _enter(
        self, frame: Frame, call: ImportedNode, function: Function, attributes: Mapping[str, AttributeProto], name: str = "",
    ) -> Frame:
        """Return the frame of a function; ``name`` is that of one of the file."""
        region = function.region
        if len(call.inputs) > len(region.inputs) or len(call.outputs) > len(region.outputs):
            raise ValidationError(f"{call.op} takes {len(region.inputs)} inputs and has {len(region.outputs)} outputs",
                                  code="arity", where=call.label)
        prefix = f"{call.name or call.label}/"
        inner = Frame(region, frame.b, function.opsets, attributes=dict(function.defaults) | dict(attributes), prefix=prefix,
                      function=name, is_standard=not name, is_within=True)
        absent = {n for i, n in enumerate(region.inputs) if call.optional(i) is None}
        inner.values = {n: v for n, v in zip(region.inputs, call.inputs, strict=False) if v is not None}
        if absent:
            inner.region = _without(region, absent)
        return self._entered(frame, call, inner)

    def _enter_branch(self, frame: Frame, call: ImportedNode, region: Region) -> Frame:
        """Return the frame of the only branch of an If that is ever taken: its nodes stand for the If.

        Types behind it are then those of one branch, and what does not fit together in the other does not matter.
        """
        inner = Frame(region, frame.b, frame.opsets, attributes=frame.attributes, function=frame.function,
                      is_standard=frame.is_standard, is_within=True, is_branch=True)
        inner.hoisted = {key: self._hoisted(frame, key) for key in region.hoisted}
        inner.values = {name: frame.value(name) for name in region.free}
        inner.values |= {name: v for (owner, name), v in inner.hoisted.items() if owner == id(region)}
        for name, array in region.initializers.items():
            inner.values[name] = frame.b.graph.add_constant(array, frame.b.fresh(self._named(name)), INITIALIZER)
        return self._entered(frame, call, inner)

    def _entered(self, frame: Frame, call: ImportedNode, inner: Frame) -> Frame:
        """Let the outputs of ``inner`` become those of ``call`` when its nodes are added."""
        region = inner.region
        if len(call.outputs) > len(region.outputs):
            raise ValidationError(f"{call.op} has {len(region.outputs)} outputs, not {len(call.outputs)}", code="arity")
        wanted = [(n, name) for n, name in zip(region.outputs, call.outputs, strict=False) if name]
        for formal, name in wanted:
            if formal not in inner.values:
                inner.names.setdefault(formal, name)

        def finish() -> None:
            results = [inner.value(n) for n, _ in wanted]
            for place, (formal, name) in enumerate(wanted):
                if inner.names.get(formal) != name:
                    results[place] = frame.b.add("Identity", [results[place]], name=name)
            by_name = {name: v for (_, name), v in zip(wanted, results, strict=True)}
            self._bind(frame, call, [by_name.get(n) if n else None for n in call.outputs])

        inner.finish = finish
        return inner

    # ---- subgraphs -------------------------------------------------------------------------------------------------------

    def _close(self, frame: Frame, call: ImportedNode) -> None:
        """Turn the subgraphs of a node into closed graphs and collect what they capture."""
        outer = frame.b.graph
        names = list(dict.fromkeys(n for sub in call.subregions.values() for n in sub.free))
        keys = list(dict.fromkeys(k for sub in call.subregions.values() for k in sub.hoisted))
        sources: list[tuple[str | HoistKey, Value]] = [(n, frame.value(n)) for n in names]
        sources += [(k, self._hoisted(frame, k)) for k in keys]
        call.captures = list(dict.fromkeys(v for _, v in sources if not _is_copied(v)))
        for name, sub in call.subregions.items():
            formals = self._formals(call, sub)
            if call.op == "Loop" and self.repeats > REPEATS:
                formals[2:] = [t.with_shape(None) for t in formals[2:]]
            graph = self._subgraph(frame, call, sub, formals, sources)
            if call.op == "Loop":
                graph = self._stable_body(frame, call, sub, formals, sources, graph)
            outer._next_dim = max(outer._next_dim, graph._next_dim)
            call.subgraphs[name] = graph

    @staticmethod
    def _hoisted(frame: Frame, key: HoistKey) -> Value:
        if key not in frame.hoisted:
            raise ValidationError(f"the initializer {key[1]!r} is out of reach", code="dangling", where=key[1])
        return frame.hoisted[key]

    def _formals(self, call: ImportedNode, sub: Region) -> list[Type]:
        types = list(self._formal_types(call))
        if len(types) != len(sub.inputs):
            raise ValidationError(f"a subgraph of {call.op} takes {len(sub.inputs)} inputs, it is given {len(types)}",
                                  code="arity", where=call.label)
        return types

    @staticmethod
    def _formal_types(call: ImportedNode) -> Sequence[Type]:
        if scans_batches(call):
            return formals_within_batch(call)
        if (call.domain, call.op) in FORMALS:
            return FORMALS[call.domain, call.op](call)
        definition = find_op(call.op)
        rule = None if definition is None else definition.formals_rule
        return () if rule is None else rule(draft(call.op, call.inputs, call.attributes))

    def _subgraph(
        self, frame: Frame, call: ImportedNode, sub: Region, formals: Sequence[Type],
        sources: Sequence[tuple[str | HoistKey, Value]],
    ) -> Graph:
        graph = Graph(sub.name or f"{call.label}_body", self.limits)
        graph._next_dim = frame.b.graph._next_dim
        reserved = {*sub.inputs, *sub.initializers, *sub.outputs, *(o for n in sub.nodes for o in n.output)}
        inner = Frame(sub, ImportBuilder(graph, reserved, is_inner=True), frame.opsets, attributes=frame.attributes,
                      function=frame.function, is_standard=frame.is_standard)
        for name, type_ in zip(sub.inputs, formals, strict=True):
            inner.values[name] = graph.add_input(self._named(name), type_)
        inside = {v: graph.add_input(inner.b.fresh(v.name or "captured"), v.type) for v in call.captures}
        for source, value in sources:
            local = inside.get(value)
            if local is None:
                local = graph.add_constant(value.producer.data)
            if isinstance(source, str):
                inner.values.setdefault(source, local)
            else:
                inner.hoisted[source] = local
        inner.values.update({name: v for (region, name), v in inner.hoisted.items() if region == id(sub)})
        for name, array in sub.initializers.items():
            inner.values[name] = graph.add_constant(array, self._named(name), INITIALIZER)
        self.run(inner)
        for index, name in enumerate(sub.outputs):
            graph.add_output(inner.value(name), graph.unique_output_name(name or f"output_{index}"))
        return graph

    def _stable_body(
        self, frame: Frame, call: ImportedNode, sub: Region, formals: list[Type],
        sources: Sequence[tuple[str | HoistKey, Value]], graph: Graph,
    ) -> Graph:
        """Import the body of a Loop again with unknown extents where the carried values do not keep theirs."""
        free: set[int] = set()
        for attempt in range(4):
            results = [v.type for v in graph.outputs[1 : len(formals) - 1]]
            wider = [widened(a, b, attempt, k in free) for k, (a, b) in enumerate(zip(formals[2:], results, strict=False))]
            if wider == formals[2 : 2 + len(wider)]:
                return graph
            free |= {k for k, t in enumerate(wider) if t.shape is not None and all(d is UNKNOWN for d in t.shape)}
            formals = formals[:2] + [frame.b.graph.resolve(t) for t in wider]
            self.repeats += 1
            graph = self._subgraph(frame, call, sub, formals, sources)
        return graph


def _check_types(call: ImportedNode, protos: Sequence[AttributeProto]) -> None:
    for proto in protos:
        if conflict := kind_conflict(call.op, call.version, proto.name, kind_of(proto), call.domain):
            raise ValidationError(conflict, code="attribute", where=call.label)
    dtypes = tuple([None if v is None else v.type.dtype for v in call.inputs])
    conflict = type_conflict(call.op, call.version, dtypes, call.domain)
    if conflict:
        raise ValidationError(conflict, code="dtype", where=call.label)


def _stood_for(call: ImportedNode, mark: str) -> tuple[str, Sequence[Value | None]]:
    """Return the operator that a marked node was written for, and its inputs; those of the node if it is not its form."""
    if call.op == "Identity" and mark == "StopGradient":
        return mark, call.inputs
    if call.op == "Where" and mark == "Surrogate":
        always, (x, smooth) = call.input(0).constant, (call.input(1), call.input(2))
        if always is not None and always.all() and always.ndim == 0 and x.type == smooth.type:
            return mark, [x, smooth]
    if call.op == "Reshape" and mark == "After" and (event := read_after(call.input(0), call.input(1))) is not None:
        return mark, [call.input(0), event]
    return call.op, call.inputs


def _take_ranks(graph: Graph, definition: OpDef, call: ImportedNode) -> None:
    """Give inputs of unknown rank the rank that the operator demands of them: with another it cannot run."""
    if definition.ranks_rule is None or all(v is None or v.type.rank is not None for v in call.inputs):
        return
    ranks = definition.ranks_rule(draft(call.op, call.inputs, call.attributes))
    for value, rank in zip(call.inputs, ranks, strict=False):
        if value is not None and value.type.rank is None and rank is not None:
            graph.set_type(value, Type(value.type.dtype, (UNKNOWN,) * rank))


def _branch_taken(call: ImportedNode) -> str:
    """Return which branch of an If is always taken, "" if only the run tells."""
    if call.op != "If" or len(call.subregions) != 2:
        return ""
    condition = known_value(call.input(0))
    if condition is None or condition.size != 1:
        return ""
    return "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"


def _is_copied(value: Value) -> bool:
    """True for what a subgraph gets as a constant of its own."""
    data = value.producer.data
    return (value.producer.op == CONSTANT and value.producer.role not in FEEDABLE and data is not None
            and is_small_integer(data))


def _without(region: Region, absent: set[str]) -> Region:
    """Return a function body in which some inputs are left out."""
    if any(name in absent for subs in region.subregions.values() for sub in subs.values() for name in sub.free):
        raise UnsupportedError("a function uses an absent input in a subgraph", code="input", where=region.name)
    nodes = []
    for node in region.nodes:
        if any(name in absent for name in node.input):
            changed = NodeProto()
            changed.CopyFrom(node)
            for index, name in enumerate(node.input):
                changed.input[index] = "" if name in absent else name
            node = changed
        nodes.append(node)
    return Region(region.name, nodes, region.inputs, region.outputs, subregions=region.subregions)
