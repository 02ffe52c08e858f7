"""The graph: values, nodes and closed subgraphs, which only this file edits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flowgrad.ir.bulk import bulk, dropped
from flowgrad.ir.errors import InputError, ValidationError, suggestion
from flowgrad.ir.limits import Limits, check_extent, check_time, limits_or_default
from flowgrad.ir.node import BUFFER as BUFFER
from flowgrad.ir.node import CONSTANT as CONSTANT
from flowgrad.ir.node import DEFAULT as DEFAULT
from flowgrad.ir.node import ENTRIES as ENTRIES
from flowgrad.ir.node import FEEDABLE as FEEDABLE
from flowgrad.ir.node import INITIALIZER as INITIALIZER
from flowgrad.ir.node import INLINE_ELEMENTS as INLINE_ELEMENTS
from flowgrad.ir.node import INPUT as INPUT
from flowgrad.ir.node import LITERAL as LITERAL
from flowgrad.ir.node import OUTPUT as OUTPUT
from flowgrad.ir.node import PARAMETER as PARAMETER
from flowgrad.ir.node import SYMBOLIC_ELEMENTS as SYMBOLIC_ELEMENTS
from flowgrad.ir.node import Array as Array
from flowgrad.ir.node import Attribute as Attribute
from flowgrad.ir.node import Node as Node
from flowgrad.ir.node import Origin as Origin
from flowgrad.ir.node import Value as Value
from flowgrad.ir.node import frozen
from flowgrad.ir.node import same_array as same_array
from flowgrad.ir.node import symbolic_of as symbolic_of
from flowgrad.ir.order import topological
from flowgrad.ir.types import UNKNOWN, Dim, DimLike, Type, type_of

if TYPE_CHECKING:
    import networkx as nx


ENTRY_BYTES = 900
"""What an entry takes in memory with its values, names and uses, about."""

MOST_RESOLVED = 256
"""How many types a graph remembers to have checked."""


class Graph:
    """A directed acyclic graph of operators with inputs, outputs and constants.

    All editing goes through the methods below; each bumps ``version``. ``entries`` holds every Node by its key, ``dag`` is
    the same as a networkx graph. ``pinned`` holds the names of values that survive every pass. ``limits`` are those that
    it was read with (else the default ones): every type in it keeps to them, and so do passes and transforms.
    """

    def __init__(self, name: str = "graph", limits: Limits | None = None) -> None:
        self._constants: dict[int, Node] = {}
        self.entries: dict[int, Node] = {}
        self.name = name
        self.limits = limits_or_default(limits)
        self.version = 0
        self.metadata: dict[str, str] = {}
        self.origins: list[Origin] = [Origin("", (), ())]
        self.values: dict[str, Value] = {}
        self.pinned: dict[str, None] = {}
        self._inputs: dict[int, Node] = {}
        self._outputs: dict[int, Node] = {}
        self._literals: dict[tuple[Any, ...], Value] = {}
        self._next_key = 0
        self._next_dim = 0
        self._name_counts: dict[str, int] = {}
        self._order: list[Node] | None = None
        self._has_removed = False  # nodes that still stand in the order
        self._owners: set[int] = set()
        self._resolved: dict[int, Type] = {}  # static types that keep to the limits, by identity: many values share one
        self._dag: nx.MultiDiGraph[int] | None = None

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ending():  # the names of modules are None by then
            arrays = [node.data.nbytes for node in self._constants.values() if node.data is not None]
            dropped(sum(arrays) + ENTRY_BYTES * len(self.entries))

    # ---- looking ----------------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[Value]:
        """The values of the Input entries, in order."""
        return [n.output() for n in self._inputs.values()]

    @property
    def outputs(self) -> list[Value]:
        """The values that are outputs, in order; the entries (with the output names) are ``output_entries``."""
        return [n.input(0) for n in self._outputs.values()]

    @property
    def output_entries(self) -> list[Node]:
        return list(self._outputs.values())

    @property
    def constants(self) -> list[Value]:
        """The values of the Constant entries (literals, initializers, parameters), in order of creation."""
        return [n.output() for n in self._constants.values()]

    @property
    def parameters(self) -> list[Value]:
        """The constants that can be fed and keep their value as default: named in ``wrt``, or inputs of the file."""
        return [n.output() for n in self._constants.values() if n.role in FEEDABLE]

    def value(self, name: str) -> Value:
        """Return the value called ``name``; InputError with a suggestion if there is none."""
        if name not in self.values:
            raise InputError(f"no value {name!r} in graph {self.name!r}{suggestion(name, self.values)}", code="name")
        return self.values[name]

    @property
    def dag(self) -> nx.MultiDiGraph[int]:
        """The graph for any algorithm of networkx: made at first use, and kept in step with every edit from then on.

        Its keys are integers, ``dag.nodes[key]["entry"]`` is the Node, an edge's key is the slot it feeds (captures count
        -1, -2, ...) and its data holds the value.
        """
        if self._dag is None:
            import networkx as nx

            self._dag = nx.MultiDiGraph()
            self._dag.add_nodes_from((key, {"entry": node}) for key, node in self.entries.items())
            self._dag.add_edges_from((value.producer.key, key, slot, {"value": value})
                                     for key, node in self.entries.items() for slot, value in node.slots)
        return self._dag

    @property
    def has_subgraphs(self) -> bool:
        """True if a node has subgraphs."""
        return bool(self._owners)

    def nodes(self) -> list[Node]:
        """Return all op nodes (no entries) in a topological order that depends on the graph alone."""
        if self._order is None:
            self._order = topological(self.entries, self.name)
        elif self._has_removed:
            self._order = [node for node in self._order if node.key in self.entries]
        self._has_removed = False
        return list(self._order)

    def __len__(self) -> int:
        """Return the number of op nodes."""
        return len(self.entries) - len(self._inputs) - len(self._outputs) - len(self._constants)

    def walk(self) -> Iterator[tuple[Graph, Node]]:
        """Yield every op node with its graph, those of subgraphs after their owner."""
        if not self.has_subgraphs:
            for alone in self.nodes():
                yield self, alone
            return
        stack: list[tuple[Graph, Iterator[Node]]] = [(self, iter(self.nodes()))]
        while stack:
            graph, nodes = stack[-1]
            node = next(nodes, None)
            if node is None:
                stack.pop()
                continue
            yield graph, node
            stack.extend((g, iter(g.nodes())) for g in reversed(node.subgraphs.values()))

    # ---- names, dims, origins -----------------------------------------------------------------------------------------

    def unique_output_name(self, wanted: str) -> str:
        """Return ``wanted``, or the first of ``wanted_1``, ... that no output has."""
        taken = {entry.name for entry in self._outputs.values()}
        name, count = wanted, 0
        while name in taken:
            count += 1
            name = f"{wanted}_{count}"
        return name

    def unique_name(self, base: str) -> str:
        """Return ``base``, or ``base_1``, ``base_2``, ... if it is taken."""
        base = base or "value"
        if base not in self.values:
            return base
        count = self._name_counts.get(base, 0)
        while True:
            count += 1
            name = f"{base}_{count}"
            if name not in self.values:
                self._name_counts[base] = count
                return name

    def fresh_dim(self) -> Dim:
        """Return a named dim that nothing in this graph uses yet; such names begin with ``_d``."""
        self._next_dim += 1
        return Dim.named(f"_d{self._next_dim}")

    def reserve_dims(self) -> None:
        """Make sure that ``fresh_dim`` gives no name that a type of this graph has, after values were read from a file."""
        types = {v.type for v in self.values.values()}
        dims = {d for t in types for d in t.shape or () if isinstance(d, Dim)}
        numbers = [int(n[2:]) for d in dims for n in d.names() if n[:2] == "_d" and n[2:].isdecimal() and len(n) < 20]
        self._next_dim = max(numbers, default=self._next_dim)

    def resolve(self, type_: Type, where: str = "") -> Type:
        """Return ``type_`` with a fresh named dim for every extent that is UNKNOWN, or too large an expression.

        Raises LimitError for a rank or an extent beyond the limits, ValidationError for a negative extent.
        """
        shape, limits = type_.shape, self.limits
        if shape is None:
            return type_
        if len(shape) > limits.rank:
            limits.check("rank", len(shape), where)
        is_plain = is_static = True
        for dim in shape:
            if isinstance(dim, int):
                if not 0 <= dim <= limits.dim:
                    check_extent(dim, limits, where)
                continue
            is_static = False
            if dim is UNKNOWN or dim.size > limits.dim_terms:
                is_plain = False
        if is_static:
            if len(self._resolved) >= MOST_RESOLVED:
                self._resolved.clear()
            self._resolved[id(type_)] = type_
        return type_ if is_plain else Type(type_.dtype, tuple([self._named(d) for d in shape]))

    def _named(self, dim: DimLike) -> DimLike:
        if isinstance(dim, int) or (dim is not UNKNOWN and dim.size <= self.limits.dim_terms):
            return dim
        return self.fresh_dim()

    def new_origin(self, pass_name: str, nodes: Iterable[Node]) -> int:
        """Record that ``pass_name`` makes nodes out of ``nodes``; returns the id to give them."""
        nodes = list(nodes)
        self.origins.append(Origin(pass_name, tuple([n.label for n in nodes]), tuple([n.origin for n in nodes])))
        return len(self.origins) - 1

    # ---- adding -----------------------------------------------------------------------------------------------------

    def add_input(self, name: str, type_: Type) -> Value:
        """Add a graph input. Raises ValidationError if the name is taken."""
        self._check_free(name)
        type_ = self.resolve(type_, name)
        node = self._add_entry(INPUT)
        value = self._add_value(name, type_, node, 0)
        node.outputs = (value,)
        self._inputs[node.key] = node
        return value

    def add_constant(self, data: Any, name: str = "", role: str = LITERAL) -> Value:
        """Add a constant, or return the anonymous literal that is equal to it.

        A literal without a name is interned if it is small; a large one is named ``constant``.
        """
        array = np.asarray(data)
        type_ = type_of(array)
        array = array if array.dtype == type_.dtype.numpy else array.astype(type_.dtype.numpy)
        anonymous = role == LITERAL and not name
        literal = (type_, array.tobytes()) if anonymous and array.size <= INLINE_ELEMENTS and array.dtype != object else None
        if literal is not None and literal in self._literals:
            return self._literals[literal]
        self._check_free(name)
        node = self._add_entry(CONSTANT)
        node.data, node.role = frozen(array), role
        value = self._add_value("" if literal else name or self.unique_name("constant"), type_, node, 0)
        value.symbolic = None if role in FEEDABLE else symbolic_of(array)
        node.outputs = (value,)
        self._constants[node.key] = node
        if literal is not None:
            self._literals[literal] = value
        return value

    def add_output(self, value: Value, name: str = "") -> Node:
        """Make ``value`` an output called ``name`` (default: its own name)."""
        node = self._add_entry(OUTPUT)
        node.name = name or value.name
        self._outputs[node.key] = node
        self._connect(node, (value,), ())
        return node

    def add_node(
        self,
        op: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[tuple[str, Type] | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        captures: Sequence[Value] = (),
        subgraphs: Mapping[str, Graph] | None = None,
        origin: int = 0,
        name: str = "",
    ) -> Node:
        """Add a node; ``outputs`` gives name and type of each output, None for one left out.

        Output names must be free. This checks nothing else: see ``verify`` and ``Builder``.
        """
        values, resolved = self.values, self._resolved
        named: list[tuple[str, Type] | None] = []
        for given in outputs:
            if given is not None:
                if given[0] in values:
                    self._check_free(given[0])
                if id(given[1]) not in resolved:
                    given = given[0], self.resolve(given[1], f"%{given[0]} = {op}")
            named.append(given)
        if len(named) > 1:
            names = [o[0] for o in named if o is not None]
            if len(set(names)) < len(names):
                raise ValidationError(f"two outputs of {op} have the same name", code="name", where=names[0])
        node = self._add_entry(op)
        node.origin, node.name = origin, name
        if attributes:
            node.attributes = dict(attributes)
        if subgraphs:
            self._own(node, subgraphs)
        made: list[Value | None] = []
        for index, given in enumerate(named):
            made.append(None if given is None else self._new_value(given[0], given[1], node, index))
        node.outputs = tuple(made)
        self._connect(node, tuple(inputs), tuple(captures))
        if self._order is not None:
            self._order.append(node)  # all that it needs is there, and no key is greater
        return node

    def _add_entry(self, op: str) -> Node:
        check_time()
        key = self._next_key
        node = self.entries[key] = Node(key, op)
        self._next_key = key + 1
        self.version += 1
        if self._dag is not None:
            self._dag.add_node(key, entry=node)
        return node

    def _own(self, node: Node, subgraphs: Mapping[str, Graph]) -> None:
        node.subgraphs = dict(subgraphs)
        if subgraphs:
            self._owners.add(node.key)
        else:
            self._owners.discard(node.key)

    def _check_free(self, name: str) -> None:
        """Raise before anything is added, so that a refused addition leaves the graph as it was."""
        if name and name in self.values:
            raise ValidationError(f"two values are called {name!r}", code="name", where=name)

    def _add_value(self, name: str, type_: Type, node: Node, index: int) -> Value:
        self._check_free(name)
        return self._new_value(name, type_, node, index)

    def _new_value(self, name: str, type_: Type, node: Node, index: int) -> Value:
        value = Value(name, type_, node, index)
        if id(type_) not in self._resolved:
            self._keep_clear_of(type_)
        if name:
            self.values[name] = value
        return value

    def _keep_clear_of(self, type_: Type) -> None:
        """See to it that no fresh dim gets a name that a type from elsewhere brings along."""
        for dim in type_.shape or ():
            for name in dim.names() if isinstance(dim, Dim) else ():
                if name.startswith("_d") and name[2:].isdecimal() and len(name) < 20:
                    self._next_dim = max(self._next_dim, int(name[2:]))

    # ---- editing ----------------------------------------------------------------------------------------------------

    def set_inputs(self, node: Node, inputs: Sequence[Value | None], captures: Sequence[Value] | None = None) -> None:
        """Replace all inputs (and captures, if given) of a node or Output entry."""
        captures = node.captures if captures is None else captures
        self._order = None
        self._disconnect(node)
        self._connect(node, tuple(inputs), tuple(captures))

    def replace_uses(self, old: Value, new: Value, only: Callable[[Node], bool] | None = None) -> None:
        """Let every user of ``old`` (or those that ``only`` accepts) use ``new`` instead."""
        slots: dict[Node, list[int]] = {}
        for (_, slot), node in old.uses.items():
            slots.setdefault(node, []).append(slot)
        for node, found in slots.items():
            if old is not new and (only is None or only(node)):
                self._repoint(node, old, new, found)

    def set_attributes(self, node: Node, attributes: Mapping[str, Attribute]) -> None:
        """Replace all attributes of a node."""
        node.attributes = dict(attributes)
        self.version += 1

    def set_op(self, node: Node, op: str, attributes: Mapping[str, Attribute]) -> None:
        """Turn a node into another op with the same inputs and outputs."""
        node.op, node.attributes = op, dict(attributes)
        self.version += 1

    def set_adjoint_rule(self, node: Node, rule: Callable[..., Any] | None) -> None:
        """Give a node another adjoint rule than its op's. Its results are pinned, so that every pass lets it stand."""
        node.adjoint_rule = rule
        self.version += 1
        for value in node.results:
            self.pin(value)

    def set_subgraphs(self, node: Node, subgraphs: Mapping[str, Graph], captures: Sequence[Value]) -> None:
        """Replace the subgraphs of a node together with what they capture."""
        self._own(node, subgraphs)
        self.set_inputs(node, node.inputs, captures)

    def set_output(self, node: Node, index: int, name: str, type_: Type) -> Value:
        """Add the output ``index`` that a node did not have so far (absent ones before it stay absent)."""
        outputs = list(node.outputs) + [None] * (index + 1 - len(node.outputs))
        if outputs[index] is not None:
            raise ValidationError(f"{node.op} has an output {index} already", code="output", where=node.label)
        value = self._add_value(name, self.resolve(type_, name), node, index)
        outputs[index] = value
        node.outputs = tuple(outputs)
        self.version += 1
        return value

    def drop_output(self, value: Value) -> None:
        """Take away an output that nobody uses; trailing absent outputs vanish."""
        node = value.producer
        if value.uses:
            raise ValidationError(f"%{value.name} is still used", code="output", where=node.label)
        outputs = [None if v is value else v for v in node.outputs]
        while outputs and outputs[-1] is None:
            outputs.pop()
        node.outputs = tuple(outputs)
        self.values.pop(value.name, None)
        self.version += 1

    def adopt(self, old: Value, new: Value) -> None:
        """Let the node that produces ``new`` produce ``old`` instead, with all users of both; ``new`` vanishes.

        So a replacement keeps name and identity of what it replaces. ``new`` must come from an op node.
        """
        source, target = old.producer, new.producer
        if target.op in ENTRIES or source is target:
            raise ValidationError(f"%{new.name} cannot take the place of %{old.name}", code="adopt")
        self.replace_uses(new, old)
        self._order = None
        if self._dag is not None:
            self._dag.remove_edges_from([(source.key, key, slot) for key, slot in old.uses])
            self._dag.add_edges_from([(target.key, key, slot, {"value": old}) for key, slot in old.uses])
        source.outputs = (*source.outputs[: old.index], None, *source.outputs[old.index + 1 :])
        target.outputs = (*target.outputs[: new.index], old, *target.outputs[new.index + 1 :])
        old.producer, old.index = target, new.index
        old.symbolic = old.symbolic if new.symbolic is None else new.symbolic
        self.values.pop(new.name, None)
        self.version += 1

    def pin(self, value: Value) -> None:
        """Let a named value survive every pass: it is never removed, merged into another or renamed."""
        if value.name and value.name not in self.pinned:
            self.pinned[value.name] = None
            self.version += 1

    def set_type(self, value: Value, type_: Type) -> None:
        """Give a value a (more precise) type."""
        type_ = self.resolve(type_, value.name)
        value.members = None
        if type_ != value.type:
            value.type = type_
            self.version += 1

    def set_role(self, value: Value, role: str, name: str = "") -> None:
        """Give a constant another role, naming it if it has no name."""
        node = value.producer
        if node.op != CONSTANT:
            raise ValidationError(f"%{value.name} is no constant", code="role")
        if not value.name:
            self._forget_literal(value)
            self.rename(value, self.unique_name(name or "constant"))
        node.role = role
        self.version += 1

    def set_data(self, value: Value, data: Array) -> None:
        """Give a named constant other data; its type follows."""
        node = value.producer
        if node.op != CONSTANT or not value.name:
            raise ValidationError(f"%{value.name} is no named constant", code="role")
        node.data = frozen(np.asarray(data))
        value.type, value.symbolic = type_of(node.data), symbolic_of(node.data)
        self.version += 1

    def rename(self, value: Value, name: str) -> None:
        """Rename a value; outputs that were called like it keep their name."""
        if name in self.values:
            raise ValidationError(f"two values are called {name!r}", code="name", where=name)
        self.values.pop(value.name, None)
        if value.name in self.pinned:
            del self.pinned[value.name]
            self.pinned[name] = None
        value.name = name
        self.values[name] = value
        self.version += 1

    def remove(self, node: Node) -> None:
        """Remove a node or entry whose outputs nobody uses."""
        for value in node.outputs:
            if value is not None and value.uses:
                raise ValidationError(f"the outputs of {node!r} are still used", code="remove", where=node.label)
        self._disconnect(node)
        del self.entries[node.key]
        self._has_removed = True
        self._owners.discard(node.key)
        if self._dag is not None:
            self._dag.remove_node(node.key)
        for value in node.results:
            self.values.pop(value.name, None)
            if node.op == CONSTANT and not value.name:
                self._forget_literal(value)
        for table in (self._inputs, self._outputs, self._constants):
            table.pop(node.key, None)
        self.version += 1

    def reorder_outputs(self, entries: Sequence[Node]) -> None:
        """Put the Output entries (all of them) in the given order."""
        self._outputs = {n.key: n for n in entries}
        self.version += 1

    def reorder(self, nodes: Sequence[Node]) -> None:
        """Let ``nodes()`` give all op nodes in this order, a topological one: they get new keys."""
        entries = [*self._inputs.values(), *self._constants.values(), *nodes, *self._outputs.values()]
        if len(entries) != len(self.entries):
            raise ValidationError(f"{len(entries)} entries are ordered, the graph has {len(self.entries)}", code="order")
        owners = {node for node in nodes if node.key in self._owners}
        for node in entries:
            for value in node.results:
                value.uses = {}
        for node in entries:
            node.key = self._next_key
            self._next_key += 1
            for slot, value in node.slots:
                value.uses[node.key, slot] = node
        self.entries = {node.key: node for node in entries}
        self._inputs, self._constants, self._outputs = (
            {node.key: node for node in table.values()} for table in (self._inputs, self._constants, self._outputs))
        self._owners = {node.key for node in owners}
        self._dag = self._order = None
        self.version += 1

    def reorder_inputs(self, values: Sequence[Value]) -> None:
        """Put the inputs (all of them) in the given order."""
        self._inputs = {v.producer.key: v.producer for v in values}
        self.version += 1

    def arrange_outputs(self, node: Node, outputs: Sequence[Value | tuple[str, Type] | None]) -> None:
        """Give a node the listed outputs in this order: present ones (the rest must be unused) or (name, type) of new ones."""
        kept = {id(v) for v in outputs if isinstance(v, Value)}
        for value in node.results:
            if id(value) in kept:
                continue
            if value.uses:
                raise ValidationError(f"%{value.name} is still used", code="output", where=node.label)
            self.values.pop(value.name, None)
        arranged: list[Value | None] = []
        for index, given in enumerate(outputs):
            if isinstance(given, tuple):
                arranged.append(self._add_value(given[0], self.resolve(given[1], given[0]), node, index))
                continue
            if given is not None:
                given.index = index
            arranged.append(given)
        node.outputs = tuple(arranged)
        self.version += 1

    def _forget_literal(self, value: Value) -> None:
        data = value.producer.data
        if data is not None and self._literals.get((value.type, data.tobytes())) is value:
            del self._literals[value.type, data.tobytes()]

    def _connect(self, node: Node, inputs: tuple[Value | None, ...], captures: tuple[Value, ...]) -> None:
        node.inputs, node.captures = inputs, captures
        key = node.key
        for slot, value in enumerate(inputs):
            if value is not None:
                value.uses[key, slot] = node
        for index, value in enumerate(captures):
            value.uses[key, -1 - index] = node
        if self._dag is not None:
            self._dag.add_edges_from((v.producer.key, key, slot, {"value": v}) for slot, v in node.slots)
        self.version += 1

    def _repoint(self, node: Node, old: Value, new: Value, slots: Sequence[int]) -> None:
        """Let ``slots`` of a node take another value; the other edges stay, of which there may be thousands."""
        inputs, captures = list(node.inputs), list(node.captures)
        self._order = None
        for slot in slots:
            if slot >= 0:
                inputs[slot] = new
            else:
                captures[-1 - slot] = new
            self._unlink(old, node, slot)
            self._link(new, node, slot)
        node.inputs, node.captures = tuple(inputs), tuple(captures)
        self.version += 1

    def _disconnect(self, node: Node) -> None:
        for slot, value in node.slots:
            self._unlink(value, node, slot)

    def _link(self, value: Value, node: Node, slot: int) -> None:
        value.uses[node.key, slot] = node
        if self._dag is not None:
            self._dag.add_edge(value.producer.key, node.key, key=slot, value=value)

    def _unlink(self, value: Value, node: Node, slot: int) -> None:
        del value.uses[node.key, slot]
        if self._dag is not None:
            self._dag.remove_edge(value.producer.key, node.key, key=slot)

    # ---- copying ----------------------------------------------------------------------------------------------------

    @bulk
    def copy(self, *, deep: bool = True) -> Graph:
        """Return an independent copy with the same keys, names and origins; constant arrays are shared.

        Unless ``deep``, its nodes hold the very subgraphs of this one: the caller sees to it that in the end each is
        held once. Copying them at every level of nesting would cost their size times their depth.
        """
        check_time()
        other = Graph(self.name, self.limits)
        other.metadata = dict(self.metadata)
        other.origins = list(self.origins)
        other.pinned = dict(self.pinned)
        mapping: dict[Value, Value] = {}
        order, values = self.nodes(), other.values
        for node in (*self._inputs.values(), *self._constants.values(), *order, *self._outputs.values()):
            twin = other.entries[node.key] = node.twin(mapping)
            if node.subgraphs:
                other._own(twin, {name: sub.copy() if deep else sub for name, sub in node.subgraphs.items()})
            for value in twin.outputs:
                if value is not None and value.name:
                    values[value.name] = value
        for table in ("_inputs", "_outputs", "_constants"):
            mine: dict[int, Node] = getattr(self, table)
            setattr(other, table, {key: other.entries[key] for key in mine})
        other._literals = {k: mapping[v] for k, v in self._literals.items()}
        other._next_key, other._next_dim = self._next_key, self._next_dim
        other._name_counts = dict(self._name_counts)
        other.version = self.version
        other._order = [other.entries[node.key] for node in order]
        return other
