"""Worker processes that are killed at a time limit and replaced when they die."""

import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pebble import ProcessExpired, ProcessPool

from sspo_cli.errors import UserError

REPLACEMENTS = 3  # consecutive pools that may break without finishing a task before the waiting tasks fail
ATTEMPTS = 2  # times that a task is run if its worker is lost each time
# Exit codes of a worker that was not ended by its task: 255, which multiprocessing reports if the fork server has died, and
# the signals that all processes of a job or a terminal receive. At a time limit, pebble raises TimeoutError instead.
LOST = (255, -signal.SIGTERM, -signal.SIGHUP)
POLL = 0.05  # seconds between two checks of the pool
STALL = 60.0  # seconds without progress, beyond the time limit of the tasks, after which a pool is replaced


@dataclass(eq=False)
class _Task:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    timeout: float | None
    result: Future[Any] = field(default_factory=Future)
    attempts: int = 0


class LastingPool:
    """A pebble process pool that is replaced when it breaks.

    Workers are forked from a small server process that has imported the initializer's module. The parent process has threads,
    so forking it would not be safe. A worker forked from the server starts in half a second; a spawned one would import torch.

    If an idle worker dies, for example because the out-of-memory killer ended it, pebble's pool stays broken. A thread then
    creates a new pool and schedules the unfinished tasks again.
    """

    def __init__(self, workers: int, initializer: Callable[[], None]) -> None:
        """Store the settings; no process is started yet. Each worker calls `initializer` first."""
        self._workers = workers
        self._initializer = initializer
        self._tasks: set[_Task] = set()
        self._lock = threading.RLock()
        self._pool: ProcessPool | None = None
        self._broken = 0  # consecutive broken pools
        self._progress = 0.0  # time at which a task last ended, an idle pool got a task, or a pool was replaced
        self._closing = threading.Event()

    def schedule(
        self, function: Callable[..., Any], args: tuple[Any, ...] = (), timeout: float | None = None
    ) -> Future[Any]:
        """Call a function in a worker, which is killed after `timeout` seconds.

        The future raises TimeoutError at the limit, ProcessExpired if the task ends its worker, and UserError if more than
        `REPLACEMENTS` pools break in a row.
        """
        task = _Task(function, args, timeout)
        with self._lock:
            if self._pool is None:
                self._pool = self._new_pool()
                threading.Thread(target=self._watch, daemon=True).start()
            if not self._tasks:
                self._progress = time.monotonic()
            self._tasks.add(task)
            self._hand_over(task)
        return task.result

    def close(self) -> None:
        """End the workers; the futures of unfinished tasks are never set."""
        self._closing.set()
        with self._lock:
            pool, self._pool = self._pool, None
            self._tasks.clear()
        if pool:
            _end(pool)

    def _new_pool(self) -> ProcessPool:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([self._initializer.__module__])
        return ProcessPool(self._workers, initializer=self._initializer, context=context)

    def _hand_over(self, task: _Task) -> None:
        """Schedule a task in the pool. If the pool is broken, `_watch` schedules the task in the next pool."""
        task.attempts += 1
        assert self._pool is not None
        with suppress(RuntimeError, OSError):
            future = self._pool.schedule(task.function, task.arguments, timeout=task.timeout)
            future.add_done_callback(lambda done: self._settle(task, done))

    def _settle(self, task: _Task, done: Future[Any]) -> None:
        """Set the result of a task, or schedule the task again if its worker ended for another reason than the task.

        Does nothing if the pool is broken: `_watch` then schedules the task in the next pool.
        """
        error = done.exception()
        if isinstance(error, BrokenProcessPool):
            return
        with self._lock:
            if task not in self._tasks:  # a later pool has finished it, or this pool is closed
                return
            self._progress = time.monotonic()
            if isinstance(error, ProcessExpired) and error.exitcode in LOST and task.attempts < ATTEMPTS:
                self._hand_over(task)
                return
            self._tasks.remove(task)
            self._broken = 0
        if error:
            task.result.set_exception(error)
        else:
            task.result.set_result(done.result())

    def _watch(self) -> None:
        """Replace the pool whenever it is broken or stuck while tasks are waiting."""
        while not self._closing.wait(POLL):
            with self._lock:
                if self._pool is None or not self._tasks or not self._is_lost(self._pool):
                    continue
                self._broken += 1
                # In another thread, because stopping a broken pool may take long.
                threading.Thread(target=_end, args=(self._pool,), daemon=True).start()
                self._pool = self._new_pool()
                self._progress = time.monotonic()
                if self._broken <= REPLACEMENTS:
                    for task in self._tasks:
                        task.attempts = 0
                        self._hand_over(task)
                    continue
                given_up, self._tasks, self._broken = self._tasks, set(), 0
            for task in given_up:
                task.result.set_exception(
                    UserError(
                        f"the processes that check answers have died {REPLACEMENTS + 1} times in a row, perhaps because "
                        "memory ran out; free some memory and start again"
                    )
                )

    def _is_lost(self, pool: ProcessPool) -> bool:
        limit = max(math.inf if task.timeout is None else task.timeout for task in self._tasks)
        if time.monotonic() - self._progress > STALL + limit:
            return True  # for example, a worker died while it held a lock that the others wait for
        try:
            return not pool.active
        except (RuntimeError, OSError):  # the pool cannot start its workers
            return True


def _end(pool: ProcessPool) -> None:
    pool.stop()
    with suppress(RuntimeError, OSError):
        pool.join()
