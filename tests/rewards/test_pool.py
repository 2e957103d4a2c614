"""Tests of the pool when answer-check workers die, for example because memory runs out."""

import multiprocessing.forkserver
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from sspo_cli.errors import UserError
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rewards.answer import Verdict
from sspo_cli.rewards.pool import REPLACEMENTS, LastingPool


def end_by_sigterm() -> None:
    """Restore the default handler, as the answer-check workers do; pebble's handler would wait for Python."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def square(number: int, seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return number**2


@pytest.fixture(scope="module")
def pool() -> Iterator[LastingPool]:
    """One pool that all tests share."""
    pool = LastingPool(1, end_by_sigterm)
    assert pool.schedule(square, (3,), timeout=30.0).result(timeout=60.0) == 9
    yield pool
    pool.close()


def children() -> set[int]:
    """Return the ids of the processes whose parent is the fork server."""
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == server and state != "Z":
            found.add(int(name))
    return found


def kill_idle_workers() -> None:
    for pid in children():
        os.kill(pid, signal.SIGKILL)


def kill_fork_server() -> None:
    os.kill(multiprocessing.forkserver._forkserver._forkserver_pid, signal.SIGKILL)


@pytest.mark.parametrize("kill", [kill_idle_workers, kill_fork_server])
@pytest.mark.parametrize("wait", [0.0, 0.5], ids=["at once", "later"])  # before and after pebble notices it
def test_no_task_is_lost_when_idle_workers_die(pool: LastingPool, kill: Callable[[], None], wait: float) -> None:
    """The 500 tasks are more than a pipe holds."""
    kill()
    time.sleep(wait)
    waiting = [pool.schedule(square, (number,), timeout=30.0) for number in range(500)]
    assert [task.result(timeout=60.0) for task in waiting] == [number**2 for number in range(500)]


def test_a_task_that_is_lost_with_the_fork_server_is_done_again(pool: LastingPool) -> None:
    pending = pool.schedule(square, (6, 0.5), timeout=30.0)
    time.sleep(0.2)
    kill_fork_server()
    assert pending.result(timeout=60.0) == 36


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_task_whose_worker_gets_the_signal_of_a_whole_job_is_done_again(pool: LastingPool, number: int) -> None:
    pending = pool.schedule(square, (8, 0.5), timeout=30.0)
    time.sleep(0.2)
    for worker in children():
        os.kill(worker, number)
    assert pending.result(timeout=60.0) == 64


def test_workers_that_always_die_end_in_one_sentence() -> None:
    pool = LastingPool(1, die)
    try:
        waiting = [pool.schedule(square, (number,), timeout=30.0) for number in range(3)]
        for task in waiting:
            with pytest.raises(UserError, match=f"died {REPLACEMENTS + 1} times in a row"):
                task.result(timeout=60.0)
    finally:
        pool.close()


def test_no_worker_is_left_when_a_pool_that_broke_is_closed(pool: LastingPool) -> None:
    kill_idle_workers()
    assert pool.schedule(square, (7,), timeout=30.0).result(timeout=60.0) == 49
    pool.close()
    deadline = time.monotonic() + 10.0
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children()


def test_an_answer_is_checked_after_the_idle_worker_died(checker: AnswerChecker) -> None:
    right = Verdict(True, "ok")
    assert checker.check([("x^2+2x+1", "(x+1)^2")]) == [right]
    kill_idle_workers()
    assert checker.check([("x^2-2x+1", "(x-1)^2"), ("x^2-1", "(x-1)(x+1)")]) == [right, right]
