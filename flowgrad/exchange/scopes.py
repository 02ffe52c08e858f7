"""GraphProtos as regions: what each defines, what it takes from outside, and which initializers move to the top."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from flowgrad.exchange.external import ExternalFolder
from flowgrad.exchange.tensors import array_of, dense_of
from flowgrad.ir.errors import LimitError, UnsupportedError, ValidationError
from flowgrad.ir.graph import INLINE_ELEMENTS, Array
from flowgrad.ir.limits import Limits
from flowgrad.ir.ops.registry import Trait, find_op

SUBGRAPH_DEPTH = 32
"""How deep subgraphs may be nested, after functions are inlined; the same as in ONNX Runtime."""


_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)

HoistKey = tuple[int, str]  # the id of a region and the name of one of its initializers


KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
"""The metadata by which a file says what an initializer is: PARAMETER, BUFFER or CONSTANT_TENSOR."""


@dataclass
class Region:
    """The nodes of a graph, subgraph or function body in topological order, with the names they define and miss.

    ``initializers`` are arrays by name; ``free`` are the names that nodes or outputs use and nothing here defines;
    ``hoisted`` are the initializers, here and further in, that shall lie in the outermost graph; ``subregions`` holds,
    for the index of a node, its subgraphs by attribute name; ``weights`` are those of ``free`` that are used as weights only.
    """

    name: str
    nodes: list[NodeProto]
    inputs: list[str]
    outputs: list[str]
    initializers: dict[str, Array] = field(default_factory=dict)
    free: list[str] = field(default_factory=list)
    hoisted: list[HoistKey] = field(default_factory=list)
    subregions: dict[int, dict[str, Region]] = field(default_factory=dict)
    declared: dict[str, list[onnx.TypeProto]] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)

    def walk(self) -> Iterator[NodeProto]:
        """Yield all nodes, those of subregions too."""
        stack = [self]
        while stack:
            region = stack.pop()
            yield from region.nodes
            stack.extend(sub for subs in region.subregions.values() for sub in subs.values())


def not_trained(proto: GraphProto) -> set[str]:
    """Return the initializers that a file marks as buffers or constants: PyTorch's exporter tells them from parameters."""
    return {info.name for info in proto.value_info for mark in info.metadata_props if mark.key == KIND and mark.value != "PARAMETER"}


class RegionReader:
    """Makes regions from protos."""

    def __init__(self, folder: ExternalFolder, limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        self.hoisted: dict[HoistKey, Array] = {}
        self.literals: set[HoistKey] = set()
        """Those of ``hoisted`` that Constant nodes held."""

    def graph(self, proto: GraphProto, depth: int = 0, hoists: bool = True) -> Region:
        """Return the region of a GraphProto and of all graphs inside it.

        With ``hoists``, initializers of subgraphs move to ``self.hoisted``, small integers apart: no derivative can
        ask for those, and shapes depend on them. So do weights that Constant nodes hold.
        """
        most = min(SUBGRAPH_DEPTH, self.limits.depth)
        if depth > most:
            raise LimitError(f"subgraphs are nested more than {most} deep", code="depth", where=proto.name)
        infos = [*proto.value_info, *proto.output, *proto.input]
        region = Region(
            proto.name, list(proto.node), [i.name for i in proto.input], [o.name for o in proto.output],
            self._initializers(proto),
        )
        for entry in infos:
            if entry.HasField("type"):
                region.declared.setdefault(entry.name, []).append(entry.type)
        self._finish(region, depth, hoists)
        if hoists and depth:
            for name in [n for n, array in region.initializers.items() if not is_small_integer(array)]:
                self.hoisted[id(region), name] = region.initializers.pop(name)
                region.hoisted.append((id(region), name))
            self._hoist_weights(region)
        return region

    def _hoist_weights(self, region: Region) -> None:
        """Move the floats of Constant nodes that products, convolutions and cells take as operands to ``self.hoisted``."""
        others = _used_otherwise(region)
        region.weights = set(region.free) - others
        found = {n.output[0]: n.attribute[0].t for n in region.nodes if _holds_floats(n) and n.output[0] not in others}
        moved = {name: array for name, tensor in found.items()
                 if not np.isin(array := array_of(tensor, self.folder, self.limits), (0, 1)).all()}  # masks stay known
        for name, array in moved.items():
            self.hoisted[id(region), name] = array
            self.literals.add((id(region), name))
            region.hoisted.append((id(region), name))
        if moved:
            kept = [i for i, n in enumerate(region.nodes) if not (n.op_type == "Constant" and n.output[0] in moved)]
            region.subregions = {new: region.subregions[old] for new, old in enumerate(kept) if old in region.subregions}
            region.nodes = [region.nodes[i] for i in kept]

    def function(self, proto: onnx.FunctionProto, strict: bool = True) -> Region:
        """Return the region of a function body, which may use nothing from outside.

        Unless ``strict``, outputs that nothing defines are let pass: the standard leaves out those not asked for.
        """
        region = Region(proto.name, list(proto.node), list(proto.input), list(proto.output))
        self._finish(region, 0, hoists=False)
        missing = [n for n in region.free if strict or n not in region.outputs]
        if missing:
            raise ValidationError(f"nothing defines {missing[0]!r} in function {proto.name!r}", code="dangling",
                                  where=missing[0])
        return region

    def _initializers(self, proto: GraphProto) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for tensor in proto.initializer:
            _new(found, tensor.name, array_of(tensor, self.folder, self.limits))
        for sparse in proto.sparse_initializer:
            _new(found, sparse.values.name, dense_of(sparse, self.folder, self.limits))
        return found

    def _finish(self, region: Region, depth: int, hoists: bool) -> None:
        if len(set(region.inputs)) != len(region.inputs):
            raise ValidationError(f"graph {region.name!r} has two inputs of one name", code="name", where=region.name)
        for index, node in enumerate(region.nodes):
            graphs = _graph_attributes(node)
            if graphs:
                region.subregions[index] = {a.name: self.graph(a.g, depth + 1, hoists) for a in graphs}
        region.free = _sorted_with_free_names(region)
        region.hoisted = [k for subs in region.subregions.values() for sub in subs.values() for k in sub.hoisted]


def _holds_floats(node: NodeProto) -> bool:
    """Return whether a node is a Constant of several floats."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1 or len(node.output) != 1:
        return False
    held = node.attribute[0]
    return (held.name == "value" and not held.ref_attr_name and held.t.data_type in _FLOATS and len(held.t.dims) > 0
            and math.prod(held.t.dims) > 1)


def _used_otherwise(region: Region) -> set[str]:
    """Return the names that something in a region uses as what is no weight."""
    names = set(region.outputs)
    for index, node in enumerate(region.nodes):
        names.update(name for slot, name in enumerate(node.input) if name and not _takes_weights(node, slot))
        for sub in region.subregions.get(index, {}).values():
            names.update(name for name in sub.free if name not in sub.weights)
    return names


def _takes_weights(node: NodeProto, slot: int) -> bool:
    """Return whether an operator may take weights in a slot: it sums over products with them, or arranges them anew."""
    definition = find_op(node.op_type) if node.domain in ("", "ai.onnx") else None
    if definition is None or "" in node.input[:slot]:
        return False
    arranges = Trait.LINEAR in definition.traits
    return (slot > 0 or arranges) and Trait.BROADCASTS not in definition.traits and slot not in definition.settings


def is_small_integer(array: Array) -> bool:
    """True for what may be copied into every subgraph that uses it: at most 64 integers or truth values."""
    return array.dtype.kind in "iub" and array.size <= INLINE_ELEMENTS


def _new(found: dict[str, Array], name: str, array: Array) -> None:
    if not name or name in found:
        raise ValidationError(f"two initializers are called {name!r}" if name else "an initializer without a name",
                              code="name", where=name)
    found[name] = array


def _graph_attributes(node: NodeProto) -> list[AttributeProto]:
    if not node.attribute:
        return []
    graphs = [a for a in node.attribute if a.type == AttributeProto.GRAPH or a.HasField("g")]
    if any(a.graphs or a.type == AttributeProto.GRAPHS for a in node.attribute):
        raise UnsupportedError("attributes that hold lists of graphs are not supported", code="graphs", where=node.name)
    return graphs


def used_names(region: Region, index: int) -> list[str]:
    """Return the names that a node of a region needs: its inputs, then what its subgraphs take from outside.

    A Gradient needs the tensors that its attributes name.
    """
    node = region.nodes[index]
    names = [n for n in node.input if n]
    if node.op_type == "Gradient" and node.domain == "ai.onnx.preview.training":
        names += [n.decode(errors="replace") for a in node.attribute for n in (a.s, *a.strings) if n]
    if index in region.subregions:
        for sub in region.subregions[index].values():
            names += sub.free
    return names


def _sorted_with_free_names(region: Region) -> list[str]:
    """Put the nodes into topological order, keeping the file's order where it is one; return the names used from outside.

    Raises ValidationError for a cycle.
    """
    maker = _makers(region)
    used = [used_names(region, index) for index in range(len(region.nodes))]
    if any(maker.get(name, -1) >= index for index, names in enumerate(used) for name in names):
        order = _order(region, maker, used)
        region.subregions = {new: region.subregions[old] for new, old in enumerate(order) if old in region.subregions}
        region.nodes, used = [region.nodes[i] for i in order], [used[i] for i in order]
    given = {*region.inputs, *region.initializers}
    outside = (n for names in (*used, region.outputs) for n in names if n not in maker and n not in given)
    return list(dict.fromkeys(outside))


def _order(region: Region, maker: Mapping[str, int], used: Sequence[Sequence[str]]) -> list[int]:
    """Return the places of the nodes in topological order; ValidationError for a cycle."""
    sources = [{maker[n] for n in names if n in maker} for names in used]
    waits = [len(found) for found in sources]
    feeds: dict[int, list[int]] = {}
    for index, found in enumerate(sources):
        for source in found:
            feeds.setdefault(source, []).append(index)
    ready = [i for i in reversed(range(len(region.nodes))) if not waits[i]]
    order: list[int] = []
    while ready:
        index = ready.pop()
        order.append(index)
        for target in feeds.get(index, ()):
            waits[target] -= 1
            if not waits[target]:
                ready.append(target)
    if len(order) < len(region.nodes):
        stuck = next(n for i, n in enumerate(region.nodes) if waits[i])
        raise ValidationError(f"the nodes of {region.name!r} depend on each other in a cycle", code="cycle",
                              where=next(iter(stuck.output), stuck.name))
    return order


def _makers(region: Region) -> dict[str, int]:
    maker: dict[str, int] = {}
    given = {*region.inputs, *region.initializers}
    for index, node in enumerate(region.nodes):
        for name in node.output:
            if name and (name in maker or name in given):
                raise ValidationError(f"two values are called {name!r}", code="name", where=name)
            if name:
                maker[name] = index
    return maker

