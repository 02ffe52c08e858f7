"""Scopes: what is registered inside one is gone after it, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.errors import InputError, PassError, UnsupportedError
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.ops.registry import Trait, all_ops, find_op, opdef
from flowgrad.passes.registry import find_pass, pass_

TEXT = b"graph @g (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Doubled(%x) }"


def declare_doubled() -> None:
    @fg.op("Doubled", traits=(Trait.ELEMENTWISE, Trait.LINEAR))
    def doubled(x: Array, *, out: Array | None = None) -> Array:
        return np.asarray(np.multiply(x, 2, out=out))

    @doubled.adjoint
    def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
        return b.Doubled(y_bar)


def declare_pass(name: str) -> None:
    @pass_(name, kind="exact")
    def nothing(graph: Graph) -> None:
        """Do nothing."""


def test_an_operator_ends_with_its_scope() -> None:
    before = set(all_ops())
    for _ in range(2):  # and may be declared again
        with fg.scoped():
            declare_doubled()
            gradient = fg.vjp(fg.load(TEXT))
            assert gradient(x=np.ones(2, np.float32), y_grad=np.ones(2, np.float32))["x_grad"].tolist() == [2, 2]
        assert set(all_ops()) == before
        with pytest.raises(UnsupportedError, match="no operator 'Doubled'"):
            fg.load(TEXT)


def test_a_rule_of_a_known_operator_is_put_back() -> None:
    tanh = opdef("Tanh")
    before = tanh.adjoint_rule, tanh.partial_rule
    with fg.scoped():

        @tanh.adjoint
        def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
            return y_bar

        assert tanh.adjoint_rule is not before[0]
    assert (tanh.adjoint_rule, tanh.partial_rule) == before


def test_passes_end_with_their_scope_and_scopes_nest() -> None:
    with fg.scoped():
        declare_pass("outer_one")
        with fg.scoped():
            declare_pass("inner_one")
            assert fg.PassManager("outer_one,inner_one").stages
        assert find_pass("outer_one").kind == "exact"
        with pytest.raises(InputError, match="no pass 'inner_one'; did you mean"):
            fg.PassManager("inner_one")
    with pytest.raises(InputError, match="no pass 'outer_one'"):
        fg.PassManager("outer_one")


def test_a_scope_that_fails_is_put_back_too() -> None:
    with pytest.raises(RuntimeError), fg.scoped():
        declare_pass("short_lived")
        raise RuntimeError
    assert "short_lived" not in fg.passes.available()


def test_a_name_is_taken_once() -> None:
    with fg.scoped():
        declare_pass("taken_once")
        with pytest.raises(InputError, match="there is a pass 'taken_once' already"):
            declare_pass("taken_once")
        with pytest.raises(UnsupportedError, match="there is an operator 'Relu' already"):
            fg.op("Relu")(lambda x: x)
        assert find_op("Relu") is not None
    assert find_op("Relu") is not None


def test_a_scope_belongs_to_its_thread() -> None:
    """What another thread registers outside scopes stays, however the scopes of this one end."""
    with fg.scoped():
        thread = threading.Thread(target=declare_pass, args=("from_elsewhere",))
        thread.start()
        thread.join()
    try:
        assert find_pass("from_elsewhere").name == "from_elsewhere"
    finally:
        from flowgrad.passes import registry

        del registry._PASSES.entries["from_elsewhere"]


def test_the_project_itself_is_loaded_whole_inside_a_scope() -> None:
    import subprocess
    import sys

    code = ("import flowgrad as fg\n"
            "with fg.scoped():\n    a = fg.load('tests/data/mlp.onnx').optimized()\n"
            "b = fg.load('tests/data/mlp.onnx').optimized()\nassert str(a) == str(b)")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_kept_beyond_its_scope_is_refused_and_not_mixed_with_the_next() -> None:
    x = np.ones(2, np.float32)
    with fg.scoped():
        declare_doubled()
        model = fg.load(TEXT)
        gradient, program = fg.vjp(model), model.compile()
        assert model(x=x)["y"].tolist() == gradient(x=x, y_grad=x)["y"].tolist() == program.run({"x": x})["y"].tolist() == [2, 2]
    uses = (lambda: model(x=x), lambda: gradient(x=x, y_grad=x), lambda: fg.vjp(model), lambda: fg.jvp(model), model.compile,
            model.to_onnx, model.optimized, lambda: program.run({"x": x}), lambda: model.astype("float64"))
    for use in uses:
        with pytest.raises(UnsupportedError, match="no operator 'Doubled' as it was .* scope .* has ended"):
            use()
    assert "Doubled" in str(model) and "1 nodes" in repr(model)
    with fg.scoped():

        @fg.op("Doubled", traits=(Trait.ELEMENTWISE, Trait.LINEAR))
        def doubled(x: Array, *, out: Array | None = None) -> Array:
            return np.asarray(np.multiply(x, 3, out=out))

        for use in uses:
            with pytest.raises(UnsupportedError, match="no operator 'Doubled' as it was .* scope .* has ended"):
                use()
        assert fg.load(TEXT)(x=x)["y"].tolist() == [3, 3]


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("kind", ["partials", "adjoint", "tangent", "override"])
def test_rules_return_one_item_for_each_operand(kind: str, count: int) -> None:
    """Two would be one too many, and may be what was meant for another operator."""

    def rule(b: DerivativeBuilder, node: Node, *given: Value) -> Any:
        return (node.input(0),) * count

    with fg.scoped():

        @fg.op("Doubled", traits=(Trait.ELEMENTWISE,))
        def doubled(x: Array, *, out: Array | None = None) -> Array:
            return np.asarray(np.multiply(x, 2, out=out))

        if kind != "override":
            getattr(doubled, kind)(rule)
        model = fg.load(TEXT)
        if kind == "override":
            if not count:
                pytest.skip("what is missing is zero there")
            model = fg.override_adjoint(model, rule, op="Doubled")
        modes = {"partials": (fg.vjp, fg.jvp), "adjoint": (fg.vjp,), "tangent": (fg.jvp,), "override": (fg.vjp,)}
        for mode in modes[kind]:
            with pytest.raises(PassError, match=f"rule of Doubled returned {count} items for 1 (in|out)puts?"):
                mode(model)


@pytest.mark.parametrize("inside", [
    "fg.load('tests/data/mlp.onnx').optimized('cse')", "fg.grad(fg.load('tests/data/mlp.onnx'), 'loss', 'x')", "fg.load", "fg.passes.available()",
])
def test_what_the_project_registers_stays_where_a_scope_uses_it_first(inside: str) -> None:
    code = (f"import flowgrad as fg\nwith fg.scoped():\n    {inside}\nmodel = fg.load('tests/data/mlp.onnx')\n"
            "assert len(fg.value_and_grad(model, 'loss', 'params').optimized('cse,fold,checkpoint').outputs) == 5\n"
            "assert len(model.optimized('cse,adjoint{wrt=params,of=loss}').outputs) > 2\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
