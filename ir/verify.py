"""Check that a graph keeps every rule of the representation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flowgrad.ir.errors import FlowgradError, ValidationError
from flowgrad.ir.graph import (
    BUFFER,
    CONSTANT,
    DEFAULT,
    ENTRIES,
    FEEDABLE,
    INITIALIZER,
    INLINE_ELEMENTS,
    INPUT,
    LITERAL,
    OUTPUT,
    PARAMETER,
    Graph,
    Node,
    Value,
)
from flowgrad.ir.infer import describe, infer
from flowgrad.ir.ops.registry import REQUIRED, OpDef, opdef
from flowgrad.ir.types import Type, dtype_of, merge_types, type_of

if TYPE_CHECKING:
    import networkx as nx

ROLES = (LITERAL, INITIALIZER, PARAMETER, DEFAULT, BUFFER)


def verify(graph: Graph) -> None:
    """Raise ValidationError for the first rule that ``graph`` or one of its subgraphs breaks, in linear time."""
    pending = [graph]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            raise _broken(f"the subgraph {current.name!r} belongs to two nodes", "subgraph")
        seen.add(id(current))
        pending.extend(_verify_one(current, is_subgraph=current is not graph))


def _verify_one(graph: Graph, is_subgraph: bool) -> list[Graph]:
    _check_entries(graph)
    _check_edges(graph)
    _check_names(graph)
    _check_origins(graph)
    for value in graph.constants:
        _check_constant(graph, value, is_subgraph)
    subgraphs: list[Graph] = []
    done: set[int] = set()
    for node in graph.nodes():
        _check_order(node, done)
        _check_node(node)
        subgraphs.extend(node.subgraphs.values())
        done.add(node.key)
    if len(done) != len(graph):
        raise _broken(f"the order of {graph.name!r} leaves out nodes: edited other than by its methods?", "dag")
    return subgraphs


def _broken(message: str, code: str, node: Node | None = None) -> ValidationError:
    return ValidationError(message, code=code, where="" if node is None else describe(node))


# ---- nodes and edges ----------------------------------------------------------------------------------------------------


def _check_entries(graph: Graph) -> None:
    tables = {INPUT: graph._inputs, OUTPUT: graph._outputs, CONSTANT: graph._constants}
    listed = 0
    for key, node in graph.entries.items():
        if not isinstance(node, Node) or node.key != key:
            raise _broken(f"the entry {key} of {graph.name!r} is not its node", "dag")
        if node.op in ENTRIES:
            listed += 1
            if tables[node.op].get(key) is not node:
                raise _broken(f"an {node.op} entry is not listed in its graph", "dag", node)
            _check_entry_shape(node)
        for index, value in enumerate(node.outputs):
            if value is not None and (value.producer is not node or value.index != index):
                raise _broken(f"%{value.name} does not know that it is output {index} of its node", "dag", node)
    if listed != sum(len(t) for t in tables.values()):
        raise _broken(f"the graph {graph.name!r} lists entries that it does not have", "dag")


def _check_entry_shape(node: Node) -> None:
    takes, gives = (1, 0) if node.op == OUTPUT else (0, 1)
    whole = len(node.inputs) == takes and len(node.outputs) == gives and None not in (*node.inputs, *node.outputs)
    if not whole or node.captures or node.subgraphs or node.attributes:
        raise _broken(f"an {node.op} entry has other inputs or outputs than it should", "dag", node)


def _check_edges(graph: Graph) -> None:
    entries = graph.entries
    slots = uses = 0
    for key, node in entries.items():
        for made in node.results:
            uses += len(made.uses)
        for slot, value in node.slots:
            slots += 1
            source = value.producer
            if entries.get(source.key) is not source:
                raise _broken(f"%{value.name} belongs to another graph", "dag", node)
            if value.index >= len(source.outputs) or source.outputs[value.index] is not value:
                raise _broken(f"%{value.name} is used, and nothing produces it", "dag", node)
            if value.uses.get((key, slot)) is not node:
                raise _broken(f"%{value.name} does not know of this use", "dag", node)
    if slots != uses:
        raise _broken(f"the graph {graph.name!r} has {slots} uses of values and {uses} records of them", "dag")
    if graph._dag is not None:
        _check_dag(graph, graph._dag)


def _check_dag(graph: Graph, dag: nx.MultiDiGraph[int]) -> None:
    """Check that the networkx graph, which somebody has asked for, says the same."""
    if dict(dag.nodes(data="entry")) != graph.entries:
        raise _broken(f"the dag of {graph.name!r} has other nodes than the graph", "dag")
    edges = {(key, slot, source): value for source, key, slot, value in dag.edges(keys=True, data="value")}
    known = {(key, slot, value.producer.key): value for key, node in graph.entries.items() for slot, value in node.slots}
    if edges != known:
        raise _broken(f"the dag of {graph.name!r} has other edges than the graph", "dag")


def _check_order(node: Node, done: set[int]) -> None:
    for value in node.operands:
        source = value.producer
        if source.op not in ENTRIES and source.key not in done:
            raise _broken(f"%{value.name} is used before it is computed", "cycle", node)


# ---- names and origins ----------------------------------------------------------------------------------------------------


def _check_names(graph: Graph) -> None:
    named = 0
    for node in graph.entries.values():
        for value in node.results:
            if not value.name and node.op == CONSTANT:
                continue
            named += 1
            if not value.name:
                raise _broken("a value has no name", "name", node)
            if graph.values.get(value.name) is not value:
                raise _broken(f"two values are called %{value.name}, or it was renamed behind the graph's back", "name",
                              node)
    if named != len(graph.values):
        raise _broken(f"the graph {graph.name!r} knows names that no value has", "name")
    taken: set[str] = set()
    for entry in graph.output_entries:
        if not entry.name or entry.name in taken:
            raise _broken(f"two outputs are called {entry.name!r}" if entry.name else "an output has no name", "name",
                          entry)
        taken.add(entry.name)


def _check_origins(graph: Graph) -> None:
    for node in graph.nodes():
        if not 0 <= node.origin < len(graph.origins):
            raise _broken(f"there is no origin {node.origin}", "origin", node)
    for index, origin in enumerate(graph.origins):
        if any(not 0 <= parent < max(index, 1) for parent in origin.parents):
            raise _broken(f"the origin {index} of {graph.name!r} comes from a later one", "origin")


# ---- constants ------------------------------------------------------------------------------------------------------------


def _check_constant(graph: Graph, value: Value, is_subgraph: bool) -> None:
    node = value.producer
    if node.role not in ROLES:
        raise _broken(f"%{value.name} has the role {node.role!r}, expected one of {', '.join(ROLES)}", "role", node)
    if is_subgraph and node.role in FEEDABLE:
        raise _broken(f"%{value.name} is a parameter inside a subgraph", "role", node)
    data = node.data
    if not isinstance(data, np.ndarray):
        raise _broken(f"the constant %{value.name} has no data", "constant", node)
    if value.type != type_of(data) or data.dtype != value.type.dtype.numpy:
        raise _broken(f"the constant %{value.name} holds {type_of(data)!r}, its type is {value.type!r}", "constant", node)
    if data.dtype == object and not all(isinstance(x, str) for x in data.flat):
        raise _broken(f"the constant %{value.name} holds something other than strings", "constant", node)
    if not value.name:
        interned = graph._literals.get((value.type, data.tobytes()))
        if node.role != LITERAL or data.size > INLINE_ELEMENTS or data.dtype == object or interned is not value:
            raise _broken("only small interned literals need no name", "name", node)


# ---- nodes ----------------------------------------------------------------------------------------------------------------


def _check_node(node: Node) -> None:
    definition = opdef(node.op)
    for name, attribute in node.attributes.items():
        if name in definition.attributes:
            _check_attribute(node, name, attribute, definition.attributes[name])
    most = len(definition.outputs)
    if len(node.outputs) > most and not definition.variadic_outputs:
        raise _broken(f"{node.op} has at most {most} outputs, got {len(node.outputs)}", "arity", node)
    _check_subgraphs(node, definition)
    inferred = _inferred(node)
    for index, value in enumerate(node.outputs):
        if value is not None:
            _check_type(node, value, inferred[index] if index < len(inferred) else None)


def _inferred(node: Node) -> list[Type | None]:
    try:
        return infer(node)
    except FlowgradError as error:
        if error.where:
            raise
        raise type(error)(str(error), code=error.code, where=describe(node)) from error


def _check_type(node: Node, value: Value, inferred: Type | None) -> None:
    if inferred is None:
        raise _broken(f"{node.op} does not give its output {value.index} (%{value.name}) here", "output", node)
    try:
        merge_types(inferred, value.type)
    except ValidationError as error:
        raise _broken(f"%{value.name} is {value.type!r}, and {node.op} gives {inferred!r}", "type", node) from error


def _check_attribute(node: Node, name: str, given: Any, default: Any) -> None:
    kind = type(given)
    if kind is tuple:
        kinds = {type(item) for item in given}
        known = len(kinds) <= 1 and kinds <= {int, float, str, bytes}
    else:
        known = kind in (int, float, str, bytes) or isinstance(given, np.ndarray)
    if isinstance(given, np.ndarray):
        dtype_of(given.dtype)
    if not known:
        raise _broken(f"the attribute {name!r} of {node.op} is {given!r}; attributes are int, float, str, bytes, arrays, "
                      "or tuples of one of the first four", "attribute", node)
    if default is None or default is REQUIRED:
        return
    wanted = int if isinstance(default, bool) else type(default)
    if kind is not wanted and wanted in (int, float, str, bytes, tuple):
        raise _broken(f"the attribute {name!r} of {node.op} is {given!r}, expected {wanted.__name__}", "attribute", node)


def _check_subgraphs(node: Node, definition: OpDef) -> None:
    if not (node.subgraphs or node.captures or definition.subgraphs):
        return
    if set(node.subgraphs) != set(definition.subgraphs):
        raise _broken(f"{node.op} has the subgraphs {sorted(node.subgraphs)}, expected {sorted(definition.subgraphs)}",
                      "subgraph", node)
    if not node.subgraphs and node.captures:
        raise _broken(f"{node.op} has captures and no subgraph", "subgraph", node)
    for name, subgraph in node.subgraphs.items():
        _check_formals(node, name, subgraph)


def _check_formals(node: Node, name: str, subgraph: Graph) -> None:
    inputs = subgraph.inputs
    formals = len(inputs) - len(node.captures)
    rule = opdef(node.op).formals_rule
    if formals < 0 or (rule is not None and formals != len(rule(node))):
        raise _broken(f"{name} has {len(inputs)} inputs, which are not its formal ones and the {len(node.captures)} "
                      f"captures of {node.op}", "subgraph", node)
    for inner, outer in zip(inputs[formals:], node.captures, strict=True):
        try:
            merge_types(inner.type, outer.type)
        except ValidationError as error:
            raise _broken(f"{name} takes the capture %{outer.name}: {outer.type!r} as {inner!r}", "type", node) from error
