"""train_step: each optimizer against its formulas in NumPy, and what comes out feeds the next step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.errors import InputError, LoadError
from flowgrad.ir.graph import Array

RATE, STEPS = 0.05, 5
BATCHES = np.random.default_rng(1).standard_normal((STEPS, 6, 4))
TARGETS = np.random.default_rng(2).integers(0, 3, (STEPS, 6))


@pytest.fixture(scope="module")
def classifier() -> fg.Model:
    return fg.load("tests/data/mlp.onnx").astype("float64")


def directions(name: str, settings: dict[str, float]) -> Any:
    """Return ``update(w, g, state, t) -> w`` by the formulas, with ``state`` a dict that it fills."""
    decay = settings.get("weight_decay", 0.01 if name == "adamw" else 0.0)

    def update(w: Array, g: Array, state: dict[str, Array], t: int) -> Array:
        if name == "adamw":
            w = w - RATE * decay * w
        else:
            g = g + decay * w
        if name in ("adam", "adamw"):
            state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
            state["v"] = 0.999 * state.get("v", 0) + 0.001 * g * g
            return w - RATE * (state["m"] / (1 - 0.9**t)) / (np.sqrt(state["v"] / (1 - 0.999**t)) + 1e-8)
        if name == "rmsprop":
            state["s"] = 0.99 * state.get("s", 0) + 0.01 * g * g
            g = g / (np.sqrt(state["s"]) + 1e-8)
        momentum = settings.get("momentum", 0.0)
        state["b"] = momentum * state.get("b", 0) + g
        return w - RATE * (g + momentum * state["b"] if settings.get("nesterov") else state["b"])

    return update


OPTIMIZERS: list[tuple[str, dict[str, float]]] = [
    ("sgd", {}), ("sgd", {"momentum": 0.9, "weight_decay": 0.01}), ("sgd", {"momentum": 0.9, "nesterov": 1}), ("adam", {}),
    ("adam", {"weight_decay": 0.1}), ("adamw", {}), ("rmsprop", {}), ("rmsprop", {"momentum": 0.5}),
]


def trained(step: fg.Model) -> tuple[list[float], dict[str, Array]]:
    """Return the losses of all steps and what the last one gives to the next."""
    following, state, losses = fg.next_inputs(step), dict[str, Array](), []
    for x, target in zip(BATCHES, TARGETS, strict=True):
        result = step({"x": x, "target": target, **state})
        losses.append(float(result["loss"]))
        state = {following[name]: array for name, array in result.items() if name in following}
    return losses, state


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize(("name", "settings"), OPTIMIZERS)
def test_steps_follow_the_formulas(classifier: fg.Model, name: str, settings: dict[str, float], clip: float | None) -> None:
    losses, state = trained(fg.train_step(classifier, name, of="loss", learning_rate=RATE, clip_norm=clip, **settings))  # type: ignore[arg-type]
    gradient = fg.value_and_grad(classifier, of="loss", wrt="params")
    weights: dict[str, Array] = {p.name: np.asarray(classifier.graph.value(p.name).constant) for p in classifier.params if p.included}
    states: dict[str, dict[str, Array]] = {n: {} for n in weights}
    update = directions(name, settings)
    for t, (x, target) in enumerate(zip(BATCHES, TARGETS, strict=True), 1):
        result = gradient({"x": x, "target": target, **weights})
        np.testing.assert_allclose(losses[t - 1], result["loss"], rtol=1e-12)
        norm = np.sqrt(sum((result[f"{n}_grad"] ** 2).sum() for n in weights))
        scale = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        weights = {n: update(w, result[f"{n}_grad"] * scale, states[n], t) for n, w in weights.items()}
    for n, w in weights.items():
        np.testing.assert_allclose(state[n], w, rtol=1e-10, atol=1e-12)
    assert state["step"] == STEPS


def test_the_rate_is_an_input_and_frozen_weights_stay(classifier: fg.Model) -> None:
    step = fg.train_step(classifier, "sgd", of="loss", frozen="b*", learning_rate=RATE)
    assert sorted(fg.next_inputs(step).values()) == ["step", "w1", "w2"]
    feeds = {"x": BATCHES[0], "target": TARGETS[0]}
    one, two = step(feeds), step(feeds, learning_rate=np.float64(2 * RATE))
    start = np.asarray(classifier.graph.value("w1").constant)
    np.testing.assert_allclose(two["w1_new"] - start, 2 * (one["w1_new"] - start), rtol=1e-9)


def test_a_saved_step_goes_on_where_it_was(classifier: fg.Model, tmp_path: Path) -> None:
    step = fg.train_step(classifier, "adam", of="loss", learning_rate=RATE)
    step.save(tmp_path / "step.msgpack")
    assert trained(fg.load(tmp_path / "step.msgpack"))[0] == trained(step)[0]


def test_an_exported_step_trains_in_onnxruntime(classifier: fg.Model, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    step = fg.train_step(classifier, "adam", of="loss", learning_rate=RATE)
    step.to_onnx(tmp_path / "step.onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(tmp_path / "step.onnx"), options)
    names, following = [o.name for o in session.get_outputs()], fg.next_inputs(step)
    state: dict[str, Array] = {}
    for x, target, expected in zip(BATCHES, TARGETS, trained(step)[0], strict=True):
        result = dict(zip(names, session.run(None, {"x": x, "target": target, **state}), strict=True))
        np.testing.assert_allclose(result["loss"], expected, rtol=1e-10)
        state = {following[n]: a for n, a in result.items() if n in following}


def test_narrow_weights_are_updated_in_float32() -> None:
    step = fg.train_step(fg.load("tests/data/mlp.onnx").astype("float16"), "adam", of="loss")
    result = step(x=BATCHES[0].astype(np.float16), target=TARGETS[0])
    assert result["w1_new"].dtype == np.float16
    assert result["w1_mean_new"].dtype == np.float32


@pytest.mark.parametrize(("arguments", "said"), [
    ({"optimizer": "adm"}, "did you mean 'adam'"),
    ({"momentum": 0.9}, "'adam' has no setting 'momentum'"),
    ({"frozen": "fc*"}, "matches none of w1, b1, w2, b2"),
    ({"frozen": "*"}, "nothing to train"),
    ({"clip_norm": 0.0}, "clip_norm is above 0"),
    ({"of": "logits"}, "not a scalar"),
])
def test_wrong_calls_say_the_way_out(classifier: fg.Model, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fg.train_step(classifier, **{"of": "loss", **arguments})


# ---- the loop -------------------------------------------------------------------------------------------------------------


def batches() -> list[dict[str, Array]]:
    return [{"x": x, "target": t} for x, t in zip(BATCHES, TARGETS, strict=True)]


def test_a_loop_runs_all_batches_of_all_epochs(classifier: fg.Model) -> None:
    step = fg.train_step(classifier, "adam", of="loss", learning_rate=RATE)
    fitted = fg.fit(step, batches())
    losses, state = trained(step)
    assert fitted.losses == losses
    for name, array in state.items():
        np.testing.assert_array_equal(fitted.state[name], array)
    assert set(fitted.weights(classifier)) == {"w1", "b1", "w2", "b2"}
    after = classifier.with_params(fitted.weights(classifier))
    assert after(batches()[0])["loss"] < classifier(batches()[0])["loss"]


def test_rates_follow_a_schedule_and_batches_the_epoch(classifier: fg.Model) -> None:
    step = fg.train_step(classifier, "sgd", of="loss")
    seen: list[int] = []

    def shuffled(epoch: int) -> list[dict[str, Array]]:
        seen.append(epoch)
        return [batches()[i] for i in np.random.default_rng(epoch).permutation(STEPS)]

    still = fg.fit(step, shuffled, epochs=2, learning_rate=lambda number: 0.0)
    assert seen == [0, 1] and len(still.losses) == 2 * STEPS
    np.testing.assert_array_equal(still.state["w1"], classifier.state_dict()["w1"])


@pytest.mark.parametrize("engine", ["numpy", "ort"])
def test_an_interrupted_run_goes_on_to_the_same_bits(classifier: fg.Model, tmp_path: Path, engine: str) -> None:
    pytest.importorskip("safetensors")
    if engine == "ort":
        pytest.importorskip("onnxruntime")
    step = fg.train_step(classifier, "adam", of="loss", learning_rate=RATE)
    whole = fg.fit(step, batches(), epochs=3, engine=engine)

    def interrupted(epoch: int) -> Any:
        for number, batch in enumerate(batches()):
            if (epoch, number) == (1, 3):
                raise KeyboardInterrupt
            yield batch

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fg.fit(step, interrupted, epochs=3, checkpoint=path, every=2, engine=engine)
    resumed = fg.fit(step, batches(), epochs=3, checkpoint=path, every=2, engine=engine)
    assert resumed.losses == whole.losses
    for name, array in whole.state.items():
        assert resumed.state[name].tobytes() == array.tobytes(), name
    assert fg.fit(step, batches(), epochs=3, checkpoint=path, engine=engine).losses == whole.losses


def test_progress_goes_to_stderr(classifier: fg.Model, capsys: pytest.CaptureFixture[str]) -> None:
    fg.fit(fg.train_step(classifier, "sgd", of="loss"), batches(), progress=True)
    out, err = capsys.readouterr()
    assert not out and f"step {STEPS}" in err


def test_wrong_loops_say_the_way_out(classifier: fg.Model, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    step = fg.train_step(classifier, "sgd", of="loss")
    with pytest.raises(InputError, match="make one by train_step"):
        fg.fit(classifier, batches())
    with pytest.raises(InputError, match="no batches in epoch 2"):
        fg.fit(step, iter(batches()), epochs=2)
    with pytest.raises(InputError, match="a batch is a dict of arrays by the names of inputs, got tuple"):
        fg.fit(step, [tuple(batch.values()) for batch in batches()])  # type: ignore[misc]
    path = tmp_path / "run.safetensors"
    fg.fit(step, batches(), checkpoint=path)
    with pytest.raises(InputError, match="checkpoint of another step: it has all and lacks b1_mean"):
        fg.fit(fg.train_step(classifier, "adam", of="loss"), batches(), checkpoint=path)
    path.write_bytes(b"nothing")
    with pytest.raises(LoadError, match="is no checkpoint of fit"):
        fg.fit(step, batches(), checkpoint=path)


# ---- running statistics ---------------------------------------------------------------------------------------------------


def normalised() -> fg.Model:
    return fg.load(b"""graph @g (%x: f64[N,3], %t: f64[N,2]) -> (%y: f64[N,2], %loss: f64[])
    initializers (%w: f64[3,2] = [[1,0],[0.5,1],[-1,0.25]], %s: f64[2] = [1,2], %b: f64[2] = [0,0.5], %m: f64[2] = [0,0], %v: f64[2] = [1,1]) {
        %h: f64[N,2] = MatMul(%x, %w)
        %y: f64[N,2] = BatchNormalization(%h, %s, %b, %m, %v) {training_mode=1, momentum=0.75, epsilon=1e-5}
        %d: f64[N,2] = Sub(%y, %t)
        %q: f64[N,2] = Mul(%d, %d)
        %loss: f64[] = ReduceMean(%q) {keepdims=0}
    }""")


def test_running_statistics_follow_the_batches() -> None:
    model, rng = normalised(), np.random.default_rng(5)
    step = fg.train_step(model, "sgd", of="loss", learning_rate=0.1)
    following = fg.next_inputs(step)
    assert list(following.values()) == ["w", "s", "b", "m", "v", "step"]
    mean, variance = np.zeros(2), np.ones(2)
    state: dict[str, Array] = {}
    for _ in range(5):
        x, t = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
        hidden = x @ state.get("w", model.params["w"].value)
        mean, variance = 0.75 * mean + 0.25 * hidden.mean(0), 0.75 * variance + 0.25 * hidden.var(0)
        result = step(x=x, t=t, **state)
        state = {following[n]: a for n, a in result.items() if n in following}
        np.testing.assert_allclose(state["m"], mean, rtol=1e-12)
        np.testing.assert_allclose(state["v"], variance, rtol=1e-12)
    fitted = fg.fit(step, [{"x": x, "t": t}])
    assert set(fitted.weights(model)) == {"w", "s", "b", "m", "v"}


def test_running_statistics_are_kept_by_onnxruntime_alike() -> None:
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(5)
    model = normalised().astype("float32")
    batches = [{"x": rng.standard_normal((6, 3)).astype(np.float32), "t": rng.standard_normal((6, 2)).astype(np.float32)} for _ in range(4)]
    step = fg.train_step(model, "sgd", of="loss", learning_rate=0.1)
    here, there = fg.fit(step, batches).state, fg.fit(step, batches, engine="ort").state
    for name, array in here.items():
        np.testing.assert_allclose(there[name], array, rtol=1e-5, atol=1e-6)


def test_frozen_statistics_stay_and_several_patterns_are_a_list() -> None:
    step = fg.train_step(normalised(), "sgd", of="loss", frozen=["m", "v", "w"])
    assert list(fg.next_inputs(step).values()) == ["s", "b", "step"]
    with pytest.raises(InputError, match=r"several patterns are a list: frozen=\['m', 'v'\]"):
        fg.train_step(normalised(), "sgd", of="loss", frozen="m,v")


def test_statistics_that_two_nodes_share_are_refused() -> None:
    text = str(normalised()).replace("%d: f64[N,2] = Sub(%y", "%z: f64[N,2] = BatchNormalization(%y, %s, %b, %m, %v) "
                                     "{training_mode=1}\n  %d: f64[N,2] = Sub(%z")
    with pytest.raises(InputError, match="'m' is shared by several BatchNormalization"):
        fg.train_step(fg.load(text.encode()), "sgd", of="loss")
    assert "m_new" not in fg.next_inputs(fg.train_step(fg.load(text.encode()), "sgd", of="loss", frozen=["m", "v"]))


# ---- killed ---------------------------------------------------------------------------------------------------------------


KILLED = """
import os, signal, sys
import numpy as np
import flowgrad as fg

step = fg.train_step(fg.load("tests/data/mlp.onnx"), "adam", of="loss", learning_rate=0.05)
rng = np.random.default_rng(0)
batches = [{"x": rng.standard_normal((8, 4)).astype(np.float32), "target": rng.integers(0, 3, 8)} for _ in range(10)]

def rate(number):
    if number == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.05 / (1 + number)

fitted = fg.fit(step, batches, epochs=3, learning_rate=rate, checkpoint=sys.argv[1], every=4, engine=sys.argv[2])
"""


@pytest.mark.parametrize("engine", ["numpy", "ort"])
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills as POSIX does")
def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path, engine: str) -> None:
    library = pytest.importorskip("safetensors.numpy")
    if engine == "ort":
        pytest.importorskip("onnxruntime")
    root = Path(__file__).resolve().parent.parent

    def run(name: str, kill_at: int) -> int:
        words = [sys.executable, "-c", KILLED, str(tmp_path / name), engine, str(kill_at)]
        return subprocess.run(words, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}).returncode

    assert run("whole.safetensors", -1) == 0
    for at in (6, 17, 23):
        assert run("part.safetensors", at) == -signal.SIGKILL
    assert run("part.safetensors", -1) == 0
    whole, part = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("whole", "part"))
    assert whole == part
    assert library.load(whole)["step"] == 30
