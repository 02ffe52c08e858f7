"""What runs out or is shared: memory that cannot be had at any call, and files that several processes write at once."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.exchange.writer import save_onnx
from flowgrad.ir import pack
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import FlowgradError, ResourceError
from flowgrad.ir.graph import Graph
from flowgrad.ir.types import FLOAT32, Type
from flowgrad.model import Model, load

# ---- memory ---------------------------------------------------------------------------------------------------------------


def dense(weight: float = 1.0, size: int = 8) -> Model:
    graph = Graph("dense")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (2, size)))
    w = graph.add_constant(np.full((size, size), weight, np.float32), "w", "initializer")
    graph.add_output(b.Softmax(b.Tanh(b.MatMul(x, w)), axis=-1), "y")
    return Model(graph)


X = np.ones((2, 8), np.float32)

STAGES: dict[str, Callable[[Model, str], object]] = {
    "load text": lambda m, p: load(str(m).encode()),
    "load onnx": lambda m, p: load(f"{p}/m.onnx"),
    "load msgpack": lambda m, p: load(f"{p}/m.msgpack"),
    "vjp": lambda m, p: fg.vjp(m),
    "jvp": lambda m, p: fg.jvp(m),
    "passes": lambda m, p: m.optimized(),
    "compile": lambda m, p: m.compile(),
    "run": lambda m, p: m(X),
    "export": lambda m, p: m.to_onnx(),
    "save": lambda m, p: m.save(f"{p}/new.msgpack"),
}


def failing_at(count: int, action: Callable[[], object]) -> bool:
    """Call an action in which the ``count``-th call within a stage finds no memory; return whether there were so many."""
    calls = 0

    def hook(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        here = frame.f_code.co_filename, frame.f_back and frame.f_back.f_code.co_filename
        if event != "call" or __file__ in here:
            return
        calls += 1
        if calls == count:
            sys.setprofile(None)
            raise MemoryError("none left")

    sys.setprofile(hook)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls >= count


def counts() -> Iterator[int]:
    """Numbers of calls: close to one another at first, then further and further apart."""
    count = 1
    while True:
        yield count
        count = count * 5 // 4 + 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("stage", STAGES)
def test_memory_that_ends_at_any_call_is_a_typed_error(stage: str, tmp_path: Path) -> None:
    made = dense()
    made.save(tmp_path / "m.msgpack")
    made.to_onnx(tmp_path / "m.onnx")
    STAGES[stage](dense(), str(tmp_path))  # imports are over
    met = 0
    for count in counts():
        model = dense()
        try:
            if not failing_at(count, lambda m=model: STAGES[stage](m, str(tmp_path))):  # type: ignore[misc]
                break
        except FlowgradError as error:
            met += isinstance(error, ResourceError)
        assert gc.isenabled()
        assert np.array_equal(dense()(X)["y"], model(X)["y"])
    assert met > 5
    assert not [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"]


# ---- writers at once --------------------------------------------------------------------------------------------------------

WRITERS, ROUNDS, SIZE = 3, 25, 48


def save_msgpack(model: Model, path: Path) -> None:
    pack.save(model.graph, path, external=True)


def save_beside(model: Model, path: Path) -> None:
    save_onnx(model.graph, path, embedded_bytes=0)


def write_often(save: Callable[[Model, Path], None], path: Path, writer: int) -> int:
    """Save models that differ in their weights in a child; return its process."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for turn in range(ROUNDS):
            save(dense(float(1 + (writer + turn) % WRITERS), SIZE), path)
        code = 0
    finally:
        os._exit(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("save", "name"), [(save_msgpack, "m.msgpack"), (save_beside, "m.onnx")])
def test_what_is_read_while_others_write_is_whole(save: Callable[[Model, Path], None], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save(dense(1.0, SIZE), path)
    children = [write_often(save, path, writer) for writer in range(WRITERS)]
    seen: set[float] = set()
    codes: list[int] = []
    while len(codes) < WRITERS:
        weights = load(path).graph.value("w").constant
        assert weights is not None and np.all(weights == weights[0, 0])
        seen.add(float(weights[0, 0]))
        for child in children[:]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children.remove(child)
                codes.append(status)
    assert codes == [0] * WRITERS
    assert seen <= {1.0, 2.0, 3.0}
    left = sorted(p.name for p in tmp_path.iterdir())
    assert len(left) == 1 + WRITERS and not any(n.endswith(".tmp") for n in left)
