"""r_answer: the comparison of an answer with the gold answer."""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from pebble import ProcessExpired

from sspo_cli.errors import UserError
from sspo_cli.rewards.pool import LastingPool
from sspo_cli.rewards.quick import prepared, quick_verdict

CACHE_SIZE = 1 << 16
WALL_CLOCK = 20.0  # wall-clock limit of a check, as a multiple of its limit in processor time: the machine may be busy


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check.

    equal   the answer equals the gold answer; always False unless `status` is "ok"
    status  "ok", "timeout", "error" (the comparison failed, for example because its worker died) or "no answer"
    """

    equal: bool
    status: str


class AnswerChecker:
    """Compare answers by value, with computer algebra in worker processes that are killed at a time limit.

    Use the checker as a context manager. The workers start with the first answer that needs computer algebra and end with
    the `with` block. Verdicts are cached, so that each pair is checked once.

    timeouts  number of checks that ran out of time so far
    """

    def __init__(self, *, workers: int | None = None, timeout: float = 3.0) -> None:
        """Set the limits; no worker is started yet.

        workers  number of processes; by default the number of cores, at most four
        timeout  seconds of processor time for each check, so that load on the machine does not change verdicts; a check is
                 also ended after `WALL_CLOCK` times as many seconds of wall-clock time
        """
        self.timeouts = 0
        self._workers = workers or min(4, os.cpu_count() or 1)
        self._timeout = timeout
        self._pool: LastingPool | None = None
        self._decide = lru_cache(CACHE_SIZE)(self._start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._decide.cache_clear()
        if self._pool:
            self._pool.close()
            self._pool = None

    def check(self, pairs: Sequence[tuple[str | None, str]]) -> list[Verdict]:
        """Return the verdict on each pair, in order.

        pairs  (extracted answer, or None if there is none; gold answer)
        """
        pending = [self.submit(prediction, gold) for prediction, gold in pairs]
        return [verdict.result() for verdict in pending]

    def submit(self, prediction: str | None, gold: str) -> Future[Verdict]:
        """Start the check of one pair; the future holds the verdict that `check` would return."""
        return self._decide(*prepared(prediction, gold))

    def _start(self, prediction: str | None, gold: str) -> Future[Verdict]:
        verdict: Future[Verdict] = Future()
        if not prediction:
            verdict.set_result(Verdict(False, "no answer"))
        elif (quick := quick_verdict(prediction, gold)) is not None:
            verdict.set_result(Verdict(quick, "ok"))
        else:
            self._schedule(prediction, gold).add_done_callback(lambda done: self._settle(verdict, done))
        return verdict

    def _settle(self, verdict: Future[Verdict], check: Future[bool]) -> None:
        try:
            verdict.set_result(Verdict(check.result(), "ok"))
        except TimeoutError:
            self._fail(verdict, "timeout")
        except ProcessExpired as error:
            self._fail(verdict, "timeout" if error.exitcode == -signal.SIGPROF else "error")
        except UserError as error:  # the answer is not at fault, so the caller gets the error instead of a verdict
            verdict.set_exception(error)
        except Exception:  # such as a MemoryError
            self._fail(verdict, "error")

    def _fail(self, verdict: Future[Verdict], status: str) -> None:
        self.timeouts += status == "timeout"
        verdict.set_result(Verdict(False, status))

    @property
    def limit(self) -> float:
        """Limit of each check, in seconds of processor time."""
        return self._timeout

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
        """Call a function in a worker process, which is killed at the wall-clock limit.

        The future raises the exceptions of `LastingPool.schedule`.
        """
        from sspo_cli.rewards import equality  # loads sympy, which many runs never need

        if self._pool is None:
            self._pool = LastingPool(self._workers, initializer=equality.prepare_worker)
        return self._pool.schedule(function, arguments, timeout=WALL_CLOCK * self._timeout)

    def _schedule(self, prediction: str, gold: str) -> Future[bool]:
        from sspo_cli.rewards import equality

        return self.call(equality.equal, (prediction, gold, self._timeout))
