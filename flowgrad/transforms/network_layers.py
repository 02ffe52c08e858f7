"""Layers of a feed-forward network as operators: weights, pre-activations, activations and errors, batched over examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import FlowgradError, InputError, suggestion
from flowgrad.ir.graph import CONSTANT, INITIALIZER, Array, Graph, Value
from flowgrad.ir.inline import inline
from flowgrad.ir.ops.registry import Trait, opdef
from flowgrad.ir.types import FLOAT64, Dim, Type
from flowgrad.model import Model
from flowgrad.transforms.topology import ALIASES, Block, Layer, Topology

Activation = Callable[[Builder, Value], Value]


def _applied(op: str, **attributes: float | str) -> Activation:
    return lambda b, a: b.add(op, [a], attributes)


ACTIVATIONS: Mapping[str, Activation] = {
    "identity": lambda b, a: a,
    "logistic": _applied("Sigmoid"),
    "softmax": _applied("Softmax", axis=-1),
    "tanh": _applied("Tanh"),
    "relu": _applied("Relu"),
    "leaky_relu": _applied("LeakyRelu", alpha=0.01),
    "elu": _applied("Elu"),
    "selu": _applied("Selu"),
    "gelu": _applied("Gelu"),
    "silu": _applied("Swish"),
    "mish": _applied("Mish"),
    "softplus": _applied("Softplus"),
    "softsign": _applied("Softsign"),
    "exp": _applied("Exp"),
    "sin": _applied("Sin"),
}
"""The activations that are known by name: h(a) of an array of pre-activations, examples by units."""

ERRORS = ("sum_of_squares", "cross_entropy")

OWN_NAMES = re.compile(r"[azwb]\d+(_\d+)?|[xyt]|errors?")
"""The names of values that a network makes itself."""

DENSE = 64
"""A block is computed as a matrix if that has at most so many entries a link. Adding up single links costs about as much as
two hundred products of a matrix (measured with 32 and 256 examples); a matrix takes memory as well."""

FEW_LAYERS = 8
"""From so many layers sources are read one by one; from more, from joined ones."""


class Assembly:
    """Builds the graph of a network. ``places`` holds, for each parameter, the links whose weights it holds, in its order."""

    def __init__(self, topology: Topology, name: str) -> None:
        self.topology = topology
        self.graph = Graph(name)
        self.b = Builder(self.graph)
        self.batch = Dim.named("N")
        self.places: dict[str, Array] = {}
        self.pre_activations: list[Value] = []
        self.activations: list[Value] = [self.input("x", len(topology.inputs))]
        self._shared = self._shared_parameters()
        self._joined: dict[tuple[int, int], Value] = {}
        widths = [len(topology.inputs), *(len(layer.units) for layer in topology.layers)]
        self._starts = np.concatenate([[0], np.cumsum(widths)])
        """The positions at which the inputs, and then each layer, start."""

    def input(self, name: str, width: int) -> Value:
        """Add an input of examples by ``width``."""
        return self.graph.add_input(name, Type(FLOAT64, (self.batch, width)))

    def run(self) -> Value:
        """Add all layers; return the outputs of the network, ``y``."""
        for number, layer in enumerate(self.topology.layers, 1):
            names = [f"{number}_{i}" for i in range(1, len(layer.blocks) + 1)] if len(layer.blocks) > 1 else [f"{number}"]
            values = [self._block(block, name) for block, name in zip(layer.blocks, names, strict=True)]
            a = self._joined_columns(values, f"a{number}")
            z = self._activation(layer, a, f"z{number}")
            self.pre_activations.append(a)
            self.activations.append(z)
        return self._outputs()

    @property
    def layers(self) -> list[tuple[str, str]]:
        """The names of the pre-activations and activations of each layer."""
        return [(a.name, z.name) for a, z in zip(self.pre_activations, self.activations[1:], strict=True)]

    # ---- weights ----------------------------------------------------------------------------------------------------------

    def _shared_parameters(self) -> dict[str, Value]:
        """Add one parameter, of one element, for each name that links share."""
        found: dict[str, list[int]] = {}
        for link, name in enumerate(self.topology.names):
            if OWN_NAMES.fullmatch(name):
                raise InputError(f"links share a parameter called {name!r}: choose a name that is not like those that a "
                                 "network gives itself (x, y, t, error, a1, z1, w1, b1)", code="parameter")
            if name:
                found.setdefault(name, []).append(link)
        return {name: self._parameter(name, np.array(links), np.array([self.topology.weights[links[0]]]))
                for name, links in found.items()}

    def _parameter(self, name: str, links: Array, data: Array) -> Value:
        self.places[name] = links
        return self.graph.add_constant(data, name, INITIALIZER)

    def _vector(self, name: str, links: Array) -> Value:
        """Return the weights of links in their order: a parameter, or picked from it and from shared ones."""
        names = [self.topology.names[link] for link in links.tolist()]
        own = links[[not shared for shared in names]]
        pool = [self._parameter(name, own, self.topology.weights[own])] if len(own) else []
        if len(own) == len(links):
            return pool[0]
        numbers = {shared: len(own) + i for i, shared in enumerate(dict.fromkeys(n for n in names if n))}
        pool += [self._shared[shared] for shared in numbers]
        places = np.empty(len(links), np.int64)
        places[[not shared for shared in names]] = np.arange(len(own))
        is_shared = np.array([bool(shared) for shared in names])
        places[is_shared] = [numbers[shared] for shared in names if shared]
        joined = self.b.add("Concat", pool, {"axis": 0}) if len(pool) > 1 else pool[0]
        return self.b.Gather(joined, places)

    def _is_own(self, links: Array) -> bool:
        return not any(self.topology.names[link] for link in links.tolist())

    # ---- pre-activations ---------------------------------------------------------------------------------------------------

    def _block(self, block: Block, number: str) -> Value:
        """Return the pre-activations of a block, examples by units."""
        b, width = self.b, len(block.units)
        b.prefix = f"layer{number}"
        if not len(block.links):
            return b.Expand(self._biases(block, f"b{number}"), self._shape(width))
        z = self._read(self.activations, block.sources)
        cells = len(block.sources) * width
        if block.is_complete and self._is_own(block.links):
            weights = self._matrix(block, f"w{number}")
            return b.Gemm(z, weights, self._bias(block, f"b{number}"))
        weights = self._vector(f"w{number}", block.links)
        bias = self._bias(block, f"b{number}")
        if cells <= DENSE * len(block.links):
            flat = b.GatherGrad(b.ints([cells]), weights, block.rows * width + block.columns)
            return b.Gemm(z, b.Reshape(flat, [len(block.sources), width]), bias)
        products = b.Mul(b.Gather(z, block.rows, axis=1), weights)
        total = b.GatherGrad(self._shape(width), products, block.columns, axis=1)
        return total if bias is None else b.Add(total, bias)

    def _matrix(self, block: Block, name: str) -> Value:
        shape = len(block.sources), len(block.units)
        return self._parameter(name, block.links, self.topology.weights[block.links].reshape(shape))

    def _bias(self, block: Block, name: str) -> Value | None:
        """Return the biases of a block, or None if no unit has one."""
        return self._biases(block, name) if len(block.bias_links) else None

    def _biases(self, block: Block, name: str) -> Value:
        """Return the biases of a block, 0 where a unit has none."""
        biases = self._vector(name, block.bias_links)
        if block.has_all_biases:
            return biases
        return self.b.GatherGrad(self.b.ints([len(block.units)]), biases, block.bias_columns)

    def _shape(self, width: int) -> Value:
        """Return the shape of examples by ``width``."""
        return self.b.Concat(self.b.extent(self.activations[0], 0), self.b.ints([width]), axis=0)

    # ---- columns -------------------------------------------------------------------------------------------------------------

    def _read(self, layers: Sequence[Value], positions: Array) -> Value:
        """Return the columns at ``positions``, which rise, of the inputs and layers so far."""
        owners = np.unique(np.searchsorted(self._starts, positions, side="right") - 1)
        if len(owners) <= FEW_LAYERS:
            spans = [(owner, owner + 1) for owner in owners.tolist()]
        else:
            spans = _powers(int(owners[-1]) + 1)
        parts = []
        for low, high in spans:
            start, end = self._starts[low], self._starts[high]
            inside = positions[(positions >= start) & (positions < end)] - start
            if len(inside):
                parts.append(self._columns(self._join(layers, low, high), inside, int(end - start)))
        return self._joined_columns(parts)

    def _join(self, layers: Sequence[Value], low: int, high: int) -> Value:
        """Return layers ``low`` to ``high``, a power of two of them, side by side; from halves, so that all of these together
        cost no more than the number of layers times its logarithm."""
        if high - low == 1:
            return layers[low]
        if (low, high) not in self._joined:
            middle = (low + high) // 2
            halves = self._join(layers, low, middle), self._join(layers, middle, high)  # as deep as the logarithm
            self._joined[low, high] = self.b.Concat(*halves, axis=1)
        return self._joined[low, high]

    def _columns(self, value: Value, columns: Array, width: int) -> Value:
        """Return some columns of ``value``, of which it has ``width``."""
        if len(columns) == width and np.array_equal(columns, np.arange(width)):
            return value
        low, high = int(columns[0]), int(columns[-1]) + 1
        if np.array_equal(columns, np.arange(low, high)):
            return self.b.Slice(value, [low], [high], [1])
        return self.b.Gather(value, columns, axis=1)

    def _joined_columns(self, parts: Sequence[Value], name: str | None = None) -> Value:
        """Return columns side by side, called ``name`` if that is given."""
        if len(parts) > 1:
            return self.b.add("Concat", parts, {"axis": 1}, name=name)
        if name is not None:
            self.graph.rename(parts[0], name)
        return parts[0]

    # ---- activations and outputs ------------------------------------------------------------------------------------------

    def _activation(self, layer: Layer, a: Value, name: str) -> Value:
        self.b.prefix = name
        if isinstance(layer.activation, Model):
            z = self._model_of_one(layer.activation, a)
        elif layer.activation in ACTIVATIONS:
            z = ACTIVATIONS[layer.activation](self.b, a)
        else:
            unit, known = self.topology.nodes[layer.units[0]], (*ACTIVATIONS, *ALIASES)
            raise InputError(f"unit {unit!r} has the unknown activation {layer.activation!r}{suggestion(layer.activation, known)}; "
                             f"known are {', '.join(known)}, and a Model of one input and one output", code="activation")
        if z is not a:
            self.graph.rename(z, name)
        return z

    def _model_of_one(self, model: Model, a: Value) -> Value:
        """Return a model's function of each element of ``a``; InputError unless it is one of single numbers."""
        name, inner = model.graph.name, model.graph
        if len(inner.inputs) != 1 or len(inner.output_entries) != 1:
            raise InputError(f"the activation {name!r} has {len(inner.inputs)} inputs and {len(inner.output_entries)} outputs: "
                             "one of each is expected", code="activation")
        for node in inner.nodes():
            wide = [v for v in node.operands if v.producer.op == CONSTANT and v.type.size != 1]
            if Trait.ELEMENTWISE not in opdef(node.op).traits or wide:
                raise InputError(f"the activation {name!r} is no function of single numbers ({node.op} at {node.label!r}): use "
                                 "elementwise operators and constants of one element", code="activation")
        (found,) = inline(self.b, inner, {inner.inputs[0]: a}, [inner.output_entries[0].input(0)])
        if found.type != a.type:
            raise InputError(f"the activation {name!r} makes {found.type!r} of {a.type!r}: it must keep shape and dtype, "
                             "float64 (model.astype changes it; fg.network(..., dtype=) converts the whole)", code="activation")
        return found if found is not a else self.b.Identity(a)

    def _outputs(self) -> Value:
        """Return the activations of the output units, in their order."""
        self.b.prefix = "y"
        positions = self.topology.position[self.topology.outputs]
        rising = np.sort(positions)
        found = self._read(self.activations, rising)
        if np.array_equal(rising, positions):
            return found
        return self.b.Gather(found, np.searchsorted(rising, positions), axis=1)

    # ---- errors --------------------------------------------------------------------------------------------------------------

    def error(self, error: str | Model, y: Value) -> tuple[Value, Value]:
        """Return the errors E_n of the examples and their sum E; adds the targets ``t`` as an input where they are used."""
        self.b.prefix = "error"
        if isinstance(error, Model):
            each = self._model_of_outputs(error, y)
        elif error == "sum_of_squares":
            deviation = self.b.Sub(y, self.input("t", len(self.topology.outputs)))
            each = self.b.Mul(self.b.ReduceSumSquare(deviation, [1], keepdims=0), 0.5)
        elif error == "cross_entropy":
            each = self._cross_entropy(self.input("t", len(self.topology.outputs)))
        else:
            raise InputError(f"unknown error {error!r}{suggestion(str(error), ERRORS)}; known are {', '.join(ERRORS)}, and a "
                             "Model of y and t", code="error")
        self.graph.rename(each, "errors")
        return each, self.b.add("ReduceSum", [each], {"keepdims": 0}, name="error")

    def _cross_entropy(self, t: Value) -> Value:
        """Return the cross-entropy with t of logistic outputs, each by itself, and of softmax groups, from pre-activations.

        That of logistic outputs is softplus(a) - t a = -t log(y) - (1 - t) log(1 - y).
        """
        b, terms = self.b, []
        places = {unit: i for i, unit in enumerate(self.topology.outputs)}
        for layer, a in zip(self.topology.layers, self.pre_activations, strict=True):
            inside = [(column, places[unit]) for column, unit in enumerate(layer.units.tolist()) if unit in places]
            if not inside:
                continue
            columns, chosen = (np.array(part) for part in zip(*inside, strict=True))
            self._check_canonical(layer, len(inside))
            target = self._columns(t, chosen, len(self.topology.outputs))
            if layer.activation == "softmax":
                terms.append(b.SoftmaxCrossEntropy(a, target))
            else:
                logits = self._columns(a, columns, len(layer.units))
                terms.append(b.ReduceSum(b.Sub(b.Softplus(logits), b.Mul(target, logits)), [1], keepdims=0))
        return b.add("Sum", terms) if len(terms) > 1 else terms[0]

    def _check_canonical(self, layer: Layer, outputs: int) -> None:
        unit = self.topology.nodes[layer.units[0]]
        if layer.activation != "softmax" and layer.activation != "logistic":
            shown = layer.activation if isinstance(layer.activation, str) else layer.activation.graph.name
            raise InputError(f"cross_entropy takes logistic outputs and groups of softmax, and an output has the activation "
                             f"{shown!r}: change it, or take error='sum_of_squares' or a Model of y and t", code="error")
        if layer.activation == "softmax" and outputs != len(layer.units):
            raise InputError(f"of the softmax group of unit {unit!r}, {outputs} of {len(layer.units)} units are outputs: "
                             "cross_entropy takes all or none", code="error")

    def _model_of_outputs(self, model: Model, y: Value) -> Value:
        """Return the errors that a model computes of y, and of t if it takes that: one number an example."""
        inner = model.graph
        names = [v.name for v in inner.inputs]
        if not {"y"} <= set(names) <= {"y", "t"} or len(inner.output_entries) != 1:
            raise InputError(f"an error model has the inputs y and t (or y alone) and one output; {inner.name!r} has "
                             f"({', '.join(names)}) and {len(inner.output_entries)}", code="error")
        fed = {v: y if v.name == "y" else self.input("t", len(self.topology.outputs)) for v in inner.inputs}
        try:
            (found,) = inline(self.b, inner, fed, [inner.output_entries[0].input(0)])
        except FlowgradError as error:
            raise InputError(f"the error model {inner.name!r} does not take y, {y.type!r}: {error.message}",
                             code="error") from error
        if found.type != Type(FLOAT64, (self.batch,)):
            raise InputError(f"the error model {inner.name!r} gives {found.type!r}: one number for each example is expected, "
                             f"{Type(FLOAT64, (self.batch,))!r}; their sum over examples is made here", code="error")
        return found


def _powers(count: int) -> list[tuple[int, int]]:
    """Return 0 to ``count`` cut into spans, each a power of two long: (0, 4), (4, 6), (6, 7) for 7."""
    spans, low = [], 0
    for power in reversed(range(count.bit_length())):
        if count >> power & 1:
            spans.append((low, low + (1 << power)))
            low += 1 << power
    return spans
