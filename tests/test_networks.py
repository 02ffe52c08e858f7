"""The general feed-forward network: against an interpreter that goes unit by unit, in golden text, and what is refused."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.errors import InputError
from flowgrad.model import Model, load
from flowgrad.tools.maintenance import random_networks
from flowgrad.tools.maintenance.random_networks import differences, propagate, random_example
from flowgrad.transforms import network_layers
from flowgrad.transforms.networks import Network, network
from flowgrad.transforms.topology import LARGE_SHARE

CHUNK = 5


def layered(sizes: Sequence[int], activations: Sequence[str], seed: int = 0, whole: bool = False) -> nx.DiGraph[Any]:
    """Return a fully connected network with biases; with whole numbers as weights if ``whole``."""
    rng = np.random.default_rng(seed)
    draw: Callable[[], float] = (lambda: float(rng.integers(-3, 4))) if whole else (lambda: float(rng.standard_normal()))
    units: nx.DiGraph[Any] = nx.DiGraph()
    units.add_node("one", kind="bias")
    layers = [[f"{'x' if depth == 0 else 'u'}{depth}_{i}" for i in range(size)] for depth, size in enumerate(sizes)]
    units.add_nodes_from(layers[0], kind="input")
    for earlier, later, activation in zip(layers, layers[1:], activations, strict=False):
        units.add_nodes_from(later, activation=activation)
        units.add_edges_from(((i, j, {"weight": draw()}) for i, j in itertools.product(["one", *earlier], later)))
    return units


def two_layers(error: str | Model | None = "sum_of_squares", last: str = "identity", **options: Any) -> Network:
    """Return the network of the chapter's example: tanh hidden units and linear outputs."""
    return network(layered((2, 3, 2), ("tanh", last)), error=error, **options)


# ---- values, deltas and gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(0, 100, CHUNK))
def test_random_networks_agree_with_the_interpreter(first: int) -> None:
    for seed in range(first, first + CHUNK):
        assert not differences(seed), seed


def test_the_comparison_notices_a_wrong_number(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = random_networks.ACTIVATIONS["tanh"]
    monkeypatch.setitem(random_networks.ACTIVATIONS, "tanh", (identity[0], lambda a: identity[1](a) * (1 + 1e-10)))
    lines = [line for seed in range(10) for line in differences(seed)]
    assert any("delta" in line for line in lines) and any("gradient" in line for line in lines)


def test_the_random_networks_have_all_that_is_claimed() -> None:
    cases = [random_example(seed).units for seed in range(100)]
    groups = [[d["group"] for _, d in u.nodes(data=True) if "group" in d] for u in cases]
    assert sum(any(g.count(name) > 1 and name != "out" for name in g) for g in groups) >= 3  # hidden units of one softmax
    assert sum("out" in g for g in groups) >= 5
    assert sum(any("parameter" in d for *_, d in u.edges(data=True)) for u in cases) >= 20
    assert sum(sum(d.get("kind") == "output" for _, d in u.nodes(data=True)) > 1 for u in cases) >= 20
    assert max(nx.dag_longest_path_length(u, weight=None) for u in cases) > 15


def test_the_example_of_two_layers() -> None:
    """delta_k = y_k - t_k, delta_j = (1 - z_j^2) sum_k w_kj delta_k, dE/dw = delta z."""
    found = two_layers().evaluate([0.3, -1.2], [1.0, 0.5])
    unit, link = found.nodes, found.edges
    for k, t in (("u2_0", 1.0), ("u2_1", 0.5)):
        assert unit[k]["delta"] == unit[k]["z"] - t
    for j in ("u1_0", "u1_1", "u1_2"):
        back = sum(link[j, k]["weight"] * unit[k]["delta"] for k in ("u2_0", "u2_1"))
        assert unit[j]["delta"] == pytest.approx((1 - unit[j]["z"] ** 2) * back, rel=1e-13)
        assert link["x0_1", j]["gradient"] == unit[j]["delta"] * -1.2
        assert link["one", j]["gradient"] == unit[j]["delta"]
    assert "a" not in unit["x0_0"] and "delta" not in unit["one"] and unit["one"]["z"] == 1
    assert found.graph["error"] == pytest.approx(sum(unit[k]["delta"] ** 2 for k in ("u2_0", "u2_1")) / 2, rel=1e-13)


def test_errors_and_gradients_of_a_batch_are_the_sums_of_its_parts() -> None:
    """Bit for bit: in whole numbers every order of a sum is the same, and E is NumPy's sum of the E_n in their order."""
    made = network(layered((3, 5, 2), ("relu", "identity"), whole=True), error="sum_of_squares")
    rng = np.random.default_rng(1)
    x, t = rng.integers(-4, 5, (12, 3)).astype(float), rng.integers(-4, 5, (12, 2)).astype(float)
    gradient = fg.value_and_grad(made, "error", "params", keep="errors")
    whole = gradient(x=x, t=t)
    single = [gradient(x=x[n:n + 1], t=t[n:n + 1]) for n in range(12)]
    parts = [gradient(x=x[n:n + 4], t=t[n:n + 4]) for n in (0, 4, 8)]
    for name in whole:
        if name != "errors":
            for pieces in (single, parts):
                total = np.zeros_like(whole[name])
                for piece in pieces:
                    total = total + piece[name]
                assert np.array_equal(total, whole[name]), name
    assert np.array_equal(np.concatenate([p["errors"] for p in parts]), whole["errors"])
    for n, d in made.evaluate(x, t).nodes(data=True):
        for what in {"a", "z", "delta"} & set(d):
            assert [made.evaluate(x[i], t[i]).nodes[n][what] for i in range(3)] == d[what][:3].tolist()


def test_the_error_is_the_sum_of_the_errors_in_their_order() -> None:
    rng = np.random.default_rng(0)
    found = two_layers()(x=rng.standard_normal((1000, 2)), t=rng.standard_normal((1000, 2)))
    assert found["error"] == np.add.reduce(found["errors"])


def test_deep_sparse_and_wide_networks() -> None:
    """300 units that each have a link from each of the 20 before, of alternating activations, and a sparse layer of 400."""
    rng = np.random.default_rng(0)
    units: nx.DiGraph[Any] = nx.DiGraph()
    names = [f"x{i}" for i in range(20)]
    units.add_nodes_from(names, kind="input")
    for n in range(300):
        units.add_node(f"h{n}", activation=("tanh", "identity")[n % 2])
        units.add_edges_from((i, f"h{n}", {"weight": float(rng.standard_normal() / 5)}) for i in names[-20:])
        names.append(f"h{n}")
    for k in range(400):
        units.add_node(f"y{k}", activation="tanh", kind="output")
        units.add_edge(f"h{rng.integers(299)}", f"y{k}", weight=float(rng.standard_normal()))
        units.add_edge("h299", f"y{k}", weight=float(rng.standard_normal()))
    made = network(units, error="sum_of_squares")
    ops = [node.op for node in made.graph.nodes()]
    assert "GatherGrad" in ops and len(ops) < 4000
    x, t = rng.standard_normal(20), rng.standard_normal(400)
    expected, found = propagate(units, "sum_of_squares", x.tolist(), t.tolist()), made.evaluate(x, t)
    for (i, j), gradient in expected.gradient.items():
        assert found.edges[i, j]["gradient"] == pytest.approx(gradient, rel=1e-11, abs=1e-12)


def test_a_hundred_layers_of_one_unit_with_all_skip_links_are_few_operators() -> None:
    count, rng = 100, np.random.default_rng(0)
    units: nx.DiGraph[Any] = nx.DiGraph()
    units.add_node("0", kind="input")
    for j in range(1, count):
        units.add_node(f"{j}", activation="tanh")
        units.add_edges_from((f"{i}", f"{j}", {"weight": float(rng.standard_normal() / 10)}) for i in range(j))
    made = network(units)
    assert len(made.graph) < 20 * count  # of 4,950 links
    last, expected = f"{count - 1}", propagate(units, "sum_of_squares", [0.7], [])
    assert made.evaluate([0.7]).nodes[last]["z"] == pytest.approx(expected.z[last], rel=1e-12)


# ---- the form of the graph ------------------------------------------------------------------------------------------------

CANONICAL = {
    ("sum_of_squares", "identity"): """\
  %error_sub: f64[N,3] = Sub(%a1, %t)
  %error_reduce_sum_square: f64[N] = ReduceSumSquare(%error_sub, [1]) {keepdims=0}
  %errors: f64[N] = Mul(%error_reduce_sum_square, f64(0.5))
  %error: f64[] = ReduceSum(%errors) {keepdims=0}
  %w1_bar: f64[2,3] = Gemm(%x, %error_sub) {alpha=1.0, transA=1}
  %b1_bar: f64[3] = ReduceSum(%error_sub, [0]) {keepdims=0}
""",
    ("cross_entropy", "logistic"): """\
  %z1: f64[N,3] = Sigmoid(%a1)
  %error_softplus: f64[N,3] = Softplus(%a1)
  %error_mul: f64[N,3] = Mul(%t, %a1)
  %error_sub: f64[N,3] = Sub(%error_softplus, %error_mul)
  %errors: f64[N] = ReduceSum(%error_sub, [1]) {keepdims=0}
  %error: f64[] = ReduceSum(%errors) {keepdims=0}
  %a1_bar: f64[N,3] = Sub(%z1, %t)
  %w1_bar: f64[2,3] = Gemm(%x, %a1_bar) {alpha=1.0, transA=1}
  %b1_bar: f64[3] = ReduceSum(%a1_bar, [0]) {keepdims=0}
""",
    ("cross_entropy", "softmax"): """\
  %z1: f64[N,3] = Softmax(%a1) {axis=-1}
  %errors: f64[N] = SoftmaxCrossEntropy(%a1, %t)
  %error: f64[] = ReduceSum(%errors) {keepdims=0}
  %errors_sub: f64[N,3] = Sub(%z1, %t)
  %w1_bar: f64[2,3] = Gemm(%x, %errors_sub) {alpha=1.0, transA=1}
  %b1_bar: f64[3] = ReduceSum(%errors_sub, [0]) {keepdims=0}
""",
}
"""Single-layer models: the error of an output with canonical link is y - t, and goes into the gradients as it is."""


@pytest.mark.parametrize("error, activation", CANONICAL)
def test_the_delta_of_a_canonical_link_is_y_minus_t_in_the_optimised_graph(error: str, activation: str) -> None:
    made = network(layered((2, 3), (activation,)), error=error)
    text = str(fg.grad(made, "error", "params").optimized())
    lines = [re.sub(r" +(metadata|from) .*", "", line) for line in text.splitlines() if line.startswith("  %")]
    body = [line for line in lines if "(%" in line]
    assert "\n".join(body) + "\n" == "  %a1: f64[N,3] = Gemm(%x, %w1, %b1)\n" + CANONICAL[error, activation]


def test_the_graph_of_two_layers() -> None:
    text = str(two_layers())
    assert text[text.index("{\n"):] == """\
{
  %a1: f64[N,3] = Gemm(%x, %w1, %b1)
  %z1: f64[N,3] = Tanh(%a1)
  %a2: f64[N,2] = Gemm(%z1, %w2, %b2)
  %error_sub: f64[N,2] = Sub(%a2, %t)
  %error_reduce_sum_square: f64[N] = ReduceSumSquare(%error_sub, [1]) {keepdims=0}
  %errors: f64[N] = Mul(%error_reduce_sum_square, f64(0.5))
  %error: f64[] = ReduceSum(%errors) {keepdims=0}
}
"""


def test_units_of_the_same_sources_are_a_matrix_beside_single_links() -> None:
    units = layered((4, 40), ("tanh",))
    for odd, source in (("odd", "x0_1"), ("other", "x0_2")):
        units.add_node(odd, activation="tanh")
        units.add_edge(source, odd, weight=0.5)
    made = network(units)
    assert made.links["w1_1"][:2] == [("x0_0", "u1_0"), ("x0_0", "u1_1")]
    assert made.links["w1_2"] == [("x0_1", "odd"), ("x0_2", "other")]
    assert {p.name: p.shape for p in made.params} == {"w1_1": (4, 40), "b1_1": (40,), "w1_2": (2,)}
    assert 1 * LARGE_SHARE < 4 * 40


# ---- a model like others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error, last", CANONICAL)
def test_transforms_take_a_network(error: str, last: str) -> None:
    made = two_layers(error, last)
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((4, 2)), "t": np.eye(2)[[0, 1, 1, 0]]}
    assert fg.gradcheck(made, feeds, "error", "params")
    assert fg.gradcheck(fg.hvp(made, "error", "w1"), {**feeds, "w1_tangent": rng.standard_normal((2, 3))}, "w1_hvp", "w2")
    exported = fg.grad(made, "error", "w1").to_onnx()
    np.testing.assert_allclose(load(exported)(feeds)["w1_grad"], fg.grad(made, "error", "w1")(feeds)["w1_grad"], rtol=1e-12)
    again = load(made.to_onnx())
    np.testing.assert_allclose(fg.grad(again, "error", "w1")(feeds)["w1_grad"], fg.grad(made, "error", "w1")(feeds)["w1_grad"],
                               rtol=1e-12, atol=1e-14)
    assert type(made.optimized()) is Model


def test_weights_can_be_set_and_are_read_back() -> None:
    made = two_layers()
    other = made.with_params({"w1": np.full((2, 3), 0.25), "b2": np.array([3.0, -3.0])})
    found = other.evaluate([1.0, 1.0], [0.0, 0.0])
    assert found.edges["x0_0", "u1_2"]["weight"] == 0.25 and found.edges["one", "u2_1"]["weight"] == -3.0
    assert found.nodes["u1_0"]["a"] == pytest.approx(0.5 + found.edges["one", "u1_0"]["weight"], rel=1e-15)
    assert made.evaluate([1.0, 1.0], [0.0, 0.0]).edges["x0_0", "u1_2"]["weight"] != 0.25


def test_a_shared_parameter_has_one_weight_and_one_gradient() -> None:
    units = layered((2, 3, 2), ("tanh", "identity"))
    for link in (("x0_0", "u1_0"), ("x0_1", "u1_2"), ("one", "u2_0")):
        units.edges[link].update(parameter="kernel", weight=0.4)
    del units.edges["one", "u2_0"]["weight"]
    made = network(units, error="sum_of_squares")
    other = made.with_params({"kernel": np.array([0.7])})
    found = other.evaluate([0.3, 0.2], [1.0, 0.0])
    assert {found.edges[link]["weight"] for link in made.links["kernel"]} == {0.7}
    total = fg.grad(other, "error", "kernel")(x=np.array([[0.3, 0.2]]), t=np.array([[1.0, 0.0]]))["kernel_grad"]
    assert total == pytest.approx([sum(found.edges[link]["gradient"] for link in made.links["kernel"])], rel=1e-14)


def test_other_dtypes_and_no_error() -> None:
    made = two_layers(None, dtype="float32")
    assert [i.name for i in made.inputs] == ["x"] and [o.name for o in made.outputs] == ["y"]
    found = made.evaluate(np.ones((3, 2), np.float32))
    assert found.nodes["u1_0"]["z"].dtype == np.float32
    assert "delta" not in found.nodes["u1_0"] and "gradient" not in found.edges["x0_0", "u1_0"]
    assert made.input_units == ["x0_0", "x0_1"] and made.output_units == ["u2_0", "u2_1"]


def test_outputs_are_chosen_and_ordered() -> None:
    units = layered((2, 3, 2), ("tanh", "identity"))
    x = np.array([[0.1, 0.2]])
    plain, chosen = network(units), network(units, outputs=["u2_1", "u1_0", "u2_0"])
    found = plain.evaluate(x).nodes
    assert chosen(x=x)["y"][0].tolist() == [found[n]["z"][0] for n in ("u2_1", "u1_0", "u2_0")]


def test_a_unit_of_a_bias_alone_and_one_without() -> None:
    units = layered((2, 2), ("identity",))
    units.add_node("constant", activation="tanh")
    units.add_edge("one", "constant", weight=0.5)
    units.add_node("free", activation="identity", kind="output")
    units.add_edges_from([("constant", "free", {"weight": 2.0}), ("u1_0", "free", {"weight": 1.0})])
    found = network(units, error="sum_of_squares").evaluate(np.array([[1.0, 2.0], [0.0, 1.0]]), np.zeros((2, 1)))
    assert found.nodes["constant"]["z"].tolist() == [np.tanh(0.5)] * 2
    np.testing.assert_allclose(found.edges["one", "constant"]["gradient"],
                               found.nodes["free"]["delta"] * 2 * (1 - np.tanh(0.5) ** 2), rtol=1e-14)
    assert found.nodes["u1_1"]["delta"].tolist() == [0, 0]  # no output follows


def test_the_graph_that_was_given_is_not_kept() -> None:
    units = layered((2, 3, 2), ("tanh", "identity"))
    before = copy.deepcopy(units)
    made = network(units)
    made.evaluate([1.0, 2.0])
    assert nx.utils.graphs_equal(units, before)
    units.remove_node("u1_0")
    assert "u1_0" in made.evaluate([1.0, 2.0])


# ---- what is refused ------------------------------------------------------------------------------------------------------


def changed(change: Callable[[nx.DiGraph[Any]], Any]) -> nx.DiGraph[Any]:
    units = layered((2, 3, 2), ("tanh", "identity"))
    change(units)
    return units


MODEL_OF_TWO = load(b"graph @two (%a: f64[N], %b: f64[N]) -> (%z: f64[N]) { %z: f64[N] = Add(%a, %b) }")
MIXING = load(b"graph @mixing (%a: f64[N,K]) -> (%z: f64[N,K]) { %z: f64[N,K] = Softmax(%a) }")
VECTOR = load(b"graph @scaled (%a: f64[3]) -> (%z: f64[3]) { %z: f64[3] = Mul(%a, f64([1.0,2.0,3.0])) }")
NARROW = load(b"graph @narrow (%a: f64[N]) -> (%z: f32[N]) { %z: f32[N] = Cast(%a) {to=1} }")

REFUSED: list[tuple[str, Callable[[nx.DiGraph[Any]], Any], str]] = [
    ("cycle", lambda u: u.add_edge("u2_0", "u1_0", weight=1.0), r"cycle, .*'u1_0' -> 'u2_0'.*unroll"),
    ("self", lambda u: u.add_edge("u1_0", "u1_0", weight=1.0), r"cycle, 'u1_0' -> 'u1_0'"),
    ("activation", lambda u: u.nodes["u1_0"].update(activation="tahn"), r"'u1_0'.*'tahn'; did you mean 'tanh'\?"),
    ("no activation", lambda u: u.nodes["u1_0"].pop("activation"), "'u1_0' has no activation"),
    ("a class", lambda u: u.nodes["u1_0"].update(activation=np.tanh), "a name or a Model"),
    ("bare unit", lambda u: u.add_node("lost", activation="tanh"), "'lost' has no inputs: link something to it"),
    ("no weight", lambda u: u.edges["x0_0", "u1_0"].pop("weight"), r"\('x0_0', 'u1_0'\) has no weight: give the edge"),
    ("no weights", lambda u: [d.pop("weight") for *_, d in u.edges(data=True)], r"no weight \(and 16 more\)"),
    ("nan", lambda u: u.edges["x0_0", "u1_0"].update(weight=float("nan")), "a finite number is expected"),
    ("text", lambda u: u.edges["x0_0", "u1_0"].update(weight="1"), "a finite number is expected"),
    ("kind", lambda u: u.nodes["x0_0"].update(kind="inptu"), "did you mean 'input'"),
    ("into input", lambda u: u.add_edge("x0_0", "x0_1", weight=1.0), "a link enters 'x0_1'"),
    ("two biases", lambda u: (u.add_node("b", kind="bias"), u.add_edge("b", "u1_0", weight=1.0)), "'u1_0' has two biases"),
    ("no inputs", lambda u: [u.remove_node(n) for n in ("x0_0", "x0_1")], "one or more inputs"),
    ("group", lambda u: [u.nodes[n].update(activation="softmax") for n in ("u1_0", "u2_0")], "of a softmax group is linked"),
    ("parameter", lambda u: u.edges["x0_0", "u1_0"].update(parameter=3), "a name is text"),
    ("conflict", lambda u: [u.edges["x0_0", j].update(parameter="k") for j in ("u1_0", "u1_1")], "share the parameter 'k'"),
    ("own name", lambda u: u.edges["x0_0", "u1_0"].update(parameter="w1"), "called 'w1': choose"),
    ("two inputs", lambda u: u.nodes["u1_0"].update(activation=MODEL_OF_TWO), "has 2 inputs and 1 outputs"),
    ("mixing", lambda u: u.nodes["u1_0"].update(activation=MIXING), "no function of single numbers"),
    ("vector", lambda u: u.nodes["u1_0"].update(activation=VECTOR), "no function of single numbers"),
    ("narrow", lambda u: u.nodes["u1_0"].update(activation=NARROW), "must keep shape and dtype"),
]


@pytest.mark.parametrize("change, message", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_graphs_that_are_no_network_are_refused(change: Callable[[nx.DiGraph[Any]], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        network(changed(change))


@pytest.mark.parametrize("made, message", [
    (lambda: network({"a": 1}), "networkx.DiGraph, not of dict"),
    (lambda: network(nx.Graph()), "one direction"),
    (lambda: network(nx.MultiDiGraph()), "parallel links"),
    (lambda: network(nx.DiGraph()), "one or more output units"),
    (lambda: network(changed(lambda u: u.add_weighted_edges_from((("u2_0", "u1_0", 1.0), ("u2_1", "u1_0", 1.0))))),
     "none is an output and some form a cycle.*unroll"),
    (lambda: two_layers(outputs="u2_0"), r"outputs=\['u2_0'\]"),
    (lambda: two_layers(outputs=["u2_9"]), "did you mean 'u2_"),
    (lambda: two_layers(outputs=["u2_0", "u2_0"]), "each once"),
    (lambda: two_layers(outputs=["x0_0"]), "of the kind input"),
    (lambda: two_layers("sum_of_square"), "did you mean 'sum_of_squares'"),
    (lambda: two_layers("cross_entropy", "tanh"), "the activation 'tanh': change it"),
    (lambda: two_layers("cross_entropy", "softmax", outputs=["u2_0"]), "1 of 2 units are outputs"),
    (lambda: two_layers(MODEL_OF_TWO), "the inputs y and t"),
    (lambda: two_layers(load(b"graph @e (%y: f64[N,2]) -> (%e: f64[]) { %e: f64[] = ReduceSum(%y) {keepdims=0} }")),
     "one number for each example"),
    (lambda: two_layers(load(b"graph @e (%y: f64[N,3]) -> (%e: f64[N]) { %d: f64[N,3] = Mul(%y, f64([1.0,2.0,3.0]))\n"
                             b"%e: f64[N] = ReduceSum(%d, [1]) {keepdims=0} }")), "does not take y, f64"),
], ids=lambda v: v[:24] if isinstance(v, str) else "call")
def test_calls_that_make_no_network_are_refused(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made()


@pytest.mark.parametrize("x, t, message", [
    ([1.0, 2.0], [1.0], r"t is float64\[1\].*each of the 2 outputs"),
    ([1.0], [1.0, 0.0], r"x is float64\[1\].*each of the 2 inputs"),
    (np.ones((3, 2)), np.ones(2), r"t is float64\[2\]"),
    (np.ones((3, 2)), np.ones((2, 2)), r"t is float64\[2, 2\]"),
    ([1.0, 2.0], None, "takes x and the targets t"),
    (1.0, 1.0, r"x is float64\[\]"),
    (["a", "b"], [0.0, 1.0], "floats of one row"),
], ids=["t short", "x short", "t single", "t fewer", "no t", "number", "text"])
def test_examples_of_other_shapes_are_refused(x: Any, t: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        two_layers().evaluate(x, t)


def test_targets_that_are_no_distribution_are_refused() -> None:
    made = two_layers("cross_entropy", "softmax")
    with pytest.raises(InputError, match=r"sum to 1.5 in example 1"):
        made.evaluate(np.ones((2, 2)), np.array([[0.5, 0.5], [1.0, 0.5]]))
    assert made.evaluate(np.ones((1, 2)), np.array([[0.25, 0.75]])).graph["error"] > 0
    with pytest.raises(InputError, match="and x alone of another"):
        two_layers(None).evaluate([1.0, 2.0], [1.0, 2.0])


# ---- size -----------------------------------------------------------------------------------------------------------------


def test_work_is_linear_in_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the links of a random sparse network are no more than about twice the operators and elements of constants."""
    sizes = []
    for count in (1000, 2000):
        rng = np.random.default_rng(0)
        units: nx.DiGraph[Any] = nx.DiGraph()
        units.add_nodes_from(range(100), kind="input")
        for j in range(100, 100 + count):
            units.add_node(j, activation="tanh")
            units.add_edges_from((int(i), j, {"weight": 0.1}) for i in rng.choice(j, 10, replace=False))
        graph = network(units).graph
        sizes.append((len(graph), sum(v.constant.size for v in graph.constants if v.constant is not None)))
    assert sizes[1][0] < 2.5 * sizes[0][0] and sizes[1][1] < 2.5 * sizes[0][1]


def test_a_sparse_layer_makes_no_matrix() -> None:
    assert _extents(400) <= 400 * 4 and network_layers.DENSE < 400


def _extents(width: int) -> int:
    """Return the most elements of any value of a layer of ``width`` units of one link each, of one example."""
    units: nx.DiGraph[Any] = nx.DiGraph()
    units.add_nodes_from(range(width), kind="input")
    for i in range(width):
        units.add_node(f"u{i}", activation="tanh")
        units.add_edge((7 * i + 3) % width, f"u{i}", weight=1.0)
    values = network(units).graph.values.values()
    return max(int(np.prod([d if isinstance(d, int) else 1 for d in v.shape])) for v in values)
