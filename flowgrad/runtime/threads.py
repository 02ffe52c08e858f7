"""The one thread pool, and the limit it puts on BLAS.

Work is cut into pieces of fixed size, whatever the number of threads, so that results are the same bits for any
number. BLAS runs at one thread below: the limit is process-wide, so it is held (``Held``); only code that contains
products large enough for BLAS to thread takes it (about 3 us), small programs never touch it.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from flowgrad.ir.process_state import Held


def available_threads() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Job:
    """Pieces of work that several threads take one by one."""

    def __init__(self, task: Callable[[int], None], pieces: int) -> None:
        self.task, self.pieces = task, pieces
        self.error: BaseException | None = None
        self.stopped = False
        self.finished = threading.Lock()  # free once the last piece has been done
        self.finished.acquire()
        self._take = itertools.count().__next__
        self._count = itertools.count(1).__next__

    def work(self, kept: type[BaseException]) -> None:
        """Do pieces until none is left; an error of class ``kept`` is for the caller of ``Pool.each`` to raise."""
        while (piece := self._take()) < self.pieces:
            try:
                if not self.stopped:
                    self.task(piece)
            except kept as error:
                self.error, self.stopped = error, True
            if self._count() == self.pieces:
                self.finished.release()


def _nothing(_: int) -> None:
    """Do the piece of a job that is over."""


class Pool:
    """Daemon threads that help callers through their pieces; grows to what is asked for, never shrinks.

    A caller does all pieces that nobody takes and waits only for those that somebody is at, so nothing stands still
    for want of threads, however calls nest.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.RLock()  # a signal handler may come back here
        self._count = 0

    def each(self, task: Callable[[int], None], pieces: int, threads: int) -> None:
        """Call ``task(i)`` for i in range(pieces) on up to ``threads`` threads, the caller's among them.

        Returns when all pieces are done; an error of one is raised here, once no other is being worked on. What is no
        Exception, such as an interrupt of the caller, is raised at once: helpers may then still be inside ``task``, and
        what they write to must never be used again.
        """
        helpers = min(threads, pieces) - 1
        if helpers < 1:
            for piece in range(pieces):
                task(piece)
            return
        self._grow(helpers)
        job = _Job(task, pieces)
        try:
            for _ in range(helpers):
                self._jobs.put(job)
            job.work(Exception)
            job.finished.acquire()
            if job.error is not None:
                raise job.error
        finally:
            job.stopped = True
            job.task, job.error = _nothing, None  # requests that nobody has taken yet must not keep memory

    def _grow(self, helpers: int) -> None:
        if self._count >= helpers:
            return
        with self._lock:
            while self._count < helpers:
                try:
                    threading.Thread(target=self._serve, name=f"flowgrad-{self._count}", daemon=True).start()
                except (MemoryError, RuntimeError):  # the system has no more threads: the work is done by fewer
                    return
                self._count += 1

    def _serve(self) -> None:
        jobs = self._jobs
        np.seterr(all="ignore")  # as around a run; the setting belongs to the thread
        while True:
            job = jobs.get()
            job.work(BaseException)
            del job  # what it holds is not needed while there is nothing to do


pool = Pool()


def _blas_threads() -> list[tuple[Any, int]]:
    from threadpoolctl import ThreadpoolController

    global _libraries
    if _libraries is None:
        _libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return [(library, library.get_num_threads()) for library in _libraries]


def _limit_blas(before: list[tuple[Any, int]]) -> None:
    for library, count in before:
        if count != 1:
            _set_threads(library, 1)


def _restore_blas(before: list[tuple[Any, int]]) -> None:
    for library, count in before:
        if count != 1:
            _set_threads(library, count)


def _set_threads(library: Any, count: int) -> None:
    # From threadpoolctl 3.8 on, the public method does nothing in any thread but the first that called it; ``Held``
    # makes sure here that threads do not fight.
    getattr(library, "_real_set_num_threads", library.set_num_threads)(count)


_libraries: list[Any] | None = None
single_threaded_blas = Held(_blas_threads, _limit_blas, _restore_blas)
"""Holds BLAS at one thread, process-wide, until the last call has ended."""


_process = object()
"""Stands for this process: another one in a forked child."""


class ProcessLock:
    """A lock that a forked child has anew: whoever held it in the parent does not exist there."""

    def __init__(self) -> None:
        self._locks: dict[object, threading.RLock] = {}

    def here(self) -> threading.RLock:
        """Return the lock of this process, to be entered by ``with``."""
        return self._locks.setdefault(_process, threading.RLock())


def _forked() -> None:
    """Start afresh in a forked child: the parent's threads do not exist there."""
    global _process
    pool.__init__()  # type: ignore[misc]
    _process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
