"""Random graphs through random pipelines: values, gradients, interface and idempotence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import INITIALIZER, Graph, Node, Value
from flowgrad.ir.text import format_graph
from flowgrad.ir.types import FLOAT64, Dim, Type
from flowgrad.passes.check import compare
from flowgrad.passes.manager import DEFAULT_PIPELINE, PassManager
from flowgrad.passes.rewrite import Recorder, apply_rules, no_match, recording, rewrite

EXACT = ("canonicalize", "fold", "cse", "dce")
ALL = ("stabilize", *EXACT, "simplify")
N = Dim.named("N")


class Maker:
    """Grows a random graph of [N,4] and [4] values, rich in what rewrites look for."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph(f"random{seed}")
        self.b = Builder(self.graph)
        self.full = [self.graph.add_input(n, Type(FLOAT64, (N, 4))) for n in ("x", "u")]
        self.rows = [self.graph.add_input("r", Type(FLOAT64, (4,))),
                     self.graph.add_constant(self.rng.uniform(0.5, 1.5, 4), "w", INITIALIZER)]
        self.square = self.graph.add_constant(self.rng.standard_normal((4, 4)) / 2, "m", INITIALIZER)
        while len(self.graph) < nodes:
            self.grow()
        for index, value in enumerate(self.rng.choice(len(self.full), 3, replace=False)):
            self.graph.add_output(self.full[value], f"y{index}")
        self.graph.add_output(self.full[-1], "last")
        if self.rng.random() < 0.3:
            self.graph.pin(self.full[int(self.rng.integers(2, len(self.full)))])

    def pick(self, values: list[Value]) -> Value:
        """Return a value, recent ones more often."""
        return values[-1 - min(int(self.rng.exponential(3)), len(values) - 1)]

    def grow(self) -> None:
        """Add one of the shapes of code that models, adjoints and rewrites are made of."""
        b, x, v, r = self.b, self.pick(self.full), self.pick(self.full), self.pick(self.rows)
        shape = b.Shape(x)
        choices = [
            lambda: b.Neg(b.Neg(x)), lambda: b.Mul(x, 1.0), lambda: b.Add(x, 0.0), lambda: b.Add(x, -0.0),
            lambda: b.Identity(x), lambda: b.Add(b.Tanh(x), b.Tanh(x)), lambda: b.Sub(x, v), lambda: b.Add(x, b.Neg(v)),
            lambda: b.Mul(b.Mul(b.Tanh(x), 2.0), 0.25), lambda: b.Add(x, b.Expand(r, shape)), lambda: b.Mul(b.Tanh(v), r),
            lambda: b.Transpose(b.Transpose(x, perm=[1, 0]), perm=[1, 0]), lambda: b.Reshape(b.Reshape(x, [-1]), shape),
            lambda: b.Squeeze(b.Unsqueeze(x, [0]), [0]), lambda: b.Log(b.Softmax(x)), lambda: b.Log(b.Sigmoid(x)),
            lambda: b.Add(b.MatMul(b.Tanh(x), self.square), r), lambda: b.Sqrt(b.Mul(x, x)),
            lambda: b.MatMul(b.Tanh(x), b.Transpose(self.square, perm=[1, 0])), lambda: b.Where(b.Greater(x, v), x, v),
            lambda: b.Concat(*b.add_several("Split", [x], {"axis": 1, "num_outputs": 2}, outputs=2), axis=1),
            lambda: b.Relu(b.Relu(x)), lambda: b.Sum(x, v, x), lambda: b.Cast(b.Cast(x, to=11), to=11),
            lambda: b.Div(b.Exp(b.Tanh(x)), b.ReduceSum(b.Exp(b.Tanh(x)), [1], keepdims=1)),
            lambda: b.SumTo(b.Expand(b.Unsqueeze(x, [0]), b.Concat([2], shape, axis=0)), shape),
            lambda: b.Slice(x, [0], [4], [1], [1]), lambda: b.Slice(x, [3], [-5], [1], [-1]), lambda: b.Max(x, v),
            lambda: b.Mul(x, b.Sqrt(b.Add(self.rows[1], 1.0))), lambda: b.Neg(b.Sub(b.Tanh(x), v)), lambda: b.Clip(x, -1.0),
        ]
        made = choices[int(self.rng.integers(len(choices)))]()
        self.full.append(made)
        if self.rng.random() < 0.2:
            self.rows.append(b.Tanh(b.ReduceSum(made, [0], keepdims=0)))


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_through_random_pipelines(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    current = Maker(seed, int(rng.integers(5, 60))).graph
    pinned = list(current.pinned)
    for name in rng.choice(ALL, int(rng.integers(2, 7))):
        result = PassManager(str(name), verify=True).run(current)
        verdict = compare(current, result.model, result.steps[0].stage.pass_.kind)
        assert not verdict.difference, f"{name}: {verdict.difference}\n{format_graph(current)}\n{format_graph(result.model)}"
        assert not verdict.note, verdict.note
        current = result.model
        assert all(name in current.values for name in pinned)


@pytest.mark.parametrize("seed", range(30))
def test_every_pass_is_idempotent_and_never_grows_a_graph(seed: int) -> None:
    graph = Maker(100 + seed, 40).graph
    for name in ALL:
        once = PassManager(name, verify=True).run(graph).model
        again = PassManager(name, verify=True).run(once)
        assert not again.steps[0].applied, f"{name}: {again.report}\n{format_graph(once)}"
        assert name == "stabilize" or len(once) <= len(graph)


@pytest.mark.parametrize("seed", range(20))
def test_the_standard_pipeline_comes_to_rest(seed: int) -> None:
    graph = Maker(200 + seed, 40).graph
    once = PassManager(DEFAULT_PIPELINE, verify=True).run(graph).model
    twice = PassManager(DEFAULT_PIPELINE, verify=True).run(once).model
    thrice = PassManager(DEFAULT_PIPELINE, verify=True).run(twice)
    assert not any(step.applied for step in thrice.steps), thrice.report


@pytest.mark.parametrize("seed", range(20))
def test_the_same_graph_gives_the_same_text(seed: int) -> None:
    texts = {format_graph(PassManager(DEFAULT_PIPELINE).run(Maker(300 + seed, 30).graph).model) for _ in range(2)}
    assert len(texts) == 1


# ---- planted miscompilations --------------------------------------------------------------------------------------------

Make = Callable[..., Any]


def _swap(b: Any, node: Node, x: Value, y: Value) -> Any:
    return b.add(node.op, [y, x], node.attributes) if x.type == y.type else no_match("types")


def _typed(node: Node, x: Value) -> Any:
    return x if x.type == node.output().type else no_match("types")


PLANTED: dict[str, tuple[str, Make]] = {
    "drops a zero's sign": ("Add(%x, 0.0)", lambda b, node, x: _typed(node, x)),
    "reversing slice taken for a whole one": ("Slice(%x, %s, %e, %a, %t)", lambda b, node, x: _typed(node, x)),
    "swapped difference": ("Sub(%x, %y)", _swap),
    "swapped branches": ("Where(%c, %x, %y)", lambda b, c, x, y: b.Where(c, y, x)),
    "negation lost": ("Neg(%x)", lambda b, x: x),
    "mean for a sum": ("ReduceSum(%x, %a) {keepdims=1}", lambda b, x, a: b.ReduceMean(x, a, keepdims=1)),
    "softmax along another axis": ("Softmax(%x) {axis=-1}", lambda b, x: b.Softmax(x, axis=0)),
    "term dropped from a sum": ("Sum(%x, %y, %z)", lambda b, x, y, z: b.Add(x, y)),
    "narrowed": ("Tanh(%x)", lambda b, x: b.Cast(b.Tanh(b.Cast(x, to=1)), to=11)),
    "log of softmax without the log": ("Log(Softmax(%x))", lambda b, node, x: b.Softmax(x)),
    "row taken for the operand": ("Mul(%x, %r)", lambda b, node, x, r: _typed(node, x)),
    "maximum as minimum": ("Max(%x, %y)", lambda b, x, y: b.Min(x, y)),
    "clip forgotten": ("Clip(%x, %l)", lambda b, x: x),
    "relu as abs": ("Relu(%x)", lambda b, x: b.Abs(x)),
    "sub-term duplicated": ("Add(%x, %y)", lambda b, node, x, y: b.Add(x, x) if x.type == y.type else no_match("types")),
    "transposed factor forgotten": ("MatMul(%x, Transpose(%w))", lambda b, x, w: b.MatMul(x, w)),
    "gradient stopped": ("Identity(%x)", lambda b, x: b.StopGradient(x)),
    "gradient of sqrt(x x) cut": ("Sqrt(Mul(%x, %x))", lambda b, x: b.StopGradient(b.Abs(x))),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_miscompilations_are_caught(name: str) -> None:
    pattern, function = PLANTED[name]
    rule = rewrite(pattern)(function)
    for seed in range(40):
        graph = Maker(seed, 40).graph
        broken = graph.copy()
        recorder = Recorder(limit=1)
        with recording(recorder):
            apply_rules(broken, [rule])
        if recorder.applied and compare(graph, broken, "exact").difference:
            return
    raise AssertionError(f"{name}: not caught on any graph")
