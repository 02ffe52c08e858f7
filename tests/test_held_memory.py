"""Nothing holds a model or a program that its user has dropped: neither caches nor tables, and memory not for long."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir import bulk
from flowgrad.runtime.memory import Frame

DATA = Path(__file__).parent / "data"
LOOP = b"""graph @g (%x: f32[3], %n: i64[])
    -> (%y = %loop: f32[3])
    opset 28
{
  %loop: f32[3] = Loop(%n, _, %x)
    body = graph @body (%i: i64[], %c: bool[], %s: f32[3])
        -> (%identity: bool[], %tanh: f32[3])
    {
      %identity: bool[] = Identity(%c)
      %tanh: f32[3] = Tanh(%s)
    }
}
"""


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Let reference counts alone decide what lives."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_all_stages_let_go() -> None:
    model = fg.load(DATA / "mlp.onnx")
    gradient = fg.value_and_grad(model, of="loss", wrt="params")
    program = gradient.compile()
    feeds = {"x": np.ones((2, 4), np.float32), "target": np.array([0, 2])}
    program.run(feeds)
    gradient(feeds)
    fg.load(gradient.to_onnx())
    fg.jvp(model, of="loss").optimized("canonicalize,fold,cse,dce")
    held = [weakref.ref(o) for o in (model, model.graph, gradient, gradient.graph, program, program._executor,
                                     model.graph.value("w1").producer.data)]
    del model, gradient, program
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


@pytest.mark.parametrize("text", [b"graph @g (%x: f32[64]) -> (%y: f32[64]) { %h: f32[64] = Exp(%x) %y: f32[64] = Sin(%h) }", LOOP])
def test_memory_of_a_program_is_free_at_once(text: bytes, without_collector: None, monkeypatch: pytest.MonkeyPatch) -> None:
    arenas: list[weakref.ref[np.ndarray]] = []
    made = Frame.__init__

    def noted(frame: Frame, *arguments: object) -> None:
        made(frame, *arguments)  # type: ignore[arg-type]
        arenas.append(weakref.ref(frame.arena))

    monkeypatch.setattr(Frame, "__init__", noted)
    program = fg.load(text).compile()
    feeds = {"x": np.ones(program._signature.inputs["x"].static_shape, np.float32), "n": np.array(2)}
    program.run({name: feeds[name] for name in program.input_names})
    assert arenas and all(ref() is not None for ref in arenas)
    executor = weakref.ref(program._executor)
    del program
    assert executor() is None and all(ref() is None for ref in arenas)


def test_weights_of_dropped_models_do_not_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "WAITING_BYTES", 1 << 20)
    model = fg.load(b"graph @g (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Neg(%x) }")
    held = []
    for _ in range(20):
        weights = np.ones(100_000, np.float32)
        dropped = fg.load(b"graph @g (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Neg(%x) }")
        dropped.graph.add_constant(weights, "w", "initializer")
        held.append(weakref.ref(weights))
        del weights, dropped
        model.graph.copy()
    assert sum(ref() is not None for ref in held) <= 4


def test_what_bulk_work_makes_is_old_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next collection of young objects would walk all that a large graph is made of."""
    text = b"graph @g (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Neg(%x) }"
    for most, is_old in ((10**9, False), (0, True)):
        monkeypatch.setattr(bulk, "MANY_OBJECTS", most)
        gc.collect()
        gc.disable()
        try:
            model = fg.load(text)
            monkeypatch.setattr(bulk, "MANY_OBJECTS", 10**9)  # what looks must not move it
            made = model.graph.value("y")
            assert all(made.uses is not found for found in gc.get_objects(generation=0)) == is_old
        finally:
            gc.enable()
        assert gc.get_freeze_count() == 0


def test_what_others_have_frozen_stays_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MANY_OBJECTS", 0)
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        fg.load(b"graph @g (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Neg(%x) }")
        assert gc.get_freeze_count() >= frozen * 0.9
    finally:
        gc.unfreeze()


def test_a_model_that_outlives_the_names_of_modules_ends_in_silence() -> None:
    code = f"import sys, numpy, flowgrad; numpy.kept, numpy.other = flowgrad.load({LOOP!r}), sys.modules['flowgrad.ir.graph']"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert ended.stderr == ""
