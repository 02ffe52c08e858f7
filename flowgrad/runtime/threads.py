"""The one thread pool, and the limit it puts on BLAS.

Work is cut into pieces of fixed size, whatever the number of threads, so that results are the same bits for any
number. BLAS runs at one thread below: the limit is process-wide, so it is counted; only runs that contain products
large enough for BLAS to thread take it (about 2 us), small programs never touch it.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def available_threads() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Job:
    """Pieces of work that several threads take one by one."""

    def __init__(self, task: Callable[[int], None], pieces: int, helpers: int) -> None:
        self.task, self.pieces = task, pieces
        self.next = itertools.count().__next__
        self.finished = threading.Semaphore(0)
        self.helpers = helpers
        self.error: BaseException | None = None

    def work(self) -> None:
        while (piece := self.next()) < self.pieces:
            if self.error is not None:
                return
            try:
                self.task(piece)
            except BaseException as error:  # handed to the caller by ``Pool.each``
                self.error = error

    def help(self) -> None:
        try:
            self.work()
        finally:
            self.finished.release()


class Pool:
    """Daemon threads that help callers through their pieces; grows to what is asked for, never shrinks."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0

    def each(self, task: Callable[[int], None], pieces: int, threads: int) -> None:
        """Call ``task(i)`` for i in range(pieces) on up to ``threads`` threads, the caller's among them.

        Returns when all pieces are done; the first error is raised here. Calls may nest.
        """
        helpers = min(threads, pieces) - 1
        if helpers < 1:
            for piece in range(pieces):
                task(piece)
            return
        self._grow(helpers)
        job = _Job(task, pieces, helpers)
        for _ in range(helpers):
            self._jobs.put(job)
        job.work()
        for _ in range(helpers):
            while not job.finished.acquire(blocking=False):
                self._lend_hand(job)
        if job.error is not None:
            raise job.error

    def _lend_hand(self, job: _Job) -> None:
        # A waiting caller takes queued help requests (its own, stale by now, or those of others), so that a pool
        # full of waiting callers cannot stand still.
        try:
            other = self._jobs.get_nowait()
        except queue.Empty:
            job.finished.acquire()
            job.finished.release()
            return
        other.help()

    def _grow(self, helpers: int) -> None:
        if self._count >= helpers:
            return
        with self._lock:
            while self._count < helpers:
                threading.Thread(target=self._serve, name=f"flowgrad-{self._count}", daemon=True).start()
                self._count += 1

    def _serve(self) -> None:
        jobs = self._jobs
        np.seterr(all="ignore")  # as around a run; the setting belongs to the thread
        while True:
            jobs.get().help()


pool = Pool()


def _forget_threads() -> None:
    """Start afresh in a forked child: the parent's threads do not exist there."""
    pool.__init__()  # type: ignore[misc]
    _blas.after_fork()


class _BlasLimit:
    """Holds BLAS at one thread while at least one holder is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._libraries: list[Any] | None = None
        self._restore: list[tuple[Any, int]] = []

    def enter(self) -> None:
        with self._lock:
            self._holders += 1
            if self._holders > 1:
                return
            if self._libraries is None:
                self._libraries = _blas_libraries()
            self._restore = [(library, library.get_num_threads()) for library in self._libraries]
            for library, count in self._restore:
                if count != 1:
                    _set_threads(library, 1)

    def leave(self) -> None:
        with self._lock:
            if not self._holders:  # entered before a fork, left in the child
                return
            self._holders -= 1
            if self._holders:
                return
            for library, count in self._restore:
                if count != 1:
                    _set_threads(library, count)
            self._restore = []

    def after_fork(self) -> None:
        held = self._restore if self._holders else []
        self._lock = threading.Lock()
        self._holders = 0
        self._restore = []
        for library, count in held:
            _set_threads(library, count)


def _set_threads(library: Any, count: int) -> None:
    # From threadpoolctl 3.8 on, the public method does nothing in any thread but the first that called it; the count
    # of holders makes sure here that threads do not fight.
    getattr(library, "_real_set_num_threads", library.set_num_threads)(count)


def _blas_libraries() -> list[Any]:
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


_blas = _BlasLimit()
enter_blas_limit = _blas.enter
leave_blas_limit = _blas.leave


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS at one thread, process-wide, until the last holder has left."""
    _blas.enter()
    try:
        yield
    finally:
        _blas.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
