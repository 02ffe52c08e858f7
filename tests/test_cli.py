"""The commands as a user types them: output, exit codes, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.ops.registry import Trait
from flowgrad.ir.pack import pack
from flowgrad.tools.cli import main
from flowgrad.transforms.gradcheck import GradcheckResult

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
Capture = pytest.CaptureFixture[str]


def run(*words: object) -> int:
    return main([str(w) for w in words])


def test_run_makes_seeded_inputs(capsys: Capture) -> None:
    assert run("run", DATA / "mlp.onnx", "--input-shapes", "x:5,4", "--seed", "3") == 0
    first = capsys.readouterr()
    assert "x       float32[5,4]" in first.out
    assert "loss" in first.out
    assert "engine numpy" in first.err
    assert run("run", DATA / "mlp.onnx", "--input-shapes", "x:5,4", "--seed", "3") == 0
    assert capsys.readouterr().out == first.out


@pytest.mark.parametrize(("limits", "code", "said"), [
    ("strict", 0, ""), ("nodes=2", 4, "nodes is 3, the limit is 2"), ("node=2", 2, "did you mean 'nodes'"),
])
@pytest.mark.parametrize("command", [["run"], ["inspect"], ["opt"], ["grad", "--of", "loss"]], ids=lambda c: c[0])
def test_every_command_takes_limits(command: list[str], limits: str, code: int, said: str, capsys: Capture) -> None:
    assert run(command[0], DATA / "mlp.onnx", *command[1:], "--limits", limits) == code
    assert said in capsys.readouterr().err


def test_run_reads_and_writes_arrays(tmp_path: Path, capsys: Capture) -> None:
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    np.savez(tmp_path / "in.npz", x=x)
    np.save(tmp_path / "t.npy", np.array([0, 1]))
    code = run("run", DATA / "mlp.onnx", "--inputs", tmp_path / "in.npz", "--inputs", f"target={tmp_path / 't.npy'}",
               "--outputs", "loss", "--save-outputs", tmp_path / "out.npz", "--json")
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["outputs"]) == ["loss"]
    expected = fg.load(DATA / "mlp.onnx")(x=x, target=np.array([0, 1]))["loss"]
    with np.load(tmp_path / "out.npz") as saved:
        assert saved["loss"] == expected


def test_check_numerics_is_exit_code_1(tmp_path: Path, capsys: Capture) -> None:
    np.save(tmp_path / "x.npy", np.full((2, 4), np.nan, np.float32))
    np.save(tmp_path / "t.npy", np.array([0, 1]))
    given = ["--inputs", f"x={tmp_path / 'x.npy'}", "--inputs", f"target={tmp_path / 't.npy'}"]
    assert run("run", DATA / "mlp.onnx", *given, "--check-numerics") == 1
    assert "not finite: loss, logits" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["grad.onnx", "grad.msgpack", "grad.ir"])
def test_grad_writes_every_form(tmp_path: Path, capsys: Capture, target: str) -> None:
    assert run("grad", DATA / "mlp.onnx", tmp_path / target, "--of", "loss", "--wrt", "params") == 0
    noted = capsys.readouterr()
    assert noted.out == ""
    assert "4 gradients: w1_grad b1_grad w2_grad b2_grad" in noted.err
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((3, 4)).astype(np.float32), "target": np.array([0, 1, 2])}
    expected = fg.value_and_grad(fg.load(DATA / "mlp.onnx"), "loss", "params")(feeds)
    got = fg.load(tmp_path / target)(feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6)
    assert run("grad", DATA / "mlp.onnx", tmp_path / target, "--of", "loss") == 0
    assert "replacing the old file" in capsys.readouterr().err


def test_grad_prints_text(capsys: Capture) -> None:
    assert run("grad", DATA / "mlp.onnx", "--of", "loss", "--wrt", "w*", "-q") == 0
    assert "from adjoint(" in capsys.readouterr().out


def test_inspect(capsys: Capture) -> None:
    assert run("inspect", DATA / "loop.onnx", "--params") == 0
    out = capsys.readouterr().out
    assert "Loop 1" in out
    assert "in   w: float32[3,3]" in out
    assert run("inspect", DATA / "loop.onnx", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ops"]["Loop"] == 1


@pytest.mark.parametrize(("command", "options", "made"), [
    ("jacobian", ["--of", "logits", "--wrt", "x", "--mode", "fwd"], "logits_x_jacobian"),
    ("hessian", ["--of", "loss", "--wrt", "x,b1"], "x_x_hessian x_b1_hessian b1_x_hessian b1_b1_hessian"),
    ("hessian", ["--of", "loss", "--wrt", "x", "--diagonal", "--chunk-size", "2"], "x_hessian_diagonal"),
])
def test_jacobians_and_hessians(tmp_path: Path, capsys: Capture, command: str, options: list[str], made: str) -> None:
    assert run(command, DATA / "mlp.onnx", tmp_path / "out.onnx", *options, "--keep", "loss") == 0
    assert f"derivatives: {made}\n" in capsys.readouterr().err
    found = fg.load(tmp_path / "out.onnx")(x=np.ones((2, 4), np.float32), target=np.array([0, 2]))
    assert list(found) == [*made.split(), "loss"]


def test_gradcheck(capsys: Capture) -> None:
    assert run("gradcheck", DATA / "mlp.onnx", "--of", "loss", "--wrt", "params", "--input-shapes", "x:3,4") == 0
    out = capsys.readouterr().out
    assert "reverse w1" in out
    assert "forward b2" in out
    assert "FAILED" not in out


def test_inspect_names_what_no_derivative_passes(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "g.ir").write_text(
        "graph @g (%x: f32[2,3]) -> (%y: f32[2]) initializers (%w: f32[3] = [1.0, 2.0, 3.0]) "
        "{ %h: f32[2,3] = Mul(%x, %w) %i: i64[2] = ArgMax(%h) {axis=1, keepdims=0} %s: i64[2] = Shape(%h) "
        "%g: f32[2] = Gather(%w, %i) %y: f32[2] = Add(%g, 1.0) }")
    assert run("inspect", tmp_path / "g.ir") == 0
    out = capsys.readouterr().out
    assert "stops    ArgMax at i: its result is an integer: no derivative passes" in out
    assert out.count("stops") == 1
    assert "shared   w: 2 uses: Mul as b at 'h', Gather as data at 'g'" in out
    derived = fg.vjp(fg.load(tmp_path / "g.ir"), of="y", wrt="w")
    assert any("1 parameters are shared by several uses" in note and "'w'" in note for note in derived.notes)
    assert not any("shared" in note for note in fg.vjp(fg.load(DATA / "mlp.onnx"), of="logits", wrt="params").notes)


def test_opt_lists_and_runs_passes(tmp_path: Path, capsys: Capture) -> None:
    assert run("opt", "--list") == 0
    assert "cse" in capsys.readouterr().out
    assert run("opt", DATA / "mlp.onnx", tmp_path / "o.onnx", "--passes", "fold,cse,dce", "--check") == 0
    assert (tmp_path / "o.onnx").stat().st_size > 0


BAD: list[tuple[Sequence[str], int, str]] = [
    (["run", "missing.onnx"], 3, "cannot read 'missing.onnx'"),
    (["run", "{data}/make.py"], 3, "LoadError"),
    (["run", "{data}/mlp.onnx", "--input-shapes", "y:1"], 2, "no input 'y'"),
    (["run", "{data}/mlp.onnx", "--input-shapes", "x:one"], 2, "--input-shapes takes"),
    (["run", "{data}/mlp.onnx", "--outputs", "los"], 2, "did you mean 'loss'"),
    (["run", "{data}/mlp.onnx", "--inputs", "x"], 2, "--inputs takes"),
    (["run", "{data}/mlp.onnx", "--engine", "cuda"], 8, "cuda"),
    (["grad", "{data}/mlp.onnx", "--of", "logits"], 2, "not a scalar"),
    (["grad", "{data}/mlp.onnx", "--of", "loss", "--wrt", "w9"], 2, "w9"),
    (["jacobian", "{data}/mlp.onnx", "--of", "logits", "--chunk-size", "0"], 2, "chunk_size"),
    (["hessian", "{data}/mlp.onnx", "--of", "logits"], 2, "not a scalar"),
    (["jacobian", "{data}/mlp.onnx", "--of", "logits", "--sparse"], 3, "unbatch"),
    (["grad", "{data}/mlp.onnx", "out.pdf", "--of", "loss"], 2, "cannot tell the form"),
    (["grad", "{data}/mlp.onnx", "/nowhere/out.onnx", "--of", "loss"], 7, "SaveError"),
    (["opt", "{data}/mlp.onnx", "--passes", "folt"], 2, "did you mean 'fold'"),
    (["frobnicate"], 2, "no command 'frobnicate'"),
    ([], 2, "required"),
]


@pytest.mark.parametrize(("words", "code", "says"), BAD, ids=[" ".join(b[0])[:40] or "nothing" for b in BAD])
def test_bad_use_is_one_message_and_a_code(words: Sequence[str], code: int, says: str, capsys: Capture) -> None:
    assert run(*[w.format(data=DATA) for w in words]) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_saved_gradient_runs_without_onnx(tmp_path: Path) -> None:
    path = tmp_path / "g.msgpack"
    fg.value_and_grad(fg.load(DATA / "mlp.onnx"), "loss", "params").save(path)
    code = ("import sys; from flowgrad.tools.run import main; code = main([sys.argv[1], '-q']);"
            "print([m for m in ('onnx', 'numba', 'dask') if m in sys.modules]); sys.exit(code)")
    result = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "w1_grad" in result.stdout


BROKEN = '''
from flowgrad.passes.registry import pass_
from flowgrad.passes.rewrite import permitted, rewrite, apply_rules

@rewrite("Tanh(%x)")
def tanh_is_sigmoid(b, x):
    """A miscompilation."""
    return b.Sigmoid(x)

@pass_("broken_here", kind="rounding")
def broken_here(graph):
    """Turns every Tanh into something else."""
    apply_rules(graph, [tanh_is_sigmoid])

@pass_("crash_here", kind="exact")
def crash_here(graph):
    """Raises."""
    raise RuntimeError("this pass crashes")
'''


def test_bisect_names_the_pass_and_the_rewrite(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    words = ("opt", DATA / "mlp.onnx", "--load", tmp_path / "broken.py", "--passes")
    assert run(*words, "fold,broken_here,dce", "--bisect") == 1
    said = capsys.readouterr().out
    assert "pass broken_here (number 2)" in said
    assert "tanh_is_sigmoid" in said
    assert run(*words, "fold,cse,dce", "--bisect") == 0
    assert run(*words, "broken_here", "--check") == 1
    assert "PassError" in capsys.readouterr().err


def test_a_crash_leaves_a_reproducer(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    target = tmp_path / "crash.ir"
    words = ("opt", DATA / "mlp.onnx", "--load", tmp_path / "broken.py", "--passes", "fold,crash_here,dce", "--reproducer", target)
    assert run(*words) == 6
    assert "this pass crashes" in capsys.readouterr().err
    text = target.read_text()
    assert text.startswith("# pipeline: crash_here,dce\n# error: ")
    assert fg.load(target.with_suffix(".msgpack")).outputs[0].name == "loss"
    loads = ("--load", tmp_path / "broken.py")
    assert run("opt", target, tmp_path / "o.onnx", *loads) == 6  # the pipeline of the file, and its graph
    assert "the pipeline is that of the file: crash_here,dce" in capsys.readouterr().err
    assert run("opt", target, tmp_path / "o.onnx", *loads, "--passes", "dce") == 0
    small = tmp_path / "small.ir"
    small.write_text("# pipeline: crash_here\ngraph @g (%x: f32[3]) -> (%y: f32[3]) { %y: f32[3] = Tanh(%x) }\n")
    assert run("opt", small, *loads) == 6
    assert run("opt", small, *loads, "--skip", "crash_here") == 0


def test_a_forgotten_input_is_not_made_up(tmp_path: Path, capsys: Capture) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    for command in (["run"], ["gradcheck", "--of", "loss"]):
        assert run(command[0], DATA / "mlp.onnx", *command[1:], "--inputs", f"x={tmp_path / 'x.npy'}") == 2
        assert "no value given for input 'target'" in capsys.readouterr().err
    assert run("run", DATA / "mlp.onnx", "--json") == 0
    assert all(i["made"] for i in json.loads(capsys.readouterr().out)["inputs"].values())
    assert run("run", DATA / "mlp.onnx") == 0
    noted = capsys.readouterr()
    assert "made up, with seed 0: x, target" in noted.err
    assert noted.out.count("  made\n") == 2


def test_text_says_what_it_leaves_out(tmp_path: Path, capsys: Capture) -> None:
    weights = np.arange(100.0, dtype=np.float32)
    graph = fg.load(b"graph @g (%x: f32[100]) -> (%y: f32[100]) { %y: f32[100] = Neg(%x) }").graph
    b = Builder(graph)
    graph.add_output(b.Mul(graph.value("y"), graph.add_constant(weights, "w", "initializer")), "z")
    fg.Model(graph).save(tmp_path / "g.msgpack")
    assert run("opt", tmp_path / "g.msgpack", tmp_path / "g.ir", "--passes", "") == 0
    assert "without the data of 1 large constants (400 B)" in capsys.readouterr().err
    assert (tmp_path / "g.ir").read_text().startswith("# without the data of 1 large constants")


@pytest.mark.parametrize("form", ["m.onnx", "m.msgpack"])
def test_roles_survive_saving(tmp_path: Path, form: str) -> None:
    model = fg.vjp(fg.load(DATA / "mlp.onnx"), of="logits", wrt=["x", "w1"])
    (model.to_onnx if form == "m.onnx" else model.save)(tmp_path / form)
    again = fg.load(tmp_path / form)
    assert again.roles == model.roles
    assert again.graph.metadata == model.graph.metadata
    assert fg.load(tmp_path / form).roles["grad", "logits", "w1"] == "w1_grad"


@pytest.mark.parametrize("text", ["[", "[" * 5000, "{}", '[["a"]]', '[["grad", "y", "x", 3]]', "null"])
def test_roles_that_are_none_are_left_alone(text: str) -> None:
    graph = fg.load(b"graph @g (%x: f32[3]) -> (%y: f32[3]) { %y: f32[3] = Neg(%x) }").graph
    graph.metadata["flowgrad.roles"] = text
    again = fg.load(pack(graph))
    assert not again.roles
    assert again.graph.metadata["flowgrad.roles"] == text


# ---- gradcheck --------------------------------------------------------------------------------------------------------


def relu_at(x: list[float]) -> GradcheckResult:
    model = fg.load(f"graph @g (%x: f64[{len(x)}]) -> (%y: f64[{len(x)}]) {{ %y: f64[{len(x)}] = Relu(%x) }}".encode())
    return fg.gradcheck(model, {"x": np.array(x)})


def test_steps_that_cross_a_kink_get_smaller() -> None:
    found = relu_at([1e-8, -3e-8, 2.0, 5e-9])
    assert found
    assert not any(c.kink for c in found.checks)


def test_a_point_on_a_kink_is_called_one(tmp_path: Path, capsys: Capture) -> None:
    found = relu_at([0.0, 1.0])
    assert found
    assert all(c.kink for c in found.checks)
    (tmp_path / "g.ir").write_text("graph @g (%x: f64[2]) -> (%y: f64[2]) { %y: f64[2] = Relu(%x) }")
    np.save(tmp_path / "x.npy", np.zeros(2))
    assert run("gradcheck", tmp_path / "g.ir", "--inputs", f"x={tmp_path / 'x.npy'}") == 0
    assert "  kink    got" in capsys.readouterr().out


@pytest.mark.parametrize("at", [[0.5, 1.0], [0.0, 1.0], [1e-8, 1.0]])
def test_a_wrong_gradient_fails_with_a_kink_and_without(at: list[float]) -> None:
    with fg.scoped():

        @fg.op("Bent", traits=(Trait.ELEMENTWISE,))
        def bent(x: Any, *, out: Any = None) -> Any:
            return np.maximum(x, 0, out=out)

        factors = [1.0]
        bent.partials(lambda b, node: (b.Mul(b.Sign(b.Relu(node.input(0))), factors[-1]),))
        for factor, passes in ((1.0, True), (1.01, False)):
            factors.append(factor)
            model = fg.load(b"graph @g (%x: f64[2]) -> (%y: f64[2]) { %y: f64[2] = Bent(%x) }")
            assert bool(fg.gradcheck(model, {"x": np.array(at)})) == passes


def test_a_partial_that_is_no_number_is_that_of_its_own_tensor() -> None:
    model = fg.load(b"graph @g (%x: f64[2], %w: f64[2]) -> (%y: f64[2]) "
                    b"{ %r: f64[2] = Pow(%w, 0.5) %p: f64[2] = Mul(%r, %r) %y: f64[2] = Add(%x, %p) }")
    found = fg.gradcheck(fg.load(pack(model.graph)), {"x": np.ones(2), "w": np.array([-1.0, 1.0])})
    bad = {c.what for c in found.checks if not c.passed}
    assert bad >= {"reverse w", "forward w"}


@pytest.mark.parametrize("modes", [("rev",), ("fwd",), ("rev", "fwd")])
def test_an_inner_value_is_checked(modes: tuple[str, ...]) -> None:
    model = fg.load(b"graph @g (%x: f64[2]) -> (%y: f64[2]) { %s: f64[2] = Sin(%x) %y: f64[2] = Exp(%s) }")
    found = fg.gradcheck(model, {"x": np.array([0.3, 0.7])}, "s", modes=modes, samples=2)
    assert found
    assert [c.what.split()[0][:3] for c in found.checks] == [{"rev": "rev", "fwd": "for"}[m] for m in modes] * 2
    assert [o.name for o in model.outputs] == ["y"]


def test_a_model_that_is_a_derivative_itself_is_checked_by_its_own_inputs() -> None:
    model = fg.load(b"graph @g (%x: f64[2], %w: f64[2]) -> (%y: f64[]) {\n%p: f64[2] = Mul(%x, %w)\n%s: f64[2] = Sin(%p)\n"
                    b"%y: f64[] = ReduceSum(%s) {keepdims=0}\n}")
    product = fg.hvp(model, "y", "x")
    found = fg.gradcheck(product, {"x": np.array([0.3, 0.7]), "w": np.ones(2), "x_tangent": np.array([1.0, -2.0])}, "x_hvp", "w")
    assert found and {c.what for c in found.checks} == {"reverse w", "forward w"}


def test_the_output_may_stand_behind_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "gradient.msgpack"
    assert main(["grad", "tests/data/mlp.onnx", "--of", "loss", "--wrt", "x", str(target)]) == 0
    assert [o.name for o in fg.load(target).outputs] == ["loss", "x_grad"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"flowgrad {fg.__version__}\n"
