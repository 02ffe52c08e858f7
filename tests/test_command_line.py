"""The command line as a tool: examples of the help, profiles, pictures, training, comparison, completion, pipes."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.tools import picture
from flowgrad.tools.cli import SUBCOMMANDS, main, parser_of
from flowgrad.tools.completion import INSTALL
from flowgrad.tools.run import EXAMPLE
from flowgrad.tools.run import main as run_main

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
Capture = pytest.CaptureFixture[str]

CLASSIFIER = b"""graph @classifier (%image: f32[N,1,8,8]) -> (%scores: f32[N,3])
initializers (%w: f32[2,1,3,3] = [[[[0.1, 0.2, 0.1], [0.2, 0.4, 0.2], [0.1, 0.2, 0.1]]],
                                     [[[-0.1, 0, 0.1], [-0.2, 0, 0.2], [-0.1, 0, 0.1]]]],
              %v: f32[2,3] = [[0.1, -0.2, 0.3], [0.2, 0.1, -0.3]]) {
    %maps: f32[N,2,6,6] = Conv(%image, %w)
    %active: f32[N,2,6,6] = Relu(%maps)
    %pooled: f32[N,2,1,1] = GlobalAveragePool(%active)
    %flat: f32[N,2] = Flatten(%pooled)
    %scores: f32[N,3] = MatMul(%flat, %v)
}"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that examples run in: with the models and data that they name."""
    for name in ("mlp.onnx", "mlp_grad.msgpack"):
        shutil.copy(DATA / name, tmp_path / name)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((12, 1, 8, 8)).astype(np.float32)
    fg.load(CLASSIFIER).to_onnx(tmp_path / "classifier.onnx")
    np.save(tmp_path / "digit.npy", images[:1])
    np.savez(tmp_path / "digits.npz", image=images, target=np.arange(12) % 3)
    np.savez(tmp_path / "batch.npz", x=np.ones((2, 4), np.float32), target=np.array([0, 2]))
    _zoo_entry(tmp_path / "models" / "mlp", tmp_path / "mlp.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _zoo_entry(folder: Path, model: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copy(model, folder / "model.onnx")
    feeds = {"x": np.ones((2, 4), np.float32), "target": np.array([0, 2])}
    found = fg.vjp(fg.load(model), "loss", "x")({**feeds, "loss_grad": np.float32(1)})
    arrays: dict[str, Any] = {f"in/{n}": a for n, a in feeds.items()}
    np.savez(folder / "data.npz", **arrays | {"out/loss": found["loss"], "ct/loss": np.float32(1), "grad/x": found["x_grad"]})
    (folder / "meta.json").write_text(json.dumps({
        "inputs": [{"name": "x"}, {"name": "target"}], "outputs": [{"name": "loss", "cotangent": 1}],
        "gradients": [{"name": "x", "max_abs": float(np.abs(found["x_grad"]).max()), "floor": 1e-7}]}))


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_the_help_of_every_command_ends_with_an_example_that_runs(command: str, folder: Path, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    example = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert example.startswith("example: flowgrad"), "the example is one line, and the last"
    words = shlex.split(example.removeprefix("example: "))
    if "ort" in example:
        pytest.importorskip("onnxruntime")
    code = run_main(words[1:]) if words[0] == "flowgrad-run" else main(words[1:])
    assert code == (1 if command == "diff" else 0), capsys.readouterr().err


def test_the_short_name_has_the_same_example(folder: Path, capsys: Capture) -> None:
    assert run_main(["--help"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(EXAMPLE)


# ---- run ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["numpy", "ort"])
def test_a_profile_has_every_node_of_every_run(engine: str, folder: Path, capsys: Capture) -> None:
    if engine == "ort":
        pytest.importorskip("onnxruntime")
    words = ["run", "mlp.onnx", "--inputs", "batch.npz", "--engine", engine, "--repeat", "3", "--profile", "t.json", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    nodes = [e for e in json.loads((folder / "t.json").read_text()) if e["cat"] == "Node" and e["args"]["op_name"] == "Gemm"]
    gemms = [e for e in nodes if e["name"] == "fc2_kernel_time"]
    assert len(gemms) == 3 and all(e["ph"] == "X" and e["dur"] >= 0 for e in gemms)
    assert gemms[0]["args"]["output_size"] == "24" and gemms[0]["args"]["output_type_shape"] == [{"float": [2, 3]}]
    assert gemms[0]["args"]["activation_size"] == "64"
    assert {"op": "Gemm", "nodes": 2}.items() <= next(o for o in report["ops"] if o["op"] == "Gemm").items() or engine == "ort"
    assert len(report["seconds"]["all"]) == 3 and report["seconds"]["median"] == sorted(report["seconds"]["all"])[1]


def test_a_profile_of_a_loop_counts_it_as_one_node(capsys: Capture) -> None:
    program = fg.load(DATA / "loop.onnx").compile()
    feeds = {"steps": 3, "x": np.ones((2, 3), np.float32), "h": np.ones((2, 3), np.float32)}
    profile = program.profile(feeds, runs=2)
    assert profile.by_op()["Loop"][0] == 2
    for name, array in program.run(feeds).items():
        np.testing.assert_array_equal(profile.outputs[name], array)


def test_first_and_steady_runs_are_told_apart(folder: Path, capsys: Capture) -> None:
    assert main(["run", "mlp.onnx", "--warmup", "2", "--repeat", "5"]) == 0
    said = capsys.readouterr().err
    assert "first run" in said and "(median of 5," in said and "peak" in said
    assert main(["run", "mlp.onnx", "--json"]) == 0
    seconds = json.loads(capsys.readouterr().out)["seconds"]
    assert seconds["median"] is None and seconds["first"] > 0 and seconds["compile"] > 0


def test_json_has_numbers_and_is_json(folder: Path, capsys: Capture) -> None:
    np.savez(folder / "bad.npz", x=np.full((2, 4), np.inf, np.float32), target=np.array([0, 2]))
    assert main(["run", "mlp.onnx", "--inputs", "bad.npz", "--json"]) == 0
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert report["inputs"]["x"]["max"] == "inf" and report["inputs"]["x"]["finite"] is False
    assert report["inputs"]["target"]["values"] == [0, 2]
    assert main(["run", "mlp.onnx", "--inputs", "batch.npz", "--json"]) == 0
    loss = json.loads(capsys.readouterr().out)["outputs"]["loss"]
    assert loss["values"] == loss["min"] == loss["mean"] and loss["values"] == pytest.approx(loss["l2"])


@pytest.mark.parametrize("given", ["N:5", "N=5", "x:5,4", "x:5,?"])
def test_named_dims_have_an_extent(given: str, folder: Path, capsys: Capture) -> None:
    assert main(["run", "mlp.onnx", "--input-shapes", given]) == 0
    assert "x       float32[5,4]" in capsys.readouterr().out


def test_what_is_written_is_said(folder: Path, capsys: Capture) -> None:
    assert main(["run", "mlp.onnx", "--save-outputs", "out.npz"]) == 0
    assert f"wrote out.npz ({(folder / 'out.npz').stat().st_size} B)" in capsys.readouterr().err
    assert main(["run", "mlp.onnx", "--save-outputs", "out.npz"]) == 0
    assert "replacing the old file" in capsys.readouterr().err


# ---- pipes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["msgpack", "onnx", "ir"])
def test_graphs_and_arrays_go_through_pipes(form: str, folder: Path) -> None:
    def command(*words: str, given: bytes = b"") -> bytes:
        done = subprocess.run([sys.executable, "-m", "flowgrad", *words], input=given, capture_output=True, check=True,
                              env={"PYTHONPATH": str(ROOT)})
        return done.stdout

    graph = command("grad", "mlp.onnx", "--of", "loss", "--emit", form)
    arrays = command("run", "-", "--inputs", "batch.npz", "--save-outputs", "-", given=graph)
    expected = fg.value_and_grad(fg.load("mlp.onnx"), "loss")(dict(np.load("batch.npz")))
    with np.load(io.BytesIO(arrays)) as found:
        assert set(found) == set(expected)
        np.testing.assert_allclose(found["x_grad"], expected["x_grad"], rtol=1e-5)


def test_a_form_can_be_said_instead_of_an_ending(folder: Path, capsys: Capture) -> None:
    assert main(["grad", "mlp.onnx", "gradient", "--of", "loss", "--emit", "onnx"]) == 0
    assert [o.name for o in fg.load("gradient").outputs] == ["loss", "x_grad"]


# ---- grad -----------------------------------------------------------------------------------------------------------------


def test_one_entry_is_differentiated(folder: Path, capsys: Capture) -> None:
    model, feeds = fg.load("mlp.onnx"), dict(np.load("batch.npz"))
    greatest = model(feeds)["logits"].argmax(1)
    for words, expected in (
        (["--pick", "argmax"], fg.grad(model, fg.pick("logits", "i"), "x")({**feeds, "i": greatest})),
        (["--pick", "-1"], fg.grad(model, fg.pick("logits", -1), "x")(feeds)),
        (["--pick", "target"], fg.grad(model, fg.pick("logits"), "x")(feeds)),
    ):
        assert main(["grad", "mlp.onnx", "g.msgpack", "--of", "logits", "--no-value", *words]) == 0
        np.testing.assert_allclose(fg.load("g.msgpack")(feeds)["x_grad"], expected["x_grad"], rtol=1e-6)


def test_an_input_called_argmax_is_that_input() -> None:
    model = fg.load(b"graph @g (%x: f32[2,3], %argmax: i64[2]) -> (%y: f32[2,3], %z: i64[2]) "
                    b"{ %y: f32[2,3] = Mul(%x, %x) %z: i64[2] = Neg(%argmax) }")
    found = fg.grad(model, fg.pick("y", "argmax"), "x")(x=np.array([[1, 2, 3], [3, 2, 1]], np.float32), argmax=np.array([0, 1]))
    np.testing.assert_array_equal(found["x_grad"], [[2, 0, 0], [0, 4, 0]])


def test_a_loss_is_added_and_differentiated(folder: Path, capsys: Capture) -> None:
    words = ["--of", "logits", "--loss", "softmax_cross_entropy", "--target", "label", "--wrt", "params", "--profile", "t.json"]
    assert main(["grad", "mlp.onnx", "g.msgpack", *words]) == 0
    feeds = dict(np.load("batch.npz"))
    found = fg.load("g.msgpack")({**feeds, "label": feeds["target"]})
    expected = fg.value_and_grad(fg.load("mlp.onnx"), "loss", "params")(feeds)
    np.testing.assert_allclose(found["w1_grad"], expected["w1_grad"], rtol=1e-5, atol=1e-7)
    phases = [event["name"] for event in json.loads((folder / "t.json").read_text())]
    assert phases[0] == "loading mlp.onnx" and "differentiating" in phases and phases[-1] == "writing g.msgpack"
    assert main(["grad", "mlp.onnx", "--of", "logits", "--loss", "huber", "--pick", "0"]) == 2
    assert "give one of them" in capsys.readouterr().err


# ---- explain --------------------------------------------------------------------------------------------------------------


def test_a_png_is_what_was_drawn(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    picture.save_picture(tmp_path / "p.png", pixels)
    data, at, chunks = (tmp_path / "p.png").read_bytes(), 8, {}
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert int.from_bytes(data[at + 8 + size : at + 12 + size]) == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + size
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (7, 5, 8, 2, 0, 0, 0) and list(chunks)[-1] == b"IEND"
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(5, 22)
    np.testing.assert_array_equal(rows[:, 0], 0)
    np.testing.assert_array_equal(rows[:, 1:].reshape(5, 7, 3), pixels)
    picture.save_picture(tmp_path / "p.ppm", pixels)
    assert (tmp_path / "p.ppm").read_bytes() == b"P6\n7 5\n255\n" + pixels.tobytes()


def test_red_speaks_for_and_blue_against() -> None:
    heat = picture.explained(np.zeros(3), np.array([0.0, 2.0, -1.0]))
    side = heat.shape[0]
    np.testing.assert_array_equal(heat[0, [0, side, 2 * side]], [[255, 255, 255], [255, 0, 0], [128, 128, 255]])
    image = np.zeros((1, 2, 2))
    image[0, 0, 0] = 1
    both = picture.explained(image, np.ones((1, 2, 2)))
    assert tuple(both[0, 0]) == (255, 255, 255) and tuple(both[-1, 0]) == (0, 0, 0) and tuple(both[0, -1]) == (255, 0, 0)


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient", "integrated_gradients", "guided_backprop", "smooth_grad", "grad_cam"])
def test_every_method_draws(method: str, folder: Path, capsys: Capture) -> None:
    layer = ["--layer", "maps"] if method == "grad_cam" else []
    words = ["explain", "classifier.onnx", "why.ppm", "--inputs", "digits.npz", "--method", method, *layer]
    np.savez(folder / "digits.npz", image=np.load(folder / "digits.npz")["image"])
    assert main([*words, "--example", "3", "--target", "1", "--save-outputs", "a.npz"]) == 0
    assert capsys.readouterr().out.count("class") == 3
    found = np.load(folder / "a.npz")["image"]
    assert found.shape == ((1, 1, 6, 6) if method == "grad_cam" else (1, 1, 8, 8))
    assert (folder / "why.ppm").read_bytes().startswith(b"P6\n520 256\n")
    if method == "saliency":
        x = np.load(folder / "digits.npz")["image"][3:4]
        np.testing.assert_allclose(found, fg.explain.Saliency(fg.load("classifier.onnx")).attribute(x, 1), rtol=1e-6)


def test_an_image_is_read_scaled_and_standardised(folder: Path, capsys: Capture) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((16, 24, 3), 128, np.uint8)).save(folder / "cat.png")
    assert main(["explain", "classifier.onnx", "why.png", "--inputs", "image=cat.png", "--mean", "0.5", "--std", "0.25", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    same = np.full((1, 1, 8, 8), (128 / 255 - 0.5) / 0.25, np.float32)
    expected = fg.load("classifier.onnx")(same)["scores"][0]
    np.testing.assert_allclose([scores[str(i)] for i in range(3)], expected, rtol=1e-5)


# ---- train ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["numpy", "ort"])
def test_training_lowers_the_loss_and_goes_on_where_it_was(engine: str, folder: Path, capsys: Capture) -> None:
    if engine == "ort":
        pytest.importorskip("onnxruntime")
    pytest.importorskip("safetensors")
    words = ["train", "classifier.onnx", "--data", "digits.npz", "--loss", "softmax_cross_entropy", "--learning-rate", "0.05",
             "--optimizer", "sgd", "--set", "momentum=0.9", "--batch", "4", "--engine", engine, "--json"]
    assert main([*words, "whole.msgpack", "--epochs", "6"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] == 18 and report["losses"][-1] < report["losses"][0]
    assert main([*words, "part.msgpack", "--epochs", "2", "--checkpoint", "run.safetensors"]) == 0
    assert main([*words, "rest.msgpack", "--epochs", "6", "--checkpoint", "run.safetensors"]) == 0
    whole, rest = (fg.load(name).state_dict() for name in ("whole.msgpack", "rest.msgpack"))
    assert all(np.array_equal(whole[name], rest[name]) for name in whole)
    assert not np.array_equal(whole["w"], fg.load("classifier.onnx").state_dict()["w"])


def test_an_out_that_cannot_hold_the_weights_is_refused_before_training(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flowgrad.tools.train.fit", lambda *_, **__: pytest.fail("trained in vain"))
    words = ["train", "large.msgpack", "--data", "batch.npz", "--loss", "softmax_cross_entropy"]
    model = fg.load(b"graph @g (%x: f32[N,4]) -> (%y: f32[N,3]) initializers (%w: f32[4,3] = "
                    b"[[1,2,3],[1,2,3],[1,2,3],[1,2,3]]) { %y: f32[N,3] = MatMul(%x, %w) }")
    large = fg.compose(model, fg.load(b"graph @h (%z: f32[N,3]) -> (%s: f32[N,200]) initializers (%v: f32[3,200] = "
                                      + str([[1.0] * 200] * 3).encode() + b") { %s: f32[N,200] = MatMul(%z, %v) }"), {"y": "z"})
    large.save("large.msgpack")
    for out in ("t.ir", "-"):
        assert main([*words, out]) == 2
        assert "would lack trained weights" in capsys.readouterr().err
    assert main([*words, "nowhere/t.onnx"]) == 7
    assert "no such folder" in capsys.readouterr().err


# ---- diff -----------------------------------------------------------------------------------------------------------------


def test_what_differs_is_listed_and_outputs_compared(folder: Path, capsys: Capture) -> None:
    model = fg.load("mlp.onnx")
    model.save("same.msgpack")
    assert main(["diff", "same.msgpack", "same.msgpack"]) == 0
    assert capsys.readouterr().out == ""
    moved = model.state_dict()["b1"] + np.float32(0.5)
    model.with_params({"b1": moved}).save("moved.msgpack")
    assert main(["diff", "same.msgpack", "moved.msgpack"]) == 1
    assert capsys.readouterr().out == "~ constant %b1: 8 of 8 elements differ, by up to 0.5\n"
    assert main(["diff", "same.msgpack", "moved.msgpack", "--inputs", "batch.npz", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [o["close"] for o in report["outputs"]] == [False, False]
    model.optimized("stabilize").save("other.msgpack")
    assert main(["diff", "same.msgpack", "other.msgpack", "--run"]) == 0
    fg.grad(model, "loss", "x").save("grad.msgpack")
    assert main(["diff", "same.msgpack", "grad.msgpack"]) == 1
    out = capsys.readouterr().out
    assert "- output %loss: f32[]\n" in out and "+ output %x_grad: f32[N,4]\n" in out


# ---- mistakes and completion ----------------------------------------------------------------------------------------------


def test_a_help_fits_a_screen_and_its_usage_a_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    for command in SUBCOMMANDS:
        assert main([command, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 50 and lines[0].startswith(f"usage: flowgrad {command} ") and not lines[1], command


@pytest.mark.parametrize(("words", "said"), [
    (["gard", "mlp.onnx"], "did you mean 'grad'"),
    (["run", "mlp.onnx", "--input-shape=x:1,4", "--warmpu", "3"], "no option '--warmpu'; did you mean '--warmup'"),
    (["run", "mlp.onnx", "--repeat", "-1"], "'-1' is no number from 0 on"),
    (["inspect", "mlp.onnx", "other.onnx"], "one argument too many: 'other.onnx'"),
    (["train", "classifier.onnx", "t.onnx", "--data", "digits.npz"], "add a loss (with_loss, on the command line --loss)"),
    (["explain", "classifier.onnx", "why.gif"], "ends in .png or .ppm"),
    (["explain", "classifier.onnx", "why.png", "--method", "grad_cam"], "--layer NAME"),
    (["explain", "classifier.onnx", "why.png", "--target", "7"], "outside 0..2"),
    (["train", "classifier.onnx", "t.onnx", "--data", "batch.npz", "--loss", "softmax_cross_entropy"], "no input 'x'"),
    (["train", "mlp.onnx", "t.onnx", "--data", "batch.npz", "--set", "momentum"], "--set takes NAME=NUMBER"),
    (["train", "mlp.onnx", "t.onnx", "--data", "batch.npz", "--of", "loss", "--set", "momentun=1"], "no setting 'momentun'"),
])
def test_mistakes_name_what_was_meant(words: list[str], said: str, folder: Path, capsys: Capture) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_bash_completes_commands_options_and_choices(tmp_path: Path, capsys: Capture) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        code = f"{script}\nCOMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; _flowgrad; echo \"${{COMPREPLY[@]}}\""
        return subprocess.run([bash, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()

    (tmp_path / "model.onnx").touch()
    assert completed("flowgrad", "gr") == ["grad", "gradcheck"]
    assert completed("flowgrad", "train", "--op") == ["--optimizer", "--opset"]
    assert completed("flowgrad", "train", "--optimizer", "ad") == ["adam", "adamw"]
    assert completed("flowgrad-run", "--pro") == ["--profile"]
    assert completed("flowgrad", "grad", "mod") == ["model.onnx"]


@pytest.mark.parametrize("shell", INSTALL)
def test_every_shell_has_every_option(shell: str, capsys: Capture) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in SUBCOMMANDS:
        for option in parser_of(name).options():
            assert (option if shell != "fish" else f"-l {option[2:]} ") in script
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n"], input=script, text=True, check=True)
