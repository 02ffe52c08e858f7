"""``python -m flowgrad.tools.maintenance.interrupts``: Ctrl-C at random moments of runs, and before every bytecode of one.

After each interrupt the same program runs again, undisturbed: its results must be the same bits as ever, and the state
of the process (NumPy's error state, threads of BLAS, garbage collector) as it was. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import gc
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import threadpoolctl

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.types import BOOL, FLOAT32, INT64, Dim, Type
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.runtime.threads import pool

Feeds = Mapping[str, Array]
Work = Callable[[], Any]

# ---- programs -------------------------------------------------------------------------------------------------------------


def pieces() -> Graph:
    """Return a chain of elementwise nodes, each of several pieces, all in one arena."""
    graph = Graph("pieces")
    b = Builder(graph)
    value = graph.add_input("x", Type(FLOAT32, (4 << 16,)))
    for op in ("Sigmoid", "Tanh", "Softplus", "Exp") * 2:
        value = b.add(op, [value])
    graph.add_output(value, "y")
    return graph


def products() -> Graph:
    """Return products and a convolution: BLAS at one thread, and scratch for each piece."""
    graph = Graph("products")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (4, 16, 32, 32)))
    draw = np.random.default_rng(0).standard_normal
    y = b.Tanh(b.Conv(x, graph.add_constant(draw((32, 16, 3, 3)).astype(np.float32) / 12), pads=[1, 1, 1, 1]))
    flat = b.Reshape(y, graph.add_constant(np.array([256, 512])))
    graph.add_output(b.Tanh(b.MatMul(flat, graph.add_constant(draw((512, 256)).astype(np.float32) / 22))), "y")
    return graph


def segments() -> Graph:
    """Return a loop with products in its body, and extents that only the run can tell."""
    body = Graph("body")
    bb = Builder(body)
    body.add_input("i", Type(INT64, ()))
    going = body.add_input("going", Type(BOOL, ()))
    h = body.add_input("h", Type(FLOAT32, (96, 96)))
    w = body.add_input("w_in", Type(FLOAT32, (96, 96)))
    body.add_output(bb.Identity(going), "going_out")
    body.add_output(bb.Tanh(bb.MatMul(h, w)), "h_out")
    graph = Graph("segments")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (96, 96)))
    start = [graph.add_constant(np.array(4)), None, b.Mul(x, 0.1)]
    last = b.add_several("Loop", start, outputs=1, captures=[b.Tanh(x)], subgraphs={"body": body})[0]
    kept = b.Compress(b.Reshape(last, graph.add_constant(np.array([-1]))), b.Greater(b.Reshape(
        x, graph.add_constant(np.array([-1]))), 0.0), axis=0)
    graph.add_output(b.Tanh(b.Mul(kept, 2.0)), "y")
    return graph


def shapes() -> Graph:
    """Return a graph that is specialised anew for every batch."""
    graph = Graph("shapes")
    b = Builder(graph)
    value = graph.add_input("x", Type(FLOAT32, (Dim.named("N"), 24)))
    for _ in range(12):
        value = b.Tanh(b.MatMul(value, graph.add_constant(np.full((24, 24), 0.04, np.float32))))
    graph.add_output(value, "y")
    return graph


PROGRAMS = {"pieces": pieces, "products": products, "segments": segments, "shapes": shapes}

# ---- interrupts -----------------------------------------------------------------------------------------------------------


def process_state() -> tuple[Any, ...]:
    """Return what an interrupt must not leave changed."""
    blas = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    return np.geterr(), [library.get_num_threads() for library in blas], gc.isenabled()


def interrupt_after(work: Work, seconds: float, again: float = 0.0) -> bool:
    """Call ``work`` with an interrupt after ``seconds``, and another ``again`` later; return whether one came in time."""
    came = 0

    def interrupt(*_: Any) -> None:
        nonlocal came
        came += 1
        if came == 1 and again:
            signal.setitimer(signal.ITIMER_REAL, again)
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            work()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            while again and came < 2:
                time.sleep(again)
    except KeyboardInterrupt:
        pass
    return came > 0


def interrupt_at(work: Work, bytecode: int) -> bool:
    """Call ``work`` with an interrupt before its bytecode of that number, in whatever function; return whether it came."""
    left = bytecode

    def watch(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return watch

    tracer = sys.gettrace()
    try:
        sys.settrace(watch)
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(tracer)
    return False


def same(results: Mapping[str, Array], expected: Mapping[str, Array]) -> bool:
    """Return whether two runs gave the same bits."""
    return all(results[name].tobytes() == array.tobytes() for name, array in expected.items())


class Trial:
    """A program, two feeds and what they give: one to interrupt, one to see whether all is well."""

    def __init__(self, name: str, threads: int) -> None:
        self.graph = PROGRAMS[name]()
        self.threads = threads
        rng = np.random.default_rng(1)
        shape = [d if isinstance(d, int) else 8 for d in self.graph.inputs[0].type.shape or ()]
        self.feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(2)]
        self.renew()
        self.expected = self.program.run(self.feeds[1])
        started = time.perf_counter()
        self.program.run(self.feeds[0])
        self.seconds = time.perf_counter() - started
        self.state = process_state()
        self.count = self.wrong = self.changed = self.errors = 0

    def renew(self) -> None:
        """Compile anew, so that the next run specialises."""
        self.program = NumpyProgram(self.graph, self.threads)

    def run(self) -> None:
        """Do what is to be interrupted."""
        self.program.run(self.feeds[0])

    def look(self, came: bool) -> None:
        """Count one interrupt, and what is wrong after it."""
        self.count += came
        self.changed += process_state() != self.state
        try:
            self.wrong += not same(self.program.run(self.feeds[1]), self.expected)
        except Exception as error:
            self.errors += 1
            print(f"  {type(error).__name__}: {error}", flush=True)
        self.changed += process_state() != self.state

    @property
    def is_fine(self) -> bool:
        """Whether nothing was ever wrong."""
        return not (self.wrong or self.changed or self.errors)

    def __str__(self) -> str:
        return (f"{self.count:6} interrupts: {self.wrong} wrong results, {self.errors} errors, process state changed "
                f"{self.changed} times")


# ---- what is tried --------------------------------------------------------------------------------------------------------


def at_random(name: str, threads: int, rounds: int) -> Trial:
    """Interrupt runs at random moments."""
    trial, rng = Trial(name, threads), random.Random(threads)
    for number in range(rounds):
        if name == "shapes" and number % 2:
            trial.renew()
        trial.look(interrupt_after(trial.run, rng.uniform(2e-6, 1.2 * trial.seconds)))
    return trial


def in_pairs(name: str, threads: int, rounds: int) -> Trial:
    """Interrupt the clean-up after interrupts, too: what that leaves changed is put right by the next run."""
    trial, rng = Trial(name, threads), random.Random(threads)
    for _ in range(rounds):
        came = interrupt_after(trial.run, rng.uniform(2e-6, 1.2 * trial.seconds), rng.uniform(2e-6, 5e-5))
        trial.program.run(trial.feeds[0])
        trial.look(came)
    return trial


def everywhere(name: str, threads: int, stride: int) -> Trial:
    """Interrupt a run before every bytecode (or each ``stride``-th) in turn."""
    trial, bytecode = Trial(name, threads), 0
    while True:
        if name == "shapes":
            trial.renew()
        came = interrupt_at(trial.run, bytecode)
        trial.look(came)
        if not came:
            return trial
        bytecode += stride


def in_helpers(threads: int, rounds: int) -> Trial:
    """Interrupt callers of the pool at random while threads of their own use it too: nobody may wait for ever."""
    trial, rng, over = Trial("pieces", threads), random.Random(0), threading.Event()
    failures: list[str] = []

    def others() -> None:
        done: list[int] = []
        while not over.is_set():
            done.clear()
            pool.each(lambda _: pool.each(done.append, 4, threads), 4, threads)
            if sorted(done) != sorted([*range(4)] * 4):
                failures.append("pieces missing")

    helpers = [threading.Thread(target=others, daemon=True) for _ in range(2)]
    for helper in helpers:
        helper.start()
    for _ in range(rounds):
        trial.look(interrupt_after(trial.run, rng.uniform(2e-6, 1.2 * trial.seconds)))
    over.set()
    for helper in helpers:
        helper.join(30)
    trial.errors += len(failures) + sum(helper.is_alive() for helper in helpers)
    return trial


def main() -> int:
    """Print a row for each trial."""
    parser = argparse.ArgumentParser(prog="python -m flowgrad.tools.maintenance.interrupts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000, help="interrupts at random moments, for each program")
    parser.add_argument("--stride", type=int, default=1, help="interrupt before each STRIDE-th bytecode")
    parser.add_argument("--threads", default="2,8")
    arguments = parser.parse_args()
    fine = True
    for threads in map(int, arguments.threads.split(",")):
        trials: dict[str, Callable[[], Trial]] = {}
        for name in PROGRAMS:
            stride = arguments.stride * (50 if name == "shapes" else 1)  # specialising is long
            trials[f"{name}, at random"] = partial(at_random, name, threads, arguments.rounds)
            trials[f"{name}, in pairs"] = partial(in_pairs, name, threads, arguments.rounds // 2)
            trials[f"{name}, each bytecode"] = partial(everywhere, name, threads, stride)
        trials["pool shared"] = partial(in_helpers, threads, arguments.rounds)
        for what, run in trials.items():
            trial = run()
            fine = fine and trial.is_fine
            print(f"{threads} threads, {what:24} {trial}", flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
