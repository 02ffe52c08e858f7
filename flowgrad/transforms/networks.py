"""The general feed-forward network: units and weighted links of networkx as a model, and back with all that was computed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flowgrad.ir.boundary import guarded
from flowgrad.ir.bulk import bulk
from flowgrad.ir.dtypes import DType
from flowgrad.ir.errors import InputError
from flowgrad.ir.feeds import as_array
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.kept import kept
from flowgrad.model import Model
from flowgrad.transforms.derivatives import value_and_grad
from flowgrad.transforms.network_layers import Assembly
from flowgrad.transforms.topology import Topology, read_topology

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Layout:
    """Where units and links stand in the graph of a network.

    ``units`` is what it was made of; ``places`` holds the links of each parameter, ``layers`` the names of the pre-activations
    and activations of each layer. ``error`` is the name of the error, ``model`` for a Model, "" for none.
    """

    units: nx.DiGraph[Any]
    topology: Topology
    places: Mapping[str, Array]
    layers: Sequence[tuple[str, str]]
    error: str


class Network(Model):
    """The model of a feed-forward network, which every transform takes, and the units and links that it was made of.

    Inputs: ``x``, float[N, inputs], and with an error its targets ``t``, float[N, outputs]. Outputs: ``y``, float[N, outputs],
    and with an error ``errors``, float[N], the E_n of the examples, and ``error``, float[], their sum E. Columns are units in
    the order of ``input_units`` and ``output_units``. The layers are computed as ``a1``, ``z1``, ``a2``, ...: values like
    others, that ``of``, ``wrt`` and ``keep`` may name.

    Examples:
        >>> import networkx as nx
        >>> units = nx.DiGraph()
        >>> units.add_node("x", kind="input")
        >>> units.add_node("y", kind="output", activation="tanh")
        >>> units.add_edge("x", "y", weight=0.5)
        >>> net = fg.network(units, error="sum_of_squares")
        >>> found = net.evaluate([1.0], [1.0])
        >>> round(found.nodes["y"]["z"], 4), round(found.edges["x", "y"]["gradient"], 4)
        (0.4621, -0.423)
    """

    def __init__(self, graph: Graph, layout: Layout) -> None:
        super().__init__(graph)
        self._layout = layout

    def with_params(self, values: Mapping[str, Any]) -> Network:
        """Return this network with other values for the named parameters: see ``Model.with_params``."""
        return Network(super().with_params(values).graph, self._layout)

    def astype(self, dtype: str | DType) -> Network:
        """Return this network computing in another float type: see ``Model.astype``."""
        return Network(super().astype(dtype).graph, self._layout)

    @property
    def input_units(self) -> list[Hashable]:
        """The nodes whose values the columns of ``x`` are."""
        return [self._layout.topology.nodes[i] for i in self._layout.topology.inputs]

    @property
    def output_units(self) -> list[Hashable]:
        """The nodes whose activations the columns of ``y`` are."""
        return [self._layout.topology.nodes[i] for i in self._layout.topology.outputs]

    @kept
    def links(self) -> dict[str, list[tuple[Hashable, Hashable]]]:
        """For each parameter, the links whose weights it holds, in the order of its elements; all of them for a shared one."""
        return {name: [self._layout.topology.links[i] for i in places.tolist()] for name, places in self._layout.places.items()}

    # ---- reading back -----------------------------------------------------------------------------------------------------

    @guarded("while a network was evaluated")
    def evaluate(self, x: Any, t: Any = None) -> nx.DiGraph[Any]:
        """Return the units and links with all that propagation forwards and backwards gives them.

        ``x`` is float[N, inputs], ``t`` float[N, outputs]; without N, one example. Nodes get ``z``; units also their
        pre-activation ``a`` and, of a network with an error, ``delta`` = dE_n/da; links get their ``weight`` now and, with an
        error, ``gradient`` = dE_n/dw = delta of the unit they enter times z of the one they leave. Each is float[N], one number
        an example, or for one example a number. The derivative by a shared parameter is the sum of those of its links, that
        of E the sum over examples. The graph itself gets ``errors`` (E_n) and ``error`` (E). InputError for other shapes, or
        targets of a softmax group that do not sum to 1.
        """
        fed, is_single = self._feeds(x, t)
        found = self._observed(fed)
        z, delta = np.ones((len(fed["x"]), len(self._layout.topology.nodes)), fed["x"].dtype), None
        z[:, self._layout.topology.inputs] = fed["x"]
        a = np.zeros_like(z)
        for layer, (a_name, z_name) in zip(self._layout.topology.layers, self._layout.layers, strict=True):
            a[:, layer.units], z[:, layer.units] = found[a_name], found[z_name]
        if self._layout.error:
            delta = np.zeros_like(z)
            for layer, (a_name, _) in zip(self._layout.topology.layers, self._layout.layers, strict=True):
                delta[:, layer.units] = found[self._observed.roles["grad", "error", a_name]]
        return self._written(z, a, delta, found, is_single)

    @kept
    def _observed(self) -> Model:
        """The model that gives all pre-activations and activations, and with an error all deltas."""
        names = list(dict.fromkeys(name for pair in self._layout.layers for name in pair))
        if self._layout.error:
            return value_and_grad(self, "error", [a for a, _ in self._layout.layers], keep=["errors", *names])
        graph = self.graph.copy()
        for name in names:
            graph.add_output(graph.value(name), name)
        return self.with_graph(graph)

    def _feeds(self, x: Any, t: Any) -> tuple[dict[str, Array], bool]:
        """Return the feeds for arrays of one example or several, and whether it is one."""
        if (t is None) is (any(v.name == "t" for v in self.graph.inputs)):
            raise InputError("evaluate takes x and the targets t of a network whose error has targets, and x alone of another: "
                             f"this one has the inputs {', '.join(v.name for v in self.graph.inputs)}", code="feeds")
        given = {name: as_array(name, value) for name, value in (("x", x), ("t", t)) if value is not None}
        is_single = given["x"].ndim == 1
        fed: dict[str, Array] = {}
        for value in self.graph.inputs:
            array, width = given[value.name], len(self.input_units if value.name == "x" else self.output_units)
            count = 1 if is_single else given["x"].shape[0] if given["x"].ndim else 0
            wanted = (width,) if is_single else (count, width)
            if array.shape != wanted or array.dtype.kind not in "fiub":
                what = "inputs" if value.name == "x" else "outputs"
                raise InputError(f"{value.name} is {array.dtype.name}{list(array.shape)}; floats of one row an example and one "
                                 f"column for each of the {width} {what} are expected ([N, {width}], or [{width}] for one "
                                 "example, x and t alike)", code="shape")
            fed[value.name] = array.reshape(count, width).astype(value.type.dtype.numpy)
        if self._layout.error == "cross_entropy":
            self._check_shares(fed["t"])
        return fed, is_single

    def _check_shares(self, t: Array) -> None:
        """Raise InputError for targets of a cross-entropy with softmax that are no distribution."""
        places = {unit: i for i, unit in enumerate(self._layout.topology.outputs)}
        for layer in self._layout.topology.layers:
            columns = [places[unit] for unit in layer.units.tolist() if unit in places]
            if layer.activation != "softmax" or not columns:
                continue
            sums = t[:, columns].sum(axis=1)
            off = np.flatnonzero(~np.isclose(sums, 1, rtol=0, atol=1e-3))
            if len(off):
                raise InputError(f"the targets of a softmax group sum to {float(sums[off[0]])!r} in example {int(off[0])}: "
                                 "they are the shares of its classes, 1 for the class and 0 for the others", code="target")

    def _written(self, z: Array, a: Array, delta: Array | None, found: Mapping[str, Array], is_single: bool) -> nx.DiGraph[Any]:
        """Return a copy of the units and links with numbers on them."""
        topology = self._layout.topology
        result: nx.DiGraph[Any] = self._layout.units.copy()

        def numbers(columns: Array) -> list[Any]:
            return columns[0].tolist() if is_single else list(np.ascontiguousarray(columns.T))

        rows = {"z": numbers(z), "a": numbers(a)} | ({"delta": numbers(delta)} if delta is not None else {})
        bare = {*topology.inputs, *topology.biases}
        for i, name in enumerate(topology.nodes):
            result.nodes[name].update({k: row[i] for k, row in rows.items() if k == "z" or i not in bare})
        weights = self._weights()
        on_links = {"weight": weights.tolist()}
        if delta is not None:
            on_links["gradient"] = numbers(delta[:, topology.targets] * z[:, topology.sources])
            result.graph["errors"] = found["errors"][0].item() if is_single else found["errors"]
            result.graph["error"] = found["error"].item()
        for i, link in enumerate(topology.links):
            result.edges[link].update({k: row[i] for k, row in on_links.items()})
        return result

    def _weights(self) -> Array:
        """Return the weights of the links as the parameters are now."""
        weights = self._layout.topology.weights.copy()
        for name, places in self._layout.places.items():
            data = self.graph.value(name).producer.data
            assert data is not None  # a parameter
            weights[places] = data.reshape(-1)
        return weights


@guarded("while a network was compiled")
@bulk
def network(graph: nx.DiGraph[Any], *, error: str | Model | None = None, outputs: Sequence[Hashable] | None = None,
            dtype: str | DType = "float64", name: str = "network") -> Network:
    """Return the model of a general feed-forward network: a_j = sum_i w_ji z_i over the links into unit j, z_j = h_j(a_j).

    ``graph`` is a networkx.DiGraph of any acyclic topology. Nodes have the attributes ``kind`` (``input``, ``bias``: fixed at
    z = +1; ``hidden``, the default, or ``output``), units ``activation``: identity (linear), logistic (sigmoid), tanh, relu,
    leaky_relu, elu, selu, gelu, silu, mish, softplus, softsign, exp, sin, softmax (over the units of one ``group``), or a Model
    of one input and one output, elementwise. Edges have ``weight``, and ``parameter``: links that name the same one share it.

    ``outputs`` chooses and orders the output units (default: those of the kind, else those that no link leaves). ``error``
    adds E = sum_n E_n: ``sum_of_squares`` (half of it), ``cross_entropy`` (logistic outputs each by itself; softmax groups,
    whose targets sum to 1), for both of which the delta of an output with canonical link is y - t, or a Model of y and t
    (float64[N, outputs] each) that gives one number for each example (float64[N]).

    Units are computed together by depth (longest path) and activation: links as matrices, those of sparse layers one by one.
    Parameters are named ``w1``, ``b1``, ... by layer (``w1_1``, ... where that has several blocks; a vector where it is no
    matrix), shared ones as they are (one element); ``network.links`` tells what links they hold. An absent link inside a matrix
    is a weight of 0: infinite activations make NaN there. Raises InputError for a graph that is no such network.

    Examples:
        >>> import networkx as nx
        >>> units = nx.DiGraph()
        >>> units.add_nodes_from(["x1", "x2"], kind="input")
        >>> units.add_node("one", kind="bias")
        >>> units.add_node("h", activation="tanh")
        >>> units.add_node("y", activation="identity", kind="output")
        >>> units.add_weighted_edges_from([("x1", "h", 0.5), ("x2", "h", -1.0), ("one", "h", 0.1), ("h", "y", 2.0), ("x1", "y", 0.3)])
        >>> net = fg.network(units, error="sum_of_squares")
        >>> [value.name for value in net.inputs], [value.name for value in net.outputs]
        (['x', 't'], ['y', 'errors', 'error'])
        >>> net(x=[[1.0, 2.0]], t=[[0.5]])["y"].round(3)
        array([[-1.471]])
    """
    topology = read_topology(graph, outputs)
    assembly = Assembly(topology, name)
    y = assembly.run()
    found = assembly.error(error, y) if error is not None else ()
    assembly.graph.add_output(y, "y")
    for value in found:
        assembly.graph.add_output(value)
    kind = "model" if isinstance(error, Model) else error or ""
    made = Network(assembly.graph, Layout(graph.copy(), topology, assembly.places, assembly.layers, kind))
    return made if str(dtype) == "float64" else made.astype(dtype)
