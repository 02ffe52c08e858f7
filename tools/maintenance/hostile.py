"""``python -m flowgrad.tools.maintenance.hostile``: generated hostile files and mutants through every stage, within limits.

Each file is loaded, printed, run, differentiated, exported, saved and loaded again, in worker processes. A violation is an
error without a type, exit 70 at the command line, more than a second of processor time, more than 200 MB, a file opened
elsewhere, or a torn save; it is printed with the class and the seed that make the file.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.errors import FlowgradError
from flowgrad.ir.limits import Limits
from flowgrad.model import Model, load
from flowgrad.tools import cli, samples
from flowgrad.tools.arrays import read_arrays
from flowgrad.tools.maintenance.hostile_files import CLASSES, FORMS, hostile_file
from flowgrad.transforms.derivatives import vjp

SECONDS, BYTES = 1.0, 200_000_000
"""What one stage may take: processor time, and memory beyond what the stages of the file before it have taken."""

COMMANDS = (("run",), ("inspect", "--nodes", "--params"), ("grad", "--vjp"), ("opt",), ("gradcheck",))
"""What is done at the command line: with each file that loads one of them, by its seed."""

REFUSED_COMMANDS = 25
"""Of the files that do not load, one in so many goes through the command line as well."""

INTERNAL_ERROR = 70
"""What the command line returns for an error without a type."""

MEMORY = "/dev/shm"
"""Where the files lie if it is there: on a disk, making them takes longer than refusing them."""

WARM = b"graph @warm (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Tanh(%x) }"

HANGING = 20.0
"""After so many seconds without an answer a worker is ended, and the file it was at is a violation."""

SPACE = 4 << 30
"""Address space of a worker beyond what it has at its start."""

LIMITS = Limits(
    file_bytes=1 << 24, tensor_bytes=1 << 26, live_bytes=1 << 27, loop_steps=2_000, nodes=10_000, values=20_000,
    expanded_nodes=10_000, dim=2**40, depth=16, function_depth=16, wall_seconds=0.8,
)

BATCH = 20_000
"""Files that one worker checks."""


# ---- one file, in a worker ------------------------------------------------------------------------------------------------


class Watch:
    """Runs stages on the files of ``folder`` and notes their violations, and the most that any has taken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[str] = []
        self.seconds, self.bytes, self.late = 0.0, 0, 0
        self.opened: set[str] = set()
        self.watching = False
        self.own = (str(folder), sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[2]), "/proc/self")
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watching and event == "open" and isinstance(arguments[0], (str, bytes)):
            self.opened.add(os.fsdecode(arguments[0]))

    def begin(self) -> None:
        """Forget the file before, and the memory that it has taken."""
        self.found, self.seconds, self.bytes, self.late = [], 0.0, 0, 0
        Path("/proc/self/clear_refs").write_text("5")

    def stage(self, name: str, action: Callable[[], Any]) -> tuple[Any, bool]:
        """Return what ``action`` returns, and whether it came to its end."""
        memory, started = _peak(), time.process_time()
        result, done = None, False
        self.opened, self.watching = set(), True
        try:
            result, done = action(), True
        except FlowgradError as error:
            self.late += error.code == "wall_seconds"
        except Exception as error:
            self.found.append(f"{name}: {type(error).__name__}: {str(error)[:200]} at {_place(error)}")
        finally:
            self.watching = False
        seconds, taken = time.process_time() - started, _peak() - memory
        self.seconds, self.bytes = max(self.seconds, seconds), max(self.bytes, taken)
        if seconds > SECONDS:
            self.found.append(f"{name}: {seconds:.1f} s")
        if taken > BYTES:
            self.found.append(f"{name}: {taken / 1e6:.0f} MB")
        self.found += [f"{name}: opened {path!r}" for path in self.opened if self._is_foreign(path)]
        return result, done

    def _is_foreign(self, path: str) -> bool:
        at = os.path.abspath(self.folder / path)
        return not at.startswith(self.own) and not path.endswith((".py", ".pyc", ".so")) and "/" in path


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place(error: BaseException) -> str:
    trace, last = error.__traceback__, ""
    while trace is not None:
        last = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return last


def check_file(kind: str, data: bytes, watch: Watch, seed: int = 0) -> str:
    """Take a file through all stages, and one command (by ``seed``); return how far it came."""
    watch.begin()
    if kind == "npz":
        path = watch.folder / "case.npz"
        path.write_bytes(data)
        return "read" if watch.stage("read", lambda: read_arrays([str(path)]))[1] else "refused"
    path = watch.folder / "case.onnx"
    path.write_bytes(data)
    model, done = watch.stage("load", lambda: load(path, limits=LIMITS))
    if done or seed % REFUSED_COMMANDS == 0:
        _check_command(COMMANDS[seed % len(COMMANDS)], path, watch)
    if not done:
        return "refused"
    watch.stage("print", lambda: str(model))
    ran = watch.stage("run", lambda: model(made_inputs(model)))[1]
    derived, done = watch.stage("vjp", lambda: vjp(model))
    if done:
        watch.stage("run of vjp", lambda: derived(made_inputs(derived)))
        watch.stage("export of vjp", derived.to_onnx)
    watch.stage("export", model.to_onnx)
    _check_save(model, watch)
    return "ran" if ran else "loaded"


def made_inputs(model: Model) -> dict[str, Any]:
    """Return small inputs for a model. Raises InputError, LimitError."""
    return samples.sample_inputs(model.graph, 0, {})[0]


def _check_command(command: Sequence[str], path: Path, watch: Watch) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code, _ = watch.stage(command[0], lambda: cli.main([command[0], str(path), *command[1:]]))
    if code == INTERNAL_ERROR:
        watch.found.append(f"{command[0]}: exit {code}: {said.getvalue()[-200:]}")


def _check_save(model: Model, watch: Watch) -> None:
    path = watch.folder / "saved.msgpack"
    before = path.read_bytes() if path.exists() else b""
    if watch.stage("save", lambda: model.save(path))[1]:
        if not watch.stage("reload", lambda: load(path, limits=LIMITS))[1]:
            watch.found.append("save: what was saved is refused")
    elif (path.read_bytes() if path.exists() else b"") != before:
        watch.found.append("save: a save that failed changed the file")
    left = [p.name for p in watch.folder.iterdir() if p.suffix == ".tmp"]
    if left:
        watch.found.append(f"save: left {left[0]!r}")


def work(kind: str, first: int, count: int) -> None:
    """Check files ``first`` to ``first + count``; print a line of JSON before each, and for each what was found."""
    warnings.simplefilter("ignore")
    setattr(Limits, "default", lambda: LIMITS)  # noqa: B010 (the command line has no option for limits)
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as name:
        watch = Watch(Path(name))
        hostile_file(kind, 0)
        _warm_up(watch)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, used + SPACE))
        for seed in range(first, first + count):
            print(json.dumps({"at": seed}), flush=True)
            came = check_file(kind, hostile_file(kind, seed), watch, seed)
            print(json.dumps({"done": seed, "came": came, "seconds": watch.seconds, "bytes": watch.bytes, "late": watch.late,
                              "found": watch.found}), flush=True)


def _warm_up(watch: Watch) -> None:
    """Import and compute what is done once for all."""
    for kind in ("protobuf", "npz"):
        for seed in range(5):
            check_file(kind, hostile_file(kind, -1 - seed), watch, seed)
    check_file("text", WARM, watch)
    for command in COMMANDS:
        _check_command(command, watch.folder / "case.onnx", watch)
    rows = np.ones((64, 64), np.float32)
    rows @ rows


# ---- the workers ----------------------------------------------------------------------------------------------------------


class Worker:
    """A process that checks files of one kind, and what it said last."""

    def __init__(self, kind: str, first: int, count: int) -> None:
        self.kind, self.first = kind, first
        command = [sys.executable, "-m", "flowgrad.tools.maintenance.hostile", "--work", kind, str(first), str(count)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)

    def end(self) -> None:
        """End the process."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@dataclass(frozen=True)
class Result:
    """What became of a file: how far it came, the most that a stage took, stages that ended late, violations."""

    seed: int
    came: str
    found: list[str]
    seconds: float = 0.0
    bytes: int = 0
    late: int = 0


def results(kind: str, first: int, count: int, end: float) -> Iterator[Result]:
    """Yield results for files of a kind; a worker that dies or hangs is replaced."""
    while count > 0 and time.monotonic() < end:
        worker = Worker(kind, first, min(BATCH, count))
        done = 0
        for result in _heard(worker, end):
            done = result.seed - first + 1
            yield result
        worker.end()
        first, count = first + done, count - done


def _heard(worker: Worker, end: float) -> Iterator[Result]:
    """Yield what a worker says of each file, until it is through, time is over, or it dies."""
    at: int | None = None
    for line in _lines(worker, end):
        if line is None:
            yield Result(worker.first if at is None else at, "hung", [f"no answer within {HANGING:.0f} s"])
            return
        said = json.loads(line)
        at = said.get("at")
        if "done" in said:
            yield Result(said.pop("done"), **said)
    if time.monotonic() >= end:
        return
    code = worker.process.wait()
    if at is not None:
        yield Result(at, "died", [f"the process ended with {code}"])
    elif code:
        raise RuntimeError(f"a worker for {worker.kind} did not start")


def _lines(worker: Worker, end: float) -> Iterator[bytes | None]:
    """Yield whole lines as they come, None and no more after a long silence."""
    stream = worker.process.stdout
    assert stream is not None
    rest, heard = b"", time.monotonic() + HANGING  # starting takes longer
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while time.monotonic() < end:
            if not selector.select(1.0):
                if time.monotonic() - heard > HANGING:
                    yield None
                    return
                continue
            piece = os.read(stream.fileno(), 1 << 16)
            if not piece:
                return
            heard = time.monotonic()
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole


def _report(kind: str, done: Iterator[Result]) -> int:
    """Print violations as they come, and what became of all files; return how many have violations."""
    came: collections.Counter[str] = collections.Counter()
    bad = late = most = 0
    seconds, started = 0.0, time.monotonic()
    for result in done:
        came[result.came] += 1
        bad += bool(result.found)
        late += result.late
        seconds, most = max(seconds, result.seconds), max(most, result.bytes)
        for text in result.found:
            print(f"{kind} {result.seed}  {text!r}", flush=True)
    counts = ", ".join(f"{n} {far}" for far, n in sorted(came.items()))
    print(f"{kind:12} {sum(came.values()):7} files: {counts or 'none'}; {bad} violations; at most {seconds:.2f} s and "
          f"{most / 1e6:.0f} MB; {late} stages ended by wall_seconds; {time.monotonic() - started:.0f} s", flush=True)
    return bad


def main(argv: Sequence[str] | None = None) -> int:
    """Check hostile files and return 1 if there was a violation."""
    known = [*CLASSES, *FORMS]
    parser = argparse.ArgumentParser(prog="python -m flowgrad.tools.maintenance.hostile",
                                     description="Take hostile files through every stage.")
    parser.add_argument("--kinds", help=f"some of: {', '.join(known)} (default: all)")
    parser.add_argument("--files", type=int, default=1000, help="of each kind (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first file (default 0)")
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after this time (default 10)")
    parser.add_argument("--work", nargs=3, metavar=("KIND", "FIRST", "COUNT"), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.work:
        work(given.work[0], int(given.work[1]), int(given.work[2]))
        return 0
    kinds = given.kinds.split(",") if given.kinds else known
    for kind in kinds:
        if kind not in known:
            parser.error(f"no kind {kind!r}; kinds: {', '.join(known)}")
    end = time.monotonic() + 60 * given.minutes
    violations = 0
    for kind in kinds:
        violations += _report(kind, results(kind, given.seed, given.files, end))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
